"""ECAPA-TDNN (Desplanques et al., arXiv 2005.07143), the encoder of SDPN: features in, embedding out."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdpn_jax.models import frames
from sdpn_jax.models.frames import Frames, Lengths
from sdpn_jax.models.layers import BatchNorm, Conv, Normed, Pad, rectify, wide
from sdpn_jax.models.pooling import AttentiveStatisticsPooling

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
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, x: Normed, train: bool, lengths: Lengths = None) -> Normed:
        if self.mesh is not None and train and not self.is_initializing():
            from sdpn_jax.models import ecapa_nvidia  # Pallas takes a while to import, and few need it

            return applied(self, ecapa_nvidia.res2net, x, self.mesh, self.dilation)
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
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, x: Frames | Normed, train: bool, lengths: Lengths = None) -> Float[Array, "B T {self.features}"]:
        residual = x.exact() if isinstance(x, Normed) else x
        if residual.shape[-1] != self.features:
            residual = Conv(self.features, dtype=self.dtype, name="shortcut")(x)
        heard = x.apart() if isinstance(x, Normed) else x
        x = TDNN(self.features, dtype=self.dtype, name="tdnn1")(heard, train)
        x = Res2Net(
            self.kernel_size,
            self.dilation,
            self.scale,
            self.dtype,
            self.pad,
            self.passes_last,
            self.mesh,
            name="res2net",
        )(x, train, lengths)
        x = TDNN(self.features, dtype=self.dtype, name="tdnn2")(x, train)
        scaled = SqueezeExcitation(self.se_bottleneck, self.dtype, name="se")(x, lengths)
        return (residual + scaled.exact()).astype(self.dtype)


def applied(module: nn.Module, layer: Callable[..., tuple[Any, dict]], x: Any, *settings: Any) -> Any:
    """Passes x through a function of a module's variables, and keeps the running statistics that it returns too."""
    x, batch_stats = layer(x, module.variables["params"], module.variables["batch_stats"], *settings)
    for name, values in batch_stats.items():
        module.put_variable("batch_stats", name, values)
    return x


class ECAPA(nn.Module):
    """Features of whole sequences -> embedding, float32 or wider, no norm after it.

    `lengths` in frames (None: all of T) makes the result for a padded sequence that of the sequence alone.
    `remat` computes the inside of the blocks again in the backward pass instead of keeping it. `mesh`: devices for
    which the pooling in training has kernels of its own, see `on` and ecapa_nvidia.py.
    Sizes are those of SDPN: channels 1024 x4 then 3072, embedding 512.
    """

    channels: Sequence[int] = (1024, 1024, 1024, 1024, 3072)
    se_bottleneck: int = 128
    attention: int = 128
    embedding_size: int = 512
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    mesh: Mesh | None = None

    def on(self, mesh: Mesh) -> Self:
        """Returns the encoder as it is trained on these devices: with kernels of its own, if they are written for them.

        They are for NVIDIA GPUs from Ampere on, for bfloat16, and for sizes that fill their blocks.
        """
        device = mesh.devices.flat[0]
        written = device.device_kind.startswith("NVIDIA") and float(device.compute_capability) >= 8
        groups = {channels / SCALE for channels in self.channels[1:-1]}
        fits = groups <= {64, 128} and self.channels[-1] % 64 == 0 and self.attention in (64, 128)
        return self.clone(mesh=mesh) if written and fits and jnp.dtype(self.dtype) == jnp.bfloat16 else self

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
                mesh=self.mesh,
                name=f"block_{i}",
            )
            x = block(x, train, lengths)
            if i < len(self.channels) - 2:  # written once, rather than computed again for the concatenation
                x = jax.lax.optimization_barrier(x)
            outputs.append(x)
        x = jnp.concatenate(outputs, axis=-1)
        if self.mesh is not None and train and not self.is_initializing():
            from sdpn_jax.models import ecapa_nvidia  # Pallas takes a while to import, and few need it

            x = applied(self, ecapa_nvidia.pooled, x, self.mesh)
        else:
            x = TDNN(self.channels[-1], KERNEL_SIZES[-1], DILATIONS[-1], self.dtype, name="mfa")(x, train, lengths)
            x = AttentiveStatisticsPooling(self.attention, self.dtype, name="pooling")(x, train, lengths)
        x = BatchNorm(name="pooling_norm")(x, train)
        x = Conv(self.embedding_size, dtype=self.dtype, name="embedding")(x[:, None])[:, 0]
        return x.astype(wide(self.dtype))
