"""Trial lists and embeddings, good and bad; scores against SciPy's cosine distance."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cosine
from sklearn.metrics import roc_curve

from sdpn_jax.errors import UserError
from sdpn_jax.eval import scoring
from sdpn_jax.eval.scoring import Trials


def write(tmp_path, text, name="trials.txt"):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def rows_by_definition(ids, name):
    """The rows that the matching rules give, by comparing lists of path components pair by pair."""

    def parts(path, keep):
        if not keep:
            path = re.sub(r"\.(wav|flac)$", "", path)
        return path.split("/")

    for ends in (False, True):
        for keep in (True, False):
            rows = []
            for row, other in enumerate(ids):
                a, b = parts(name, keep), parts(other, keep)
                size = min(len(a), len(b))
                if a == b or (ends and a[-size:] == b[-size:]):
                    rows.append(row)
            if rows:
                return rows
    return []


def test_voxceleb_list(tmp_path):
    trials = scoring.read_trials(write(tmp_path, "1 a/b.wav c/d.wav\n\n0 a/b.wav e.wav\n  \n"))
    assert trials.labels.dtype == np.int8
    assert trials.labels.tolist() == [1, 0]
    assert trials.enrol == ["a/b.wav", "a/b.wav"]
    assert trials.test == ["c/d.wav", "e.wav"]
    assert trials.lines.tolist() == [1, 3]


def test_kaldi_list_with_carriage_returns_tabs_and_byte_order_mark(tmp_path):
    trials = scoring.read_trials(write(tmp_path, "\ufeff1\tb target\r\n\r\n0 b  nontarget\r\n"))
    assert trials.labels.tolist() == [1, 0]
    assert trials.enrol == ["1", "0"]  # ids, although they look like VoxCeleb's labels
    assert trials.test == ["b", "b"]


names = st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1, max_size=12)


@given(
    st.lists(st.tuples(st.integers(0, 1), names, names.filter(lambda n: n not in ("target", "nontarget"))), min_size=1),
    st.booleans(),
    st.sampled_from(["\n", "\r\n", "\n\n", " \n"]),
)
def test_reads_back_what_was_written(tmp_path_factory, trials, kaldi, end):
    line = (lambda k, a, b: f"{a} {b} {('nontarget', 'target')[k]}") if kaldi else (lambda k, a, b: f"{k} {a} {b}")
    path = write(tmp_path_factory.mktemp("lists"), "".join(line(*trial) + end for trial in trials))
    read = scoring.read_trials(path)
    assert list(zip(read.labels.tolist(), read.enrol, read.test, strict=True)) == trials


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 a b\n2 a c\n", r"trials\.txt, line 2: not a trial: '2 a c'; wanted is '1 enrol test', '0 enrol test'$"),
        ("1 a b\n\n1 a\n", r"line 3: not a trial: '1 a'"),
        ("1 a b\na b target\n", r"line 2: not a trial: 'a b target'"),
        ("a b target\n1 a b\n", r"line 2: not a trial: '1 a b'; wanted is 'enrol test target'"),
        ("1 my file.wav b.wav\n", r"line 1: .*'1 my file\.wav b\.wav'.*paths with spaces cannot be read: rename them"),
        ("a b Target\n", r"line 1: not a trial"),
        ("1 " + 1000 * "x", r"line 1: not a trial: '1 x{198}\.\.\.'"),
        ("", "the trial list is empty"),
        (" \r\n\n", "the trial list is empty"),
        (b"\xff\xfe1\x00", "not a text file in UTF-8"),
    ],
)
def test_bad_lists(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        scoring.read_trials(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_list_that_cannot_be_opened(tmp_path):
    with pytest.raises(UserError, match=r"none\.txt: cannot read the trial list \(No such file"):
        scoring.read_trials(tmp_path / "none.txt")
    with pytest.raises(UserError, match="cannot read the trial list"):
        scoring.read_trials(tmp_path)


@pytest.mark.parametrize(
    ("ids", "name", "rows"),
    [
        (["a/x.flac", "b/x.flac"], "b/x.flac", [1]),
        (["a/x.wav", "a/x.flac"], "a/x.flac", [1]),  # the same id goes first
        (["b/x.wav", "x.wav"], "x.wav", [1]),
        (["a/x.wav"], "a/x.flac", [0]),
        (["a/x"], "a/x.WAV", [0]),
        (["1688/x.flac", "1689/x.flac"], "test/1688/x.flac", [0]),
        (["test/1688/x.flac"], "1688/x.flac", [0]),
        (["1688/x.flac", "1688/y.flac"], "x", [0]),
        (["1688/x.v2.flac"], "x.v2", [0]),
        (["/data/./1688/x.wav"], "./1688/x.wav", [0]),
        (["11688/x.flac"], "1688/x.flac", []),  # only at a folder's border
        (["1688/ax.flac"], "x.flac", []),
        (["1688/x.flac"], "1688", []),
        (["test/1688/x.flac"], "test_degraded/1688/x.flac", []),
        (["a/x.flac", "b/x.flac"], "x", [0, 1]),
        (["a/x.wav", "a/x.mp3"], "a/x.flac", [0, 1]),
        (["b/x.wav", "x.wav"], "a/b/x.wav", [0, 1]),
    ],
)
def test_matching(ids, name, rows):
    found, faults = scoring.match_ids(ids, [name, name])
    if len(rows) == 1:
        assert (found, faults) == ({name: rows[0]}, {})
    else:
        assert found == {}
        assert sorted(faults[name]) == rows


paths = st.builds(
    lambda parts, extension: "/".join(parts) + extension,
    st.lists(st.sampled_from(["a", "b", "aa", "x.y"]), min_size=1, max_size=4),
    st.sampled_from(["", ".wav", ".flac", ".txt"]),
)


@given(st.lists(paths, unique=True, max_size=12), st.lists(paths, max_size=6))
def test_matching_equals_the_definition(ids, wanted):
    found, faults = scoring.match_ids(ids, wanted)
    assert found.keys() | faults.keys() == set(wanted)
    for name in wanted:
        assert (sorted(faults[name]) if name in faults else [found[name]]) == rows_by_definition(ids, name)


def test_missing_utterances_are_counted_and_shown_with_their_lines():
    trials = Trials(
        np.array([1, 0, 0, 1]), ["a", "gone", "a", "gone"], ["b", "a", "lost", "lost"], [2, 3, 5, 6], "t.txt"
    )
    with pytest.raises(UserError) as caught:
        scoring.trial_rows(["a", "b"], trials)
    assert str(caught.value).startswith(
        "t.txt: 3 of 4 trials name utterances without an embedding (2 utterances), first: line 3 'gone', line 5 'lost'"
        "; the embeddings' ids look like 'a'; export the missing ones with"
    )


def test_ambiguous_utterances_are_shown():
    trials = Trials(np.array([1, 0]), ["x", "c/y"], ["c/y", "c/y"])
    with pytest.raises(UserError, match=r"1 of 2 trials .* fit several .* first: line 1 'x'; 'x' fits 'a/x' and 'b/x'"):
        scoring.trial_rows(["a/x", "b/x", "c/y"], trials)


def test_rows_are_in_the_order_of_the_list():
    enrol, test = scoring.trial_rows(["a", "b", "c"], Trials(np.array([1, 0]), ["c", "a"], ["b", "c"]))
    assert enrol.tolist() == [2, 0]
    assert test.tolist() == [1, 2]


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
        ({"ids": np.array(["a", None]), "embeddings": np.ones((2, 3))}, "array 'ids' cannot be read"),
    ],
)
def test_bad_npz(tmp_path, arrays, message):
    with pytest.raises(UserError, match=r"e\.npz: .*" + message):
        scoring.load_embeddings(save(tmp_path / "e.npz", **arrays))


def test_files_that_are_no_embeddings(tmp_path):
    with pytest.raises(UserError, match="cannot read the embeddings .No such file"):
        scoring.load_embeddings(tmp_path / "none.npz")
    with pytest.raises(UserError, match=r"embeddings\.npy: cannot read the embeddings"):
        scoring.load_embeddings(tmp_path)
    for content in (b"", b"hello", b"PK\x03\x04 cut short"):
        with pytest.raises(UserError, match=r"text\.npz: "):
            scoring.load_embeddings(write(tmp_path, content, "text.npz"))
    np.save(tmp_path / "embeddings.npy", np.ones((2, 3)))
    with pytest.raises(UserError, match="not an .npz archive"):
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
    with pytest.raises(UserError, match="array 'embeddings' cannot be read"):
        scoring.load_embeddings(path)


@pytest.mark.parametrize("name", ["trials", "trials_degraded"])
def test_real_lists(speech, name):
    """The labels of the real lists agree with the speakers that their paths name, and every path is matched."""
    folder = speech / "librispeech_mini"
    trials = scoring.read_trials(folder / f"{name}.txt")
    assert (len(trials), trials.labels.sum()) == (1225, 225)
    speaker = lambda path: path.split("/")[1]  # noqa: E731
    assert [speaker(a) == speaker(b) for a, b in zip(trials.enrol, trials.test, strict=True)] == trials.labels.tolist()
    files = sorted((folder / trials.enrol[0].split("/")[0]).glob("*/*.flac"))
    speakers = sorted({file.parent.name for file in files})
    one_hot = np.eye(len(speakers), dtype=np.float32)[[speakers.index(file.parent.name) for file in files]]
    for ids in ([str(file.relative_to(folder)) for file in files], [str(f) for f in files], [f.stem for f in files]):
        assert scoring.evaluate(one_hot, ids, trials)["eer_percent"] == 0.0
