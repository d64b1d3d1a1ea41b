"""Building blocks shared by encoders and head: convolution over time, norms."""

from collections.abc import Callable, Sequence
from typing import Self, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdpn_jax.models import frames
from sdpn_jax.models.products import convolution, product

Activations: TypeAlias = Float[Array, "*n C"]
OfChannels: TypeAlias = Float[Array, " C"]
DECAY, EPSILON = 0.9, 1e-5  # of batch norm, PyTorch's defaults
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


class Normed(flax.struct.PyTreeNode):
    """Activations whose batch norm is still to be applied: they stand for (raw - shift) * gain + bias by channel.

    What reads them applies it: a convolution to its kernel, a mean to its result. So raw is all that is written to
    memory and kept for the backward pass. `shift` is the running mean, near which sums lose no digits; no gradient
    flows to it.
    """

    raw: Activations
    shift: OfChannels
    gain: OfChannels
    bias: OfChannels

    def exact(self) -> Activations:
        """Applies the norm, in float32 or wider."""
        return self.norm(self.raw.astype(wide(self.raw.dtype)) - self.shift)

    def apart(self) -> Self:
        """Puts a barrier before a reader, whose gradient is then not added to that of the others.

        Theirs is computed where it is used, rather than written to be added.
        """
        return self.replace(raw=jax.lax.optimization_barrier(self.raw))

    def value(self) -> Activations:
        """Applies the norm, in x's type."""
        return self.exact().astype(self.raw.dtype)

    def norm(self, centred: Activations) -> Activations:
        """Applies the norm to what is of raw - shift, such as its mean over time."""
        return centred * self.gain + self.bias

    def split(self, count: int) -> list[Self]:
        """Splits the channels into `count` groups."""
        parts = zip(
            *(jnp.split(part, count, axis=-1) for part in (self.raw, self.shift, self.gain, self.bias)), strict=True
        )
        return [type(self)(*part) for part in parts]

    @classmethod
    def joined(cls, groups: Sequence[Self]) -> Self:
        """Lays the channels of groups side by side."""
        return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=-1), *groups)


def with_norm(
    norm: Normed, kernel: Float[Array, "*taps K F"], bias: OfChannels, dtype: DTypeLike
) -> tuple[Float[Array, "*taps K F"], OfChannels]:
    """Applies a norm to kernel and bias of what reads it: raw @ kernel + bias is then what it was of normed frames.

    The kernel will be rounded once, to dtype; what rounding does to shift @ kernel is made up for.
    """
    taps = tuple(range(kernel.ndim - 2))
    bias = bias + norm.bias @ kernel.sum(taps)
    kernel = norm.gain[:, None] * kernel
    rounding = jax.lax.stop_gradient(kernel.astype(dtype).astype(kernel.dtype) - kernel) if dtype != kernel.dtype else 0
    return kernel, bias - norm.shift @ (kernel + rounding).sum(taps)


@jax.custom_vjp
def rectify(x: Activations) -> Activations:
    """Computes max(x, 0), of which the backward pass needs the result alone."""
    return jnp.maximum(x, 0)


rectify.defvjp(lambda x: (y := rectify(x), y), lambda y, gradient: (jnp.where(y != 0, gradient, 0),))


class Conv(nn.Module):
    """Convolution over time; `pad`, a function of frames.py, puts frames around each sequence, up to its true end.

    The norm of Normed frames is applied to the kernel, which comes to the same: reflected frames are normed as any
    others. Where zeros stand around the frames it is applied to the frames. Without `bias_gradient` the bias stays.
    """

    features: int
    kernel_size: int = 1
    dilation: int = 1
    dtype: DTypeLike = jnp.float32
    pad: Pad = frames.reflect_pad
    bias_gradient: bool = True

    @nn.compact
    def __call__(
        self, x: frames.Frames | Normed, lengths: frames.Lengths = None
    ) -> Float[Array, "B T {self.features}"]:
        taps = self.kernel_size
        if isinstance(x, Normed) and taps > 1 and self.pad is frames.zero_pad:
            x = x.value()
        raw = x.raw if isinstance(x, Normed) else x
        init = fan_in_uniform(raw.shape[-1] * taps)
        kernel = self.param("kernel", init, (taps, raw.shape[-1], self.features))
        bias = self.param("bias", init, (self.features,))
        bias = bias if self.bias_gradient else jax.lax.stop_gradient(bias)
        if isinstance(x, Normed):
            kernel, bias = with_norm(x, kernel, bias, self.dtype)
        raw = raw.astype(self.dtype)
        if taps == 1:
            return product(raw, kernel[0], bias)
        return convolution(self.pad(raw, self.dilation * (taps - 1) // 2, lengths), kernel, bias, self.dilation)


class BatchNorm(nn.Module):
    """Batch norm over all axes but the last, as PyTorch does it, statistics in float32 over the global batch.

    The batch is normalised by its biased variance while the running average keeps the unbiased one. Running average
    r <- decay * r + (1 - decay) * batch. Not `affine`: without learnt scale and bias. The scale begins with
    `initial_scale`, a number or one for each channel: 0 where the norm ends the branch of a residual block, which then
    begins as the identity (Goyal et al., arXiv 1706.02677, section 5.1).
    """

    decay: float = DECAY
    epsilon: float = EPSILON
    affine: bool = True
    initial_scale: float | Sequence[float] = 1.0

    def __call__(self, x: Activations, train: bool) -> Activations:
        return self.pending(x, train).value()

    @nn.compact
    def pending(self, x: Activations, train: bool) -> Normed:
        """Computes the norm of x, and leaves it to be applied by what reads it."""
        features = x.shape[-1]
        scale = (
            self.param("scale", nn.initializers.constant(np.asarray(self.initial_scale)), (features,))
            if self.affine
            else jnp.ones(features)
        )
        bias = self.param("bias", nn.initializers.zeros, (features,)) if self.affine else jnp.zeros(features)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,))
        shift = jax.lax.stop_gradient(running_mean.value)
        if not train:
            return normed(x, shift, scale, bias, jnp.zeros(features), running_var.value, self.epsilon)
        off, var = moments(x, shift)
        if not self.is_initializing():
            running_mean.value, running_var.value = moved(
                shift, running_var.value, off, var, x.size // features, self.decay
            )
        return normed(x, shift, scale, bias, off, var, self.epsilon)


def normed(
    x: Activations,
    shift: OfChannels,
    scale: OfChannels,
    bias: OfChannels,
    off: OfChannels,
    var: OfChannels,
    epsilon: float = EPSILON,
) -> Normed:
    """Norms x by its mean, which is `off` from shift, and its variance."""
    gain = scale * jax.lax.rsqrt(var + epsilon)
    return Normed(x, shift, gain, bias - off * gain)


def moved(
    mean: OfChannels, var: OfChannels, off: OfChannels, batch_var: OfChannels, count: int, decay: float = DECAY
) -> tuple[OfChannels, OfChannels]:
    """Moves running mean and variance towards those of `count` values: `off` from the mean, and the biased variance."""
    unbiased = batch_var * (count / max(count - 1, 1))
    return mean + (1 - decay) * off, decay * var + (1 - decay) * unbiased


def moments(x: Activations, shift: OfChannels) -> tuple[OfChannels, OfChannels]:
    """Computes the means of x - shift over all axes but the last and the biased variances, in float32 or wider.

    Both come of one pass over x, whose sums devices exchange together. What is lost to rounding is as large as the
    square of mean - shift, in units of the type's last digit: shift should be near the mean, next to the deviation.
    """
    centred, axes = x.astype(wide(x.dtype)) - shift, tuple(range(1, x.ndim - 1))
    # First over each sequence: there the means are wanted by other layers too.
    mean, square = centred.mean(axes).mean(0), jnp.square(centred).mean(axes).mean(0)
    return mean, frames.variance_of(mean, square)
