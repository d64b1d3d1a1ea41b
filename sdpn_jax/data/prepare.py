"""Audio -> shards of float16 log-mel, clean and augmented, or of waveforms, ready for training.

A shard is written by one process, under another name until it is complete; after a kill, complete shards are kept. What
is written depends on the input and the seed alone, not on the number of workers or machines.
"""

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tqdm import tqdm

from sdpn_jax import storage
from sdpn_jax.data import audio, augment, channels, features, labels, records
from sdpn_jax.data.recordings import find_utterances
from sdpn_jax.data.shards import METADATA, MOST_METADATA
from sdpn_jax.errors import UserError, one_line

UTTERANCES_PER_SHARD = 1024  # at most
OF_A_SHARD = ("utterances", "bytes", "sha256")  # what metadata.json says; earlier versions knew no sha256
SMALL_CORPUS_SHARDS = 16  # so that a small corpus, too, occupies several workers


@dataclass(frozen=True)
class Recipe:
    """How every utterance is prepared."""

    sources: augment.Sources
    augmentations: int
    seed: int
    sources_fingerprint: str
    store: str = "log_mel"  # or "waveform", to be augmented on the accelerator
    reading: audio.Reading = audio.DEFAULT
    distortions: tuple[str, ...] = ()  # of channels.SHARES, of augmented versions, here or on the accelerator

    def fingerprint(self) -> list:
        """Changes whenever what is made of an utterance would."""
        settings = dataclasses.asdict(features.DEFAULT)
        made = [records.VERSION, settings, self.augmentations, self.seed, self.sources_fingerprint, self.store]
        if self.reading != audio.DEFAULT:
            made.append(dataclasses.astuple(self.reading))
        return [*made, self.distortions] if self.distortions else made


@dataclass(frozen=True, eq=False)
class Shard:
    """One unit of work: where it goes and what goes in."""

    path: storage.Place
    utterances: list[audio.Cut]

    def fingerprint(self, recipe: Recipe) -> str:
        """Changes whenever the shard's content would: its files (names, sizes, dates) and the recipe."""
        text = json.dumps([[cut.stamp() for cut in self.utterances], recipe.fingerprint()])
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def summary_path(self) -> storage.Place:
        """What the shard's writer says of it, written after it."""
        return self.path.with_suffix(".json")

    def summary(self, recipe: Recipe) -> dict | None:
        """What its writer said of a complete shard; None when it is missing, cut short or made of something else."""
        there = storage.stamp(self.path)
        if there is None or storage.stamp(self.summary_path) is None:
            return None
        try:
            summary = storage.read_json(self.summary_path, MOST_METADATA)
            complete = summary["bytes"] == there[0] and summary["fingerprint"] == self.fingerprint(recipe)
            return summary if complete and _is_whole(summary) else None
        except (OSError, ValueError, KeyError, TypeError):  # damaged: the shard is made anew
            return None


def _is_whole(summary: dict) -> bool:
    """Tells whether a shard's summary has what `write_shard` writes; earlier versions have no hints and sha256."""
    skipped, hints = summary["skipped"], summary.get("hints", {})
    counts = [summary["utterances"], *hints.values()]
    return (
        all(type(count) is int and count >= 0 for count in counts)
        and isinstance(summary["seconds"], int | float)
        and 0 <= summary["seconds"] < 1e12
        and all([type(part) for part in entry] == [str, str] for entry in skipped)
        and type(summary.get("sha256", "")) is str
    )


def make_recipe(
    noise: str | os.PathLike | None,
    rirs: str | os.PathLike | None,
    augmentations: int,
    seed: int,
    store: str = "log_mel",
    reading: audio.Reading = audio.DEFAULT,
    distortions: Sequence[str] = (),
) -> Recipe:
    """Makes the recipe from the command's options; raises UserError for folders without usable files."""
    if unknown := [name for name in distortions if name not in channels.SHARES]:
        raise UserError(f"--distortions: {unknown[0]!r} is none of {', '.join(channels.SHARES)}, all or none")
    if augmentations < 0:
        raise UserError(f"--augmentations={augmentations}: the number of augmented versions cannot be negative")
    sources = augment.find_sources(noise, rirs)
    kinds = tuple(name for name in channels.SHARES if name in distortions)
    augmentations = 0 if store == "waveform" else augmentations
    return Recipe(sources, augmentations, seed, sources.fingerprint(), store, reading, kinds)


def prepare(
    source: str | os.PathLike,
    output: str | os.PathLike,
    noise: str | os.PathLike | None = None,
    rirs: str | os.PathLike | None = None,
    augmentations: int = 4,
    seed: int = 0,
    workers: int = 0,
    store: str = "log_mel",
    task_index: int = 0,
    task_count: int = 1,
    only_finish: bool = False,
    reading: audio.Reading = audio.DEFAULT,
    distortions: Sequence[str] = (),
    labels_from: str = "",
) -> dict | None:
    """Writes shards, metadata.json and skipped.txt to `output` and returns the metadata.

    `source` is what recordings.find_utterances takes; `workers` 0 means one for each core; `store` is "log_mel", or
    "waveform" for augmentation on the accelerator, which needs a bank of noise and rooms beside the shards. Of several
    tasks each writes its own shards alone and returns None; `only_finish` writes none, checks that all are there and
    closes the folder. Files that cannot be used are skipped, counted and listed in skipped.txt. labels_from: a list of
    labels, or "folders", which are written beside the shards for training with labels. Raises UserError when nothing
    usable is left.
    """
    if not 0 <= task_index < task_count:
        raise UserError(f"--task_index={task_index} must be from 0 to --task_count - 1 = {task_count - 1}")
    utterances = find_utterances(source)
    recipe = make_recipe(noise, rirs, augmentations, seed, store, reading, distortions)
    known = labels_of([cut.id for cut in utterances], labels_from) if labels_from else {}
    shards = plan(utterances, storage.place(output))
    _check_name(output)
    if not only_finish:
        metadata = storage.place(output) / METADATA
        if storage.is_folder(metadata):
            raise UserError(f"{metadata} is a folder: give another --output")
        storage.remove(metadata)  # incomplete until the end
        if ours := shards[task_index::task_count]:
            write_shards(ours, recipe, workers)
        if task_count > 1:
            return None
    if known:
        labels.write_labels(storage.place(output) / labels.LABELS, known)
    return finish(shards, recipe, source, noise, rirs)


def _check_name(output: str | os.PathLike) -> None:
    """Raises UserError for a path that the shards' library cannot take."""
    try:
        os.fspath(output).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"--output={os.fspath(output)}: shards need a folder whose name is UTF-8") from None


def labels_of(ids: Sequence[str], source: str) -> dict[str, str]:
    """Returns {utterance: label} of a list, or where `source` is "folders" of these ids; UserError as reading does."""
    found = labels.of_folders(ids) if source == "folders" else labels.read_labels(source)
    labels.check_labels(found, source)
    return found


def finish(
    shards: list[Shard],
    recipe: Recipe,
    source: str | os.PathLike,
    noise: str | os.PathLike | None,
    rirs: str | os.PathLike | None,
) -> dict:
    """Checks that every shard is complete, writes metadata.json and skipped.txt beside them, returns the metadata.

    Raises UserError when a shard is missing or damaged, or when nothing usable is in them.
    """
    output = shards[0].path.parent
    found = {shard: shard.summary(recipe) for shard in shards}
    missing = [shard.path.name for shard, summary in found.items() if summary is None]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(shards)} shards in {output} are not complete, first {missing[0]}: run prepare "
            "without --finish for them (on several machines: with the same flags and each --task_index)"
        )
    summaries = {shard: summary for shard, summary in found.items() if summary is not None}
    for shard, summary in summaries.items():
        if isinstance(shard.path, Path) and _num_records(shard.path) != summary["utterances"]:
            raise UserError(f"{shard.path} does not hold its {summary['utterances']} records: delete it, prepare again")
    skipped = [entry for summary in summaries.values() for entry in summary["skipped"]]
    storage.write_text(output / "skipped.txt", "".join(f"{one_line(path)}\t{reason}\n" for path, reason in skipped))
    kept = sum(summary["utterances"] for summary in summaries.values())
    if not kept:
        raise UserError(f"none of the {len(skipped)} recordings could be used; reasons in {output / 'skipped.txt'}")
    metadata = {
        "format_version": records.VERSION,
        "features": dataclasses.asdict(features.DEFAULT),
        "utterances": kept,
        "skipped": len(skipped),
        "hints": dict(sum((Counter(summary.get("hints", {})) for summary in summaries.values()), Counter())),
        "hours": sum(summary["seconds"] for summary in summaries.values()) / 3600,
        "store": recipe.store,
        "augmentations": recipe.augmentations,
        "seed": recipe.seed,
        "source": str(source),
        "noise": str(noise) if noise else "coloured noise",
        "rirs": str(rirs) if rirs else "synthetic, exponentially decaying",
        "distortions": list(recipe.distortions),
        "shards": [
            {"name": shard.path.name}
            | {key: summary[key] for key in ("utterances", "bytes", "sha256") if key in summary}
            for shard, summary in summaries.items()
            if summary["utterances"]
        ],
    }
    if recipe.store == "waveform":
        from sdpn_jax.data import device  # which starts JAX

        metadata["bank"] = device.save_bank(device.make_bank(recipe.sources, recipe.seed), output)
    storage.write_text(output / METADATA, json.dumps(metadata, indent=2) + "\n")
    return metadata


def plan(utterances: list[audio.Cut], output: storage.Place) -> list[Shard]:
    """Divides the utterances over shards in turn, so that every shard is a fair sample of the corpus."""
    count = max(-(-len(utterances) // UTTERANCES_PER_SHARD), min(SMALL_CORPUS_SHARDS, len(utterances)))
    return [Shard(output / f"shard-{i:05d}-of-{count:05d}.array_record", utterances[i::count]) for i in range(count)]


def make_record(utterance_id: str, waveform: np.ndarray, recipe: Recipe) -> records.Utterance | records.Recording:
    """Makes a record of a 16 kHz waveform [N]: clean and augmented log-mel or samples, a function of id and recipe."""
    if recipe.store == "waveform":
        scaled = waveform / max(1.0, np.abs(waveform).max(initial=0))  # what is beyond full scale is not cut off
        samples = np.clip(np.round(scaled * 32768), -32768, 32767).astype(np.int16)
        return records.Recording(utterance_id, samples)
    digest = hashlib.sha256(utterance_id.encode("utf-8", "surrogateescape")).digest()
    rng = np.random.default_rng([recipe.seed, int.from_bytes(digest[:8], "little")])
    augmented = (_augmented(waveform, recipe, rng) for _ in range(recipe.augmentations))
    shape = 1 + recipe.augmentations, -1, features.DEFAULT.mel_bins
    log_mel, tail = [], []
    for version in (waveform, *augmented):
        log_mel.append(features.log_mel(version).astype(np.float16))
        tail.append(features.silence_tail(version).astype(np.float16))
    return records.Utterance(utterance_id, len(waveform), np.stack(log_mel).reshape(shape), np.stack(tail))


def _augmented(waveform: np.ndarray, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """One more version: noise and rooms, then what microphone and line do to all of it."""
    augmented, _ = augment.augment(waveform, recipe.sources, rng)
    return channels.distort(augmented, recipe.distortions, rng)[0] if recipe.distortions else augmented


def write_shard(shard: Shard, recipe: Recipe, begins: Callable[[int], None] = lambda number: None) -> dict:
    """Writes one shard and its summary, or finds it complete; returns the summary.

    `begins` is called with the number of each utterance before it is read, and with their count at the end. Raises
    UserError when the disk is full.
    """
    if summary := shard.summary(recipe):
        begins(len(shard.utterances))
        return summary
    fingerprint, digest = shard.fingerprint(recipe), hashlib.sha256()
    ids, seconds, skipped, hints = [], 0.0, [], Counter()
    with _temporary(shard.path) as temporary:
        with _disk_errors(shard.path):
            writer = ArrayRecordWriter(str(temporary), records.WRITER_OPTIONS)
        for number, cut in enumerate(shard.utterances):
            begins(number)
            try:
                waveform = audio.read_cut(cut, recipe.reading)
            except audio.AudioError as error:
                skipped.append([str(cut.path), str(error)])
                continue
            hints.update(audio.hints_of(waveform))
            record = records.encode(make_record(cut.id, waveform, recipe))
            digest.update(record)
            with _disk_errors(shard.path):
                writer.write(record)
            ids.append(cut.id)
            seconds += len(waveform) / audio.SAMPLE_RATE
        with _disk_errors(shard.path):
            writer.close()
            if _num_records(temporary) != len(ids):
                raise OSError("not all of it could be written")
            size = temporary.stat().st_size
            summary = {"fingerprint": fingerprint, "utterances": len(ids), "seconds": seconds, "bytes": size}
            summary |= {"sha256": digest.hexdigest(), "skipped": skipped, "hints": hints, "ids": ids}
            storage.replace(temporary, shard.path)
            storage.write_text(shard.summary_path, json.dumps(summary))
    begins(len(shard.utterances))
    return summary


@contextlib.contextmanager
def _temporary(path: storage.Place) -> Iterator[Path]:
    """A local name for a shard that is being written, gone at the end; what killed writers of it left goes first."""
    if not isinstance(path, Path):
        with tempfile.TemporaryDirectory(prefix="sdpn_jax-shard-") as folder:
            yield Path(folder) / path.name
        return
    storage.clear_temporaries(path)
    temporary = storage.temporary_beside(path)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _disk_errors(path: storage.Place) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:  # ArrayRecord's own errors are of the latter two kinds
        raise UserError(f"cannot write {path} ({error}): is the disk full? Run the same command again") from error


def _num_records(path: Path) -> int | None:
    """The number of a shard's records; None for a damaged one."""
    try:
        reader = ArrayRecordReader(str(path))
        try:
            return reader.num_records()
        finally:
            reader.close()
    except (OSError, RuntimeError, ValueError):
        return None


def write_shards(shards: list[Shard], recipe: Recipe, workers: int = 0) -> None:
    """Writes all shards by `workers` processes (0: one for each core), with a progress line.

    Raises UserError when a worker is killed or cannot write. Whatever ends this process ends the workers.
    """
    storage.make_folder(shards[0].path.parent)
    context = multiprocessing.get_context("spawn")
    workers = min(workers or joblib.cpu_count(), len(shards))
    counter, places = context.Value("q", 0), context.Array("q", [-1] * 2 * workers)
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, context, _start_worker, (context.Value("q", 0), counter, places, recipe))
    try:
        with tqdm(total=sum(len(shard.utterances) for shard in shards), unit="file", desc="preparing", smoothing=0.05,
                  mininterval=1) as progress:  # fmt: skip
            pending = futures = [pool.submit(_write_in_worker, *job) for job in enumerate(shards)]
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
                progress.update(counter.value - progress.n)
                for future in done:
                    future.result()
            assert all(future.done() for future in futures)
        pool.shutdown()
    except BrokenProcessPool as error:
        reading = [str(path) for path in _being_read(shards, places[:])]
        raise UserError(
            "a worker process was killed, out of memory or by a decoder, while these were read: "
            f"{', '.join(reading)}. Run the same command again, complete shards are kept; fewer --workers need less "
            "memory; should a file be there again, move it away"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:  # none but after an error or a signal
            process.kill()
            process.join()


def _being_read(shards: list[Shard], places: Sequence[int]) -> list[storage.Place]:
    """What the workers were reading: `places` holds shard and utterance of each, -1 for none."""
    pairs = zip(places[::2], places[1::2], strict=True)
    return [
        shards[shard].utterances[number].path
        for shard, number in pairs
        if shard >= 0 and number < len(shards[shard].utterances)
    ]


def _start_worker(numbers: Any, counter: Any, places: Any, recipe: Recipe) -> None:
    """In a worker: remembers what all tasks share, leaves Ctrl-C to the parent, and ends when that is gone."""
    global _place, _counter, _places, _recipe
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with numbers.get_lock():
        _place = 2 * numbers.value
        numbers.value += 1
    _counter, _places, _recipe = counter, places, recipe
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _write_in_worker(shard_number: int, shard: Shard) -> None:
    counted = 0

    def begins(number: int) -> None:
        nonlocal counted
        _places[_place], _places[_place + 1] = shard_number, number
        with _counter.get_lock():
            _counter.value += number - counted
        counted = number

    write_shard(shard, _recipe, begins)
    _places[_place] = -1


def describe(metadata: dict, output: str | os.PathLike) -> str:
    """Describes what was made in a few lines."""
    versions = f"each clean and {metadata['augmentations']} times augmented"
    if metadata["store"] == "waveform":
        versions = "as waveforms, with a bank of noise and rooms (bank.npz) to augment them on the accelerator"
    hints = "; ".join(f"{hint}: {count} of them" for hint, count in metadata.get("hints", {}).items())
    return (
        f"{metadata['utterances']} utterances, {metadata['hours']:.2f} hours, {versions}\n"
        f"noise: {metadata['noise']}; room impulse responses: {metadata['rirs']}; "
        f"distortions: {', '.join(metadata['distortions']) or 'none'}\n"
        + (f"{hints}; such recordings make worse embeddings\n" if hints else "")
        + f"{metadata['skipped']} files skipped, listed in {storage.place(output) / 'skipped.txt'}\n"
        f"written: {len(metadata['shards'])} shards and metadata.json in {output}"
    )


def task_from_environment(environment: Mapping[str, str], count: int | None = None) -> tuple[int, int]:
    """Reads (index, count) of a SLURM array task or Kubernetes indexed job (count in TASK_COUNT); otherwise (0, 1).

    count: how many tasks share the work, where the user says so; the task's own number is its index then. Raises
    UserError for a SLURM array with gaps, whose numbers are no shares.
    """
    if "SLURM_ARRAY_TASK_ID" in environment:
        number = int(environment["SLURM_ARRAY_TASK_ID"])
        if count is not None:
            return number, count
        tasks = int(environment["SLURM_ARRAY_TASK_COUNT"])
        first, step = (
            int(environment.get(f"SLURM_ARRAY_TASK_{name}", default)) for name, default in (("MIN", 0), ("STEP", 1))
        )
        last = int(environment.get("SLURM_ARRAY_TASK_MAX", first + (tasks - 1) * step))
        if first + (tasks - 1) * step != last or (number - first) % step:
            raise UserError(
                f"the {tasks} tasks of this SLURM array, from {first} to {last}, are not evenly spaced: to repeat some "
                "tasks of an array, give the same --task_count as its number of tasks then; the ids are the shares"
            )
        return (number - first) // step, tasks
    index = int(environment.get("JOB_COMPLETION_INDEX", 0))
    if count is not None:
        return index, count
    if "JOB_COMPLETION_INDEX" in environment and "TASK_COUNT" in environment:
        return index, int(environment["TASK_COUNT"])
    return 0, 1
