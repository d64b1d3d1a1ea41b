"""Against scikit-learn, exact rational arithmetic by the definition, and lists worked by hand."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import roc_curve

from sdpn_jax.errors import UserError
from sdpn_jax.eval import metrics


def exact_points(scores, labels):
    """(threshold, miss, false alarm) by counting, ascending thresholds, in rational numbers."""
    targets = [s for s, label in zip(scores, labels, strict=True) if label]
    nontargets = [s for s, label in zip(scores, labels, strict=True) if not label]
    return [
        (
            threshold,
            Fraction(sum(s < threshold for s in targets), len(targets)),
            Fraction(sum(s >= threshold for s in nontargets), len(nontargets)),
        )
        for threshold in [*sorted(set(scores)), float("inf")]
    ]


def exact_eer(scores, labels):
    points = exact_points(scores, labels)
    for (_, miss_a, fa_a), (_, miss_b, fa_b) in zip(points, points[1:], strict=False):
        if miss_a < fa_a and miss_b >= fa_b:
            way = (fa_a - miss_a) / (fa_a - miss_a + miss_b - fa_b)
            return miss_a + way * (miss_b - miss_a)
    raise AssertionError("the curve always crosses")


@st.composite
def trial_lists(draw):
    # Few distinct values, so that ties within and between the classes are common.
    score = st.one_of(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), st.floats(-1, 1, width=32))
    pairs = draw(st.lists(st.tuples(score, st.integers(0, 1)), max_size=25))
    pairs += [(draw(score), 1), (draw(score), 0)]
    pairs = draw(st.permutations(pairs))
    return [s for s, _ in pairs], [label for _, label in pairs]


@settings(max_examples=200, deadline=None)
@given(trial_lists())
def test_points_and_eer_equal_the_definition(trials):
    thresholds, miss, false_alarm = metrics.det_points(*trials)
    expected = exact_points(*trials)
    assert list(zip(thresholds, miss, false_alarm, strict=True)) == [(t, float(m), float(f)) for t, m, f in expected]
    assert metrics.eer(*trials) == pytest.approx(float(exact_eer(*trials)), abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(trial_lists())
def test_threshold_is_a_score_whose_rates_are_nearest(trials):
    rate, threshold = metrics.eer_and_threshold(*trials)
    points = exact_points(*trials)
    gap = {t: abs(m - f) for t, m, f in points}
    assert threshold in trials[0]
    assert gap[threshold] == min(gap.values())
    assert rate == metrics.eer(*trials)


@settings(max_examples=200, deadline=None)
@given(trial_lists(), st.floats(0.001, 0.999), st.floats(0.1, 10), st.floats(0.1, 10))
def test_min_dcf_equals_the_definition(trials, p_target, c_miss, c_fa):
    costs = [c_miss * p_target * float(m) + c_fa * (1 - p_target) * float(f) for _, m, f in exact_points(*trials)]
    expected = min(costs) / min(c_miss * p_target, c_fa * (1 - p_target))
    assert metrics.min_dcf(*trials, p_target, c_miss, c_fa) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert metrics.min_dcf(*trials, p_target, c_miss, c_fa) <= 1 + 1e-12


@pytest.mark.parametrize("digits", [2, 16])
def test_points_equal_scikit_learn(digits):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 3000)
    scores = np.round(rng.normal(labels * 1.5, 1.0), digits)
    thresholds, miss, false_alarm = metrics.det_points(scores, labels)
    fpr, tpr, expected = roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_array_equal(thresholds, expected[::-1])
    np.testing.assert_allclose(false_alarm, fpr[::-1], atol=1e-14)
    np.testing.assert_allclose(miss, 1 - tpr[::-1], atol=1e-14)
    crossing = brentq(lambda x: 1 - x - interp1d(fpr, tpr)(x), 0, 1)
    assert metrics.eer(scores, labels) == pytest.approx(crossing, abs=1e-9)


@pytest.mark.parametrize(
    ("scores", "labels", "rate", "threshold"),
    [
        ([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0], 0.0, 0.8),  # perfect
        ([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1], 1.0, 0.8),  # inverted
        ([0.5, 0.5, 0.5], [1, 0, 0], 0.5, 0.5),  # all tied: half way between accepting all and none
        ([0.9, 0.4, 0.6, 0.1], [1, 1, 0, 0], 0.5, 0.6),
        # One target, ranked third of five: (miss 0, fa 1/2) to (miss 1, fa 1/2), crossed at 1/2.
        ([0.5, 0.9, 0.7, 0.3, 0.1], [1, 0, 0, 0, 0], 0.5, 0.5),
        # Tie of one target and one nontarget: from (0, 1/2) to (1/2, 0), crossed at 1/4.
        ([3, 2, 2, 1], [1, 1, 0, 0], 0.25, 2.0),
    ],
)
def test_hand_worked(scores, labels, rate, threshold):
    assert metrics.eer_and_threshold(scores, labels) == (pytest.approx(rate, abs=1e-15), threshold)


def test_min_dcf_by_hand():
    scores, labels = [0.9, 0.8, 0.7, 0.3, 0.2, 0.1], [1, 0, 1, 0, 0, 0]
    # Accepting 0.9 alone: miss 1/2, no false alarm; accepting down to 0.7: no miss, one false alarm of four.
    assert metrics.min_dcf(scores, labels, 0.05) == pytest.approx(0.5)
    assert metrics.min_dcf(scores, labels, 0.9) == pytest.approx(0.1 * 0.25 / 0.1)
    assert metrics.min_dcf(scores, labels, 0.05, c_miss=100) == pytest.approx(0.95 * 0.25 / 0.95)
    assert metrics.min_dcf(scores, labels, 0.5, c_fa=1.5) == pytest.approx(0.375)
    assert metrics.min_dcf([0, 0, 1], [1, 1, 0], 0.01) == 1.0


@pytest.mark.parametrize("labels", [[1, 1], [0, 0], []])
def test_one_kind_of_trial_only(labels):
    with pytest.raises(UserError, match="at least one of each"):
        metrics.eer([0.1, 0.2][: len(labels)], labels)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite(bad):
    with pytest.raises(UserError, match="1 of 3 scores are not finite, first: trial 2"):
        metrics.min_dcf([0.0, bad, 1.0], [0, 1, 1], 0.01)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="0 .nontarget. or 1"):
        metrics.eer([0.1, 0.2, 0.3], [0, 1, 2])
    with pytest.raises(ValueError, match="must be"):
        metrics.eer([0.1, 0.2], [0, 1, 1])
    for p_target in (0, 1, -0.1):
        with pytest.raises(ValueError, match="p_target"):
            metrics.min_dcf([0.1, 0.2], [0, 1], p_target)
    with pytest.raises(ValueError, match="costs"):
        metrics.min_dcf([0.1, 0.2], [0, 1], 0.1, c_miss=0)


def test_crop_retrieval():
    """Three utterances in the plane; the third one's crops lie apart, each beside another utterance's."""
    degrees = np.radians([0, 10, 90, 100, 13, 87.5])
    crops = np.stack([np.cos(degrees), np.sin(degrees)], axis=1) * [[1.0], [7.0], [1.0], [2.0], [1.0], [3.0]]
    found = metrics.crop_retrieval(crops, [0, 0, 1, 1, 2, 2])
    # Nearest: 0 -> 10 yes, 10 -> 13 no, 90 -> 87.5 no, 100 -> 90 yes, 13 -> 10 no, 87.5 -> 90 no.
    assert found["crop_retrieval_percent"] == pytest.approx(100 * 2 / 6)
    cosines = [np.cos(degrees[i] - degrees[j]) for i in range(6) for j in range(i)]
    labels = [i // 2 == j // 2 for i in range(6) for j in range(i)]
    assert found["crop_eer_percent"] == pytest.approx(100 * metrics.eer(cosines, labels))
    assert metrics.crop_retrieval(crops[:4], [0, 0, 1, 1]) == {"crop_retrieval_percent": 100, "crop_eer_percent": 0}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_crop_retrieval_is_that_of_all_pairs(tied, seed):
    """Against a loop over all pairs; crops along axes have cosines of -1, 0 and 1 alone."""
    rng = np.random.default_rng(seed)
    utterances = np.repeat(np.arange(10), 4)
    crops = np.eye(4)[rng.integers(4, size=40)] * rng.choice([-1, 1], (40, 1)) if tied else rng.normal(size=(40, 3))
    units = crops / np.linalg.norm(crops, axis=1, keepdims=True)
    pairs = [(i, j) for i in range(40) for j in range(i + 1, 40)]
    scores = [float(units[i] @ units[j]) for i, j in pairs]
    found = metrics.crop_retrieval(crops, utterances)
    expected = metrics.eer(scores, [utterances[i] == utterances[j] for i, j in pairs])
    assert found["crop_eer_percent"] == pytest.approx(100 * expected)
    nearest = [max((j for j in range(40) if j != i), key=lambda j: round(units[i] @ units[j], 9)) for i in range(40)]
    if not tied:
        assert found["crop_retrieval_percent"] == pytest.approx(100 * np.mean(utterances[nearest] == utterances))
