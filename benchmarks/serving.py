"""Load on `sdpn serve`: clients that ask again as soon as they are answered, in batches and one at a time.

    python benchmarks/serving.py --input=RECORDINGS --clients=50 --seconds=300

Starts the service twice, as it is and with one decoder and batches of one recording; each time so many clients send
recordings of three seconds to /identify, over connections that they keep. Prints requests a second, times to the
answer, errors and the memory of the service's processes after a tenth of the time and at the end, and writes <output>.
"""

import asyncio
import io
import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path

import measure
import numpy as np
import soundfile
from absl import app, flags

import sdpn_jax
from sdpn_jax.data import audio

SECONDS = 3
BOUNDARY = b"----------recording"
COMMAND = [sys.executable, "-c", "from sdpn_jax.cli.program import run; run()", "serve", "--port=0"]
ONE_AT_A_TIME = ["--at_once=1", "--decoders=1"]


def form(**fields: bytes) -> bytes:
    """A multipart form of files."""
    parts = [
        b'--%b\r\nContent-Disposition: form-data; name="%b"; filename="a.wav"\r\n\r\n%b\r\n'
        % (BOUNDARY, name.encode(), data)
        for name, data in fields.items()
    ]
    return b"".join(parts) + b"--%b--\r\n" % BOUNDARY


def request(path: str, body: bytes, method: str = "POST") -> bytes:
    """A whole request of HTTP/1.1."""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY.decode()}\r\n\r\n"
    )
    return head.encode() + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of a response."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = next((line.split(":")[1] for line in head.split("\r\n") if line.startswith("content-length")), "0")
    return int(head.split()[1]), await reader.readexactly(int(length))


class Server:
    """`sdpn serve` in a process of its own."""

    def __init__(self, *arguments: str):
        self.process = subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True)
        self.told = []
        for line in self.process.stderr or ():
            self.told.append(line)
            if line.startswith("listening: "):
                break
        else:
            raise SystemExit("".join(self.told))
        threading.Thread(target=self._read, daemon=True).start()  # a full pipe would stop the service
        self.port = int(self.told[-1].split(",")[0].rpartition(":")[2])

    def _read(self) -> None:
        self.told.extend(self.process.stderr or ())

    def mib(self) -> float:
        """Memory of the service and its decoders."""
        pids = [
            self.process.pid,
            *map(int, Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()),
        ]
        pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
        return sum(pages) * 4096 / 2**20

    def stop(self) -> int:
        """Ends it; returns its exit code."""
        self.process.terminate()
        return self.process.wait(30)


def recordings_of(folder: str, most: int = 64) -> list[bytes]:
    """WAV files of SECONDS from a folder's recordings."""
    found = []
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        try:
            samples = audio.read_audio(path)
        except audio.AudioError:
            continue
        if len(samples) >= SECONDS * audio.SAMPLE_RATE:
            file = io.BytesIO()
            soundfile.write(file, samples[: SECONDS * audio.SAMPLE_RATE], audio.SAMPLE_RATE, format="WAV")
            found.append(file.getvalue())
        if len(found) == most:
            break
    return found


async def client(port: int, requests, until: float, took: list[float], errors: list[str]) -> None:
    """Asks until the time is over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while (started := time.perf_counter()) < until:
        try:
            writer.write(next(requests))
            await writer.drain()
            status, body = await answer(reader)
            if status != 200:
                errors.append(f"{status} {body[:200]!r}")
            took.append(time.perf_counter() - started)
        except (OSError, asyncio.IncompleteReadError) as error:
            errors.append(repr(error))
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()


async def load(server: Server, bodies: list[bytes], clients: int, seconds: float) -> dict[str, float]:
    """Figures of so many clients at the same time."""
    requests = itertools.cycle([request("/identify", form(recording=body)) for body in bodies])
    took: list[float] = []
    errors: list[str] = []
    memory = []

    async def watch() -> None:
        for share in (0.1, 0.9):
            await asyncio.sleep(share * seconds - 0.5)
            memory.append(server.mib())

    until = time.perf_counter() + seconds
    await asyncio.gather(watch(), *(client(server.port, requests, until, took, errors) for _ in range(clients)))
    for error in errors[:3]:
        print(error)
    return {
        "requests/s": len(took) / seconds,
        "p50 ms": 1e3 * float(np.percentile(took, 50)),
        "p99 ms": 1e3 * float(np.percentile(took, 99)),
        "errors": len(errors),
        "MiB at a tenth": memory[0],
        "MiB at the end": memory[1],
    }


def main(_) -> None:
    bodies = recordings_of(FLAGS.input)
    if not bodies:
        raise SystemExit(f"{FLAGS.input} has no recording of {SECONDS} s")
    results = {}
    for name, arguments in (("in batches", []), ("one at a time", ONE_AT_A_TIME)):
        server = Server(f"--model={FLAGS.model}", *arguments)
        asyncio.run(load(server, bodies, FLAGS.clients, 5.0))
        results[name] = asyncio.run(load(server, bodies, FLAGS.clients, FLAGS.seconds))
        server.stop()
        measure.show(f"{FLAGS.clients} clients, {FLAGS.seconds:g} s, {name}", results[name])
    measure.write(FLAGS.output, {"clients": FLAGS.clients, "seconds": FLAGS.seconds, **results})


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("input", None, "Folder of recordings.", required=True)
    flags.DEFINE_string("model", str(sdpn_jax.PRETRAINED), "Encoder; default: the one in the package.")
    flags.DEFINE_integer("clients", 50, "At the same time.")
    flags.DEFINE_float("seconds", 300.0, "Each time.")
    flags.DEFINE_string("output", "serving_benchmark.json", "Where the figures go.")
    app.run(main)
