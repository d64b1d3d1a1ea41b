"""The service as a process: how it starts, how it ends, and who holds connections for nothing."""

import contextlib
import json
import signal
import socket
import sqlite3
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import random_variables
import serving
import soundfile
from commands import ran
from small_network import SIZES

from sdpn_jax.models.network import network_of
from sdpn_jax.weights import model_folder

pytest.importorskip("uvicorn", reason="the extra serve is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, m, and a recording, a.wav."""
    folder = tmp_path_factory.mktemp("service")
    model_folder.write_model(folder / "m", SIZES, random_variables.of_network(network_of(SIZES)), {}, 0.5, "CC0-1.0")
    soundfile.write(folder / "a.wav", np.random.default_rng(0).normal(size=16000) * 0.1, 16000)
    return folder


def started(folder, *arguments):
    return serving.Server(f"--model={folder / 'm'}", "--warm_seconds=1", "--decoders=1", *arguments)


def enrol(server, folder, name):
    part = b'--%b\r\nContent-Disposition: form-data; name="name"\r\n\r\n%b\r\n' % (serving.BOUNDARY, name.encode())
    body = part + serving.form(recording=(folder / "a.wav").read_bytes())
    kind = {"Content-Type": f"multipart/form-data; boundary={serving.BOUNDARY.decode()}"}
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/enrol", body, kind)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pids):
    return all(not Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.slow
def test_a_kill_leaves_the_gallery_whole_and_no_process_behind(folder, tmp_path):
    ran("enrol", folder / "a.wav", "--name=Ann", f"--gallery={tmp_path / 'team.npz'}", f"--model={folder / 'm'}")
    server = started(folder, f"--gallery={tmp_path / 'team.npz'}")
    assert enrol(server, folder, "Bob")["speakers"] == 2
    children = children_of(server.process.pid)
    assert children
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    until = time.monotonic() + 20
    while not gone(children) and time.monotonic() < until:
        time.sleep(0.1)
    assert gone(children)
    again = started(folder, f"--gallery={tmp_path / 'team.npz'}")
    with urllib.request.urlopen(f"http://127.0.0.1:{again.port}/speakers", timeout=60) as answer:
        assert [each["name"] for each in json.load(answer)["speakers"]] == ["Ann", "Bob"]
    assert again.stop() == 143
    with sqlite3.connect(tmp_path / "team.db") as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    done = ran("identify", folder / "a.wav", f"--gallery={tmp_path / 'team.db'}", f"--model={folder / 'm'}")
    assert "Ann" in done.stdout


@pytest.mark.slow
def test_who_says_nothing_is_hung_up_on(folder):
    server = started(folder)
    silent = socket.create_connection(("127.0.0.1", server.port))
    slow = socket.create_connection(("127.0.0.1", server.port))
    slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ")
    kept = socket.create_connection(("127.0.0.1", server.port))
    kept.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert kept.recv(100).startswith(b"HTTP/1.1 200")
    kept.sendall(b"GET /hea")
    until = time.monotonic() + 25
    for connection in (silent, slow, kept):
        connection.settimeout(max(0.1, until - time.monotonic()))
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(10000):
                pass
    assert time.monotonic() < until
    assert server.stop() == 143
