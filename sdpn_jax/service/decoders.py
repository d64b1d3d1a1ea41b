"""Uploads -> log-mels, in processes of their own: a decoder that crashes or hangs on a file takes nobody else along."""

import base64
import dataclasses
import io
import json
import multiprocessing
import queue
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import numpy as np
import threadpoolctl
from jaxtyping import Float32

from sdpn_jax.data import audio
from sdpn_jax.data.audio import SAMPLE_RATE, AudioError
from sdpn_jax.data.features import LogMel
from sdpn_jax.data.front_ends import FRONT_ENDS

COLUMNS = 400  # of a picture, at most
LOG_MEL, PICTURE, SAMPLES = b"L", b"P", b"S"  # what is asked for
STARTS = multiprocessing.get_context("spawn")  # the parent has threads and a network


@dataclass(frozen=True)
class Heard:
    """A recording: log-mel [T, F] (or samples [N] at 16 kHz), seconds, what may spoil its embedding, its picture."""

    array: Float32[np.ndarray, "..."]
    seconds: float
    hints: list[str] = field(default_factory=list)
    picture: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What decoders do: features of which front end, recordings of at most so many seconds, and time for each in s."""

    front_end: str
    channel: int | None
    max_seconds: float
    timeout_s: float


class Decoders:
    """So many processes, each of which decodes one upload at a time."""

    def __init__(self, count: int, task: Task):
        self._task, self._idle = task, queue.SimpleQueue()
        for _ in range(count):
            self._idle.put(_Process(task))

    def wait(self) -> None:
        """Waits until all processes have started."""
        started = [self._idle.get() for _ in range(self._idle.qsize())]
        for process in started:
            process.wait()
            self._idle.put(process)

    def log_mel(self, data: bytes, picture: bool = False) -> Heard:
        """Decodes an upload to its log-mel, with a picture if one is wanted. Waits for a free process.

        Raises AudioError for an upload that cannot be used.
        """
        return self._ask(PICTURE if picture else LOG_MEL, data)

    def samples(self, data: bytes, max_seconds: float) -> Heard:
        """Decodes an upload to its samples at 16 kHz, as `log_mel` does."""
        return self._ask(SAMPLES + str(max_seconds).encode(), data)

    def close(self) -> None:
        """Ends the processes; those at work are not waited for."""
        while not self._idle.empty():
            self._idle.get().end()

    def _ask(self, what: bytes, data: bytes) -> Heard:
        process = self._idle.get()
        try:
            return process.answer(what, data)
        finally:
            self._idle.put(process if process.alive() else _Process(self._task))


class _Process:
    def __init__(self, task: Task):
        self._pipe, theirs = STARTS.Pipe()
        self._timeout_s = task.timeout_s
        self._process = STARTS.Process(target=_work, args=(theirs, task), daemon=True)
        self._process.start()
        theirs.close()
        self._ready = False

    def wait(self) -> None:
        if not self._ready:
            self._pipe.recv_bytes()
            self._ready = True

    def alive(self) -> bool:
        return self._process.is_alive() and not self._pipe.closed

    def end(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()

    def answer(self, what: bytes, data: bytes) -> Heard:
        try:
            self.wait()
            self._pipe.send_bytes(what)
            self._pipe.send_bytes(data)
            if not self._pipe.poll(self._timeout_s):
                self.end()
                raise AudioError(f"decoding took longer than {self._timeout_s:g} s")
            about = json.loads(self._pipe.recv_bytes())  # not unpickled: who sends it has read a stranger's file
            if "error" in about:
                raise AudioError(about["error"])
            array = np.frombuffer(self._pipe.recv_bytes(), np.float32).reshape(about.pop("shape"))
            return Heard(array, **about)
        except (OSError, EOFError, ValueError, TypeError) as error:
            self.end()
            raise AudioError("unreadable: the decoder failed on it") from error


def _work(pipe: Connection, task: Task) -> None:
    """Answers until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends us
    threadpoolctl.threadpool_limits(1)  # there is a process for each core that shall decode
    features = FRONT_ENDS[task.front_end]
    features(np.zeros(SAMPLE_RATE, np.float32))  # which loads and makes what all others use
    pipe.send_bytes(b"ready")
    while True:
        try:
            what, data = pipe.recv_bytes(), pipe.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            heard = _heard(what, data, task, features)
        except AudioError as error:
            pipe.send_bytes(json.dumps({"error": str(error)}).encode())
            continue
        about = dataclasses.asdict(heard)
        array = np.ascontiguousarray(about.pop("array"), np.float32)
        pipe.send_bytes(json.dumps({**about, "shape": array.shape}).encode())
        pipe.send_bytes(array.tobytes())


def _heard(what: bytes, data: bytes, task: Task, features: Callable[[np.ndarray], LogMel]) -> Heard:
    is_long = what.startswith(SAMPLES)
    longest = float(what[1:]) if is_long else task.max_seconds
    waveform = audio.read_open(io.BytesIO(data), audio.Reading(task.channel, longest))
    seconds = len(waveform) / SAMPLE_RATE
    if is_long:
        return Heard(waveform, seconds)
    log_mel = features(waveform)
    picture = picture_of(waveform, log_mel) if what == PICTURE else {}
    return Heard(log_mel, seconds, audio.hints_of(waveform), picture)


def picture_of(waveform: Float32[np.ndarray, " N"], log_mel: LogMel) -> dict:
    """Describes a recording for drawing: extremes of its samples and levels of its log-mel, in COLUMNS at most.

    "log_mel" holds bytes in base64, row by row of "frames" x "bins": 255 is the loudest, 0 is 60 dB below or less.
    """
    parts = np.array_split(waveform, min(COLUMNS, len(waveform)))
    columns = np.stack([part.mean(0) for part in np.array_split(log_mel, min(COLUMNS, len(log_mel)))])
    below = np.clip(1 + (columns - columns.max()) / (np.log(10) * 6), 0, 1)
    levels = {
        "frames": len(columns),
        "bins": columns.shape[1],
        "values": base64.b64encode((255 * below).astype(np.uint8).tobytes()).decode(),
    }
    return {
        "minima": [round(float(part.min()), 4) for part in parts],
        "maxima": [round(float(part.max()), 4) for part in parts],
        "log_mel": levels,
    }
