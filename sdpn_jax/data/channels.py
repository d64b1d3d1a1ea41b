"""What microphones, lines and codecs do to speech, on waveforms: against an encoder that learns the recording.

The views of an utterance share its microphone and its line, which tell utterances apart as well as voices do. SDPN's
recipe has none of these distortions (arXiv 2308.02774, section 3.1: noise and reverberation alone); kinds, bounds and
shares are this project's.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import scipy.fft
import soundfile
import soxr
from jaxtyping import Float

from sdpn_jax.data.audio import SAMPLE_RATE

Waveform: TypeAlias = Float[np.ndarray, " N"]

# How often each distortion is applied; they are applied in this order, that of a recording's way.
SHARES = {"equaliser": 0.8, "clipping": 0.05, "band": 0.15, "codec": 0.25, "loss": 0.05, "gain": 1.0}
EQUALISER_HZ = (60.0, 8000.0)  # between which EQUALISER_POINTS lie at equal intervals of pitch
EQUALISER_POINTS, EQUALISER_DB, TILT_DB = 8, 3.0, 2.0  # deviation at a point; most of the tilt, an octave
CLIPPED_SHARE = (0.001, 0.05)  # of the samples
LOW_HZ, HIGH_HZ = (20.0, 400.0), (2800.0, 7500.0)  # edges of a band
SLOPE_DB = 60.0  # an octave outside of it
LOST_PACKETS, PACKET = (0.01, 0.1), 320  # share, of 20 ms
GAIN_DB = (-25.0, 5.0)
# Of soundfile: container, coding, least and most compression, rates in Hz.
CODECS: tuple[tuple[str, str, tuple[float, float] | None, tuple[int, ...]], ...] = (
    ("OGG", "OPUS", (0.90, 0.99), (8000, 16000)),
    ("MP3", "MPEG_LAYER_III", (0.0, 0.9), (8000, 16000)),
    ("OGG", "VORBIS", (0.6, 1.0), (8000, 16000)),
    ("WAV", "ULAW", None, (8000, 16000)),
    ("WAV", "ALAW", None, (8000,)),
    ("WAV", "GSM610", None, (8000,)),
)


def distort(waveform: Waveform, names: Sequence[str], rng: np.random.Generator) -> tuple[Waveform, list[str]]:
    """Distorts a waveform [N] by those of `names` that the dice choose; also returns which."""
    chosen = [name for name in SHARES if name in names and rng.random() < SHARES[name]]
    for name in chosen:
        waveform = DISTORTIONS[name](waveform, rng)
    return waveform.astype(np.float32), chosen


def equaliser(waveform: Waveform, rng: np.random.Generator) -> Waveform:
    """Applies a random smooth frequency response, without delay: a tilt, and points joined in decibels over pitch."""
    octaves = np.log2(EQUALISER_HZ[1] / EQUALISER_HZ[0])
    places = np.linspace(0, octaves, EQUALISER_POINTS)
    decibels = rng.normal(0, EQUALISER_DB, EQUALISER_POINTS)
    decibels += rng.uniform(-TILT_DB, TILT_DB) * (places - octaves / 2)
    return _filtered(waveform, lambda pitch: np.interp(pitch - np.log2(EQUALISER_HZ[0]), places, decibels))


def band(waveform: Waveform, rng: np.random.Generator) -> Waveform:
    """Leaves a random band, from a telephone's to nearly all; beyond its edges it falls by SLOPE_DB an octave."""
    low, high = np.log2(rng.uniform(*LOW_HZ)), np.log2(rng.uniform(*HIGH_HZ))
    return _filtered(waveform, lambda pitch: -SLOPE_DB * np.maximum(np.maximum(low - pitch, pitch - high), 0))


def _filtered(waveform: Waveform, decibels_of: Callable[[Waveform], Waveform]) -> Waveform:
    """Applies a zero-phase response, given in decibels at log2 of Hz; the power stays what it was."""
    silence = SAMPLE_RATE // 10  # between the end and the beginning, which the transform joins
    size: Any = scipy.fft.next_fast_len(len(waveform) + silence, real=True)
    pitch = np.log2(np.maximum(np.arange(size // 2 + 1) * (SAMPLE_RATE / size), 1.0))
    gains = 10 ** (decibels_of(pitch) / 20)
    filtered = np.asarray(scipy.fft.irfft(np.asarray(scipy.fft.rfft(waveform, size)) * gains, size))[: len(waveform)]
    return filtered * np.sqrt(_power(waveform) / max(_power(filtered), 1e-20))


def _power(waveform: Waveform) -> float:
    return float(np.mean(np.square(waveform), dtype=np.float64))


def clipping(waveform: Waveform, rng: np.random.Generator) -> Waveform:
    """Cuts off the loudest samples, a random share of them."""
    level = np.quantile(np.abs(waveform), 1 - np.exp(rng.uniform(*np.log(CLIPPED_SHARE))))
    return np.clip(waveform, -level, level)


def codec(waveform: Waveform, rng: np.random.Generator) -> Waveform:
    """Codes and decodes with a random codec, compression and rate; by libsndfile, its length and peak kept."""
    container, coding, compression, rates = CODECS[rng.integers(len(CODECS))]
    rate = rates[rng.integers(len(rates))]
    level = None if compression is None else rng.uniform(*compression)
    peak = max(float(np.abs(waveform).max()), 1e-9)
    coded = io.BytesIO()
    with soundfile.SoundFile(coded, "w", rate, 1, coding, format=container, compression_level=level) as file:
        file.write(soxr.resample(waveform, SAMPLE_RATE, rate) * (0.5 / peak))  # room for what coding adds
    coded.seek(0)
    decoded = soxr.resample(soundfile.read(coded, dtype="float32")[0], rate, SAMPLE_RATE)[: len(waveform)]
    return np.pad(decoded, (0, len(waveform) - len(decoded))) * (peak / 0.5)


def loss(waveform: Waveform, rng: np.random.Generator) -> Waveform:
    """Loses a random share of the packets, which become silence."""
    kept = rng.random(-(-len(waveform) // PACKET)) >= rng.uniform(*LOST_PACKETS)
    return waveform * np.repeat(kept, PACKET)[: len(waveform)]


def gain(waveform: Waveform, rng: np.random.Generator) -> Waveform:
    """Makes all louder or quieter."""
    return waveform * 10 ** (rng.uniform(*GAIN_DB) / 20)


DISTORTIONS: dict[str, Callable[[Waveform, np.random.Generator], Waveform]] = {
    "equaliser": equaliser, "clipping": clipping, "band": band, "codec": codec, "loss": loss, "gain": gain,
}  # fmt: skip
