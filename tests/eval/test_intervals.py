"""The weights of a draw against trials that are really repeated; intervals and p-values on made-up systems."""

import numpy as np
import pytest

from sdpn_jax.eval import intervals, metrics


def test_speakers_from_target_trials():
    """a-b and b-c are one speaker, d-e another, f nobody's."""
    enrol, test, labels = list("abdaf"), list("bceda"), np.array([1, 1, 1, 0, 0])
    a, b = intervals.speakers_of(enrol, test, labels)
    number = dict(zip([*enrol, *test], [*a, *b], strict=True))
    assert number["a"] == number["b"] == number["c"]
    assert number["d"] == number["e"]
    assert len({number["a"], number["d"], number["f"]}) == 3


@pytest.fixture
def trials():
    """All pairs of 12 speakers x 4 utterances: labels, speakers of both sides, scores with many ties."""
    rng = np.random.default_rng(0)
    speaker = np.repeat(np.arange(12), 4)
    a, b = np.triu_indices(48, 1)
    labels = (speaker[a] == speaker[b]).astype(int)
    return labels, speaker[a], speaker[b], np.round(rng.normal(size=len(a)) + 1.5 * labels, 1)


def test_a_draw_repeats_trials(trials):
    labels, a, b, scores = trials
    bootstrap = intervals.SpeakerBootstrap(labels, a, b, repeats=20, seed=3)
    for rate, drawn in zip(bootstrap.rates(scores), bootstrap._draws, strict=True):
        times = np.where(labels == 1, drawn[a], drawn[a] * drawn[b])
        assert drawn.sum() == 12
        assert rate == pytest.approx(metrics.eer(np.repeat(scores, times), np.repeat(labels, times)), abs=1e-12)


def test_intervals_hold_the_rate_and_narrow_with_more_speakers(trials):
    labels, a, b, scores = trials
    low, high = intervals.interval(intervals.SpeakerBootstrap(labels, a, b).rates(scores))
    assert low < metrics.eer(scores, labels) < high
    narrow = intervals.interval(intervals.SpeakerBootstrap(labels, a, b).rates(scores), 0.5)
    assert low < narrow[0] < narrow[1] < high


def test_a_better_system_and_an_equal_one(trials):
    labels, a, b, scores = trials
    rng = np.random.default_rng(5)
    bootstrap = intervals.SpeakerBootstrap(labels, a, b, repeats=200)
    worse = scores + 3 * rng.normal(size=len(scores))
    assert intervals.p_value(bootstrap.rates(scores), bootstrap.rates(worse)) == pytest.approx(1 / 200)
    assert intervals.p_value(bootstrap.rates(scores), bootstrap.rates(2 * scores + 1)) == 1


def test_a_list_of_one_speaker_has_draws_without_nontargets():
    """Two speakers: half of the draws take one of them twice and leave no nontarget trial."""
    labels, a, b = np.array([1, 1, 0]), np.array([0, 1, 0]), np.array([0, 1, 1])
    rates = intervals.SpeakerBootstrap(labels, a, b, repeats=100).rates(np.array([0.9, 0.8, 0.1]))
    assert 20 < np.isnan(rates).sum() < 80
    assert np.nanmax(rates) == 0
    assert np.isnan(intervals.interval(rates)).all() and np.isnan(intervals.p_value(rates, rates))
