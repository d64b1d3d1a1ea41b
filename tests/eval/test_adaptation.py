"""Mean subtraction and shrunken whitening from unlabelled embeddings."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import shrunk_covariance

from sdpn_jax.errors import UserError
from sdpn_jax.eval import adaptation
from sdpn_jax.eval.metrics import crop_retrieval


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(2, 60), size=st.integers(2, 20), shrinkage=st.floats(0.05, 1))
def test_whitening_undoes_the_shrunken_covariance(seed, count, size, shrinkage):
    """transform S* transform = c I, for scikit-learn's shrunken covariance S* of the embeddings of unit length."""
    x = np.random.default_rng(seed).normal(size=(count, size)) * np.arange(1, size + 1) + 1
    mean, transform = adaptation.whitening(x, shrinkage)
    units = unit(x)
    np.testing.assert_allclose(mean, units.mean(0), atol=1e-12)
    covariance = np.cov(units.T, bias=True)
    shrunken = shrunk_covariance(covariance, shrinkage)
    scale = np.trace(covariance) / size
    np.testing.assert_allclose(transform @ shrunken @ transform, scale * np.eye(size), atol=1e-8 * scale)
    np.testing.assert_allclose(adaptation.adapted(7 * x, (mean, transform)), (units - units.mean(0)) @ transform)


def test_full_shrinkage_subtracts_the_mean_alone():
    x = np.random.default_rng(0).normal(size=(30, 6)) + 2
    _, transform = adaptation.whitening(x, 1.0)
    np.testing.assert_allclose(transform, np.eye(6), atol=1e-12)


def speech(rng, recordings=60, size=16, common=0.0, nuisance=0.0):
    """Embeddings of recordings and of three crops of each: a voice, what all share, and one loud useless direction."""
    voices = rng.normal(size=(recordings, size))
    share, direction = common * rng.normal(size=size), unit(rng.normal(size=size))

    def heard(count):
        noise = 0.8 * rng.normal(size=(recordings, count, size))
        useless = nuisance * rng.normal(size=(recordings, count, 1)) * direction
        return voices[:, None] + share + noise + useless

    return heard(1)[:, 0], heard(3).reshape(-1, size), np.repeat(np.arange(recordings), 3)


def test_what_helps_is_chosen_and_little_where_nothing_does():
    rng = np.random.default_rng(0)
    plain = adaptation.choose(adaptation.crop_rates(*speech(rng, 200)))
    shifted = adaptation.choose(adaptation.crop_rates(*speech(rng, 200, common=8)))
    stretched = adaptation.choose(adaptation.crop_rates(*speech(rng, common=1, nuisance=8)))
    assert plain <= 1  # the mean at most, which is nearly 0
    assert shifted >= 1
    assert adaptation.SHRINKAGES[shifted - 1] >= 0.7  # the mean, and little else
    assert adaptation.SHRINKAGES[stretched - 1] < 0.7


def test_a_division_judges_by_recordings_that_it_has_not_seen():
    """Of one shrinkage, the rates are those of crops of the other half, worked out again."""
    embeddings, crops, recordings = speech(np.random.default_rng(1), recordings=20, common=2)
    rates = adaptation.crop_rates(embeddings, crops, recordings, [0.5])
    order = np.random.default_rng(0).permutation(20)
    chosen = np.isin(recordings, order[10:])
    units = unit(embeddings[order[:10]])
    shrunken = shrunk_covariance(np.cov(units.T, bias=True), 0.5)
    values, vectors = np.linalg.eigh(shrunken)
    moved = (unit(crops[chosen]) - units.mean(0)) @ (vectors / np.sqrt(values)) @ vectors.T
    expected = [crop_retrieval(x, recordings[chosen])["crop_eer_percent"] for x in (crops[chosen], moved)]
    assert rates.shape == (10, 2)
    np.testing.assert_allclose(rates[0], expected)


def test_the_least_change_among_equals_is_taken():
    assert adaptation.choose(np.array([[10.0, 9.9, 9.6], [9.0, 9.2, 9.2]])) == 0  # better by 0.1, which varies by 0.3
    assert adaptation.choose(np.array([[10.0, 8.0, 7.9], [10.0, 8.0, 8.2]])) == 1
    assert adaptation.choose(np.array([[10.0, 8.0, 5.0], [10.0, 8.1, 5.0]])) == 2


def test_too_few_recordings():
    embeddings, crops, recordings = speech(np.random.default_rng(0), recordings=7)
    with pytest.raises(UserError, match="7 recordings are long enough for two crops, too few"):
        adaptation.crop_rates(embeddings, crops, recordings)
