"""Encoder and projection head together: what student and teacher both are."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn

from sdpn_jax.models.ecapa import ECAPA
from sdpn_jax.models.head import ProjectionHead


class Network(nn.Module):
    """Log-mel [B, T, F] -> (embedding [B, D], projection [B, P] of unit length)."""

    channels: Sequence[int] = (1024, 1024, 1024, 1024, 3072)
    se_bottleneck: int = 128
    attention: int = 128
    embedding_size: int = 512
    hidden_size: int = 2048
    projection_size: int = 256
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.encoder = ECAPA(
            channels=self.channels,
            se_bottleneck=self.se_bottleneck,
            attention=self.attention,
            embedding_size=self.embedding_size,
            dtype=self.dtype,
        )
        self.head = ProjectionHead(self.hidden_size, self.projection_size, self.dtype)

    def __call__(self, log_mel, train: bool):
        embedding = self.encoder(log_mel, train)
        return embedding, self.head(embedding, train)

    def embed(self, log_mel, lengths=None):
        """Embeddings [B, D] with the running statistics; `lengths` [B] in frames for padded sequences."""
        return self.encoder(log_mel, False, lengths)
