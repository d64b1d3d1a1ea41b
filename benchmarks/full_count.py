"""What grows with the corpus: a stand-in for VoxCeleb2 at full count, 1,092,009 tiny records in 1,067 shards.

    python benchmarks/full_count.py --output=FOLDER [--utterances=1092009]

Makes an empty file for every utterance and tiny records in their place, then measures seconds and peak memory of every
stage that sees the whole list, each in a process of its own. Prints a table; FOLDER needs 2 GB and may be deleted.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SPEAKERS = 5994
SAMPLES = 400


def files_of(folder: Path, count: int) -> list[Path]:
    """The paths of all utterances, a folder a speaker and a video, as VoxCeleb2 has them."""
    return [folder / "aac" / f"id{i % SPEAKERS:05d}" / f"v{i // SPEAKERS // 20}" / f"{i:07d}.m4a" for i in range(count)]


def make(folder: Path, count: int) -> None:
    """Makes the files, and the shards as `sdpn prepare --store=waveform` would leave them: not measured."""
    from array_record.python.array_record_module import ArrayRecordWriter

    from sdpn_jax.data import prepare, recordings, records

    made: set[Path] = set()
    for path in files_of(folder, count):
        if path.parent not in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.add(path.parent)
        path.touch()
    recipe = prepare.make_recipe(None, None, 0, 0, "waveform")
    shards = prepare.plan(recordings.find_utterances(folder / "aac"), folder / "shards")
    (folder / "shards").mkdir(exist_ok=True)
    samples = np.random.default_rng(0).integers(-3000, 3000, SAMPLES).astype(np.int16)
    for shard in shards:
        writer = ArrayRecordWriter(str(shard.path), records.WRITER_OPTIONS)
        for cut in shard.utterances:
            writer.write(records.encode(records.Recording(cut.id, samples)))
        writer.close()
        summary = {"fingerprint": shard.fingerprint(recipe), "utterances": len(shard.utterances), "seconds": 1.0}
        summary |= {"bytes": shard.path.stat().st_size, "sha256": "", "skipped": []}
        shard.summary_path.write_text(json.dumps(summary))


def plan(folder: Path) -> None:
    """prepare: finds all files and divides them over shards."""
    from sdpn_jax.data import prepare, recordings

    prepare.plan(recordings.find_utterances(folder / "aac"), folder / "shards")


def finish(folder: Path) -> None:
    """prepare --finish: checks every shard against its files, writes metadata.json."""
    from sdpn_jax.data import prepare

    prepare.prepare(folder / "aac", folder / "shards", store="waveform", only_finish=True)


def batch_of(folder: Path, step: int) -> None:
    from sdpn_jax.data import pipeline
    from sdpn_jax.data.shards import open_shards

    shards = open_shards(folder / "shards")
    views = pipeline.Views(global_frames=10, local_frames=5)
    next(pipeline.batches(pipeline.dataset(shards, 384, 0, views), step, 0))


def first_batch(folder: Path) -> None:
    """training: from nothing to the first batch of 384."""
    batch_of(folder, 0)


def batch_400000(folder: Path) -> None:
    """training: from nothing to the batch of step 400,000, as a resume."""
    batch_of(folder, 400_000)


def embed_list(folder: Path) -> None:
    """embed: the list of all files, divided into parts, with what tells whether a file has changed."""
    from sdpn_jax.speaker import corpus

    [part.stamps() for part in corpus.plan([folder / "aac"])]


def inspect(folder: Path) -> None:
    """inspect: decodes every record."""
    from sdpn_jax.data import survey

    survey.survey(folder / "shards")


STAGES = (make, plan, finish, first_batch, batch_400000, embed_list, inspect)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--utterances", type=int, default=1_092_009)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        started = time.time()
        stage = next(stage for stage in STAGES if stage.__name__ == args.stage)
        stage(args.output, args.utterances) if stage is make else stage(args.output)
        print(json.dumps([time.time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2]))
        return
    args.output.mkdir(parents=True, exist_ok=True)
    print("| stage | s | peak memory, GiB |\n|---|---|---|")
    for stage in STAGES[
        (args.output / "shards").exists() :
    ]:  # in processes: memory of a parent counts for its children
        command = [sys.executable, __file__, f"--output={args.output}", f"--stage={stage.__name__}"]
        command.append(f"--utterances={args.utterances}")
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        seconds, memory = json.loads(done.stdout.splitlines()[-1])
        print(f"| {(stage.__doc__ or '').rstrip('.')} | {seconds:.1f} | {memory:.2f} |", flush=True)


if __name__ == "__main__":
    main()
