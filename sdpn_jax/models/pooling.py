"""Attentive statistics pooling (Okabe et al., arXiv 1803.10963) as ECAPA-TDNN has it: frames in, one vector out."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdpn_jax.models import frames
from sdpn_jax.models.frames import Frames, Lengths
from sdpn_jax.models.layers import BatchNorm, Conv, Normed, fan_in_uniform, rectify, wide, with_norm
from sdpn_jax.models.products import product

VARIANCE_FLOOR = 1e-12


class ContextConv(nn.Module):
    """A 1x1 convolution of the array [x, context], without building it."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Frames | Normed, context: Float[Array, "B 1 2*C"]) -> Float[Array, "B T {self.features}"]:
        raw = x.raw if isinstance(x, Normed) else x.astype(self.dtype)
        channels = raw.shape[-1] + context.shape[-1]
        init = fan_in_uniform(channels)
        kernel = self.param("kernel", init, (1, channels, self.features))[0]
        bias = self.param("bias", init, (self.features,))
        of_frames, constant = with_context(x, context, kernel, bias, self.dtype)
        return product(raw, of_frames, jnp.zeros(self.features)) + constant


def with_context(
    x: Frames | Normed, context: Float[Array, "B 1 2*C"], kernel: Float[Array, "3*C F"], bias: Array, dtype: DTypeLike
) -> tuple[Float[Array, "C F"], Float[Array, "B 1 F"]]:
    """Splits a kernel for [x, context] in that of x, with its norm applied, and what the context adds to all frames."""
    channels = kernel.shape[0] - context.shape[-1]
    of_frames, of_context = kernel[:channels], kernel[channels:]
    if isinstance(x, Normed):
        of_frames, bias = with_norm(x, of_frames, bias, dtype)
    return of_frames, product(context.astype(dtype), of_context, bias)


@jax.custom_vjp
def attended(
    x: Frames, logits: Frames, shift: Float[Array, "#B 1 C"]
) -> tuple[Float[Array, "B 1 C"], Float[Array, "B 1 C"]]:
    """Computes mean - shift and biased variance over time of frames weighted by the softmax of logits over time.

    In float32 or wider, in two passes; the shift, which has no gradient, should be near the mean. The gradients of x
    and logits are written out, w (m + 2 (x - mean) v) and w (m (x - mean) + v ((x - mean)^2 - variance)) for weights w
    and the gradients m and v of mean and variance: nothing of the size of x is kept beside x and logits.
    """
    return _attended(x, logits, shift)[0]


def _attended(x, logits, shift):
    exact = logits.astype(wide(x.dtype))
    top = exact.max(1, keepdims=True)
    weights, centred = jnp.exp(exact - top), x.astype(exact.dtype) - shift
    # The softmax's sum divides the sums over time, not the weights of every frame.
    total, mean, square = jax.lax.optimization_barrier(
        tuple(sums.sum(1, keepdims=True) for sums in (weights, weights * centred, weights * jnp.square(centred)))
    )
    mean = mean / total
    variance = frames.variance_of(mean, square / total)
    return (mean, variance), (x, logits, shift, top, total, mean, variance)


def _attended_gradient(saved, gradients):
    x, logits, shift, top, total, mean, variance = saved
    of_mean, of_variance = gradients
    weights = jnp.exp(logits.astype(top.dtype) - top) / total
    centred = x.astype(top.dtype) - shift - mean
    of_x = weights * (of_mean + 2 * centred * of_variance)
    of_logits = weights * (of_mean * centred + of_variance * (jnp.square(centred) - variance))
    return of_x.astype(x.dtype), of_logits.astype(logits.dtype), jnp.zeros_like(shift)


attended.defvjp(_attended, _attended_gradient)


class AttentiveStatisticsPooling(nn.Module):
    """Attention-weighted mean and standard deviation over time, in float32 or wider.

    The attention sees each frame beside the utterance's mean and standard deviation (global context).
    """

    attention: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Normed, train: bool, lengths: Lengths = None) -> Float[Array, "B 2*C"]:
        mean, variance = frames.moments(x.raw.astype(wide(x.raw.dtype)) - x.shift, lengths)
        context = statistics(x, mean, variance)
        hidden = ContextConv(self.attention, self.dtype, name="tdnn_conv")(x.apart(), context)
        hidden = BatchNorm(name="tdnn_norm")(rectify(hidden), train)
        # A number added to all logits changes nothing: their bias has no gradient.
        logits = Conv(x.raw.shape[-1], dtype=self.dtype, bias_gradient=False, name="conv")(nn.tanh(hidden))
        logits = frames.without_padding(logits, lengths)
        shift = jax.lax.stop_gradient(mean)
        off, variance = attended(x.raw, logits, x.shift + shift)
        return statistics(x, shift + off, variance)[:, 0]


def statistics(x: Normed, mean: Float[Array, "B 1 C"], variance: Float[Array, "B 1 C"]) -> Float[Array, "B 1 2*C"]:
    """Returns mean and deviation of normed frames, from the mean of x - shift and the variance of x."""
    variance = jnp.maximum(jnp.square(x.gain) * variance, VARIANCE_FLOOR)
    return jnp.concatenate([x.norm(mean), jnp.sqrt(variance)], axis=-1)
