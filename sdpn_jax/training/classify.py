"""The pure training step that learns from labels, with or without SDPN beside it: `state, batch -> state, metrics`.

The student learns to find the class of each augmented view; the teacher is the average of its weights. Labels that the
network disagrees with can be distrusted and corrected (see gate.py), utterances without a label are left to SDPN.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from sdpn_jax.models.network import Network
from sdpn_jax.training import gate, margins, optim
from sdpn_jax.training.health import spread
from sdpn_jax.training.step import (
    Batch,
    Labelled,
    Metrics,
    Objective,
    TrainState,
    forward,
    loss_terms,
    movement,
    predicted,
    teacher_targets,
    weighted,
)

CLASSES = 3  # folded into the seed's key; see step.drawn_prototypes (1), device.AUGMENTATION (2)
MOST_GATE = 100.0  # the loss shown for a gate that lets every label pass


@dataclass(frozen=True)
class Labelling:
    """What is learnt from labels, and when; see sdpn_jax/config.py. Steps that never come are -1."""

    classes: int
    head: margins.Head
    sub_centres: int = 1
    ramp: tuple[int, int] = (0, 0)  # steps between which the margins rise
    steps_per_epoch: int = 1
    gate_from: int = -1
    correct_from: int = -1
    correct_temperature: float = 0.1
    correct_above: float = 0.5
    sdpn_weight: float = 0.0

    @property
    def held(self) -> tuple[str, ...]:
        """Parameters that nothing is learnt for."""
        return () if self.sdpn_weight else ("head/*", "prototypes")


def begin(
    state: TrainState,
    labelling: Labelling,
    utterances: int,
    size: int,
    optimizer: optax.GradientTransformation,
    seed: int,
) -> TrainState:
    """Adds to a state what learning from the labels of `utterances` takes, whose embeddings have this size."""
    key = jax.random.fold_in(jax.random.key(seed), CLASSES)
    centres = margins.drawn_centres(labelling.classes, labelling.sub_centres, size, key)
    labelled = Labelled(centres, jnp.full(utterances, gate.UNKNOWN), jnp.asarray(jnp.inf, jnp.float32))
    params = {"network": state.student["params"], "prototypes": state.prototypes, "classes": centres}
    return state.replace(labelled=labelled, opt_state=optimizer.init(params))


def make_classify_step(
    network: Network,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    labelling: Labelling,
    learning_rate: optax.Schedule,
    teacher_momentum: optax.Schedule,
    microbatches: int = 1,
    freeze: Sequence[str] = (),
    replicate: Callable[[Array], Array] = lambda x: x,
) -> Callable[[TrainState, Batch, Mapping[str, Array]], tuple[TrainState, Metrics]]:
    """Makes the step, a pure function of state, views and labels.

    The third argument holds "labels" [N], the class of every utterance or -1, and, where it is known, "truth" [N], its
    speaker, and "speaker_of_class" [C]. `replicate` puts an array on every device, so that each works on its share of
    the classes for the whole batch. All else is as in step.make_train_step.
    """
    classes, with_sdpn = labelling.classes, labelling.sdpn_weight > 0

    def loss_fn(
        params: Any,
        state: TrainState,
        labelled: Labelled,
        batch: Batch,
        labels: Int[Array, " B"],
        targets: Any,
        share: Array,
    ):
        params = optim.hold(params, freeze)
        variables = {"params": params["network"], "batch_stats": state.student["batch_stats"]}
        embedding, projection, batch_stats = forward(network, variables, batch["local"], microbatches)
        views = embedding.shape[1]
        of_views = replicate(embedding.reshape(-1, embedding.shape[-1]))
        cosines = margins.class_cosines(of_views, params["classes"], classes)

        def loss_of(labels: Int[Array, " B"]) -> Float[Array, " B"]:
            each = jnp.repeat(labels, views)
            logits = margins.logits(cosines, each, classes, labelling.head, share)
            return margins.cross_entropy(logits, each).reshape(-1, views).mean(1)

        given = jax.lax.stop_gradient(loss_of(labels))
        trusted = (labels >= 0) & (gate.log_loss(given) <= labelled.gate)
        chosen, corrected = correction(state, labelled, batch, labels, trusted)
        counts = trusted | corrected
        loss = jnp.sum(jnp.where(counts, loss_of(chosen), 0.0)) / jnp.maximum(counts.sum(), 1)
        right = margins.found(cosines, jnp.repeat(labels, views)).reshape(-1, views).mean(1)
        terms = {"classification": loss}
        if with_sdpn:
            terms |= loss_terms(predicted(projection, params["prototypes"], objective), targets, embedding, objective)
            loss = loss + labelling.sdpn_weight * weighted(terms, objective)
        return loss, (terms, embedding, batch_stats, given, trusted, corrected, chosen, right)

    def correction(
        state: TrainState, labelled: Labelled, batch: Batch, labels: Int[Array, " B"], trusted: Bool[Array, " B"]
    ) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
        """The class that each utterance counts for, and whether it is another than its label says."""
        if labelling.correct_from < 0:
            return labels, jnp.zeros_like(trusted)

        def found_by_teacher() -> tuple[Array, Array]:
            clean: Any = network.apply(state.teacher, batch["global"][:, 0], method="embed")
            cosines = margins.class_cosines(replicate(clean), labelled.centres, classes)
            used = jnp.arange(cosines.shape[-1]) < classes
            p = jax.nn.softmax(jnp.where(used, cosines / labelling.correct_temperature, -jnp.inf), axis=-1)
            return jnp.argmax(p, -1).astype(labels.dtype), p.max(-1)

        nothing = lambda: (labels, jnp.zeros(labels.shape, labelled.centres.dtype))  # noqa: E731
        best, confidence = jax.lax.cond(state.step >= labelling.correct_from, found_by_teacher, nothing)
        corrected = (labels >= 0) & ~trusted & (confidence > labelling.correct_above)
        return jnp.where(corrected, best, labels), corrected

    def regated(state: TrainState) -> Labelled:
        """What the state knows of labels, with the gate of its epoch, found anew when one begins."""
        assert state.labelled is not None, "init_state makes no labels: classify.begin does"
        if labelling.gate_from < 0:
            return state.labelled
        begins = (state.step >= labelling.gate_from) & (state.step % labelling.steps_per_epoch == 0)
        labelled = state.labelled
        now = jax.lax.cond(begins, lambda: gate.gate_of(labelled.losses), lambda: labelled.gate)
        return labelled.replace(gate=now)

    def train_step(state: TrainState, batch: Batch, known: Mapping[str, Array]) -> tuple[TrainState, Metrics]:
        labelled = regated(state)
        number = replicate(batch["number"])
        labels, share = known["labels"][number], ramped(state.step, labelling.ramp)
        targets, offset, teacher_stats = None, state.offset, None
        if with_sdpn:
            _, projection, teacher_stats = forward(network, state.teacher, batch["global"], microbatches)
            targets, offset = teacher_targets(projection, state.prototypes, state.offset, objective)

        params = {
            "network": state.student["params"],
            "prototypes": state.prototypes,
            "classes": labelled.centres,
        }
        gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, aux), gradients = gradient_fn(params, state, labelled, batch, labels, targets, share)
        terms, embedding, batch_stats, given, trusted, corrected, chosen, right = aux
        updates, opt_state = optimizer.update(gradients, state.opt_state, params)
        params: Any = optax.apply_updates(params, updates)

        momentum = teacher_momentum(state.step)
        teacher = optim.follow(state.teacher["params"], params["network"], momentum)
        if teacher_stats is None:  # the teacher has not seen the batch: its statistics are averages as its weights are
            teacher_stats = optim.follow(state.teacher["batch_stats"], batch_stats, momentum)
        has_label = labels >= 0
        metrics = {
            "loss": loss,
            **terms,
            "accuracy": mean_of(right, has_label),
            "margin": share * labelling.head.margin,
            **(distrust(labelled.gate, has_label, trusted, corrected) if labelling.gate_from >= 0 else {}),
            **agreement(known, number, labels, chosen, trusted, corrected),
            **spread(embedding),
            "learning_rate": learning_rate(state.step),
            "teacher_momentum": momentum,
            **movement(gradients, updates, params["network"], teacher),
        }
        known_losses = jnp.where(has_label, given, gate.UNKNOWN).astype(jnp.float32)
        return state.replace(
            step=state.step + 1,
            student={"params": params["network"], "batch_stats": batch_stats},
            teacher={"params": teacher, "batch_stats": teacher_stats},
            prototypes=params["prototypes"],
            offset=offset,
            opt_state=opt_state,
            labelled=labelled.replace(centres=params["classes"], losses=labelled.losses.at[number].set(known_losses)),
        ), metrics

    return train_step


def ramped(step: Int[Array, ""], ramp: tuple[int, int]) -> Float[Array, ""]:
    """Returns the share of the margins in force at a step: 0 until ramp[0], 1 from ramp[1] on, a line between."""
    first, last = ramp
    return jnp.clip((step - first + 1) / max(last - first, 1), 0.0, 1.0)


def mean_of(values: Array, which: Bool[Array, " B"]) -> Float[Array, ""]:
    """Averages the values [B] that `which` chooses; 0 where it chooses none."""
    return jnp.sum(jnp.where(which, values, 0)) / jnp.maximum(which.sum(), 1)


def distrust(
    gate: Float[Array, ""], has_label: Bool[Array, " B"], trusted: Bool[Array, " B"], corrected: Bool[Array, " B"]
) -> Metrics:
    """Says which loss marks a wrong label now, and how many labels of the batch are distrusted and corrected."""
    return {
        "gate_loss": jnp.minimum(jnp.exp(gate), MOST_GATE),
        "labels_distrusted": mean_of(~trusted, has_label),
        "labels_corrected": mean_of(corrected, has_label),
    }


def agreement(
    known: Mapping[str, Array],
    number: Int[Array, " B"],
    labels: Int[Array, " B"],
    chosen: Int[Array, " B"],
    trusted: Bool[Array, " B"],
    corrected: Bool[Array, " B"],
) -> Metrics:
    """Compares labels with true speakers where these are known; a class stands for the speaker it has most of.

    Shares of right labels: of all, of those trusted, and of the classes that took the place of distrusted ones.
    """
    if "truth" not in known:
        return {}
    truth = known["truth"][number]
    is_known = (truth >= 0) & (labels >= 0)
    right = lambda labels: known["speaker_of_class"][labels] == truth  # noqa: E731
    return {
        "labels_right": mean_of(right(labels), is_known),
        "trusted_right": mean_of(right(labels), is_known & trusted),
        "corrected_right": mean_of(right(chosen), is_known & corrected),
    }
