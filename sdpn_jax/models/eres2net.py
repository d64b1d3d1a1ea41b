"""ERes2NetV2 (Chen et al., arXiv 2406.02167): a residual network whose blocks are of several scales, fused."""

from collections.abc import Sequence
from typing import TypeAlias

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdpn_jax.models import frames
from sdpn_jax.models.frames import Lengths
from sdpn_jax.models.layers import BatchNorm
from sdpn_jax.models.resnet import Conv2D, embedding_of_maps, rectified, stem, strided

Maps: TypeAlias = Float[Array, "B F T C"]

BASE = 64  # planes of which a group has base_width channels
VARIANCE_FLOOR = 1e-8
CEILING = 20.0  # of the blocks' activations
REDUCTION = 4  # of the channels inside the attention of a fusion
FUSED_STAGES = 2, 3  # counted from 0: those whose blocks join their groups by attention, not by a sum


def clipped_relu(x: Maps) -> Maps:
    """Clips to [0, 20]."""
    return rectified(jnp.minimum(x, CEILING))


class AttentionalFusion(nn.Module):
    """Joins maps x and y as x a + y (2 - a), a in (0, 2) computed from both (Dai et al., arXiv 2009.14082)."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Maps, y: Maps, train: bool) -> Maps:
        channels = x.shape[-1]
        a = jnp.concatenate([x, y], axis=-1)
        a = Conv2D(channels // REDUCTION, 1, bias=True, dtype=self.dtype, name="local_att_0")(a)
        a = nn.silu(BatchNorm(name="local_att_1")(a, train))
        a = Conv2D(channels, 1, bias=True, dtype=self.dtype, name="local_att_3")(a)
        a = 1 + jnp.tanh(BatchNorm(name="local_att_4")(a, train))
        return x * a + y * (2 - a)


class Res2NetBlock(nn.Module):
    """Convolution 1x1, of each group of channels 3x3, 1x1, plus the input, which is all of it before training.

    Each group of `group` channels but the first is joined with its left neighbour's output before its convolution, by a
    sum or, if `fused`, by attention.
    """

    features: int
    group: int
    scale: int
    stride: int
    fused: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Maps, train: bool, lengths: Lengths = None) -> Float[Array, "B F2 T2 D"]:
        y = Conv2D(self.group * self.scale, 1, self.stride, dtype=self.dtype, name="conv1")(x)
        y = clipped_relu(BatchNorm(name="bn1")(y, train))
        y = self._of_groups(y, train, strided(lengths, self.stride))
        y = Conv2D(self.features, 1, dtype=self.dtype, name="conv3")(y)
        y = BatchNorm(initial_scale=0.0, name="bn3")(y, train)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = Conv2D(self.features, 1, self.stride, dtype=self.dtype, name="shortcut_0")(x)
            x = BatchNorm(name="shortcut_1")(x, train)
        return clipped_relu(x + y)

    def _of_groups(self, x: Maps, train: bool, lengths: Lengths) -> Maps:
        outputs = []
        for i, group in enumerate(jnp.split(x, self.scale, axis=-1)):
            if i and self.fused:
                group = AttentionalFusion(self.dtype, name=f"fuse_models_{i - 1}")(outputs[-1], group, train)
            elif i:
                group = outputs[-1] + group
            y = Conv2D(self.group, dtype=self.dtype, name=f"convs_{i}")(group, lengths)
            outputs.append(clipped_relu(BatchNorm(name=f"bns_{i}")(y, train)))
        return jnp.concatenate(outputs, axis=-1)


class ERes2NetV2(nn.Module):
    """Features of whole sequences -> embedding, float32 or wider, no norm after it.

    `lengths` in frames (None: all of T) makes the result for a padded sequence that of the sequence alone. `blocks`: of
    each of four stages, of width, 2, 4 and 8 times it, all but the first halving time and frequency; their maps have
    `expansion` times as many channels, and inside a block are `scale` groups of base_width / 64 times as many, rounded
    down. The third stage's maps, halved, are fused into the fourth's. `base_width`, `scale` and `expansion` are 26, 2
    and 2 as published first, 24, 4 and 4 in the larger w24s4ep4. `remat` computes the inside of the blocks again in the
    backward pass.
    """

    blocks: Sequence[int] = (3, 4, 6, 3)
    width: int = 64
    base_width: int = 26
    scale: int = 2
    expansion: int = 2
    embedding_size: int = 192
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, features: Float[Array, "B T F"], train: bool, lengths: Lengths = None
    ) -> Float[Array, "B {self.embedding_size}"]:
        frames.check_mode(train, lengths)
        x = stem(features, self.width, self.dtype, train, lengths)
        block = nn.remat(Res2NetBlock, static_argnums=(2,)) if self.remat else Res2NetBlock
        outputs = []
        for stage, count in enumerate(self.blocks):
            planes = self.width << stage
            group = planes * self.base_width // BASE
            for i in range(count):
                stride = 2 if stage and not i else 1
                sizes = planes * self.expansion, group, self.scale, stride, stage in FUSED_STAGES
                x = block(*sizes, self.dtype, name=f"layer{stage + 1}_{i}")(x, train, lengths)
                lengths = strided(lengths, stride)
            outputs.append((x, lengths))
        third = Conv2D(x.shape[-1], stride=2, dtype=self.dtype, name="layer3_ds")(*outputs[-2])
        x = AttentionalFusion(self.dtype, name="fuse34")(x, third, train)
        return embedding_of_maps(x, self.embedding_size, self.dtype, lengths, VARIANCE_FLOOR)
