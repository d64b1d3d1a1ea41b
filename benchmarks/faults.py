"""Injects faults into a run, one a start, and counts what was lost: nothing but work since the last save may be.

    python benchmarks/faults.py --output=runs/faults [--kills=50] [--stops=10] [--io=30] [--memory=5] [--full=20]

A tiny run on made-up recordings is begun and resumed under: SIGKILL at random times; SIGTERM and Ctrl-C; an error of
input or output at the n-th file operation of the process (open, read, write, rename, fsync of Python and Orbax); out of
memory in the n-th step; a full disk at the n-th write; a second run in the same workdir. After every start the newest
complete checkpoint must be as new as before, `metrics.jsonl` without a doubled row, and a start that failed must have
said one line and no traceback. The last start runs to the end, which must equal a run in peace bit for bit. Prints a
table of injected and survived, and writes it to <output>/faults.md.
"""

import argparse
import collections
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from small_run import arguments_of, make_workplace

STEPS, PATIENCE_S = 60, 120
CODES = {"kill": {-9}, "stop": {143, 130, 0}, "peace": {0}}  # all others: 0 (nothing happened) or 2 (one line)
NUMBERS = {"io": errno.EIO, "full": errno.ENOSPC}

# What a process of the run executes: FAULT is kind:number; the number-th operation fails, once.
INJECTED = """
import builtins, os, sys
from pathlib import Path

kind, number = os.environ["FAULT"].split(":")
left = [int(number)]
workdir = os.environ["FAULT_WORKDIR"]

def due(path):
    if workdir not in os.fspath(path if isinstance(path, (str, os.PathLike)) else ""):
        return False
    left[0] -= 1
    return left[0] == 0

def failing(function, writes):
    def replacement(path, *rest, **more):
        mode = str(rest[0] if rest else more.get("mode", "r"))
        if (kind == "io" or writes or any(c in mode for c in "wax+")) and due(path):
            code = int(os.environ["FAULT_ERRNO"])
            raise OSError(code, os.strerror(code), os.fspath(path))
        return function(path, *rest, **more)
    return replacement

if kind in ("io", "full"):
    builtins.open = failing(builtins.open, False)
    import io
    io.open = builtins.open
    for name in ("open", "replace", "rename", "mkdir"):
        setattr(os, name, failing(getattr(os, name), name != "open"))
    if kind == "io":
        for name in ("stat", "listdir", "scandir"):
            setattr(os, name, failing(getattr(os, name), False))
if kind == "memory":
    import jax
    from sdpn_jax.training import loop
    compiled = loop.compiled
    def limited(*arguments):
        step = compiled(*arguments)
        def once(*inputs):
            left[0] -= 1
            if left[0] == 0:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
            return step(*inputs)
        return once
    loop.compiled = limited
from sdpn_jax.cli.program import leave, main
leave(main(sys.argv[1:]))
"""


def complete(workdir: Path) -> int:
    """The newest complete checkpoint, in the folder or set aside as damaged; -1 without any."""
    names = [path.name for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]
    return max(map(int, names), default=-1)


def started(place: Path, workdir: Path, kind: str, number: int) -> subprocess.Popen:
    """Starts or resumes the run under a fault."""
    environment = {**os.environ, "FAULT": f"{kind}:{number}", "FAULT_WORKDIR": workdir.name,
                   "FAULT_ERRNO": str(NUMBERS.get(kind, 0)), "PYTHONPATH": str(Path(__file__).parents[1])}  # fmt: skip
    command = [sys.executable, "-c", INJECTED, "train", *arguments_of(place, workdir), f"--config.num_steps={STEPS}"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def one(place: Path, workdir: Path, kind: str, number: int, rng: random.Random) -> tuple[bool, str]:
    """One start under one fault; returns (whether it was felt, what was wrong with how it ended, or nothing)."""
    before = complete(workdir)
    process = started(place, workdir, kind, number)
    if kind in ("kill", "stop"):
        try:
            process.wait(rng.uniform(3, 14))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL if kind == "kill" else rng.choice([signal.SIGTERM, signal.SIGINT]))
    wrong = []
    try:
        said = process.communicate(timeout=PATIENCE_S)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        said = process.communicate()[1]
        wrong.append("did not end")
    code = process.returncode
    if kind == "neighbour" and not (code == 2 and "is in use by process" in said):
        wrong.append(f"a neighbour ended with {code}")
    if code not in CODES.get(kind, {0, 2}) | ({0} if kind == "kill" else set()):
        wrong.append(f"exit code {code}")
    if "Traceback" in said and kind != "kill":
        wrong.append("traceback: " + said[said.index("Traceback") :][:1500])
    if code == 2 and sum(line.startswith("error: ") for line in said.splitlines()) != 1:
        wrong.append("not one line")
    if complete(workdir) < before:
        wrong.append(f"checkpoint {before} was lost")
    if list((workdir / "damaged-checkpoints").glob("*")):
        wrong.append("a checkpoint was set aside")
        shutil.rmtree(workdir / "damaged-checkpoints")
    if wrong:
        wrong.append(" / ".join(said.strip().splitlines()[-3:])[-300:])
    return code != 0, ", ".join(wrong)


def rows_of(workdir: Path) -> list[dict]:
    """The rows of metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def weights_of(workdir: Path, output: Path) -> bytes:
    """The final teacher and student as bytes."""
    parts = []
    for which in ("teacher", "student"):
        code = "from sdpn_jax.weights.run import read_network; import jax, numpy as np; "
        code += f"arrays = jax.tree.leaves(read_network({str(workdir)!r}, None, {which!r})[1]); "
        code += f"np.savez({str(output)!r}, *map(np.asarray, arrays))"
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        with np.load(output) as arrays:
            parts += [arrays[name].tobytes() for name in arrays.files]
    return b"".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    for name, default in {"kills": 50, "stops": 10, "io": 30, "memory": 5, "full": 20, "neighbours": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    output, rng = args.output.resolve(), random.Random(0)
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    place = make_workplace(output)
    peace = output / "peace"
    process = started(place, peace, "peace", 0)
    if process.wait():
        sys.exit(f"the run in peace failed:\n{process.communicate()[1][-2000:]}")
    jobs = [("kill", 0)] * args.kills + [("stop", 0)] * args.stops + [("neighbour", 0)] * args.neighbours
    jobs += [("memory", rng.randint(1, 20)) for _ in range(args.memory)]
    jobs += [("io", rng.randint(1, 90)) for _ in range(args.io)] + [
        ("full", rng.randint(1, 120)) for _ in range(args.full)
    ]
    rng.shuffle(jobs)
    injected, felt, failures, runs = collections.Counter(), collections.Counter(), collections.defaultdict(list), 0
    workdir = output / "faulty-0"
    began = time.time()
    for done, (kind, number) in enumerate(jobs, 1):
        if complete(workdir) >= STEPS:  # over: compare, and begin another
            compare(workdir, peace, output, failures)
            runs += 1
            workdir = output / f"faulty-{runs}"
        owner = started(place, workdir, "peace", 0) if kind == "neighbour" else None
        while owner and not (workdir / "run.lock").exists() and owner.poll() is None:
            time.sleep(0.05)
        was_felt, wrong = one(place, workdir, kind, number, rng)
        if owner and owner.wait():
            wrong = f"the neighbour ended the run: {owner.communicate()[1][-300:]}"
        injected[kind] += 1
        felt[kind] += was_felt
        if wrong:
            failures[kind].append(f"{kind}:{number} {wrong}")
        left = (time.time() - began) / done * (len(jobs) - done)
        print(
            f"{done}/{len(jobs)} {kind}:{number} step {complete(workdir)} {wrong or 'ok'}  ETA {left:.0f} s", flush=True
        )
    if started(place, workdir, "peace", 0).wait():
        failures["peace"].append("the last start failed")
    compare(workdir, peace, output, failures)
    lines = ["| fault | injected | felt by the run | survived |", "|---|---|---|---|"]
    lines += [f"| {k} | {injected[k]} | {felt[k]} | {injected[k] - len(failures[k])} |" for k in sorted(injected)]
    lines += [f"\n{runs + 1} runs to their end, each compared with the run in peace"]
    lines += [f"- {failure}" for kind in failures for failure in failures[kind]]
    (output / "faults.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), f"\nwritten: {output / 'faults.md'}", sep="\n")


def compare(workdir: Path, peace: Path, output: Path, failures: dict) -> None:
    """Notes what of a finished run differs from the run in peace."""
    if [row["step"] for row in rows_of(workdir)] != [row["step"] for row in rows_of(peace)]:
        failures["end"].append(f"{workdir.name}: rows of metrics.jsonl are missing or doubled")
    elif rows_of(workdir) != rows_of(peace):
        failures["end"].append(f"{workdir.name}: metrics differ")
    if weights_of(workdir, output / "a.npz") != weights_of(peace, output / "b.npz"):
        failures["end"].append(f"{workdir.name}: weights differ")


if __name__ == "__main__":
    main()
