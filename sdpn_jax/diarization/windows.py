"""Windows of 1.5 s inside of speech: where they lie, and their samples from a recording that comes in pieces."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from sdpn_jax.diarization.speech import FRAME
from sdpn_jax.errors import UserError

LENGTH, STEP = 150, 75  # frames of 10 ms


@dataclass(frozen=True)
class Windows:
    """Of each of N windows the first frame and the one behind its last, in order, and the region that it lies in."""

    starts: Int[np.ndarray, " N"]
    ends: Int[np.ndarray, " N"]
    regions: Int[np.ndarray, " N"]


def plan(regions: Int[np.ndarray, "R 2"]) -> Windows:
    """Lays windows of LENGTH frames every STEP into each region, the last one at its end; a short region is one."""
    starts, ends, numbers = [], [], []
    for number, (first, end) in enumerate(regions.tolist()):
        of_region = [*range(first, end - LENGTH, STEP), max(first, end - LENGTH)]
        starts += of_region
        ends += [min(end, start + LENGTH) for start in of_region]
        numbers += [number] * len(of_region)
    return Windows(np.asarray(starts, int), np.asarray(ends, int), np.asarray(numbers, int))


def samples_of(windows: Windows, blocks: Iterable[Float[np.ndarray, " n"]]) -> Iterator[Float[np.ndarray, " n"]]:
    """Yields the samples of each window; of the recording's pieces no more is held than the windows still need.

    Raises UserError when the recording ends before the last window does.
    """
    pieces, held, first = iter(blocks), np.zeros(0, np.float32), 0
    for start, end in zip(windows.starts.tolist(), windows.ends.tolist(), strict=True):
        while first + len(held) < end * FRAME:
            piece = next(pieces, None)
            if piece is None:
                raise UserError("the recording has become shorter while it was read: run this again")
            passed = min(max(0, start * FRAME - first), len(held))
            held, first = np.concatenate([held[passed:], piece]), first + passed
        yield held[start * FRAME - first : end * FRAME - first]
