"""Scores a trial list with exported embeddings: error rates with intervals, scores and plots.

    python -m sdpn_jax.eval.score --embeddings=runs/vox2/voxceleb1.npz --trials=veri_test2.txt --output=runs/vox2/vox1_o

writes into the output folder scores.txt (`enrol test score`, in the list's order), results.json, report.md (a table),
det.png and histogram.png. With --cohort=EMBEDDINGS of other, unlabelled speech the cosines are also centred (the
cohort's mean subtracted from the embeddings) and normalised (S-norm and AS-norm), into scores_centred.txt,
scores_s_norm.txt and scores_as_norm.txt, and all ways are compared.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from sdpn_jax import errors
from sdpn_jax.eval import calibration, intervals, normalisation, plots, scoring

FILES = ("scores.txt", "results.json", "report.md", "det.png", "histogram.png")


def score(
    embeddings_path: str | Path,
    trials_path: str | Path,
    output: str | Path,
    cohort_path: str | Path | None = None,
    top: int = 300,
    draws: int = 1000,
) -> dict:
    """Scores the trials in every way and writes FILES into the folder `output`, which is made where needed.

    `top`: of the cohort's nearest for as_norm (at most half of the cohort). `draws`: of the bootstrap over speakers.
    Returns what results.json holds: embeddings, trials_file, cohort, dimension, the keys of `scoring.summarize`,
    min_cllr and eer_interval_percent (95 %) for cosine; and the same for all `ways`, with the p_value of being as good
    as cosine. Raises UserError for inputs that cannot be read or do not fit together, and for an output folder that
    cannot be made.
    """
    trials = scoring.read_trials(trials_path)
    embeddings, ids = scoring.load_embeddings(embeddings_path)
    cohort = scoring.load_embeddings(cohort_path)[0] if cohort_path else None
    ways = score_in_every_way(embeddings, ids, trials, cohort, top)
    assessed = assess(ways, trials, draws)
    results = assessed["cosine"] | {
        "embeddings": str(embeddings_path),
        "trials_file": str(trials_path),
        "cohort": cohort_path and str(cohort_path),
        "dimension": embeddings.shape[1],
        "ways": assessed,
    }

    scores_txt, results_json, report_md, det_png, histogram_png = (Path(output) / name for name in FILES)
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
        for way, scores in ways.items():
            path = scores_txt if way == "cosine" else scores_txt.with_stem(f"scores_{way}")
            _write_scores(path, trials, scores)
        results_json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        report_md.write_text(table(results["ways"]) + "\n", encoding="utf-8")
        plots.plot_det({way: (scores, trials.labels) for way, scores in ways.items()}, det_png)
        plots.plot_score_histogram(ways["cosine"], trials.labels, histogram_png)
    except OSError as error:
        raise errors.UserError(f"cannot write into --output={output} ({error.strerror})") from None
    return results


def score_in_every_way(embeddings, ids, trials: scoring.Trials, cohort=None, top: int = 300) -> dict[str, np.ndarray]:
    """{way: scores [N]} of the trials: cosine and, with a cohort [C, D], centred, s_norm and as_norm."""
    ways = {"cosine": scoring.score_trials(embeddings, ids, trials)}
    if cohort is None:
        return ways
    if cohort.shape[1] != embeddings.shape[1]:
        raise errors.UserError(
            f"the cohort's embeddings have {cohort.shape[1]} dimensions, those of the trials {embeddings.shape[1]}: "
            "export both with the same model"
        )
    enrol, test = scoring.trial_rows(ids, trials)
    used, rows = np.unique([enrol, test], return_inverse=True)
    enrol, test = rows.reshape(2, -1)
    used = embeddings[used]
    ways["centred"] = scoring.cosine_scores(normalisation.subtract_mean(used, cohort), enrol, test)
    for way, nearest in (("s_norm", None), ("as_norm", min(top, len(cohort) // 2))):
        statistics = normalisation.cohort_statistics(used, cohort, nearest)
        ways[way] = normalisation.normalise(ways["cosine"], enrol, test, statistics)
    return ways


def assess(ways: dict[str, np.ndarray], trials: scoring.Trials, draws: int) -> dict[str, dict]:
    """{way: error rates, costs, the EER's interval, and the p-value of being as good as cosine}."""
    speakers = intervals.speakers_of(trials.enrol, trials.test, trials.labels)
    bootstrap = intervals.SpeakerBootstrap(trials.labels, *speakers, draws)
    results, rates = {}, {}
    for way, scores in ways.items():
        rates[way] = bootstrap.rates(scores)
        results[way] = scoring.summarize(scores, trials.labels) | {
            "min_cllr": calibration.min_cllr(scores, trials.labels),
            "eer_interval_percent": [100 * limit for limit in intervals.interval(rates[way])],
        }
        if way != "cosine":
            results[way]["p_value"] = intervals.p_value(rates[way], rates["cosine"])
    return results


def table(ways: dict[str, dict]) -> str:
    """The results as a Markdown table, a row for each way."""
    lines = [
        "| scores | EER % (95 % interval) | minDCF 0.01 | minDCF 0.05 | min Cllr | p, against cosine |",
        "|---|---|---|---|---|---|",
    ]
    for way, row in ways.items():
        low, high = row["eer_interval_percent"]
        p = f"{row['p_value']:.3f}" if "p_value" in row else ""
        costs = f"{row['min_dcf_0.01']:.4f} | {row['min_dcf_0.05']:.4f} | {row['min_cllr']:.4f}"
        lines.append(f"| {way} | {row['eer_percent']:.2f} ({low:.2f}-{high:.2f}) | {costs} | {p} |")
    return "\n".join(lines)


def summary(results: dict, output: str | Path) -> str:
    """The results as a short text, and where each file is."""
    wrote = [*FILES, *(f"scores_{way}.txt" for way in results["ways"] if way != "cosine")]
    rows = [
        ("trials", f"{results['trials']:,} ({results['targets']:,} target) from {results['trials_file']}"),
        ("embeddings", f"{results['dimension']}-dimensional from {results['embeddings']}"),
        ("threshold at EER", f"{results['threshold_at_eer']:.4f} (cosine)"),
        *(("wrote", str(Path(output) / name)) for name in wrote),
    ]
    return table(results["ways"]) + "\n\n" + "\n".join(f"{name:<17} {value}" for name, value in rows)


def main(_) -> None:
    results = score(FLAGS.embeddings, FLAGS.trials, FLAGS.output, FLAGS.cohort, FLAGS.top, FLAGS.draws)
    print(summary(results, FLAGS.output))


def _write_scores(path: Path, trials: scoring.Trials, scores: np.ndarray) -> None:
    with path.open("w", encoding="utf-8") as file:
        for enrol, test, value in zip(trials.enrol, trials.test, scores.tolist(), strict=True):
            file.write(f"{enrol} {test} {value:.8f}\n")


if __name__ == "__main__":
    # Defined here and not on import, so that other commands may import `score` and have flags of the same names.
    FLAGS = flags.FLAGS
    flags.DEFINE_string(
        "embeddings", None, "An .npz with `ids` and `embeddings`, or a folder (embeddings.npy, ids.txt)."
    )
    flags.DEFINE_string(
        "trials", None, "A trial list: `1 enrol test` (VoxCeleb) or `enrol test target` (Kaldi) a line."
    )
    flags.DEFINE_string("output", None, "The folder to write into; files of an earlier run are replaced.")
    flags.DEFINE_string("cohort", None, "Embeddings of other, unlabelled speech, for normalised scores.")
    flags.DEFINE_integer("top", 300, "Of as_norm: how many of the cohort's nearest; at most half of it.", 2)
    flags.DEFINE_integer("draws", 1000, "Of the bootstrap over speakers, for intervals and p-values.", 10)
    flags.mark_flags_as_required(["embeddings", "trials", "output"])
    errors.run(main)
