"""Scoring at VoxCeleb1-E's size: 580,000 trials, 145,000 utterances of 512 dimensions, a cohort of 20,000.

    python benchmarks/scoring.py

Random embeddings of 1,251 speakers. Each stage stands beside the plain way of doing the same, on as much of the work
as its row says (the plain way's time is scaled to all of it). Prints a table and writes <output>.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import measure
import numpy as np
from absl import app, flags
from sklearn.metrics import roc_curve

from sdpn_jax.eval import intervals, normalisation, score, scoring
from sdpn_jax.eval.trials import Trials, trial_rows

SPEAKERS, DIMENSION, TOP = 1_251, 512, 300


def make_embeddings(utterances: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [utterances, DIMENSION] around SPEAKERS centres, and the speaker of each."""
    speaker = np.sort(rng.integers(SPEAKERS, size=utterances))
    centres = rng.standard_normal((SPEAKERS, DIMENSION), np.float32)
    return centres[speaker] + 2 * rng.standard_normal((utterances, DIMENSION), np.float32), speaker


def make_trials(ids: list[str], speaker: np.ndarray, count: int, rng: np.random.Generator) -> Trials:
    """As many target as nontarget trials, drawn at random."""
    enrol = rng.integers(len(ids), size=count)
    first, last = np.searchsorted(speaker, speaker[enrol]), np.searchsorted(speaker, speaker[enrol], "right")
    same = first + rng.integers(last - first)
    test = np.where(rng.random(count) < 0.5, same, rng.integers(len(ids), size=count))
    labels = (speaker[enrol] == speaker[test]).astype(np.int8)
    return Trials(labels, [ids[i] for i in enrol], [ids[i] for i in test])


def plain_cosine(embeddings: np.ndarray, enrol: np.ndarray, test: np.ndarray) -> np.ndarray:
    """One trial after the other."""
    scores = []
    for a, b in zip(embeddings[enrol], embeddings[test], strict=True):
        scores.append(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))
    return np.array(scores)


def plain_eer(scores: np.ndarray, labels: np.ndarray) -> float:
    """From scikit-learn's ROC, at its point nearest to equality."""
    false_alarm, hit, _ = roc_curve(labels, scores)
    return false_alarm[np.argmin(np.abs(false_alarm - (1 - hit)))]


def plain_statistics(embeddings: np.ndarray, cohort: np.ndarray) -> np.ndarray:
    """AS-norm's mean and deviation one utterance after the other, the cohort's scores sorted."""
    cohort = cohort / np.linalg.norm(cohort, axis=1, keepdims=True)
    rows = []
    for embedding in embeddings:
        nearest = np.sort(cohort @ (embedding / np.linalg.norm(embedding)))[-TOP:]
        rows.append((nearest.mean(), nearest.std()))
    return np.array(rows)


def main(_) -> None:
    rng = np.random.default_rng(0)
    utterances, count, size = (max(1_000, round(FLAGS.scale * n)) for n in (145_000, 580_000, 20_000))
    embeddings, speaker = make_embeddings(utterances, rng)
    cohort = rng.standard_normal((size, DIMENSION), np.float32)
    ids = [f"id{10_000 + s}/video{i % 20:02d}/{i:06d}.wav" for i, s in enumerate(speaker)]
    trials = make_trials(ids, speaker, count, rng)
    enrol, test = trial_rows(ids, trials)
    scores = scoring.score_trials(embeddings, ids, trials)
    few = 1_000
    np.testing.assert_allclose(plain_cosine(embeddings, enrol[:few], test[:few]), scores[:few], atol=1e-5)

    def compare(name, ours: Callable, plain: Callable | None = None, share: float = 1.0, repeats: int = 3) -> dict:
        times = measure.interleaved({"ours": ours} | ({"plain": plain} if plain else {}), repeats)
        row = {"s": times["ours"]}
        if plain:
            row |= {"s, plain": times["plain"] / share, "ratio": times["plain"] / share / times["ours"]}
        measure.show(name, {"": row}, 0)
        return row | {"peak MiB so far": measure.peak_mib()}

    results = {
        "cosine and metrics": compare(
            f"{count:,} trials: ids, cosines, EER, minDCF; plain: a loop, scikit-learn's ROC",
            lambda: scoring.evaluate(embeddings, ids, trials),
            lambda: (plain_cosine(embeddings, enrol, test), plain_eer(scores, trials.labels)),
        )
    }
    share = 500 / utterances
    results["AS-norm"] = compare(
        f"AS-norm, {utterances:,} utterances, top {TOP} of {size:,}; plain: a loop over 500 of them, sorting",
        lambda: normalisation.cohort_statistics(embeddings, cohort, TOP),
        lambda: plain_statistics(embeddings[:500], cohort),
        share,
        1,
    )
    speakers = intervals.speakers_of(trials.enrol, trials.test, trials.labels)
    results["interval"] = compare(
        "the EER's interval, 1,000 draws of the speakers",
        lambda: intervals.SpeakerBootstrap(trials.labels, *speakers, 1000).rates(scores),
        repeats=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        np.savez(folder / "e.npz", embeddings=embeddings, ids=np.array(ids))
        np.savez(folder / "c.npz", embeddings=cohort, ids=np.arange(size).astype(str))
        lines = [f"{a} {b} {c}\n" for a, b, c in zip(trials.labels, trials.enrol, trials.test, strict=True)]
        (folder / "trials.txt").write_text("".join(lines))
        results["the whole command, four ways, intervals, plots"] = compare(
            "the whole command: reading, four ways, intervals, plots, files",
            lambda: score.score(folder / "e.npz", folder / "trials.txt", folder / "out", folder / "c.npz", TOP),
            repeats=1,
        )
    measure.show("memory", {"peak of the process": {"MiB": measure.peak_mib()}})
    measure.write(FLAGS.output, results)


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_float("scale", 1.0, "Share of VoxCeleb1-E's size.")
    flags.DEFINE_string("output", "scoring_benchmark.json", "Where the figures go.")
    app.run(main)
