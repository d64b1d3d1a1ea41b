"""Named speakers in SQLite: as in a gallery file, across processes, kills and strangers' files."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest

from sdpn_jax.errors import UserError
from sdpn_jax.speaker import gallery as galleries
from sdpn_jax.speaker import voices
from sdpn_jax.speaker.voices import Full, Voices

RNG = np.random.default_rng(0)
ANN, BOB = RNG.normal(size=(2, 3, 8))


def unit_sum(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).sum(0)


def test_speakers_are_kept(tmp_path):
    kept = Voices(tmp_path / "a.db", "model")
    assert kept.gallery().names == []
    assert kept.enrol("Ann", ANN[:2]) == 2
    assert kept.enrol("Bob", BOB) == 3
    assert kept.enrol("Ann", ANN[2:]) == 3
    kept.close()
    found = Voices(tmp_path / "a.db", "model").gallery()
    assert found.names == ["Ann", "Bob"]
    np.testing.assert_allclose(found.sums, [unit_sum(ANN), unit_sum(BOB)], rtol=1e-12)
    assert found.scores(BOB[0])[0][0] == "Bob"


def test_who_is_deleted_leaves_nothing_behind(tmp_path):
    kept = Voices(tmp_path / "a.db", "model")
    kept.enrol("Somebody", ANN)
    total = unit_sum(ANN).tobytes()
    assert total in (tmp_path / "a.db").read_bytes()
    assert kept.delete("Somebody") == 1
    assert kept.delete("Somebody") == 0
    kept.enrol("Bob", BOB)
    assert kept.delete(None) == 1
    kept.close()
    data = (tmp_path / "a.db").read_bytes()
    assert total not in data
    assert b"Somebody" not in data


def test_a_gallery_file_is_taken_over_once(tmp_path):
    first = galleries.new("model")
    first.enrol("Ann", ANN)
    galleries.write(tmp_path / "team.npz", first)
    kept = voices.opened(tmp_path / "team.npz", "model")
    assert kept.path == tmp_path / "team.db"
    np.testing.assert_array_equal(kept.gallery().sums, first.sums)
    kept.delete("Ann")
    kept.close()
    assert voices.opened(tmp_path / "team.npz", "model").gallery().names == []
    assert voices.gallery_in(tmp_path / "team.npz", "model").names == ["Ann"]
    assert voices.gallery_in(tmp_path / "team.db", "model").names == []


@pytest.mark.parametrize("name", ["", " Ann", "Ann\n", "a" * 201, "\0", "\ud800", ".", ".."])
def test_what_is_no_name(name):
    with pytest.raises(UserError, match="a name has"):
        Voices(None, "model").enrol(name, ANN)


@pytest.mark.parametrize("name", ["../../etc/passwd", "<script>", "'; DROP TABLE speakers; --", "名前", "a/b"])
def test_names_are_only_text(name, tmp_path):
    kept = Voices(tmp_path / "a.db", "model")
    kept.enrol(name, ANN)
    assert kept.gallery().names == [name]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.db"]
    assert kept.delete(name) == 1


def test_a_full_gallery(monkeypatch):
    monkeypatch.setattr(voices, "MOST_SPEAKERS", 1)
    kept = Voices(None, "model")
    kept.enrol("Ann", ANN)
    with pytest.raises(Full, match="delete some"):
        kept.enrol("Bob", BOB)
    assert kept.enrol("Ann", ANN) == 6


def test_another_model_is_refused(tmp_path):
    Voices(tmp_path / "a.db", "model").close()
    with pytest.raises(UserError, match="another model"):
        Voices(tmp_path / "a.db", "other")


def database(path, *statements):
    file = sqlite3.connect(path)
    for statement in statements:
        file.execute(statement)
    file.commit()
    file.close()


def with_rows(path, *rows):
    Voices(path, "model").close()
    file = sqlite3.connect(path)
    file.executemany("INSERT INTO speakers VALUES (?, ?, ?)", rows)
    file.commit()


TRIGGER = "CREATE TRIGGER t AFTER INSERT ON speakers BEGIN DELETE FROM speakers; END"
STRANGERS = {
    "text": (lambda path: path.write_text("hello"), "no database"),
    "other tables": (lambda path: database(path, "CREATE TABLE t (a)"), "no gallery"),
    "a trigger": (lambda path: database(path, *voices.SCHEMA, TRIGGER), "no gallery"),
    "no model": (lambda path: database(path, *voices.SCHEMA), "another model"),
    "damaged": (lambda path: path.write_bytes(voices.MAGIC + bytes(5000)), "cannot be used"),
    "a folder": (lambda path: path.mkdir(), "no file"),
    "a pipe": (lambda path: os.mkfifo(path), "no file"),
    "NaN": (lambda path: with_rows(path, ("Ann", np.full(8, np.nan).tobytes(), 1)), "damaged"),
    "a sum too large": (lambda path: with_rows(path, ("Ann", np.full(8, 5.0).tobytes(), 1)), "damaged"),
    "a length": (lambda path: with_rows(path, ("Ann", b"123", 1)), "damaged"),
    "two lengths": (lambda path: with_rows(path, ("A", bytes(16), 1), ("B", bytes(8), 1)), "damaged"),
    "a count": (lambda path: with_rows(path, ("Ann", bytes(64), 0)), "damaged"),
    "a name": (lambda path: with_rows(path, ("A\x1b[2J", bytes(64), 1)), "damaged"),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_strangers_file(kind, tmp_path):
    make, why = STRANGERS[kind]
    make(tmp_path / "a.db")
    with pytest.raises(UserError, match=why):
        Voices(tmp_path / "a.db", "model").gallery()


def test_threads_and_processes_write_together(tmp_path):
    path = tmp_path / "a.db"
    code = (
        "import sys; from pathlib import Path; import numpy as np; from sdpn_jax.speaker.voices import Voices\n"
        "kept = Voices(Path(sys.argv[1]), 'model')\n"
        "for i in range(20): kept.enrol(f'p{i % 4}', np.eye(8)[:1])"
    )
    kept = Voices(path, "model")
    others = [subprocess.Popen([sys.executable, "-c", code, path]) for _ in range(2)]

    def work():
        for i in range(10):
            kept.enrol(f"p{i % 4}", np.eye(8)[:1])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait(60) for other in others] == [0, 0]
    assert kept.gallery().counts.sum() == 2 * 20 + 3 * 10


def test_a_kill_while_enrolling_loses_nothing_that_was_told(tmp_path):
    path = tmp_path / "a.db"
    code = (
        "import sys; from pathlib import Path; import numpy as np; from sdpn_jax.speaker.voices import Voices\n"
        "kept = Voices(Path(sys.argv[1]), 'model')\n"
        "while True: print(kept.enrol('Ann', np.eye(8)[:1]), flush=True)"
    )
    told = 0
    for _ in range(3):
        other = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
        for _ in range(5):
            told = int(other.stdout.readline())
        other.send_signal(signal.SIGKILL)
        rest = other.stdout.read().split("\n")
        told = max([told, *(int(line) for line in rest[:-1])])
        other.wait()
        found = Voices(path, "model").gallery().counts[0]
        assert told <= found <= told + 1


def test_an_empty_file_is_no_gallery(tmp_path):
    (tmp_path / "team.db").touch()
    with pytest.raises(UserError, match="team.db is empty, which no gallery is"):
        voices.gallery_in(tmp_path / "team.db", "model")


def test_a_name_in_two_forms_of_unicode_is_one(tmp_path):
    apart, whole = "Zo\u0308e", "Z\u00f6e"
    kept = voices.Voices(tmp_path / "team.db", "model")
    assert [kept.enrol(name, ANN) for name in (apart, whole)] == [len(ANN), 2 * len(ANN)]
    assert kept.gallery().names == [whole]
    assert kept.delete(apart) == 1
    kept.close()
    gallery = galleries.new("model")
    gallery.enrol(apart, ANN)
    gallery.enrol(whole, ANN)
    assert gallery.names == [whole]
