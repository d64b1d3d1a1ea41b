"""Whether reading batches for a long time makes the process grow: resident memory after every so many batches.

    python benchmarks/pipeline_memory.py --shards=data/librispeech [--batches=100000] [--batch_size=2]

Small shards are read over and over, epoch after epoch. Prints the table; fails when the second half of the run
has grown by more than --allowed_mb.
"""

import resource
import time
from pathlib import Path

from absl import app, flags

from sdpn_jax.data import pipeline
from sdpn_jax.data.shards import open_shards


def resident_mb() -> float:
    """Memory of this process that is in RAM now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main(_) -> None:
    batches = pipeline.batches(pipeline.dataset(open_shards(FLAGS.shards), FLAGS.batch_size, 0, pipeline.Views()))
    started, rows = time.time(), []
    for done in range(1, FLAGS.batches + 1):
        next(batches)
        if done % (FLAGS.batches // 10) == 0:
            rate = done * FLAGS.batch_size / (time.time() - started)
            rows.append(resident_mb())
            print(f"| {done:,} | {rows[-1]:.0f} MB | {rate:.0f} utterances/s |", flush=True)
    grown = rows[-1] - rows[len(rows) // 2 - 1]
    print(f"\nsecond half: {grown:+.1f} MB")
    if grown > FLAGS.allowed_mb:
        raise SystemExit("memory grows")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("shards", None, "Folder of shards.", required=True)
    flags.DEFINE_integer("batches", 100_000, "How many.")
    flags.DEFINE_integer("batch_size", 2, "Utterances of each.")
    flags.DEFINE_float("allowed_mb", 20.0, "Growth in the second half that is put down to chance.")
    app.run(main)
