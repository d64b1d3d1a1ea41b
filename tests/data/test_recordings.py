"""Finding utterances: folders, lists, Kaldi data folders, manifests."""

import gzip
import json
import logging
import os
from pathlib import Path

import pytest

from sdpn_jax.data import recordings
from sdpn_jax.data.audio import Cut
from sdpn_jax.data.recordings import find_utterances
from sdpn_jax.errors import UserError

CASES = Path(__file__).parents[1] / "cases"


def ids(source):
    return [cut.id for cut in find_utterances(source)]


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_a_folder(tmp_path):
    touch(tmp_path, "b/2.wav", "b/1.FLAC", "a b/é.m4a", "new\nline.wav", "notes.txt", ".hidden/x.wav", ".y.wav")
    os.symlink(tmp_path, tmp_path / "b" / "loop")
    found = find_utterances(tmp_path)
    assert [cut.id for cut in found] == ["a b/é.m4a", "b/1.FLAC", "b/2.wav", "new\nline.wav"]
    assert all(path.read_bytes() == b"x" for path in (cut.path for cut in found))


def test_a_list_of_paths(tmp_path):
    touch(tmp_path, "audio/x/1.wav", "audio/y/2.wav")
    (tmp_path / "list.txt").write_text(f"audio/x/1.wav\r\n\n{tmp_path}/audio/y/2.wav\n")
    assert ids(tmp_path / "list.txt") == ["x/1.wav", "y/2.wav"]


def test_a_wav_scp(tmp_path):
    (tmp_path / "wav.scp").write_text(f"utt1 a b.wav\nutt0 {tmp_path}/c.wav\n")
    found = find_utterances(tmp_path / "wav.scp")
    assert found == [Cut("utt0", tmp_path / "c.wav"), Cut("utt1", tmp_path / "a b.wav")]


def test_bad_sources(tmp_path):
    def refused(name, text, message):
        (tmp_path / name).write_bytes(text)
        with pytest.raises(UserError, match=message):
            find_utterances(tmp_path / name)

    refused("pipe.scp", b"a a.wav\nb sph2pipe b.sph |\n", r"pipe.scp, line 2: a command")
    refused("short.scp", b"a\n", "line 1: expected 'id path'")
    refused("twice.scp", b"a 1.wav\na 2.wav\n", "line 2: the id 'a' occurs twice")
    refused("empty.txt", b"\n", "is empty")
    refused("binary.txt", bytes(range(256)), "not a text file")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="no recordings"):
        find_utterances(tmp_path / "folder")
    with pytest.raises(UserError, match="does not exist"):
        find_utterances(tmp_path / "nowhere")


def test_what_a_folder_leaves_out_is_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    touch(tmp_path, "a.wav", "b.webm", "c.sph", "d.SPX", "notes.txt", "more.txt", "x.json", "README")
    assert ids(tmp_path) == ["a.wav", "b.webm", "c.sph", "d.SPX"]
    assert all(words in caplog.text for words in ("2 '.txt'", "1 '.json'", "1 'no extension'"))


@pytest.mark.parametrize("name, expected", [
    ("tab.scp", {"u1": "a.wav"}), ("bom.scp", {"u1": "a.wav", "u2": "a.wav"}), ("bom.txt", {"a.wav": "a.wav"}),
])  # fmt: skip
def test_tabs_blanks_and_byte_order_marks(name, expected):
    found = {cut.id: cut.path for cut in find_utterances(CASES / "wav_scp" / name)}
    assert found == {key: CASES / "wav_scp" / path for key, path in expected.items()}


def test_paths_relative_to_the_working_directory(tmp_path, monkeypatch):
    touch(tmp_path, "data/a.wav", "lists/wav.scp", "lists/files.txt")
    (tmp_path / "lists" / "wav.scp").write_text("u1\tdata/a.wav\n")
    (tmp_path / "lists" / "files.txt").write_text("data/a.wav\n")
    monkeypatch.chdir(tmp_path)
    assert [cut.path.resolve() for cut in find_utterances("lists/wav.scp")] == [tmp_path / "data" / "a.wav"]
    assert [cut.path.resolve() for cut in find_utterances("lists/files.txt")] == [tmp_path / "data" / "a.wav"]


def test_lists_with_ids_before_their_paths(tmp_path):
    """As SITW's and CN-Celeb's enrolments; a blank within a path does not make the first part of it an id."""
    touch(tmp_path, "audio/x.sph", "audio/y z.sph", "b c.wav")
    (tmp_path / "enroll.lst").write_text("12345 audio/x.sph\n67890 audio/y z.sph\n")
    assert find_utterances(tmp_path / "enroll.lst") == [
        Cut("12345", tmp_path / "audio/x.sph"), Cut("67890", tmp_path / "audio/y z.sph")
    ]  # fmt: skip
    (tmp_path / "list.txt").write_text("b c.wav\naudio/x.sph\n")
    assert ids(tmp_path / "list.txt") == ["audio/x.sph", "b c.wav"]


@pytest.mark.parametrize("source", ["kaldi", "kaldi/wav.scp"])
def test_segments_of_a_kaldi_data_folder(source):
    path = CASES / "wav_scp" / "kaldi" / ".." / "a.wav"
    assert find_utterances(CASES / "wav_scp" / source) == [
        Cut("rec1-0", path, 0.0, 1.0), Cut("rec1-1", path, 1.0, 2.5)
    ]  # fmt: skip


@pytest.mark.parametrize("line, message", [
    ("u r 1.0", "line 1: expected 'utterance recording start end'"), ("u r one 2", "line 1: expected"),
    ("u x 0 1", "line 1: the recording 'x' is not in wav.scp"), ("u r 2 1", "line 1: from 2.0 to 1.0 s is no stretch"),
    ("u r -1 1", "no stretch"),
    ("u r nan 1", "no stretch"), ("u r 0 inf", "no stretch"), ("u r 0 1 99", "no channel 99"),
])  # fmt: skip
def test_segments_that_make_no_sense(tmp_path, line, message):
    (tmp_path / "wav.scp").write_text("r a.wav\n")
    (tmp_path / "segments").write_text(line + "\n")
    with pytest.raises(UserError, match=message):
        find_utterances(tmp_path)
    (tmp_path / "segments").write_text("u r 0.5 -1 1\n")
    assert find_utterances(tmp_path) == [Cut("u", tmp_path / "a.wav", 0.5, None, 1)]


def test_manifests(tmp_path):
    touch(tmp_path, "a.wav", "b/c.wav")
    (tmp_path / "nemo.json").write_text(
        '{"audio_filepath": "a.wav", "duration": 3.0, "label": "x"}\n'
        '{"audio_filepath": "b/c.wav", "offset": 1.5, "duration": 2.0}\n'
    )
    assert find_utterances(tmp_path / "nemo.json") == [
        Cut("a.wav", tmp_path / "a.wav"), Cut("b/c.wav-1.5-3.5", tmp_path / "b" / "c.wav", 1.5, 3.5)
    ]  # fmt: skip
    source = {"type": "file", "channels": [0], "source": "b/c.wav"}
    recording = {"id": "rec", "sources": [source], "sampling_rate": 16000, "num_samples": 16000, "duration": 1.0}
    cut = {"id": "cut", "start": 0.25, "duration": 0.5, "channel": 0, "recording": recording, "type": "MonoCut"}
    with gzip.open(tmp_path / "lhotse.jsonl.gz", "wt") as file:
        file.write(json.dumps(recording) + "\n" + json.dumps(cut) + "\n")
    assert find_utterances(tmp_path / "lhotse.jsonl.gz") == [
        Cut("cut", tmp_path / "b" / "c.wav", 0.25, 0.75, 0), Cut("rec", tmp_path / "b" / "c.wav")
    ]  # fmt: skip


@pytest.mark.parametrize("line, message", [
    ("[1]", "line 1: expected a JSON object"),
    ("{", "line 1: expected a JSON object"), ("[" * 100_000, "line 1: expected"),
    ("{}", "names no recording"), ('{"audio_filepath": 3}', "names no recording"),
    ('{"audio_filepath": "a.wav", "offset": "x", "duration": 1}', "offset is no number of seconds: 'x'"),
    ('{"audio_filepath": "a.wav", "offset": NaN, "duration": 1}', "no stretch"),
    ('{"recording": {"sources": [{"type": "command", "source": "rm -rf x"}]}}', "a source of the type 'command'"),
    ('{"recording": {"sources": [{"type": "url", "source": "http://x"}]}}', "a source of the type 'url'"),
])  # fmt: skip
def test_manifests_that_make_no_sense(tmp_path, line, message):
    (tmp_path / "list.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=message):
        find_utterances(tmp_path / "list.jsonl")


def test_a_manifest_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(recordings, "MOST_LIST_BYTES", 4000)
    (tmp_path / "list.jsonl.gz").write_bytes(gzip.compress(b" " * 1_000_000))
    with pytest.raises(UserError, match="unpacks to more than 1,000 bytes"):
        find_utterances(tmp_path / "list.jsonl.gz")


def test_ids_of_any_bytes_survive(tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    touch(tmp_path, name)
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.wav\n")
    assert ids(tmp_path / "list.txt") == [name] == [cut.path.name for cut in find_utterances(tmp_path / "list.txt")]


def test_a_small_list_does_not_unpack_to_a_large_one(tmp_path):
    (tmp_path / "list.txt.gz").write_bytes(gzip.compress(b"a\n" * 10**7))
    with pytest.raises(UserError, match="list.txt.gz unpacks to more than"):
        find_utterances(tmp_path / "list.txt.gz")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"audio_filepath": "a\0.wav"}, "line 1: a line break or NUL"),
        ({"audio_filepath": "\ud800.wav"}, "line 1: half a character"),
        ({"audio_filepath": "a.wav", "id": "x 7\ny"}, "line 1: a line break or NUL"),
        ({"audio_filepath": "a.wav", "id": "\ud800"}, "line 1: half a character"),
        ({"audio_filepath": "a.wav", "offset": 10**400}, "line 1: offset is beyond all numbers"),
    ],
)
def test_texts_of_manifests_that_no_list_can_hold(tmp_path, row, message):
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=message):
        find_utterances(tmp_path / "m.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("u r 0 1\nu r 1 2\n", "segments, line 2: the id 'u' occurs twice"),
        ("\n", "segments is empty: remove it"),
    ],
)
def test_segments_that_name_too_much_or_nothing(tmp_path, text, message):
    touch(tmp_path, "r.wav")
    (tmp_path / "wav.scp").write_text("r r.wav\n")
    (tmp_path / "segments").write_text(text)
    with pytest.raises(UserError, match=message):
        find_utterances(tmp_path)
