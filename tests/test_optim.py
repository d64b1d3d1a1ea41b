"""Schedules against hand-worked values, the optimizer against PyTorch's rule written out in NumPy."""

import numpy as np
import optax
import pytest

from sdpn_jax import optim


def test_warmup_cosine():
    schedule = optim.warmup_cosine(peak=0.6, final=1e-5, warmup_steps=10, total_steps=110)
    assert float(schedule(0)) == 0
    assert float(schedule(5)) == pytest.approx(0.3)
    assert float(schedule(10)) == pytest.approx(0.6)
    assert float(schedule(60)) == pytest.approx((0.6 + 1e-5) / 2)
    assert float(schedule(110)) == pytest.approx(1e-5, rel=1e-3)
    assert float(schedule(200)) == pytest.approx(1e-5, rel=1e-3)


def test_warmup_may_be_absent():
    assert float(optim.warmup_cosine(0.6, 0.0, 0, 100)(0)) == pytest.approx(0.6)


def test_ema_momentum():
    schedule = optim.ema_momentum(0.996, 100)
    assert float(schedule(0)) == pytest.approx(0.996)
    assert float(schedule(50)) == pytest.approx(0.998)
    assert float(schedule(100)) == pytest.approx(1.0)


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_three_steps_of_sgd(clip_norm):
    rng = np.random.default_rng(0)
    rates, momentum, decay, multiplier = [0.1, 0.2, 0.05], 0.9, 0.01, 4.0
    params = {"network": {"w": rng.normal(size=(3, 2)), "b": rng.normal(size=3)}, "prototypes": rng.normal(size=(4, 2))}
    transform = optim.sgd(lambda step: np.asarray(rates)[step], momentum, decay, clip_norm, multiplier)
    state, actual = transform.init(params), params
    expected = {"w": params["network"]["w"], "b": params["network"]["b"], "p": params["prototypes"]}
    velocity = {name: 0.0 for name in expected}
    for rate in rates:
        gradients = {"w": rng.normal(size=(3, 2)), "b": rng.normal(size=3), "p": rng.normal(size=(4, 2))}
        tree = {"network": {"w": gradients["w"], "b": gradients["b"]}, "prototypes": gradients["p"]}
        updates, state = transform.update(tree, state, actual)
        actual = optax.apply_updates(actual, updates)
        for name, gradient in gradients.items():
            if name != "p" and clip_norm:
                gradient = gradient * min(1, clip_norm / (np.linalg.norm(gradient) + 1e-6))
            if name == "w":
                gradient = gradient + decay * expected["w"]
            velocity[name] = momentum * velocity[name] + gradient
            expected[name] = expected[name] - rate * (multiplier if name == "p" else 1) * velocity[name]
    np.testing.assert_allclose(actual["network"]["w"], expected["w"], rtol=1e-5)
    np.testing.assert_allclose(actual["network"]["b"], expected["b"], rtol=1e-5)
    np.testing.assert_allclose(actual["prototypes"], expected["p"], rtol=1e-5)


def test_ema():
    average = optim.ema({"a": np.array([1.0, 2.0])}, {"a": np.array([3.0, 0.0])}, 0.75)
    np.testing.assert_allclose(average["a"], [1.5, 1.5])
