"""ECAPA-TDNN (Desplanques et al., arXiv 2005.07143), the encoder of SDPN: features in, embedding out."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdpn_jax.models import frames
from sdpn_jax.models.frames import Frames, Lengths
from sdpn_jax.models.layers import BatchNorm, Conv, Normed, Pad, fan_in_uniform, rectify, wide, with_norm
from sdpn_jax.models.products import product

KERNEL_SIZES, DILATIONS, SCALE = (5, 3, 3, 3, 1), (1, 2, 3, 4, 1), 8  # of the frame layers; groups of a Res2Net
LONGEST_REFLECTION = 4  # frames mirrored by the widest convolution: a sequence must be longer than this


class TDNN(nn.Module):
    """Convolution -> ReLU -> batch norm."""

    features: int
    kernel_size: int = 1
    dilation: int = 1
    dtype: DTypeLike = jnp.float32
    pad: Pad = frames.reflect_pad

    @nn.compact
    def __call__(self, x: Frames | Normed, train: bool, lengths: Lengths = None) -> Normed:
        x = Conv(self.features, self.kernel_size, self.dilation, self.dtype, self.pad, name="conv")(x, lengths)
        return BatchNorm(name="norm").pending(rectify(x), train)


class Res2Net(nn.Module):
    """Channels in `scale` groups; all but one are convolved after adding the output of the one convolved before.

    The first group passes as it is, as in Gao et al. (arXiv 1904.01169, section 3), or the last with `passes_last`.
    """

    kernel_size: int
    dilation: int
    scale: int = 8
    dtype: DTypeLike = jnp.float32
    pad: Pad = frames.reflect_pad
    passes_last: bool = False

    @nn.compact
    def __call__(self, x: Normed, train: bool, lengths: Lengths = None) -> Normed:
        groups = x.split(self.scale)
        passed = groups.pop(-1 if self.passes_last else 0)
        outputs = []
        for i, group in enumerate(groups):
            block = TDNN(group.raw.shape[-1], self.kernel_size, self.dilation, self.dtype, self.pad, name=f"block_{i}")
            both = (group.exact() + outputs[-1].exact()).astype(self.dtype) if outputs else group
            outputs.append(block(both, train, lengths))
        return Normed.joined([*outputs, passed] if self.passes_last else [passed, *outputs])


class SqueezeExcitation(nn.Module):
    """Scales channels by a gate computed from their means over time: the gain and bias of the norm become B 1 C."""

    bottleneck: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Normed, lengths: Lengths = None) -> Normed:
        gate = x.norm(frames.mean(x.raw.astype(wide(x.raw.dtype)) - x.shift, lengths))
        gate = nn.relu(Conv(self.bottleneck, dtype=self.dtype, name="squeeze")(gate))
        gate = nn.sigmoid(Conv(x.raw.shape[-1], dtype=self.dtype, name="excite")(gate))
        return x.replace(gain=x.gain * gate, bias=x.bias * gate)


class SERes2Block(nn.Module):
    """TDNN -> Res2Net -> TDNN -> squeeze-excitation, plus the input."""

    features: int
    kernel_size: int
    dilation: int
    scale: int
    se_bottleneck: int
    dtype: DTypeLike = jnp.float32
    pad: Pad = frames.reflect_pad
    passes_last: bool = False

    @nn.compact
    def __call__(self, x: Frames | Normed, train: bool, lengths: Lengths = None) -> Float[Array, "B T {self.features}"]:
        residual = x.exact() if isinstance(x, Normed) else x
        if residual.shape[-1] != self.features:
            residual = Conv(self.features, dtype=self.dtype, name="shortcut")(x)
        x = TDNN(self.features, dtype=self.dtype, name="tdnn1")(x, train)
        x = Res2Net(
            self.kernel_size, self.dilation, self.scale, self.dtype, self.pad, self.passes_last, name="res2net"
        )(x, train, lengths)
        x = TDNN(self.features, dtype=self.dtype, name="tdnn2")(x, train)
        scaled = SqueezeExcitation(self.se_bottleneck, self.dtype, name="se")(x, lengths)
        return (residual + scaled.exact()).astype(self.dtype)


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
        of_frames, of_context = kernel[: raw.shape[-1]], kernel[raw.shape[-1] :]
        if isinstance(x, Normed):
            of_frames, bias = with_norm(x, of_frames, bias, self.dtype)
        constant = product(context.astype(self.dtype), of_context, bias)
        return product(raw, of_frames, jnp.zeros(self.features)) + constant


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
    variance = jnp.maximum(square / total - jnp.square(mean), 0)
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
    variance_floor: float = 1e-12

    @nn.compact
    def __call__(self, x: Normed, train: bool, lengths: Lengths = None) -> Float[Array, "B 2*C"]:
        # Behind the barrier the gradient of the attention's product is not added to that of the pooling, which is then
        # computed where it is used rather than written.
        heard = x.replace(raw=jax.lax.optimization_barrier(x.raw))
        mean, variance = frames.moments(x.raw.astype(wide(x.raw.dtype)) - x.shift, lengths)
        hidden = ContextConv(self.attention, self.dtype, name="tdnn_conv")(heard, self._statistics(x, mean, variance))
        hidden = BatchNorm(name="tdnn_norm")(rectify(hidden), train)
        # A number added to all logits changes nothing: their bias has no gradient.
        logits = Conv(x.raw.shape[-1], dtype=self.dtype, bias_gradient=False, name="conv")(nn.tanh(hidden))
        logits = frames.without_padding(logits, lengths)
        shift = jax.lax.stop_gradient(mean)
        off, variance = attended(x.raw, logits, x.shift + shift)
        return self._statistics(x, shift + off, variance)[:, 0]

    def _statistics(
        self, x: Normed, mean: Float[Array, "B 1 C"], variance: Float[Array, "B 1 C"]
    ) -> Float[Array, "B 1 2*C"]:
        """Returns mean and deviation of normed frames, from the mean of x - shift and the variance of x."""
        variance = jnp.maximum(jnp.square(x.gain) * variance, self.variance_floor)
        return jnp.concatenate([x.norm(mean), jnp.sqrt(variance)], axis=-1)


class ECAPA(nn.Module):
    """Features of whole sequences -> embedding, float32 or wider, no norm after it.

    `lengths` in frames (None: all of T) makes the result for a padded sequence that of the sequence alone.
    `remat` computes the inside of the blocks again in the backward pass instead of keeping it.
    Sizes are those of SDPN: channels 1024 x4 then 3072, embedding 512.
    """

    channels: Sequence[int] = (1024, 1024, 1024, 1024, 3072)
    se_bottleneck: int = 128
    attention: int = 128
    embedding_size: int = 512
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, features: Float[Array, "B T F"], train: bool, lengths: Lengths = None
    ) -> Float[Array, "B {self.embedding_size}"]:
        frames.check_mode(train, lengths)
        x = features.astype(self.dtype)
        x: Any = TDNN(self.channels[0], KERNEL_SIZES[0], DILATIONS[0], self.dtype, name="tdnn")(x, train, lengths)
        outputs = []
        se_res2_block = nn.remat(SERes2Block, static_argnums=(2,)) if self.remat else SERes2Block
        for i in range(1, len(self.channels) - 1):
            block = se_res2_block(
                self.channels[i],
                KERNEL_SIZES[i],
                DILATIONS[i],
                SCALE,
                self.se_bottleneck,
                self.dtype,
                name=f"block_{i}",
            )
            x = block(x, train, lengths)
            if i < len(self.channels) - 2:  # written once, rather than computed again for the concatenation
                x = jax.lax.optimization_barrier(x)
            outputs.append(x)
        x = jnp.concatenate(outputs, axis=-1)
        x = TDNN(self.channels[-1], KERNEL_SIZES[-1], DILATIONS[-1], self.dtype, name="mfa")(x, train, lengths)
        x = AttentiveStatisticsPooling(self.attention, self.dtype, name="pooling")(x, train, lengths)
        x = BatchNorm(name="pooling_norm")(x, train)
        x = Conv(self.embedding_size, dtype=self.dtype, name="embedding")(x[:, None])[:, 0]
        return x.astype(wide(self.dtype))
