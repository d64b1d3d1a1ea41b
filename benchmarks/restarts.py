"""Kills one run again and again, and compares where it ends with the same run left in peace.

    python benchmarks/restarts.py --config=configs/librispeech.py --data_dir=data/librispeech --output=runs/restarts \
        [--kills=50] [--terms=10] [--devices=1] [further --config.FIELD=VALUE]

SIGKILLs (a third of them while a checkpoint is being written) and SIGTERMs come in random order at random times. With
--devices=1,4 every start takes one of these numbers of devices. After each start the run must go on from the newest
checkpoint that was complete before. On one number of devices the final parameters must be equal bit for bit; on several
the differences are of rounding. Prints and writes <output>/restarts.md.
"""

import collections
import re
import signal
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from topologies import losses_of, parameters_of, start

from sdpn_jax.weights import run


def complete(workdir: Path) -> list[int]:
    """Steps whose checkpoints are complete: only those have got their name."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


def being_written(workdir: Path) -> bool:
    """Whether a checkpoint is being written now."""
    return any((workdir / "checkpoints").glob("*tmp*"))


def wait_until(ready, process, patience_s: float = 300) -> bool:
    """Whether `ready` has come true before the process ended."""
    deadline = time.time() + patience_s
    while process.poll() is None and time.time() < deadline:
        if ready():
            return True
        time.sleep(0.002)
    return False


def disturb(workdir: Path, arguments: list[str], how: str, devices: int, rng) -> str:
    """Starts the run and ends it at a random time; returns what happened."""
    log = workdir / "log.txt"
    said, before = log.stat().st_size if log.exists() else 0, complete(workdir)
    [process] = start(f"1x{devices}", arguments, log)
    running = lambda: "step compiled" in log.read_text()[said:]  # noqa: E731
    if rng.random() < 0.8:  # else it may die while it starts
        wait_until(running, process)
    time.sleep(rng.uniform(0, FLAGS.longest_s))
    if how == "SIGKILL in a save":
        wait_until(lambda: being_written(workdir), process)
    process.send_signal(signal.SIGTERM if how == "SIGTERM" else signal.SIGKILL)
    code = process.wait()
    resumed = re.search(r"resumed from the checkpoint of step (\d+)", log.read_text()[said:])
    if resumed and int(resumed[1]) != max(before):
        raise AssertionError(f"resumed from step {resumed[1]}, complete were {before}")
    if before and max(complete(workdir)) < max(before):
        raise AssertionError(f"checkpoints {before} became {complete(workdir)}")
    return {0: "was over", 143: "saved and stopped"}.get(code, "died")


def main(argv) -> None:
    logging.set_verbosity(logging.INFO)
    output, rng = Path(FLAGS.output), np.random.default_rng(FLAGS.seed)
    arguments = [f"--config={FLAGS.config}", f"--config.data_dir={FLAGS.data_dir}", "--config.log_every=1", *argv[1:]]
    devices = [int(n) for n in FLAGS.devices]
    calm, disturbed = output / "calm", output / "disturbed"
    for workdir in (calm, disturbed):
        workdir.mkdir(parents=True)
    [process] = start(f"1x{devices[0]}", [*arguments, f"--workdir={calm}"], calm / "log.txt")
    if process.wait():
        raise RuntimeError(f"the undisturbed run failed: see {calm / 'log.txt'}")

    plan = ["SIGKILL"] * (FLAGS.kills - FLAGS.kills // 3) + ["SIGKILL in a save"] * (FLAGS.kills // 3)
    plan += ["SIGTERM"] * FLAGS.terms
    rng.shuffle(plan)
    happened = collections.Counter()
    for number, how in enumerate(plan):
        result = disturb(disturbed, [*arguments, f"--workdir={disturbed}"], how, int(rng.choice(devices)), rng)
        happened[f"{how}: {result}"] += 1
        logging.info("%d of %d, %s: %s; checkpoints %s", number + 1, len(plan), how, result, complete(disturbed))
    [process] = start(f"1x{devices[0]}", [*arguments, f"--workdir={disturbed}"], disturbed / "log.txt")
    if process.wait():
        raise RuntimeError(f"the last start failed: see {disturbed / 'log.txt'}")

    a, b = (parameters_of(workdir) for workdir in (calm, disturbed))
    teachers = [jax.tree.leaves(run.read_network(workdir, which="teacher")[1]) for workdir in (calm, disturbed)]
    equal = np.array_equal(a, b) and all(map(np.array_equal, *teachers))
    losses = np.array_equal(losses_of(calm), losses_of(disturbed))
    lines = [f"- {what}: {count}" for what, count in sorted(happened.items())]
    lines += [
        f"- devices: {FLAGS.devices}",
        f"- student's and teacher's final arrays equal bit for bit: {equal}",
        f"- relative distance of the student's parameters: {np.linalg.norm(a - b) / np.linalg.norm(a):.1e}",
        f"- logged losses of all {len(losses_of(calm))} steps equal: {losses}",
    ]
    (output / "restarts.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines) + f"\nwritten: {output / 'restarts.md'}, and both runs in {output}")
    if len(devices) == 1 and not equal:
        raise SystemExit("the runs differ")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("config", "configs/librispeech.py", "The run.")
    flags.DEFINE_string("data_dir", None, "Prepared shards.", required=True)
    flags.DEFINE_string("output", "runs/restarts", "Where the two runs and the result go; must not exist.")
    flags.DEFINE_integer("kills", 50, "SIGKILLs.")
    flags.DEFINE_integer("terms", 10, "SIGTERMs.")
    flags.DEFINE_list("devices", "1", "Numbers of devices to choose from; the first is that of the undisturbed run.")
    flags.DEFINE_float("longest_s", 4.0, "Longest time that a run is left alone once it trains.")
    flags.DEFINE_integer("seed", 0, "Of times and order.")
    app.run(main, flags_parser=lambda argv: flags.FLAGS(argv, known_only=True))
