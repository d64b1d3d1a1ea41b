"""The export of embeddings: parts, restarts, several tasks, files."""

import shutil
import time

import numpy as np
import pytest
import soundfile
from array_record.python.array_record_module import ArrayRecordWriter

from sdpn_jax import PRETRAINED
from sdpn_jax.data import records
from sdpn_jax.data.features import TAIL_FRAMES
from sdpn_jax.errors import UserError
from sdpn_jax.eval import scoring
from sdpn_jax.speaker import corpus, embedder


def test_statistics():
    x = np.random.default_rng(0).normal(size=(50, 80))
    expected = [*x.mean(0), *np.sqrt(np.mean((x - x.mean(0)) ** 2, axis=0))]
    np.testing.assert_allclose(corpus.log_mel_statistics(x), expected)


@pytest.mark.parametrize("name", ["e.npz", "folder"])
def test_written_embeddings_are_read_back(tmp_path, name):
    embeddings = np.random.default_rng(0).normal(size=(3, 4))
    seconds = np.array([1.0, 2.5, 3.0])
    corpus.write_embeddings(tmp_path / "deep" / name, ["a/é.wav", "b c.wav", "d"], embeddings, seconds)
    read, ids = scoring.load_embeddings(tmp_path / "deep" / name)
    assert list(ids) == ["a/é.wav", "b c.wav", "d"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, embeddings.astype(np.float32))
    np.testing.assert_array_equal(scoring.load_seconds(tmp_path / "deep" / name), seconds)


@pytest.fixture
def recordings(tmp_path, monkeypatch):
    """Seven recordings of noise and two files that are none, in parts of two."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(7):
        soundfile.write(folder / f"{number}.wav", 0.1 * rng.normal(size=4000 * (number + 1)), 16000)
    for number in (4, 8):
        (folder / f"{number}_broken.wav").write_text("no sound")
    monkeypatch.setattr(corpus, "UTTERANCES_PER_PART", 2)
    monkeypatch.setattr(corpus, "FRAMES_IN_MEMORY", 100)  # so that parts are embedded in several goes
    return folder


def run(recordings, output, **task):
    written = corpus.embed_corpus([recordings], output, "", "statistics", **task)
    return written and written.embeddings


def read(output):
    with np.load(output) as archive:
        return dict(archive)


def test_embeddings_times_and_skipped_files(recordings, tmp_path):
    assert run(recordings, tmp_path / "e.npz") == 7
    result = read(tmp_path / "e.npz")
    assert result["ids"].tolist() == [f"{number}.wav" for number in range(7)]
    np.testing.assert_allclose(result["seconds"], [0.25 * (number + 1) for number in range(7)], atol=0.01)
    assert result["embeddings"].shape == (7, 160)
    skipped = (tmp_path / "e.skipped.txt").read_text().splitlines()
    assert [line.split("\t")[0].strip("'").rsplit("/", 1)[1] for line in skipped] == ["4_broken.wav", "8_broken.wav"]
    assert not list(tmp_path.glob("*.parts"))


def test_after_a_kill_complete_parts_are_kept(recordings, tmp_path, monkeypatch):
    run(recordings, tmp_path / "whole.npz")
    embedded, part_of = [], corpus.embed_part

    def killed_at_third(embed, part, *rest):
        embedded.append(part)
        if len(embedded) == 3:
            raise KeyboardInterrupt
        return part_of(embed, part, *rest)

    monkeypatch.setattr(corpus, "embed_part", killed_at_third)
    with pytest.raises(KeyboardInterrupt):
        run(recordings, tmp_path / "e.npz")
    assert not (tmp_path / "e.npz").exists()
    run(recordings, tmp_path / "e.npz")
    assert len(embedded) == 3 + 3  # five parts: two before the kill, one cut short, three after it
    for key, value in read(tmp_path / "whole.npz").items():
        np.testing.assert_array_equal(value, read(tmp_path / "e.npz")[key])


def test_a_changed_recording_is_not_taken_from_parts(recordings, tmp_path, monkeypatch):
    run(recordings, tmp_path / "e.npz", task_index=0, task_count=1)
    before = read(tmp_path / "e.npz")["embeddings"]
    for index in range(2):
        assert run(recordings, tmp_path / "e.npz", task_index=index, task_count=2) is None
    soundfile.write(recordings / "0.wav", 0.1 * np.random.default_rng(1).normal(size=8000), 16000)
    run(recordings, tmp_path / "e.npz")
    after = read(tmp_path / "e.npz")["embeddings"]
    assert not np.allclose(before[0], after[0])
    np.testing.assert_array_equal(before[1:], after[1:])


def test_tasks_share_the_list(recordings, tmp_path, monkeypatch):
    run(recordings, tmp_path / "whole.npz")
    for index in range(3):
        assert run(recordings, tmp_path / "e.npz", task_index=index, task_count=3) is None
    monkeypatch.setattr(corpus, "embed_part", None)  # nothing is left to be done
    assert run(recordings, tmp_path / "e.npz") == 7
    for key, value in read(tmp_path / "whole.npz").items():
        np.testing.assert_array_equal(value, read(tmp_path / "e.npz")[key])


def test_nothing_readable(recordings, tmp_path):
    for path in recordings.glob("?.wav"):
        shutil.copy(recordings / "4_broken.wav", path)
    with pytest.raises(UserError, match=r"none of the 9 recordings can be used, first '.*0\.wav': unreadable"):
        run(recordings, tmp_path / "e.npz")


def test_results_that_wait_are_bounded(monkeypatch):
    monkeypatch.setattr(corpus.joblib, "cpu_count", lambda: 2)
    made = []
    results = corpus._ahead(
        lambda length: made.append(length) or corpus.Heard(np.zeros((length, 80)), []), [300] * 20, 1000
    )
    for taken, result in enumerate(results, 1):
        assert len(result.log_mel) == 300
        time.sleep(0.01)  # so that whatever may be worked on ahead is finished
        assert len(made) - taken <= 1000 // 300 + 1 + 2
    assert len(made) == 20


def test_kaldi_archives_and_parquet_tables(tmp_path):
    kaldiio, parquet = pytest.importorskip("kaldiio"), pytest.importorskip("pyarrow.parquet")
    embeddings, seconds = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32), np.array([1.0, 2.5])
    ids = ["a/é.wav", "b.wav"]
    corpus.write_embeddings(tmp_path / "x.ark", ids, embeddings, seconds)
    read = kaldiio.load_scp(str(tmp_path / "x.scp"))
    assert list(read) == ids
    np.testing.assert_array_equal([read[name] for name in ids], embeddings)
    corpus.write_embeddings(tmp_path / "x.parquet", ids, embeddings, seconds)
    table = parquet.read_table(tmp_path / "x.parquet").to_pydict()
    assert table["id"] == ids and table["seconds"] == seconds.tolist()
    np.testing.assert_array_equal(np.asarray(table["embedding"], np.float32), embeddings)


@pytest.mark.parametrize("name, bad", [("x.ark", "a b"), ("x.parquet", "\udce9"), ("folder", "a\nb")])
def test_ids_that_a_format_cannot_hold(tmp_path, name, bad):
    with pytest.raises(UserError, match="cannot stand in .*: write --format=npz"):
        corpus.write_embeddings(tmp_path / name, [bad], np.ones((1, 2)), np.ones(1))


@pytest.mark.parametrize("name", ["x.npz", "x.ark", "folder"])
def test_ids_of_any_bytes_are_written(tmp_path, name):
    corpus.write_embeddings(tmp_path / name, ["caf\udce9"], np.ones((1, 2)), np.ones(1))
    if name == "x.npz":
        assert np.load(tmp_path / name)["ids"].tolist() == ["caf\udce9"]
    else:
        path = tmp_path / ("x.scp" if name == "x.ark" else "folder/ids.txt")
        assert path.read_bytes().startswith(b"caf\xe9")


def test_what_may_spoil_embeddings_is_counted(recordings, tmp_path):
    written = corpus.embed_corpus([recordings], tmp_path / "e.npz", "", "statistics")
    assert written.hints == {"under one second": 3}, "of 0.25, 0.5, 0.75, 1.0, ... s"


def test_a_damaged_record_of_a_shard_is_skipped_and_listed(tmp_path):
    """Two of three utterances of one shard are whole; a byte of the middle one is changed in the file."""
    features = np.random.default_rng(0).standard_normal((3, 1, 400, 80)).astype(np.float16)
    tail = np.zeros((1, TAIL_FRAMES, 80), np.float16)
    writer = ArrayRecordWriter(str(tmp_path / "0.array_record"), records.WRITER_OPTIONS)
    for name, log_mel in zip("abc", features, strict=True):
        writer.write(records.encode(records.Utterance(name, 64_000, log_mel, tail)))
    writer.close()
    content = bytearray((tmp_path / "0.array_record").read_bytes())
    content[content.index(features[1, 0, 200].tobytes())] ^= 255
    (tmp_path / "0.array_record").write_bytes(content)
    notes = corpus.Notes()
    found = dict(corpus.read_part(corpus.Part(shard=tmp_path / "0.array_record", count=3), notes))
    assert list(found) == ["a", "c"]
    np.testing.assert_array_equal(found["c"], features[2, 0].astype(np.float32))
    ((place, reason),) = notes.skipped
    assert place.endswith("0.array_record, record 1") and "is damaged" in reason


def test_a_damaged_part_and_files_of_others(recordings, tmp_path):
    output = tmp_path / "e.npz"
    run(recordings, output, task_index=0, task_count=2)
    (folder,) = corpus.parts_folder(output).iterdir()
    part = folder / "part-00000.npz"
    whole = part.read_bytes()
    (corpus.parts_folder(output) / "mine.txt").write_text("mine")
    for damaged in (b"", whole[:100]):
        part.write_bytes(damaged)
        with pytest.raises(UserError, match="part-00000.npz.*delete it and run the same command again"):
            run(recordings, output)
    part.write_bytes(whole)
    assert run(recordings, output) == 7
    assert [path.name for path in corpus.parts_folder(output).iterdir()] == ["mine.txt"]


def test_a_model_whose_embeddings_are_not_finite(recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(embedder.Embedder, "__call__", lambda self, variables, x: np.full((len(x), 4), np.nan))
    with pytest.raises(UserError, match="embeddings that are not finite"):
        corpus.embed_corpus([recordings], tmp_path / "e.npz", PRETRAINED)
