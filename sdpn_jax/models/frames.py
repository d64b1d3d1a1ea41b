"""Sequences of different lengths in one padded array: masks, means and reflection at each sequence's own end.

Everywhere `lengths` are in frames, or None, which means that every sequence fills the array.
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Frames: TypeAlias = Float[Array, "B T C"]
Lengths: TypeAlias = Int[Array, " B"] | None


def mask(x: Frames, lengths: Int[Array, " B"]) -> Float[Array, "B T 1"]:
    """Marks frames of x's type: 1 where a frame belongs to its sequence, 0 in the padding."""
    return (jnp.arange(x.shape[1])[None, :, None] < lengths[:, None, None]).astype(x.dtype)


def without_padding(logits: Frames, lengths: Lengths) -> Frames:
    """Puts -inf in the padding, so that a softmax over time gives it no weight."""
    return logits if lengths is None else jnp.where(mask(logits, lengths) > 0, logits, -jnp.inf)


def check_mode(train: bool, lengths: Lengths) -> None:
    """Raises ValueError for padded sequences in training."""
    if train and lengths is not None:
        raise ValueError("batch norm would count the padding: train on views of equal length, without lengths")


def mean(x: Frames, lengths: Lengths = None, weights: Frames | None = None) -> Float[Array, "B 1 C"]:
    """Averages over time; `weights`, of any sum, are 0 in the padding."""
    if weights is not None:
        return (weights * x).sum(1, keepdims=True) / weights.sum(1, keepdims=True)
    if lengths is None:
        return x.mean(1, keepdims=True)
    return (x * mask(x, lengths)).sum(1, keepdims=True) / lengths[:, None, None].astype(x.dtype)


def mean_and_variance(
    x: Frames, lengths: Lengths = None, weights: Frames | None = None
) -> tuple[Float[Array, "B 1 C"], Float[Array, "B 1 C"]]:
    """Computes mean and biased variance over time."""
    centre = mean(x, lengths, weights)
    # About the mean the variance is stationary: no gradient flows through it there, and none need be computed.
    return centre, mean(jnp.square(x - jax.lax.stop_gradient(centre)), lengths, weights)


def moments(x: Frames, lengths: Lengths = None) -> tuple[Float[Array, "B 1 C"], Float[Array, "B 1 C"]]:
    """Computes mean and biased variance over time in one pass, which wants frames whose mean is near 0."""
    centre = mean(x, lengths)
    return centre, variance_of(centre, mean(jnp.square(x), lengths))


def variance_of(mean: Array, square: Array) -> Array:
    """Computes the biased variance of what has this mean, and this mean of squares; rounding makes none negative."""
    return jnp.maximum(square - jnp.square(mean), 0)


def mean_and_deviation(x: Frames, lengths: Lengths, floor: float) -> Float[Array, "B 2*C"]:
    """Computes mean and deviation over time, sqrt(unbiased variance + floor), one behind the other."""
    centre, biased = (moment[:, 0] for moment in mean_and_variance(x, lengths))
    count = jnp.asarray(x.shape[1] if lengths is None else lengths[:, None], x.dtype)
    variance = biased * (count / jnp.maximum(count - 1, 1))
    return jnp.concatenate([centre, jnp.sqrt(variance + floor)], axis=-1)


def zero_pad(x: Frames, pad: int, lengths: Lengths = None) -> Float[Array, "B T+2*{pad} C"]:
    """Pads time by `pad` frames of zeros on both sides; they stand behind each sequence's true end too."""
    if pad and lengths is not None:
        x = x * mask(x, lengths)
    return jnp.pad(x, ((0, 0), (pad, pad), (0, 0)))


def reflect_pad(x: Frames, pad: int, lengths: Lengths = None) -> Float[Array, "B T+2*{pad} C"]:
    """Pads time by `pad` frames on both sides, mirrored about the first and the last frame.

    With `lengths` the mirror at the end stands at each sequence's own last frame. Sequences must be longer than `pad`.
    """
    if pad == 0:
        return x
    if lengths is None:
        return jnp.pad(x, ((0, 0), (pad, pad), (0, 0)), mode="reflect")
    num_frames = x.shape[1]
    time = jnp.abs(jnp.arange(-pad, num_frames + pad))[None, :]
    last = lengths[:, None] - 1
    mirrored = jnp.where(time > last, 2 * last - time, time)
    return jnp.take_along_axis(x, jnp.clip(mirrored, 0, num_frames - 1)[:, :, None], axis=1)
