"""A domain's own recordings as trials, with labels or without, and the calibration that they give."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64, Int

from sdpn_jax.decision import Calibration
from sdpn_jax.errors import UserError
from sdpn_jax.eval import calibration, metrics
from sdpn_jax.vectors import unit

MOST = 2000  # embeddings compared, each with all others
FEWEST = 5  # speakers or recordings
DIVISIONS = 5  # of the speakers into those that fit and those that judge


def groups_of(names: Sequence[str]) -> Int[np.ndarray, " N"]:
    """Numbers the speakers (or recordings) that embeddings are of. Raises UserError for fewer than FEWEST of them."""
    groups = np.unique(np.asarray(names), return_inverse=True)[1]
    if len({*groups.tolist()}) < FEWEST:
        raise UserError(f"{len({*groups.tolist()})} speakers are too few to find a threshold: give {FEWEST} or more")
    return groups


def some(groups: Int[np.ndarray, " N"]) -> Int[np.ndarray, " M"]:
    """Chooses rows of whole groups, in random order, until they are MOST: [M] of the N rows."""
    order = np.random.default_rng(0).permutation(groups.max() + 1)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    rows = np.argsort(place[groups], kind="stable")
    return np.sort(rows[:MOST])


def trials(
    embeddings: Float[np.ndarray, "N D"], groups: Int[np.ndarray, " N"]
) -> tuple[Float64[np.ndarray, " M"], Int[np.ndarray, " M"]]:
    """Computes the cosines of all pairs of embeddings, and 1 for pairs of one group, 0 for others."""
    units = unit(embeddings)
    pairs = np.triu_indices(len(units), 1)
    return (units @ units.T)[pairs], (groups[:, None] == groups)[pairs].astype(int)


def fit(scores: Float[np.ndarray, " M"], labels: Int[np.ndarray, " M"], prior: float) -> Calibration:
    """Fits the calibration at a prior, as `calibration.fit` does.

    Raises UserError where pairs of one group are no more alike than others.
    """
    scale, offset = calibration.fit(scores, labels, prior)
    if not scale > 0:
        raise UserError("recordings of one speaker are no more alike to this model than others: it is of no use here")
    return Calibration(scale, offset, prior)


def cost(threshold: float, scores: Float[np.ndarray, " M"], labels: Int[np.ndarray, " M"], prior: float) -> float:
    """Computes the detection cost of a threshold, normalised as `metrics.min_dcf` with costs of 1."""
    return calibration.actual_dcf(scores - threshold + np.log((1 - prior) / prior), labels, prior)


def held_out_costs(
    embeddings: Float[np.ndarray, "N D"], groups: Int[np.ndarray, " N"], prior: float, before: float | None
) -> dict[str, float]:
    """Measures the detection cost of thresholds on speakers that they were not found with.

    The mean over DIVISIONS random divisions of the speakers into two halves, of which either fits and the other judges.
    Returns {"after"; "least": of any threshold; "before": of the threshold given, if one is}; empty where halves would
    be of fewer than FEWEST speakers.
    """
    count = groups.max() + 1
    if count < 2 * FEWEST:
        return {}
    rows = []
    for division in range(DIVISIONS):
        first = np.isin(groups, np.random.default_rng(division).permutation(count)[: count // 2])
        halves = [trials(embeddings[part], groups[part]) for part in (first, ~first)]
        for fitted, judged in (halves, halves[::-1]):
            row = {
                "after": cost(fit(*fitted, prior).threshold(), *judged, prior),
                "least": metrics.min_dcf(*judged, prior),
            }
            rows.append(row if before is None else row | {"before": cost(before, *judged, prior)})
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
