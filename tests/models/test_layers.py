"""Layers against SciPy and plain NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpn_jax.models import frames
from sdpn_jax.models.head import ProjectionHead, l2_normalise
from sdpn_jax.models.layers import BatchNorm, Conv


@settings(max_examples=15, deadline=None)
@given(
    taps=st.sampled_from([1, 3, 5]),
    dilation=st.integers(1, 4),
    num_frames=st.integers(9, 30),
    seed=st.integers(0, 2**16),
)
def test_conv_is_a_correlation_of_the_reflected_sequence(taps, dilation, num_frames, seed):
    rng = np.random.default_rng(seed)
    x, kernel, bias = rng.normal(size=(2, num_frames, 3)), rng.normal(size=(taps, 3, 4)), rng.normal(size=4)
    actual = Conv(4, taps, dilation).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    pad = dilation * (taps - 1) // 2
    mirrored = np.pad(x, ((0, 0), (pad, pad), (0, 0)), mode="reflect")
    expected = np.zeros((2, num_frames, 4)) + bias
    for t in range(num_frames):
        for tap in range(taps):
            expected[:, t] += mirrored[:, t + tap * dilation] @ kernel[tap]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(5, 12), min_size=1, max_size=4), pad=st.integers(0, 4))
def test_reflect_pad_mirrors_at_each_sequences_own_end(lengths, pad):
    x = np.random.default_rng(0).normal(size=(len(lengths), 12, 2)).astype(np.float32)
    padded = np.asarray(frames.reflect_pad(x, pad, jnp.asarray(lengths)))
    for row, length in enumerate(lengths):
        expected = np.pad(x[row, :length], ((pad, pad), (0, 0)), mode="reflect")
        np.testing.assert_array_equal(padded[row, : length + 2 * pad], expected)


def test_batch_norm_uses_biased_and_remembers_unbiased_variance():
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, size=(5, 7, 3)).astype(np.float32)
    scale, bias, mean, var = rng.normal(size=3), rng.normal(size=3), rng.normal(size=3), rng.uniform(1, 2, 3)
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}
    flat = x.reshape(-1, 3)

    y, updated = BatchNorm().apply(variables, x, True, mutable=["batch_stats"])
    expected = (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5) * scale + bias
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.9 * mean + 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 * var + 0.1 * flat.var(0, ddof=1), rtol=1e-5)

    y = BatchNorm().apply(variables, x, False)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5) * scale + bias, rtol=1e-5, atol=1e-5)
    y = BatchNorm(affine=False).apply({"batch_stats": variables["batch_stats"]}, x, False)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-5, atol=1e-5)


def test_gradient_of_batch_norm_against_finite_differences():
    rng = np.random.default_rng(0)
    x, weight = rng.normal(1.0, 2.0, size=(3, 4, 2)), rng.normal(size=(3, 4, 2))
    scale, bias = rng.normal(size=2), rng.normal(size=2)

    def value(x, scale, bias):
        flat = x.reshape(-1, 2)
        return (((x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5) * scale + bias) * weight).sum()

    def loss(x, scale, bias):
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": bias, "var": bias}}
        return (BatchNorm().apply(variables, x, True, mutable=["batch_stats"])[0] * weight).sum()

    with jax.enable_x64(True):
        gradients = jax.grad(loss, argnums=(0, 1, 2))(x, scale, bias)
    for number, gradient in enumerate(gradients):
        for place in np.ndindex(gradient.shape):
            arguments = [[x.copy(), scale.copy(), bias.copy()] for _ in range(2)]
            arguments[0][number][place] += 1e-6
            arguments[1][number][place] -= 1e-6
            expected = (value(*arguments[0]) - value(*arguments[1])) / 2e-6
            assert float(gradient[place]) == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_head_against_its_formula():
    rng = np.random.default_rng(0)
    head = ProjectionHead(hidden_size=7, projection_size=4)
    x = rng.normal(size=(6, 5))
    variables = head.init(jax.random.key(0), x, True)
    p = jax.tree.map(lambda a: rng.normal(size=a.shape), variables["params"])
    actual = head.apply({**variables, "params": p}, x, True, mutable=["batch_stats"])[0]
    y = x
    for i in range(2):
        y = y @ p[f"dense_{i}"]["kernel"] + p[f"dense_{i}"]["bias"]
        y = (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5) * p[f"norm_{i}"]["scale"] + p[f"norm_{i}"]["bias"]
        y = 0.5 * y * (1 + scipy.special.erf(y / np.sqrt(2)))
    y = y @ p["dense_2"]["kernel"] + p["dense_2"]["bias"]
    np.testing.assert_allclose(actual, y / np.linalg.norm(y, axis=1, keepdims=True), rtol=1e-4, atol=1e-5)


def test_head_starts_with_normal_weights_and_zero_biases():
    params = ProjectionHead().init(jax.random.key(0), jnp.zeros((2, 512)), True)["params"]
    for i in range(3):
        kernel = np.asarray(params[f"dense_{i}"]["kernel"])
        assert kernel.std() == pytest.approx(0.02, rel=0.05)
        assert not np.any(params[f"dense_{i}"]["bias"])


def test_l2_normalise_has_a_finite_gradient_at_zero():
    value, gradient = jax.value_and_grad(lambda x: l2_normalise(x).sum())(jnp.zeros(4))
    assert value == 0
    assert np.all(np.isfinite(gradient))
