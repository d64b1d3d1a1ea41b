"""How sure an equal error rate is: bootstrap over speakers, and whether one system is better than another."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Float64, Int, Shaped

from sdpn_jax.eval.metrics import crossing, det_points

MOST_WITHOUT = 0.05  # share of draws without an EER, of one speaker alone: of three speakers it is a ninth


def speakers_of(
    enrol: Sequence[str], test: Sequence[str], labels: Shaped[np.ndarray, " N"]
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Numbers the speakers of each trial's two sides, int [N] each, from the list alone.

    Utterances that target trials join, directly or in a chain, are of one speaker; one that no target trial names is
    a speaker of its own.
    """
    names = {name: number for number, name in enumerate(sorted({*enrol, *test}))}
    a, b = (np.array([names[name] for name in side]) for side in (enrol, test))
    same = np.asarray(labels) == 1
    links = scipy.sparse.coo_array((np.ones(same.sum()), (a[same], b[same])), shape=(len(names), len(names)))
    _, speaker = scipy.sparse.csgraph.connected_components(links, directed=False)
    return speaker[a], speaker[b]


class SpeakerBootstrap:
    """A bootstrap over speakers: equal error rates when a list's speakers are drawn again with replacement.

    A trial counts as often as both its speakers were drawn: n for a target trial of a speaker drawn n times, n m for a
    nontarget trial. The draws are a function of the seed, the same for every system: differences are paired.
    """

    def __init__(
        self,
        labels: Shaped[np.ndarray, " N"],
        enrol: Int[np.ndarray, " N"],
        test: Int[np.ndarray, " N"],
        repeats: int = 1000,
        seed: int = 0,
    ):
        """labels [N] 1 or 0; enrol, test: int [N], the speaker of each side."""
        self._is_target, self._enrol, self._test = np.asarray(labels) == 1, enrol, test
        speakers, rng = int(max(enrol.max(), test.max())) + 1, np.random.default_rng(seed)
        even = np.full(speakers, 1 / speakers)  # in 16 bits: there may be a million speakers, each drawn a few times
        self._draws = np.stack([rng.multinomial(speakers, even).astype(np.int16) for _ in range(repeats)])

    def rates(self, scores: Float[np.ndarray, " N"]) -> Float64[np.ndarray, " repeats"]:
        """Computes the EER of each draw as `metrics.eer` does; NaN if no target or no nontarget trial is left."""
        det_points(scores, self._is_target)  # for its errors
        order = np.argsort(scores, kind="stable")
        last = np.append(np.diff(np.asarray(scores, np.float64)[order]) > 0, True)  # of the trials of equal score
        is_target, enrol, test = self._is_target[order], self._enrol[order], self._test[order]
        rates = np.empty(len(self._draws))
        for i, drawn in enumerate(self._draws):
            drawn = drawn.astype(int)
            weight = np.where(is_target, drawn[enrol], drawn[enrol] * drawn[test])
            rates[i] = _weighted_eer(weight, is_target, last)
        return rates


def interval(rates: Float[np.ndarray, " repeats"], confidence: float = 0.95) -> tuple[float, float]:
    """Returns the percentiles between which `confidence` of the draws' rates lie; NaN for too few speakers."""
    if np.isnan(rates).mean() > MOST_WITHOUT:
        return float("nan"), float("nan")
    low, high = np.nanquantile(rates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def p_value(rates_a: Float[np.ndarray, " repeats"], rates_b: Float[np.ndarray, " repeats"]) -> float:
    """Computes the two-sided p-value of "A and B are equally good" from the rates of both on the same draws.

    Twice the share of draws in which the sign of the difference is the rarer one, draws with no difference counting
    half; at least 1 / repeats, as no finite number of draws proves more. NaN for too few speakers.
    """
    difference = rates_a - rates_b
    if np.isnan(difference).mean() > MOST_WITHOUT:
        return float("nan")
    difference = difference[~np.isnan(difference)]
    worse = (np.sum(difference > 0) + np.sum(difference == 0) / 2) / len(difference)
    return float(min(1.0, max(2 * min(worse, 1 - worse), 1 / len(difference))))


def _weighted_eer(
    weight: Int[np.ndarray, " N"], is_target: Bool[np.ndarray, " N"], last: Bool[np.ndarray, " N"]
) -> float:
    """EER of trials sorted by score with weights; `last` marks the last one of each distinct score."""
    targets, nontargets = np.where(is_target, weight, 0), np.where(is_target, 0, weight)
    total = targets.sum(), nontargets.sum()
    if not all(total):
        return np.nan
    miss = np.append(0, np.cumsum(targets)[last] / total[0])
    false_alarm = np.append(1, 1 - np.cumsum(nontargets)[last] / total[1])
    return crossing(miss, false_alarm)[0]
