"""Score normalisation with unlabelled speech: mean subtraction, S-norm and AS-norm, in blocks of bounded memory."""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Float32, Int

from sdpn_jax.errors import UserError
from sdpn_jax.vectors import unit

BLOCK_BYTES = 2**28  # of one block of scores between trial utterances and the cohort
Embeddings: TypeAlias = Float[np.ndarray, "N D"]
Cohort: TypeAlias = Float[np.ndarray, "C D"]
Statistics: TypeAlias = tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]  # mean and deviation


def subtract_mean(embeddings: Embeddings, cohort: Cohort) -> Embeddings:
    """Scales embeddings to unit length and subtracts the mean of the cohort's, also of unit length."""
    return _unit32(embeddings) - _unit32(cohort).mean(0, dtype=np.float64).astype(np.float32)


def cohort_statistics(embeddings: Embeddings, cohort: Cohort, top: int | None = None) -> Statistics:
    """Computes mean and standard deviation of each embedding's cosines with its `top` nearest of the cohort.

    None: with the whole cohort. An embedding that is itself in the cohort meets itself there: leave test speech out of
    the cohort. Raises UserError when the cohort has fewer than two embeddings or fewer than `top`.
    """
    if len(cohort) < max(2, top or 0):
        raise UserError(
            f"the cohort has {len(cohort):,} embeddings, too few for the {max(2, top or 0):,} nearest of them"
        )
    if top is not None and top < 2:
        raise UserError(f"a cohort of the {top} nearest has no standard deviation: choose 2 or more")
    cohort, mean, deviation = _unit32(cohort), np.empty(len(embeddings)), np.empty(len(embeddings))
    for rows in _blocks(len(embeddings), 4 * len(cohort)):
        scores = _unit32(embeddings[rows]) @ cohort.T
        if top is not None and top < len(cohort):
            scores = np.partition(scores, -top, axis=1)[:, -top:]
        mean[rows] = scores.mean(1, dtype=np.float64)
        deviation[rows] = scores.std(1, dtype=np.float64)
    return mean, np.maximum(deviation, 1e-6)


def normalise(
    scores: Float[np.ndarray, " trials"],
    enrol: Int[np.ndarray, " trials"],
    test: Int[np.ndarray, " trials"],
    statistics: Statistics,
) -> Float[np.ndarray, " trials"]:
    """Normalises the cosines of trials between the embeddings in rows `enrol` and `test`.

    score = ((s - mean_e) / deviation_e + (s - mean_t) / deviation_t) / 2, with the `statistics` of cohort_statistics:
    S-norm for those of the whole cohort (Kenny, "Bayesian speaker verification with heavy-tailed priors", Odyssey
    2010), adaptive S-norm for those of the nearest (Matejka et al., "Analysis of score normalization in multilingual
    speaker recognition", Interspeech 2017, AS-norm1).
    """
    mean, deviation = statistics
    return ((scores - mean[enrol]) / deviation[enrol] + (scores - mean[test]) / deviation[test]) / 2


def _unit32(embeddings: Embeddings) -> Float32[np.ndarray, "N D"]:
    """Of length 1, in float32: a cohort of tens of thousands is multiplied with every utterance."""
    return unit(embeddings).astype(np.float32)


def _blocks(rows: int, row_bytes: int) -> Iterator[slice]:
    size = max(1, BLOCK_BYTES // row_bytes)
    for start in range(0, rows, size):
        yield slice(start, start + size)
