"""Embeddings of whole utterances, from a training run's teacher, as NumPy files.

    python -m sdpn_jax.speaker.corpus --workdir=runs/librispeech --input=recordings --output=embeddings.npz

The list is worked on in parts, each kept in <output>.parts/ when it is done: run again after a kill, complete parts are
not computed again. On several machines give each its --task_index and --task_count; when all are done, the same
command without them joins their parts. All devices of a machine are used.
"""

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import joblib
import numpy as np
from absl import flags, logging
from tqdm import tqdm

from sdpn_jax import errors, storage
from sdpn_jax.data import audio, features, records
from sdpn_jax.errors import UserError
from sdpn_jax.models.network import Network, initial_variables, network_of
from sdpn_jax.speaker import embedder
from sdpn_jax.training import checkpoint

UTTERANCES_PER_PART = 512
FRAMES_IN_MEMORY = 2**20  # of log-mels waiting to be embedded: 320 MiB
FRAMES_PER_SECOND = features.DEFAULT.sample_rate / features.DEFAULT.hop


@dataclass(frozen=True)
class Part:
    """One stretch of the list of utterances: recordings as (id, path), or one shard."""

    utterances: tuple[tuple[str, Path], ...] = ()
    shard: Path | None = None
    count: int = 0

    def stamps(self) -> list:
        """Changes whenever the files of the part do."""
        if self.shard:
            return [[str(self.shard), storage.stamp(self.shard)]]
        return [[name, str(path), storage.stamp(path)] for name, path in self.utterances]


def plan(source: str | Path) -> list[Part]:
    """The parts of an audio folder, path list, wav.scp, or folder of shards."""
    if (Path(source) / "metadata.json").exists():
        shards = records.read_metadata(source)["shards"]
        paths = records.shard_paths(source)
        return [Part(shard=Path(path), count=shard["utterances"]) for path, shard in zip(paths, shards, strict=True)]
    utterances, size = audio.find_utterances(source), UTTERANCES_PER_PART
    chunks = [tuple(utterances[start : start + size]) for start in range(0, len(utterances), size)]
    return [Part(utterances=chunk, count=len(chunk)) for chunk in chunks]


def read_part(part: Part, skipped: list) -> Iterator[tuple[str, np.ndarray]]:
    """(utterance id, log-mel [T, F]) of every utterance of a part, the clean version of shards.

    Files that cannot be used are appended to `skipped` as (path, reason).
    """
    if part.shard:
        for record in records.read_shard(part.shard):
            utterance = records.decode(record)
            yield utterance.id, utterance.log_mel[0].astype(np.float32)
        return
    paths = [path for _, path in part.utterances]
    for (utterance_id, path), result in zip(part.utterances, _ahead(_log_mel_or_reason, paths), strict=True):
        if isinstance(result, audio.AudioError):
            skipped.append((str(path), str(result)))
        else:
            yield utterance_id, result


def read_features(source: str | Path, skipped: list) -> Iterator[tuple[str, np.ndarray]]:
    """`read_part` of all parts of the source."""
    for part in plan(source):
        yield from read_part(part, skipped)


def _log_mel_or_reason(path: Path) -> np.ndarray | audio.AudioError:
    try:
        return features.log_mel(audio.read_audio(path))
    except audio.AudioError as error:
        return error


def _ahead(work: Callable, items: Iterable) -> Iterator:
    """work(item) of every item in order; a thread for each core works on the next ones meanwhile."""
    workers = joblib.cpu_count()
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def log_mel_statistics(log_mel: np.ndarray) -> np.ndarray:
    """The baseline that needs no network: mean and standard deviation over time of each mel bin, [2 F]."""
    return np.concatenate([log_mel.mean(0), log_mel.std(0)])


def load_encoder(workdir: str | Path, step: int | None = None, which: str = "teacher") -> tuple[Network, dict, int]:
    """The network, variables and step of a training run: its "teacher", "student" or, before any step, "untrained".

    Raises UserError when there is no run or no checkpoint.
    """
    config = checkpoint.read_config(workdir)
    if config is None:
        raise UserError(f"no training run in {workdir} (config.json is missing): give --workdir of sdpn_jax.main")
    network, seed = network_of(config["model"]), config.get("seed", 0)  # converted weights have none
    if which == "untrained":
        return network, initial_variables(network, seed), 0
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])  # wherever they were when they were saved
    template = jax.eval_shape(lambda: initial_variables(network, seed))
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), template)
    with checkpoint.manager(workdir) as checkpoints:
        parts, step = checkpoint.restore(checkpoints, {which: template}, step)
    return network, parts[which], step


def embedding_function(
    workdir: str | Path, which: str = "teacher", step: int | None = None
) -> tuple[Callable[[list[np.ndarray]], np.ndarray], str]:
    """(log-mels [T, F] -> embeddings float32 [N, D], a digest of what it computes with).

    `which` is what load_encoder takes, or "statistics" for log_mel_statistics, which needs no run.
    """
    if which == "statistics":
        return lambda log_mels: np.stack([log_mel_statistics(x) for x in log_mels]), which
    network, variables, step = load_encoder(workdir, step, which)
    logging.info("%s of %s, step %d", which, workdir, step)
    return partial(embedder.Embedder(network), variables), embedder.fingerprint(network, variables)


def embed_part(embed: Callable, part: Part, progress: tqdm) -> dict[str, np.ndarray]:
    """{"ids", "embeddings", "seconds", "skipped"} of one part, with bounded memory."""
    ids, embeddings, seconds, skipped, waiting = [], [], [], [], []

    def flush():
        if waiting:
            embeddings.append(embed(waiting))
            waiting.clear()

    for utterance_id, log_mel in read_part(part, skipped):
        if sum(map(len, waiting)) + len(log_mel) > FRAMES_IN_MEMORY:
            flush()
        waiting.append(log_mel)
        ids.append(utterance_id)
        seconds.append((len(log_mel) - 1) / FRAMES_PER_SECOND)
        progress.update()
    flush()
    progress.update(len(skipped))
    return {
        "ids": np.asarray(ids, np.str_),
        "embeddings": np.concatenate(embeddings) if embeddings else np.zeros((0, 0), np.float32),
        "seconds": np.asarray(seconds, np.float32),
        "skipped": np.asarray(skipped, np.str_).reshape(-1, 2),
    }


def export(
    source: str | Path,
    output: str | Path,
    workdir: str | Path,
    which: str = "teacher",
    step: int | None = None,
    crops: int = 0,
    crop_seconds: float = 4.0,
    task_index: int = 0,
    task_count: int = 1,
) -> int | None:
    """Writes embeddings of every utterance of `source` and returns their number.

    `output` ending in .npz: arrays `ids`, `embeddings` float32 [N, D] and `seconds` float32 [N]; otherwise a folder
    with embeddings.npy, ids.txt and seconds.npy. `which` is as in `embedding_function`. `crops`: 0 embeds whole
    utterances, otherwise the mean of so many crops' embeddings. Utterances that cannot be read are listed in
    <output>.skipped.txt. Of several tasks each only leaves its parts behind and returns None. Raises UserError when no
    utterance is left.
    """
    embed, digest = embedding_function(workdir, which, step)
    if crops:
        frames = round(crop_seconds * FRAMES_PER_SECOND)
        embed = partial(embedder.embed_crops, embed, count=crops, frames=frames)
    parts = plan(source)
    about = [digest, crops, crop_seconds, [part.stamps() for part in parts]]
    name = hashlib.sha256(json.dumps(about).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    folder = parts_folder(output) / name
    folder.mkdir(parents=True, exist_ok=True)

    paths = [folder / f"part-{number:05d}.npz" for number in range(len(parts))]
    ours = list(zip(parts, paths, strict=True))[task_index::task_count]
    total = sum(part.count for part, _ in ours)
    with tqdm(total=total, unit="utterance", desc="embedding", smoothing=0.05, mininterval=1) as progress:
        for part, path in ours:
            if path.exists():
                progress.update(part.count)
            else:
                storage.write_npz(path, **embed_part(embed, part, progress))
    if task_count > 1:
        return None
    return join(paths, output)


def parts_folder(output: str | Path) -> Path:
    """Where the parts of an export wait to be joined."""
    return Path(f"{output}.parts")


def join(paths: list[Path], output: str | Path) -> int:
    """Writes the parts' embeddings as one, and the list of skipped files; removes the parts; returns the number."""
    parts = []
    for path in paths:
        with np.load(path) as part:
            parts.append(dict(part))
    skipped = np.concatenate([part["skipped"] for part in parts])
    _write_skipped(output, skipped)
    kept = [part for part in parts if len(part["ids"])]
    if not kept:
        raise UserError(f"no utterance could be read; reasons in {skipped_path(output)}")
    ids, embeddings, seconds = (
        np.concatenate([part[key] for part in kept]) for key in ("ids", "embeddings", "seconds")
    )
    write_embeddings(output, ids.tolist(), embeddings, seconds)
    shutil.rmtree(parts_folder(output))
    return len(ids)


def write_embeddings(output: str | Path, ids: list[str], embeddings: np.ndarray, seconds: np.ndarray) -> None:
    """One .npz when `output` ends in .npz, otherwise a folder with embeddings.npy, ids.txt and seconds.npy."""
    output = Path(output)
    embeddings = embeddings.astype(np.float32)
    if output.suffix == ".npz":
        output.parent.mkdir(parents=True, exist_ok=True)
        storage.write_npz(output, ids=np.asarray(ids), embeddings=embeddings, seconds=seconds)
        return
    output.mkdir(parents=True, exist_ok=True)
    np.save(output / "embeddings.npy", embeddings)
    np.save(output / "seconds.npy", seconds)
    (output / "ids.txt").write_text("".join(f"{utterance_id}\n" for utterance_id in ids))


def skipped_path(output: str | Path) -> Path:
    """Where the list of unusable files of an export goes."""
    return Path(output).with_suffix(".skipped.txt")


def _write_skipped(output: str | Path, skipped: np.ndarray) -> None:
    path = skipped_path(output)
    path.unlink(missing_ok=True)
    if len(skipped):
        path.write_text("".join(f"{str(name)!r}\t{reason}\n" for name, reason in skipped))
        logging.warning("%d files skipped, listed in %s", len(skipped), path)


def main(_) -> None:
    output, index, count = FLAGS.output, FLAGS.task_index, FLAGS.task_count
    if not 0 <= index < count:
        raise UserError(f"--task_index={index} must be from 0 to --task_count - 1 = {count - 1}")
    if FLAGS.format == "npy" and output.endswith(".npz"):
        output = output.removesuffix(".npz")
    elif FLAGS.format == "npz" and not output.endswith(".npz"):
        output += ".npz"
    done = export(
        FLAGS.input, output, FLAGS.workdir, FLAGS.encoder, FLAGS.step, FLAGS.crops, FLAGS.crop_seconds, index, count
    )
    if done is None:
        print(f"task {index} of {count}: its parts are complete in {parts_folder(output)}; when all are done, run "
              "the same command without --task_index and --task_count")  # fmt: skip
    else:
        print(f"{done} embeddings written to {output}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("workdir", None, "Training run: the folder with config.json and checkpoints/.", required=True)
    flags.DEFINE_string("input", None, "Audio folder, text file of paths, wav.scp, or prepared shards.", required=True)
    flags.DEFINE_string("output", None, "File to write (.npz), or with --format=npy a folder.", required=True)
    flags.DEFINE_enum(
        "format", "npz", ["npz", "npy"], "npz: all in one file; npy: embeddings.npy, ids.txt, seconds.npy."
    )
    flags.DEFINE_integer("step", None, "Checkpoint to take; default the newest.")
    flags.DEFINE_enum(
        "encoder",
        "teacher",
        ["teacher", "student", "untrained", "statistics"],
        "What embeds: the run's teacher or student; for comparison the untrained network, or mean and standard "
        "deviation of log-mel over time.",
    )
    flags.DEFINE_integer("crops", 0, "0: whole utterances; otherwise the mean embedding of so many crops.", 0)
    flags.DEFINE_float("crop_seconds", 4.0, "Length of a crop; a shorter utterance is taken whole.", 0.2)
    flags.DEFINE_integer("task_index", 0, "This machine's number, from 0.")
    flags.DEFINE_integer("task_count", 1, "Machines that share the list.")
    errors.run(main)
