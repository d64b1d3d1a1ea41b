"""Decoding recordings: any audio file -> 16 kHz mono float32, or the reason why not."""

import contextlib
import io
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from jaxtyping import Float32

from sdpn_jax import storage
from sdpn_jax.data import containers, decode
from sdpn_jax.data.containers import AudioError
from sdpn_jax.errors import UserError

SAMPLE_RATE = 16000  # Hz
MIN_SECONDS, MAX_SECONDS = 0.1, 4 * 3600.0
SILENCE_PEAK = 1e-4  # of full scale, after removing the mean: below it a recording counts as silent
INTEGER_PEAK = 16.0  # of float samples: above it they are integers in float's clothes
INTEGER_SCALES = 2.0**15, 2.0**23, 2.0**31
MOST_BYTES_OF_A_BUCKET = 2 * 2**30  # a recording there is read into memory
CLIPPED_SHARE, SHORT_SECONDS = 1e-3, 1.0
TELEPHONE_HZ, TELEPHONE_DB, LOOKED_AT = 4200.0, -50.0, 2**16


@dataclass(frozen=True)
class Reading:
    """How recordings are read: `channel` (from 0; None: the mean of all), and how long they may be at most."""

    channel: int | None = None
    max_seconds: float = MAX_SECONDS


DEFAULT = Reading()


@dataclass(frozen=True)
class Cut:
    """An utterance before it is read: a file, or of it what lies from `start` to `end` in seconds.

    channel: from 0, where a list names one.
    """

    id: str
    path: storage.Place
    start: float = 0.0
    end: float | None = None
    channel: int | None = None

    def stamp(self) -> list:
        """What changes with the utterance: its id, place and file."""
        whole = [self.id, str(self.path), storage.stamp(self.path)]
        return whole if (self.start, self.end, self.channel) == (0, None, None) else [
            *whole, self.start, self.end, self.channel
        ]  # fmt: skip


def read_audio(
    path: str | os.PathLike, reading: Reading = DEFAULT, start: float = 0.0, end: float | None = None
) -> Float32[np.ndarray, " N"]:
    """Reads a recording, or what lies from `start` to `end` in seconds, as 16 kHz mono float32 [N].

    Files are known by their content, not by their names. Float samples in integer scale are scaled to [-1, 1]. Raises
    AudioError for a file that is missing, no file, unreadable, cut, too long, shorter than 0.1 s, silent, without the
    channel, or with NaN or infinite samples.
    """
    with _told(), opened(path) as file:
        return _to_16_khz(decode.blocks_of(file, reading.max_seconds, start, end), reading.channel)


def read_open(file: BinaryIO, reading: Reading = DEFAULT) -> Float32[np.ndarray, " N"]:
    """Reads an open file, or bytes in an io.BytesIO, as `read_audio` does."""
    with _told():
        return _to_16_khz(decode.blocks_of(file, reading.max_seconds), reading.channel)


def blocks_at_16_khz(path: str | os.PathLike, reading: Reading = DEFAULT) -> Iterator[Float32[np.ndarray, " n"]]:
    """Yields a recording of any length piece by piece, at most a few MiB each, as 16 kHz mono float32 [n].

    Raises AudioError as `read_audio` does: at the piece where it shows, at the end for a recording that is silent or
    too short. Float samples in integer scale are refused: their scale is known only at the end.
    """
    count, total, low, high, loudest = 0, 0.0, np.inf, -np.inf, 0.0
    with _told(), opened(path) as file:
        for mono, loudest in _pieces(decode.blocks_of(file, reading.max_seconds), reading.channel):
            if loudest > INTEGER_PEAK:
                raise AudioError(f"float samples in integer scale, up to {loudest:,.0f}: convert them to 16 bits")
            if len(mono):
                count, total = count + len(mono), total + float(mono.sum(dtype=np.float64))
                low, high = min(low, float(mono.min())), max(high, float(mono.max()))
                yield mono
        _check_length(count)
        _check_sound(low, high, total / count, loudest)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turns whatever a file makes the decoders raise into an AudioError."""
    try:
        yield
    except OSError as error:
        raise AudioError(error.strerror or "cannot be opened") from error
    except (AudioError, UserError):
        raise
    except Exception as error:  # damaged bytes make the decoders raise almost anything, MemoryError among it
        raise AudioError(f"unreadable: {type(error).__name__}") from error


def read_cut(cut: Cut, reading: Reading = DEFAULT) -> Float32[np.ndarray, " N"]:
    """Reads an utterance of a list as `read_audio` does."""
    if cut.channel is not None:
        reading = Reading(cut.channel, reading.max_seconds)
    return read_audio(cut.path, reading, cut.start, cut.end)


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a recording; raises AudioError for what is no file: a pipe would be waited for, a device has no end."""
    place = storage.place(path)
    if storage.is_bucket(place):
        about = storage.stamp(place)
        if about and about[0] > MOST_BYTES_OF_A_BUCKET:
            raise AudioError(f"{about[0]:,} bytes in a bucket, at most {MOST_BYTES_OF_A_BUCKET:,} are read: mount it")
        yield io.BytesIO(storage.read_bytes(place))
        return
    with open(os.open(place, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb", buffering=0) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise AudioError("no file, but a folder, a pipe or a device")
        if not about.st_size:
            raise AudioError("empty file")
        yield file


def at_16_khz(samples: np.ndarray, rate: float, channel: int | None = None) -> Float32[np.ndarray, " N"]:
    """Converts samples [N, channels] at `rate` Hz to what `read_audio` returns; raises AudioError as it does."""
    return _to_16_khz([(rate, samples)], channel)


def _to_16_khz(blocks: Iterable[tuple[float, np.ndarray]], channel: int | None) -> np.ndarray:
    samples, loudest = bytearray(), 0.0
    for mono, loudest in _pieces(blocks, channel):  # noqa: B007
        samples += mono.data
    return _checked(np.frombuffer(samples, np.float32), loudest)


def _pieces(blocks: Iterable[tuple[float, np.ndarray]], channel: int | None) -> Iterator[tuple[np.ndarray, float]]:
    """Blocks as 16 kHz mono, each with the greatest absolute sample so far of all channels."""
    resampler, loudest = None, 0.0
    for rate, block in blocks:
        low, high = float(block.min(initial=0)), float(block.max(initial=0))
        if not np.isfinite([low, high]).all():  # a NaN would be both
            raise AudioError("NaN or infinite samples")
        loudest = max(loudest, -low, high)
        if loudest > INTEGER_SCALES[-1]:  # the mean or the resampling might overflow
            raise AudioError("samples too large")
        mono = _one_channel(block, channel)
        if rate != SAMPLE_RATE:
            resampler = resampler or soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
            mono = resampler.resample_chunk(mono)
        yield mono, loudest
    if resampler:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True), loudest


def _one_channel(block: np.ndarray, channel: int | None) -> np.ndarray:
    if channel is not None and not 0 <= channel < block.shape[1]:
        raise AudioError(f"no channel {channel + 1}: there are {block.shape[1]}")
    if block.shape[1] == 1:
        return np.ascontiguousarray(block[:, 0])
    return block.mean(axis=1, dtype=np.float32) if channel is None else np.ascontiguousarray(block[:, channel])


def _checked(mono: np.ndarray, loudest: float) -> np.ndarray:
    """The samples, scaled if they are integers; `loudest` is the greatest of all channels."""
    _check_length(len(mono))
    if loudest > INTEGER_PEAK:
        scale = next(scale for scale in INTEGER_SCALES if loudest <= scale)
        mono, loudest = mono / np.float32(scale), loudest / scale
    _check_sound(float(mono.min()), float(mono.max()), float(mono.mean(dtype=np.float64)), loudest)
    return mono


def _check_length(samples: int) -> None:
    if not samples:
        raise AudioError("no samples")
    if samples < MIN_SECONDS * SAMPLE_RATE:
        raise AudioError(f"shorter than {MIN_SECONDS} s")


def _check_sound(low: float, high: float, mean: float, loudest: float) -> None:
    if max(high - mean, mean - low) < SILENCE_PEAK:
        if loudest < SILENCE_PEAK or loudest < 2 * max(high, -low):
            raise AudioError("silent")
        raise AudioError("silent: its channels cancel each other, or others than the one that is read hold the sound; "
                         "choose one with --channel")  # fmt: skip


def hints_of(waveform: Float32[np.ndarray, " N"]) -> list[str]:
    """Says what of a 16 kHz waveform spoils embeddings: telephone bandwidth, clipping, less than a second."""
    hints = []
    low, high = 0.999 * waveform.min(), 0.999 * waveform.max()
    middle = waveform[max(0, len(waveform) - LOOKED_AT) // 2 :][:LOOKED_AT]
    power = np.abs(np.fft.rfft(middle * np.hanning(len(middle)))) ** 2
    above = round(TELEPHONE_HZ * 2 / SAMPLE_RATE * len(power))
    if power[above:].sum() < 10 ** (TELEPHONE_DB / 10) * power.sum():
        hints.append("telephone bandwidth")
    if np.mean(waveform >= high if high >= -low else waveform <= low) > CLIPPED_SHARE:
        hints.append("clipped")
    if len(waveform) < SHORT_SECONDS * SAMPLE_RATE:
        hints.append("under one second")
    return hints


def seconds_of(path: str | os.PathLike) -> float | None:
    """Returns a recording's length in seconds from its header, without decoding; None if no header can be read."""
    try:
        with opened(path) as file:
            return decode.seconds_of(file)
    except Exception:  # as in read_audio, which will say what is wrong with the file
        return None


def read_stretch(path: str | os.PathLike, num_samples: int, rng: np.random.Generator) -> np.ndarray | None:
    """Reads `num_samples` samples from a random place in a 16 kHz recording, and nothing else of it.

    None when that cannot be done: another rate, a container that cannot be searched, or too short a recording.
    """
    try:
        with opened(storage.local(path)) as file:
            kind = containers.kind_of(file)
            if not kind.sndfile_first:
                return None
            file.seek(0)
            with soundfile.SoundFile(file.fileno(), closefd=False) as sound:
                if sound.samplerate != SAMPLE_RATE or not sound.seekable() or not num_samples <= sound.frames < 2**62:
                    return None
                sound.seek(int(rng.integers(sound.frames - num_samples + 1)))
                samples = sound.read(num_samples, dtype="float32", always_2d=True).mean(axis=1)
    except (AudioError, soundfile.LibsndfileError, OSError):
        return None
    return samples if len(samples) == num_samples and np.isfinite(samples).all() else None
