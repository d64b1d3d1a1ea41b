"""The speaker encoder for those who never train: embeddings of recordings, similarities, verdicts."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
from absl import logging

from sdpn_jax import PRETRAINED
from sdpn_jax.data import audio
from sdpn_jax.data.decode import RATES
from sdpn_jax.data.front_ends import FRONT_ENDS
from sdpn_jax.decision import Decision
from sdpn_jax.errors import UserError, shown
from sdpn_jax.models.network import Network
from sdpn_jax.speaker import embedder
from sdpn_jax.vectors import cosine
from sdpn_jax.weights.load import load_decided

Recording: TypeAlias = str | os.PathLike | tuple[np.ndarray, float]  # a file, or (samples [N] or [N, channels], Hz)
UNDECIDED = Decision()


@dataclass(frozen=True)
class Verdict:
    """Whether two recordings are of one speaker: their cosine `score`, the `threshold`, and score >= threshold.

    probability: of one speaker, where the model is calibrated (`sdpn calibrate`).
    """

    score: float
    threshold: float
    same_speaker: bool
    probability: float | None = None


class SpeakerEncoder:
    """A trained network that turns recordings into embeddings, whose cosine tells how alike two voices are."""

    def __init__(
        self,
        network: Network,
        variables: dict,
        decision: Decision = UNDECIDED,
        reading: audio.Reading = audio.DEFAULT,
    ):
        """decision: threshold and calibration of `verify`, where they are known; reading: which channel."""
        self.threshold, self.calibration = decision.threshold, decision.calibration
        self.embedding_size = network.embedding_size
        self._network, self._embedder = network, embedder.Embedder(network)
        self._variables = self._embedder.put(variables)
        self._reading, self._features = reading, FRONT_ENDS[network.front_end]

    @classmethod
    def load(cls, path: str | os.PathLike = PRETRAINED, reading: audio.Reading = audio.DEFAULT) -> "SpeakerEncoder":
        """Loads the encoder in `path`; `sdpn_jax.weights.load.load_decided` says what that may be and what is raised.

        Without a path it is the small one in the package, whose card, README.md beside it, tells its error rates.

        reading: which channel of recordings is taken (default: the mean of all), and how long they may be.

        No setting of JAX is touched. With the variable JAX_COMPILATION_CACHE_DIR set to a folder, JAX keeps what it has
        compiled there, and the first embedding of the next process comes sooner.
        """
        return cls(*load_decided(path), reading)

    def embed(self, recordings: Recording | Sequence[Recording]) -> np.ndarray:
        """Embeds one recording, float32 [D], or a list of N recordings, [N, D].

        A recording is a file (WAV, FLAC, OGG, MP3, M4A...), or samples, float in [-1, 1] or int16, with their rate.
        Channels are averaged unless `reading` names one; any rate from 4 kHz on will do. Raises UserError, naming the
        recording, when one cannot be used.
        """
        if isinstance(recordings, (str, os.PathLike, tuple)):
            one: Any = recordings  # a tuple is samples and their rate, not two recordings
            return self.embed_log_mels([self._features(_waveform(one, 0, self._reading))])[0]
        waveforms = (_waveform(x, place, self._reading) for place, x in enumerate(recordings))
        return self.embed_log_mels([self._features(waveform) for waveform in waveforms])

    def embed_log_mels(self, log_mels: Sequence[np.ndarray]) -> np.ndarray:
        """Embeds N log-mels [T, F], as the network's front end makes them (features.log_mel): float32 [N, D]."""
        return embedder.finite(self._embedder(self._variables, log_mels))

    def fingerprint(self) -> str:
        """Returns a digest of network and weights; only embeddings of one fingerprint can be compared."""
        return embedder.fingerprint(self._network, self._variables)

    def similarity(self, a: Recording | np.ndarray, b: Recording | np.ndarray) -> float:
        """Computes the cosine in [-1, 1] of two recordings, or of embeddings [D] made of them."""
        for x in (each for each in (a, b) if isinstance(each, np.ndarray)):
            if x.shape != (self.embedding_size,):
                raise UserError(f"an array of shape {x.shape} is no embedding; samples are given as (samples, rate)")
            if not np.isfinite(x).all():
                raise UserError("an embedding holds NaN or infinity: embed the recording again")
        recordings = [x for x in (a, b) if not isinstance(x, np.ndarray)]
        embedded = iter(self.embed(recordings))  # in one batch where their lengths allow: one program to compile
        score = cosine(*(x if isinstance(x, np.ndarray) else next(embedded) for x in (a, b)))
        return float(np.clip(score, -1, 1))

    def verify(self, a: Recording | np.ndarray, b: Recording | np.ndarray, threshold: float | None = None) -> Verdict:
        """Decides whether two recordings (or embeddings) are of one speaker.

        Raises UserError when neither the model nor the call brings a threshold.
        """
        threshold = self.threshold if threshold is None else threshold
        if threshold is None:
            raise UserError(
                "this model brings no threshold: give one (for example threshold_at_eer in the results.json of "
                "`sdpn score`), or load a model folder that `sdpn calibrate` or `sdpn export --results` has given one"
            )
        if not np.isfinite(threshold):
            raise UserError(f"a threshold of {threshold}: give a cosine")
        score, threshold = self.similarity(a, b), float(threshold)
        probability = self.calibration.probability(score) if self.calibration else None
        return Verdict(score, threshold, score >= threshold, probability)


def _waveform(recording: Recording, place: int, reading: audio.Reading) -> np.ndarray:
    """Its samples at 16 kHz, float32 [N]; what may spoil its embedding is said in the log."""
    try:
        if isinstance(recording, (str, os.PathLike)):
            waveform = audio.read_audio(recording, reading)
            if hints := audio.hints_of(waveform):
                logging.warning("%s: %s; its embedding may be worse", recording, ", ".join(hints))
            return waveform
        if not isinstance(recording, tuple) or len(recording) != 2:
            raise audio.AudioError("neither a file nor (samples, rate)")
        samples, rate = np.asarray(recording[0]), recording[1]
        if not isinstance(rate, Real) or not RATES[0] <= rate <= RATES[1]:
            raise audio.AudioError(f"samples at {shown(rate)} Hz; wanted is a rate from {RATES[0]:,} to {RATES[1]:,}")
        if samples.ndim not in (1, 2):
            raise audio.AudioError(f"samples of shape {samples.shape} at {rate} Hz; wanted is [N] or [N, channels]")
        if not samples.size:
            raise audio.AudioError("no samples")
        if len(samples) > reading.max_seconds * rate:
            raise audio.AudioError(f"longer than {reading.max_seconds:g} s")
        if samples.dtype.kind == "i" and samples.dtype.itemsize == 2:
            samples = samples / np.float32(32768)
        if samples.dtype.kind != "f":
            raise audio.AudioError(f"samples of type {samples.dtype}; wanted is float in [-1, 1], or int16")
        return audio.at_16_khz(samples.astype(np.float32).reshape(len(samples), -1), rate, reading.channel)
    except audio.AudioError as error:
        name = str(recording) if isinstance(recording, (str, os.PathLike)) else f"recording {place}"
        raise UserError(f"{name}: {error}") from None
