"""The projection head of SDPN: embedding -> point on the unit sphere where the prototypes live."""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdpn_jax.models.layers import BatchNorm, wide


def l2_normalise(x: Float[Array, "*n D"], epsilon: float = 1e-12) -> Float[Array, "*n D"]:
    """Scales rows to unit length, x / max(|x|, epsilon) over the last axis, with a finite gradient at 0."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(square, epsilon**2))


class ProjectionHead(nn.Module):
    """Embeddings -> projections of unit length: two layers with batch norm and exact GELU, then a linear one."""

    hidden_size: int = 2048
    projection_size: int = 256
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, embedding: Float[Array, "B D"], train: bool) -> Float[Array, "B {self.projection_size}"]:
        init = nn.initializers.normal(0.02)  # the recipe truncates at +-2, a hundred standard deviations away
        dense = partial(nn.Dense, dtype=self.dtype, param_dtype=jnp.result_type(float), kernel_init=init)
        x = embedding
        for i in range(2):
            x = dense(self.hidden_size, name=f"dense_{i}")(x)
            x = nn.gelu(BatchNorm(name=f"norm_{i}")(x, train), approximate=False)
        x = dense(self.projection_size, name="dense_2")(x)
        return l2_normalise(x.astype(wide(self.dtype)))
