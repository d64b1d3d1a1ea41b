"""Features as other toolkits make them, so that their encoders hear what they were trained on: [T, 80] each.

`sdpn` is this project's log-mel (features.py), normalised inside the encoder. The others subtract the mean over time.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32

from sdpn_jax.data import features
from sdpn_jax.data.features import LogMel, Waveform, frames_of

RATE, HOP, WIDTH, BINS = 16000, 160, 400, 80  # Hz, samples, samples
KALDI_FFT, KALDI_LOWEST_HZ, KALDI_PREEMPHASIS = 512, 20.0, 0.97
DECIBELS_KEPT, POWER_FLOOR = 80.0, 1e-10


def kaldi80(waveform: Waveform) -> LogMel:
    """Kaldi's filterbank of samples in [-1, 1], povey window: 3D-Speaker's encoders. T = 1 + (N - 400) // 160.

    As compute-fbank-feats without dither: each frame without its mean, pre-emphasised, power spectrum of 512 points,
    triangles on the scale 1127 ln(1 + f / 700) from 20 Hz, log.
    """
    return _kaldi(waveform, 1.0, povey())


def wespeaker(waveform: Waveform) -> LogMel:
    """Kaldi's filterbank of samples in the scale of 16-bit integers, Hamming window: WeSpeaker's encoders."""
    return _kaldi(waveform, 32768.0, hamming(WIDTH - 1))


def speechbrain(waveform: Waveform) -> LogMel:
    """SpeechBrain's filterbank in decibels: centred frames with zeros outside, the largest of the utterance less 80 dB.

    Power spectrum of 400 points (Hamming), triangles whose sides are as wide as the distance to the neighbour below, on
    the scale 2595 log10(1 + f / 700). T = 1 + N // 160.
    """
    padded = np.pad(np.asarray(waveform, np.float32), WIDTH // 2)
    power = features.mel_power_of_frames(frames_of(padded, WIDTH, HOP), hamming(WIDTH), speechbrain_triangles())
    decibels = 10 * np.log10(np.maximum(power, POWER_FLOOR))
    return _centred(np.maximum(decibels, decibels.max() - DECIBELS_KEPT))


FrontEnd: TypeAlias = Callable[[Waveform], LogMel]
FRONT_ENDS: dict[str, FrontEnd] = {
    "sdpn": features.log_mel, "kaldi80": kaldi80, "wespeaker": wespeaker, "speechbrain": speechbrain
}  # fmt: skip


def _kaldi(waveform: Waveform, scale: float, window: np.ndarray) -> LogMel:
    samples = np.asarray(waveform, np.float32) * np.float32(scale)
    power = features.mel_power_of_frames(frames_of(samples, WIDTH, HOP), window, kaldi_triangles(), emphasised)
    return _centred(np.log(np.maximum(power, np.finfo(np.float32).eps)))


def emphasised(frames: Float32[np.ndarray, "T {WIDTH}"]) -> Float32[np.ndarray, "T {WIDTH}"]:
    """Kaldi's frames before the window: without their mean, each sample less a share of the one before."""
    frames = frames - frames.mean(axis=1, keepdims=True)
    return frames - np.float32(KALDI_PREEMPHASIS) * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)


def _centred(x: LogMel) -> LogMel:
    return x - x.mean(axis=0, dtype=np.float64).astype(np.float32)


def hamming(period: int) -> Float32[np.ndarray, " {WIDTH}"]:
    return (0.54 - 0.46 * np.cos(2 * np.pi * np.arange(WIDTH) / period)).astype(np.float32)


def povey() -> Float32[np.ndarray, " {WIDTH}"]:
    """Kaldi's own window: a Hann window to the power of 0.85."""
    return ((0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WIDTH) / (WIDTH - 1))) ** 0.85).astype(np.float32)


@lru_cache
def kaldi_triangles() -> Float32[np.ndarray, "bins {BINS}"]:
    """Triangles on the mel scale itself, as Kaldi's MelBanks has them; the bin at half the rate has no weight."""
    lowest, highest = (1127 * np.log(1 + hz / 700) for hz in (KALDI_LOWEST_HZ, RATE / 2))
    edges = np.linspace(lowest, highest, BINS + 2)
    mel = 1127 * np.log(1 + RATE / KALDI_FFT * np.arange(KALDI_FFT // 2 + 1)[:, None] / 700)
    rising, falling = (mel - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - mel) / np.diff(edges)[1:]
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


@lru_cache
def speechbrain_triangles() -> Float32[np.ndarray, "bins {BINS}"]:
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), BINS + 2) / 2595) - 1)
    slope = (np.linspace(0, RATE / 2, WIDTH // 2 + 1)[:, None] - edges[1:-1]) / np.diff(edges)[:-1]
    return np.maximum(0, 1 - np.abs(slope)).astype(np.float32)
