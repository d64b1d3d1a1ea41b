"""One run in a workdir: a lock that outlives neither its process, killed or not, nor its host.

The owner writes its name into <workdir>/run.lock and again every BEAT_S seconds. Whoever finds the file looks whether
the owner is alive: on the same host at its process, on another by watching for the next beat, by the own clock. Nothing
but plain files is needed, so that buckets and network file systems serve as well.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from sdpn_jax import storage
from sdpn_jax.errors import UserError

NAME = "run.lock"
BEAT_S = 10.0
SILENCE_S = 60.0  # without a beat: the owner is dead
SETTLE_S = 1.0  # in a bucket or on a network two may write at once: the later one holds


@contextlib.contextmanager
def of(workdir: str | os.PathLike) -> Iterator["Lock"]:
    """Holds the workdir while the block runs.

    Raises UserError when another process runs there.
    """
    lock = Lock(storage.make_folder(workdir) / NAME)
    lock.take()
    try:
        yield lock
    finally:
        lock.release()


class Lock:
    """The lock of one workdir; `check` says whether it is still held."""

    def __init__(self, path: storage.Place):
        self._path, self._token, self._beats = path, secrets.token_hex(8), 0
        self._ended, self._thread = threading.Event(), None

    def take(self) -> None:
        """Takes the lock once nobody alive holds it."""
        if (other := self._read()) and is_alive(other, self._read):
            raise UserError(
                f"{self._path.parent} is in use by process {other.get('process')} on {other.get('host')}: choose "
                "another --workdir, or wait for that run to end"
            )
        if isinstance(self._path, Path) and other is None:
            try:
                self._create(self._path)
            except FileExistsError:  # another process was faster
                return self.take()
        else:
            self._write()
            time.sleep(SETTLE_S)
        self.check()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises UserError when another process has taken the lock meanwhile."""
        owner = self._read()
        if owner and owner.get("token") != self._token:
            raise UserError(
                f"{self._path.parent} has been taken over by process {owner.get('process')} on {owner.get('host')}: "
                "this run ends, so that two do not write there"
            )

    def release(self) -> None:
        """Ends the beats and removes the file, unless another process owns it by now."""
        self._ended.set()
        if self._thread:
            self._thread.join()
        with contextlib.suppress(OSError, UserError):
            if (self._read() or {}).get("token") == self._token:
                storage.remove(self._path)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                if (self._read() or {}).get("token", self._token) == self._token:
                    self._write()
            except (OSError, UserError) as error:  # storage that is away for a moment; `check` will tell
                logging.warning("the lock %s could not be renewed: %s", self._path, error)

    def _read(self) -> dict | None:
        """What the file says; None without one. A file that makes no sense has an unknown owner."""
        try:
            told = json.loads(storage.read_bytes(self._path))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return told if isinstance(told, dict) else {}

    def _create(self, path: Path) -> None:
        """Writes the file where there is none; FileExistsError where there is."""
        text = self._text()
        with path.open("x") as file:
            file.write(text)

    def _write(self) -> None:
        storage.write_text(self._path, self._text())

    def _text(self) -> str:
        self._beats += 1
        return json.dumps({"token": self._token, "beat": self._beats, **this_process()}) + "\n"


def this_process() -> dict:
    """Names this process: host, number among which others, and when it started, as numbers are given again."""
    return {
        "host": socket.gethostname(),
        "namespace": namespace(),
        "process": os.getpid(),
        "started": started(os.getpid()),
    }


def namespace() -> str:
    """Names the processes that this one can see by their numbers: a container sees its own alone (Linux)."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def started(process: int) -> str | None:
    """Returns what tells a process from later ones of its number (Linux); "" if there is none, None if unknown."""
    if not Path("/proc/self/stat").exists():
        return None
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[19]}"
    except OSError:
        return ""


def is_alive(owner: dict, read) -> bool:
    """Tells whether a lock's owner lives; of one on another host after at most SILENCE_S seconds of watching."""
    ours = this_process()
    same = all(owner.get(key) == ours[key] for key in ("host", "namespace"))
    if same and isinstance(owner.get("process"), int):
        now = started(owner["process"])
        if now is not None:
            return bool(now) and now == owner.get("started")
    logging.info("the lock of %s on %s: watching whether it lives", owner.get("process"), owner.get("host"))
    deadline = time.monotonic() + SILENCE_S
    while time.monotonic() < deadline:
        time.sleep(min(1.0, SILENCE_S / 10))
        now = read()
        if now is None:
            return False
        if now != owner:
            return True
    return False
