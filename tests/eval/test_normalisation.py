"""Against plain float64 loops."""

import numpy as np
import pytest

from sdpn_jax.errors import UserError
from sdpn_jax.eval import normalisation


@pytest.fixture
def speech():
    rng = np.random.default_rng(0)
    return rng.normal(size=(7, 5)).astype(np.float32) + 1, rng.normal(size=(11, 5)).astype(np.float32) + 1


def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("top", [None, 4])
@pytest.mark.parametrize("block_bytes", [1, 2**28])
def test_normalised_scores(speech, top, block_bytes, monkeypatch):
    """A block of one byte: every embedding is a block of its own."""
    monkeypatch.setattr(normalisation, "BLOCK_BYTES", block_bytes)
    embeddings, cohort = speech
    enrol, test = np.array([0, 1, 6, 3]), np.array([2, 1, 5, 0])
    scores = np.array([cosine(embeddings[e], embeddings[t]) for e, t in zip(enrol, test, strict=True)])
    statistics = normalisation.cohort_statistics(embeddings, cohort, top)
    actual = normalisation.normalise(scores, enrol, test, statistics)
    for score, e, t, value in zip(scores, enrol, test, actual, strict=True):
        sides = []
        for x in (embeddings[e], embeddings[t]):
            nearest = sorted((cosine(x, c) for c in cohort), reverse=True)[:top]
            sides.append((score - np.mean(nearest)) / np.std(nearest))
        assert value == pytest.approx(np.mean(sides), rel=1e-4)


def test_mean_subtraction(speech):
    embeddings, cohort = speech
    centre = np.mean([c / np.linalg.norm(c) for c in cohort.astype(np.float64)], axis=0)
    expected = [e / np.linalg.norm(e) - centre for e in embeddings.astype(np.float64)]
    np.testing.assert_allclose(normalisation.subtract_mean(embeddings, cohort), expected, atol=1e-6)


def test_zeros_and_equal_scores_stay_finite(speech):
    embeddings, cohort = speech
    embeddings[0] = 0
    mean, deviation = normalisation.cohort_statistics(embeddings, np.repeat(cohort[:1], 3, axis=0))
    assert mean[0] == 0
    assert np.all(deviation > 0)
    assert np.isfinite(normalisation.subtract_mean(embeddings, cohort)).all()


def test_a_cohort_that_is_too_small(speech):
    embeddings, cohort = speech
    with pytest.raises(UserError, match="11 embeddings, too few for the 12 nearest"):
        normalisation.cohort_statistics(embeddings, cohort, 12)
    with pytest.raises(UserError, match="choose 2 or more"):
        normalisation.cohort_statistics(embeddings, cohort, 1)
