"""Preparation, storage and pipeline: throughput per core, each beside the plain way of doing the same.

    python benchmarks/data.py --audio=librispeech/train --shards=data/librispeech [--noise=DIR --rirs=DIR]

Prints tables and writes <output>. All in one process on one core (pin it: taskset -c 0), repeated and interleaved;
figures are medians.
"""

import dataclasses
import itertools
import json
import tempfile
from pathlib import Path

import librosa
import measure
import numpy as np
from absl import app, flags
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from sdpn_jax.data import audio, augment, features, pipeline, prepare, recordings, records
from sdpn_jax.data.shards import open_shards, read_metadata, read_shard

OPTIONS = ("group_size:1,uncompressed", "group_size:1,zstd:1", "group_size:1,zstd:5", "group_size:8,uncompressed",
           "group_size:64,zstd:1")  # fmt: skip
VOXCELEB2_SECONDS = 7.8  # mean length of its utterances (Chung et al., Interspeech 2018, table 1)
REPEATS = 40


def plain_log_mel(path: Path) -> np.ndarray:
    """What a user would write: librosa.load and librosa.feature.melspectrogram."""
    waveform, _ = librosa.load(path, sr=16000, mono=True)
    mel = librosa.feature.melspectrogram(
        y=waveform, sr=16000, n_fft=512, win_length=400, hop_length=160, n_mels=80, htk=True, norm=None,
        pad_mode="reflect",
    )  # fmt: skip
    return np.log(mel.T + 1e-6)


def preparation(utterances: list[tuple[str, Path]], repeats: int) -> dict:
    """Hours of audio in an hour of one core: the plain way, ours, and each of our stages alone."""
    waveforms = [audio.read_audio(path) for _, path in utterances]
    hours = sum(map(len, waveforms)) / audio.SAMPLE_RATE / 3600
    recipes = {count: prepare.make_recipe(FLAGS.noise, FLAGS.rirs, augmentations=count, seed=0) for count in (0, 4)}
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(plain_log_mel(utterances[0][1]), features.log_mel(waveforms[0]), atol=2e-3)

    def ours(count):
        def work():
            for name, path in utterances:
                records.encode(prepare.make_record(name, audio.read_audio(path), recipes[count]))

        return work

    works = {
        "plain: librosa.load + melspectrogram": lambda: [plain_log_mel(path) for _, path in utterances],
        "ours, 0 augmentations": ours(0),
        "ours, 4 augmentations": ours(4),
        "stage: decode": lambda: [audio.read_audio(path) for _, path in utterances],
        "stage: log-mel": lambda: [features.log_mel(x) for x in waveforms],
        "stage: one augmentation": lambda: [augment.augment(x, recipes[4].sources, rng) for x in waveforms],
    }
    return {name: hours / (seconds / 3600) for name, seconds in measure.interleaved(works, repeats).items()}


def storage(shards: Path, reads: int) -> dict:
    """Bytes per hour of audio and random reads per second of each way to write the same records."""
    raw = [record for path in open_shards(shards).paths for record in read_shard(path)]
    hours = sum(records.decode(record).num_samples for record in raw) / audio.SAMPLE_RATE / 3600
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        readers = {}
        for number, options in enumerate(OPTIONS):
            path = Path(folder) / f"{number}.array_record"
            writer = ArrayRecordWriter(str(path), options)
            for record in raw:
                writer.write(record)
            writer.close()
            readers[options] = ArrayRecordReader(str(path))
            results[options] = {"GB_per_hour": path.stat().st_size / 1e9 / hours}
        order = np.random.default_rng(0).integers(len(raw), size=reads)
        works = {name: lambda reader=reader: [reader.read([int(i)]) for i in order] for name, reader in readers.items()}
        for name, seconds in measure.interleaved(works, 5).items():
            results[name]["reads_per_s"] = reads / seconds
    return results


def loading(shards: Path, batches: int) -> dict:
    """Utterances (1 global, 4 local views) per second of one core, beside reading the same records alone."""
    readers = [ArrayRecordReader(str(path)) for path in open_shards(shards).paths]
    sizes = [reader.num_records() for reader in readers]
    count = 32 * batches

    def read_alone():
        rng = np.random.default_rng(0)
        for _ in range(count):
            shard = rng.integers(len(readers))
            readers[shard].read([int(rng.integers(sizes[shard]))])

    dataset = pipeline.dataset(open_shards(shards), 32, 0, pipeline.Views())  # read in this thread alone
    steps = itertools.count()
    works = {
        "reading the records alone": read_alone,
        "pipeline: 1 + 4 views, masked, batched": lambda: [dataset[next(steps)] for _ in range(batches)],
    }
    return {name: count / seconds for name, seconds in measure.interleaved(works, 5).items()}


def shorten(shards: Path, folder: Path, seconds: float) -> None:
    """Writes the shards again with every utterance cut to `seconds` at most, and lists each of them REPEATS times.

    Grain's shuffle walks long over a few hundred records (300 us each; 6 us among 100,000).
    """
    frames, metadata = int(100 * seconds), read_metadata(shards)
    for shard in metadata["shards"]:
        writer = ArrayRecordWriter(str(folder / shard["name"]), records.WRITER_OPTIONS)
        for record in read_shard(shards / shard["name"]):
            utterance = records.decode(record)
            samples = min(utterance.num_samples, frames * features.DEFAULT.hop)
            log_mel = utterance.log_mel[:, : 1 + frames]
            writer.write(records.encode(dataclasses.replace(utterance, num_samples=samples, log_mel=log_mel)))
        writer.close()
        shard["bytes"] = (folder / shard["name"]).stat().st_size
    metadata["shards"] *= REPEATS
    metadata["utterances"] *= REPEATS
    (folder / "metadata.json").write_text(json.dumps(metadata))


def main(_) -> None:
    utterances = [(cut.id, cut.path) for cut in recordings.find_utterances(FLAGS.audio)][: FLAGS.files]
    results = {"hours of audio per core-hour": preparation(utterances, FLAGS.repeats)}
    results["storage"] = storage(Path(FLAGS.shards), 500)
    results["utterances per second and core"] = loading(Path(FLAGS.shards), 20)
    with tempfile.TemporaryDirectory() as folder:
        shorten(Path(FLAGS.shards), Path(folder), VOXCELEB2_SECONDS)
        results[f"the same of utterances of {VOXCELEB2_SECONDS} s"] = loading(Path(folder), 20)
    for title, rows in results.items():
        measure.show(title, rows)
    measure.write(FLAGS.output, results)


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("audio", None, "Folder of audio.", required=True)
    flags.DEFINE_string("shards", None, "Folder of shards.", required=True)
    flags.DEFINE_string("noise", None, "Folder of noise.")
    flags.DEFINE_string("rirs", None, "Folder of room impulse responses.")
    flags.DEFINE_integer("files", 60, "Of the audio folder.")
    flags.DEFINE_integer("repeats", 5, "Of each way.")
    flags.DEFINE_string("output", "data_benchmark.json", "Where the figures go.")
    app.run(main)
