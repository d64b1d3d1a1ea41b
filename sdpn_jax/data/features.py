"""Log-mel features: what SDPN's encoder hears, and how silence after an utterance looks in them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import scipy.fft
from jaxtyping import Float, Float32

FRAMES_AT_ONCE, FRAMES_OF_A_STRETCH = 256, 2**16
TAIL_FRAMES = 3  # frames that see both the utterance's last samples and the silence after it


@dataclass(frozen=True)
class FeatureSettings:
    """The features' definition; shards carry it, and training refuses shards made with another."""

    sample_rate: int = 16000  # Hz
    n_fft: int = 512  # samples
    window: int = 400  # samples, periodic Hann, centred in n_fft
    hop: int = 160  # samples
    mel_bins: int = 80
    fmin_hz: float = 0.0
    fmax_hz: float = 8000.0
    floor: float = 1e-6  # added to the power before the log


DEFAULT = FeatureSettings()
Waveform: TypeAlias = Float[np.ndarray, " N"]
LogMel: TypeAlias = Float[np.ndarray, "T F"]


def mel_power(waveform: Waveform, settings: FeatureSettings = DEFAULT) -> Float32[np.ndarray, "T F"]:
    """Computes the mel power spectrogram of a waveform at settings.sample_rate, T = 1 + N // hop.

    Centred frames with reflect padding, librosa's filterbank of `htk=True, norm=None`.
    """
    waveform, half = np.asarray(waveform, np.float32), settings.n_fft // 2
    frames = 1 + len(waveform) // settings.hop
    # In stretches, so that hours of audio are not copied; the last one is long enough to reflect in.
    starts = [*range(0, max(1, frames - TAIL_FRAMES - 1), FRAMES_OF_A_STRETCH), frames]
    mel = np.empty((frames, settings.mel_bins), np.float32)
    for start, stop in zip(starts, starts[1:], strict=False):
        first, last = start * settings.hop - half, (stop - 1) * settings.hop + half
        seen = waveform[max(0, first) : last]
        padded = np.pad(seen, (max(0, -first), max(0, last - len(waveform))), mode="reflect")
        mel[start:stop] = _power_of_frames(padded, settings)
    return mel


def log_mel(waveform: Waveform, settings: FeatureSettings = DEFAULT) -> Float32[np.ndarray, "T F"]:
    """Computes log(mel_power + floor) of a waveform."""
    power = mel_power(waveform, settings)
    power += np.float32(settings.floor)
    return np.log(power, out=power)


def tail_start(num_samples: int, settings: FeatureSettings = DEFAULT) -> int:
    """Returns the first frame that reaches past the end of a waveform of `num_samples` samples.

    Frame t covers the samples from t hop - window / 2 to t hop + window / 2.
    """
    return max(0, (num_samples - settings.window // 2) // settings.hop + 1)


def silence_tail(waveform: Waveform, settings: FeatureSettings = DEFAULT) -> Float32[np.ndarray, "tail F"]:
    """Computes the TAIL_FRAMES frames from `tail_start` on of the waveform followed by silence.

    All later frames are log(floor). Frames before it do not see the end: they are those of `log_mel`.
    """
    first, half = tail_start(len(waveform), settings), settings.n_fft // 2
    # Only the end of a long waveform is needed; a short one keeps its reflected start.
    skipped = max(0, first - 2 * half // settings.hop) * settings.hop
    end = np.asarray(waveform[skipped:], np.float32)
    silence = np.zeros((TAIL_FRAMES + 1) * settings.hop + settings.n_fft, np.float32)
    padded = np.pad(np.concatenate([end, silence]), (half, 0), mode="reflect")
    power = _power_of_frames(padded, settings)
    wanted = first - skipped // settings.hop
    return np.log(power[wanted : wanted + TAIL_FRAMES] + np.float32(settings.floor))


def view_samples(frames: int, settings: FeatureSettings = DEFAULT) -> int:
    """Counts the samples that `frames` consecutive frames see."""
    return (frames - 1) * settings.hop + settings.n_fft


def pad_with_silence(
    log_mel: LogMel,
    tail: Float[np.ndarray, "tail F"],
    num_samples: int,
    frames: int,
    settings: FeatureSettings = DEFAULT,
) -> Float[np.ndarray, "{frames} F"]:
    """Returns the first `frames` frames of the log-mel of an utterance whose waveform is followed by silence.

    log_mel and tail as `log_mel` and `silence_tail` give them for its `num_samples` samples.
    """
    padded = np.full((frames, log_mel.shape[1]), np.log(settings.floor), log_mel.dtype)
    seen = np.concatenate([log_mel[: tail_start(num_samples, settings)], tail])[:frames]
    padded[: len(seen)] = seen
    return padded


def _power_of_frames(padded: Waveform, settings: FeatureSettings) -> Float32[np.ndarray, "T F"]:
    """Computes the mel power of every whole frame of n_fft samples."""
    window, filterbank = window_and_filterbank(settings)
    return mel_power_of_frames(frames_of(padded, settings.n_fft, settings.hop), window, filterbank)


def frames_of(waveform: Waveform, size: int, hop: int) -> Float32[np.ndarray, "T {size}"]:
    """Returns a view of every whole frame of `size` samples, one each `hop` samples."""
    return np.lib.stride_tricks.sliding_window_view(waveform, size)[::hop]


def mel_power_of_frames(
    frames: Float32[np.ndarray, "T size"],
    window: Float32[np.ndarray, " size"],
    filterbank: Float32[np.ndarray, "points//2+1 F"],
    prepared: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Float32[np.ndarray, "T F"]:
    """Computes the mel power of frames, each `prepared` where that is given, windowed, and zeros behind it."""
    points = 2 * (len(filterbank) - 1)
    mel = np.empty((len(frames), filterbank.shape[1]), np.float32)
    for start in range(0, len(frames), FRAMES_AT_ONCE):  # fits the cache, and bounds the memory of hours of audio
        block: Any = frames[start : start + FRAMES_AT_ONCE]
        spectrum: Any = scipy.fft.rfft((prepared(block) if prepared else block) * window, points, axis=-1)
        np.matmul(spectrum.real**2 + spectrum.imag**2, filterbank, out=mel[start : start + FRAMES_AT_ONCE])
    return mel


@lru_cache
def window_and_filterbank(
    settings: FeatureSettings,
) -> tuple[Float32[np.ndarray, " {settings.n_fft}"], Float32[np.ndarray, "bins F"]]:
    """Returns the window in the middle of n_fft zeros, and the mel filterbank of n_fft // 2 + 1 bins.

    Triangles between equal distances of 2595 log10(1 + f / 700), of height 1 (HTK book 3.4, section 5.4): to the bit
    those of librosa, whose import takes as long as that of JAX.
    """
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(settings.window) / settings.window)
    side = (settings.n_fft - settings.window) // 2
    window = np.pad(window, (side, settings.n_fft - settings.window - side))
    lowest, highest = (2595 * np.log10(1 + hz / 700) for hz in (settings.fmin_hz, settings.fmax_hz))
    edges = 700 * (10 ** (np.linspace(lowest, highest, settings.mel_bins + 2) / 2595) - 1)
    hz = np.fft.rfftfreq(settings.n_fft, 1 / settings.sample_rate)[:, None]
    rising, falling = (hz - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - hz) / np.diff(edges)[1:]
    return window.astype(np.float32), np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
