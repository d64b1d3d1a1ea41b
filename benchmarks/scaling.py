"""Step time against batch size and against the number of devices: where it stops scaling.

    python benchmarks/scaling.py --config=configs/librispeech.py --output=runs/scaling

Runs benchmarks/training_step.py in a process of its own for each point; on a CPU the devices are forced ones, which
share the cores. Writes <output>/scaling.json and scaling.png.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import measure
from absl import app, flags
from matplotlib.ticker import NullLocator

from sdpn_jax.figures import BLUE, COLUMN, RED, drawing


def point(batch_size: int, devices: int, output: Path) -> dict:
    """{batch, devices, s, utt/s, GiB of each device} of one configuration, measured now."""
    result = output / f"batch{batch_size}-devices{devices}.json"
    environment = dict(os.environ)
    if devices > 1:
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    script = Path(__file__).with_name("training_step.py")
    arguments = [f"--batches={batch_size}", f"--repeats={FLAGS.repeats}", f"--output={result}", *FLAGS.step_flags]
    command = [sys.executable, str(script), f"--config={FLAGS.config}", "--precisions=float32", *arguments]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    ours = json.loads(result.read_text())[f"float32, batch {batch_size}"]["ours"]
    row = {"batch": batch_size, "devices": devices, "s": ours["s"], "utt/s": ours["utt/s"], "GiB": ours["GiB"]}
    print(", ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
    return row


def draw(by_batch: list[dict], by_devices: list[dict], path: Path) -> None:
    """Utterances a second against batch size and devices; memory beside the first."""
    with drawing(path, 2 * COLUMN, 0.75 * COLUMN) as figure:
        for place, (rows, key, label) in enumerate(
            ((by_batch, "batch", "Batch size (utterances)"), (by_devices, "devices", "Devices, forced"))
        ):
            axes = figure.add_subplot(1, 2, place + 1)
            x = [row[key] for row in rows]
            axes.plot(x, [row["utt/s"] for row in rows], "o-", color=BLUE, markersize=4)
            axes.set(xscale="log", xlabel=label, ylim=(0, 1.15 * max(row["utt/s"] for row in rows)))
            axes.set_ylabel("Utterances a second", color=BLUE)
            axes.set_xticks(x, [str(value) for value in x])
            axes.xaxis.set_minor_locator(NullLocator())
            memory = axes.twinx()
            memory.plot(x, [row["GiB"] * row["devices"] for row in rows], "s--", color=RED, markersize=3)
            memory.set_ylim(0, 1.15 * max(row["GiB"] * row["devices"] for row in rows))
            memory.set_ylabel("Memory of all devices (GiB)", color=RED)
            memory.grid(False)


def main(_) -> None:
    output = Path(FLAGS.output)
    output.mkdir(parents=True, exist_ok=True)
    by_batch = [point(int(size), 1, output) for size in FLAGS.batches]
    by_devices = [point(FLAGS.batch, int(count), output) for count in FLAGS.devices]
    draw(by_batch, by_devices, output / "scaling.png")
    measure.write(output / "scaling.json", {"by batch": by_batch, "by devices": by_devices})
    print(f"written: {output / 'scaling.png'}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("config", "configs/librispeech.py", "The run.")
    flags.DEFINE_list("batches", "8,16,32,64,128,256,512", "Batch sizes on one device.")
    flags.DEFINE_list("devices", "1,2,4,8", "Numbers of forced devices.")
    flags.DEFINE_integer("batch", 32, "Batch size of the runs on several devices.")
    flags.DEFINE_integer("repeats", 3, "Timed steps of each.", 1)
    flags.DEFINE_list("step_flags", [], "More flags for training_step.py.")
    flags.DEFINE_string("output", "runs/scaling", "Folder for figures and plot.")
    app.run(main)
