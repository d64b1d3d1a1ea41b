"""The shard format: one ArrayRecord record per utterance, and the metadata beside the shards.

A record is a little-endian header, the id in UTF-8, zeros up to a multiple of 8 bytes, then the arrays: log-mel and
tail in float16, or in shards of waveforms the samples in int16.
"""

import dataclasses
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

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
    log_mel: np.ndarray
    tail: np.ndarray


@dataclass(frozen=True)
class Recording:
    """One utterance as a waveform: samples int16 [N], full scale 32768, 16 kHz."""

    id: str
    samples: np.ndarray

    @property
    def num_samples(self) -> int:
        return len(self.samples)

    @property
    def log_mel(self) -> np.ndarray:
        """float16 [1, T, F], made anew at each call: there is a clean version alone."""
        return features.log_mel(self.samples.astype(np.float32) / 32768)[None].astype(np.float16)


def encode(utterance: Utterance | Recording) -> bytes:
    """The bytes of one record."""
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
    """The utterance of one record, its arrays read-only views of these bytes.

    Raises UserError for bytes of another format or version, or of the wrong length.
    """
    if len(record) < HEADER.size or record[:4] != MAGIC:
        raise UserError("a record is not of this project's format: make the shards again with sdpn_jax.data.prepare")
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


def read_metadata(directory: str | Path) -> dict:
    """The metadata.json of a folder of shards.

    Raises UserError when there is none, or when its features are not those of this program.
    """
    path = Path(directory) / "metadata.json"
    if not path.exists():
        raise UserError(
            f"no prepared shards in {directory} (metadata.json is missing): make them with "
            f"python -m sdpn_jax.data.prepare --input=FOLDER_OF_AUDIO --output={directory}"
        )
    try:
        metadata = json.loads(path.read_text())
        theirs = metadata["features"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): run sdpn_jax.data.prepare again") from error
    for field, ours in dataclasses.asdict(features.DEFAULT).items():
        if theirs.get(field) != ours:
            raise UserError(
                f"{path}: the shards were made with {field}={theirs.get(field)}, training needs {field}={ours}: "
                "prepare them again"
            )
    if metadata.get("format_version") != VERSION:
        raise UserError(
            f"{path}: format version {metadata.get('format_version')}, this program reads {VERSION}: prepare them again"
        )
    return metadata


def shard_paths(directory: str | Path) -> list[str]:
    """The shards named in metadata.json, in order.

    Raises UserError when one is missing, or has not the size that it was written with.
    """
    paths = []
    for shard in read_metadata(directory)["shards"]:
        path = Path(directory) / shard["name"]
        size = path.stat().st_size if path.exists() else 0
        if size != shard["bytes"]:
            state = f"damaged ({size} bytes instead of {shard['bytes']})" if path.exists() else "missing"
            raise UserError(f"{path} is {state}: run sdpn_jax.data.prepare again, which makes it anew")
        paths.append(str(path))
    return paths


def read_shard(path: str | Path) -> Iterator[bytes]:
    """The records of one shard, in order."""
    reader = ArrayRecordReader(str(path))
    try:
        for i in range(reader.num_records()):
            yield reader.read([i])[0]
    finally:
        reader.close()
