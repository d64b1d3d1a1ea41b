"""Trial lists of every form, good and bad, and the matching of ids against its definition."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpn_jax.errors import UserError
from sdpn_jax.eval import scoring
from sdpn_jax.eval.forms import LABELS
from sdpn_jax.eval.matching import match_ids
from sdpn_jax.eval.models import add_models, read_models
from sdpn_jax.eval.trials import Trials, numbered_sides, read_trials, suspicions, trial_rows

CASES = Path(__file__).parents[1] / "cases"


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
    trials = read_trials(write(tmp_path, "1 a/b.wav c/d.wav\n\n0 a/b.wav e.wav\n  \n"))
    assert trials.labels.dtype == np.int8
    assert trials.labels.tolist() == [1, 0]
    assert trials.enrol == ["a/b.wav", "a/b.wav"]
    assert trials.test == ["c/d.wav", "e.wav"]
    assert trials.lines.tolist() == [1, 3]


def test_kaldi_list_with_carriage_returns_tabs_and_byte_order_mark(tmp_path):
    trials = read_trials(write(tmp_path, "\ufeff1\tb target\r\n\r\n0 b  nontarget\r\n"))
    assert trials.labels.tolist() == [1, 0]
    assert trials.enrol == ["1", "0"]  # ids, although they look like VoxCeleb's labels
    assert trials.test == ["b", "b"]


@pytest.mark.parametrize(
    ("text", "labels", "enrol", "test"),
    [
        (
            "id1-enroll test/a.wav 1\nid2-enroll test/a.wav 0\n",
            [1, 0],
            ["id1-enroll", "id2-enroll"],
            ["test/a.wav"] * 2,
        ),
        ("1,my a.wav,b.wav\n0,c.wav,d e.wav\n", [1, 0], ["my a.wav", "c.wav"], ["b.wav", "d e.wav"]),
        ("1, a, b\n", [1], ["a"], ["b"]),
        ("1\tmy a\tb c\n", [1], ["my a"], ["b c"]),
        ("a,b,nontarget\n", [0], ["a"], ["b"]),
        ('Test,Label,Enroll\n"b,1",1,a\n\nc,0,d\n', [1, 0], ["a", "d"], ["b,1", "c"]),
        ("file1\tfile2\nx y\tz\n", None, ["x y"], ["z"]),
        ("a.wav b.wav\nc.wav d.wav\n", None, ["a.wav", "c.wav"], ["b.wav", "d.wav"]),
        ("my a.wav,b.wav\n", None, ["my a.wav"], ["b.wav"]),
    ],
)
def test_other_lists(tmp_path, text, labels, enrol, test):
    read = read_trials(write(tmp_path, text))
    assert (read.labels is None and labels is None) or read.labels.tolist() == labels
    assert (read.enrol, read.test) == (enrol, test)


def test_error_rates_need_labels(tmp_path):
    read = read_trials(write(tmp_path, "a b\n"))
    with pytest.raises(UserError, match=r"trials\.txt: the list does not say which trials are targets"):
        scoring.evaluate(np.eye(2, dtype=np.float32), ["a", "b"], read)


def test_models_of_several_utterances(tmp_path):
    trials = Trials(np.array([1, 0]), ["m1", "m2"], ["x/a.wav", "x/a.wav"])
    models = read_models(write(tmp_path, "m1 a.wav b.wav\r\n\nm2 c\nm1 c.wav\nm3 a.wav\n"), trials)
    assert models == {"m1": ["a.wav", "b.wav", "c.wav"], "m2": ["c"]}
    models["m1"] = ["x/a.wav", "x/b.wav", "x/c.wav"]
    models["m2"] = ["x/c.wav"]
    embeddings = np.array([[2, 0], [0, 5], [-3, 0]], np.float32)
    together, ids, warnings = add_models(embeddings, ["x/a.wav", "x/b.wav", "x/c.wav"], models, trials)
    assert ids == ["x/a.wav", "x/b.wav", "x/c.wav", "m1", "m2"] and warnings == []
    np.testing.assert_allclose(together, [*embeddings, [0, 1 / 3], [-1, 0]], atol=1e-7)
    with pytest.raises(UserError, match=r"2 utterances of the models cannot be found .* first: 'x/b\.wav' has no emb"):
        add_models(embeddings[:1], ["x/a.wav"], models, trials)
    together, ids, warnings = add_models(embeddings[:1], ["x/a.wav"], models, trials, skip_missing=True)
    assert ids == ["x/a.wav", "m1"], "m2 has no utterance left"
    np.testing.assert_allclose(together, [[2, 0], [1, 0]], atol=1e-7)
    assert warnings[0].startswith("2 of 3 enrolment utterances have no embedding and are left out, first: 'x/b.wav'")
    with pytest.raises(UserError, match="line 2: a model without an utterance: 'm2'"):
        read_models(write(tmp_path, "m1 a\nm2\n"), trials)
    with pytest.raises(UserError, match="the list of models is empty"):
        read_models(write(tmp_path, "\n"), trials)
    with pytest.raises(UserError, match="none of its 2 models, such as 'n1', is named in the trial list"):
        read_models(write(tmp_path, "n1 a b\nn2 c\n"), trials)


def test_utterances_before_their_models():
    """A file of Kaldi's utt2spk in place of its spk2utt."""
    trials = read_trials(CASES / "models" / "trials.txt")
    models = read_models(CASES / "models" / "utt2spk", trials)
    assert models["id10270-enroll"] == ["id10270/vid0/00001.wav", "id10270/vid0/00002.wav"]


def test_a_table_of_models(tmp_path):
    trials = Trials(np.array([1]), ["m1"], ["t.sph"])
    assert read_models(write(tmp_path, "modelid\tsegmentid\nm1\ta.sph\nm1\tb.sph\n"), trials) == {
        "m1": ["a.sph", "b.sph"]
    }


@pytest.mark.parametrize("name, labels", [
    ("float.csv", [1, 0]), ("nontarget_caps.txt", [1, 0, 0]), ("path12.csv", [1, 0]), ("plain_sc.csv", [1, 0]),
    ("sitw_key.lst", [1, 0, 0]), ("voices.lst", [1, 0, 0]), ("speakers.csv", [1, 0]), ("truefalse.csv", [1, 0]),
    ("vox.txt", [1, 0, 0]),
])  # fmt: skip
def test_lists_as_corpora_write_them(name, labels):
    trials = read_trials(CASES / "trials" / name)
    assert trials.labels[: len(labels)].tolist() == labels
    assert trials.enrol[0].startswith("id10270/vid0/00001") and trials.test[0].endswith("id10270/vid0/00002.wav")
    embeddings, ids = scoring.load_embeddings(CASES / "trials" / "e.npz")
    assert scoring.evaluate(embeddings, ids, trials)["eer_percent"] < 50


@pytest.mark.parametrize("text, labels", [
    ("modelid\tsegmentid\tside\ttargettype\nm1\ta.sph\ta\ttarget\nm1\tb.sph\tb\tnontarget\n", [1, 0]),
    ('{"enrol": "a.wav", "test": "b.wav", "label": true}\n{"enrol": "a.wav", "test": "c.wav", "label": 0}\n', [1, 0]),
    ("1 a b\n-1 a c\n", [1, 0]), ("1.0 a b\n0.0 a c\n", [1, 0]), ("a b same\na c DIFFERENT\n", [1, 0]),
    ("yes,a,b\nno,a,c\n", [1, 0]), ("enrol\ttest\tkey\na\tb\ttgt\na\tc\timp\n", [1, 0]),
])  # fmt: skip
def test_labels_in_other_words(tmp_path, text, labels):
    assert read_trials(write(tmp_path, text)).labels.tolist() == labels


def test_one_embedding_stands_for_one_utterance():
    """Two speakers' utterances of one name were both taken for the embedding of that name."""
    embeddings, ids = scoring.load_embeddings(CASES / "end_of_id" / "embeddings.npz")
    with pytest.raises(UserError, match="utterances that share an embedding with another name.* both fit '"):
        scoring.evaluate(embeddings, ids, read_trials(CASES / "end_of_id" / "trials.txt"))


@pytest.mark.parametrize("name, words", [
    ("conflict.txt", "both labels, target and nontarget"), ("self.txt", "an utterance with itself"),
])  # fmt: skip
def test_lists_that_look_wrong(name, words):
    trials = read_trials(CASES / "trials" / name)
    assert any(words in sentence for sentence in suspicions(trials, *numbered_sides(trials)))


def test_suspicions_are_counted():
    enrol, test = ["a", "b", "a", "c", "d"], ["b", "a", "b", "c", "e"]
    trials = Trials(np.array([1, 0, 1, 1, 0]), enrol, test, [2, 4, 6, 8, 9], "t")
    assert suspicions(trials, *numbered_sides(trials)) == [
        "t: 1 of 5 trials (first: line 8) is of an utterance with itself",
        "t: 1 pair has both labels, target and nontarget, first in lines 2 and 4",
    ]
    again = Trials(np.array([1, 0, 1]), ["a", "b", "b"], ["b", "c", "a"], [1, 2, 3], "t")
    assert suspicions(again, *numbered_sides(again)) == [
        "t: 1 of 3 trials (first: line 3) is of the same pair twice or more, in this order or the other"
    ]
    honest = read_trials(CASES / "trials" / "vox.txt")
    assert suspicions(honest, *numbered_sides(honest)) == []


# Not such as end in a separator: `a, b, 1` is a line of fields between commas.
names = st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1, max_size=12).filter(
    lambda name: not name.endswith((",", ";"))
)


@given(
    st.lists(st.tuples(st.integers(0, 1), names, names.filter(lambda n: n.lower() not in LABELS)), min_size=1),
    st.booleans(),
    st.sampled_from(["\n", "\r\n", "\n\n", " \n"]),
)
def test_reads_back_what_was_written(tmp_path_factory, trials, kaldi, end):
    line = (lambda k, a, b: f"{a} {b} {('nontarget', 'target')[k]}") if kaldi else (lambda k, a, b: f"{k} {a} {b}")
    path = write(tmp_path_factory.mktemp("lists"), "".join(line(*trial) + end for trial in trials))
    read = read_trials(path)
    assert list(zip(read.labels.tolist(), read.enrol, read.test, strict=True)) == trials


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 a b\n2 a c\n", r"trials\.txt, line 2: field 1, '2', is no label: wanted is 1 or 0, target or"),
        ("1 a b\n\n1 a\n", r"line 3: 2 fields in '1 a'; wanted is '1 enrol test'"),
        ("1 a b\n0 c d\na b target\n", r"line 3: field 1, 'a', is no label"),
        ("a b target\nc d nontarget\n1 a b\n", r"line 3: field 3, 'b', is no label"),
        ("a b targt\n", r"line 1: not a trial: neither field 1, 'a', nor field 3, 'targt', is a label"),
        ("1 my file.wav b.wav\n", r"line 1: .*'1 my file\.wav b\.wav'.*paths with spaces need commas"),
        ("1 a b\n-1 c d\n0 e f\n", r"both -1 .first in line 2. and 0 .line 3. are labels"),
        ('a,b,1\n"a,c,0\n', r"line 2: .* is no row of a table"),
        ("1 a b\n1 a \x1b[31m\x00c\n", r"line 2: a NUL byte"),
        ("1 " + 1000 * "x", r"line 1: .*1 xxx.*\.\.\.'"),
        ("", "the trial list is empty"),
        (" \r\n\n", "the trial list is empty"),
        (b"\xff\xfe1\x00", "not a text file in UTF-8"),
    ],
)
def test_bad_lists(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read_trials(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_list_that_cannot_be_opened(tmp_path):
    with pytest.raises(UserError, match=r"none\.txt: cannot read the trial list \(No such file"):
        read_trials(tmp_path / "none.txt")
    with pytest.raises(UserError, match="cannot read the trial list"):
        read_trials(tmp_path)


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
    found, faults = match_ids(ids, [name, name])
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
    found, faults = match_ids(ids, wanted)
    assert found.keys() | faults.keys() == set(wanted)
    for name in wanted:
        rows = rows_by_definition(ids, name)
        assert (sorted(faults[name]) if name in faults else [found[name]]) == rows
        shared = len(rows) == 1 and any(rows_by_definition(ids, other) == rows for other in set(wanted) - {name})
        assert (name in faults) == (len(rows) != 1 or shared), "one to one, or not at all"


def test_missing_utterances_are_counted_and_shown_with_their_lines():
    trials = Trials(
        np.array([1, 0, 0, 1]), ["a", "gone", "a", "gone"], ["b", "a", "lost", "lost"], [2, 3, 5, 6], "t.txt"
    )
    with pytest.raises(UserError) as caught:
        trial_rows(["a", "b"], trials)
    assert str(caught.value).startswith(
        "t.txt: 3 of 4 trials name utterances without an embedding (2 utterances), first: line 3 'gone', line 5 'lost'"
        "; the embeddings' ids look like 'a'; embed the missing ones with"
    )


def test_ambiguous_utterances_are_shown():
    trials = Trials(np.array([1, 0]), ["x", "c/y"], ["c/y", "c/y"])
    with pytest.raises(UserError, match=r"1 of 2 trials .* fit several .* first: line 1 'x'; 'x' fits 'a/x' and 'b/x'"):
        trial_rows(["a/x", "b/x", "c/y"], trials)


def test_rows_are_in_the_order_of_the_list():
    enrol, test = trial_rows(["a", "b", "c"], Trials(np.array([1, 0]), ["c", "a"], ["b", "c"]))
    assert enrol.tolist() == [2, 0]
    assert test.tolist() == [1, 2]


@pytest.mark.parametrize("name", ["trials", "trials_degraded"])
def test_real_lists(speech, name):
    """The labels of the real lists agree with the speakers that their paths name, and every path is matched."""
    folder = speech / "librispeech_mini"
    trials = read_trials(folder / f"{name}.txt")
    assert (len(trials), trials.labels.sum()) == (1225, 225)
    speaker = lambda path: path.split("/")[1]  # noqa: E731
    assert [speaker(a) == speaker(b) for a, b in zip(trials.enrol, trials.test, strict=True)] == trials.labels.tolist()
    files = sorted((folder / trials.enrol[0].split("/")[0]).glob("*/*.flac"))
    speakers = sorted({file.parent.name for file in files})
    one_hot = np.eye(len(speakers), dtype=np.float32)[[speakers.index(file.parent.name) for file in files]]
    for ids in ([str(file.relative_to(folder)) for file in files], [str(f) for f in files], [f.stem for f in files]):
        assert scoring.evaluate(one_hot, ids, trials)["eer_percent"] == 0.0


@pytest.mark.parametrize(
    "lines",
    [
        "1 utt1 utt2|0 utt1 utt3|1 utt3 utt4",
        "id1 id2 target|id3 id4 nontarget",
        "sample1 sample2 target|sample3 sample4 nontarget",
        "1,audio1,audio2|0,x,y",
        "left right 1|up down 0",
        "1 enroll test|0 a b",
        "utta uttb yes|uttc uttd no",
    ],
)
def test_ids_that_look_like_a_heading_are_a_trial(lines, tmp_path):
    (tmp_path / "t.txt").write_text(lines.replace("|", "\n"))
    trials = read_trials(tmp_path / "t.txt")
    assert len(trials) == len(lines.split("|"))
    assert trials.labels is not None and trials.labels[:2].tolist() == [1, 0]


def test_ids_without_labels_that_look_like_a_heading(tmp_path):
    (tmp_path / "t.txt").write_text("utt1 utt2\nutt3 utt4\n")
    assert read_trials(tmp_path / "t.txt").enrol == ["utt1", "utt3"]
    (tmp_path / "t.txt").write_text("utt1 utt2\ns1/a.wav s2/b.wav\n")
    assert read_trials(tmp_path / "t.txt").enrol == ["s1/a.wav"]


def test_models_that_look_like_a_heading(tmp_path):
    (tmp_path / "models.txt").write_text("id1 utt2\nid1 utt3\n")
    trials = Trials(np.array([1]), ["id1"], ["utt9"])
    assert read_models(tmp_path / "models.txt", trials) == {"id1": ["utt2", "utt3"]}


def test_a_list_that_is_one_json_array(tmp_path):
    (tmp_path / "t.json").write_text('[{"enrol": "a", "test": "b", "label": 1}]')
    with pytest.raises(UserError, match="line 1: the list is one JSON array: write an object on each line"):
        read_trials(tmp_path / "t.json")
