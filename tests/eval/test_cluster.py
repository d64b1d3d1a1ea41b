"""Clusters of embeddings: blobs recovered, agreement worked by hand, files that agree with each other."""

import json

import numpy as np
import pytest
from PIL import Image

from sdpn_jax.errors import UserError
from sdpn_jax.eval import cluster


@pytest.fixture
def blobs():
    """(60 embeddings, their speakers) of five far apart speakers of 4 to 20 utterances."""
    rng = np.random.default_rng(0)
    speakers = np.repeat(np.arange(5), [20, 16, 12, 8, 4])
    centres = 3 * rng.normal(size=(5, 32))
    lengths = rng.uniform(0.1, 10, (60, 1))
    return (lengths * (centres[speakers] + 0.5 * rng.normal(size=(60, 32)))).astype(np.float32), speakers


@pytest.mark.parametrize("method", ["kmeans", "agglomerative"])
def test_far_apart_speakers_are_found(blobs, method):
    embeddings, speakers = blobs
    np.testing.assert_array_equal(cluster.cluster(embeddings, method, 5), speakers)  # largest first, as they are
    labels, tried = cluster.choose_number(embeddings, method)
    assert tried[len(np.unique(labels))] == max(tried.values())
    assert set(tried) >= {2, 30}
    assert cluster.agreement(labels, speakers)["nmi"] > 0.85


def test_many_utterances_go_through_mini_batches():
    rng = np.random.default_rng(0)
    speakers = rng.integers(8, size=12_000)
    embeddings = (10 * np.eye(16)[speakers] + 0.3 * rng.normal(size=(12_000, 16))).astype(np.float32)
    labels = cluster.cluster(embeddings, "kmeans", 8)
    assert cluster.agreement(labels, speakers) == {
        "speakers": 8, "nmi": pytest.approx(1), "adjusted_rand": pytest.approx(1), "purity": 1.0
    }  # fmt: skip
    with pytest.raises(UserError, match=r"of 30,000 embeddings 4 GB or more: use --method=kmeans"):
        cluster.cluster(np.zeros((30_000, 2)), "agglomerative", 2)


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
