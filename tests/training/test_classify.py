"""The step that learns from labels: its loss by a formula, what it leaves alone, and whom it distrusts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_variables
import scipy.special
from flax import linen as nn

from sdpn_jax.models.head import ProjectionHead
from sdpn_jax.models.layers import BatchNorm
from sdpn_jax.models.network import Network
from sdpn_jax.training import classify, gate, margins, optim
from sdpn_jax.training.step import Objective, TrainState, make_train_step


class Tiny(nn.Module):
    """An encoder that compiles in no time: a layer with batch norm, the mean over time, another layer."""

    embedding_size: int = 12

    @nn.compact
    def __call__(self, log_mel, train, lengths=None):
        frames = nn.relu(BatchNorm()(nn.Dense(16)(log_mel.astype(jnp.float32)), train))
        return nn.Dense(self.embedding_size)(frames.mean(1))


SMALL = Network(Tiny(), ProjectionHead(20, 6))
B, V, N, CLASSES, PROTOTYPES = 6, 2, 9, 4, 10
LABELS = np.array([0, 1, 2, 3, 0, 1, -1, 2, 3], np.int32)
NUMBERS = np.array([8, 0, 6, 3, 4, 1], np.int32)  # the third of the batch has no label
LABELLING = classify.Labelling(CLASSES, margins.Head(), steps_per_epoch=5)
OBJECTIVE = Objective(centre_projections=True)


def optimizer(labelling):
    return optim.optimizer(lambda step: 0.1, 0.9, 5e-5, 3.0, freeze=labelling.held)


def state_of(labelling, step=0):
    network = random_variables.of_network(SMALL)
    rng = np.random.default_rng(5)
    state = TrainState(
        step=jnp.asarray(step, jnp.int32),
        student=network,
        teacher=random_variables.of_network(SMALL, 1),
        prototypes=jnp.asarray(rng.normal(size=(PROTOTYPES, 6)), jnp.float32),
        offset=jnp.zeros(PROTOTYPES),
        opt_state=(),
    )
    return classify.begin(state, labelling, N, SMALL.embedding_size, optimizer(labelling), 0)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "global": jnp.asarray(rng.normal(size=(B, 1, 30, 80)), jnp.float16),
        "local": jnp.asarray(rng.normal(size=(B, V, 20, 80)), jnp.float16),
        "number": jnp.asarray(NUMBERS),
    }


def stepped(state, batch, labelling, known=None):
    step = classify.make_classify_step(
        SMALL, optimizer(labelling), OBJECTIVE, labelling, lambda step: 0.1, lambda step: 0.9, freeze=labelling.held
    )
    return jax.jit(step)(state, batch, known or {"labels": jnp.asarray(LABELS)})


def student_embeddings(state, batch):
    flat = batch["local"].reshape(B * V, 20, 80)
    (embedding, _), _ = SMALL.apply(state.student, flat, True, mutable=["batch_stats"])
    return np.asarray(embedding, np.float64).reshape(B, V, -1)


def losses_by_hand(embedding, centres, labels, head, share):
    """[B] mean loss over the views, float64, AAM without the turn at pi, which no angle here reaches."""
    cosine = np.einsum(
        "bvd,cd->bvc",
        embedding / np.linalg.norm(embedding, axis=-1, keepdims=True),
        (centres / np.linalg.norm(centres, axis=-1, keepdims=True))[:CLASSES, 0],
    )
    values = cosine.copy()
    for b, label in enumerate(labels):
        values[b, :, label] = np.cos(np.arccos(cosine[b, :, label]) + share * head.margin)
    log_p = scipy.special.log_softmax(head.scale * values, axis=-1)
    return np.array([-log_p[b, :, label].mean() for b, label in enumerate(labels)]), cosine


@pytest.fixture(scope="module")
def one_step(batch):
    state = state_of(LABELLING)
    return state, *stepped(state, batch, LABELLING)


def test_the_loss_is_the_mean_over_utterances_with_a_label(one_step, batch):
    before, after, metrics = one_step
    labels = LABELS[NUMBERS]
    centres = np.asarray(before.labelled.centres, np.float64)
    by_hand, cosine = losses_by_hand(student_embeddings(before, batch), centres, labels, LABELLING.head, 1.0)
    has_label = labels >= 0
    assert float(metrics["loss"]) == pytest.approx(by_hand[has_label].mean(), rel=1e-4)
    assert float(metrics["classification"]) == float(metrics["loss"])
    found = (cosine.argmax(-1) == labels[:, None]).mean(1)[has_label].mean()
    assert float(metrics["accuracy"]) == pytest.approx(found)

    expected = np.full(N, gate.UNKNOWN)
    expected[NUMBERS[has_label]] = by_hand[has_label]
    np.testing.assert_allclose(after.labelled.losses, expected, rtol=1e-4, atol=1e-5)


def test_head_and_prototypes_stay_as_they_are(one_step):
    before, after, _ = one_step
    for mine, old in (
        (after.prototypes, before.prototypes),
        (after.student["params"]["head"], before.student["params"]["head"]),
    ):
        jax.tree.map(np.testing.assert_array_equal, mine, old)
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), after.student["params"]["encoder"], before.student["params"]["encoder"]
    )
    assert max(jax.tree.leaves(moved)) > 0
    assert np.all(np.any(np.asarray(after.labelled.centres != before.labelled.centres), (1, 2))[:CLASSES])
    np.testing.assert_array_equal(after.labelled.centres[CLASSES:], before.labelled.centres[CLASSES:])


def test_the_teacher_is_the_average_of_weights_and_statistics(one_step):
    before, after, _ = one_step
    expected = jax.tree.map(
        lambda old, new: 0.9 * np.asarray(old, np.float64) + 0.1 * np.asarray(new, np.float64),
        before.teacher,
        after.student,
    )
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
    jax.tree.map(close, after.teacher, expected)


def test_labels_beyond_the_gate_do_not_count(one_step, batch):
    """At an epoch's beginning the gate falls between the losses seen; who is beyond it has no part in the loss."""
    _, _, first = one_step
    labelling = dataclasses.replace(LABELLING, gate_from=5)
    state = state_of(labelling, step=5)
    centres, labels = np.asarray(state.labelled.centres, np.float64), LABELS[NUMBERS]
    by_hand, _ = losses_by_hand(student_embeddings(state, batch), centres, labels, labelling.head, 1.0)
    has_label = labels >= 0
    middle = np.log(np.sort(by_hand[has_label])[2:4]).mean()
    low, high = np.exp(middle - 0.5), np.exp(middle + 0.5)
    seen = jnp.asarray([low * 0.99, low * 1.01, low, high, high * 0.99, high * 1.01, -1, low, high], jnp.float32)
    state = state.replace(labelled=state.labelled.replace(losses=seen))
    after, metrics = stepped(state, batch, labelling)
    counted = has_label & (np.log(by_hand) <= middle)
    assert 0 < counted.sum() < has_label.sum()
    assert float(after.labelled.gate) == pytest.approx(middle, abs=1e-2)
    assert float(metrics["labels_distrusted"]) == pytest.approx(1 - counted.sum() / has_label.sum())
    assert float(metrics["loss"]) == pytest.approx(by_hand[counted].mean(), rel=1e-4)
    assert "labels_distrusted" not in first, "without a gate"

    kept, _ = stepped(after, batch, labelling)  # in the midst of an epoch
    assert float(kept.labelled.gate) == float(after.labelled.gate)


def test_the_teacher_corrects_distrusted_labels(batch):
    """Every clean view's embedding is made the centre of a class; utterances distrusted count for that class."""
    labelling = dataclasses.replace(LABELLING, gate_from=0, correct_from=2, correct_temperature=1e-3)
    state = state_of(labelling, step=2)
    clean = np.asarray(SMALL.apply(state.teacher, batch["global"][:, 0], method="embed"), np.float64)
    clean /= np.linalg.norm(clean, axis=-1, keepdims=True)
    centres = np.array(state.labelled.centres)
    centres[:CLASSES, 0] = clean[:CLASSES]  # the classes of the first four of the batch are 0, 1, 2, 3
    labelled = state.labelled.replace(centres=jnp.asarray(centres), gate=jnp.asarray(-20.0))  # trusts nobody
    state = state.replace(labelled=labelled)
    known = {
        "labels": jnp.asarray(LABELS),
        "truth": jnp.asarray([7, 7, 7, 2, 7, 7, 5, 7, 0], jnp.int32),
        "speaker_of_class": jnp.arange(CLASSES, dtype=jnp.int32),
    }
    after, metrics = stepped(state, batch, labelling, known)

    p = scipy.special.softmax(clean @ clean[:CLASSES].T / 1e-3, axis=-1)
    labels = LABELS[NUMBERS]
    corrected = (labels >= 0) & (p.max(-1) > 0.5)
    assert corrected[[0, 1, 3]].all(), "these are centres"
    by_hand, _ = losses_by_hand(
        student_embeddings(state, batch), np.asarray(centres, np.float64), p.argmax(-1), labelling.head, 1.0
    )
    assert float(metrics["labels_corrected"]) == pytest.approx(corrected.sum() / (labels >= 0).sum())
    assert float(metrics["loss"]) == pytest.approx(by_hand[corrected].mean(), rel=1e-4)
    truth = np.asarray(known["truth"])[NUMBERS]
    assert float(metrics["labels_right"]) == pytest.approx(np.mean((labels == truth)[labels >= 0]))
    assert float(metrics["trusted_right"]) == 0, "nobody is trusted"
    assert float(metrics["corrected_right"]) == pytest.approx(np.mean((p.argmax(-1) == truth)[corrected]))

    _, before = stepped(state.replace(step=jnp.asarray(1)), batch, labelling, known)
    assert float(before["labels_corrected"]) == 0
    assert float(before["loss"]) == 0, "nobody counts"


def test_with_sdpn_beside_it_the_losses_add_up(batch):
    labelling = dataclasses.replace(LABELLING, sdpn_weight=0.3)
    state = state_of(labelling)
    after, metrics = stepped(state, batch, labelling)
    _, labels_alone = stepped(state_of(LABELLING), batch, LABELLING)
    of_sdpn = make_train_step(SMALL, optim.optimizer(lambda step: 0.1, 0.9, 5e-5, 3.0), OBJECTIVE, lambda step: 0.1,
                              lambda step: 0.9)  # fmt: skip
    params = {"network": state.student["params"], "prototypes": state.prototypes}
    opt_state = optim.optimizer(lambda step: 0.1, 0.9, 5e-5, 3.0).init(params)
    expected, alone = jax.jit(of_sdpn)(state.replace(opt_state=opt_state, labelled=None), batch)
    total = float(labels_alone["loss"]) + 0.3 * float(alone["loss"])
    assert float(metrics["loss"]) == pytest.approx(total, rel=1e-5)
    jax.tree.map(np.testing.assert_array_equal, after.teacher["batch_stats"], expected.teacher["batch_stats"])
    np.testing.assert_array_equal(after.offset, expected.offset)
    assert np.any(np.asarray(after.prototypes != state.prototypes))


def test_the_margin_rises_in_a_line():
    shares = [float(classify.ramped(jnp.asarray(step), (2, 6))) for step in range(9)]
    assert shares == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1]
    assert [float(classify.ramped(jnp.asarray(step), (0, 0))) for step in range(2)] == [1, 1]
