"""What strangers may do to `sdpn serve`: damaged recordings, slow and huge uploads, tricks in names and paths.

    python benchmarks/serving_faults.py --uploads=20000

Starts the service, sends it damaged recordings of thirty kinds from several clients, then holds connections open with
requests that never end, uploads a gigabyte, and asks for files and speakers by names that mean something to shells,
browsers and file systems. Right is an answer or a refusal in the form of all errors; the service must answer an honest
request at the end. Prints a table and writes <output>.
"""

import asyncio
import collections
import json
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path

import measure
import numpy as np
from absl import app, flags

sys.path[:0] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parent)]
import audio_files  # noqa: E402
import fuzz  # noqa: E402
import serving  # noqa: E402

RATES = {"wav_gsm": 8000, "ac3": 48000}  # Hz, of kinds that do not know 16,000
CLIENTS, LORISES, GIGABYTE = 8, 300, 1 << 30
PATHS = [
    "/../../etc/passwd",
    "/..%2f..%2fetc/passwd",
    "/page/../app.py",
    "/page.js/../../app.py",
    "//etc/passwd",
    "/%00",
]
NAMES = [
    "../../x",
    "<script>alert(1)</script>",
    "'; DROP TABLE speakers; --",
    "a\r\nSet-Cookie: b",
    "\u202etxt",
    "%2e%2e",
]


def recordings() -> list[bytes]:
    """Small whole recordings of all kinds."""
    rng = np.random.default_rng(0)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in audio_files.KINDS:
            path = Path(folder) / kind
            audio_files.written(path, 0.1 * rng.normal(size=8000), RATES.get(kind, 16000), kind)
            found.append(path.read_bytes())
    return found


async def ask(port: int, data: bytes) -> tuple[int, bytes]:
    """One request on a connection of its own; status 0 where it is ended without an answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        await writer.drain()
        return await asyncio.wait_for(serving.answer(reader), 120)
    except (OSError, asyncio.IncompleteReadError):
        return 0, b""
    finally:
        writer.close()


def in_form(status: int, body: bytes) -> bool:
    """Whether an answer is a result, or a refusal in the one form."""
    try:
        content = json.loads(body)
    except ValueError:
        return False
    return status == 200 or {*content.get("error", ())} == {"code", "message"}


async def damaged_uploads(port: int, count: int) -> collections.Counter:
    """Statuses of damaged recordings, and how many answers had another form."""
    whole = recordings()
    tokens = [b"http://127.0.0.1:9/", b"/etc/passwd", b"\xff\xff\xff\xff"]
    seen: collections.Counter = collections.Counter()
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            rng = np.random.default_rng(number)
            body = serving.form(recording=fuzz.damaged(whole[number % len(whole)], whole, tokens, rng))
            if number % 10 == 0:  # the form is damaged, too
                body = fuzz.damaged(body, whole, tokens, rng)
            status, answer = await ask(port, serving.request("/embed", body))
            seen[f"status {status}"] += 1
            seen["of another form"] += not in_form(status, answer)

    await asyncio.gather(*(work() for _ in range(CLIENTS)))
    return seen


async def slow_clients(port: int) -> dict[str, float]:
    """Connections that say a byte a second: how long honest requests take meanwhile, and how many are still there."""
    kind = b"Content-Type: multipart/form-data; boundary=x\r\n"
    head = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n%bX-A: " % kind
    begun = head + b'a\r\n\r\n--x\r\nContent-Disposition: form-data; name="recording"; filename="a"\r\n\r\n'
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(LORISES)]
    started, slowest = time.monotonic(), 0.0
    while time.monotonic() - started < 25:
        for number, (reader, writer) in enumerate(connections):
            if reader.at_eof() or reader.exception():
                continue
            at = int(time.monotonic() - started)
            if number % 2:
                writer.write(head[at : at + 1])
            else:
                writer.write(begun if at == 0 else b"x")
        asked = time.monotonic()
        status, _ = await ask(port, serving.request("/embed", serving.form(recording=recordings()[0])))
        assert status == 200, status
        slowest = max(slowest, time.monotonic() - asked)
        await asyncio.sleep(1)
    open_still = sum(not reader.at_eof() and reader.exception() is None for reader, _ in connections)
    for _, writer in connections:
        writer.close()
    return {"honest request, slowest s": slowest, "of so many slow ones": LORISES, "open after 25 s": open_still}


async def huge_upload(port: int, stated: bool) -> int:
    """Status of a gigabyte, whose length is stated or not; 0 where the connection was ended at once."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    length = f"Content-Length: {GIGABYTE}" if stated else "Transfer-Encoding: chunked"
    head = (
        f"POST /embed HTTP/1.1\r\nHost: localhost\r\n{length}\r\nContent-Type: multipart/form-data; boundary=x\r\n\r\n"
    )
    writer.write(head.encode())
    piece = bytes(1 << 20) if stated else b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    try:
        for _ in range(GIGABYTE >> 20):
            writer.write(piece)
            await writer.drain()
            if reader.at_eof() or len(reader._buffer):  # type: ignore[attr-defined]
                break
        return (await serving.answer(reader))[0]
    except (OSError, asyncio.IncompleteReadError):
        return 0
    finally:
        writer.close()


async def tricks(port: int) -> collections.Counter:
    """Statuses of paths and names that mean something elsewhere."""
    seen: collections.Counter = collections.Counter()
    for path in PATHS:
        status, body = await ask(port, serving.request(path, b"", "GET"))
        assert b"root:" not in body, path
        seen[f"paths: {status}"] += 1
    recording = recordings()[0]
    for name in NAMES:
        part = b'--%b\r\nContent-Disposition: form-data; name="name"\r\n\r\n%b\r\n' % (serving.BOUNDARY, name.encode())
        status, body = await ask(port, serving.request("/enrol", part + serving.form(recording=recording)))
        seen[f"names enrolled: {status}"] += 1
        if status == 200:
            assert json.loads(body)["name"] == name
            path = f"/speakers/{urllib.parse.quote(name, safe='')}"
            seen[f"names deleted: {(await ask(port, serving.request(path, b'', 'DELETE')))[0]}"] += 1
    return seen


async def all_of_it(server: serving.Server, count: int) -> dict:
    started = time.monotonic()
    uploads = await damaged_uploads(server.port, count)
    figures = {"damaged uploads": {**uploads, "minutes": (time.monotonic() - started) / 60}}
    figures["slow clients"] = await slow_clients(server.port)
    statuses = {f"{what} length": await huge_upload(server.port, what == "stated") for what in ("stated", "unknown")}
    figures["a gigabyte"] = {name: float(status) for name, status in statuses.items()}
    figures["tricks"] = dict(await tricks(server.port))
    status, _ = await ask(server.port, serving.request("/embed", serving.form(recording=recordings()[0])))
    figures["in the end"] = {"status of an honest request": status, "MiB": server.mib()}
    return figures


def main(_) -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = serving.Server(f"--gallery={folder}/voices.db", "--warm_seconds=2")
        try:
            figures = asyncio.run(all_of_it(server, FLAGS.uploads))
        finally:
            code = server.stop()
        figures["in the end"]["exit code"] = code
    for name, rows in figures.items():
        measure.show(name, rows)
    measure.write(FLAGS.output, figures)


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_integer("uploads", 20_000, "Damaged recordings.")
    flags.DEFINE_string("output", "serving_faults.json", "Where the figures go.")
    app.run(main)
