"""From clustered windows to turns: the likeliest sequence of speakers on a finer grid (resegmentation)."""

import numpy as np
from jaxtyping import Float, Float64, Int

from sdpn_jax.diarization.windows import LENGTH, Windows

GRID = 25  # frames of 10 ms
CHANGE = 0.5  # what a change of the speaker costs, in cosines of cells


def cells_of(regions: Int[np.ndarray, "R 2"]) -> Int[np.ndarray, "C 3"]:
    """Divides regions into cells of GRID frames, the last of each up to twice as long: [C] of first, end, region."""
    cells = []
    for number, (first, end) in enumerate(regions.tolist()):
        starts = [*range(first, max(first + 1, end - GRID + 1), GRID)]
        cells += [(start, stop, number) for start, stop in zip(starts, [*starts[1:], end], strict=True)]
    return np.asarray(cells, int).reshape(-1, 3)


def scores_of(
    cells: Int[np.ndarray, "C 3"], windows: Windows, cosines: Float[np.ndarray, "N K"]
) -> Float64[np.ndarray, "C K"]:
    """Computes how alike each cell is to each speaker: mean cosine of its region's windows, near ones counting most.

    A window counts in proportion to LENGTH less its distance, from middle to middle, and not at all beyond.
    """
    middles = (windows.starts + windows.ends) / 2
    bounds = np.searchsorted(windows.regions, np.arange(len(windows.regions) + 1))
    scores = np.zeros((len(cells), cosines.shape[1]))
    for row, (start, end, region) in enumerate(cells.tolist()):
        of_region = slice(bounds[region], bounds[region + 1])
        weights = np.maximum(LENGTH - np.abs(middles[of_region] - (start + end) / 2), 1e-3)
        scores[row] = weights @ cosines[of_region] / weights.sum()
    return scores


def best_path(scores: Float[np.ndarray, "C K"], change: float = CHANGE) -> Int[np.ndarray, " C"]:
    """Finds the speakers of cells with the highest sum of scores less the cost of changes (Viterbi, 1967)."""
    total, origins = scores[0], np.zeros(scores.shape, int)
    for row in range(1, len(scores)):
        best = int(np.argmax(total))
        changed = total[best] - change
        origins[row] = np.where(total >= changed, np.arange(len(total)), best)
        total = np.maximum(total, changed) + scores[row]
    path = np.zeros(len(scores), int)
    path[-1] = int(np.argmax(total))
    for row in range(len(scores) - 1, 0, -1):
        path[row - 1] = origins[row, path[row]]
    return path
