"""Where somebody speaks: by energy, against a noise floor and a level of speech that follow the recording.

Beside the best of the four modes of WebRTC's detector, smoothed in the same way, it missed and invented together, in %
of the speech of made conversations (LibriSpeech; speechocean762): 7 and 7 against 7.5 and 8 in a quiet room, 11 and 20
against 13 and 20 with noise 20 dB below the voices, 13 and 29 against 15 and 25.5 with 10 dB. It needs no library.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

FRAME = 160  # samples at 16 kHz: 10 ms
QUIETEST_DB = -80.0  # of full scale: what is below, digital silence too, is taken for this
SURROUNDINGS, STRIDE = 3000, 500  # frames (30 s, 5 s): in which floor and level are looked for, and how often
FLOOR_PERCENT, LEVEL_PERCENT = 10, 95
LEAST_RANGE_DB = 10.0  # from floor to level: with less there is nothing but noise
SHARE_OF_RANGE, LEAST_ABOVE_DB = 0.25, 5.0  # above the floor: where speech begins
LONGEST_PAUSE, SHORTEST_SPEECH, HANGOVER = 50, 15, 5  # frames


def energies(blocks: Iterable[Float[np.ndarray, " n"]]) -> Float64[np.ndarray, " T"]:
    """Computes the power in dB of full scale of every whole frame of 10 ms of a recording in pieces of any length."""
    powers, rest = [np.zeros(0)], np.zeros(0, np.float32)
    for block in blocks:
        samples = np.concatenate([rest, block])
        whole = len(samples) // FRAME * FRAME
        frames, rest = samples[:whole].reshape(-1, FRAME).astype(np.float64), samples[whole:]
        powers.append(frames.var(axis=1))
    return 10 * np.log10(np.maximum(np.concatenate(powers), 10 ** (QUIETEST_DB / 10)))


def regions(decibels: Float[np.ndarray, " T"]) -> Int[np.ndarray, "R 2"]:
    """Finds where somebody speaks: first frame and the one behind the last of each region, none where there is noise.

    Pauses up to 0.5 s belong to the speech around them; what is loud for less than 0.15 s is no speech.
    """
    found = stretches(_loud(decibels))
    if len(found):
        parted = found[1:, 0] - found[:-1, 1] > LONGEST_PAUSE
        found = np.column_stack([found[np.append(True, parted), 0], found[np.append(parted, True), 1]])
    found = found[found[:, 1] - found[:, 0] >= SHORTEST_SPEECH]
    return np.clip(found + [-HANGOVER, HANGOVER], 0, len(decibels))


def stretches(flags: Bool[np.ndarray, " T"]) -> Int[np.ndarray, "R 2"]:
    """Finds the runs of True: the first place of each and the one behind its last."""
    return np.flatnonzero(np.diff(flags, prepend=False, append=False)).reshape(-1, 2)


def _loud(decibels: Float[np.ndarray, " T"]) -> Bool[np.ndarray, " T"]:
    if not len(decibels):
        return np.zeros(0, bool)
    middles = np.arange(0, len(decibels), STRIDE)
    around = (decibels[max(0, middle - SURROUNDINGS // 2) : middle + SURROUNDINGS // 2] for middle in middles)
    floors, levels = np.array([np.percentile(x, [FLOOR_PERCENT, LEVEL_PERCENT]) for x in around]).T
    places = np.arange(len(decibels))
    floor, level = np.interp(places, middles, floors), np.interp(places, middles, levels)
    above = np.maximum(LEAST_ABOVE_DB, SHARE_OF_RANGE * (level - floor))
    return (decibels > floor + above) & (level - floor > LEAST_RANGE_DB)
