"""A trial list scored with embeddings: with and without normalisation and calibration, as files, tables and figures."""

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from sdpn_jax import storage
from sdpn_jax.errors import UserError
from sdpn_jax.eval import intervals, normalisation, plots, report, scoring
from sdpn_jax.eval.trials import Trials, add_models, read_models, read_trials, trial_rows

TITLES = {"centred": "mean subtracted", "s_norm": "S-norm", "as_norm": "AS-norm"}  # in tables and plots
CAPTIONS = {
    "det.png": "Detection error tradeoff; dots mark the equal error rates.",
    "histogram.png": "Cosine scores of target and nontarget trials, and the threshold at the equal error rate.",
    "duration.png": "Equal error rate against the duration of a trial's shorter utterance, with 95 % intervals.",
    "map.png": "The embeddings of unit length in two dimensions, by speaker.",
}


def score(
    embeddings_path: str | os.PathLike,
    trials_path: str | os.PathLike,
    output: str | os.PathLike,
    cohort_path: str | os.PathLike | None = None,
    top: int = 300,
    draws: int = 1000,
    models_path: str | os.PathLike | None = None,
    calibration_path: str | os.PathLike | None = None,
    with_page: bool = False,
    projection: str = "pca",
) -> dict:
    """Scores the trials with and without normalisation and writes everything into the folder `output`.

    `top`: of the cohort's nearest for as_norm (at most half of the cohort). `draws`: of the bootstrap over speakers.
    `projection`: of the page's map, as in `plots.plot_map`.
    Returns what results.json holds: embeddings, trials_file, cohort, dimension, trials, wrote (the files' names) and,
    where the list has labels, the row of cosine and `ways`, the rows of `report.assess`. Raises UserError for inputs
    that cannot be read or do not fit together, and for an output folder that cannot be made.
    """
    trials = read_trials(trials_path)
    embeddings, ids = scoring.load_embeddings(embeddings_path)
    seconds = scoring.load_seconds(embeddings_path)
    if models_path:
        embeddings, ids = add_models(embeddings, ids, models_of(trials, read_models(models_path)))
    cohort = scoring.load_embeddings(cohort_path)[0] if cohort_path else None
    maps = read_calibration(calibration_path) if calibration_path else {}
    scores_of = score_every_kind(embeddings, ids, trials, cohort, top)
    llrs = {kind: scale * scores_of[kind] + offset for kind, (scale, offset) in maps.items() if kind in scores_of}
    results: dict[str, Any] = {
        "embeddings": str(embeddings_path),
        "trials_file": str(trials_path),
        "cohort": cohort_path and str(cohort_path),
        "dimension": embeddings.shape[1],
        "trials": len(trials),
    }
    with storage.output_folder(output) as folder:
        results["wrote"] = write_scores(folder, trials, scores_of, "scores") + write_scores(folder, trials, llrs, "llr")
        if trials.labels is not None:
            rows = report.assess(scores_of, trials, draws, llrs)
            results |= rows["cosine"] | {"ways": rows}
            lines = report.table_of(titled(rows))
            storage.write_text(folder / "report.md", report.markdown(lines) + "\n")
            curves = {kind: (scores, trials.labels) for kind, scores in scores_of.items()}
            plots.plot_det(titled(curves), folder / "det.png")
            plots.plot_score_histogram(scores_of["cosine"], trials.labels, folder / "histogram.png")
            results["wrote"] += ["report.md", "det.png", "histogram.png"]
            if with_page:
                more = draw_more(folder, scores_of["cosine"], embeddings, ids, trials, seconds, projection)
                figures = {folder / name: CAPTIONS[name] for name in ("det.png", "histogram.png", *more)}
                title = f"Trials of {Path(trials_path).name}"
                report.write_page(folder / "report.html", title, lines, notes(results), figures)
                results["wrote"] += [*more, "report.html"]
        results["wrote"].append("results.json")
        storage.write_text(folder / "results.json", json.dumps(results, indent=2) + "\n")
    return results


def titled(by_kind: dict) -> dict:
    """Renames the scores as papers do, for tables and plots."""
    return {TITLES.get(kind, kind): value for kind, value in by_kind.items()}


def models_of(trials: Trials, models: dict[str, list[str]]) -> dict[str, list[str]]:
    """Keeps the models that the trials name."""
    named = {*trials.enrol, *trials.test}
    return {name: utterances for name, utterances in models.items() if name in named}


def read_calibration(path: str | os.PathLike) -> dict[str, tuple[float, float]]:
    """Reads {kind of score: (scale, offset)} from another list's results.json; UserError if it is none."""
    try:
        rows = json.loads(storage.read_text(path))["ways"]
        pairs = {kind: row["calibration"] for kind, row in rows.items()}
        return {kind: (float(scale), float(offset)) for kind, (scale, offset) in pairs.items()}
    except OSError as error:
        raise UserError(f"cannot read --calibration={path} ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"--calibration={path} is not the results.json of a scored list with labels") from None


def score_every_kind(embeddings, ids, trials: Trials, cohort=None, top: int = 300) -> dict[str, np.ndarray]:
    """Scores the trials by cosine and, with a cohort [C, D], centred, s_norm and as_norm: {kind: scores [N]}."""
    scores_of = {"cosine": scoring.score_trials(embeddings, ids, trials)}
    if cohort is None:
        return scores_of
    if cohort.shape[1] != embeddings.shape[1]:
        raise UserError(
            f"the cohort's embeddings have {cohort.shape[1]} dimensions, those of the trials {embeddings.shape[1]}: "
            "export both with the same model"
        )
    enrol, test = trial_rows(ids, trials)
    used, rows = np.unique([enrol, test], return_inverse=True)
    enrol, test = rows.reshape(2, -1)
    used = embeddings[used]
    scores_of["centred"] = scoring.cosine_scores(normalisation.subtract_mean(used, cohort), enrol, test)
    for kind, nearest in (("s_norm", None), ("as_norm", min(top, len(cohort) // 2))):
        statistics = normalisation.cohort_statistics(used, cohort, nearest)
        scores_of[kind] = normalisation.normalise(scores_of["cosine"], enrol, test, statistics)
    return scores_of


def draw_more(
    output: Path, scores, embeddings, ids, trials: Trials, seconds: np.ndarray | None, projection: str
) -> list[str]:
    """Draws duration.png, where durations are known, and map.png; returns their names."""
    enrol, test = trial_rows(ids, trials)
    labels = trials.known_labels()
    speakers = intervals.speakers_of(trials.enrol, trials.test, labels)
    used, first = np.unique([enrol, test], return_index=True)
    names = speaker_names([ids[row] for row in used], np.concatenate(speakers)[first])
    plots.plot_map(embeddings[used], names, output / "map.png", projection, title="speaker")
    if seconds is None or max(enrol.max(), test.max()) >= len(seconds):  # models have no duration
        return ["map.png"]
    shorter = np.minimum(seconds[enrol], seconds[test])
    plots.plot_eer_by_duration(shorter, scores, labels, speakers, output / "duration.png")
    return ["duration.png", "map.png"]


def speaker_names(ids: list[str], speakers: np.ndarray) -> list[str]:
    """Names each utterance's speaker [N] by the folder its utterances share, or else by a number."""
    names, folders = {}, defaultdict(list)
    for name, speaker in zip(ids, speakers.tolist(), strict=True):
        folders[speaker].append(name.split("/")[:-1])
    for speaker, paths in folders.items():
        common = os.path.commonprefix(paths)
        names[speaker] = common[-1] if common else ""
    told_apart = "" not in names.values() and len(set(names.values())) == len(names)
    return [names[speaker] if told_apart else str(speaker + 1) for speaker in speakers]


def write_scores(output: Path, trials: Trials, scores_of: dict[str, np.ndarray], stem: str) -> list[str]:
    """Writes <stem>.txt of cosine and <stem>_<kind>.txt of the others, `enrol test score` lines; returns the names."""
    names = []
    for kind, scores in scores_of.items():
        names.append(f"{stem}.txt" if kind == "cosine" else f"{stem}_{kind}.txt")
        with (output / names[-1]).open("w", encoding="utf-8") as file:
            for enrol, test, value in zip(trials.enrol, trials.test, scores.tolist(), strict=True):
                file.write(f"{enrol} {test} {value:.8f}\n")
    return names


def notes(results: dict) -> list[str]:
    """Says what was scored with what, one line each."""
    targets = f" ({results['targets']:,} target)" if "targets" in results else ", whose labels are unknown,"
    lines = [
        f"{results['trials']:,} trials{targets} from {results['trials_file']}",
        f"{results['dimension']}-dimensional embeddings from {results['embeddings']}",
    ]
    if results["cohort"]:
        lines.append(f"cohort from {results['cohort']}")
    if "threshold_at_eer" in results:
        lines.append(f"threshold at the EER: cosine {results['threshold_at_eer']:.4f}")
    return lines


def summary(results: dict, output: str | os.PathLike) -> str:
    """Summarises the results and says where each file is."""
    table = [report.markdown(report.table_of(titled(results["ways"]))), ""] if "ways" in results else []
    return "\n".join([*table, *notes(results), *(f"wrote {storage.place(output) / name}" for name in results["wrote"])])
