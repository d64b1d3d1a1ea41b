"""Hands thousands of damaged files to everything that reads a stranger's file, and counts what goes wrong.

    python benchmarks/fuzz.py --output=runs/fuzz [--targets=audio,torch] [--count=20000] [--seconds=600] [--seed=0]

Of each target small whole files are cut, mixed up, overwritten, lengthened and sprinkled with huge numbers, addresses
and paths, a function of the seed, and read in a process of its own. Right is a result or one line (UserError,
AudioError). Counted are: crashes of the process, hangs over 10 s, more than 2 GB of memory, other exceptions,
connections (a listener on this machine, whose address is in the files, and every look-up of a name), and files opened
that lie in a folder beside, whose path is in the files. What went wrong is kept in <output>; a table is printed and
written there.
"""

import argparse
import collections
import ctypes
import json
import os
import resource
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parent)]
import fuzz_targets  # noqa: E402

HANG_S, MOST_BYTES = 10, 2 * 2**30
NUMBERS = [(1 << bits) - 1 for bits in (7, 8, 15, 16, 31, 32, 63, 64)] + [0, 1, 1 << 20, 1 << 40]


def damaged(data: bytes, others: list[bytes], tokens: list[bytes], rng: np.random.Generator) -> bytes:
    """The bytes with one to three kinds of damage."""
    for _ in range(rng.integers(1, 4)):
        data = _once(data, others, tokens, rng)
    return data


def _once(data: bytes, others: list[bytes], tokens: list[bytes], rng: np.random.Generator) -> bytes:
    array = np.frombuffer(data, np.uint8).copy()
    size = len(array)
    first, last = np.sort(rng.integers(size + 1, size=2))
    kind = rng.integers(10)
    if kind == 0:
        return data[:first]
    if kind in (1, 2) and size:  # anywhere, or in the header
        places = rng.integers(size if kind == 1 else min(128, size), size=rng.integers(1, 20))
        array[places] = rng.integers(256, size=len(places))
        return array.tobytes()
    if kind == 3:
        return data[:last] + data[first:]
    if kind == 4:
        return data[:first] + data[last:]
    if kind == 5:
        array[first:last] = 0
        return array.tobytes()
    if kind == 6:  # a number that claims too much
        width, order = int(rng.choice([2, 4, 8])), str(rng.choice(["little", "big"]))
        number = (NUMBERS[rng.integers(len(NUMBERS))] % (1 << 8 * width)).to_bytes(width, order)
        place = int(rng.integers(min(size, 256) + 1))
        return data[:place] + number + data[place + width :]
    if kind == 7:
        token = tokens[rng.integers(len(tokens))]
        return data[:first] + token + data[first + (len(token) if rng.random() < 0.5 else 0) :]
    if kind == 8:
        other = others[rng.integers(len(others))]
        return data[:first] + other[rng.integers(len(other) + 1) :]
    return data + bytes(rng.integers(256, size=rng.integers(1, 1000), dtype=np.uint8))


def work(target: str, first: int, count: int, seed: int, folder: Path, tokens: list[bytes]) -> None:
    """In a process of its own: reads the damaged files from number `first` on, and says how each went."""
    resource.setrlimit(resource.RLIMIT_AS, (64 * 2**30, 64 * 2**30))
    sys.addaudithook(lambda name, args: name == "socket.getaddrinfo" and print("LOOKUP", ascii(args[:1]), flush=True))
    make, read, wanted = fuzz_targets.TARGETS[target]
    originals = make(folder)
    print("READY", flush=True)
    for number in range(first, count):
        rng = np.random.default_rng([seed, number])
        name, data = originals[rng.integers(len(originals))]
        path = folder / name
        path.write_bytes(damaged(data, [other for _, other in originals], tokens, rng))
        print("NOW", number, flush=True)
        outcome = "read"
        try:
            read(path)
        except wanted:
            outcome = "refused"
        except BaseException as error:
            outcome = "exception " + " ".join(traceback.format_exception(error)[-3:]).replace("\n", " | ")[:600]
            shutil.copy(path, folder / f"damaged-{number}-{path.name}")
        path.write_bytes(data)  # whole again, for readers of several files
        print("DONE", number, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, outcome, flush=True)


class Watch:
    """What must not happen: connections to a listener, and files opened in a folder beside (inotify)."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True)
        (folder / "secret.wav").write_bytes(b"RIFF")
        self.listener, self.connections, self.opened = socket.create_server(("127.0.0.1", 0)), 0, 0
        libc = ctypes.CDLL(None, use_errno=True)
        self._events = libc.inotify_init()
        libc.inotify_add_watch(self._events, str(folder).encode(), 0x20)  # IN_OPEN
        port = self.listener.getsockname()[1]
        addresses = [f"{scheme}127.0.0.1:{port}/x.m4a" for scheme in ("http://", "tcp://", "https://", "rtmp://")]
        paths = [f"{start}{folder}/secret.wav" for start in ("", "file:", "concat:", "subfile:,,:")]
        others = ["../../etc/passwd", "http://no.such.host/x", "pipe:0", "\x1b[31m", "NaN", "1e999"]
        self.tokens = [text.encode() for text in (*addresses, *paths, *others)]
        for watch in (self._accept, self._look):
            threading.Thread(target=watch, daemon=True).start()

    def _accept(self) -> None:
        while True:
            self.listener.accept()[0].close()
            self.connections += 1

    def _look(self) -> None:
        while True:
            os.read(self._events, 4096)
            self.opened += 1


def fuzz(target: str, count: int, seconds: float, seed: int, output: Path, watch: Watch) -> dict:
    """Runs one target; returns its counts."""
    counts, first, started, peak = collections.Counter(), 0, time.time(), 0
    folder = output / f"files-{target}"
    while first < count and time.time() - started < seconds:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        command = [sys.executable, __file__, "--worker", json.dumps([target, first, count, seed, str(folder)])]
        command += ["--tokens", json.dumps([token.decode("latin-1") for token in watch.tokens])]
        log = output / f"{target}.log"
        with log.open("wb") as said, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said) as process:
            pending, number = b"", first - 1
            while time.time() - started < seconds:
                ready, _, _ = select.select([process.stdout], [], [], 120 if number < first else HANG_S)
                data = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    word, _, rest = line.decode("utf-8", "replace").partition(" ")
                    if word == "NOW":
                        number = int(rest)
                    elif word == "LOOKUP":
                        note(counts, "look-ups of names", target, number, folder, output, rest)
                    elif word == "DONE":
                        _, memory, outcome = rest.split(" ", 2)
                        counts[outcome.split()[0]] += 1
                        if outcome.startswith("exception"):
                            note(counts, "exceptions", target, number, folder, output, outcome)
                        if int(memory) > MOST_BYTES and peak <= MOST_BYTES:
                            note(counts, "over 2 GB", target, number, folder, output, f"{int(memory):,} bytes")
                        peak = max(peak, int(memory))
                if not ready:
                    note(counts, "hangs", target, number, folder, output, "")
                    process.kill()
                if not ready or (not data and process.wait()):
                    if ready:
                        why = f"exit code {process.returncode}: {log.read_text(errors='replace')[-300:]!a}"
                        note(counts, "crashes", target, number, folder, output, why)
                    break
                if not data:
                    number = count
                    break
            else:
                process.kill()
        first = max(number + 1, first + 1)
    tried = counts["read"] + counts["refused"] + counts["exception"] + counts["hangs"] + counts["crashes"]
    return {"files": tried, "read": counts["read"], "refused": counts["refused"], "peak MB": peak // 2**20,
            **{kind: counts[kind] for kind in ("crashes", "hangs", "over 2 GB", "exceptions", "look-ups of names")},
            "s": round(time.time() - started)}  # fmt: skip


def note(
    counts: collections.Counter, kind: str, target: str, number: int, folder: Path, output: Path, why: str
) -> None:
    """Counts a fault, shows it, and keeps what led to it."""
    counts[kind] += 1
    print(f"{target} {number}: {kind} {why}", flush=True)
    if counts[kind] <= 20:
        kept = output / "faults" / f"{target}-{number}"
        shutil.copytree(folder, kept, dirs_exist_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--targets", default=",".join(fuzz_targets.TARGETS))
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=1e9, help="For each target.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--tokens", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        target, first, count, seed, folder = json.loads(args.worker)
        work(target, first, count, seed, Path(folder), [text.encode("latin-1") for text in json.loads(args.tokens)])
        return 0
    output = args.output.resolve()
    shutil.rmtree(output, ignore_errors=True)
    watch = Watch(output / "beside")
    rows = {}
    for target in args.targets.split(","):
        rows[target] = fuzz(target, args.count, args.seconds, args.seed, output, watch)
        print(target, rows[target], flush=True)
    heading = ["", *next(iter(rows.values()))]
    lines = [heading, ["---"] * len(heading), *([name, *map(str, row.values())] for name, row in rows.items())]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    text += f"\n\nseed {args.seed}; connections: {watch.connections}; files opened beside: {watch.opened}\n"
    (output / "fuzz.md").write_text(text)
    print(text, f"written: {output / 'fuzz.md'}", sep="\n")
    bad = ("crashes", "hangs", "over 2 GB", "exceptions", "look-ups of names")
    return int(bool(watch.connections + watch.opened or any(row[kind] for row in rows.values() for kind in bad)))


if __name__ == "__main__":
    sys.exit(main())
