"""What kernels written in Pallas (Triton) share: products summed exactly, frames beyond the end, what they move."""

from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array

from sdpn_jax.models.layers import wide


def dot(a: Array, b: Array) -> Array:
    """Multiplies matrices, summed and returned in float32 or wider."""
    return jnp.dot(a, b, preferred_element_type=wide(a.dtype))


def rows(ref: Any, start: Any, count: int, columns: Any = slice(None), of: tuple = ()) -> tuple[Array, Array]:
    """Loads rows from `start` on, of one matrix `of` several; those behind the end are 0.

    Also returns which are there, [count, 1].
    """
    there = (start + jnp.arange(count) < ref.shape[-2])[:, None]
    return triton.load(ref.at[*of, pl.ds(start, count), columns], mask=there, other=0), there


def nbytes(*arrays: Any) -> int:
    """Counts the bytes of arrays."""
    return sum(array.size * array.dtype.itemsize for array in arrays)


def stated(moved: int, flops: int) -> dict[str, str]:
    """States in a compiled program how many bytes a kernel moves through main memory, and how much it multiplies.

    XLA knows neither, and of an array that is written into, a group of channels may be all that is read and written.
    """
    return {"bytes": str(moved), "flops": str(flops)}
