"""CAM++ (Wang et al., arXiv 2303.00332): time-delay layers, densely connected and gated by their context."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdpn_jax.models import frames
from sdpn_jax.models.frames import Frames, Lengths
from sdpn_jax.models.layers import BatchNorm, Conv, fan_in_uniform, wide
from sdpn_jax.models.resnet import Conv2D, ResidualBlock, flattened, stem, strided

DENSE = 4  # times the width are the channels that the first dense block begins with
HALVED = (2, 1)  # strides of frequency and time
DILATIONS = (1, 2, 2)  # of each dense block
BARELY = 0.01  # begins the scale of channels that a dense block makes: at 0 no gradient would pass the ReLU behind it
SEGMENT = 100  # frames with a gate in common
VARIANCE_FLOOR = 1e-30  # adds nothing to a variance, and keeps the gradient finite where a channel is silent


class TimeDelay(nn.Module):
    """Convolution over time without bias, zeros around it: also behind each sequence's true end.

    As in layers.Conv the taps are laid side by side.
    """

    features: int
    kernel_size: int = 1
    dilation: int = 1
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Frames, lengths: Lengths = None) -> Float[Array, "B T2 {self.features}"]:
        taps, num_frames = self.kernel_size, x.shape[1]
        kernel = self.param("kernel", fan_in_uniform(taps * x.shape[-1]), (taps, x.shape[-1], self.features))
        x = frames.zero_pad(x.astype(self.dtype), self.dilation * (taps - 1) // 2, lengths)
        starts = range(0, taps * self.dilation, self.dilation)
        x = jnp.concatenate([x[:, start : start + num_frames : self.stride] for start in starts], axis=-1)
        return x @ kernel.reshape(-1, self.features).astype(self.dtype)


class ContextGated(nn.Module):
    """Convolution of width 3 times a gate that the means of the sequence and of its segment make (section 2.2)."""

    features: int
    dilation: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Frames, averages: Float[Array, "B S T"], lengths: Lengths = None
    ) -> Float[Array, "B T {self.features}"]:
        gate = averages @ x.astype(averages.dtype)
        gate = nn.relu(Conv(x.shape[-1] // 2, dtype=self.dtype, name="squeeze")(gate))
        gate = nn.sigmoid(Conv(self.features, dtype=self.dtype, name="excite")(gate))
        y = TimeDelay(self.features, 3, self.dilation, dtype=self.dtype, name="local")(x, lengths)
        return y * jnp.repeat(gate, SEGMENT, axis=1)[:, : x.shape[1]]


class DenseLayer(nn.Module):
    """Reads all that its block has made so far and makes `growth` channels more, through a bottleneck."""

    growth: int
    bottleneck: int
    dilation: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, made: Sequence[Frames], train: bool, averages: Float[Array, "B S T"], lengths: Lengths = None
    ) -> Float[Array, "B T {self.growth}"]:
        x = jnp.concatenate(made, axis=-1)
        x = nn.relu(BatchNorm(name="norm1")(x, train))
        x = TimeDelay(self.bottleneck, dtype=self.dtype, name="linear")(x)
        x = nn.relu(BatchNorm(name="norm2")(x, train))
        return ContextGated(self.growth, self.dilation, self.dtype, name="cam")(x, averages, lengths)


class CAMPlus(nn.Module):
    """Features of whole sequences -> embedding, float32 or wider, its numbers normalised over the training batches.

    `lengths` in frames (None: all of T) makes the result for a padded sequence that of the sequence alone. `width`:
    channels of the two-dimensional front; `initial`: those that the first of three dense blocks begins with; `blocks`:
    layers of each, which add `growth` channels through a bottleneck of `bottleneck_factor` times as many. Where initial
    and growth are 0 they are four times the width and the width, as published. As residual blocks begin as the
    identity, dense blocks begin by passing on little but what they were given. `remat` computes the inside of residual
    blocks and dense layers again in the backward pass.
    """

    blocks: Sequence[int] = (12, 24, 16)
    width: int = 32
    initial: int = 0
    growth: int = 0
    bottleneck_factor: int = 4
    embedding_size: int = 512
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, features: Float[Array, "B T F"], train: bool, lengths: Lengths = None
    ) -> Float[Array, "B {self.embedding_size}"]:
        frames.check_mode(train, lengths)
        x = flattened(self._front(features, train, lengths))
        growth = self.growth or self.width
        x = TimeDelay(self.initial or DENSE * self.width, 5, stride=2, dtype=self.dtype, name="tdnn")(x, lengths)
        x, lengths = nn.relu(BatchNorm(name="tdnn_norm")(x, train)), strided(lengths, 2)
        averages = segment_averages(x.astype(wide(self.dtype)), lengths)
        dense_layer = nn.remat(DenseLayer, static_argnums=(2,)) if self.remat else DenseLayer
        for k, (layers, dilation) in enumerate(zip(self.blocks, DILATIONS, strict=True), 1):
            made = [x]
            for i in range(1, layers + 1):
                bottleneck = self.bottleneck_factor * growth
                layer = dense_layer(growth, bottleneck, dilation, self.dtype, name=f"block{k}_{i}")
                made.append(layer(made, train, averages, lengths))
            scale = (1.0,) * x.shape[-1] + (BARELY,) * growth * layers
            x = jnp.concatenate(made, axis=-1)
            x = nn.relu(BatchNorm(initial_scale=scale, name=f"transit{k}_norm")(x, train))
            x = TimeDelay(x.shape[-1] // 2, dtype=self.dtype, name=f"transit{k}")(x)
        x = nn.relu(BatchNorm(name="out_norm")(x, train))
        x = frames.mean_and_deviation(x.astype(wide(self.dtype)), lengths, VARIANCE_FLOOR)
        x = TimeDelay(self.embedding_size, dtype=self.dtype, name="embedding")(x[:, None])[:, 0]
        return BatchNorm(affine=False, name="embedding_norm")(x, train).astype(wide(self.dtype))

    def _front(self, features: Float[Array, "B T F"], train: bool, lengths: Lengths) -> Float[Array, "B F2 T C"]:
        """Residual blocks that keep time and leave an eighth of the frequencies."""
        x = stem(features, self.width, self.dtype, train, lengths)
        block = nn.remat(ResidualBlock, static_argnums=(2,)) if self.remat else ResidualBlock
        for name, stride in [("layer1_0", HALVED), ("layer1_1", 1), ("layer2_0", HALVED), ("layer2_1", 1)]:
            x = block(self.width, stride, False, self.dtype, name=name)(x, train, lengths)
        x = Conv2D(self.width, stride=HALVED, dtype=self.dtype, name="conv2")(x, lengths)
        return nn.relu(BatchNorm(name="bn2")(x, train))


def segment_averages(x: Frames, lengths: Lengths = None) -> Float[Array, "B S T"]:
    """Builds what times frames is, for each segment, the mean of its sequence plus its own; its type is x's.

    Of segments of SEGMENT frames the last is shorter; padding counts for nothing.
    """
    batch, num_frames, _ = x.shape
    lengths = jnp.full(batch, num_frames) if lengths is None else lengths
    time, first = jnp.arange(num_frames), jnp.arange(0, num_frames, SEGMENT)
    in_segment = time // SEGMENT == first[:, None] // SEGMENT
    frames_of_segment = jnp.clip(lengths[:, None] - first, 1, SEGMENT)
    weights = 1 / lengths[:, None, None] + in_segment / frames_of_segment[:, :, None]
    return (weights * (time < lengths[:, None, None])).astype(x.dtype)
