"""Embeddings, good and bad; scores against SciPy's cosine distance."""

import numpy as np
import pytest
from scipy.spatial.distance import cosine
from sklearn.metrics import roc_curve

from sdpn_jax.errors import UserError
from sdpn_jax.eval import scoring
from sdpn_jax.eval.trials import Trials


def write(tmp_path, text, name="trials.txt"):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_cosine_scores_equal_scipy(block):
    rng = np.random.default_rng(1)
    embeddings = rng.normal(size=(20, 16)).astype(np.float32) * 10.0 ** rng.uniform(-25, 25, (20, 1)).astype(np.float32)
    enrol, test = rng.integers(0, 20, (2, 50))
    expected = [1 - cosine(*embeddings[[i, j]].astype(np.float64)) for i, j in zip(enrol, test, strict=True)]
    np.testing.assert_allclose(scoring.cosine_scores(embeddings, enrol, test, block), expected, atol=1e-12)


def test_zero_embeddings_score_zero_and_are_reported(caplog):
    embeddings = np.array([[0, 0], [1, 0], [1, 1]], np.float32)
    trials = Trials(np.array([1, 0, 0]), ["z", "z", "a"], ["z", "a", "b"])
    with caplog.at_level("WARNING", "absl"):
        scores = scoring.score_trials(embeddings, ["z", "a", "b"], trials)
    np.testing.assert_allclose(scores, [0, 0, 0.5**0.5])
    assert "1 of 3 embeddings are all zeros, first: 'z'" in caplog.text


def test_embeddings_that_are_not_finite():
    embeddings = np.array([[1, np.nan], [1, 0], [np.inf, 1], [np.nan, 1]], np.float32)
    trials = Trials(np.array([1]), ["a"], ["c"])
    with pytest.raises(UserError, match="1 of 2 embeddings hold NaN or infinity, first: 'c'"):
        scoring.score_trials(embeddings, ["unused", "a", "c", "also unused"], trials)


def test_evaluate_by_hand():
    embeddings = np.array([[1, 0], [1, 0.1], [0, 1], [0.5, 1]], np.float32)
    trials = Trials(np.array([1, 1, 0, 0]), ["a", "c", "a", "b"], ["b", "d", "c", "d"])
    # Cosines 0.995, 0.894, 0, 0.534: perfect, the lower target is the threshold.
    results = scoring.evaluate(embeddings, list("abcd"), trials)
    assert results == {
        "eer_percent": 0.0,
        "min_dcf_0.01": 0.0,
        "min_dcf_0.05": 0.0,
        "threshold_at_eer": pytest.approx(1 / 1.25**0.5),
        "trials": 4,
        "targets": 2,
    }
    results = scoring.evaluate(
        embeddings, list("abcd"), Trials(np.array([1, 0, 0, 0]), trials.enrol[::-1], trials.test)
    )
    # Targets: b-b 1; nontargets a-d 0.447, c-c 1, a-d 0.447: the target ties with one of three nontargets.
    assert results["eer_percent"] == pytest.approx(25.0)
    assert results["min_dcf_0.05"] == pytest.approx(1.0)


def test_costs_of_both_priors():
    rng = np.random.default_rng(0)
    labels = np.repeat([1, 0], [50, 2000])
    scores = rng.normal(2 * labels)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    results = scoring.summarize(scores, labels)
    expected = {p: np.min(p * (1 - tpr) + (1 - p) * fpr) / p for p in (0.01, 0.05)}
    assert expected[0.01] > expected[0.05] + 0.05
    assert results["min_dcf_0.01"] == pytest.approx(expected[0.01])
    assert results["min_dcf_0.05"] == pytest.approx(expected[0.05])


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_load_npz_and_folder(tmp_path):
    embeddings = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    ids = ["a/x.wav", "b/ü.wav", "c"]
    np.save(tmp_path / "embeddings.npy", embeddings)
    write(tmp_path, "a/x.wav\r\nb/ü.wav\r\nc\r\n", "ids.txt")
    for path in (
        save(tmp_path / "e.npz", ids=np.array(ids), embeddings=embeddings),
        save(tmp_path / "bytes.npz", ids=np.array([name.encode() for name in ids]), embeddings=embeddings),
        tmp_path,
    ):
        read, names = scoring.load_embeddings(path)
        assert names == ids
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, embeddings)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"embeddings": np.ones((2, 3))}, r"no array 'ids' \(it holds 'embeddings'\)"),
        ({"ids": np.array(["a"])}, r"no array 'embeddings'"),
        ({"ids": np.array(["a"]), "embeddings": np.ones((2, 3))}, "2 embeddings but 1 ids"),
        ({"ids": np.array(["a", "a"]), "embeddings": np.ones((2, 3))}, "'a' occurs 2 times"),
        ({"ids": np.array([1, 2]), "embeddings": np.ones((2, 3))}, "'ids' must be one row of strings, not int64"),
        ({"ids": np.array(["a"]), "embeddings": np.ones(3)}, r"not float64 \[3\]"),
        ({"ids": np.array(["a"]), "embeddings": np.ones((1, 3), int)}, r"not int64 \[1, 3\]"),
        ({"ids": np.array([], "U1"), "embeddings": np.ones((0, 3))}, r"not float64 \[0, 3\]"),
        ({"ids": np.array(["a", None]), "embeddings": np.ones((2, 3))}, "member ids.npy: items of type object"),
    ],
)
def test_bad_npz(tmp_path, arrays, message):
    with pytest.raises(UserError, match=r"e\.npz.*" + message):
        scoring.load_embeddings(save(tmp_path / "e.npz", **arrays))


def test_files_that_are_no_embeddings(tmp_path):
    with pytest.raises(UserError, match="no such file; give a NumPy file of embeddings"):
        scoring.load_embeddings(tmp_path / "none.npz")
    with pytest.raises(UserError, match=r"embeddings\.npy: no such file; give"):
        scoring.load_embeddings(tmp_path)
    for content in (b"", b"hello", b"PK\x03\x04 cut short"):
        with pytest.raises(UserError, match=r"text\.npz"):
            scoring.load_embeddings(write(tmp_path, content, "text.npz"))
    np.save(tmp_path / "embeddings.npy", np.ones((2, 3)))
    with pytest.raises(UserError, match="is not a NumPy file of embeddings"):
        scoring.load_embeddings(tmp_path / "embeddings.npy")
    with pytest.raises(UserError, match=r"ids\.txt: cannot read the list of ids"):
        scoring.load_embeddings(tmp_path)
    write(tmp_path, "a\nb\nc\n", "ids.txt")
    with pytest.raises(UserError, match="2 embeddings but 3 ids"):
        scoring.load_embeddings(tmp_path)


def test_damaged_npz(tmp_path):
    path = tmp_path / "e.npz"
    np.savez_compressed(path, ids=np.array(["a"]), embeddings=np.random.default_rng(0).normal(size=(1, 500)))
    content = bytearray(path.read_bytes())
    content[2000:2100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not a NumPy file of embeddings"):
        scoring.load_embeddings(path)
