"""Encoder and projection head together: what student and teacher both are."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdpn_jax.models.ecapa import ECAPA
from sdpn_jax.models.frames import Lengths
from sdpn_jax.models.head import ProjectionHead
from sdpn_jax.models.resnet import ResNet

MEL_BINS = 80


class Network(nn.Module):
    """Log-mel -> (embedding, projection of unit length).

    front_end: which features the encoder hears, a name of data/front_ends.py; all but "sdpn" for embeddings alone.
    architecture: of the encoder, "ecapa" or "resnet", with `channels`, `se_bottleneck` and `attention` of the one,
    `blocks`, `bottleneck` and `width` of the other.
    """

    channels: Sequence[int] = (1024, 1024, 1024, 1024, 3072)
    se_bottleneck: int = 128
    attention: int = 128
    embedding_size: int = 512
    hidden_size: int = 2048
    projection_size: int = 256
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    front_end: str = "sdpn"
    architecture: str = "ecapa"
    blocks: Sequence[int] = (3, 4, 6, 3)
    bottleneck: bool = False
    width: int = 32

    def setup(self):
        self.encoder = self._resnet() if self.architecture == "resnet" else self._ecapa()
        self.head = ProjectionHead(self.hidden_size, self.projection_size, self.dtype)

    def _resnet(self) -> ResNet:
        return ResNet(
            blocks=self.blocks,
            bottleneck=self.bottleneck,
            width=self.width,
            embedding_size=self.embedding_size,
            dtype=self.dtype,
            remat=self.remat,
        )

    def _ecapa(self) -> ECAPA:
        return ECAPA(
            channels=self.channels,
            se_bottleneck=self.se_bottleneck,
            attention=self.attention,
            embedding_size=self.embedding_size,
            dtype=self.dtype,
            remat=self.remat,
            normalise=self.front_end == "sdpn",
        )

    def __call__(
        self, log_mel: Float[Array, "B T F"], train: bool
    ) -> tuple[Float[Array, "B {self.embedding_size}"], Float[Array, "B {self.projection_size}"]]:
        embedding = self.encoder(log_mel, train)
        return embedding, self.head(embedding, train)

    def embed(self, log_mel: Float[Array, "B T F"], lengths: Lengths = None) -> Float[Array, "B {self.embedding_size}"]:
        """Embeds log-mels with the running statistics; `lengths` in frames, for padded sequences."""
        return self.encoder(log_mel, False, lengths)


def network_of(sizes: Mapping) -> Network:
    """Builds the network described by the fields of Network, such as {"channels": ..., "dtype": "bfloat16"}."""
    dtype = jnp.dtype(sizes.get("dtype", "float32"))
    lists = {name: tuple(sizes[name]) for name in ("channels", "blocks") if name in sizes}
    return Network(**{**sizes, **lists, "dtype": dtype})


def initial_variables(network: Network, seed: int) -> dict:
    """Initialises {"params", "batch_stats"} of a new network in float32, a function of the seed alone."""
    shape = (2, 32, MEL_BINS)  # parameters depend on neither batch nor frames
    return jax.jit(lambda key: network.init(key, jnp.zeros(shape), True))(jax.random.key(seed))
