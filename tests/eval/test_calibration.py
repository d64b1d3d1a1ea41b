"""Against scikit-learn, SciPy and by hand."""

import math

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from sdpn_jax.eval import calibration, metrics


@st.composite
def lists(draw):
    score = st.integers(-400, 400).map(lambda x: x / 100)  # scikit-learn merges scores that are nearly equal
    pairs = draw(st.lists(st.tuples(score, st.integers(0, 1)), max_size=25)) + [(draw(score), 1), (draw(score), 0)]
    return np.array([s for s, _ in pairs]), np.array([label for _, label in pairs])


def bits(llrs, labels):
    """Cllr, trial by trial."""
    targets = [math.log2(1 + math.exp(-x)) for x, label in zip(llrs, labels, strict=True) if label]
    nontargets = [math.log2(1 + math.exp(x)) for x, label in zip(llrs, labels, strict=True) if not label]
    return (sum(targets) / len(targets) + sum(nontargets) / len(nontargets)) / 2


@settings(max_examples=200, deadline=None)
@given(lists())
def test_cllr(trials):
    assert calibration.cllr(*trials) == pytest.approx(bits(*trials), rel=1e-9)


@settings(max_examples=200, deadline=None)
@given(lists(), st.floats(0.1, 3), st.floats(-2, 2))
def test_min_cllr_is_that_of_isotonic_regression_and_no_rising_map_is_better(trials, scale, offset):
    scores, labels = trials
    share = np.where(labels == 1, 0.5 / np.sum(labels == 1), 0.5 / np.sum(labels == 0))
    posterior = IsotonicRegression().fit_transform(scores, labels, sample_weight=share)
    right = np.where(labels == 1, posterior, 1 - posterior)
    expected = -np.sum(share * np.log2(right))
    actual = calibration.min_cllr(scores, labels)
    assert actual == pytest.approx(expected, abs=1e-9)
    assert -1e-12 <= actual <= min(1, calibration.cllr(scale * scores + offset, labels)) + 1e-9


def test_cllr_by_hand():
    assert calibration.cllr([0, 0], [1, 0]) == pytest.approx(1)
    assert calibration.cllr([math.log(3), -math.log(3)], [1, 0]) == pytest.approx(math.log2(4 / 3))
    assert calibration.cllr([1000, -1000], [1, 0]) == 0
    assert calibration.cllr([-1000, -1000], [1, 0]) == pytest.approx(500 / math.log(2))
    assert calibration.min_cllr([2, 1], [1, 0]) == 0
    assert calibration.min_cllr([1, 2], [1, 0]) == pytest.approx(1)


def minimised(scores, labels, p_target):
    """(scale, offset) that minimise the weighted cross-entropy in float64, by a general method from the formula."""
    scores, sign = np.asarray(scores, np.float64), np.where(labels, 1.0, -1.0)
    centre, spread = scores.mean(), scores.std()
    weight = np.where(labels, p_target / np.sum(labels), (1 - p_target) / np.sum(~labels))
    log_odds = math.log(p_target / (1 - p_target))

    def cross_entropy(parameters):
        margin = sign * (parameters[0] * (scores - centre) / spread + parameters[1] + log_odds)
        return np.sum(weight * np.logaddexp(0, -margin)) + 1e-6 * parameters[0] ** 2

    options = {"xatol": 1e-10, "fatol": 1e-16, "maxiter": 10_000, "maxfev": 10_000}
    scale, offset = scipy.optimize.minimize(cross_entropy, [1.0, 0.0], method="Nelder-Mead", options=options).x
    return scale / spread, offset - scale * centre / spread


@pytest.mark.parametrize("p_target", [0.5, 0.05])
@pytest.mark.parametrize("distance", [0.1, 1.0, 3.0])
def test_fit_minimises_the_cross_entropy(p_target, distance):
    rng = np.random.default_rng(0)
    labels = rng.random(2000) < 0.2
    scores = 0.3 * rng.normal(size=2000) + 0.3 * distance * labels
    np.testing.assert_allclose(
        calibration.fit(scores, labels, p_target), minimised(scores, labels, p_target), rtol=1e-5, atol=1e-6
    )


def test_calibrated_scores_are_worth_almost_what_they_could_be():
    rng = np.random.default_rng(1)
    lists = [(np.concatenate([rng.normal(0.6, 0.1, 500), rng.normal(0.2, 0.1, 5000)]), [1] * 500 + [0] * 5000)] * 2
    scale, offset = calibration.fit(*lists[0])
    llrs, labels = scale * lists[1][0] + offset, lists[1][1]
    assert calibration.cllr(llrs, labels) < calibration.min_cllr(llrs, labels) + 0.02
    assert calibration.actual_dcf(llrs, labels, 0.05) < metrics.min_dcf(llrs, labels, 0.05) + 0.05


def test_fit_of_separated_scores_is_finite():
    assert np.all(np.isfinite(calibration.fit([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1])))


@settings(max_examples=200, deadline=None)
@given(lists(), st.floats(0.01, 0.99), st.floats(0.1, 10))
def test_actual_dcf_by_counting(trials, p_target, c_miss):
    llrs, labels = trials
    threshold = math.log((1 - p_target) / (c_miss * p_target))
    miss = np.mean([x < threshold for x, label in zip(llrs, labels, strict=True) if label])
    false_alarm = np.mean([x >= threshold for x, label in zip(llrs, labels, strict=True) if not label])
    cost = c_miss * p_target * miss + (1 - p_target) * false_alarm
    actual = calibration.actual_dcf(llrs, labels, p_target, c_miss)
    assert actual == pytest.approx(cost / min(c_miss * p_target, 1 - p_target))
    assert actual >= metrics.min_dcf(llrs, labels, p_target, c_miss) - 1e-9
