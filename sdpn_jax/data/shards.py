"""A folder of prepared shards, opened once: its metadata checked, its files found whole, its records at hand."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import grain
from array_record.python.array_record_module import ArrayRecordReader

from sdpn_jax.data import features, records
from sdpn_jax.errors import UserError

METADATA = "metadata.json"


@dataclass(frozen=True)
class Shards:
    """An open folder of shards; all that the rest of the program knows of its data.

    metadata is the content of metadata.json; paths are its shards, in order.
    """

    folder: Path
    metadata: dict[str, Any]
    paths: tuple[Path, ...]

    @property
    def utterances(self) -> int:
        """How many records all shards hold."""
        return self.metadata["utterances"]

    @property
    def store(self) -> str:
        """What a record is: "log_mel" features or a "waveform"."""
        return self.metadata["store"]

    @property
    def counts(self) -> list[int]:
        """Records of each shard."""
        return [entry["utterances"] for entry in self.metadata["shards"]]

    @cached_property
    def source(self) -> grain.sources.ArrayRecordDataSource:
        """All records by number, read when they are asked for."""
        return grain.sources.ArrayRecordDataSource([str(path) for path in self.paths])

    def fingerprint(self) -> str:
        """A digest of what the records are made of, whichever folder they lie in."""
        told = {key: self.metadata[key] for key in ("format_version", "features", "store", "augmentations", "seed")}
        return hashlib.sha256(json.dumps([told, self.metadata["shards"]], sort_keys=True).encode()).hexdigest()


def is_shards(folder: str | Path) -> bool:
    """Tells whether a folder holds prepared shards; a metadata.json of something else does not count."""
    try:
        metadata = json.loads((Path(folder) / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(metadata, dict) and {"format_version", "features", "shards"} <= set(metadata)


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """Reads and checks the metadata.json of a folder of shards.

    Raises UserError when there is none, or when its features or format are not those of this program.
    """
    path = Path(folder) / METADATA
    if not path.exists():
        raise UserError(
            f"no prepared shards in {folder} ({METADATA} is missing): make them with "
            f"sdpn prepare --input=FOLDER_OF_AUDIO --output={folder}"
        )
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        theirs = metadata["features"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): run sdpn prepare again") from error
    for field, ours in dataclasses.asdict(features.DEFAULT).items():
        if theirs.get(field) != ours:
            raise UserError(
                f"{path}: the shards were made with {field}={theirs.get(field)}, training needs {field}={ours}: "
                "prepare them again"
            )
    if metadata.get("format_version") != records.VERSION:
        raise UserError(
            f"{path}: format version {metadata.get('format_version')}, this program reads {records.VERSION}: "
            "prepare them again"
        )
    return metadata


def open_shards(folder: str | Path) -> Shards:
    """Opens a folder of shards: reads its metadata and finds every shard whole.

    Raises UserError as `read_metadata` does, and when a shard is missing or has not the size it was written with.
    """
    folder = Path(folder)
    metadata = read_metadata(folder)
    paths = []
    for entry in metadata["shards"]:
        path = folder / entry["name"]
        size = path.stat().st_size if path.exists() else 0
        if size != entry["bytes"]:
            state = f"damaged ({size} bytes instead of {entry['bytes']})" if path.exists() else "missing"
            raise UserError(f"{path} is {state}: run sdpn prepare again, which makes it anew")
        paths.append(path)
    return Shards(folder, metadata, tuple(paths))


def read_shard(path: str | Path) -> Iterator[bytes]:
    """Yields the records of one shard, in order."""
    reader = ArrayRecordReader(str(path))
    try:
        for i in range(reader.num_records()):
            yield reader.read([i])[0]
    finally:
        reader.close()
