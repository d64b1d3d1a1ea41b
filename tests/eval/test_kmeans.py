"""Spherical k-means: formulas in float64, scikit-learn's k-means, swaps by hand, devices that change nothing."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from sdpn_jax.eval import kmeans


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def gaussians(count, groups, spread, seed=0, dimension=64):
    """(embeddings of length 1 around `groups` random directions, their groups)."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(groups, dimension)))
    group = rng.integers(groups, size=count)
    return unit(centres[group] + spread / np.sqrt(dimension) * rng.normal(size=(count, dimension))), group


def mean_cosine(units, labels):
    """That of embeddings with the direction of their cluster, in float64."""
    units = units.astype(np.float64)
    sums = [units[labels == label].sum(axis=0) for label in np.unique(labels)]
    return sum(np.linalg.norm(sums, axis=1)) / len(units)


@pytest.mark.parametrize("count, clusters", [(10, 3), (130, 7)])
def test_a_step_is_lloyds(count, clusters, monkeypatch):
    monkeypatch.setattr(kmeans, "ROWS", 16)
    units, _ = gaussians(count, clusters, 1.0)
    centroids = units[:clusters]
    labels, cosines = kmeans.nearest(units, centroids)
    products = units.astype(np.float64) @ centroids.T.astype(np.float64)
    np.testing.assert_array_equal(labels, products.argmax(axis=1))
    np.testing.assert_allclose(cosines, products.max(axis=1), atol=1e-6)
    expected = np.array([units[labels == k].astype(np.float64).sum(axis=0) for k in range(clusters)])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(
        kmeans.directions(kmeans.member_sums(units, labels, clusters), centroids), expected, atol=1e-6
    )
    moved, steps = kmeans.improved(units, centroids, 1)
    np.testing.assert_allclose(moved, expected, atol=1e-6)
    assert steps == 1


def test_rivals():
    units, group = gaussians(100, 5, 1.0)
    means = kmeans.member_sums(units, group, 5) / np.bincount(group)[:, None].astype(np.float32)
    own, other, cosines = kmeans.rivals(units, group, means)
    products = units.astype(np.float64) @ means.T
    np.testing.assert_allclose(own, products[np.arange(100), group], atol=1e-6)
    products[np.arange(100), group] = -np.inf
    np.testing.assert_array_equal(other, products.argmax(axis=1))
    np.testing.assert_allclose(cosines, products.max(axis=1), atol=1e-6)


@pytest.mark.parametrize(
    "count, groups, clusters, spread, starts", [(200, 8, 8, 1.0, 10), (2000, 40, 40, 1.0, 10), (1000, 40, 80, 1.5, 1)]
)
def test_as_good_as_scikit_learns(count, groups, clusters, spread, starts):
    units, group = gaussians(count, groups, spread)
    labels, centroids, cosines = kmeans.kmeans(units, clusters)
    theirs = KMeans(clusters, n_init=starts, random_state=0).fit_predict(units)
    assert mean_cosine(units, labels) > mean_cosine(units, theirs) - 2e-3
    assert cosines.mean() == pytest.approx(mean_cosine(units, labels), abs=1e-4)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)
    if clusters == groups:
        nmi = normalized_mutual_info_score
        assert nmi(group, labels) > nmi(group, theirs) - 1e-6


def test_samples_grow_to_all():
    assert kmeans.sample_sizes(31_999, 10) == [31_999]
    assert kmeans.sample_sizes(32_000, 10) == [16_000, 32_000]
    assert kmeans.sample_sizes(1_090_000, 10_000) == [160_000, 1_090_000]
    assert kmeans.sample_sizes(1_090_000, 10) == [16_000, 64_000, 256_000, 1_090_000]


def test_a_growing_sample_finds_what_all_would(monkeypatch):
    monkeypatch.setattr(kmeans, "LEAST", 10)
    units, group = gaussians(4_000, 20, 1.0)
    assert kmeans.sample_sizes(4_000, 20) == [320, 1280, 4_000]
    labels, _, _ = kmeans.kmeans(units, 20)
    assert normalized_mutual_info_score(group, labels) > 0.99
    np.testing.assert_array_equal(kmeans.kmeans(units, 20)[0], labels)
    assert np.any(kmeans.kmeans(units, 20, seed=1)[0] != labels)


def test_a_swap_by_hand():
    """Two centroids share a group while two groups share a centroid: a local optimum of Lloyd steps."""
    units = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    units[:4, 1] = [0.01, 0.01, -0.01, -0.01]
    units = unit(units)
    labels = np.array([0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2])
    sums = kmeans.member_sums(units, labels, 3)
    centroids = kmeans.directions(sums)
    cosines = np.einsum("nd,nd->n", units, centroids[labels])
    halves = kmeans.half_sums(units, labels, cosines, centroids)
    np.testing.assert_allclose(np.sort(halves[2], axis=0), [[0, 0, 0], [0, 4, 4]], atol=1e-6)
    swapped, swaps = kmeans.swapped(units, labels, cosines, sums, centroids)
    assert swaps == 1
    np.testing.assert_allclose(swapped[np.argsort(swapped.argmax(axis=1))], np.eye(3), atol=2e-2)


def test_empty_clusters_are_put_to_use():
    units, _ = gaussians(300, 6, 1.0)
    far = np.tile(-units.mean(axis=0), (5, 1)) * np.arange(1, 6)[:, None]
    centroids, _ = kmeans.improved(units, np.concatenate([units[:1], unit(far)]), 20)
    labels, _ = kmeans.nearest(units, centroids)
    assert len(np.unique(labels)) == 6


def test_as_many_clusters_as_embeddings():
    units, _ = gaussians(40, 5, 1.0)
    labels, _, cosines = kmeans.kmeans(units, 40)
    assert len(np.unique(labels)) == 40
    np.testing.assert_allclose(cosines, 1, atol=1e-6)


def test_repeated_embeddings_and_zeros():
    units = np.repeat(np.eye(4, dtype=np.float32), 5, axis=0)
    labels, _, cosines = kmeans.kmeans(units, 10)  # of which only four can be of use
    assert [len(set(labels[i : i + 5])) for i in (0, 5, 10, 15)] == [1] * 4 and len(set(labels)) == 4
    np.testing.assert_allclose(cosines, 1, atol=1e-6)
    units = np.concatenate([np.zeros((5, 3)), np.eye(3)]).astype(np.float32)
    labels, centroids, cosines = kmeans.kmeans(units, 8)
    assert len(set(labels[5:])) == 3 and np.isfinite(centroids).all()
    np.testing.assert_allclose(cosines, [0] * 5 + [1] * 3, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([2, 5, 30]), st.integers(0, 10_000))
def test_swaps_and_steps_never_lose(clusters, seed):
    rng = np.random.default_rng(seed)
    units = unit(rng.normal(size=(30, 4)))
    centroids = units[:clusters]
    for _ in range(4):
        labels, cosines = kmeans.nearest(units, centroids)
        sums = kmeans.member_sums(units, labels, clusters)
        centroids, _ = kmeans.swapped(units, labels, cosines, sums, kmeans.directions(sums, centroids))
        assert kmeans.nearest(units, centroids)[1].sum() > cosines.sum() - 1e-4


ON_EIGHT = """
import sys, jax, numpy as np
from sdpn_jax.eval import kmeans
assert len(jax.devices()) == 8
units = np.load(sys.argv[1])
labels, centroids, cosines = kmeans.kmeans(units, 25)
np.savez(sys.argv[2], labels=labels, centroids=centroids, cosines=cosines)
"""


def test_eight_devices_find_the_same(tmp_path):
    units, _ = gaussians(1_003, 25, 1.0)
    np.save(tmp_path / "units.npy", units)
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"}
    arguments = [sys.executable, "-c", ON_EIGHT, tmp_path / "units.npy", tmp_path / "found.npz"]
    subprocess.run(arguments, env=environment, check=True, timeout=300)
    found = np.load(tmp_path / "found.npz")
    labels, centroids, cosines = kmeans.kmeans(units, 25)
    np.testing.assert_array_equal(found["labels"], labels)
    np.testing.assert_allclose(found["centroids"], centroids, atol=1e-6)
    np.testing.assert_allclose(found["cosines"], cosines, atol=1e-6)
