"""Schedules against hand-worked values, the optimizer against PyTorch's rule written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdpn_jax.training import optim


def test_warmup_cosine():
    """The last of 111 steps is number 110."""
    schedule = optim.warmup_cosine(peak=0.6, final=1e-5, warmup_steps=10, total_steps=111)
    assert float(schedule(0)) == 0
    assert float(schedule(5)) == pytest.approx(0.3)
    assert float(schedule(10)) == pytest.approx(0.6)
    assert float(schedule(60)) == pytest.approx((0.6 + 1e-5) / 2)
    assert float(schedule(110)) == pytest.approx(1e-5, rel=1e-3)
    assert float(schedule(200)) == pytest.approx(1e-5, rel=1e-3)


def test_warmup_may_be_absent():
    assert float(optim.warmup_cosine(0.6, 0.0, 0, 100)(0)) == pytest.approx(0.6)


def test_warmup_but_for_one_step():
    schedule = optim.warmup_cosine(0.6, 1e-5, warmup_steps=9, total_steps=10)
    assert float(schedule(8)) == pytest.approx(0.6 * 8 / 9)
    assert float(schedule(9)) == pytest.approx(0.6)


def test_ema_momentum():
    schedule = optim.ema_momentum(0.996, 1.0, 101)
    assert float(schedule(0)) == pytest.approx(0.996)
    assert float(schedule(50)) == pytest.approx(0.998)
    assert float(schedule(100)) == pytest.approx(1.0)


def test_the_teacher_follows_and_equal_weights_stay():
    teacher, student = np.random.default_rng(0).normal(size=(2, 1000)).astype(np.float32)
    moved = optim.follow({"w": teacher}, {"w": student}, 0.996)["w"]
    np.testing.assert_allclose(moved, 0.996 * teacher.astype(np.float64) + 0.004 * student, rtol=1e-5, atol=1e-6)
    for momentum in np.float32([0.3, 0.97, 0.9937, 0.9999]):
        np.testing.assert_array_equal(optim.follow(teacher, teacher, momentum), teacher)


def test_ema_momentum_may_stay():
    assert float(optim.ema_momentum(0.99, 0.99, 100)(37)) == pytest.approx(0.99)


@pytest.mark.parametrize("scope, multiplier", [("off", 0.0), ("tensor", 4.0), ("global", 1.0)])
def test_three_steps_of_sgd(scope, multiplier):
    rng = np.random.default_rng(0)
    rates, momentum, decay, clip_norm = [0.1, 0.2, 0.05], 0.9, 0.01, 0.5
    params = {"network": {"w": rng.normal(size=(3, 2)), "b": rng.normal(size=3)}, "prototypes": rng.normal(size=(4, 2))}
    transform = optim.optimizer(lambda step: np.asarray(rates)[step], momentum, decay, clip_norm, scope, multiplier)
    state, actual = transform.init(params), params
    expected = {"w": params["network"]["w"], "b": params["network"]["b"], "p": params["prototypes"]}
    velocity = {name: 0.0 for name in expected}
    for rate in rates:
        gradients = {"w": rng.normal(size=(3, 2)), "b": rng.normal(size=3), "p": rng.normal(size=(4, 2))}
        tree = {"network": {"w": gradients["w"], "b": gradients["b"]}, "prototypes": gradients["p"]}
        updates, state = transform.update(tree, state, actual)
        actual = optax.apply_updates(actual, updates)
        whole = np.sqrt(np.square(gradients["w"]).sum() + np.square(gradients["b"]).sum())
        for name, gradient in gradients.items():
            norm = {"off": 0, "tensor": np.linalg.norm(gradient), "global": whole}[scope]
            if name != "p":
                gradient = gradient * min(1, clip_norm / (norm + 1e-6))
            if name == "w":
                gradient = gradient + decay * expected["w"]
            velocity[name] = momentum * velocity[name] + gradient
            expected[name] = expected[name] - rate * (multiplier if name == "p" else 1) * velocity[name]
    np.testing.assert_allclose(actual["network"]["w"], expected["w"], rtol=1e-5)
    np.testing.assert_allclose(actual["network"]["b"], expected["b"], rtol=1e-5)
    np.testing.assert_allclose(actual["prototypes"], expected["p"], rtol=1e-5)
    moved = np.any(actual["prototypes"] != np.float32(params["prototypes"]))
    assert moved == (multiplier != 0)


def test_three_steps_of_lars():
    """The gradient of a matrix, decay included, is scaled to a thousandth of the weights' norm; prototypes are not."""
    rng = np.random.default_rng(1)
    params = {"network": {"w": rng.normal(size=(3, 2)), "b": rng.normal(size=3)}, "prototypes": rng.normal(size=(4, 2))}
    params = jax.tree.map(np.float32, params)
    transform = optim.optimizer(lambda step: 0.5, 0.9, 0.01, 1.0, "off", name="lars")
    state, actual = transform.init(params), params
    expected = {"w": params["network"]["w"], "b": params["network"]["b"], "p": params["prototypes"]}
    velocity = {name: 0.0 for name in expected}
    for _ in range(3):
        gradients = {name: rng.normal(size=value.shape) for name, value in expected.items()}
        tree = {"network": {"w": gradients["w"], "b": gradients["b"]}, "prototypes": gradients["p"]}
        updates, state = transform.update(tree, state, actual)
        actual = optax.apply_updates(actual, updates)
        with_decay = gradients["w"] + 0.01 * expected["w"]
        gradients["w"] = with_decay * 0.001 * np.linalg.norm(expected["w"]) / np.linalg.norm(with_decay)
        for name, gradient in gradients.items():
            velocity[name] = 0.9 * velocity[name] + gradient
            expected[name] = expected[name] - 0.5 * velocity[name]
    np.testing.assert_allclose(actual["network"]["w"], expected["w"], rtol=1e-5)
    np.testing.assert_allclose(actual["network"]["b"], expected["b"], rtol=1e-5)
    np.testing.assert_allclose(actual["prototypes"], expected["p"], rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_three_steps_of_adamw(name):
    """Loshchilov and Hutter, algorithm 2; prototypes without decay. Muon's vectors look a step ahead, as NAdam does."""
    rng = np.random.default_rng(2)
    params = {"network": {"w": rng.normal(size=(3, 2)), "b": rng.normal(size=3)}, "prototypes": rng.normal(size=(4, 2))}
    transform = optim.optimizer(lambda step: 0.02, 0.9, 0.1, 1.0, "off", prototype_multiplier=3.0, name=name)
    state, actual = transform.init(params), params
    expected = {"w": params["network"]["w"], "b": params["network"]["b"], "p": params["prototypes"]}
    first, second = ({key: 0.0 for key in expected} for _ in range(2))
    for step in range(1, 4):
        gradients = {key: rng.normal(size=value.shape) for key, value in expected.items()}
        tree = {"network": {"w": gradients["w"], "b": gradients["b"]}, "prototypes": gradients["p"]}
        updates, state = transform.update(tree, state, actual)
        actual = optax.apply_updates(actual, updates)
        for key, gradient in gradients.items():
            first[key] = 0.9 * first[key] + 0.1 * gradient
            second[key] = 0.999 * second[key] + 0.001 * gradient**2
            adam = first[key] / (1 - 0.9**step) / (np.sqrt(second[key] / (1 - 0.999**step)) + 1e-8)
            if name == "muon" and key == "b":
                ahead = 0.9 * first[key] / (1 - 0.9 ** (step + 1)) + 0.1 * gradient / (1 - 0.9**step)
                adam = ahead / (np.sqrt(second[key] / (1 - 0.999**step)) + 1e-8)
            rate = 0.06 if key == "p" else 0.02
            expected[key] = expected[key] - rate * (adam + (0.1 * expected[key] if key == "w" else 0))
    if name == "adamw":
        np.testing.assert_allclose(actual["network"]["w"], expected["w"], rtol=1e-4)
    np.testing.assert_allclose(actual["network"]["b"], expected["b"], rtol=1e-4)
    np.testing.assert_allclose(actual["prototypes"], expected["p"], rtol=1e-4)


def test_muon_makes_the_update_of_a_convolution_nearly_orthogonal():
    """Singular values of the matrix [taps * channels, features] near each other, elements of 0.2 times the rate."""
    rng = np.random.default_rng(3)
    gradients = {
        "network": {"w": rng.normal(size=(3, 8, 16)) * 10.0 ** rng.uniform(-1, 1, 16)},
        "prototypes": np.ones((4, 2)),
    }
    params = jax.tree.map(np.ones_like, gradients)
    transform = optim.optimizer(lambda step: 0.02, 0.9, 0.0, 1.0, "off", name="muon")
    update = np.asarray(transform.update(gradients, transform.init(params), params)[0]["network"]["w"]).reshape(24, 16)
    values = np.linalg.svd(update, compute_uv=False) / (0.02 * 0.2 * np.sqrt(24))
    assert np.all((values > 0.5) & (values < 1.4)), values


def test_gradients_within_the_bound_are_not_scaled():
    gradients = {"a": np.array([0.3, 0.4]), "b": np.array([1.0])}  # norms 0.5, 1 and together 1.118
    for scope, factor in (("tensor", 1.0), ("global", 1.1 / 1.25**0.5)):
        clipped, _ = optim.clip(1.1, scope).update(gradients, optax.EmptyState())
        np.testing.assert_allclose(clipped["a"], factor * gradients["a"], rtol=1e-5)


def test_frozen_parameters_stay_and_the_encoder_moves_slower():
    """Against plain SGD without momentum: w - rate multiplier g."""
    rng = np.random.default_rng(0)
    tree = lambda: {  # noqa: E731
        "network": {"encoder": {"a": rng.normal(size=3), "b": rng.normal(size=3)}, "head": {"a": rng.normal(size=3)}},
        "prototypes": rng.normal(size=(4, 2)),
    }
    params, gradients = tree(), tree()
    transform = optim.optimizer(
        lambda _: 0.5, 0.0, 0.01, 1.0, "off", encoder_multiplier=0.1, freeze=("*/b", "prototypes")
    )
    plain = optim.optimizer(lambda _: 0.5, 0.0, 0.01, 1.0, "off")
    state = transform.init(params)
    assert jax.tree.structure(state) == jax.tree.structure(plain.init(params)), "a checkpoint fits either"
    updates, _ = transform.update(gradients, state, params)
    np.testing.assert_allclose(
        updates["network"]["encoder"]["a"], -0.05 * gradients["network"]["encoder"]["a"], rtol=1e-6
    )
    np.testing.assert_allclose(updates["network"]["head"]["a"], -0.5 * gradients["network"]["head"]["a"], rtol=1e-6)
    assert not np.any(updates["network"]["encoder"]["b"])
    assert not np.any(updates["prototypes"])


def test_no_gradient_reaches_what_is_frozen():
    params = {"network": {"encoder": {"a": 2.0}, "head": {"a": 3.0}}, "prototypes": 5.0}

    def loss(params):
        held = optim.hold(params, ("encoder/*",))
        return held["network"]["encoder"]["a"] * held["network"]["head"]["a"] * held["prototypes"]

    gradients = jax.grad(loss)(params)
    assert [float(x) for x in jax.tree.leaves(gradients)] == [0.0, 10.0, 6.0]


@pytest.mark.parametrize("on_nvidia", [False, True])
def test_norms_of_tensors_alone_and_together(monkeypatch, on_nvidia):
    """Both ways of adding up, a GPU's and any other's, against NumPy in float64."""
    monkeypatch.setattr(optim, "on_nvidia", lambda there, elsewhere: there if on_nvidia else elsewhere)
    random = np.random.default_rng(0)
    tensors = [random.normal(size=shape).astype(np.float32) for shape in ((), (7,), (3, 5), (2, 3, 4))]
    exact = [np.sqrt(np.square(tensor, dtype=np.float64).sum()) for tensor in tensors]
    np.testing.assert_allclose(optim.norms([jnp.asarray(tensor) for tensor in tensors]), exact, rtol=1e-6)
    np.testing.assert_allclose(optim.norm({"a": tensors[:2], "b": tensors[2:]}), np.linalg.norm(exact), rtol=1e-6)
