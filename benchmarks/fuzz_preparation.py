"""Prepares thousands of damaged audio files: none may stop it, each must be in a shard or in skipped.txt.

    python benchmarks/fuzz_preparation.py --files=20000

Small recordings in every format (8 to 96 kHz, 1 to 6 channels) are cut, mixed up, overwritten and lengthened at random,
a function of the seed; then preparation runs on all of them, and what it kept and skipped is counted.
"""

import collections
import tempfile
from pathlib import Path

import av
import numpy as np
import soundfile
from absl import app, flags

from sdpn_jax.data import prepare, records
from sdpn_jax.data.shards import open_shards, read_shard

RATES = (8000, 11025, 16000, 22050, 44100, 48000, 96000)
FORMATS = ("wav", "flac", "ogg", "mp3", "m4a")


def write_recording(path: Path, rate: int, channels: int, rng: np.random.Generator) -> None:
    """0.2 s of noise in the format of the path's ending; MP3 holds 1 or 2 channels of at most 48 kHz."""
    if path.suffix == ".mp3":
        rate, channels = min(rate, 48000), min(channels, 2)
    samples = rng.normal(0, 0.1, (int(0.2 * rate), channels)).astype(np.float32)
    if path.suffix != ".m4a":
        soundfile.write(path, samples, rate)
        return
    layout = ("mono", "stereo", "3.0", "quad", "5.0", "5.1")[channels - 1]
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout=layout)
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with one kind of damage: cut short, bytes overwritten, a piece repeated, removed or made zero."""
    array = np.frombuffer(data, np.uint8).copy()
    kind, (first, last) = rng.integers(7), np.sort(rng.integers(len(array) + 1, size=2))
    if kind == 0:
        return data[:first]
    if kind in (1, 2):  # anywhere, or in the header
        places = rng.integers(len(array) if kind == 1 else min(64, len(array)), size=rng.integers(1, 20))
        array[places] = rng.integers(256, size=len(places))
        return array.tobytes()
    if kind == 3:
        return data[:last] + data[first:]
    if kind == 4:
        return data[:first] + data[last:]
    if kind == 5:
        array[first:last] = 0
        return array.tobytes()
    return b"" if rng.random() < 0.1 else data


def write_files(folder: Path, count: int, seed: int) -> list[str]:
    """`count` damaged files below `folder`, in 100 folders; returns their ids."""
    rng = np.random.default_rng(seed)
    originals = []
    for number in range(60):
        path = folder / f"original.{FORMATS[number % len(FORMATS)]}"
        write_recording(path, int(rng.choice(RATES)), int(rng.integers(1, 7)), rng)
        originals.append((path.suffix, path.read_bytes()))
        path.unlink()
    ids = []
    for number in range(count):
        suffix, data = originals[rng.integers(len(originals))]
        if rng.random() < 0.05:
            suffix = f".{rng.choice(FORMATS)}"  # one format under another's name
        ids.append(f"{number % 100:02d}/{number:06d}{suffix}")
        (folder / ids[-1]).parent.mkdir(exist_ok=True)
        (folder / ids[-1]).write_bytes(damage(data, rng))
    return ids


def fuzz(folder: Path, count: int, seed: int, workers: int = 0) -> collections.Counter:
    """How many files were kept, and skipped for which reason; AssertionError when one is neither or both."""
    source, output = folder / "in", folder / "out"
    source.mkdir()
    ids = write_files(source, count, seed)
    prepare.prepare(source, output, augmentations=1, workers=workers)
    kept = [records.decode(r).id for path in open_shards(output).paths for r in read_shard(path)]
    lines = [line.split("\t") for line in (output / "skipped.txt").read_text().splitlines()]
    skipped = [Path(path).relative_to(source).as_posix() for path, _ in lines]
    assert sorted(kept + skipped) == sorted(ids), "a file was lost, or is there twice"
    reasons = collections.Counter(reason.split(":")[0] for _, reason in lines)
    return reasons | collections.Counter(kept=len(kept))


def main(_) -> None:
    with tempfile.TemporaryDirectory() as folder:
        counts = fuzz(Path(folder), FLAGS.files, FLAGS.seed)
    for reason, count in counts.most_common():
        print(f"{count:7d}  {reason}")
    print(f"{sum(counts.values())} files, each kept or in skipped.txt")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_integer("files", 20000, "How many.")
    flags.DEFINE_integer("seed", 0, "Of the damage.")
    app.run(main)
