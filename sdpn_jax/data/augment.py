"""Noise and reverberation for the local views, on waveforms, in the proportions of the SDPN recipe."""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import scipy.fft
from absl import logging
from jaxtyping import Float, Float32

from sdpn_jax import storage
from sdpn_jax.data import audio
from sdpn_jax.data.recordings import find_utterances
from sdpn_jax.errors import UserError

SNR_DB = {"noise": (0.0, 15.0), "speech": (13.0, 20.0), "music": (5.0, 15.0)}  # MUSAN's types
BABBLE_SPEAKERS = (3, 7)
DRAWS = 20  # of files, before giving up
REVERB_GAIN_DB = (-7.0, 3.0)
SYNTHETIC_RT60_S = (0.15, 0.7)
SYNTHETIC_DIRECT_DB = (-3.0, 12.0)  # direct sound over reverberation
RIR_FOLDERS = "real_rirs_isotropic_noises", "rirs_noises"  # whose names do not make their files noise
RIR_SAMPLES = 8000  # of a response on an accelerator: what comes later is 60 dB down in most rooms
NOISE_EXPONENT = (0.0, 2.0)  # of 1 / f^a: white to brown

Waveform: TypeAlias = Float[np.ndarray, " N"]
Response: TypeAlias = Float32[np.ndarray, " L"]


@dataclass(frozen=True)
class Sources:
    """Files of noise and room impulse responses; where there are none, noise and rooms are synthesised.

    noises: {"noise" | "speech" | "music": files}, rirs: files.
    """

    noises: dict[str, list[storage.Place]] = field(default_factory=dict)
    rirs: list[storage.Place] = field(default_factory=list)

    def fingerprint(self) -> str:
        """Changes with the files' names and sizes."""
        stamps = [(kind, str(path), _size(path)) for kind in self.noises for path in self.noises[kind]]
        stamps += [("rir", str(path), _size(path)) for path in self.rirs]
        return hashlib.sha256(repr(stamps).encode("utf-8", "surrogateescape")).hexdigest()


def _size(path: storage.Place) -> int:
    stamp = storage.stamp(path)
    if stamp is None:
        raise UserError(f"{path} is gone")
    return stamp[0]


def find_sources(noise: str | os.PathLike | None, rirs: str | os.PathLike | None) -> Sources:
    """Finds the usable files of a noise folder and of a folder of room impulse responses (None: no folder).

    What lies in folders noise, speech and music below a noise folder (as in MUSAN) is of these types; without such
    folders all is "noise". Files whose own or folder's name mentions noise are no impulse responses (RIRS_NOISES holds
    both, whose own name does not count). Says in the log what was taken as what. Raises UserError when a folder holds
    nothing usable.
    """
    noises = _noises_by_type(storage.place(noise)) if noise else {}
    if not rirs:
        return Sources(noises)
    folder = storage.place(rirs)
    names = {cut.path: _name_in(folder, cut).lower() for cut in _usable(rirs)}
    responses = [path for path, name in names.items() if "noise" not in re.sub("|".join(RIR_FOLDERS), "", name)]
    if not responses:
        raise UserError(f"{rirs} holds noise alone, no room impulse responses")
    logging.info("%s: %d room impulse responses, %d other files", folder, len(responses), len(names) - len(responses))
    return Sources(noises, responses)


def _noises_by_type(folder: storage.Place) -> dict[str, list[storage.Place]]:
    noises, others = defaultdict(list), []
    for cut in _usable(folder):
        kind = next((part for part in _name_in(folder, cut).lower().split("/")[:-1] if part in SNR_DB), "")
        (noises[kind] if kind else others).append(cut.path)
    if not noises:
        noises, others = {"noise": others}, []
    told = ", ".join(f"{len(noises[kind])} files of {kind}" for kind in SNR_DB if noises.get(kind))
    logging.info("%s: %s%s", folder, told, f"; {len(others)} beside these folders are left out" if others else "")
    return {kind: noises[kind] for kind in SNR_DB if noises.get(kind)}


def _name_in(folder: storage.Place, cut: audio.Cut) -> str:
    """A recording's path below the folder, or, of a list that names recordings elsewhere, its id."""
    return cut.path.relative_to(folder).as_posix() if cut.path.is_relative_to(folder) else cut.id


def _usable(folder: str | os.PathLike) -> list[audio.Cut]:
    """The recordings below a folder whose header can be read; those of tens of thousands take seconds."""
    found = find_utterances(folder)
    usable = [cut for cut in found if audio.seconds_of(cut.path)]
    if not usable:
        raise UserError(f"none of the {len(found)} files in {folder} can be used")
    if len(usable) < len(found):
        bad = sorted({cut.path for cut in found} - {cut.path for cut in usable})
        logging.warning("%d of %d files in %s cannot be read, first %s", len(bad), len(found), folder, bad[0])
    return usable


@lru_cache(maxsize=64)
def _read_rir(path: storage.Place) -> Response:
    return audio.read_audio(path, audio.Reading(channel=0))  # the mean of a microphone array would be a comb filter


@lru_cache(maxsize=8)
def _read_noise(path: storage.Place) -> Float32[np.ndarray, " N"]:
    return audio.read_audio(path)


def _draw(files: list[storage.Place], read: Callable[[storage.Place], Waveform], rng: np.random.Generator) -> Waveform:
    """What `read` gives for a random file; a file that cannot be decoded is named in the log and another one drawn."""
    for _ in range(DRAWS):
        path = files[rng.integers(len(files))]
        try:
            return read(path)
        except audio.AudioError as error:
            logging.warning("%s cannot be used: %s", path, error)
    raise UserError(f"{DRAWS} of {DRAWS} files drawn from {files[0].parent} and others cannot be decoded: see the log")


def _noise_stretch(path: storage.Place, num_samples: int, rng: np.random.Generator) -> Waveform:
    """A random stretch of a noise file, the file repeated where it is too short."""
    stretch = audio.read_stretch(path, num_samples, rng)
    return fit_length(_read_noise(path), num_samples, rng) if stretch is None else stretch


def augment(waveform: Waveform, sources: Sources, rng: np.random.Generator) -> tuple[Waveform, str]:
    """Augments a waveform [N]; also returns how: "none", "reverb", "noise" or "reverb+noise".

    None with probability 1/6; with 1/2 one of reverb (25 %) and noise (75 %); with 1/3 reverb, then noise.
    """
    draw = rng.random()
    if draw < 1 / 6:
        return waveform, "none"
    if draw < 4 / 6:
        if rng.random() < 0.25:
            return add_reverb(waveform, sources, rng), "reverb"
        return add_noise(waveform, sources, rng), "noise"
    return add_noise(add_reverb(waveform, sources, rng), sources, rng), "reverb+noise"


def add_reverb(waveform: Waveform, sources: Sources, rng: np.random.Generator) -> Waveform:
    """Adds reverberation: convolves with an impulse response of unit energy, with a gain uniform in -7..3 dB."""
    rir = rir_of(sources, rng)
    gain = 10 ** (rng.uniform(*REVERB_GAIN_DB) / 20)
    return (gain * convolve_rir(waveform, rir)).astype(np.float32)


def rir_of(sources: Sources, rng: np.random.Generator) -> Response:
    """Draws a random room impulse response [L] from the sources, or synthesises one."""
    if sources.rirs:
        return _draw(sources.rirs, _read_rir, rng)
    return synthetic_rir(rng.uniform(*SYNTHETIC_RT60_S), rng)


def convolve_rir(waveform: Waveform, rir: Float[np.ndarray, " L"]) -> Waveform:
    """Convolves a waveform [N] with rir / |rir|, cut to [N], the strongest tap (the direct path) at no delay."""
    from scipy import signal  # which takes a second to import, and training does not need it

    direct = int(np.argmax(np.abs(rir)))
    wet = signal.fftconvolve(waveform, rir / np.sqrt(np.sum(np.square(rir))))
    return wet[direct : direct + len(waveform)]


def add_noise(waveform: Waveform, sources: Sources, rng: np.random.Generator) -> Waveform:
    """Adds noise of a random type at that type's SNR; power is the mean over the utterance."""
    kinds = sorted(sources.noises) or ["noise"]
    kind = kinds[rng.integers(len(kinds))]
    return mix(waveform, noise_of(kind, sources, len(waveform), rng), rng.uniform(*SNR_DB[kind]))


def noise_of(
    kind: str, sources: Sources, num_samples: int, rng: np.random.Generator
) -> Float32[np.ndarray, " {num_samples}"]:
    """Draws noise [N] of a kind: a stretch of a file, or coloured noise where there are no files.

    "speech" is babble, the sum of 3 to 7 files, each scaled to the same power.
    """
    if not sources.noises:
        return coloured_noise(num_samples, rng.uniform(*NOISE_EXPONENT), rng)
    files = sources.noises[kind]
    read = lambda path: _noise_stretch(path, num_samples, rng)  # noqa: E731
    if kind != "speech":
        return _draw(files, read, rng)
    babble = np.zeros(num_samples, np.float32)
    for _ in range(rng.integers(BABBLE_SPEAKERS[0], BABBLE_SPEAKERS[1] + 1)):
        voice = _draw(files, read, rng)
        babble += voice / np.sqrt(np.mean(np.square(voice)) + 1e-12)
    return babble


def mix(waveform: Waveform, noise: Waveform, snr_db: float) -> Waveform:
    """Adds noise [N] to a waveform [N], scaled to `snr_db`; digital silence adds nothing."""
    noise_power = np.mean(np.square(noise), dtype=np.float64)
    if noise_power == 0:
        return waveform
    power = np.mean(np.square(waveform), dtype=np.float64)
    return (waveform + np.sqrt(power / noise_power / 10 ** (snr_db / 10)) * noise).astype(np.float32)


def fit_length(noise: Waveform, num_samples: int, rng: np.random.Generator) -> Float[np.ndarray, " {num_samples}"]:
    """Cuts a random stretch of `num_samples` samples; noise that is too short is repeated from a random place."""
    if len(noise) >= num_samples:
        start = rng.integers(len(noise) - num_samples + 1)
        return noise[start : start + num_samples]
    return np.resize(np.roll(noise, -rng.integers(len(noise))), num_samples)


def coloured_noise(
    num_samples: int, exponent: float, rng: np.random.Generator
) -> Float32[np.ndarray, " {num_samples}"]:
    """Synthesises Gaussian noise [N] with power spectrum 1 / f^exponent: 0 white, 1 pink, 2 brown."""
    size = scipy.fft.next_fast_len(num_samples, real=True)
    spectrum = np.asarray(scipy.fft.rfft(rng.standard_normal(size, dtype=np.float32)))
    frequency = np.arange(len(spectrum), dtype=np.float32)
    frequency[0] = np.inf  # no DC
    return np.asarray(scipy.fft.irfft(spectrum * frequency ** np.float32(-exponent / 2), size))[:num_samples]


def synthetic_rir(rt60: float, rng: np.random.Generator) -> Response:
    """Synthesises a 16 kHz room response: a direct path, then Gaussian noise that decays by 60 dB in `rt60` seconds."""
    time = np.arange(1, int(rt60 * audio.SAMPLE_RATE)) / audio.SAMPLE_RATE
    tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / rt60)
    direct = np.sqrt(np.sum(np.square(tail))) * 10 ** (rng.uniform(*SYNTHETIC_DIRECT_DB) / 20)
    return np.concatenate([[direct], tail]).astype(np.float32)
