"""A folder of prepared shards, opened once: its metadata checked, its files found whole, its records at hand."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex

import grain
import numpy as np
from absl import logging
from array_record.python.array_record_module import ArrayRecordReader
from tqdm import tqdm

from sdpn_jax import storage
from sdpn_jax.data import features, records
from sdpn_jax.data.channels import SHARES
from sdpn_jax.errors import UserError, shown

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None

METADATA, MOST_METADATA = "metadata.json", 64 << 20  # bytes; those of VoxCeleb2 have 200,000
COPIES_AT_ONCE = 8
FILES_BESIDE = 512  # open files that are not shards


@dataclass(frozen=True)
class Shards:
    """An open folder of shards; all that the rest of the program knows of its data.

    metadata is the content of metadata.json; paths are its shards, in order, on this machine; skip_damaged: see
    `Records`.
    """

    folder: storage.Place
    metadata: dict[str, Any]
    paths: tuple[Path, ...]
    skip_damaged: bool = False

    @property
    def utterances(self) -> int:
        """How many records all shards hold."""
        return self.metadata["utterances"]

    @property
    def store(self) -> str:
        """What a record is: "log_mel" features or a "waveform"."""
        return self.metadata.get("store", "log_mel")

    @property
    def distortions(self) -> list[str]:
        """What augmented versions go through beside noise and rooms, of channels.SHARES."""
        return self.metadata.get("distortions", [])

    @property
    def counts(self) -> list[int]:
        """Records of each shard."""
        return [entry["utterances"] for entry in self.metadata["shards"]]

    @cached_property
    def records(self) -> "Records":
        """All records by number, read and decoded when they are asked for."""
        return Records(self.paths, self.counts, self.skip_damaged)

    @cached_property
    def ids(self) -> list[str]:
        """The ids of all records, in order: as their writers noted them, or else read from the records."""
        entries = zip(self.paths, self.metadata["shards"], strict=True)
        return [name for path, entry in entries for name in _ids_of(self.folder / entry["name"], path, entry)]

    def fingerprint(self) -> str:
        """A digest of what the records are made of, whichever folder they lie in."""
        told = {key: self.metadata.get(key) for key in ("format_version", "features", "store", "augmentations", "seed")}
        told["bank"] = self.metadata.get("bank", "")
        if self.distortions:  # earlier versions knew none
            told["distortions"] = self.distortions
        return hashlib.sha256(json.dumps([told, self.metadata["shards"]], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Stretch:
    """What the reader wants to know of a shard, so that it need not open all of them at once."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class Records:
    """The utterances of all shards by number, as Grain wants a source to be.

    A damaged record raises a UserError that names shard and record. With `skip_damaged` its place is taken by the next
    whole one, on every host alike, and it is counted in the log.
    """

    def __init__(self, paths: Sequence[Path], counts: Sequence[int], skip_damaged: bool = False):
        self._paths, self._firsts = list(map(str, paths)), np.cumsum([0, *counts])
        stretches: Any = [Stretch(path, 0, count, count) for path, count in zip(self._paths, counts, strict=True)]
        self._source: Any = grain.sources.ArrayRecordDataSource(stretches)
        self._skip_damaged, self._damaged = skip_damaged, set()
        allow_open_files(len(paths))

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getitem__(self, number: SupportsIndex) -> records.Utterance | records.Recording:
        return self.numbered(number.__index__())[1]

    def numbered(
        self, place: int, among: Sequence[int] | np.ndarray | None = None
    ) -> tuple[int, records.Utterance | records.Recording]:
        """Reads the record at a place `among` numbers, or the one that stands for it; with its number."""
        count = len(self) if among is None else len(among)
        for offset in range(count):
            candidate = (place + offset) % count if among is None else int(among[(place + offset) % count])
            try:
                return candidate, records.decode(self._source[candidate])
            except (UserError, ValueError, RuntimeError, OSError) as error:
                what = f"{self._place(candidate)} is damaged ({' '.join(str(error).split())[:200]})"
                if not self._skip_damaged:
                    raise UserError(
                        f"{what}: delete the shard and run sdpn prepare again, which makes it anew, or train with "
                        "--skip_damaged"
                    ) from error
                if candidate not in self._damaged:
                    self._damaged.add(candidate)
                    logging.warning("%s: the next one stands for it (%d so far)", what, len(self._damaged))
        raise UserError(f"none of the {len(self)} records can be read")

    def _place(self, number: int) -> str:
        shard = int(np.searchsorted(self._firsts, number, "right")) - 1
        return f"{self._paths[shard]}, record {number - self._firsts[shard]}"


def allow_open_files(count: int) -> None:
    """Raises this process's limit of open files, which a corpus of many shards exceeds, as far as the system allows."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + FILES_BESIDE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < wanted:
            logging.warning("%d shards, but only %d files may be open: raise the limit (ulimit -Hn)", count, allowed)


def is_shards(folder: str | os.PathLike) -> bool:
    """Tells whether a folder holds prepared shards; a metadata.json of something else does not count."""
    try:
        metadata = storage.read_json(storage.place(folder) / METADATA, MOST_METADATA)
    except (OSError, ValueError):
        return False
    return isinstance(metadata, dict) and {"format_version", "features", "shards"} <= set(metadata)


def read_metadata(folder: str | os.PathLike) -> dict[str, Any]:
    """Reads and checks the metadata.json of a folder of shards.

    Raises UserError when there is none, or when its features or format are not those of this program.
    """
    path = storage.place(folder) / METADATA
    if not storage.exists(path):
        raise UserError(
            f"no prepared shards in {folder} ({METADATA} is missing): make them with "
            f"sdpn prepare --input=FOLDER_OF_AUDIO --output={folder}"
        )
    try:
        metadata = storage.read_json(path, MOST_METADATA)
        theirs = metadata["features"]
        if type(theirs) is not dict:
            raise ValueError("features are no object")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({shown(error)}): run sdpn prepare again") from error
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
    try:
        _check_fields(metadata)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({shown(error)}): run sdpn prepare again") from error
    return metadata


def _check_fields(metadata: dict[str, Any]) -> None:
    """Raises ValueError, KeyError or TypeError for metadata that no preparation has written."""
    kinds = {"utterances": int, "shards": list, "augmentations": int, "seed": int, "skipped": int, "hours": int | float,
             "source": str, "noise": str, "rirs": str}  # fmt: skip
    for name, kind in kinds.items():
        if name not in metadata and name not in ("utterances", "shards"):
            continue
        if isinstance(metadata[name], bool) or not isinstance(metadata[name], kind):
            raise ValueError(f"{name} is {shown(metadata[name])}")
    if not 0 <= metadata.get("hours", 0) < 1e9:
        raise ValueError(f"hours are {shown(metadata['hours'])}")
    if metadata.get("store", "log_mel") not in ("log_mel", "waveform"):
        raise ValueError(f"store is {shown(metadata['store'])}")
    distortions = metadata.get("distortions", [])
    if type(distortions) is not list or not all(type(name) is str and name in SHARES for name in distortions):
        raise ValueError(f"distortions are {shown(distortions)}")
    for entry in metadata["shards"]:
        name, sizes = entry["name"], (entry["utterances"], entry["bytes"])
        if type(name) is not str or not name or name != os.path.basename(name) or name in (".", "..") or "\0" in name:
            raise ValueError(f"{shown(name)} is no name of a shard in this folder")
        if any(type(size) is not int or size < 0 for size in sizes) or type(entry.get("sha256", "")) is not str:
            raise ValueError(f"the shard {shown(name)} has odd counts")
    if not 0 < metadata["utterances"] == sum(entry["utterances"] for entry in metadata["shards"]):
        raise ValueError("the shards' utterances do not add up")


def open_shards(folder: str | os.PathLike, skip_damaged: bool = False) -> Shards:
    """Opens a folder of shards: reads its metadata and finds every shard whole; shards of a bucket are copied here.

    Raises UserError as `read_metadata` does, when a shard is missing or has not the size it was written with, and when
    a bucket's shards exceed the bound of the local cache.
    """
    place = storage.place(folder)
    metadata = read_metadata(folder)
    if storage.is_bucket(place):
        return Shards(place, metadata, tuple(_copies(place, metadata["shards"])), skip_damaged)
    paths = []
    for entry in metadata["shards"]:
        path = Path(place) / entry["name"]
        size = path.stat().st_size if path.exists() else 0
        if size != entry["bytes"]:
            state = f"damaged ({size} bytes instead of {entry['bytes']})" if path.exists() else "missing"
            raise UserError(f"{path} is {state}: run sdpn prepare again, which makes it anew")
        paths.append(path)
    return Shards(place, metadata, tuple(paths), skip_damaged)


def shard_here(folder: storage.Place, entry: dict[str, Any]) -> Path:
    """Returns a shard where its reader can open it: itself, or the one local copy of a bucket's, as metadata.json says.

    Raises FileNotFoundError when a bucket does not hold it.
    """
    path = folder / entry["name"]
    return storage.cached(path, entry["bytes"], entry.get("sha256", "")) if storage.is_bucket(path) else Path(path)


def _copies(folder: storage.Place, entries: list[dict[str, Any]]) -> list[Path]:
    """The local copies of a bucket's shards: every batch draws from all of them, so that all must be here."""
    total, bound = sum(entry["bytes"] for entry in entries), storage.cache_bytes()
    if total > bound:
        raise UserError(
            f"the shards in {folder} have {total / 1e9:.1f} GB, the cache of this machine {bound / 1e9:.1f} GB: raise "
            f"{storage.CACHE_GB_VARIABLE}, move the cache to a larger disk by {storage.CACHE_VARIABLE}, or mount the "
            "bucket"
        )

    def copy(entry: dict[str, Any]) -> Path:
        try:
            return shard_here(folder, entry)
        except FileNotFoundError:
            raise UserError(
                f"{folder / entry['name']} is missing: run sdpn prepare again, which makes it anew"
            ) from None

    with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
        copies = pool.map(copy, entries)
        return list(tqdm(copies, total=len(entries), unit="shard", desc="fetching", mininterval=1, disable=total < 1e8))


def _ids_of(shard: storage.Place, path: Path, entry: dict[str, Any]) -> list[str]:
    """The ids of a shard's records; earlier versions have no note of them. path: where it is on this machine."""
    try:
        ids = storage.read_json(shard.with_suffix(".json"), MOST_METADATA)["ids"]
    except (OSError, ValueError, KeyError, TypeError):
        ids = None
    if type(ids) is list and len(ids) == entry["utterances"] and all(type(name) is str for name in ids):
        return ids
    logging.info("reading the ids of the records of %s", path)
    return [records.decode(record).id for record in read_shard(path)]


def read_shard(path: str | os.PathLike) -> Iterator[bytes]:
    """Yields the records of one shard, in order; UserError for a damaged one."""
    reader, number = None, 0
    try:
        reader = ArrayRecordReader(str(path))
        for number in range(reader.num_records()):
            yield reader.read([number])[0]
        reader.close()
    except (RuntimeError, ValueError, OSError, IndexError) as error:
        raise UserError(
            f"{path}, record {number} is damaged ({shown(error, 200)}): delete the shard and run sdpn prepare again"
        ) from error
