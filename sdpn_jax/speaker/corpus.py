"""Embeddings of any number of recordings, as NumPy files, in bounded memory.

The list is worked on in parts, each kept in <output>.parts/ when it is done: after a kill, complete parts are not
computed again, and several machines may share the parts among them. All devices of a machine are used.
"""

import hashlib
import importlib
import json
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from absl import logging
from jaxtyping import Float
from tqdm import tqdm

from sdpn_jax import storage
from sdpn_jax.arrays import read_npz
from sdpn_jax.data import audio, features, recordings
from sdpn_jax.data.features import LogMel
from sdpn_jax.data.front_ends import FRONT_ENDS, FrontEnd
from sdpn_jax.data.shards import Records, is_shards, open_shards
from sdpn_jax.errors import UserError, one_line
from sdpn_jax.speaker import embedder
from sdpn_jax.weights.load import load_network

UTTERANCES_PER_PART = 512
FRAMES_IN_MEMORY = 2**20  # of log-mels waiting to be embedded: 320 MiB
BYTES_ALONE = "".join(map(chr, range(0xDC80, 0xDD00)))  # how bytes that are no UTF-8 stand in Python's text
FRAMES_PER_SECOND = features.DEFAULT.sample_rate / features.DEFAULT.hop

Embed = Callable[[list[LogMel]], Float[np.ndarray, "N D"]]


@dataclass(frozen=True)
class Model:
    """A function log-mels [T, F] -> embeddings float32 [N, D], whose model has this digest, front end and threshold."""

    embed: Embed
    digest: str
    front_end: str = "sdpn"
    threshold: float | None = None


@dataclass(frozen=True)
class Part:
    """One stretch of the list of utterances: recordings, or one shard."""

    utterances: tuple[audio.Cut, ...] = ()
    shard: Path | None = None
    count: int = 0

    def stamps(self) -> list:
        """Changes whenever the files of the part do."""
        if self.shard:
            return [[str(self.shard), storage.stamp(self.shard)]]
        return [cut.stamp() for cut in self.utterances]


@dataclass(frozen=True)
class Written:
    """What `embed_corpus` wrote: how many embeddings of which dimension, where, and how many recordings it skipped.

    hints: how many recordings have what spoils embeddings, as `audio.hints_of` says it.
    """

    embeddings: int
    dimension: int
    output: storage.Place
    skipped: int
    reasons: storage.Place
    hints: dict[str, int]


@dataclass
class Notes:
    """What is noted while recordings are read: (path, reason) of those skipped, and how often each hint applies."""

    skipped: list[tuple[str, str]] = field(default_factory=list)
    hints: Counter = field(default_factory=Counter)


def plan(sources: Sequence[str | os.PathLike]) -> list[Part]:
    """Divides recordings, audio folders, lists (see `recordings`), Kaldi folders and folders of shards into parts.

    The id of a recording that is named itself is its path as it was given. Raises UserError when two recordings of
    different sources have one id.
    """
    parts, utterances = [], []
    for source in map(storage.place, sources):
        if is_shards(source):
            shards = open_shards(source)
            pairs = zip(shards.paths, shards.counts, strict=True)
            parts += [Part(shard=path, count=count) for path, count in pairs]
        elif recordings.is_list(source) or storage.is_folder(source):
            utterances += recordings.find_utterances(source)
        else:
            utterances.append(audio.Cut(str(source), source))
    if twice := recordings.ids_twice(utterances):
        raise UserError(f"{len(twice)} ids occur twice, first {twice[0]!r}: give one folder that holds them all")
    size = UTTERANCES_PER_PART
    chunks = [tuple(utterances[start : start + size]) for start in range(0, len(utterances), size)]
    return parts + [Part(utterances=chunk, count=len(chunk)) for chunk in chunks]


def read_part(
    part: Part, notes: Notes, reading: audio.Reading = audio.DEFAULT, front_end: str = "sdpn"
) -> Iterator[tuple[str, LogMel]]:
    """Yields (utterance id, log-mel [T, F]) of every utterance of a part; of shards the clean version.

    Files and records that cannot be used, and hints on the others, are added to `notes`. Raises UserError for shards,
    which hold SDPN's features, where others are wanted.
    """
    if part.shard:
        if front_end != "sdpn":
            raise UserError(
                f"{part.shard} holds features of SDPN, this model hears those of {front_end}: give recordings"
            )
        shard = Records([part.shard], [part.count])
        for number in range(part.count):
            try:
                utterance = shard[number]
            except UserError as error:
                notes.skipped.append((f"{part.shard}, record {number}", str(error)))
            else:
                yield utterance.id, utterance.log_mel[0].astype(np.float32)
        return
    results = _ahead(partial(_log_mel_or_reason, reading, FRONT_ENDS[front_end]), part.utterances, FRAMES_IN_MEMORY)
    for cut, result in zip(part.utterances, results, strict=True):
        if isinstance(result, audio.AudioError):
            notes.skipped.append((str(cut.path), str(result)))
        else:
            notes.hints.update(result.hints)
            yield cut.id, result.log_mel


def read_features(
    source: str | os.PathLike, notes: Notes, reading: audio.Reading = audio.DEFAULT, front_end: str = "sdpn"
) -> Iterator[tuple[str, LogMel]]:
    """Yields (utterance id, log-mel [T, F]) of every utterance of a source; see `read_part`."""
    for part in plan([source]):
        yield from read_part(part, notes, reading, front_end)


@dataclass(frozen=True)
class Heard:
    """A recording as it is embedded, and what may spoil its embedding."""

    log_mel: LogMel
    hints: list[str]


def _log_mel_or_reason(reading: audio.Reading, features_of: FrontEnd, cut: audio.Cut) -> Heard | audio.AudioError:
    try:
        waveform = audio.read_cut(cut, reading)
    except audio.AudioError as error:
        return error
    return Heard(features_of(waveform), audio.hints_of(waveform))


def _ahead(work: Callable, items: Iterable, room: int) -> Iterator:
    """work(item) of every item in order; a thread for each core works on the next ones meanwhile.

    What is finished waits with at most about `room` frames beyond the results of one more item a thread.
    """
    workers = joblib.cpu_count()
    waiting: deque[Future] = deque()

    def full() -> bool:
        finished = [future for future in waiting if future.done()]
        return len(waiting) - len(finished) >= workers or sum(_frames(future.result()) for future in finished) > room

    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            while len(waiting) > 2 * workers or full():
                yield waiting.popleft().result()
            waiting.append(pool.submit(work, item))
        while waiting:
            yield waiting.popleft().result()


def _frames(result: Heard | audio.AudioError) -> int:
    return 0 if isinstance(result, audio.AudioError) else len(result.log_mel)


def log_mel_statistics(log_mel: LogMel) -> Float[np.ndarray, " 2*F"]:
    """Computes the baseline that needs no network: mean and standard deviation over time of each mel bin."""
    return np.concatenate([log_mel.mean(0), log_mel.std(0)])


def load_model(model: str | os.PathLike, which: str = "teacher", step: int | None = None) -> Model:
    """Loads what embeds log-mels: a model, which and step as in `load_network`.

    `which` may also be "statistics", log_mel_statistics, which needs no model.
    """
    if which == "statistics":
        return Model(lambda log_mels: np.stack([log_mel_statistics(x) for x in log_mels]), which)
    network, variables, threshold = load_network(model, which, step)
    digest = embedder.fingerprint(network, variables)
    embed = embedder.Embedder(network)
    on_devices = embed.put(variables)
    return Model(lambda log_mels: embedder.finite(embed(on_devices, log_mels)), digest, network.front_end, threshold)


def embed_in_turn(embed: Embed, log_mels: Iterable[LogMel]) -> Iterator[Float[np.ndarray, "n D"]]:
    """Embeds log-mels in their order, at most FRAMES_IN_MEMORY frames (or one utterance) at once."""
    waiting: list[LogMel] = []
    frames = 0
    for log_mel in log_mels:
        if waiting and frames + len(log_mel) > FRAMES_IN_MEMORY:
            yield embed(waiting)
            waiting, frames = [], 0
        waiting.append(log_mel)
        frames += len(log_mel)
    if waiting:
        yield embed(waiting)


def embed_part(
    embed: Embed, part: Part, progress: tqdm, reading: audio.Reading = audio.DEFAULT, front_end: str = "sdpn"
) -> dict[str, np.ndarray]:
    """Embeds a part, at most FRAMES_IN_MEMORY frames at once: {"ids", "embeddings", "seconds", "skipped", "hints"}."""
    ids: list[str] = []
    seconds: list[float] = []
    notes = Notes()

    def log_mels() -> Iterator[LogMel]:
        for utterance_id, log_mel in read_part(part, notes, reading, front_end):
            ids.append(utterance_id)
            seconds.append((len(log_mel) - 1) / FRAMES_PER_SECOND)
            yield log_mel
            progress.update()

    embeddings = list(embed_in_turn(embed, log_mels()))
    progress.update(len(notes.skipped))
    return {
        "ids": np.asarray(ids, np.str_),
        "embeddings": np.concatenate(embeddings) if embeddings else np.zeros((0, 0), np.float32),
        "seconds": np.asarray(seconds, np.float32),
        "skipped": np.asarray(notes.skipped, np.str_).reshape(-1, 2),
        "hints": np.asarray(list(notes.hints.elements()), np.str_),
    }


def embed_corpus(
    sources: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    model: str | os.PathLike,
    which: str = "teacher",
    step: int | None = None,
    crops: int = 0,
    crop_seconds: float = 4.0,
    task_index: int = 0,
    task_count: int = 1,
    reading: audio.Reading = audio.DEFAULT,
) -> Written | None:
    """Writes embeddings of every utterance of `sources`, which are as in `plan`.

    `output` ending in .npz: arrays `ids`, `embeddings` float32 [N, D] and `seconds` float32 [N]; otherwise a folder
    with embeddings.npy, ids.txt and seconds.npy. model, which and step: as in `load_model`. `crops`: 0 embeds
    whole utterances, otherwise the mean of so many crops' embeddings. Utterances that cannot be read are listed in
    `skipped_path(output)`. Of several tasks each only leaves its parts behind and returns None. Raises UserError when
    no utterance is left.
    """
    if not 0 <= task_index < task_count:
        raise UserError(f"--task_index={task_index} must be from 0 to --task_count - 1 = {task_count - 1}")
    parts = plan(sources)  # before a model is loaded
    loaded = load_model(model, which, step)
    return embed_parts(loaded, parts, output, crops, crop_seconds, task_index, task_count, reading)


def embed_parts(
    model: Model,
    parts: Sequence[Part],
    output: str | os.PathLike,
    crops: int = 0,
    crop_seconds: float = 4.0,
    task_index: int = 0,
    task_count: int = 1,
    reading: audio.Reading = audio.DEFAULT,
) -> Written | None:
    """Does what `embed_corpus` does with what `load_model` and `plan` have returned before."""
    embed = model.embed
    if crops:
        frames = round(crop_seconds * FRAMES_PER_SECOND)
        embed = partial(embedder.embed_crops, embed, count=crops, frames=frames)
    about: list[Any] = [model.digest, crops, crop_seconds, [part.stamps() for part in parts], astuple(reading)]
    name = hashlib.sha256(json.dumps(about).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    folder = storage.make_folder(parts_folder(output) / name)

    done = set(storage.names(folder))
    paths = [folder / f"part-{number:05d}.npz" for number in range(len(parts))]
    ours = list(zip(parts, paths, strict=True))[task_index::task_count]
    total = sum(part.count for part, _ in ours)
    bar = {"unit": "utterance", "desc": "embedding", "smoothing": 0.05, "mininterval": 1, "disable": total < 10}
    with tqdm(total=total, **bar) as progress:
        for part, path in ours:
            if path.name in done:
                progress.update(part.count)
            else:
                storage.write_npz(path, **embed_part(embed, part, progress, reading, model.front_end))
    return join(paths, storage.place(output)) if task_count == 1 else None


def parts_folder(output: str | os.PathLike) -> storage.Place:
    """Returns the folder in which the parts of an output wait to be joined."""
    return storage.place(f"{os.fspath(output)}.parts")


def remove_parts(output: storage.Place) -> None:
    """Removes all parts of an output, and their folder if nothing else lies in it."""
    folder = parts_folder(output)
    for name in storage.names(folder):
        if re.fullmatch("[0-9a-f]{16}", name):  # as `embed_parts` names them
            storage.remove(folder / name)
    if not storage.names(folder):
        storage.remove(folder)


def join(paths: list[storage.Place], output: storage.Place) -> Written:
    """Joins the parts into one output, lists the skipped recordings, and removes the parts."""
    parts = []
    for path in paths:
        part = read_npz(path, "a part of the embeddings: delete it and run the same command again")
        if {*part} != {"ids", "embeddings", "seconds", "skipped", "hints"}:
            raise UserError(f"{path} is damaged: delete it and run the same command again")
        parts.append(part)
    skipped = [(str(name), str(reason)) for part in parts for name, reason in part["skipped"]]
    hints = Counter(str(hint) for part in parts for hint in part["hints"])
    kept = [part for part in parts if len(part["ids"])]
    if not kept:
        remove_parts(output)
        first = f", first {skipped[0][0]!r}: {skipped[0][1]}" if skipped else ""
        raise UserError(f"none of the {len(skipped)} recordings can be used{first}")
    ids, embeddings, seconds = (
        np.concatenate([part[key] for part in kept]) for key in ("ids", "embeddings", "seconds")
    )
    write_embeddings(output, ids.tolist(), embeddings, seconds)
    write_skipped(output, skipped)
    remove_parts(output)
    return Written(len(ids), embeddings.shape[1], output, len(skipped), skipped_path(output), dict(hints))


def write_embeddings(output: str | os.PathLike, ids: list[str], embeddings: np.ndarray, seconds: np.ndarray) -> None:
    """Writes .npz, Kaldi's .ark and .scp, or .parquet by the end of `output`'s name, else a folder of .npy and ids.txt.

    Raises UserError for ids that the format cannot hold, and where its library is missing.
    """
    output = storage.place(output)
    embeddings = embeddings.astype(np.float32)
    if output.suffix in FORMATS:
        storage.make_folder(output.parent)
        FORMATS[output.suffix](output, ids, embeddings, seconds)
        return
    _check_ids(ids, "\n", "ids.txt", output)
    storage.make_folder(output)
    for name, array in (("embeddings.npy", embeddings), ("seconds.npy", seconds)):
        with storage.written(output / name) as file:
            np.save(file, array)
    storage.write_text(output / "ids.txt", "".join(f"{name}\n" for name in ids))


def _write_npz(output: storage.Place, ids: list[str], embeddings: np.ndarray, seconds: np.ndarray) -> None:
    storage.write_npz(output, ids=np.asarray(ids), embeddings=embeddings, seconds=seconds)


def _write_kaldi(output: storage.Place, ids: list[str], embeddings: np.ndarray, seconds: np.ndarray) -> None:
    """Writes NAME.ark, and NAME.scp that names each vector's place in it, as Kaldi keeps x-vectors."""
    kaldiio = _library("kaldiio", "kaldi")
    _check_ids(ids, " \t\r\n\v\f", "a Kaldi archive", output)
    lines = []
    with storage.written(output) as file:
        for name, embedding in zip(ids, embeddings, strict=True):
            file.write(name.encode("utf-8", "surrogateescape") + b" ")
            lines.append(f"{name} {output}:{file.tell()}\n")
            kaldiio.matio.write_array(file, embedding)
    storage.write_text(output.with_suffix(".scp"), "".join(lines))


def _write_parquet(output: storage.Place, ids: list[str], embeddings: np.ndarray, seconds: np.ndarray) -> None:
    """Writes a table of id, embedding (a list of D float32) and seconds."""
    arrow = _library("pyarrow", "parquet")
    parquet = _library("pyarrow.parquet", "parquet")
    _check_ids(ids, BYTES_ALONE, "Parquet", output)
    vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(embeddings.ravel()), embeddings.shape[1])
    table = arrow.table({"id": ids, "embedding": vectors, "seconds": np.asarray(seconds, np.float32)})
    with storage.written(output) as file:
        parquet.write_table(table, file)


FORMATS = {".npz": _write_npz, ".ark": _write_kaldi, ".parquet": _write_parquet}


def _library(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"this format needs {name.split('.')[0]}: pip install 'sdpn_jax[{extra}]'") from None


def _check_ids(ids: list[str], forbidden: str, what: str, output: storage.Place) -> None:
    """Raises UserError for ids with characters that a format cannot hold."""
    for name in ids:
        if not set(forbidden).isdisjoint(name):
            raise UserError(
                f"{output}: the id {name[:200]!a} cannot stand in {what}: write --format=npz (what is computed is kept)"
            )


def skipped_path(output: str | os.PathLike) -> storage.Place:
    """Returns the path of the list of skipped recordings: beside a file, inside a folder."""
    output = storage.place(output)
    if output.suffix in FORMATS:
        return output.with_name(output.name.removesuffix(output.suffix) + ".skipped.txt")
    return output / "skipped.txt"


def write_skipped(output: storage.Place, skipped: list[tuple[str, str]]) -> None:
    """Lists (path, reason) of recordings that could not be used; without any, a list of an earlier run is removed."""
    path = skipped_path(output)
    storage.remove(path)
    if skipped:
        lines = "".join(f"{name!r}\t{one_line(reason)}\n" for name, reason in skipped)
        storage.write_text(path, lines)
        logging.warning("%d recordings skipped, listed in %s", len(skipped), path)
