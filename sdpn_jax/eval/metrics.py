"""Detection metrics of verification trials: miss and false-alarm rates, equal error rate, minimum detection cost."""

import numpy as np
from jaxtyping import Float, Float64, Int
from numpy.typing import ArrayLike

from sdpn_jax.errors import UserError
from sdpn_jax.vectors import unit


def det_points(
    scores: ArrayLike, labels: ArrayLike
) -> tuple[Float64[np.ndarray, " M"], Float64[np.ndarray, " M"], Float64[np.ndarray, " M"]]:
    """Computes miss and false-alarm rates at every distinct threshold; a trial is accepted when score >= threshold.

    Args:
        scores: [N] finite numbers, higher means more alike.
        labels: [N] 1 for a target trial (same speaker), 0 for a nontarget trial.

    Returns:
        thresholds [M], miss [M] and false_alarm [M], float64. The thresholds are the distinct scores, ascending, and
        at last infinity: the first point accepts every trial (0, 1), the last one none (1, 0). Equal scores make one
        point.

    Raises:
        UserError: no target or no nontarget trial, or a score that is not finite.
        ValueError: arrays of different shapes, or labels other than 0 and 1.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(f"scores and labels must be [N] both, not {scores.shape} and {labels.shape}")
    is_target = labels == 1
    if not np.all(is_target | (labels == 0)):
        raise ValueError("labels must be 0 (nontarget) or 1 (target)")
    targets = int(is_target.sum())
    nontargets = len(labels) - targets
    if not targets or not nontargets:
        raise UserError(
            f"{targets:,} target and {nontargets:,} nontarget trials: error rates need at least one of each in the list"
        )
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise UserError(f"{len(bad):,} of {len(scores):,} scores are not finite, first: trial {bad[0] + 1}")

    distinct, group = np.unique(scores, return_inverse=True)
    rejected_targets = _rejected(group[is_target], len(distinct))
    rejected_nontargets = _rejected(group[~is_target], len(distinct))
    return np.append(distinct, np.inf), rejected_targets / targets, (nontargets - rejected_nontargets) / nontargets


def eer(scores: ArrayLike, labels: ArrayLike) -> float:
    """Computes the equal error rate, a fraction in [0, 1].

    It lies on the ROC drawn with straight lines between the neighbouring points of `det_points`: where the line between
    the last point with miss < false alarm and the first one with miss >= false alarm crosses miss = false alarm. No
    convex hull is taken. Arguments and errors as in `det_points`.
    """
    return eer_and_threshold(scores, labels)[0]


def eer_and_threshold(scores: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """Computes the equal error rate and the score threshold that comes closest to it.

    No threshold meets an interpolated EER exactly. The one returned is, of the two neighbouring points, that with the
    smaller |miss - false alarm| (the lower one when they are equally far); it is always one of the scores.
    """
    thresholds, miss, false_alarm = det_points(scores, labels)
    rate, before = crossing(miss, false_alarm)
    gap = np.abs(miss - false_alarm)
    nearest = before if gap[before] <= gap[before + 1] else before + 1
    return rate, float(thresholds[nearest])


def crossing(miss: Float[np.ndarray, " M"], false_alarm: Float[np.ndarray, " M"]) -> tuple[float, int]:
    """Finds where straight lines between a ROC's points meet miss = false alarm: (rate, index of the point before).

    miss [M] rises from 0 to 1, false_alarm [M] falls from 1 to 0, as `det_points` gives them.
    """
    gap = miss - false_alarm  # rises from -1 to 1
    after = int(np.searchsorted(gap, 0.0))
    before = after - 1
    share = -gap[before] / (gap[after] - gap[before])
    return float(miss[before] + share * (miss[after] - miss[before])), before


def min_dcf(scores: ArrayLike, labels: ArrayLike, p_target: float, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
    """Computes the minimum detection cost over all thresholds, normalised: accepting all or none costs 1.

    cost = c_miss * p_target * miss + c_fa * (1 - p_target) * false_alarm, divided by
    min(c_miss * p_target, c_fa * (1 - p_target)), as in the NIST speaker recognition evaluation plans (2016 and later).
    Arguments and errors as in `det_points`; ValueError as well for p_target outside (0, 1) and costs not above 0.
    """
    if not 0 < p_target < 1:
        raise ValueError(f"p_target must be between 0 and 1, not {p_target}")
    if c_miss <= 0 or c_fa <= 0:
        raise ValueError(f"costs must be positive, not c_miss={c_miss} and c_fa={c_fa}")
    _, miss, false_alarm = det_points(scores, labels)
    weight_miss, weight_fa = c_miss * p_target, c_fa * (1 - p_target)
    return float(np.min(weight_miss * miss + weight_fa * false_alarm) / min(weight_miss, weight_fa))


def _rejected(group: Int[np.ndarray, " N"], groups: int) -> Int[np.ndarray, " {groups}+1"]:
    """How many members lie below each of the thresholds: [groups + 1] from 0 to all of them."""
    return np.concatenate([[0], np.cumsum(np.bincount(group, minlength=groups))])


def crop_retrieval(embeddings: ArrayLike, utterances: ArrayLike) -> dict[str, float]:
    """Measures how well crops find the other crops of their utterance, without speaker labels.

    Args:
        embeddings: [M, D] of crops; compared by cosine.
        utterances: [M] the number of the utterance that each crop is from.

    Returns:
        crop_retrieval_percent: of how many crops the nearest other crop is of the same utterance.
        crop_eer_percent: equal error rate of all pairs, those of one utterance being the targets.

    Memory grows with the square of M: 4,000 crops take half a gigabyte.
    """
    embeddings, utterances = np.asarray(embeddings, np.float64), np.asarray(utterances)
    units = unit(embeddings)
    cosines = units @ units.T
    same = utterances[:, None] == utterances
    pairs = np.triu_indices(len(utterances), 1)
    nearest = np.argmax(np.where(np.eye(len(utterances), dtype=bool), -np.inf, cosines), axis=1)
    return {
        "crop_retrieval_percent": 100 * float(np.mean(utterances[nearest] == utterances)),
        "crop_eer_percent": 100 * eer(cosines[pairs], same[pairs]),
    }
