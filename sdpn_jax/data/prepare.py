"""Audio -> shards of float16 log-mel, clean and augmented, ready for training.

    python -m sdpn_jax.data.prepare --input=recordings --output=shards --noise=musan --rirs=RIRS_NOISES

A shard is written by one process, under another name until it is complete; run again after a kill, complete shards are
kept. What is written depends on the input and the seed alone, not on the number of workers.
"""

import dataclasses
import hashlib
import json
import multiprocessing
import os
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import flags
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from sdpn_jax import errors
from sdpn_jax.data import audio, augment, features, records
from sdpn_jax.errors import UserError

UTTERANCES_PER_SHARD = 1024  # at most
SMALL_CORPUS_SHARDS = 16  # so that a small corpus, too, occupies several workers


@dataclass(frozen=True)
class Shard:
    """One unit of work: where it goes, what goes in, and how."""

    path: Path
    utterances: list[tuple[str, Path]]
    sources: augment.Sources
    augmentations: int
    seed: int

    def fingerprint(self) -> str:
        """Changes whenever the shard's content would: its files (names, sizes, dates), sources and settings."""
        stamps = [[name, str(path), _stamp(path)] for name, path in self.utterances]
        settings = [records.VERSION, dataclasses.asdict(features.DEFAULT), self.augmentations, self.seed]
        text = json.dumps([stamps, settings, dataclasses.asdict(self.sources)], default=str)
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def summary_path(self) -> Path:
        return self.path.with_suffix(".json")


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def prepare(
    source: str | Path,
    output: str | Path,
    noise: str | Path | None = None,
    rirs: str | Path | None = None,
    augmentations: int = 4,
    seed: int = 0,
    workers: int = 0,
) -> dict:
    """Writes shards, metadata.json and skipped.txt to `output` and returns the metadata.

    `source` is what audio.find_utterances takes; `workers` 0 means one for each core. Files that cannot be used are
    skipped, counted and listed in skipped.txt. Raises UserError when nothing usable is left.
    """
    output = Path(output)
    if augmentations < 0:
        raise UserError(f"--augmentations={augmentations}: the number of augmented versions cannot be negative")
    utterances = audio.find_utterances(source)
    sources = augment.find_sources(noise, rirs)
    shards = plan(utterances, output, sources, augmentations, seed)
    output.mkdir(parents=True, exist_ok=True)
    (output / "metadata.json").unlink(missing_ok=True)  # incomplete until the end
    summaries = _write_all(shards, workers or os.cpu_count() or 1, len(utterances))
    skipped = [entry for summary in summaries for entry in summary["skipped"]]
    _write_text(output / "skipped.txt", "".join(f"{_one_line(path)}\t{reason}\n" for path, reason in skipped))
    kept = sum(summary["utterances"] for summary in summaries)
    if not kept:
        raise UserError(f"none of the {len(utterances)} recordings could be used; reasons in {output / 'skipped.txt'}")
    metadata = {
        "format_version": records.VERSION,
        "features": dataclasses.asdict(features.DEFAULT),
        "utterances": kept,
        "skipped": len(skipped),
        "hours": sum(summary["seconds"] for summary in summaries) / 3600,
        "augmentations": augmentations,
        "seed": seed,
        "source": str(source),
        "noise": str(noise) if noise else "coloured noise",
        "rirs": str(rirs) if rirs else "synthetic, exponentially decaying",
        "shards": [shard.path.name for shard, summary in zip(shards, summaries, strict=True) if summary["utterances"]],
    }
    _write_text(output / "metadata.json", json.dumps(metadata, indent=2) + "\n")
    return metadata


def plan(
    utterances: list[tuple[str, Path]], output: Path, sources: augment.Sources, augmentations: int, seed: int
) -> list[Shard]:
    """Divides the utterances over shards in turn, so that every shard is a fair sample of the corpus."""
    count = max(-(-len(utterances) // UTTERANCES_PER_SHARD), min(SMALL_CORPUS_SHARDS, len(utterances)))
    return [
        Shard(
            path=output / f"shard-{i:05d}-of-{count:05d}.array_record",
            utterances=utterances[i::count],
            sources=sources,
            augmentations=augmentations,
            seed=seed,
        )
        for i in range(count)
    ]


def make_record(utterance_id: str, waveform: np.ndarray, sources: augment.Sources, augmentations: int, seed: int):
    """The Utterance of a 16 kHz waveform [N]: clean and augmented log-mel, a function of id, waveform and seed."""
    digest = hashlib.sha256(utterance_id.encode("utf-8", "surrogateescape")).digest()
    rng = np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])
    versions = [waveform] + [augment.augment(waveform, sources, rng)[0] for _ in range(augmentations)]
    return records.Utterance(
        id=utterance_id,
        num_samples=len(waveform),
        log_mel=np.stack([features.log_mel(version).astype(np.float16) for version in versions]),
        tail=np.stack([features.silence_tail(version).astype(np.float16) for version in versions]),
    )


def write_shard(shard: Shard, done=lambda: None) -> dict:
    """Writes one shard and its summary, or finds it complete; returns the summary. `done` is called per utterance."""
    fingerprint = shard.fingerprint()
    if shard.path.exists() and shard.summary_path.exists():
        summary = json.loads(shard.summary_path.read_text())
        if summary["fingerprint"] == fingerprint:
            for _ in shard.utterances:
                done()
            return summary
    temporary = shard.path.with_suffix(".tmp")
    writer = ArrayRecordWriter(str(temporary), records.WRITER_OPTIONS)
    kept, seconds, skipped = 0, 0.0, []
    for utterance_id, path in shard.utterances:
        try:
            waveform = audio.read_audio(path)
        except audio.AudioError as error:
            skipped.append([str(path), str(error)])
        else:
            writer.write(
                records.encode(make_record(utterance_id, waveform, shard.sources, shard.augmentations, shard.seed))
            )
            kept += 1
            seconds += len(waveform) / audio.SAMPLE_RATE
        done()
    writer.close()
    temporary.replace(shard.path)
    summary = {"fingerprint": fingerprint, "utterances": kept, "seconds": seconds, "skipped": skipped}
    _write_text(shard.summary_path, json.dumps(summary))
    return summary


def _write_all(shards: list[Shard], workers: int, num_utterances: int) -> list[dict]:
    """The summaries of all shards, in order, written by `workers` processes, with a progress line."""
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    with (
        ProcessPoolExecutor(min(workers, len(shards)), context, _start_worker, (counter,)) as pool,
        tqdm(total=num_utterances, unit="file", desc="preparing", smoothing=0.05, mininterval=1) as progress,
    ):
        futures = [pool.submit(_write_in_worker, shard) for shard in shards]
        pending = futures
        while pending:
            pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION).not_done
            progress.update(counter.value - progress.n)
            if any(future.done() and future.exception() for future in futures):
                pool.shutdown(wait=False, cancel_futures=True)
                break
        try:
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed (out of memory?): run the same command again, complete shards are kept; "
                "fewer --workers need less memory"
            ) from error


def _start_worker(counter) -> None:
    global _counter
    _counter = counter


def _write_in_worker(shard: Shard) -> dict:
    def done():
        with _counter.get_lock():
            _counter.value += 1

    return write_shard(shard, done)


def _one_line(path: str) -> str:
    return path.encode("unicode_escape").decode() if not path.isprintable() else path


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def describe(metadata: dict, output: str | Path) -> str:
    """What was made, in a few lines for people."""
    return (
        f"{metadata['utterances']} utterances, {metadata['hours']:.2f} hours, each clean and "
        f"{metadata['augmentations']} times augmented\n"
        f"noise: {metadata['noise']}; room impulse responses: {metadata['rirs']}\n"
        f"{metadata['skipped']} files skipped, listed in {Path(output) / 'skipped.txt'}\n"
        f"written: {len(metadata['shards'])} shards and metadata.json in {output}"
    )


def main(_) -> None:
    metadata = prepare(
        FLAGS.input, FLAGS.output, FLAGS.noise, FLAGS.rirs, FLAGS.augmentations, FLAGS.seed, FLAGS.workers
    )
    print(describe(metadata, FLAGS.output))


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("input", None, "Folder of audio, text file of paths, or Kaldi wav.scp.", required=True)
    flags.DEFINE_string("output", None, "Folder for the shards.", required=True)
    flags.DEFINE_string("noise", None, "Folder of noise (MUSAN, or any); without it coloured noise is made up.")
    flags.DEFINE_string("rirs", None, "Folder of room impulse responses; without it they are synthetic.")
    flags.DEFINE_integer("augmentations", 4, "Augmented versions of every utterance beside the clean one.")
    flags.DEFINE_integer("seed", 0, "Seed of the augmentation.")
    flags.DEFINE_integer("workers", 0, "Processes; 0 is one for each core.", lower_bound=0)
    errors.run(main)
