"""The terms of the SDPN objective (arXiv 2308.02774), pure functions of arrays, computed in float32 or wider.

B utterances, G global and V local views, K prototypes, P projection size, D embedding size. Every mean is over the
whole arrays given; under `jax.jit` with sharded arrays that is the global batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdpn_jax.models.head import l2_normalise

Scalar = Float[Array, ""]


def cosine_logits(projection: Float[Array, "*views P"], prototypes: Float[Array, "K P"]) -> Float[Array, "*views K"]:
    """Computes the cosines of projections with the prototypes."""
    # By default TPUs would round to bfloat16, an error of 0.1 once divided by the target's temperature.
    return jnp.matmul(l2_normalise(projection), l2_normalise(prototypes).T, precision=jax.lax.Precision.HIGHEST)


def student_log_probability(cosines: Float[Array, "*views K"], temperature: float) -> Float[Array, "*views K"]:
    """Computes log softmax(cos / temperature) over the prototypes (paper, Eq. 1)."""
    return jax.nn.log_softmax(cosines / temperature, axis=-1)


def softmax_targets(cosines: Float[Array, "N K"], temperature: float, sharpening: float) -> Float[Array, "N K"]:
    """Computes the teacher's softmax to the power 1 / sharpening, renormalised (paper, Eq. 2), without gradient.

    p^(1/T) / sum p^(1/T) with p = softmax(cos / tau) equals softmax(cos / (tau T)), which cannot underflow as a whole.
    """
    return jax.lax.stop_gradient(jax.nn.softmax(cosines / (temperature * sharpening), axis=-1))


def sinkhorn_targets(
    cosines: Float[Array, "N K"], temperature: float, sharpening: float, iterations: int
) -> Float[Array, "N K"]:
    """Computes sharpened targets that use all prototypes equally (Sinkhorn-Knopp, as in SwAV, arXiv 2006.09882).

    Each iteration gives every prototype the same total, then every sample the total 1. In the log domain, so that no
    row or column can underflow to an empty one. N samples of the global batch; no gradient.
    """
    log_q = jax.nn.log_softmax(cosines / (temperature * sharpening), axis=-1)
    for _ in range(iterations):
        log_q = log_q - jax.nn.logsumexp(log_q, axis=0, keepdims=True)
        log_q = log_q - jax.nn.logsumexp(log_q, axis=1, keepdims=True)
    return jax.lax.stop_gradient(jnp.exp(log_q))


def balanced_targets(
    cosines: Float[Array, "N K"], offset: Float[Array, " K"], temperature: float, sharpening: float, rate: float
) -> tuple[Float[Array, "N K"], Float[Array, " K"]]:
    """Computes sharpened targets after subtracting an offset, and that offset moved one step, without gradient.

    The offset, subtracted from the logits, rises for prototypes used more than 1 / K of the time, falls for the rest:
    offset += log(1 - rate + rate K usage), usage being the batch's mean target with the offset as it came. On a fixed
    set of samples it settles where all prototypes are used equally, which is Sinkhorn's solution of entropic optimal
    transport; taken one step a batch, as here, it is Online Sinkhorn (Mensch and Peyre, arXiv 2003.01415) and
    balances over many batches, where Sinkhorn's iterations balance within each. In the log domain, so that a prototype
    that no sample uses keeps a finite offset at rate 1 too.
    """
    logits = jax.lax.stop_gradient(cosines) / (temperature * sharpening)
    samples, prototypes = logits.shape
    log_usage = jax.nn.logsumexp(jax.nn.log_softmax(logits - offset, axis=-1), axis=0) - np.log(samples)
    with np.errstate(divide="ignore"):  # rates 0 and 1
        log_kept, log_moved = np.log1p(-rate), np.log(rate * prototypes)
    offset = offset + jnp.logaddexp(log_kept, log_moved + log_usage)
    return jax.nn.softmax(logits - offset, axis=-1), offset


def cross_entropy(log_probability: Float[Array, "B V K"], targets: Float[Array, "B G K"]) -> Scalar:
    """Averages -sum_k target log p over views and utterances (paper, Eq. 3).

    log_probability of the local views, targets of the global ones; every pair of views counts.
    """
    return -jnp.mean(jnp.sum(targets.mean(1)[:, None] * log_probability, axis=-1))


def me_max(log_probability: Float[Array, "*views K"]) -> Scalar:
    """Computes log K - H(mean probability): 0 if the student uses all prototypes equally, log K if it uses one.

    Mean-entropy maximisation, Assran et al. (MSN, arXiv 2204.07141), Eq. 2, shifted by log K.
    """
    num_prototypes = log_probability.shape[-1]
    log_p = log_probability.reshape(-1, num_prototypes)
    log_mean = jax.nn.logsumexp(log_p, axis=0) - jnp.log(jnp.asarray(len(log_p), log_p.dtype))
    return jnp.log(jnp.asarray(num_prototypes, log_p.dtype)) + jnp.sum(jnp.exp(log_mean) * log_mean)


def koleo(embedding: Float[Array, "B D"], group_size: int = 0, epsilon: float = 1e-8) -> Scalar:
    """Computes -mean log(distance to the nearest other sample + epsilon) of L2-normalised embeddings.

    Kozachenko-Leonenko estimate of differential entropy (Sablayrolles et al., arXiv 1806.03198). Neighbours are looked
    for in consecutive groups of `group_size` samples, 0 for the whole batch. As in the released code, epsilon is also
    added to every coordinate of the difference, which keeps the distance of equal samples differentiable.
    """
    batch, size = embedding.shape
    groups = l2_normalise(embedding, epsilon).reshape(-1, group_size or batch, size)
    cosines = jnp.einsum("gid,gjd->gij", groups, groups, precision=jax.lax.Precision.HIGHEST)
    itself = jnp.eye(groups.shape[1], dtype=bool)
    nearest = jnp.argmax(jax.lax.stop_gradient(jnp.where(itself, -jnp.inf, cosines)), axis=-1)
    neighbours = jnp.take_along_axis(groups, nearest[..., None], axis=1)
    square = jnp.sum(jnp.square(groups - neighbours + epsilon), axis=-1)
    return -jnp.mean(jnp.log(jnp.sqrt(square) + epsilon))


def correlation(embedding: Float[Array, "B D"], normalisation: str) -> Float[Array, "D D"]:
    """Computes the matrix Z^T Z / B of one view group's embeddings over the global batch.

    "standardise": Z has mean 0 and variance 1 in every dimension, which makes it the correlation matrix of Barlow Twins
    (arXiv 2103.03230). "l2": the rows of Z have length 1, which makes it their second-moment matrix, of trace 1.
    """
    if normalisation == "l2":
        z = l2_normalise(embedding)
    else:
        centred = embedding - embedding.mean(0)
        z = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=0) + 1e-5)
    return jnp.matmul(z.T, z, precision=jax.lax.Precision.HIGHEST) / len(z)


def off_diagonal(matrix: Float[Array, "D D"]) -> Scalar:
    """Sums the squared off-diagonal entries of a correlation matrix C and divides by D.

    sum_{i != j} C_ij^2 / D is VICReg's covariance term (arXiv 2105.04906, Eq. 4) and, up to 1 / D, Barlow Twins'
    redundancy reduction (arXiv 2103.03230, Eq. 1). SDPN's follow-up (arXiv 2505.13826) names an off-diagonal term among
    its dimension regularisations; of that paper only the abstract could be read here, so the formula is theirs.
    """
    return jnp.sum(jnp.square(matrix - jnp.diag(jnp.diagonal(matrix)))) / len(matrix)


def frobenius(matrix: Float[Array, "D D"]) -> Scalar:
    """Computes the Frobenius norm |C|_F of a correlation matrix C.

    For "l2" it lies between 1 / sqrt(D), dimensions equally used, and 1, all embeddings on one line; its square is the
    mean squared cosine of all pairs, the quantity that uniformity and MMCR-like (arXiv 2303.03307) terms reduce.
    The follow-up (arXiv 2505.13826) reports a Frobenius term as its best; of that paper only the abstract could be read
    here, so this formula is derived from its name and from the papers above.
    """
    return jnp.sqrt(jnp.sum(jnp.square(matrix)) + 1e-12)


def over_view_groups(term: Callable[[Float[Array, "B D"]], Scalar], embedding: Float[Array, "B V D"]) -> Scalar:
    """Sums `term` over the V view groups, each taken alone (paper, Eq. 4)."""
    return jax.vmap(term, in_axes=1)(embedding).sum()
