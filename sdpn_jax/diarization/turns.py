"""Who spoke when: what diarization finds."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Turn:
    """What one speaker says without a stop: from `start` to `end` in seconds."""

    start: float
    end: float
    speaker: str


@dataclass(frozen=True)
class Diarization:
    """The turns of a recording, in order, the mean embedding [D], of length 1, of each speaker, and its length in s."""

    turns: list[Turn]
    voices: dict[str, Float[np.ndarray, " D"]]
    seconds: float
