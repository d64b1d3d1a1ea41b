"""Building blocks shared by encoders and head: convolution over time, norms."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdpn_jax.models import frames

Activations: TypeAlias = Float[Array, "*n C"]
OfChannels: TypeAlias = Float[Array, " C"]
Pad: TypeAlias = Callable[[frames.Frames, int, frames.Lengths], frames.Frames]


def wide(dtype: DTypeLike) -> jnp.dtype:
    """Returns the type for statistics and losses: at least float32, whatever the compute type."""
    return jnp.promote_types(dtype, jnp.float32)


def fan_in_uniform(fan_in: int) -> Callable[..., Array]:
    """Initialises uniformly in +-1/sqrt(fan_in), PyTorch's default for convolutions and linear layers."""
    bound = 1.0 / np.sqrt(fan_in)
    return lambda key, shape, dtype=float: jax.random.uniform(key, shape, dtype, -bound, bound)


def instance_norm(
    log_mel: Float[Array, "B T F"], lengths: frames.Lengths = None, epsilon: float = 1e-5
) -> Float[Array, "B T F"]:
    """Normalises each utterance and mel bin to zero mean and unit (biased) variance over time, without gradient.

    lengths are in frames; the result is float32 or wider.
    """
    x = log_mel.astype(wide(log_mel.dtype))
    centre, variance = frames.mean_and_variance(x, lengths)
    return jax.lax.stop_gradient((x - centre) * jax.lax.rsqrt(variance + epsilon))


class Conv(nn.Module):
    """Convolution over time; `pad`, a function of frames.py, puts frames around each sequence, up to its true end.

    The taps are laid side by side, so that the convolution is one product [B T, taps C] x [taps C, features]; on CPUs
    it is faster than XLA's dilated convolution and than a sum over taps.
    """

    features: int
    kernel_size: int = 1
    dilation: int = 1
    dtype: DTypeLike = jnp.float32
    pad: Pad = frames.reflect_pad

    @nn.compact
    def __call__(self, x: frames.Frames, lengths: frames.Lengths = None) -> Float[Array, "B T {self.features}"]:
        channels, taps = x.shape[-1], self.kernel_size
        init = fan_in_uniform(channels * taps)
        kernel = self.param("kernel", init, (taps, channels, self.features))
        bias = self.param("bias", init, (self.features,))
        num_frames = x.shape[1]
        x = self.pad(x.astype(self.dtype), self.dilation * (taps - 1) // 2, lengths)
        starts = range(0, taps * self.dilation, self.dilation)
        x = jnp.concatenate([x[:, start : start + num_frames] for start in starts], axis=-1)
        return x @ kernel.reshape(-1, self.features).astype(self.dtype) + bias.astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch norm over all axes but the last, as PyTorch does it, statistics in float32 over the global batch.

    The batch is normalised by its biased variance while the running average keeps the unbiased one. Running average
    r <- decay * r + (1 - decay) * batch. Not `affine`: without learnt scale and bias. The scale begins with
    `initial_scale`, a number or one for each channel: 0 where the norm ends the branch of a residual block, which then
    begins as the identity (Goyal et al., arXiv 1706.02677, section 5.1).
    """

    decay: float = 0.9
    epsilon: float = 1e-5
    affine: bool = True
    initial_scale: float | Sequence[float] = 1.0

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        features = x.shape[-1]
        scale = (
            self.param("scale", nn.initializers.constant(np.asarray(self.initial_scale)), (features,))
            if self.affine
            else jnp.ones(features)
        )
        bias = self.param("bias", nn.initializers.zeros, (features,)) if self.affine else jnp.zeros(features)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,))
        if not train:
            gain = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
            return ((x.astype(wide(x.dtype)) - running_mean.value) * gain + bias).astype(x.dtype)
        normalised: Any = normalise_batch(x, scale, bias, self.epsilon)
        y, mean, var = normalised
        if not self.is_initializing():
            count = x.size // features
            unbiased = var * (count / max(count - 1, 1))
            running_mean.value = self.decay * running_mean.value + (1 - self.decay) * mean
            running_var.value = self.decay * running_var.value + (1 - self.decay) * unbiased
        return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalise_batch(
    x: Activations, scale: OfChannels, bias: OfChannels, epsilon: float
) -> tuple[Activations, OfChannels, OfChannels]:
    """Computes (x - mean) / sqrt(var + epsilon) * scale + bias over all axes but the last, in float32; also mean, var.

    Its gradient is written out (Ioffe and Szegedy, arXiv 1502.03167, section 3), which takes one pass over x and the
    gradient for its two sums and another for the result, half of the time that automatic differentiation takes. No
    gradient flows from mean and var, which only the running averages use.
    """
    return _normalise_batch(x, scale, bias, epsilon)[0]


def _normalise_batch(
    x: Activations, scale: OfChannels, bias: OfChannels, epsilon: float
) -> tuple[tuple[Activations, OfChannels, OfChannels], tuple[Activations, OfChannels, OfChannels, OfChannels]]:
    axes = tuple(range(x.ndim - 1))
    xw = x.astype(wide(x.dtype))
    mean = xw.mean(axes)
    var = jnp.square(xw - mean).mean(axes)
    inverse = jax.lax.rsqrt(var + epsilon)
    y = ((xw - mean) * (inverse * scale) + bias).astype(x.dtype)
    return (y, mean, var), (x, scale, mean, inverse)


def _normalise_batch_gradient(
    epsilon: float,
    saved: tuple[Activations, OfChannels, OfChannels, OfChannels],
    gradients: tuple[Activations, OfChannels, OfChannels],
) -> tuple[Activations, OfChannels, OfChannels]:
    x, scale, mean, inverse = saved
    axes = tuple(range(x.ndim - 1))
    gradient = gradients[0].astype(wide(x.dtype))
    normalised = (x.astype(wide(x.dtype)) - mean) * inverse
    of_bias, of_scale = gradient.sum(axes), (gradient * normalised).sum(axes)
    count = x.size // x.shape[-1]
    of_x = (inverse * scale) * (gradient - of_bias / count - normalised * (of_scale / count))
    return of_x.astype(x.dtype), of_scale, of_bias


normalise_batch.defvjp(_normalise_batch, _normalise_batch_gradient)
