"""Softmax over classes with margins: the heads that learn from labels, pure functions of arrays.

N views, C classes with S sub-centres each, D embedding size. Centres may be split over devices along C: nothing here
asks for more of them than a maximum or a sum over classes.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sdpn_jax.models.head import l2_normalise
from sdpn_jax.training.sharding import ROWS, padded_rows


@dataclass(frozen=True)
class Head:
    """Which softmax: kind "aam" (ArcFace, arXiv 1801.07698) or "am" (CosFace, arXiv 1801.05599, 1801.09414).

    scale: s, of the cosines. margin: m, in radians for "aam", of the cosine for "am". top_k, top_k_margin: the nearest
    wrong classes of each view and what they gain (inter-top-k, arXiv 2110.05042).
    """

    kind: str = "aam"
    scale: float = 30.0
    margin: float = 0.2
    top_k: int = 0
    top_k_margin: float = 0.06


def drawn_centres(classes: int, sub_centres: int, size: int, key: jax.Array) -> Float[Array, "R {sub_centres} {size}"]:
    """Draws centres of length about 1, R rows of them: those beyond `classes` stay unused (see `padded_rows`)."""
    return jax.random.normal(key, (padded_rows(classes), sub_centres, size)) / np.sqrt(size)


def class_cosines(embedding: Float[Array, "N D"], centres: Float[Array, "R S D"], classes: int) -> Float[Array, "N R"]:
    """Computes the cosine with each class's nearest sub-centre (sub-centre ArcFace, ECCV 2020, Eq. 3).

    Rows beyond `classes` are -1 exactly, less than which no cosine is.
    """
    cosines = jnp.einsum(
        "nd,rsd->nrs", l2_normalise(embedding), l2_normalise(centres), precision=jax.lax.Precision.HIGHEST
    ).max(-1)
    return jnp.where(jnp.arange(len(centres)) < classes, cosines, -1.0)


def with_margin(cosine: Float[Array, "*n"], margin: Float[Array, ""] | float, kind: str) -> Float[Array, "*n"]:
    """Lowers a cosine by a margin: cos(theta + m) for "aam", cos(theta) - m for "am".

    Where theta + m would pass pi, and its cosine rise again, "aam" goes on as cos(theta) - m sin(m), as ArcFace's
    authors do.
    """
    if kind == "am":
        return cosine - margin
    return jnp.where(cosine > -jnp.cos(margin), turned(cosine, margin), cosine - margin * jnp.sin(margin))


def turned(cosine: Float[Array, "*n"], angle: Float[Array, ""] | float) -> Float[Array, "*n"]:
    """Computes cos(theta + angle) of cos(theta), with finite gradients at cosines of 1 and -1 too."""
    square = 1 - jnp.square(cosine)
    sine = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return cosine * jnp.cos(angle) - sine * jnp.sin(angle)


def logits(
    cosines: Float[Array, "N R"], labels: Int[Array, " N"], classes: int, head: Head, share: Float[Array, ""] | float
) -> Float[Array, "N R"]:
    """Computes the logits with margins; `share` of them, from 0 to 1, is in force. Unused rows are -inf.

    The label's cosine is lowered by the margin; those of the `top_k` nearest other classes are raised by
    `top_k_margin`, to cos(theta - m) for "aam"; by a negative one they are lowered, and pushed away less.
    """
    rows = jnp.arange(cosines.shape[-1])
    is_label = rows == labels[:, None]
    used = rows < classes
    result = jnp.where(is_label, with_margin(cosines, share * head.margin, head.kind), cosines)
    if head.top_k:
        near = ~is_label & used & (cosines >= _kth_largest(jnp.where(is_label, -jnp.inf, cosines), head.top_k))
        gain = share * head.top_k_margin
        result = jnp.where(near, cosines + gain if head.kind == "am" else turned(cosines, -gain), result)
    return jnp.where(used, head.scale * result, -jnp.inf)


def _kth_largest(values: Float[Array, "N R"], k: int) -> Float[Array, "N 1"]:
    """The k-th largest of each row, found in groups of columns first, so that split columns stay where they are."""
    columns = values.shape[-1]
    groups = jax.lax.stop_gradient(values).reshape(len(values), ROWS, columns // ROWS)
    best = jax.lax.top_k(groups, min(k, groups.shape[-1]))[0].reshape(len(values), -1)
    return jax.lax.top_k(best, min(k, best.shape[-1]))[0][:, -1:]


def cross_entropy(logits: Float[Array, "N R"], labels: Int[Array, " N"]) -> Float[Array, " N"]:
    """Computes -log softmax(logits)[label] of each view."""
    is_label = jnp.arange(logits.shape[-1]) == labels[:, None]
    of_label = jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - of_label


def found(cosines: Float[Array, "N R"], labels: Int[Array, " N"]) -> Bool[Array, " N"]:
    """Tells of each view whether its label's centre is the nearest."""
    return jnp.argmax(cosines, axis=-1) == labels
