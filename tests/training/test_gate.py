"""The gate between right and wrong labels, on mixtures made by hand, beside scikit-learn's and SciPy's."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from sklearn.mixture import GaussianMixture

from sdpn_jax.training import gate


def mixture(seed, weights, means, deviations, count=4000):
    rng = np.random.default_rng(seed)
    which = rng.random(count) < weights[1]
    return np.where(which, rng.normal(means[1], deviations[1], count), rng.normal(means[0], deviations[0], count))


@pytest.mark.parametrize(
    "weights, means, deviations",
    [((0.7, 0.3), (-3, 1), (0.8, 0.5)), ((0.5, 0.5), (-6, -2), (1.5, 0.4)), ((0.9, 0.1), (-1, 2), (0.3, 0.3))],
)
def test_two_gaussians_are_found_as_scikit_learn_finds_them(weights, means, deviations):
    values = mixture(0, weights, means, deviations)
    theirs = GaussianMixture(2, tol=1e-9, max_iter=500, random_state=0).fit(values[:, None])
    order = np.argsort(theirs.means_.ravel())
    ours = gate.fit(jnp.asarray(values), jnp.ones(len(values), bool))
    np.testing.assert_allclose(ours[0], theirs.weights_[order], atol=2e-3)
    np.testing.assert_allclose(ours[1], theirs.means_.ravel()[order], atol=5e-3)
    np.testing.assert_allclose(ours[2], np.sqrt(theirs.covariances_.ravel()[order]), rtol=1e-2)


def test_the_gate_is_where_both_are_equally_likely():
    weights, means, deviations = (0.7, 0.3), (-3.0, 1.0), (0.8, 0.5)
    density = lambda x, i: weights[i] * scipy.stats.norm.pdf(x, means[i], deviations[i])  # noqa: E731
    expected = scipy.optimize.brentq(lambda x: density(x, 0) - density(x, 1), *means)
    assert float(gate.threshold(*map(jnp.array, (weights, means, deviations)))) == pytest.approx(expected, abs=1e-5)


def test_losses_of_right_and_wrong_labels_are_told_apart():
    rng = np.random.default_rng(1)
    right, wrong = rng.lognormal(-4, 1, 900), rng.lognormal(1.5, 0.3, 300)
    losses = np.concatenate([right, wrong, np.full(50, gate.UNKNOWN)]).astype(np.float32)
    found = float(gate.gate_of(jnp.asarray(losses)))
    assert np.mean(np.log(right) <= found) > 0.99
    assert np.mean(np.log(wrong) > found) > 0.99


def test_the_middle_of_two_equal_halves():
    """By hand: equal weights and deviations, so that both are equally likely half-way."""
    values = jnp.asarray([-2.0, -1.9, -1.8, 2.0, 1.9, 1.8])
    assert float(gate.threshold(*gate.fit(values, jnp.ones(6, bool)))) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    "losses", [[], [gate.UNKNOWN] * 9, [0.5, 0.5, 0.5], [0.7] * 20, [1.65] * 20, [3.0] * 20, [0.0] * 20]
)
def test_where_nothing_tells_them_apart_all_labels_pass(losses):
    padded = np.append(losses, gate.UNKNOWN).astype(np.float32)
    found = float(gate.gate_of(jnp.asarray(padded)))
    known = padded[padded >= 0]
    assert np.all(gate.log_loss(jnp.asarray(known)) <= found)


def test_no_loss_is_too_small_for_its_logarithm():
    assert float(gate.log_loss(jnp.array(0.0))) == pytest.approx(np.log(gate.LEAST_LOSS))
