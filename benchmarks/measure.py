"""What the benchmarks share: interleaved medians, peak memory, tables and JSON."""

import json
import multiprocessing
import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))  # configs import each other from the repository's root
FORMS = {"s": "{:,.3f} s", "ratio": "{:.2f}x", "MiB": "{:,.0f} MiB"}


def timed(work: Callable) -> float:
    """Seconds that `work()` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def interleaved(works: Mapping[str, Callable], repeats: int, settled: bool = False) -> dict[str, float]:
    """Median seconds of each, run in turn `repeats` times: what slows the machine for a while slows them all.

    `settled`: each runs once untimed before it is timed, since threads of one library that wait for work still take
    the cores from the next.
    """
    times = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            if settled:
                work()
            times[name].append(timed(work))
    return {name: statistics.median(values) for name, values in times.items()}


class Elsewhere:
    """A work in a process of its own: the libraries' waiting threads and their memory do not disturb each other."""

    def __init__(self, make: Callable[..., Callable], *arguments):
        """`make(*arguments)` is called there and returns the work."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._process.start()

    def __call__(self, *arguments):
        self._pipe.send(arguments)
        return self._pipe.recv()  # EOFError where the process has died, which has said why

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join()


def _serve(pipe, make: Callable[..., Callable], arguments) -> None:
    work = make(*arguments)
    while (given := pipe.recv()) is not None:
        pipe.send(work(*given))


def peak_mib() -> float:
    """The most memory this process ever held, MiB; on Linux of this program alone, not of what started it."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine() -> str:
    """Processor and the number of cores that this process may use."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{names[0].partition(': ')[2] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores"


def show(title: str, rows: Mapping[str, float | str | Mapping], width: int = 46) -> None:
    """Prints one table; a row's value is a number, a text, or {unit: number} with the units of FORMS or any other."""
    print(f"\n{title}")
    for name, value in rows.items():
        parts = value if isinstance(value, Mapping) else {"": value}
        cells = [v if isinstance(v, str) else FORMS.get(k, "{:.4g} " + k).format(v) for k, v in parts.items()]
        print(f"  {name:{width}s} " + "  ".join(f"{cell:>16s}" for cell in cells), flush=True)


def write(output: str | Path, results: Mapping) -> None:
    """Writes the results and the machine as JSON, and says so."""
    Path(output).write_text(json.dumps({"machine": machine(), **results}, indent=1) + "\n")
    print(f"\nwritten: {output}")
