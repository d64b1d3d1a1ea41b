"""How many unlabelled recordings of a domain its back end needs: EER with 20, 100 and 500 of them, in every way.

    python benchmarks/adaptation.py --model=M --domain=RECORDINGS --embeddings=E.npz --trials=A.txt,B.txt

Embeds the recordings of the domain once and draws as many as asked for, again and again. "chosen" is what `sdpn adapt`
does: the shrinkage that crops of the drawn recordings choose, or the model as it is. Prints mean (lowest - highest) EER
in % over the draws and writes <output>.
"""

from collections.abc import Callable
from pathlib import Path

import measure
import numpy as np
from absl import app, flags

from sdpn_jax.errors import UserError
from sdpn_jax.eval import adaptation, metrics, normalisation, scoring
from sdpn_jax.eval.trials import read_trials, trial_rows
from sdpn_jax.speaker import domain

Scorer = Callable[..., np.ndarray]  # embeddings, rows of both sides of the trials -> scores
PLAIN = 0.01  # shrinkage of a whitening that is hardly shrunken


def drawn(found: domain.Domain, count: int, rng: np.random.Generator) -> domain.Domain:
    """So many recordings of a domain, with their crops."""
    rows = rng.choice(len(found.embeddings), count, replace=False)
    place = np.full(len(found.embeddings), -1)
    place[rows] = np.arange(count)
    crops = place[found.recordings] >= 0
    return domain.Domain(found.embeddings[rows], found.crops[crops], place[found.recordings[crops]], [])


def ways(part: domain.Domain) -> dict[str, Scorer]:
    """All ways of using the recordings: name -> the scores of trials."""

    def whitened(affine: adaptation.Affine) -> Scorer:
        return lambda embeddings, *rows: scoring.cosine_scores(adaptation.adapted(embeddings, affine), *rows)

    def as_norm(embeddings: np.ndarray, *rows: np.ndarray) -> np.ndarray:
        top = min(300, len(part.embeddings) // 2)
        statistics = normalisation.cohort_statistics(embeddings, part.embeddings, top)
        return normalisation.normalise(scoring.cosine_scores(embeddings, *rows), *rows, statistics)

    shrinkages = (*adaptation.SHRINKAGES, PLAIN)
    fits = dict(zip(shrinkages, adaptation.whitenings(part.embeddings, shrinkages), strict=True))
    fixed = {"mean": 1.0, "shrinkage 0.7": 0.7, "shrinkage 0.3": 0.3, f"plain ({PLAIN})": PLAIN}
    found = {name: whitened(fits[shrinkage]) for name, shrinkage in fixed.items()}
    try:
        number = adaptation.choose(adaptation.crop_rates(part.embeddings, part.crops, part.recordings))
    except UserError:  # too few are long enough
        number = 0
    found["chosen"] = whitened(fits[adaptation.SHRINKAGES[number - 1]]) if number else scoring.cosine_scores
    return found | {"AS-norm": as_norm}


def main(_) -> None:
    embeddings, ids = scoring.load_embeddings(flags.FLAGS.embeddings)
    found = domain.read(flags.FLAGS.model, flags.FLAGS.domain, 2.0)
    lists = {Path(path).stem: read_trials(path) for path in flags.FLAGS.trials}
    trials = {name: (trial_rows(ids, each), each.known_labels()) for name, each in lists.items()}
    results: dict[str, dict[str, list[float]]] = {name: {} for name in lists}

    def measured(title: str, score: Scorer) -> None:
        for name, (rows, labels) in trials.items():
            results[name].setdefault(title, []).append(100 * metrics.eer(score(embeddings, *rows), labels))

    measured("cosine", scoring.cosine_scores)
    for count in dict.fromkeys(min(int(each), len(found.embeddings)) for each in flags.FLAGS.recordings):
        for draw in range(flags.FLAGS.draws if count < len(found.embeddings) else 1):
            for way, score in ways(drawn(found, count, np.random.default_rng((draw, count)))).items():
                measured(f"{count} recordings, {way}", score)
    for name, rates in results.items():
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
