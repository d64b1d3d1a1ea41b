"""Pipeline and step together: utterances a second, and the share of the time that the step waits for data.

    python benchmarks/end_to_end.py --config=configs/librispeech.py --config.data_dir=data/mine

Beside it the step alone on one batch that is there already, and the plain way: each batch is read when it is needed.
A few steps of each in turn; the first of them, which fill the read-ahead, are not timed. Prints a table, also of the
time to compile and to the first step, and writes <output>.
"""

import itertools
import statistics
import time

import jax
import measure
import numpy as np
from absl import app, flags
from ml_collections import config_flags
from training_step import Ours

from sdpn_jax.data import pipeline
from sdpn_jax.data.shards import open_shards
from sdpn_jax.training import sharding


def timed_steps(ours: Ours, batches, steps: int) -> tuple[float, float]:
    """(seconds of `steps` steps, seconds of them spent waiting for `next(batches)`)."""
    waited, started = 0.0, time.perf_counter()
    for _ in range(steps):
        before = time.perf_counter()
        ours.batch = next(batches)
        waited += time.perf_counter() - before
        ours.step()
    return time.perf_counter() - started, waited


def main(_) -> None:
    config, steps = FLAGS.config, FLAGS.steps
    split = sharding.batch_sharding(sharding.make_mesh(config.mesh.fsdp))
    views = pipeline.Views(**config.views)
    shards = open_shards(config.data_dir)
    shares = pipeline.dataset(
        shards, config.batch_size, config.seed, views, numbers=np.arange(shards.utterances - config.held_out)
    )

    started = time.perf_counter()
    ours = Ours(config)

    def on_devices(batch):
        return jax.device_put({name: batch[name] for name in ours.batch}, split)

    ahead = map(on_devices, pipeline.batches(shares, 0, config.workers))
    ways = {
        "step alone": itertools.repeat(ours.batch),
        "read ahead": ahead,
        "read when needed": map(on_devices, (shares[k] for k in itertools.count())),
    }
    timed_steps(ours, ahead, 1)
    to_first = time.perf_counter() - started
    times = {name: [] for name in ways}
    for _ in range(FLAGS.repeats):
        for name, batches in ways.items():
            timed_steps(ours, batches, 2)
            times[name].append(timed_steps(ours, batches, steps))
    rows = {}
    for name, measured in times.items():
        took, waited = (statistics.median(column) for column in zip(*measured, strict=True))
        rows[name] = {"utt/s": steps * config.batch_size / took, "% waiting": 100 * waited / took}
    measure.show(f"{measure.machine()}, {jax.devices()[0].device_kind}, batch {config.batch_size}", rows, 18)
    measure.show(
        "start", {"compiling": {"s": ours.compile_seconds}, "to the end of the first step": {"s": to_first}}, 30
    )
    measure.write(FLAGS.output, {"start": {"compile s": ours.compile_seconds, "first step s": to_first}, **rows})


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    config_flags.DEFINE_config_file("config", "configs/librispeech.py", "The run; --config.FIELD=VALUE overrides.")
    flags.DEFINE_integer("steps", 10, "Steps of each way and turn.", 1)
    flags.DEFINE_integer("repeats", 3, "Turns.", 1)
    flags.DEFINE_string("output", "end_to_end_benchmark.json", "Where the figures go.")
    app.run(main)
