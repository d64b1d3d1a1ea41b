"""Files complete or absent, on a disk and in a bucket (moto's S3 server, where it is installed)."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import bucket
import numpy as np
import pytest

from sdpn_jax import storage
from sdpn_jax.errors import UserError

WITH_A_STORE = all(importlib.util.find_spec(name) for name in ("moto", "s3fs", "flask"))


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    storage.write_text(tmp_path / "a.txt", "one")
    with pytest.raises(ZeroDivisionError), storage.written(tmp_path / "a.txt") as file:
        file.write(b"half of")
        raise ZeroDivisionError
    assert (tmp_path / "a.txt").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(storage.os, "fsync", lambda number: (calls.append("fsync"), fsync(number)))
    monkeypatch.setattr(storage.Path, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    storage.write_npz(tmp_path / "a.npz", x=np.arange(3))
    assert calls.index("fsync") < calls.index("rename") < len(calls) - 1, "and the name itself after it"


def test_two_writers_of_a_name_and_a_planted_link_do_no_harm(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "a.txt.tmp").symlink_to(tmp_path / "victim")
    with storage.written(tmp_path / "a.txt") as first, storage.written(tmp_path / "a.txt") as second:
        first.write(b"first")
        second.write(b"second")
    assert (tmp_path / "a.txt").read_text() == "first", "the one that ended last"
    assert (tmp_path / "victim").read_text() == "mine"


def test_modes_are_those_of_other_files(tmp_path):
    storage.write_text(tmp_path / "a", "")
    (tmp_path / "b").write_text("")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("path", ["http://host/x", "ftp://host/x", "file:///x"])
def test_other_addresses_are_not_opened(path):
    with pytest.raises(UserError, match="only gs://, s3:// and local paths"):
        storage.place(path)


def test_a_bucket_without_its_extra(monkeypatch):
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs gcsfs: pip install 'sdpn_jax\[gcs\]'"):
        storage.place("gs://b/x")


def test_a_bucket_that_does_not_answer_is_tried_again(monkeypatch):
    pauses, tries = [], []
    monkeypatch.setattr(storage.time, "sleep", pauses.append)

    def work():
        tries.append(1)
        if len(tries) <= hiccups:
            raise ConnectionError("no route\nto host")
        return 7

    hiccups = 2
    assert storage.patiently("gs://b/x", work) == 7
    assert pauses == [1.0, 2.0]
    hiccups = 100
    with pytest.raises(UserError, match="gs://b/x is out of reach .ConnectionError: no route to host.: look at"):
        storage.patiently("gs://b/x", work)
    with pytest.raises(ConnectionError):
        storage.patiently("local", work)


@pytest.fixture(scope="module")
def store():
    if not WITH_A_STORE:
        pytest.skip("moto[server] and s3fs are not installed")
    with bucket.server() as environment:
        yield environment


# In a process of its own, whose variables name the store.
STEPS = """
from pathlib import Path
from sdpn_jax import storage
root = storage.place("s3://bucket/test")
storage.write_text(root / "a" / "x.txt", "one")
assert storage.read_text(root / "a" / "x.txt") == "one"
assert storage.names(root) == ["a"] and storage.names(root / "none") == []
assert storage.is_folder(root / "a") and not storage.exists(root / "b")
copy = storage.local(root / "a" / "x.txt")
assert copy.read_text() == "one" and storage.local(root / "a" / "x.txt") == copy
storage.write_text(root / "a" / "x.txt", "two!")
assert storage.local(root / "a" / "x.txt").read_text() == "two!", "the copy is that of what is there now"
assert storage.stamp(root / "a" / "none") is None
with storage.output_folder(root / "out") as folder:
    (folder / "in").mkdir()
    (folder / "in" / "y").write_bytes(b"y")
assert storage.files_below(root) == ["a/x.txt", "out/in/y"]
storage.rename(root / "out", root / "moved")
storage.download_folder(root / "moved", Path("here"))
assert Path("here/in/y").read_bytes() == b"y"
storage.remove(root / "moved")
assert storage.files_below(root) == ["a/x.txt"]
for number in range(4):
    storage.write_bytes(root / str(number), bytes(400))
    storage.cached(root / str(number), 400)
files = list((storage.cache_folder() / "files").iterdir())
assert sum(file.stat().st_size for file in files) <= 1000, files
"""


@pytest.mark.slow
def test_a_bucket(store, tmp_path):
    environment = {**os.environ, **store, "SDPN_JAX_CACHE": str(tmp_path / "cache"), "SDPN_JAX_CACHE_GB": "1e-6"}
    done = subprocess.run([sys.executable, "-c", STEPS], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_pipes_and_devices_are_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        for read in (storage.read_bytes, storage.read_text, storage.local):
            with pytest.raises(UserError, match="is no file, but a pipe or a device"):
                read(path)


def test_addresses_that_lack_a_slash_and_home(monkeypatch):
    with pytest.raises(UserError, match="gs:/bucket/x: the address of a bucket has two slashes"):
        storage.place("gs:/bucket/x")
    monkeypatch.setenv("HOME", "/home/ann")
    assert storage.place("~/runs") == Path("/home/ann/runs")
    assert storage.place("a/~/b") == Path("a/~/b")
