"""Whole training steps against the released PyTorch code, and what a step must leave alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from sdpn_jax import config as configs
from sdpn_jax.models.network import network_of
from sdpn_jax.training import optim, sharding
from sdpn_jax.training.health import health, looks_collapsed
from sdpn_jax.training.loop import interval_means
from sdpn_jax.training.program import program_of, view_shapes
from sdpn_jax.training.step import (
    Objective,
    TrainState,
    forward,
    init_state,
    make_train_step,
    teacher_targets,
)
from sdpn_jax.weights.sdpn_names import from_released

SIZES = {
    "channels": (16, 16, 16, 16, 24), "se_bottleneck": 8, "attention": 8, "embedding_size": 12, "hidden_size": 20,
    "projection_size": 6,
}  # fmt: skip
SMALL = network_of({**SIZES, "encoder": "resnet18", "width": 4, "blocks": (1, 1, 1, 1)})


def of_state(vectors: dict, prefix: str) -> dict:
    """The released arrays whose names in the vectors start with `prefix`."""
    return {name.removeprefix(prefix): array for name, array in vectors.items() if name.startswith(prefix)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["softmax", "sinkhorn"])
@pytest.mark.parametrize("dtype, rtol", [(np.float64, 1e-8), (np.float32, 1e-4)])
def test_golden_steps(golden, kind, dtype, rtol):
    vectors = dict(np.load(golden / f"steps_{kind}.npz"))
    with jax.enable_x64(dtype == np.float64):
        sizes, released = from_released(of_state(vectors, "init/student/"))
        network = network_of({**sizes, "dtype": dtype})
        student = jax.tree.map(lambda x: jnp.asarray(x, dtype), released)
        prototypes = jnp.asarray(vectors["init/prototypes"], dtype)
        rates, momenta = (jnp.asarray(vectors[name], dtype) for name in ("lr", "teacher_momentum"))

        def optimizer(clip_norm):
            return optim.optimizer(lambda step: rates[step], 0.9, float(vectors["weight_decay"]), clip_norm)

        @jax.jit
        def step(state, batch, clip_norm):
            objective, rate, momentum = Objective(targets=kind), lambda step: rates[step], lambda step: momenta[step]
            return make_train_step(network, optimizer(clip_norm), objective, rate, momentum)(state, batch)

        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            student=student,
            teacher=student,
            prototypes=prototypes,
            offset=jnp.zeros(len(prototypes), dtype),
            opt_state=optimizer(3.0).init({"network": student["params"], "prototypes": prototypes}),
        )
        for i, clip_norm in enumerate(vectors["clip_norm"]):
            view = {  # [views, batch, mel, frames] -> [batch, views, frames, mel]
                name: jnp.log(jnp.asarray(vectors[f"{name}_mel_power"][i], dtype) + 1e-6)
                for name in ("global", "local")
            }
            batch = {
                "global": view["global"].reshape(1, *view["global"].shape[-3:]).transpose(1, 0, 3, 2),
                "local": view["local"].transpose(1, 0, 3, 2),
            }
            state, metrics = step(state, batch, jnp.asarray(clip_norm, dtype))
            history = [float(metrics[name]) for name in ("loss", "cross_entropy", "me_max", "koleo")]
            if dtype == np.float64 or i < 2:  # the first rate is 0: until here no update has been felt
                np.testing.assert_allclose(history, vectors["history_loss_ce_memax_koleo"][i], rtol=rtol)

    finals = {name: from_released(of_state(vectors, f"final/{name}/"))[1] for name in ("student", "teacher")}
    if dtype == np.float64:
        for name, final in finals.items():
            moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), final["params"], released["params"])
            # Biases before a norm have no gradient but rounding, hence the bound relative to the largest movement.
            atol = rtol * max(jax.tree.leaves(moved))
            close = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol)
            jax.tree.map(close, getattr(state, name), final)
        np.testing.assert_allclose(state.prototypes, vectors["final/prototypes"], rtol=rtol, atol=rtol)
    else:
        # In float32 rounding decides the sign of a few values at a ReLU; each moves one channel's gradient by one
        # frame's share, so single arrays cannot agree to 1e-4. All parameters together do, to a few times that.
        for name, final in finals.items():
            assert distance(getattr(state, name)["params"], final["params"]) < 10 * rtol
            assert distance(getattr(state, name)["batch_stats"], final["batch_stats"]) < rtol
        assert distance(state.prototypes, vectors["final/prototypes"]) < 10 * rtol


def distance(actual, expected) -> float:
    """|actual - expected| / |expected| over all arrays of two trees."""
    difference = jax.tree.map(lambda a, b: np.sum(np.square(np.asarray(a) - b)), actual, expected)
    size = jax.tree.map(lambda b: np.sum(np.square(b)), expected)
    return float(np.sqrt(sum(jax.tree.leaves(difference)) / sum(jax.tree.leaves(size))))


WEIGHTS = {"me_max_weight": 2.0, "koleo_weight": 0.3, "off_diagonal_weight": 0.7, "frobenius_weight": 5.0}


@pytest.fixture(scope="module")
def one_step():
    """(state before, state after, metrics) of one step of a small network."""
    optimizer = optim.optimizer(lambda step: 0.1, 0.9, 5e-5, 3.0)
    step = make_train_step(SMALL, optimizer, Objective(**WEIGHTS), lambda step: 0.1, lambda step: 0.9)
    state = jax.jit(lambda: init_state(SMALL, 10, optimizer, 0))()
    rng = np.random.default_rng(0)
    batch = {
        "global": rng.normal(size=(6, 1, 30, 80)).astype(np.float16),
        "local": rng.normal(size=(6, 3, 20, 80)).astype(np.float16),
    }
    after, metrics = jax.jit(step)(state, batch)
    return state, after, metrics


def test_the_teacher_is_the_moving_average_of_the_students_parameters(one_step):
    before, after, _ = one_step
    expected = jax.tree.map(
        lambda old, new: 0.9 * np.asarray(old, np.float64) + 0.1 * np.asarray(new, np.float64),
        before.teacher["params"],
        after.student["params"],
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after.teacher["params"], expected)


def test_the_teachers_statistics_come_from_its_own_views(one_step):
    _, after, _ = one_step
    student, teacher = (getattr(after, name)["batch_stats"]["encoder"]["bn1"] for name in ("student", "teacher"))
    assert np.all(teacher["mean"] != 0)
    assert np.all(teacher["mean"] != student["mean"])


def test_the_offset_moves_by_no_more_than_one_balancing_step(one_step):
    before, after, _ = one_step
    assert not np.any(before.offset)
    rate, prototypes = Objective().offset_rate, len(after.offset)
    assert np.log(1 - rate) <= after.offset.min() < 0 < after.offset.max() <= np.log(1 - rate + rate * prototypes)


def test_centred_targets_subtract_a_running_mean_of_the_cosines():
    rng = np.random.default_rng(0)
    projection, prototypes, offset = rng.normal(size=(4, 2, 6)), rng.normal(size=(5, 6)), rng.normal(size=5)
    objective = Objective(targets="centred", offset_rate=0.25, student_temperature=0.2, sharpening=0.5)
    with jax.enable_x64(True):
        targets, after = teacher_targets(projection, prototypes, offset, objective)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    cosines = np.einsum("bgp,kp->bgk", unit(projection), unit(prototypes))
    np.testing.assert_allclose(targets, scipy.special.softmax((cosines - offset) / 0.1, axis=-1), rtol=1e-9)
    np.testing.assert_allclose(after, 0.75 * offset + 0.25 * cosines.mean((0, 1)), rtol=1e-9)


@pytest.mark.parametrize("targets", ["balanced", "softmax"])
def test_centred_projections_tell_apart_what_is_nearly_the_same(targets):
    """By hand: of utterances that differ by a millionth the targets are those of the differences alone."""
    rng = np.random.default_rng(1)
    common, own, prototypes = rng.normal(size=6), rng.normal(size=(4, 2, 6)), rng.normal(size=(5, 6))
    own -= own.mean((0, 1))
    objective = Objective(targets=targets, student_temperature=0.2, sharpening=0.5, centre_projections=True)
    plain = Objective(targets=targets, student_temperature=0.2, sharpening=0.5)
    with jax.enable_x64(True):
        found, _ = teacher_targets(common + 1e-6 * own, prototypes, jnp.zeros(5), objective)
        expected, _ = teacher_targets(own, prototypes, jnp.zeros(5), plain)
        blurred, _ = teacher_targets(common + 1e-6 * own, prototypes, jnp.zeros(5), plain)
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    assert np.ptp(blurred, axis=0).max() < 1e-4 < 0.1 < np.ptp(found, axis=0).max()
    if targets == "softmax":
        unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
        logits = np.einsum("bgp,kp->bgk", unit(own), unit(prototypes)) / 0.1
        np.testing.assert_allclose(found, scipy.special.softmax(logits, axis=-1), rtol=1e-8)


def test_everything_stays_float32_and_the_step_counts(one_step):
    _, after, metrics = one_step
    assert int(after.step) == 1
    floats = [leaf for leaf in jax.tree.leaves((after, metrics)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype("float32")}
    assert all(np.all(np.isfinite(leaf)) for leaf in floats)


def test_each_weight_scales_its_term(one_step):
    _, _, metrics = one_step
    assert {field for field in Objective.__dataclass_fields__ if field.endswith("_weight")} == set(WEIGHTS)
    expected = float(metrics["cross_entropy"]) + sum(
        weight * float(metrics[field.removesuffix("_weight")]) for field, weight in WEIGHTS.items()
    )
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)


def test_ema_distance(one_step):
    _, after, metrics = one_step
    teacher, student = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree["params"])])
                        for tree in (after.teacher, after.student))  # fmt: skip
    expected = np.linalg.norm(student - teacher) / np.linalg.norm(student)
    assert expected > 0
    assert float(metrics["ema_distance"]) == pytest.approx(expected, rel=1e-3)


def test_targets_told_apart():
    batch, prototypes = 8, 20
    log_p, embedding = np.log(np.full((batch, 2, prototypes), 0.05)), np.random.default_rng(0).normal(size=(8, 2, 8))
    each_its_own = np.eye(prototypes)[:batch, None]
    pairs = np.eye(prototypes)[np.arange(batch) // 2][:, None]
    one = np.broadcast_to(np.eye(prototypes)[3], (batch, 1, prototypes))
    uniform = np.full((batch, 1, prototypes), 0.05)
    for targets, expected in ((each_its_own, 8), (pairs, 4), (one, 1), (uniform, 1)):
        assert float(health(embedding, targets, log_p)["targets_told_apart"]) == pytest.approx(expected, rel=1e-5)


def test_the_signature_of_collapse():
    healthy = {"targets_told_apart": 12.0, "embedding_cosine": 0.1, "effective_rank": 20.0}
    assert looks_collapsed(healthy) is None
    assert "same target" in looks_collapsed(healthy | {"targets_told_apart": 1.1})
    assert "same way" in looks_collapsed(healthy | {"embedding_cosine": 0.99})
    assert "one line" in looks_collapsed(healthy | {"effective_rank": 1.1})


def test_health_of_a_collapsed_and_of_a_spread_batch():
    batch, views, size = 8, 1, 8
    log_p = np.log(np.full((batch, views, 5), 0.2))
    one = np.zeros((batch, 1, 5))
    one[..., 2] = 1
    collapsed = health(jnp.ones((batch, views, size)), jnp.asarray(one), log_p)
    assert float(collapsed["prototypes_in_use"]) == pytest.approx(1)
    assert float(collapsed["embedding_std"]) == pytest.approx(0, abs=1e-3)
    assert float(collapsed["embedding_cosine"]) == pytest.approx(1, rel=1e-5)
    spread = health(jnp.eye(size).reshape(batch, views, size), jnp.full((batch, 1, 5), 0.2), log_p)
    assert float(spread["prototypes_in_use"]) == pytest.approx(5, rel=1e-5)
    assert float(spread["effective_rank"]) == pytest.approx(size - 1, rel=1e-4)  # the mean takes one dimension
    assert float(spread["embedding_cosine"]) == pytest.approx(0, abs=1e-6)
    assert float(spread["embedding_cosine_max"]) == pytest.approx(0, abs=1e-6)
    pair = np.concatenate([np.eye(4), np.eye(4)[:1]])[:, None]  # the first and the last are equal, the others apart
    assert float(health(pair, jnp.full((5, 1, 5), 0.2), log_p[:5])["embedding_cosine_max"]) == pytest.approx(2 / 5)
    assert float(spread["target_entropy"]) == pytest.approx(np.log(5), rel=1e-5)


def test_interval_means_count_prototypes_over_batches():
    """Two batches that use one prototype each use two together."""
    rows = [{"loss": loss, "mean_target": np.eye(5)[k]} for loss, k in ((1.0, 0), (3.0, 2))]
    assert interval_means(rows) == pytest.approx({"loss": 2.0, "prototypes_in_interval": 2.0})


OTHERS = [{}, {"encoder": "resnet18", "width": 4, "blocks": (1, 1, 1, 1)}]


def branched(variables):
    """No branch of a residual block at rest, as it is before training."""
    return jax.tree_util.tree_map_with_path(lambda path, x: x + 0.5 if path[-1].key == "scale" else x, variables)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", OTHERS)
def test_microbatches_change_batch_norm_alone(sizes):
    """Against a plain loop over the microbatches: outputs, statistics and gradients."""
    with jax.enable_x64():
        network = network_of({**SIZES, **sizes, "dtype": "float64"})
        variables = branched(network.init(jax.random.key(0), jnp.zeros((2, 20, 80)), True))
        variables = jax.tree.map(lambda x: x.astype(jnp.float64), variables)
        views = jax.random.normal(jax.random.key(1), (4, 1, 20, 80))

        def by_hand(params):
            passes = [forward(network, {**variables, "params": params}, views[i::2]) for i in range(2)]
            embedding = jnp.stack([p[0] for p in passes], axis=1).reshape(4, 1, -1)
            return jnp.sum(jnp.sin(embedding)), (
                embedding,
                jax.tree.map(lambda *x: sum(x) / 2, *(p[2] for p in passes)),
            )

        def mapped(params):
            embedding, _, stats = forward(network, {**variables, "params": params}, views, microbatches=2)
            return jnp.sum(jnp.sin(embedding)), (embedding, stats)

        results = [jax.jit(jax.value_and_grad(f, has_aux=True))(variables["params"]) for f in (mapped, by_hand)]
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-10), *results)
        whole = forward(network, variables, views)[0]
        assert np.abs(whole - results[0][0][1][0]).max() > 1e-3, "the whole batch has other statistics"


@pytest.mark.slow
@pytest.mark.parametrize("sizes", OTHERS)
def test_rematerialisation_changes_nothing(sizes):
    with jax.enable_x64():
        views = jax.random.normal(jax.random.key(1), (4, 1, 20, 80))
        plain, again = (network_of({**SIZES, **sizes, "dtype": "float64", "remat": remat}) for remat in (False, True))
        variables = branched(plain.init(jax.random.key(0), jnp.zeros((2, 20, 80)), True))

        def gradient(network):
            loss = lambda params: jnp.sum(jnp.sin(forward(network, {**variables, "params": params}, views)[0]))  # noqa: E731
            return jax.jit(jax.grad(loss))(variables["params"])

        close = functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-10)
        jax.tree.map(close, gradient(plain), gradient(again))


@pytest.mark.slow
def test_vox2_on_one_card_is_vox2_step_by_step():
    """Whole batches of 384 by a small encoder in float32: from the same state, three times, to the same next one."""
    small = {
        "num_epochs": 0, "num_steps": 3, "warmup_epochs": 0, "num_prototypes": 32, "model.dtype": "float32",
        "model.channels": (16, 16, 16, 16, 24), "model.se_bottleneck": 8, "model.attention": 8,
        "model.embedding_size": 12, "model.hidden_size": 16, "model.projection_size": 8,
        "views.global_frames": 30, "views.local_frames": 20, "views.local_count": 2,
    }  # fmt: skip
    both = [
        configs.load(name, [f"--config.{field}={value}" for field, value in small.items()])
        for name in ("vox2", "vox2_1gpu")
    ]
    shapes, mesh = view_shapes(384, both[0].views), sharding.make_mesh(1, jax.devices()[:1])
    whole, rematerialised = (
        program_of(config, network_of(config.model), mesh, 1, lambda step, batch, bank: batch, shapes)
        for config in both
    )
    assert [(config.batch_size, config.microbatches, config.model.remat) for config in both] == [
        (384, 1, False),
        (384, 1, True),
    ]
    state, close = whole.init(), functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    for step in range(3):
        key, copy = jax.random.fold_in(jax.random.key(0), step), jax.tree.map(jnp.copy, state)
        views = {
            name: jax.random.normal(key, shapes[name].shape, shapes[name].dtype) for name in ("global", "local")
        } | {"number": jnp.arange(384, dtype=jnp.int32)}
        other, others_metrics = rematerialised.step(copy, views, {})
        state, metrics = whole.step(state, views, {})
        np.testing.assert_allclose(whole.unpack(metrics)["loss"], whole.unpack(others_metrics)["loss"], rtol=1e-5)
        jax.tree.map(close, other, state)
