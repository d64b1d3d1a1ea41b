"""Is a run alive: signs of collapse in a batch, the watch over them, and the stop when a number is not finite."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float

from sdpn_jax.errors import UserError
from sdpn_jax.training import losses

RECOVERY_MARGIN = 1.5  # of the thresholds of collapse, beyond which a run counts as recovered


def health(
    embedding: Float[Array, "B V D"], targets: Float[Array, "B G K"], log_probability: Float[Array, "B V K"]
) -> dict[str, Float[Array, "..."]]:
    """Computes signs of health or collapse of one batch.

    All scalars but `mean_target` [K], from which the prototypes used by many batches together can be counted.
    `prototypes_in_use` is the perplexity of the mean target, between 1 and K. `targets_told_apart` is exp(entropy of
    the mean target - mean entropy of a target), the perplexity of the information that a target holds about its
    utterance: 1 when all utterances have the same target, be it one prototype or all of them equally, at most B.
    `agreement` is the share of local views whose likeliest prototype is the teacher's. The rest is of `spread`.
    """
    entropy = lambda p: -jnp.sum(jax.scipy.special.xlogy(p, p), axis=-1)  # noqa: E731
    mean_target = targets.mean((0, 1))
    in_use, of_each = entropy(mean_target), jnp.mean(entropy(targets))
    agree = jnp.argmax(targets.mean(1), -1)[:, None] == jnp.argmax(log_probability, -1)
    return {
        "mean_target": mean_target,
        "prototypes_in_use": jnp.exp(in_use),
        "targets_told_apart": jnp.exp(in_use - of_each),
        "target_entropy": of_each,
        "target_max": jnp.mean(targets.max(-1)),
        "agreement": jnp.mean(agree.astype(targets.dtype)),
        **spread(embedding),
    }


def spread(embedding: Float[Array, "B V D"]) -> dict[str, Float[Array, ""]]:
    """Computes how far apart the embeddings of one batch are.

    `embedding_std` is the mean over dimensions of the standard deviation of L2-normalised embeddings times sqrt(D) (1:
    spread evenly over the sphere, 0: all equal). `effective_rank` is the participation ratio tr(C)^2 / |C|_F^2 of their
    covariance C, between 1 and min(B V - 1, D). `embedding_cosine` and `embedding_cosine_max` are of pairs of the same
    view group, mean and mean over embeddings of the nearest other one.
    """
    normalised = losses.l2_normalise(embedding)
    flat = normalised.reshape(-1, normalised.shape[-1])
    centred = flat - flat.mean(0)
    gram = centred.T @ centred if flat.shape[0] > flat.shape[1] else centred @ centred.T
    batch = normalised.shape[0]
    cosines = jnp.einsum("ivd,jvd->vij", normalised, normalised)
    others = ~jnp.eye(batch, dtype=bool)
    return {
        "embedding_std": jnp.mean(jnp.std(flat, axis=0)) * flat.shape[1] ** 0.5,
        "embedding_cosine": jnp.mean(cosines, where=others),
        "embedding_cosine_max": jnp.mean(jnp.max(cosines, axis=-1, where=others, initial=-1.0)),
        "effective_rank": jnp.square(jnp.trace(gram)) / jnp.maximum(jnp.sum(jnp.square(gram)), 1e-30),
    }


def looks_collapsed(metrics: dict[str, float], margin: float = 1.0) -> str | None:
    """Says why these metrics are those of a collapsed run; None for a healthy one.

    Collapsed: all utterances have (nearly) one target, fewer than 1.5 of them told apart; or the embeddings have all
    but one direction, mean cosine above 0.95 or effective rank below 1.5. At initialisation every network looks so
    (mean cosine 0.99), hence a judgement only after the warm-up of the learning rate. `margin` moves the thresholds
    away from collapse by this factor.
    """
    if metrics.get("targets_told_apart", np.inf) < 1.5 * margin:  # without SDPN there are no targets
        return f"all utterances have the same target ({metrics['targets_told_apart']:.2f} told apart)"
    if 1 - metrics["embedding_cosine"] < 0.05 * margin:
        return f"all embeddings point the same way (mean cosine {metrics['embedding_cosine']:.3f})"
    if metrics["effective_rank"] < 1.5 * margin:
        return f"all embeddings lie on one line (effective rank {metrics['effective_rank']:.2f})"
    return None


class CollapseWatch:
    """Warns when a run collapses after its warm-up, and says so when it has clearly recovered.

    Recovered means well clear of the thresholds, so that a run on the edge does not warn at every interval.
    """

    def __init__(self, warmup_steps: int):
        self._warmup_steps, self._collapsed = warmup_steps, False

    def look(self, step: int, row: dict[str, float]) -> None:
        """Judges the mean metrics of one log interval that ended at `step`."""
        if step <= self._warmup_steps:
            return
        why = looks_collapsed(row)
        if why and not self._collapsed:
            logging.warning('step %d: the run looks collapsed, %s. See "Collapse" in docs/training.md', step, why)
            self._collapsed = True
        elif self._collapsed and not looks_collapsed(row, margin=RECOVERY_MARGIN):
            logging.info("step %d: the run does not look collapsed any more", step)
            self._collapsed = False


def stop_if_not_finite(metrics: Mapping[str, np.ndarray | np.number | float], step: int, checkpoints) -> None:
    """Stops a run whose metrics are not all finite, naming them and the newest checkpoint in a UserError.

    They include the norms of gradient, update and parameters, so that a step with a finite loss and an infinite
    gradient counts as broken too. checkpoints: the run's manager, waited for so that its newest step is complete.
    """
    if all(np.isfinite(value).all() for value in metrics.values()):
        return
    names = [name for name, value in metrics.items() if name != "mean_target" and not np.isfinite(value).all()]
    culprits = ", ".join(f"{name} = {metrics[name]}" for name in names) or "the mean target"
    checkpoints.wait_until_finished()
    newest = checkpoints.latest_step()
    back = "no checkpoint was made yet" if newest is None else f"the newest checkpoint is of step {newest}"
    raise UserError(
        f"step {step}: not all numbers are finite ({culprits}); nothing of it was saved, {back}. "
        "Lower learning_rate or look at the data"
    )
