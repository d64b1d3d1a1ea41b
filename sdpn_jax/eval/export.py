"""Embeddings of whole utterances, from a training run's teacher, as NumPy files.

python -m sdpn_jax.eval.export --workdir=runs/librispeech --input=recordings --output=embeddings.npz
"""

import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from absl import flags, logging

from sdpn_jax import checkpoint, errors
from sdpn_jax.data import audio, features, records
from sdpn_jax.errors import UserError
from sdpn_jax.models.network import Network, initial_variables, network_of

BUCKET = 256  # frames (2.56 s): lengths are padded to multiples of it, so that few shapes are compiled
FRAMES_AT_ONCE = 16384  # frames of a padded batch


def read_features(source: str | Path, skipped: list) -> Iterator[tuple[str, np.ndarray]]:
    """(utterance id, log-mel [T, F]) of every utterance of an audio folder, path list, wav.scp or folder of shards.

    Files that cannot be used are appended to `skipped` as (path, reason).
    """
    if (Path(source) / "metadata.json").exists():
        yield from _read_shards(source)
        return
    for utterance_id, path in audio.find_utterances(source):
        try:
            yield utterance_id, features.log_mel(audio.read_audio(path))
        except audio.AudioError as error:
            skipped.append((str(path), str(error)))


def _read_shards(directory: str | Path) -> Iterator[tuple[str, np.ndarray]]:
    for path in records.shard_paths(directory):
        for record in records.read_shard(path):
            utterance = records.decode(record)
            yield utterance.id, utterance.log_mel[0].astype(np.float32)


def log_mel_statistics(log_mel: np.ndarray) -> np.ndarray:
    """The baseline that needs no network: mean and standard deviation over time of each mel bin, [2 F]."""
    return np.concatenate([log_mel.mean(0), log_mel.std(0)])


class Embedder:
    """Embeds utterances of different lengths in padded batches; padding does not change the result."""

    def __init__(self, network: Network):
        self._size = network.embedding_size
        self._embed = jax.jit(lambda variables, x, lengths: network.apply(variables, x, lengths, method=network.embed))

    def __call__(self, variables: dict, log_mels: list[np.ndarray]) -> np.ndarray:
        """Embeddings float32 [N, D] of N log-mels [T, F], with the running statistics of `variables`."""
        embeddings = np.zeros((len(log_mels), self._size), np.float32)
        for rows, padded_frames in batches_of_similar_length([len(x) for x in log_mels]):
            # A fixed number of rows for each padded length: one compilation for each length.
            batch = np.zeros((rows_at_once(padded_frames), padded_frames, log_mels[0].shape[1]), np.float32)
            lengths = np.full(len(batch), padded_frames, np.int32)
            for place, row in enumerate(rows):
                batch[place, : len(log_mels[row])] = log_mels[row]
                lengths[place] = len(log_mels[row])
            result = self._embed(variables, jax.device_put(batch), jax.device_put(lengths))
            embeddings[rows] = jax.device_get(result)[: len(rows)]
        return embeddings


def rows_at_once(padded_frames: int) -> int:
    """How many utterances of this padded length make a batch."""
    return max(1, FRAMES_AT_ONCE // padded_frames)


def batches_of_similar_length(lengths: list[int]) -> Iterator[tuple[list[int], int]]:
    """Batches of (positions in `lengths`, padded length in frames), every position exactly once."""
    buckets: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        buckets.setdefault(-(-length // BUCKET) * BUCKET, []).append(row)
    for padded_frames, rows in sorted(buckets.items()):
        size = rows_at_once(padded_frames)
        for start in range(0, len(rows), size):
            yield rows[start : start + size], padded_frames


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


def export(
    source: str | Path, output: str | Path, workdir: str | Path, which: str = "teacher", step: int | None = None
) -> int:
    """Writes embeddings of every utterance of `source` and returns their number.

    `output` ending in .npz: arrays `ids` and `embeddings` float32 [N, D]; otherwise a folder with embeddings.npy and
    ids.txt. `which` is what load_encoder takes, or "statistics" for log_mel_statistics. Utterances that cannot be read
    are listed in <output>.skipped.txt. Raises UserError when none is left.
    """
    if which == "statistics":
        embed = lambda log_mels: np.stack([log_mel_statistics(x) for x in log_mels])  # noqa: E731
    else:
        network, variables, step = load_encoder(workdir, step, which)
        logging.info("%s of %s, step %d", which, workdir, step)
        embedder = Embedder(network)
        embed = lambda log_mels: embedder(variables, log_mels)  # noqa: E731

    ids, embeddings, skipped = [], [], []
    started, hours = time.time(), 0.0
    for chunk in _chunks(read_features(source, skipped), 512):
        ids += [utterance_id for utterance_id, _ in chunk]
        embeddings.append(embed([x for _, x in chunk]))
        hours += sum(len(x) for _, x in chunk) * features.DEFAULT.hop / features.DEFAULT.sample_rate / 3600
        rate = hours * 3600 / (time.time() - started)
        logging.info("%d utterances, %.2f hours, %.0f s of audio per second", len(ids), hours, rate)
    _write_skipped(output, skipped)
    if not ids:
        raise UserError(f"no utterance of {source} could be read; reasons in {skipped_path(output)}")
    write_embeddings(output, ids, np.concatenate(embeddings))
    return len(ids)


def write_embeddings(output: str | Path, ids: list[str], embeddings: np.ndarray) -> None:
    """One .npz when `output` ends in .npz, otherwise a folder with embeddings.npy and ids.txt."""
    output = Path(output)
    embeddings = embeddings.astype(np.float32)
    if output.suffix == ".npz":
        output.parent.mkdir(parents=True, exist_ok=True)
        np.savez(output, ids=np.asarray(ids), embeddings=embeddings)
        return
    output.mkdir(parents=True, exist_ok=True)
    np.save(output / "embeddings.npy", embeddings)
    (output / "ids.txt").write_text("".join(f"{utterance_id}\n" for utterance_id in ids))


def skipped_path(output: str | Path) -> Path:
    """Where the list of unusable files of an export goes."""
    return Path(output).with_suffix(".skipped.txt")


def _write_skipped(output: str | Path, skipped: list) -> None:
    path = skipped_path(output)
    path.unlink(missing_ok=True)
    if skipped:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name!r}\t{reason}\n" for name, reason in skipped))
        logging.warning("%d files skipped, listed in %s", len(skipped), path)


def _chunks(items: Iterator, size: int) -> Iterator[list]:
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def main(_) -> None:
    output = FLAGS.output
    if FLAGS.format == "npy" and output.endswith(".npz"):
        output = output.removesuffix(".npz")
    elif FLAGS.format == "npz" and not output.endswith(".npz"):
        output += ".npz"
    count = export(FLAGS.input, output, FLAGS.workdir, FLAGS.encoder, FLAGS.step)
    print(f"{count} embeddings written to {output}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("workdir", None, "Training run: the folder with config.json and checkpoints/.", required=True)
    flags.DEFINE_string("input", None, "Audio folder, text file of paths, wav.scp, or prepared shards.", required=True)
    flags.DEFINE_string("output", None, "File to write (.npz), or with --format=npy a folder.", required=True)
    flags.DEFINE_enum("format", "npz", ["npz", "npy"], "npz: ids and embeddings; npy: embeddings.npy and ids.txt.")
    flags.DEFINE_integer("step", None, "Checkpoint to take; default the newest.")
    flags.DEFINE_enum(
        "encoder",
        "teacher",
        ["teacher", "student", "untrained", "statistics"],
        "What embeds: the run's teacher or student; for comparison the untrained network, or mean and standard "
        "deviation of log-mel over time.",
    )
    errors.run(main)
