"""Error rates of `sdpn diarize` on made conversations, beside guesses, and its speed.

    python benchmarks/diarization.py --input=VOXCELEB1/wav --model=models/mine

Conversations are put together from a folder of recordings with a folder for each speaker (`--input` may be repeated):
2 to 6 speakers take turns of one to three utterances with pauses of 0.2 to 2 s, over the noise of a quiet room, for 1.5
to 3 minutes or as long as there are utterances; in half of them a tenth of the speech is two speakers at once. Who
speaks when is known by construction: utterances are cut first where they are 30 dB below their loud frames, for the
quiet at their ends is not speech. Prints a table and writes <output>.
"""

import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import measure
import numpy as np
from absl import app, flags

import sdpn_jax
from sdpn_jax.data import audio
from sdpn_jax.data.front_ends import FRONT_ENDS
from sdpn_jax.diarization import clusters
from sdpn_jax.diarization.diarize import diarize
from sdpn_jax.diarization.rates import error_rates
from sdpn_jax.diarization.turns import Turn
from sdpn_jax.speaker import corpus

RATE = audio.SAMPLE_RATE
FRAME = RATE // 100
TRIMMED_DB = 30.0  # below an utterance's loud frames: what is quieter at its ends is no speech
LEVEL_DB, LEVELS_DB, NOISE_DB = -26.0, 3.0, (-66.0, -56.0)  # of full scale: speech, its spread over speakers, the room
COLUMNS = "der_percent miss_percent false_alarm_percent confusion_percent jer_percent".split()


@dataclass(frozen=True)
class Mixture:
    """A made conversation: samples at 16 kHz, who speaks when, and how many they are."""

    samples: np.ndarray
    turns: list[Turn]
    speakers: int


def utterances_of(folder: Path) -> dict[str, list[Path]]:
    """The recordings below each speaker's folder."""
    found = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".flac", ".wav", ".ogg", ".m4a"):
            found[path.relative_to(folder).parts[0]].append(path)
    return dict(found)


def trimmed(samples: np.ndarray) -> np.ndarray:
    """An utterance without the quiet at its ends, and with ends that do not click."""
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    decibels = 10 * np.log10(np.mean(frames**2, axis=1) + 1e-12)
    loud = np.flatnonzero(decibels > np.percentile(decibels, 95) - TRIMMED_DB)
    kept = samples[loud[0] * FRAME : (loud[-1] + 1) * FRAME].copy()
    ramp = np.sin(np.linspace(0, np.pi / 2, FRAME)) ** 2
    kept[:FRAME] *= ramp
    kept[-FRAME:] *= ramp[::-1]
    return kept


def mixture(speakers: dict[str, list[Path]], count: int, overlap: float, rng: np.random.Generator) -> Mixture:
    """A conversation of `count` speakers, in which two speak in a share of `overlap` of the speech.

    There a turn begins before the last one's end. Every utterance is heard once at most.
    """
    chosen = rng.choice(sorted(speakers), count, replace=False)
    waiting = {name: list(rng.permutation(np.asarray(speakers[name], object))) for name in chosen}
    gains = {name: 10 ** ((LEVEL_DB + rng.uniform(-LEVELS_DB, LEVELS_DB)) / 20) for name in chosen}
    wanted = rng.uniform(90, 180) * RATE
    placed, end, last, spoken, shared, previous = [], int(rng.integers(RATE)), "", 0, 0, 0
    while end < wanted and (others := [name for name in chosen if name != last and waiting[name]]):
        silent = [name for name in others if len(waiting[name]) == len(speakers[name])]
        last = str(rng.choice(silent or others))
        for number in range(rng.integers(1, 4)):
            if not waiting[last]:
                break
            samples = trimmed(audio.read_audio(waiting[last].pop()))
            samples *= gains[last] / np.sqrt(np.mean(samples**2))
            start = end + round(rng.uniform(0.2, 2.0) * RATE)
            if number == 0 and previous and shared < overlap * spoken:
                start = end - min(round(rng.uniform(0.5, 2.5) * RATE), round(0.8 * previous), len(samples))
                shared += end - start
            placed.append((start, samples, last))
            spoken += len(samples) - max(0, end - start)
            end, previous = max(end, start + len(samples)), len(samples)
    noise = rng.normal(size=end + int(rng.integers(RATE)))
    mixed = (noise * 10 ** (rng.uniform(*NOISE_DB) / 20)).astype(np.float32)
    for start, samples, _ in placed:
        mixed[start : start + len(samples)] += samples
    turns = [Turn(start / RATE, (start + len(samples)) / RATE, name) for start, samples, name in placed]
    return Mixture(mixed, turns, len({name for _, _, name in placed}))


def guesses(turns: list[Turn], count: int, rng: np.random.Generator) -> dict[str, list[Turn]]:
    """The same speech as one speaker's, and of random speakers."""
    anybody = [Turn(turn.start, turn.end, str(rng.integers(count))) for turn in turns]
    return {"one speaker": [Turn(turn.start, turn.end, "all") for turn in turns], "random speakers": anybody}


def main(_) -> None:
    folders = [utterances_of(Path(folder)) for folder in FLAGS.input]
    model = corpus.load_model(FLAGS.model)
    features = FRONT_ENDS[model.front_end]
    rows, seconds, spent = defaultdict(list), 0.0, 0.0
    for number in range(FLAGS.mixtures):
        rng = np.random.default_rng((FLAGS.seed, number))
        speakers = folders[number % len(folders)]
        overlap = (0.0, 0.1)[number // len(folders) % 2]
        made = mixture(speakers, int(rng.integers(2, min(6, len(speakers)) + 1)), overlap, rng)
        length = len(made.samples) / RATE
        known = len(made.samples), made.speakers

        def run(method: str, count: int | None, made=made):
            return diarize(lambda: [made.samples], model.embed, features, count, method).turns

        if number == 0:
            run(clusters.METHODS[0], None)  # compiles
        for method in clusters.METHODS:
            started = time.perf_counter()
            found = run(method, None)
            if method == clusters.METHODS[0]:
                spent += time.perf_counter() - started
                seconds += length
            ways = {method: found, f"{method}, number given": run(method, known[1])}
            ways |= guesses(found, known[1], rng) if method == clusters.METHODS[0] else {}
            for way, turns in ways.items():
                rates = [error_rates(made.turns, turns, length, collar) for collar in (0.0, 0.25)]
                row = {name: rates[0][name] for name in COLUMNS} | {"der_collar_percent": rates[1]["der_percent"]}
                more = len({turn.speaker for turn in turns}) - known[1]
                row |= {"right number": float(more == 0), "off by": abs(more)}
                rows[way, overlap].append(row)
    results = {
        f"{way}, overlap {100 * overlap:g} %": {name: float(np.mean([row[name] for row in of])) for name in of[0]}
        for (way, overlap), of in sorted(rows.items(), key=lambda item: item[0][1])
    }
    for name, figures in results.items():
        measure.show(name, figures)
    print(f"real-time factor {spent / seconds:.4f} ({seconds / 60:.0f} minutes of speech)")
    content = {"mixtures": FLAGS.mixtures, "seed": FLAGS.seed, "real-time factor": spent / seconds, **results}
    measure.write(FLAGS.output, content)


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_multi_string("input", None, "Folders with a folder of recordings for each speaker.", required=True)
    flags.DEFINE_string("model", str(sdpn_jax.PRETRAINED), "Encoder; default: the one in the package.")
    flags.DEFINE_integer("mixtures", 40, "Conversations.")
    flags.DEFINE_integer("seed", 0, "Of the conversations.")
    flags.DEFINE_string("output", "diarization_benchmark.json", "Where the figures go.")
    app.run(main)
