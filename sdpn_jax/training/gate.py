"""Distrust of labels: a gate between the losses of likely right and likely wrong labels, found without knowing them.

Dynamic loss gate (Han et al., arXiv 2208.01928): the log losses of an epoch are a mixture of two Gaussians, that of
the labels which the network agrees with and that of the others.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

ITERATIONS = 100
LEAST_LOSS = 1e-6  # whose logarithm stands for those of all smaller ones
LEAST_DEVIATION = 1e-2  # of log losses


def log_loss(loss: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Computes log(loss), from log(LEAST_LOSS) up."""
    return jnp.log(jnp.maximum(loss, LEAST_LOSS))


def fit(values: Float[Array, " N"], known: Bool[Array, " N"]) -> tuple[Array, Array, Array]:
    """Fits two Gaussians to the `known` values by expectation maximisation: (weights, means, deviations), [2] each.

    The lower mean comes first. Begins with the halves below and above the middle between the extremes.
    """
    low, high = jnp.min(values, where=known, initial=jnp.inf), jnp.max(values, where=known, initial=-jnp.inf)
    upper = (values > (low + high) / 2).astype(values.dtype)

    def maximise(of_upper: Float[Array, " N"]) -> tuple[Array, Array, Array]:
        share = jnp.stack([1 - of_upper, of_upper]) * known  # [2, N]
        total = jnp.maximum(share.sum(1), 1e-9)
        means = (share @ jnp.where(known, values, 0.0)) / total
        spread = jnp.sum(share * jnp.square(jnp.where(known, values, 0.0) - means[:, None]), axis=1)
        return total / total.sum(), means, jnp.maximum(jnp.sqrt(spread / total), LEAST_DEVIATION)

    def step(_, of_upper: Float[Array, " N"]) -> Float[Array, " N"]:
        log_p = _log_densities(values, *maximise(of_upper))
        return jax.nn.sigmoid(log_p[1] - log_p[0])

    weights, means, deviations = maximise(jax.lax.fori_loop(0, ITERATIONS, step, upper))
    order = jnp.argsort(means)
    return weights[order], means[order], deviations[order]


def _log_densities(values: Array, weights: Array, means: Array, deviations: Array) -> Array:
    """log(weight * normal density) of both components, but for a constant: [2, ...] of values [...]."""
    expand = (slice(None), *[None] * jnp.ndim(values))
    z = (values - means[expand]) / deviations[expand]
    return jnp.log(jnp.maximum(weights, 1e-30))[expand] - jnp.log(deviations)[expand] - jnp.square(z) / 2


def threshold(weights: Float[Array, "2"], means: Float[Array, "2"], deviations: Float[Array, "2"]) -> Float[Array, ""]:
    """Finds the value between the means where both Gaussians are equally likely; infinity where there is none.

    Without one the components do not tell anything apart, and every label passes. By bisection of the difference of
    the log densities, which falls from mean to mean.
    """
    difference = lambda x: jnp.subtract(*_log_densities(x, weights, means, deviations))  # noqa: E731

    def halve(_, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (ends[0] + ends[1]) / 2
        lower = difference(middle) > 0
        return jnp.where(lower, middle, ends[0]), jnp.where(lower, ends[1], middle)

    low, high = jax.lax.fori_loop(0, 60, halve, (means[0], means[1]))
    told_apart = (difference(means[0]) > 0) & (difference(means[1]) < 0)
    return jnp.where(told_apart, (low + high) / 2, jnp.inf)


def gate_of(losses: Float[Array, " N"]) -> Float[Array, ""]:
    """Finds the log loss up to which labels are trusted, from the losses of an epoch; negative ones are not known."""
    known = losses >= 0
    weights, means, deviations = fit(log_loss(losses), known)
    both = jnp.min(weights) * known.sum() >= 1  # not a component of nobody
    return jnp.where(both, threshold(weights, means, deviations), jnp.inf)


UNKNOWN = np.float32(-1.0)  # the loss of an utterance that was not in a batch yet
