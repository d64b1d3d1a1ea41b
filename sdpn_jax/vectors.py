"""Embeddings as directions: unit length and cosine, in float64 NumPy."""

import numpy as np
from jaxtyping import Float, Float64


def unit(vectors: Float[np.ndarray, "*batch D"]) -> Float64[np.ndarray, "*batch D"]:
    """Vectors scaled to Euclidean length 1 in float64; a vector of zeros stays zero."""
    vectors = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)


def cosine(
    a: Float[np.ndarray, "*#batch D"], b: Float[np.ndarray, "*#batch D"]
) -> Float[np.ndarray | np.float64, "*#batch"]:
    """Cosine of the angle between vectors, in [-1, 1] up to rounding; 0 where either is zero."""
    return np.sum(unit(a) * unit(b), axis=-1)
