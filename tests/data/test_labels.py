"""Lists of labels: what is read, what is refused with its line, and folders as labels."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from sdpn_jax.data import labels
from sdpn_jax.errors import UserError

WORDS = st.text(st.characters(exclude_categories=["Cs", "Zs", "Zl", "Zp", "Cc"]), min_size=1)


def written(folder, text):
    path = folder / "utt2spk"
    path.write_bytes(text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text)
    return path


def test_reads_utt2spk(tmp_path):
    path = written(tmp_path, "\ufeffa/1.wav s1\n\nb 2.wav\ts2\r\na/1.wav s1\n")
    assert labels.read_labels(path) == {"a/1.wav": "s1", "b 2.wav": "s2"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("a s\nalone\n", "line 2: wanted is 'utterance label', not alone"),
        ("a s\nb t\na t\n", "line 3: a has another label before"),
        ("\n\n", "has no line"),
        ("a\0 s\n", "line 1"),
    ],
)
def test_refuses_with_the_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        labels.read_labels(written(tmp_path, text))


def test_says_that_there_is_no_such_list(tmp_path):
    with pytest.raises(UserError, match="cannot read the labels"):
        labels.read_labels(tmp_path / "nothing")


@given(st.dictionaries(WORDS, WORDS, min_size=1))
def test_what_is_written_is_read(tmp_path_factory, known):
    path = tmp_path_factory.getbasetemp() / "labels.txt"
    labels.write_labels(path, known)
    assert labels.read_labels(path) == known


@pytest.mark.parametrize("known", [{"a\nb": "s"}, {" a": "s"}, {"a": "s t"}, {"a": ""}, {"": "s"}])
def test_refuses_to_write_what_would_be_read_otherwise(tmp_path, known):
    with pytest.raises(UserError, match="cannot stand in a line"):
        labels.write_labels(tmp_path / "labels.txt", known)


def test_the_first_folder_is_the_label():
    ids = ["id1/x/0.wav", "id1/y.wav", "/id2/0.wav"]
    assert labels.of_folders(ids) == {"id1/x/0.wav": "id1", "id1/y.wav": "id1", "/id2/0.wav": "id2"}
    with pytest.raises(UserError, match="z.wav lies in no folder"):
        labels.of_folders(["z.wav"])
