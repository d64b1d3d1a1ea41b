"""From scores to log-likelihood ratios: an affine map fitted on one list, applied to another, and what it is worth."""

import numpy as np
import scipy.optimize
from numpy.typing import ArrayLike
from scipy.special import logit

from sdpn_jax.eval.metrics import det_points

PULL = 1e-6  # weight of the squared scale beside the mean cross-entropy


def fit(scores: ArrayLike, labels: ArrayLike, p_target: float = 0.5) -> tuple[float, float]:
    """Fits llr = scale * score + offset by minimising the cross-entropy at prior `p_target`; returns (scale, offset).

    Logistic regression with targets weighted p_target and nontargets 1 - p_target (Brümmer and du Preez, "Application
    independent evaluation of speaker detection", 2006). Scores that separate the classes perfectly would have no finite
    scale: a pull on the squared scale, of standardised scores, keeps it finite. Errors as in `det_points`.
    """
    det_points(scores, labels)  # for its errors
    scores, is_target = np.asarray(scores, np.float64), np.asarray(labels) == 1
    centre, spread = scores.mean(), max(scores.std(), 1e-12)
    weight = np.where(is_target, p_target / is_target.sum(), (1 - p_target) / (~is_target).sum())
    from sklearn.linear_model import LogisticRegression  # which takes a second

    # It minimises scale^2 / 2 + C * cross-entropy, and its intercept holds the prior's log-odds too.
    model = LogisticRegression(C=0.5 / PULL, solver="newton-cholesky", tol=1e-10, max_iter=1000)
    model.fit(((scores - centre) / spread)[:, None], is_target, sample_weight=weight)
    scale, offset = float(model.coef_[0, 0]), float(np.ravel(model.intercept_)[0]) - float(logit(p_target))
    return float(scale / spread), float(offset - scale * centre / spread)


def cllr(llrs: ArrayLike, labels: ArrayLike) -> float:
    """Computes the cost of log-likelihood ratios in bits; knowing nothing costs 1 (Brümmer and du Preez, 2006, Eq. 17).

    Mean of log2(1 + 1 / lr) over targets and of log2(1 + lr) over nontargets, averaged. Errors as in `det_points`.
    """
    det_points(llrs, labels)  # for its errors
    llrs, is_target = np.asarray(llrs, np.float64), np.asarray(labels) == 1
    of_targets, of_nontargets = np.logaddexp(0, -llrs[is_target]).mean(), np.logaddexp(0, llrs[~is_target]).mean()
    return float((of_targets + of_nontargets) / (2 * np.log(2)))


def min_cllr(scores: ArrayLike, labels: ArrayLike) -> float:
    """Computes the smallest `cllr` that a rising map of the scores can reach; errors as in `det_points`.

    The map is an isotonic regression (pool adjacent violators; Brümmer and du Preez, 2006, section 7).
    """
    thresholds, miss, false_alarm = det_points(scores, labels)
    targets, nontargets = np.diff(miss), -np.diff(false_alarm)  # the share of each class that has each distinct score
    posterior = scipy.optimize.isotonic_regression(targets / (targets + nontargets), weights=targets + nontargets).x
    with np.errstate(divide="ignore", invalid="ignore"):  # posteriors of 0 and 1 cost nothing where they are right
        cost = np.where(targets > 0, targets * -np.log2(posterior), 0).sum()
        cost += np.where(nontargets > 0, nontargets * -np.log2(1 - posterior), 0).sum()
    return float(cost / 2)


def actual_dcf(llrs: ArrayLike, labels: ArrayLike, p_target: float, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
    """Computes the detection cost of deciding by log-likelihood ratios, normalised as in `metrics.min_dcf`.

    The threshold is Bayes': log(c_fa (1 - p_target) / (c_miss p_target)). Errors as in `min_dcf`.
    """
    if not 0 < p_target < 1:
        raise ValueError(f"p_target must be between 0 and 1, not {p_target}")
    det_points(llrs, labels)  # for its errors
    llrs, is_target = np.asarray(llrs, np.float64), np.asarray(labels) == 1
    weight_miss, weight_fa = c_miss * p_target, c_fa * (1 - p_target)
    accepted = llrs >= np.log(weight_fa / weight_miss)
    cost = weight_miss * np.mean(~accepted[is_target]) + weight_fa * np.mean(accepted[~is_target])
    return float(cost / min(weight_miss, weight_fa))
