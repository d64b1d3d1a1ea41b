"""Residual networks over time and frequency (r-vectors; He et al., arXiv 1512.03385; Zeinali et al., 1910.12592)."""

from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdpn_jax.models import frames
from sdpn_jax.models.frames import Lengths
from sdpn_jax.models.layers import BatchNorm, Conv, fan_in_uniform, wide

EXPANSION = 4  # of a bottleneck's channels
VARIANCE_FLOOR = 1e-7
Stride: TypeAlias = int | tuple[int, int]  # of both axes, or of frequency and of time


class Conv2D(nn.Module):
    """Convolution over frequency and time, zeros around it: also behind each sequence's true end."""

    features: int
    kernel_size: int = 3
    stride: Stride = 1
    dtype: DTypeLike = jnp.float32
    bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B F T C"], lengths: Lengths = None) -> Float[Array, "B F2 T2 {self.features}"]:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", fan_in_uniform(int(np.prod(shape[:-1]))), shape)
        pad = self.kernel_size // 2
        if self.kernel_size > 1 and lengths is not None:
            x = x * frames.mask(x[:, 0], lengths)[:, None]
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            pair(self.stride),
            ((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if not self.bias:
            return y
        bias = self.param("bias", fan_in_uniform(int(np.prod(shape[:-1]))), (self.features,))
        return y + bias.astype(self.dtype)


class ResidualBlock(nn.Module):
    """Two convolutions 3x3, or between two of 1x1, plus the input, which is all of it before training.

    Thirty random layers in a row would tell hardly anything of the voice apart: SDPN, which learns from what its
    network hears already, then moves all utterances together.
    """

    width: int
    stride: Stride
    bottleneck: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B F T C"], train: bool, lengths: Lengths = None) -> Float[Array, "B F2 T2 D"]:
        out = self.width * (EXPANSION if self.bottleneck else 1)
        shapes: list[tuple[int, int, Stride]] = [(self.width, 3, self.stride), (out, 3, 1)]
        if self.bottleneck:
            shapes = [(self.width, 1, 1), (self.width, 3, self.stride), (out, 1, 1)]
        y, seen = x, lengths
        for i, (features, size, stride) in enumerate(shapes, 1):
            y = Conv2D(features, size, stride, self.dtype, name=f"conv{i}")(y, seen)
            seen = strided(seen, pair(stride)[1])
            last = i == len(shapes)
            y = BatchNorm(initial_scale=0.0 if last else 1.0, name=f"bn{i}")(y, train)
            y = y if last else nn.relu(y)
        if pair(self.stride) != (1, 1) or x.shape[-1] != out:
            x = Conv2D(out, 1, self.stride, self.dtype, name="shortcut_0")(x)
            x = BatchNorm(name="shortcut_1")(x, train)
        return rectified(x + y)


@jax.jit
def rectified(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Returns max(x, 0), as a choice between two arrays.

    On CPUs XLA computes a maximum with a constant again wherever it is read, and with it the sum inside, which reads
    the block before: a stage of 64 blocks would add up all blocks before each, and take four times as long. ONNX
    knows this function by its name.
    """
    return jnp.where(x <= 0, 0, x)


def pair(stride: Stride) -> tuple[int, int]:
    """Returns the strides of frequency and of time."""
    return stride if isinstance(stride, tuple) else (stride, stride)


def strided(lengths: Lengths, stride: int) -> Lengths:
    """Returns the frames left of sequences by a convolution that keeps every `stride`-th."""
    return lengths if lengths is None else -(-lengths // stride)


class ResNet(nn.Module):
    """Features of whole sequences -> embedding, float32 or wider, no norm after it.

    `lengths` in frames (None: all of T) makes the result for a padded sequence that of the sequence alone. `blocks`: of
    each of four stages, of width, 2, 4 and 8 times it; all but the first halve time and frequency. 3-4-6-3 is ResNet34
    or, of bottlenecks, ResNet50; 10-20-64-3 of bottlenecks is ResNet293. `remat` computes the inside of the blocks
    again in the backward pass.
    """

    blocks: Sequence[int] = (3, 4, 6, 3)
    bottleneck: bool = False
    width: int = 32
    embedding_size: int = 256
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, features: Float[Array, "B T F"], train: bool, lengths: Lengths = None
    ) -> Float[Array, "B {self.embedding_size}"]:
        frames.check_mode(train, lengths)
        x = stem(features, self.width, self.dtype, train, lengths)
        block = nn.remat(ResidualBlock, static_argnums=(2,)) if self.remat else ResidualBlock
        for stage, count in enumerate(self.blocks):
            for i in range(count):
                stride = 2 if stage and not i else 1
                name = f"layer{stage + 1}_{i}"
                x = block(self.width << stage, stride, self.bottleneck, self.dtype, name=name)(x, train, lengths)
                lengths = strided(lengths, stride)
        return embedding_of_maps(x, self.embedding_size, self.dtype, lengths, VARIANCE_FLOOR)


def stem(
    features: Float[Array, "B T F"], width: int, dtype: DTypeLike, train: bool, lengths: Lengths
) -> Float[Array, "B F T {width}"]:
    """Makes maps over frequency and time: the layers conv1 and bn1 of the module that calls it."""
    x = features.swapaxes(1, 2)[..., None].astype(dtype)
    x = Conv2D(width, dtype=dtype, name="conv1")(x, lengths)
    return nn.relu(BatchNorm(name="bn1")(x, train))


def embedding_of_maps(
    x: Float[Array, "B F T C"], size: int, dtype: DTypeLike, lengths: Lengths, floor: float
) -> Float[Array, "B {size}"]:
    """Embeds maps by their mean and deviation over time (of the unbiased variance + floor): the layer seg_1."""
    x = frames.mean_and_deviation(flattened(x.astype(wide(dtype))), lengths, floor).astype(dtype)
    return Conv(size, dtype=dtype, name="seg_1")(x[:, None])[:, 0].astype(wide(dtype))


def flattened(x: Float[Array, "B F T C"]) -> Float[Array, "B T C*F"]:
    """Lays the frequencies of each channel side by side."""
    return x.transpose(0, 2, 3, 1).reshape(x.shape[0], x.shape[2], -1)
