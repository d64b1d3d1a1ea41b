"""Clusters of embeddings: blobs recovered, SciPy's tree, scikit-learn's silhouettes, agreement by hand, files."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.cluster import hierarchy
from scipy.spatial.distance import cdist
from sklearn import metrics

from sdpn_jax.errors import UserError
from sdpn_jax.eval import cluster
from sdpn_jax.vectors import unit


@pytest.fixture
def blobs():
    """(60 embeddings, their speakers) of five far apart speakers of 4 to 20 utterances."""
    rng = np.random.default_rng(0)
    speakers = np.repeat(np.arange(5), [20, 16, 12, 8, 4])
    centres = 3 * rng.normal(size=(5, 32))
    lengths = rng.uniform(0.1, 10, (60, 1))
    return (lengths * (centres[speakers] + 0.5 * rng.normal(size=(60, 32)))).astype(np.float32), speakers


def same_partition(a, b) -> bool:
    return metrics.adjusted_rand_score(a, b) == 1.0


@pytest.mark.parametrize("method", cluster.METHODS)
def test_far_apart_speakers_are_found(blobs, method):
    embeddings, speakers = blobs
    np.testing.assert_array_equal(cluster.cluster(embeddings, method, 5), speakers)  # largest first, as they are
    np.testing.assert_array_equal(cluster.cluster(embeddings, method, 60), np.arange(60))


def test_many_utterances(monkeypatch):
    rng = np.random.default_rng(0)
    speakers = rng.integers(8, size=2_001)
    embeddings = (10 * np.eye(16)[speakers] + 0.3 * rng.normal(size=(2_001, 16))).astype(np.float32)
    monkeypatch.setattr(cluster, "FEW", 2_000)
    assert cluster.default_method(2_000) == "kmeans"
    assert cluster.default_method(len(embeddings)) == "kmeans+agglomerative"
    for centroids in (None, 50):
        labels = cluster.cluster(embeddings, "kmeans+agglomerative", 8, centroids=centroids)
        assert same_partition(labels, speakers)


def test_centroids_by_the_number_of_utterances():
    assert cluster.default_centroids(1_092_009) == 50_000
    assert cluster.default_centroids(40_000) == 5_000
    assert cluster.default_centroids(40_000, 4_000) == 8_000
    assert cluster.default_centroids(100, 70) == 100
    assert cluster.default_centroids(1_000_000, 60_000) == 60_000


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 40), st.integers(1, 8), st.integers(0, 1000))
def test_average_linkage_is_scipys(count, dimension, seed):
    rng = np.random.default_rng(seed)
    units = unit(rng.normal(size=(count, dimension + 1)))
    pairs, similarities = cluster.average_linkage(units, np.ones(count, int))
    tree = hierarchy.linkage(units, "average", "cosine")
    np.testing.assert_allclose(1 - similarities, tree[:, 2], atol=1e-5)
    for number in {2, count // 2 + 1, count}:
        if number < count and np.ptp(tree[count - number - 1 : count - number + 1, 2]) < 1e-4:
            continue  # rounding may choose the other of two mergers
        assert same_partition(cluster.cut(pairs, number), hierarchy.fcluster(tree, number, "maxclust"))


def test_linkage_goes_on_from_clusters():
    """Merging clusters by their means and sizes is merging their members."""
    rng = np.random.default_rng(0)
    units = unit(rng.normal(size=(30, 5)))
    pairs, similarities = cluster.average_linkage(units, np.ones(30, int))
    labels = cluster.cut(pairs, 12)
    sizes = np.bincount(labels)
    means = np.array([units[labels == label].mean(axis=0) for label in range(12)])
    further, more = cluster.average_linkage(means, sizes)
    np.testing.assert_allclose(more, similarities[-11:], atol=1e-5)
    assert same_partition(cluster.cut(further, 4)[labels], cluster.cut(pairs, 4))


def test_linkage_of_equal_embeddings():
    pairs, similarities = cluster.average_linkage(np.repeat(np.eye(3), 7, axis=0), np.ones(21, int))
    assert same_partition(cluster.cut(pairs, 3), np.repeat(np.arange(3), 7))
    np.testing.assert_allclose(similarities, [1] * 18 + [0] * 2, atol=1e-6)
    pairs, _ = cluster.average_linkage(np.zeros((6, 2)), np.ones(6, int))
    assert len(np.unique(cluster.cut(pairs, 2))) == 2


def test_silhouettes_are_scikit_learns(blobs):
    units = cluster._units(blobs[0])
    rng = np.random.default_rng(0)
    for labels in (blobs[1], rng.integers(7, size=60), np.r_[np.zeros(57, int), 1, 2, 3]):
        expected = metrics.silhouette_samples(units, labels, metric="cosine")
        np.testing.assert_allclose(cluster.silhouettes(units, labels), expected, atol=1e-5)
        np.testing.assert_allclose(cluster.silhouettes(units, labels, np.array([3, 58])), expected[[3, 58]], atol=1e-5)
        assert cluster.silhouette(units, labels) == pytest.approx(expected.mean(), abs=1e-5)
    assert np.isnan(cluster.silhouette(units, np.zeros(60, int)))
    assert np.isnan(cluster.silhouette(units, np.arange(60)))


def test_number_chosen():
    nan = float("nan")
    assert cluster.choose_number({2: 0.1, 4: 0.5, 8: 0.2}) == 4
    assert cluster.choose_number({2: 0.18, 3: 0.15, 9: 0.12, 20: 0.15, 40: 0.1}) == 20  # not the sexes
    assert cluster.choose_number({2: 0.18, 3: 0.15, 9: 0.12, 20: 0.122, 40: 0.1}) == 2  # no peak: too flat
    assert cluster.choose_number({2: 0.1, 4: 0.5, 8: 0.49, 16: 0.2}) == 8  # as good, and more
    assert cluster.choose_number({2: 0.1, 4: 0.2, 8: 0.3}) == 8
    assert cluster.choose_number({2: nan, 4: 0.2, 8: 0.1, 16: nan}) == 4
    assert cluster.choose_number({2: nan, 4: nan}) == 2
    assert cluster.choose_number({2: -0.3, 4: -0.1, 8: -0.2}) == 4


def test_retrieval_by_hand():
    units = np.eye(4)[[0, 0, 1, 1, 2]]
    crops = cluster.Crops(np.eye(4)[[0, 1, 1, 2, 3]].astype(np.float32), np.array([0, 1, 2, 4, 3]))
    # Of five crops the first and the third find their cluster; the fourth's holds nobody else.
    chance = (2 / 5) ** 2 + (2 / 5) ** 2 + (1 / 5) ** 2
    found = cluster.retrieval(units.astype(np.float32), np.array([0, 0, 1, 1, 2]), crops)
    assert found == pytest.approx((2 / 5 - chance) / (1 - chance))


def test_agreement_by_hand():
    labels, speakers = np.array([0, 0, 0, 1, 1, 1]), np.array(["a", "a", "b", "b", "b", "b"])
    found = cluster.agreement(labels, speakers)
    assert found["purity"] == pytest.approx(5 / 6)
    share = {("a", 0): 2 / 6, ("b", 0): 1 / 6, ("b", 1): 3 / 6}
    of_speaker, of_cluster = {"a": 2 / 6, "b": 4 / 6}, {0: 1 / 2, 1: 1 / 2}
    information = sum(p * np.log(p / of_speaker[s] / of_cluster[c]) for (s, c), p in share.items())
    entropies = [-sum(p * np.log(p) for p in of.values()) for of in (of_speaker, of_cluster)]
    assert found["nmi"] == pytest.approx(information / np.mean(entropies))
    # Pairs: 7 within speakers, 6 within clusters, 4 within both, 15 in all.
    assert found["adjusted_rand"] == pytest.approx((4 - 7 * 6 / 15) / ((7 + 6) / 2 - 7 * 6 / 15))

    # The cluster of three: shares 2/3, 2/3 and 1/3, the other 1; speaker a is whole, b is in parts of 1 and 3 of 4.
    assert found["b_cubed_precision"] == pytest.approx((2 / 3 + 2 / 3 + 1 / 3 + 3) / 6)
    assert found["b_cubed_recall"] == pytest.approx((2 + 1 / 4 + 3 * 3 / 4) / 6)
    assert found["b_cubed_f"] == pytest.approx(2 / (1 / found["b_cubed_precision"] + 1 / found["b_cubed_recall"]))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from("abcd")), min_size=1, max_size=30))
def test_b_cubed_is_its_definition(pairs):
    labels, speakers = (np.array(column) for column in zip(*pairs, strict=True))
    together, same = labels[:, None] == labels, speakers[:, None] == speakers
    precision = np.mean([same[i][together[i]].mean() for i in range(len(labels))])
    recall = np.mean([together[i][same[i]].mean() for i in range(len(labels))])
    expected = precision, recall, 2 * precision * recall / (precision + recall)
    assert cluster.b_cubed(labels, speakers) == pytest.approx(expected)
    assert cluster.b_cubed(speakers, labels)[:2] == pytest.approx(expected[1::-1])
    assert cluster.b_cubed(labels, labels) == pytest.approx((1, 1, 1))


def test_files(blobs, tmp_path):
    embeddings, speakers = blobs
    ids = [f"s{speaker}/{i}.wav" for i, speaker in enumerate(speakers)]
    np.savez(tmp_path / "e.npz", ids=np.array(ids), embeddings=embeddings)
    (tmp_path / "speakers.txt").write_text("".join(f"wav/{name[:-4]} {name[:2]}\n" for name in ids[::-1]))
    for projection in ("pca", "tsne"):
        results = cluster.cluster_file(
            tmp_path / "e.npz", tmp_path / "out", 5, "kmeans", tmp_path / "speakers.txt", projection
        )
    assert json.loads((tmp_path / "out" / "clusters.json").read_text()) == results
    assert (results["clusters"], results["largest"], results["smallest"]) == (5, 20, 4)
    assert (results["speakers"], results["purity"], results["nmi"]) == (5, 1.0, pytest.approx(1))
    lines = [line.split() for line in (tmp_path / "out" / "pseudo_labels.txt").read_text().splitlines()]
    assert lines == [[name, str(speaker)] for name, speaker in zip(ids, speakers, strict=True)]
    for name in ("map.png", "sizes.png"):
        assert min(Image.open(tmp_path / "out" / name).size) > 500


def test_files_of_a_search(blobs, tmp_path):
    """Numbers are tried, crops looked for, and those of small clusters left out."""
    embeddings, speakers = blobs
    ids = [f"s{speaker}/{i}.wav" for i, speaker in enumerate(speakers)]
    np.savez(tmp_path / "e.npz", ids=np.array(ids), embeddings=embeddings)
    rng = np.random.default_rng(1)
    crops = np.repeat(unit(embeddings), 2, axis=0) + 0.02 * rng.normal(size=(120, 32))
    np.savez(tmp_path / "c.npz", ids=np.array([f"{name}#{i}" for name in ids for i in (1, 2)]), embeddings=crops)
    for method in cluster.METHODS:
        results = cluster.cluster_file(
            tmp_path / "e.npz", tmp_path / "out", method=method, smallest=5, crops_path=tmp_path / "c.npz",
            centroids=30 if "+" in method else None,
        )  # fmt: skip
        assert set(results["tried"]) >= {2, 30}
        assert results["clusters"] >= 4 and results["smallest"] >= 5
        assert results["retrieval"] == results["tried_retrieval"][max(results["tried"], key=results["tried"].get)] > 0.9
        kept, confidence, left_out = (
            [line.split() for line in (tmp_path / "out" / name).read_text().splitlines()]
            for name in ("pseudo_labels.txt", "confidence.txt", "left_out.txt")
        )
        assert [name for name, _ in kept] == [name for name, _ in confidence]
        assert sorted(name for name, _ in kept + left_out) == sorted(ids)
        assert len(left_out) == results["left_out"] >= 4
        assert all(-1 <= float(value) <= 1 for _, value in confidence)
        assert min(Image.open(tmp_path / "out" / "numbers.png").size) > 500
        assert "numbers.png" in cluster.files_of(results)
    distances = cdist(embeddings, embeddings, "cosine")
    nearest_other = min(distances[0, speakers == other].mean() for other in range(1, 5))
    shutil.copytree(tmp_path / "out", tmp_path / "five")
    assert "numbers.png" not in cluster.files_of(cluster.cluster_file(tmp_path / "e.npz", tmp_path / "five", 5))
    assert not (tmp_path / "five" / "numbers.png").exists()
    first = float((tmp_path / "five" / "confidence.txt").read_text().split()[1])
    assert first == pytest.approx(1 - distances[0, 1:20].mean() / nearest_other, abs=1e-4)


def test_speakers_of_utterances_with_blanks(tmp_path):
    (tmp_path / "speakers.txt").write_bytes(b"\xef\xbb\xbfmy file.wav ann\r\n\r\nb/c.wav  ben\r\n")
    assert cluster.read_speakers(tmp_path / "speakers.txt", ["b/c.wav", "my file.wav"]).tolist() == ["ben", "ann"]


def test_bad_input(blobs, tmp_path):
    np.savez(tmp_path / "e.npz", ids=np.array(["a", "b", "c"]), embeddings=blobs[0][:3])
    with pytest.raises(UserError, match="--clusters=4: choose 2 to 3"):
        cluster.cluster_file(tmp_path / "e.npz", tmp_path / "out", 4)
    (tmp_path / "speakers.txt").write_text("a x\nb x\n")
    with pytest.raises(UserError, match="the speaker of 1 of 3 utterances is unclear, first: 'c'"):
        cluster.cluster_file(tmp_path / "e.npz", tmp_path / "out", 2, speakers_path=tmp_path / "speakers.txt")
    (tmp_path / "speakers.txt").write_text("a x\nb\n")
    with pytest.raises(UserError, match="line 2: wanted is 'utterance speaker', not 'b'"):
        cluster.cluster_file(tmp_path / "e.npz", tmp_path / "out", 2, speakers_path=tmp_path / "speakers.txt")
    (tmp_path / "speakers.txt").write_text("a x\nb x\nc x\na y\n")
    with pytest.raises(UserError, match="line 4: 'a' has another speaker before"):
        cluster.cluster_file(tmp_path / "e.npz", tmp_path / "out", 2, speakers_path=tmp_path / "speakers.txt")
    with pytest.raises(UserError, match="--smallest=9: the largest cluster has 2 utterances: choose fewer"):
        cluster.cluster_file(tmp_path / "e.npz", tmp_path / "out", 2, smallest=9)
    with pytest.raises(UserError, match="--centroids=3 is of --method=kmeans.agglomerative, not of kmeans: leave it"):
        cluster.cluster_file(tmp_path / "e.npz", tmp_path / "out", 2, centroids=3)
    with pytest.raises(UserError, match="--clusters=3 cannot be merged from --centroids=2: give more centroids"):
        cluster.cluster_file(tmp_path / "e.npz", tmp_path / "out", 3, "kmeans+agglomerative", centroids=2)
    np.savez(tmp_path / "c.npz", ids=np.array(["a#1", "d#1"]), embeddings=blobs[0][:2])
    with pytest.raises(UserError, match="1 of 2 crops are of no known utterance, first: 'd#1'; an id must be"):
        cluster.cluster_file(tmp_path / "e.npz", tmp_path / "out", 2, crops_path=tmp_path / "c.npz")
    np.savez(tmp_path / "c.npz", ids=np.array(["a#1"]), embeddings=blobs[0][:1, :7])
    with pytest.raises(UserError, match="crops of 7 dimensions, utterances of 32: use one model"):
        cluster.cluster_file(tmp_path / "e.npz", tmp_path / "out", 2, crops_path=tmp_path / "c.npz")
    np.savez(tmp_path / "e.npz", ids=np.array(["a", "b", "c"]), embeddings=np.array([[1, 0], [0, np.nan], [1, 1]]))
    with pytest.raises(UserError, match="1 of 3 embeddings hold NaN or infinity, first: 'b'"):
        cluster.cluster_file(tmp_path / "e.npz", tmp_path / "out", 2)


def test_an_id_that_would_forge_a_line(blobs, tmp_path):
    np.savez(tmp_path / "e.npz", ids=np.array(["a", "b\nc 0", "d"]), embeddings=blobs[0][:3])
    with pytest.raises(UserError, match=r"the id 'b\\nc 0' cannot stand in a line"):
        cluster.cluster_file(tmp_path / "e.npz", tmp_path / "out", 2)


def test_embeddings_of_one_dimension(tmp_path):
    np.savez(tmp_path / "e.npz", ids=np.array(list("abcd")), embeddings=np.array([[1.0], [2.0], [-1.0], [-3.0]]))
    assert cluster.cluster_file(tmp_path / "e.npz", tmp_path / "out", 2)["clusters"] == 2
