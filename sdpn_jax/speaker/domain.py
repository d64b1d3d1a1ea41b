"""Recordings of a domain as embeddings: with crops, for adapting a model to it; in halves, for its threshold."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float, Int

from sdpn_jax.data import audio
from sdpn_jax.data.features import LogMel
from sdpn_jax.errors import UserError
from sdpn_jax.speaker import corpus, embedder
from sdpn_jax.weights.load import load_network

CROPS = 4  # at most, of one recording


@dataclass(frozen=True)
class Domain:
    """Embeddings [N, D] of whole recordings, those [M, D] of their crops, and the recording that each crop is from.

    skipped: (path, reason) of what could not be used.
    """

    embeddings: Float[np.ndarray, "N D"]
    crops: Float[np.ndarray, "M D"]
    recordings: Int[np.ndarray, " M"]
    skipped: list[tuple[str, str]]


def read(
    model: str | os.PathLike, source: str | os.PathLike, crop_seconds: float, reading: audio.Reading = audio.DEFAULT
) -> Domain:
    """Embeds recordings and up to CROPS crops of each that do not overlap, in bounded memory.

    model: as in `load_network`; an adaptation that it has is left out. source: as in `corpus.plan`. Raises UserError
    when no recording can be used.
    """
    network, variables, _ = load_network(model)
    embed = embedder.Embedder(network)
    variables = embed.put({name: variables[name] for name in ("params", "batch_stats")})
    frames = round(crop_seconds * corpus.FRAMES_PER_SECOND)
    notes, numbers = corpus.Notes(), []

    def log_mels() -> Iterator[LogMel]:
        features = corpus.read_features(source, notes, reading, network.front_end)
        for recording, (_, log_mel) in enumerate(features):
            numbers.append(-1)
            yield log_mel
            for start in range(0, min(len(log_mel) // frames, CROPS) * frames, frames):
                numbers.append(recording)
                yield log_mel[start : start + frames]

    embedded = list(corpus.embed_in_turn(partial(embed, variables), log_mels()))
    if not embedded:
        raise UserError(f"none of the {len(notes.skipped)} recordings in {source} can be used")
    rows, numbered = np.concatenate(embedded), np.asarray(numbers)
    whole = numbered < 0
    return Domain(rows[whole], rows[~whole], numbered[~whole], notes.skipped)


@dataclass(frozen=True)
class Parts:
    """ids of N recordings, embeddings [N, parts, D] of the whole of each (one part) or of its two halves.

    skipped: (path, reason) of what could not be used. threshold: the model's, if it has one.
    """

    ids: list[str]
    embeddings: Float[np.ndarray, "N parts D"]
    skipped: list[tuple[str, str]]
    threshold: float | None


def read_parts(
    model: str | os.PathLike, source: str | os.PathLike, parts: int, reading: audio.Reading = audio.DEFAULT
) -> Parts:
    """Embeds recordings whole (parts=1) or in two halves (2) as `sdpn verify` would; adaptation and all.

    Recordings whose halves would be shorter than a second are skipped. model: as in `load_network`; source: as in
    `corpus.plan`. Raises UserError when no recording can be used.
    """
    loaded = corpus.load_model(model)
    notes, ids = corpus.Notes(), []

    def log_mels() -> Iterator[LogMel]:
        for name, log_mel in corpus.read_features(source, notes, reading, loaded.front_end):
            if parts > 1 and len(log_mel) < parts * corpus.FRAMES_PER_SECOND:
                notes.skipped.append((name, f"shorter than {parts} s"))
                continue
            ids.append(name)
            yield from np.array_split(log_mel, parts)

    embedded = list(corpus.embed_in_turn(loaded.embed, log_mels()))
    if not embedded:
        raise UserError(f"none of the {len(notes.skipped)} recordings in {source} can be used")
    rows = np.concatenate(embedded)
    return Parts(ids, rows.reshape(len(ids), parts, -1), notes.skipped, loaded.threshold)
