"""ECAPA-TDNN (Desplanques et al., arXiv 2005.07143), the encoder of SDPN: features in, embedding out."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdpn_jax.models import frames
from sdpn_jax.models.frames import Frames, Lengths
from sdpn_jax.models.layers import BatchNorm, Conv, Pad, fan_in_uniform, wide

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
    def __call__(self, x: Frames, train: bool, lengths: Lengths = None) -> Float[Array, "B T {self.features}"]:
        x = Conv(self.features, self.kernel_size, self.dilation, self.dtype, self.pad, name="conv")(x, lengths)
        return BatchNorm(name="norm")(nn.relu(x), train)


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
    def __call__(self, x: Frames, train: bool, lengths: Lengths = None) -> Frames:
        groups = jnp.split(x, self.scale, axis=-1)
        passed = groups.pop(-1 if self.passes_last else 0)
        outputs = []
        for i, group in enumerate(groups):
            block = TDNN(group.shape[-1], self.kernel_size, self.dilation, self.dtype, self.pad, name=f"block_{i}")
            outputs.append(block(group + outputs[-1] if outputs else group, train, lengths))
        return jnp.concatenate([*outputs, passed] if self.passes_last else [passed, *outputs], axis=-1)


class SqueezeExcitation(nn.Module):
    """Scales channels by a gate computed from their means over time."""

    bottleneck: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Frames, lengths: Lengths = None) -> Frames:
        gate = frames.mean(x.astype(wide(x.dtype)), lengths)
        gate = nn.relu(Conv(self.bottleneck, dtype=self.dtype, name="squeeze")(gate))
        gate = nn.sigmoid(Conv(x.shape[-1], dtype=self.dtype, name="excite")(gate))
        return x * gate


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
    def __call__(self, x: Frames, train: bool, lengths: Lengths = None) -> Float[Array, "B T {self.features}"]:
        residual = x
        if x.shape[-1] != self.features:
            residual = Conv(self.features, dtype=self.dtype, name="shortcut")(x)
        x = TDNN(self.features, dtype=self.dtype, name="tdnn1")(x, train)
        x = Res2Net(
            self.kernel_size, self.dilation, self.scale, self.dtype, self.pad, self.passes_last, name="res2net"
        )(x, train, lengths)
        x = TDNN(self.features, dtype=self.dtype, name="tdnn2")(x, train)
        return residual + SqueezeExcitation(self.se_bottleneck, self.dtype, name="se")(x, lengths)


class ContextConv(nn.Module):
    """A 1x1 convolution of the array [x, context], without building it."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Frames, context: Float[Array, "B 1 2*C"]) -> Float[Array, "B T {self.features}"]:
        channels = x.shape[-1] + context.shape[-1]
        init = fan_in_uniform(channels)
        kernel = self.param("kernel", init, (1, channels, self.features)).astype(self.dtype)[0]
        bias = self.param("bias", init, (self.features,)).astype(self.dtype)
        of_frames, of_context = kernel[: x.shape[-1]], kernel[x.shape[-1] :]
        return x.astype(self.dtype) @ of_frames + (context.astype(self.dtype) @ of_context + bias)


def attention_weights(logits: Frames, lengths: Lengths = None) -> Frames:
    """Computes weights in proportion to the softmax over time, 0 in the padding."""
    if lengths is not None:
        logits = jnp.where(frames.mask(logits, lengths) > 0, logits, -jnp.inf)
    # The softmax's sum divides the sums over time, not the weights of every frame: fewer passes over them.
    return jnp.exp(logits - jax.lax.stop_gradient(logits.max(1, keepdims=True)))


class AttentiveStatisticsPooling(nn.Module):
    """Attention-weighted mean and standard deviation over time, in float32 or wider.

    The attention sees each frame beside the utterance's mean and standard deviation (global context).
    """

    attention: int
    dtype: DTypeLike = jnp.float32
    variance_floor: float = 1e-12

    @nn.compact
    def __call__(self, x: Frames, train: bool, lengths: Lengths = None) -> Float[Array, "B 2*C"]:
        channels = x.shape[-1]
        xw = x.astype(wide(x.dtype))
        context = jnp.concatenate(self._statistics(xw, lengths), axis=-1)
        hidden = ContextConv(self.attention, self.dtype, name="tdnn_conv")(x, context)
        hidden = BatchNorm(name="tdnn_norm")(nn.relu(hidden), train)
        logits = Conv(channels, dtype=self.dtype, name="conv")(nn.tanh(hidden)).astype(xw.dtype)
        weights = attention_weights(logits, lengths)
        return jnp.concatenate(self._statistics(xw, lengths, weights), axis=-1)[:, 0]

    def _statistics(
        self, x: Frames, lengths: Lengths, weights: Frames | None = None
    ) -> tuple[Float[Array, "B 1 C"], Float[Array, "B 1 C"]]:
        centre, variance = frames.mean_and_variance(x, lengths, weights)
        return centre, jnp.sqrt(jnp.maximum(variance, self.variance_floor))


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
        x = TDNN(self.channels[0], KERNEL_SIZES[0], DILATIONS[0], self.dtype, name="tdnn")(x, train, lengths)
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
            outputs.append(x)
        x = jnp.concatenate(outputs, axis=-1)
        x = TDNN(self.channels[-1], KERNEL_SIZES[-1], DILATIONS[-1], self.dtype, name="mfa")(x, train, lengths)
        x = AttentiveStatisticsPooling(self.attention, self.dtype, name="pooling")(x, train, lengths)
        x = BatchNorm(name="pooling_norm")(x, train)
        x = Conv(self.embedding_size, dtype=self.dtype, name="embedding")(x[:, None])[:, 0]
        return x.astype(wide(self.dtype))
