"""The record format of shards: one ArrayRecord record for each utterance.

A record is a little-endian header, the id in UTF-8, zeros up to a multiple of 8 bytes, then the arrays: log-mel and
tail in float16, or in shards of waveforms the samples in int16.
"""

import struct
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16, Int16

from sdpn_jax.data import features
from sdpn_jax.errors import UserError

MAGIC = b"SDPN"
VERSION = 2
HEADER = struct.Struct("<4sHHIIIQ")  # magic, version, log-mel versions, id bytes, frames, mel bins, samples
WRITER_OPTIONS = "group_size:1,uncompressed"  # one record is one random read; float16 log-mel hardly compresses


@dataclass(frozen=True)
class Utterance:
    """One utterance: log_mel float16 [1 + A, T, F], the clean version first; tail float16 [1 + A, TAIL_FRAMES, F].

    `tail` is features.silence_tail of each version, `num_samples` the length of the waveform.
    """

    id: str
    num_samples: int
    log_mel: Float16[np.ndarray, "versions T F"]
    tail: Float16[np.ndarray, "versions tail F"]


@dataclass(frozen=True)
class Recording:
    """One utterance as a waveform: samples int16 [N], full scale 32768, 16 kHz."""

    id: str
    samples: Int16[np.ndarray, " N"]

    @property
    def num_samples(self) -> int:
        return len(self.samples)

    @property
    def log_mel(self) -> Float16[np.ndarray, "1 T F"]:
        """float16 [1, T, F], made anew at each call: there is a clean version alone."""
        return features.log_mel(self.samples.astype(np.float32) / 32768)[None].astype(np.float16)


def encode(utterance: Utterance | Recording) -> bytes:
    """Encodes an utterance as the bytes of one record."""
    name = utterance.id.encode("utf-8", "surrogateescape")
    if isinstance(utterance, Recording):
        versions, frames, bins = 0, 0, 0  # which marks a waveform
        arrays = [np.ascontiguousarray(utterance.samples, "<i2")]
    else:
        versions, frames, bins = utterance.log_mel.shape
        arrays = [np.ascontiguousarray(a, "<f2") for a in (utterance.log_mel, utterance.tail)]
    head = HEADER.pack(MAGIC, VERSION, versions, len(name), frames, bins, utterance.num_samples) + name
    return head + bytes(-len(head) % 8) + b"".join(array.tobytes() for array in arrays)


def decode(record: bytes) -> Utterance | Recording:
    """Decodes one record; its arrays are read-only views of these bytes.

    Raises UserError for bytes of another format or version, or of the wrong length.
    """
    if len(record) < HEADER.size or record[:4] != MAGIC:
        raise UserError("a record is not of this project's format: make the shards again with sdpn prepare")
    _, version, versions, name_bytes, frames, bins, num_samples = HEADER.unpack_from(record)
    if version != VERSION:
        raise UserError(f"a record has format version {version}, this program reads {VERSION}: make the shards again")
    start = HEADER.size + name_bytes
    start += -start % 8
    sizes = versions * frames * bins, versions * features.TAIL_FRAMES * bins
    expected = start + 2 * (sum(sizes) if versions else num_samples)
    if len(record) != expected:
        raise UserError(f"a record is damaged: {len(record)} bytes instead of {expected}")
    name = record[HEADER.size : HEADER.size + name_bytes].decode("utf-8", "surrogateescape")
    if not versions:
        return Recording(name, np.frombuffer(record, "<i2", offset=start))
    values = np.frombuffer(record, "<f2", offset=start)
    return Utterance(
        id=name,
        num_samples=num_samples,
        log_mel=values[: sizes[0]].reshape(versions, frames, bins),
        tail=values[sizes[0] :].reshape(versions, features.TAIL_FRAMES, bins),
    )
