"""How many unlabelled recordings of a domain its back end needs: EER with 20, 100 and 500 of them, in every way.

    python benchmarks/adaptation.py --model=M --domain=RECORDINGS --embeddings=E.npz --trials=A.txt,B.txt

Embeds the recordings of the domain once and draws as many as asked for, again and again. "chosen" is what `sdpn adapt`
does: the shrinkage that crops of the drawn recordings choose. Prints mean (lowest - highest) EER in % over the draws
and writes <output>.
"""

from collections.abc import Callable
from pathlib import Path

import measure
import numpy as np
from absl import app, flags

from sdpn_jax.eval import adaptation, metrics, normalisation, scoring
from sdpn_jax.eval.trials import read_trials, trial_rows
from sdpn_jax.speaker import domain

Scorer = Callable[[np.ndarray], np.ndarray]  # embeddings of the trials' utterances -> scores


def drawn(found: domain.Domain, count: int, rng: np.random.Generator) -> domain.Domain:
    """So many recordings of a domain, with their crops."""
    rows = rng.choice(len(found.embeddings), count, replace=False)
    place = np.full(len(found.embeddings), -1)
    place[rows] = np.arange(count)
    crops = place[found.recordings] >= 0
    return domain.Domain(found.embeddings[rows], found.crops[crops], place[found.recordings[crops]], [])


def ways(part: domain.Domain, enrol: np.ndarray, test: np.ndarray) -> dict[str, Scorer]:
    """All ways of using the recordings: names and scorers of the trials between rows `enrol` and `test`."""

    def cosine(embeddings: np.ndarray) -> np.ndarray:
        return scoring.cosine_scores(embeddings, enrol, test)

    def whitened(shrinkage: float) -> Scorer:
        affine = adaptation.whitening(part.embeddings, shrinkage)
        return lambda embeddings: cosine(adaptation.adapted(embeddings, affine))

    def as_norm(embeddings: np.ndarray) -> np.ndarray:
        statistics = normalisation.cohort_statistics(embeddings, part.embeddings, min(300, len(part.embeddings) // 2))
        return normalisation.normalise(cosine(embeddings), enrol, test, statistics)

    number = adaptation.choose(adaptation.crop_rates(part.embeddings, part.crops, part.recordings))
    return {
        "mean": whitened(1.0),
        "shrinkage 0.7": whitened(0.7),
        "shrinkage 0.3": whitened(0.3),
        "plain (0.01)": whitened(0.01),
        "chosen": whitened(adaptation.SHRINKAGES[number - 1]) if number else cosine,
        "AS-norm": as_norm,
    }


def main(_) -> None:
    embeddings, ids = scoring.load_embeddings(flags.FLAGS.embeddings)
    found = domain.read(flags.FLAGS.model, flags.FLAGS.domain, 2.0)
    lists = {Path(path).stem: read_trials(path) for path in flags.FLAGS.trials}
    results: dict[str, dict[str, list[float]]] = {}
    for name, trials in lists.items():
        rows, labels = trial_rows(ids, trials), trials.known_labels()
        rates = results[name] = {"cosine": [100 * metrics.eer(scoring.cosine_scores(embeddings, *rows), labels)]}
        for count in dict.fromkeys(min(int(each), len(found.embeddings)) for each in flags.FLAGS.recordings):
            for draw in range(flags.FLAGS.draws if count < len(found.embeddings) else 1):
                part = drawn(found, count, np.random.default_rng((draw, count)))
                for way, score in ways(part, *rows).items():
                    rate = 100 * metrics.eer(score(embeddings), labels)
                    rates.setdefault(f"{count} recordings, {way}", []).append(rate)
        spreads = {row: f"{np.mean(each):.1f} ({min(each):.1f}-{max(each):.1f})" for row, each in rates.items()}
        measure.show(f"{name}: EER, %", spreads)
    measure.write(flags.FLAGS.output, results)


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "Model folder, workdir or file.", required=True)
    flags.DEFINE_string("domain", None, "Unlabelled recordings of the domain: folder or list.", required=True)
    flags.DEFINE_string("embeddings", None, "Of the trials' utterances, by the same model.", required=True)
    flags.DEFINE_list("trials", None, "Trial lists.", required=True)
    flags.DEFINE_list("recordings", ["20", "100", "500"], "How many recordings of the domain.")
    flags.DEFINE_integer("draws", 10, "How often so many are drawn.")
    flags.DEFINE_string("output", "adaptation_benchmark.json", "Where the figures go.")
    app.run(main)
