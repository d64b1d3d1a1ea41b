"""WeSpeaker's ECAPA-TDNN (Desplanques et al., arXiv 2005.07143): silence around sequences, another pooling."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdpn_jax.models import frames
from sdpn_jax.models.ecapa import TDNN, SERes2Block
from sdpn_jax.models.frames import Frames, Lengths
from sdpn_jax.models.layers import BatchNorm, Conv, wide
from sdpn_jax.models.pooling import ContextConv, attended

DILATIONS = (2, 3, 4)  # of the blocks
SCALE = 8  # groups of channels in each block
FRAME_CHANNELS = 1536  # that the pooling sees, of any width
VARIANCE_FLOOR = 1e-7


class AttentivePooling(nn.Module):
    """Attention-weighted mean and standard deviation over time, in float32 or wider.

    With `global_context` the attention sees each frame beside the utterance's mean and deviation.
    """

    attention: int
    global_context: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Frames, lengths: Lengths = None) -> Float[Array, "B 2*C"]:
        if self.global_context:
            context = frames.mean_and_deviation(x.astype(wide(x.dtype)), lengths, VARIANCE_FLOOR)[:, None]
            hidden = ContextConv(self.attention, self.dtype, name="tdnn_conv")(x, context)
        else:
            hidden = Conv(self.attention, dtype=self.dtype, name="tdnn_conv")(x)
        logits = Conv(x.shape[-1], dtype=self.dtype, bias_gradient=False, name="conv")(nn.tanh(hidden))
        logits = frames.without_padding(logits, lengths)
        shift = jax.lax.stop_gradient(frames.mean(x.astype(wide(x.dtype)), lengths))
        off, variance = attended(x, logits, shift)
        return jnp.concatenate([shift + off, jnp.sqrt(jnp.maximum(variance, VARIANCE_FLOOR))], axis=-1)[:, 0]


class WeSpeakerECAPA(nn.Module):
    """Features of whole sequences -> embedding, float32 or wider, normed after it only with `embedding_norm`.

    `lengths` in frames (None: all of T) makes the result for a padded sequence that of the sequence alone. `width`:
    channels of all layers before the pooling, a multiple of 8; ECAPA_TDNN_GLOB_c1024 has 1024 and `global_context`,
    ECAPA_TDNN_c512 has 512 and not. `remat` computes the inside of the blocks again in the backward pass.
    """

    width: int = 512
    se_bottleneck: int = 128
    attention: int = 128
    global_context: bool = True
    embedding_size: int = 192
    embedding_norm: bool = False
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, features: Float[Array, "B T F"], train: bool, lengths: Lengths = None
    ) -> Float[Array, "B {self.embedding_size}"]:
        frames.check_mode(train, lengths)
        x = TDNN(self.width, 5, dtype=self.dtype, pad=frames.zero_pad, name="tdnn")(features, train, lengths)
        outputs = []
        se_res2_block = nn.remat(SERes2Block, static_argnums=(2,)) if self.remat else SERes2Block
        for i, dilation in enumerate(DILATIONS, 1):
            block = se_res2_block(
                self.width,
                3,
                dilation,
                SCALE,
                self.se_bottleneck,
                self.dtype,
                frames.zero_pad,
                passes_last=True,
                name=f"block_{i}",
            )
            x = block(x, train, lengths)
            outputs.append(x)
        x = jnp.concatenate(outputs, axis=-1)
        x = nn.relu(Conv(FRAME_CHANNELS, dtype=self.dtype, name="mfa")(x))
        x = AttentivePooling(self.attention, self.global_context, self.dtype, name="pooling")(x, lengths)
        x = BatchNorm(name="pooling_norm")(x, train)
        x = Conv(self.embedding_size, dtype=self.dtype, name="embedding")(x[:, None])[:, 0]
        if self.embedding_norm:
            x = BatchNorm(name="embedding_norm")(x, train)
        return x.astype(wide(self.dtype))
