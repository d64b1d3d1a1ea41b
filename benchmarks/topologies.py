"""The same run on several numbers of processes and devices of this CPU: losses and final parameters side by side.

    python benchmarks/topologies.py --config=configs/librispeech.py --data_dir=data/librispeech \
        [--output=runs/topologies] [--steps=30] [--topologies=1x1,1x8,2x4:2] [further --config.FIELD=VALUE]

A topology is processes x devices of each, after a colon mesh.fsdp. The first one is what the others are compared with.
Prints and writes <output>/table.md.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging

from sdpn_jax.weights.run import read_network


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start(topology: str, arguments: list[str], log: Path) -> list[subprocess.Popen]:
    """The processes of one run, each with its share of forced CPU devices."""
    shape, _, fsdp = topology.partition(":")
    processes, devices = map(int, shape.split("x"))
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "-m", "sdpn_jax.main", *arguments, f"--config.mesh.fsdp={fsdp or 1}"]
    if processes > 1:
        command += [f"--coordinator=localhost:{free_port()}", f"--process_count={processes}"]
    joined = [[f"--process_index={i}"] if processes > 1 else [] for i in range(processes)]
    return [
        subprocess.Popen([*command, *index], env=environment, stdout=subprocess.DEVNULL, stderr=log.open("a"))
        for index in joined
    ]


def train(topology: str, workdir: Path, further: list[str]) -> None:
    """Trains in `workdir` unless that has been done."""
    if (workdir / "training.png").exists():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    steps = f"--config.num_steps={FLAGS.steps}"
    arguments = [f"--config={FLAGS.config}", f"--config.data_dir={FLAGS.data_dir}", f"--workdir={workdir}", steps]
    arguments += [f"--config.checkpoint_every={FLAGS.steps}", "--config.log_every=1", *further]
    codes = [process.wait() for process in start(topology, arguments, workdir / "log.txt")]
    if any(codes):
        raise RuntimeError(f"{topology} failed with exit codes {codes}: see {workdir / 'log.txt'}")


def losses_of(workdir: Path) -> np.ndarray:
    """The loss of every step."""
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return np.asarray([row["loss"] for row in rows if "loss" in row])


def parameters_of(workdir: Path) -> np.ndarray:
    """All the student's parameters at the end, in one row."""
    _, variables, _ = read_network(workdir, which="student")
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(variables["params"])])


def main(argv) -> None:
    logging.set_verbosity(logging.INFO)
    further, output = argv[1:], Path(FLAGS.output)
    lines, first = [], None
    for topology in FLAGS.topologies:
        workdir = output / topology.replace(":", "-fsdp")
        train(topology, workdir, further)
        losses, parameters = losses_of(workdir), parameters_of(workdir)
        first = (losses, parameters) if first is None else first
        relative = np.abs(losses / first[0] - 1)
        apart = np.linalg.norm(parameters - first[1]) / np.linalg.norm(first[1])
        shown = [f"{losses[i]:.6f}" for i in (0, len(losses) // 2, -1)]
        differences = [f"{x:.1e}" for x in (relative[0], relative.max(), apart)]
        lines.append(f"| {topology} | {' | '.join(shown + differences)} |")
        logging.info("%s", lines[-1])
    of_steps = f"loss, step 1 | step {FLAGS.steps // 2 + 1} | step {FLAGS.steps}"
    head = f"| processes x devices | {of_steps} | difference, step 1 | largest | parameters |"
    table = "\n".join([head, "|---" * 7 + "|", *lines]) + "\n"
    (output / "table.md").write_text(table)
    print(f"{table}\nRelative differences from the first row; of parameters the norm.\nwritten: {output / 'table.md'}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("config", "configs/librispeech.py", "The run.")
    flags.DEFINE_string("data_dir", None, "Prepared shards.", required=True)
    flags.DEFINE_string("output", "runs/topologies", "Where the runs and the table go.")
    flags.DEFINE_integer("steps", 30, "Steps of each run.")
    flags.DEFINE_list("topologies", "1x1,1x2,1x8,2x1,2x4,4x2,1x8:4", "What to run, the reference first.")
    app.run(main, flags_parser=lambda argv: flags.FLAGS(argv, known_only=True))
