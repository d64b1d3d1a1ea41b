"""Products, convolutions and norms that are applied later, against float64 NumPy and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from sdpn_jax.models import frames, products
from sdpn_jax.models.layers import BatchNorm, Conv, Normed, moments, with_norm
from sdpn_jax.models.pooling import attended

RNG = np.random.default_rng(0)


def correlation(x, kernel, bias, dilation):
    num_frames = x.shape[1] - dilation * (len(kernel) - 1)
    taps = [x[:, k * dilation : k * dilation + num_frames] @ kernel[k] for k in range(len(kernel))]
    return sum(taps) + bias


def assert_gradients(function, expected, arguments):
    """Compares value and gradients of function with finite differences of `expected`, a formula in NumPy."""
    weight = RNG.normal(size=expected(*arguments).shape)
    with jax.enable_x64(True):
        np.testing.assert_allclose(function(*arguments), expected(*arguments), rtol=1e-9, atol=1e-10)
        gradients = jax.grad(lambda *a: (function(*a) * weight).sum(), argnums=range(len(arguments)))(*arguments)
    for number, gradient in enumerate(gradients):
        direction = RNG.normal(size=gradient.shape)
        moved = [[*arguments], [*arguments]]
        moved[0][number], moved[1][number] = (arguments[number] + sign * 1e-6 * direction for sign in (1, -1))
        slope = sum(sign * (expected(*a) * weight).sum() for sign, a in zip((1, -1), moved, strict=True)) / 2e-6
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-7)


def test_product():
    assert_gradients(
        products.product, lambda x, k, b: x @ k + b, [RNG.normal(size=s) for s in ((2, 5, 3), (3, 4), (4,))]
    )


@pytest.mark.parametrize("on_nvidia", [False, True])
@pytest.mark.parametrize(("taps", "dilation"), [(3, 1), (3, 4), (5, 2)])
def test_convolution(monkeypatch, on_nvidia, taps, dilation):
    monkeypatch.setattr(products, "on_nvidia", lambda there, elsewhere: there if on_nvidia else elsewhere)
    arguments = [RNG.normal(size=shape) for shape in ((2, 20, 3), (taps, 3, 4), (4,))]
    assert_gradients(
        lambda x, k, b: products.convolution(x, k, b, dilation), lambda *a: correlation(*a, dilation), arguments
    )


@pytest.mark.parametrize("pad", [frames.reflect_pad, frames.zero_pad])
def test_a_convolution_of_normed_frames(pad):
    raw, shift, gain, bias = (RNG.normal(size=shape) for shape in ((2, 12, 3), 3, 3, 3))
    kernel, own_bias = RNG.normal(size=(3, 3, 4)), RNG.normal(size=4)
    normed = (raw - shift) * gain + bias
    mode = "reflect" if pad is frames.reflect_pad else "constant"
    padded = np.pad(normed, ((0, 0), (2, 2), (0, 0)), mode=mode)
    with jax.enable_x64(True):
        conv = Conv(4, 3, dilation=2, dtype=jnp.float64, pad=pad)
        actual = conv.apply({"params": {"kernel": kernel, "bias": own_bias}}, Normed(raw, shift, gain, bias))
    np.testing.assert_allclose(actual, correlation(padded, kernel, own_bias, 2), rtol=1e-10, atol=1e-10)


def test_rounding_the_kernel_does_not_move_the_mean():
    """What rounding does to a kernel is multiplied by what moves about the shift alone, not by the shift."""
    shift, kernel = np.full(64, 30.0, np.float32), RNG.normal(size=(64, 8)).astype(np.float32)
    raw = 30 + RNG.normal(size=(50, 64))
    norm = Normed(raw.astype(np.float32), shift, np.ones(64, np.float32), np.zeros(64, np.float32))
    kernel, bias = with_norm(norm, kernel, np.zeros(8, np.float32), jnp.bfloat16)
    rounded = np.asarray(kernel.astype(jnp.bfloat16), np.float64)
    np.testing.assert_allclose(raw @ rounded + np.asarray(bias), (raw - 30) @ rounded, atol=1e-3)


def test_split_and_joined_are_inverse():
    x = Normed(*(RNG.normal(size=shape).astype(np.float32) for shape in ((2, 5, 8), 8, 8, 8)))
    for actual, expected in zip(jax.tree.leaves(Normed.joined(x.split(4))), jax.tree.leaves(x), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("shape", [(40, 3), (8, 50, 3), (4, 5, 20, 3)])
def test_moments_of_one_pass(shape):
    x = RNG.normal(5.0, 2.0, size=shape)
    mean, variance = moments(x.astype(np.float32), np.full(3, 4.5, np.float32))
    flat = x.reshape(-1, 3)
    np.testing.assert_allclose(mean, flat.mean(0) - 4.5, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(variance, flat.var(0), rtol=1e-5)


def test_moments_of_what_hardly_moves_lose_digits_only_far_from_the_shift():
    x = 1000 + RNG.normal(size=(4000, 2))
    near, far = (moments(x.astype(np.float32), np.full(2, s, np.float32))[1] for s in (999.0, 0.0))
    np.testing.assert_allclose(near, x.var(0), rtol=1e-3)
    assert np.all(np.asarray(far) >= 0)
    constant = moments(np.full((6, 7, 2), 3.3, np.float32), np.zeros(2, np.float32))[1]
    assert np.all(np.asarray(constant) <= 2e-5)


def attended_formula(x, logits):
    weights = scipy.special.softmax(logits, axis=1)
    mean = (weights * x).sum(1, keepdims=True)
    return np.stack([mean, (weights * np.square(x - mean)).sum(1, keepdims=True)])


def test_attended():
    x, logits = RNG.normal(3.0, 1.0, size=(2, 9, 4)), 3 * RNG.normal(size=(2, 9, 4))
    shift = 2.5 + RNG.normal(size=(2, 1, 4))

    def function(x, logits):
        off, variance = attended(x, logits, jnp.asarray(shift))
        return jnp.stack([shift + off, variance])

    assert_gradients(function, attended_formula, [x, logits])


def test_padding_has_no_weight():
    x, logits = RNG.normal(size=(2, 9, 4)), RNG.normal(size=(2, 9, 4))
    with jax.enable_x64(True):
        masked = frames.without_padding(jnp.asarray(logits), jnp.array([9, 5]))
        mean, variance = attended(jnp.asarray(x), masked, jnp.zeros((2, 1, 4)))
    expected = attended_formula(x[1:, :5], logits[1:, :5])
    np.testing.assert_allclose(mean[1:], expected[0], rtol=1e-12)
    np.testing.assert_allclose(variance[1:], expected[1], rtol=1e-12)


def test_the_gradients_of_a_bfloat16_step_sum_in_float32():
    """4,096 gradients of 1 + 1/128 sum to 4,128, which bfloat16 would round to 4,128 +- 16."""
    x = jnp.ones((4096, 1), jnp.bfloat16)
    kernel, bias = jnp.ones((1, 1)), jnp.zeros(1)

    def loss(kernel, bias):
        return (products.product(x, kernel, bias).astype(jnp.float32) * np.float32(1 + 1 / 128)).sum()

    of_kernel, of_bias = jax.grad(loss, argnums=(0, 1))(kernel, bias)
    assert float(of_kernel[0, 0]) == float(of_bias[0]) == 4128.0


def test_running_statistics_begin_from_any_batch():
    """The first batch, whose shift is 0, is normed as all others are."""
    x = RNG.normal(2.0, 3.0, size=(6, 40, 3)).astype(np.float32)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, True)
    y, updated = norm.apply(variables, x, True, mutable=["batch_stats"])
    expected = (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * x.mean((0, 1)), rtol=1e-5)
