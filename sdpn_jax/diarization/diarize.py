"""Who spoke when: speech, windows, embeddings, clusters, turns. A recording passes twice, never whole in memory."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy.optimize import linear_sum_assignment

from sdpn_jax.data.features import LogMel
from sdpn_jax.data.front_ends import FrontEnd
from sdpn_jax.diarization import boundaries, clusters, speech, windows
from sdpn_jax.diarization.turns import Diarization, Turn
from sdpn_jax.errors import UserError
from sdpn_jax.speaker.gallery import Gallery
from sdpn_jax.vectors import unit

AT_ONCE = 256  # windows: 12 MB of log-mels
FRAMES = 100.0  # a second
Pieces = Callable[[], Iterable[Float32[np.ndarray, " n"]]]


def diarize(
    blocks: Pieces,
    embed: Callable[[list[LogMel]], Float[np.ndarray, "N D"]],
    features: FrontEnd,
    speakers: int | None = None,
    method: str = clusters.METHODS[0],
    progress: Callable[[float], None] | None = None,
) -> Diarization:
    """Finds who speaks when; speakers are "speaker1", "speaker2", ... by first appearance, one at a time.

    blocks: gives the recording's pieces, 16 kHz mono, anew at each call; embed: log-mels [T, F] of `features` to
    embeddings; speakers: how many there are, None: estimated, 8 at most; method: see `clusters`; progress: is told the
    share that is done. Raises UserError where nobody speaks.
    """
    decibels = speech.energies(blocks())
    regions = speech.regions(decibels)
    if not len(regions):
        raise UserError("there is no speech in the recording, or it does not stand out from the noise")
    planned = windows.plan(regions)
    embeddings = _embedded(windows.samples_of(planned, blocks()), len(planned.starts), embed, features, progress)
    labels = clusters.cluster(embeddings, planned, speakers, method)
    units = unit(embeddings)
    cells = boundaries.cells_of(regions)
    voices = clusters.means(units, labels)
    scores = boundaries.scores_of(cells, planned, units @ voices.T)
    path = boundaries.best_path(scores)
    names = _names(path)
    return Diarization(
        _turns(cells, path, names), {name: voices[number] for number, name in names.items()}, len(decibels) / FRAMES
    )


def named(diarization: Diarization, gallery: Gallery, threshold: float) -> Diarization:
    """Gives speakers the names of a gallery whose voices they have, each name once, from a cosine of `threshold` on.

    The others keep their numbers, but for a number that is somebody's name.
    """
    if not gallery.names or not diarization.voices:
        return diarization
    own = list(diarization.voices)
    cosines = np.stack([diarization.voices[name] for name in own]) @ unit(gallery.sums).T
    # Below the threshold nothing is gained, so that no speaker takes another one's name there.
    gained = np.maximum(cosines - threshold + 1e-9, 0)
    rows = zip(*linear_sum_assignment(-gained), strict=True)
    names = {own[row]: gallery.names[column] for row, column in rows if cosines[row, column] >= threshold}
    free = (name for number in itertools.count(1) if (name := f"speaker{number}") not in {*own, *names.values()})
    names |= {name: next(free) for name in own if name not in names and name in names.values()}
    return dataclasses.replace(
        diarization,
        turns=[dataclasses.replace(turn, speaker=names.get(turn.speaker, turn.speaker)) for turn in diarization.turns],
        voices={names.get(name, name): voice for name, voice in diarization.voices.items()},
    )


def seconds_of(turns: Iterable[Turn]) -> dict[str, float]:
    """Adds up how long each speaker speaks, in seconds, in order of appearance."""
    seconds: dict[str, float] = {}
    for turn in turns:
        seconds[turn.speaker] = seconds.get(turn.speaker, 0.0) + turn.end - turn.start
    return seconds


def _embedded(
    samples: Iterator[Float32[np.ndarray, " n"]],
    count: int,
    embed: Callable[[list[LogMel]], Float[np.ndarray, "N D"]],
    features: FrontEnd,
    progress: Callable[[float], None] | None,
) -> Float[np.ndarray, "N D"]:
    embeddings, waiting = [], []
    for number, window in enumerate(samples, 1):
        waiting.append(features(window))
        if len(waiting) == AT_ONCE or number == count:
            embeddings.append(embed(waiting))
            waiting = []
            if progress:
                progress(number / count)
    return np.concatenate(embeddings)


def _names(path: Int[np.ndarray, " C"]) -> dict[int, str]:
    """Names for the numbers of a path, by first appearance; who has no cell has none."""
    return {number: f"speaker{place}" for place, number in enumerate(dict.fromkeys(path.tolist()), 1)}


def _turns(cells: Int[np.ndarray, "C 3"], path: Int[np.ndarray, " C"], names: dict[int, str]) -> list[Turn]:
    """Joins cells of one speaker that follow each other."""
    turns: list[Turn] = []
    for (start, end, _), number in zip(cells.tolist(), path.tolist(), strict=True):
        if turns and turns[-1].speaker == names[number] and turns[-1].end == start / FRAMES:
            turns[-1] = dataclasses.replace(turns[-1], end=end / FRAMES)
        else:
            turns.append(Turn(start / FRAMES, end / FRAMES, names[number]))
    return turns
