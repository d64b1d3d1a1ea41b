"""From the cosine of two embeddings to a verdict and a probability."""

import math
from dataclasses import dataclass

MOST = 700.0  # log-odds, beyond which e to their power is no float


@dataclass(frozen=True)
class Calibration:
    """Log-likelihood ratio = scale * cosine + offset; prior: the share of comparisons that are of one speaker."""

    scale: float
    offset: float
    prior: float = 0.5

    def probability(self, score: float) -> float:
        """Computes how likely two recordings of this cosine are of one speaker, in [0, 1], by Bayes' rule."""
        odds = self.scale * score + self.offset + math.log(self.prior / (1 - self.prior))
        return 1 / (1 + math.exp(-max(-MOST, min(MOST, odds))))

    def threshold(self) -> float:
        """Computes the cosine at which both are equally likely, not outside of [-1, 1]."""
        return max(-1.0, min(1.0, (math.log((1 - self.prior) / self.prior) - self.offset) / self.scale))


@dataclass(frozen=True)
class Decision:
    """The cosine from which speakers count as the same, and the calibration; None where a model brings none."""

    threshold: float | None = None
    calibration: Calibration | None = None
