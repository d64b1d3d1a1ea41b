"""Log-mels of several requests embedded together, in few shapes, all of them compiled before the first request."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float32

from sdpn_jax.data.features import LogMel
from sdpn_jax.speaker.embedder import Embedder, Shapes

SHORTEST = 128  # frames that all shorter recordings are padded to
GATHERED_S = 0.003  # others may still come
Embed = Callable[[Sequence[LogMel]], Float32[np.ndarray, "N D"]]


def served_length(frames: int) -> int:
    """Rounds frames up to two lengths an octave: 128, 192, 256, 384, 512, 768, ..."""
    power = max(SHORTEST, 1 << (frames - 1).bit_length())
    return 3 * power // 4 if power > SHORTEST and frames <= 3 * power // 4 else power


def served_rows(rows: int) -> int:
    """Rounds the rows of an incomplete batch up to 1, 4, 16, 64, ..."""
    return 1 << (rows - 1).bit_length() + (rows - 1).bit_length() % 2


SHAPES = Shapes(served_length, served_rows)


def warm_up(embed: Embed, embedder: Embedder, seconds: float, bins: int, told: Callable[[str], None]) -> None:
    """Compiles what recordings of up to `seconds` need, alone and together."""
    lengths = sorted({served_length(frames) for frames in range(1, round(100 * seconds) + 1)})
    started = time.monotonic()
    for number, frames in enumerate(lengths, 1):
        for rows in sorted({1, 4, embedder.rows_at_once(frames)}):
            embed([np.zeros((frames, bins), np.float32)] * rows)
        told(f"ready for {frames / 100:.1f} s ({number} of {len(lengths)}, {time.monotonic() - started:.0f} s)")


class Batches:
    """Gathers what is to be embedded, up to `most` recordings at once; one batch is computed at a time."""

    def __init__(self, embed: Embed, most: int, seen: Callable[[int, float], None]):
        """seen: is told how many recordings each batch had, and how many seconds it took."""
        self._embed, self._most, self._seen = embed, most, seen
        self._waiting: asyncio.Queue[tuple[LogMel, asyncio.Future]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "embedding")
        self._task: asyncio.Task | None = None

    def start(self) -> None:
        """Begins to work, in the running event loop."""
        self._task = asyncio.create_task(self._run())

    def close(self) -> None:
        """Stops; what waits is not embedded."""
        if self._task:
            self._task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def embed(self, log_mels: Sequence[LogMel]) -> Float32[np.ndarray, "N D"]:
        """Embeds log-mels [T, F], together with those of others."""
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in log_mels]
        for pair in zip(log_mels, futures, strict=True):
            self._waiting.put_nowait(pair)
        return np.stack(await asyncio.gather(*futures))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            if self._most > 1:
                await asyncio.sleep(GATHERED_S)
            while len(batch) < self._most and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            batch = [(log_mel, future) for log_mel, future in batch if not future.done()]  # whose client is still there
            if not batch:
                continue
            started = time.monotonic()
            try:
                embeddings = await loop.run_in_executor(self._thread, self._embed, [log_mel for log_mel, _ in batch])
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            self._seen(len(batch), time.monotonic() - started)
            for (_, future), embedding in zip(batch, embeddings, strict=True):
                if not future.done():
                    future.set_result(embedding)
