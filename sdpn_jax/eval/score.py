"""A trial list scored with embeddings: with and without normalisation and calibration, as files, tables and figures."""

import json
import math
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from sdpn_jax import storage
from sdpn_jax.errors import UserError, one_line
from sdpn_jax.eval import intervals, normalisation, plots, report, scoring
from sdpn_jax.eval.adaptation import whitening
from sdpn_jax.eval.models import add_models, read_models
from sdpn_jax.eval.trials import Trials, are_missing, read_trials, suspicions, trial_rows

SKIPPED = "skipped_trials.txt"
TITLES = {
    "centred": "mean subtracted",
    "whitened": "whitened",
    "s_norm": "S-norm",
    "as_norm": "AS-norm",
}  # in tables and plots
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
    skip_missing: bool = False,
    shrinkage: float = 0.7,
) -> dict:
    """Scores the trials with and without normalisation and writes everything into the folder `output`.

    `top`: of the cohort's nearest for as_norm (at most half of the cohort); `shrinkage`: of `adaptation.whitening`.
    `draws`: of the bootstrap over speakers. `projection`: of the page's map, as in `plots.plot_map`. `skip_missing`:
    trials of utterances without an embedding are left out and listed in skipped_trials.txt.
    Returns what results.json holds: embeddings, trials_file, cohort, dimension, trials, skipped_trials (a count),
    warnings (sentences), wrote (the files' names) and, where the list has labels, the row of cosine and `ways`, the
    rows of `report.assess`. Raises UserError for inputs that cannot be read or do not fit together, and for an output
    folder that cannot be made.
    """
    listed = read_trials(trials_path)
    embeddings, ids = scoring.load_embeddings(embeddings_path)
    seconds = scoring.load_seconds(embeddings_path, len(ids))
    models = read_models(models_path, listed) if models_path else {}
    utterances, warnings = len(ids), []
    if models:
        embeddings, ids, warnings = add_models(embeddings, ids, models, listed, skip_missing)
    skipped = np.zeros(len(listed), bool)
    if skip_missing:
        skipped = are_missing(ids, listed, models.keys() - set(ids[utterances:]))
    if skipped.all():
        raise UserError(f"{listed.source}: all {len(listed):,} trials name utterances without an embedding")
    trials = listed.where(~skipped)
    rows = trial_rows(ids, trials)
    warnings += suspicions(trials, *rows)
    cohort = read_cohort(cohort_path) if cohort_path else None
    maps = read_calibration(calibration_path) if calibration_path else {}
    scores_of = score_every_kind(embeddings, ids, rows, cohort, top, shrinkage)
    llrs = {kind: scale * scores_of[kind] + offset for kind, (scale, offset) in maps.items() if kind in scores_of}
    if maps and not llrs:
        raise UserError(f"--calibration={calibration_path} is of none of these scores: {', '.join(scores_of)}")
    results: dict[str, Any] = {
        "embeddings": str(embeddings_path),
        "trials_file": str(trials_path),
        "cohort": cohort_path and str(cohort_path),
        "dimension": embeddings.shape[1],
        "trials": len(trials),
        "skipped_trials": int(skipped.sum()),
        "warnings": warnings,
    }
    # Before anything is written: a list that cannot be assessed leaves an earlier one's results whole.
    ways = report.assess(scores_of, trials, draws, llrs) if trials.labels is not None else {}
    with storage.output_folder(output) as folder:
        results["wrote"] = write_scores(folder, trials, scores_of, "scores") + write_scores(folder, trials, llrs, "llr")
        results["wrote"] += write_skipped(folder, listed, skipped) if skip_missing else []
        if trials.labels is not None:
            results |= ways["cosine"] | {"ways": ways}
            if results["eer_percent"] > 50:
                eer = f"{results['eer_percent']:.2f} %"
                warnings.append(f"{trials.source}: the EER of {eer} is above 50 %: the labels look swapped")
            lines = report.table_of(titled(ways))
            storage.write_text(folder / "report.md", report.markdown(lines) + "\n" + warned(warnings))
            curves = {kind: (scores, trials.labels) for kind, scores in scores_of.items()}
            plots.plot_det(titled(curves), folder / "det.png")
            plots.plot_score_histogram(scores_of["cosine"], trials.labels, folder / "histogram.png")
            results["wrote"] += ["report.md", "det.png", "histogram.png"]
            if with_page:
                more = draw_more(folder, scores_of["cosine"], embeddings, ids, trials, rows, seconds, projection)
                figures = {folder / name: CAPTIONS[name] for name in ("det.png", "histogram.png", *more)}
                title = f"Trials of {Path(trials_path).name}"
                page_notes = [*notes(results), *(f"Warning: {warning}" for warning in warnings)]
                report.write_page(folder / "report.html", title, lines, page_notes, figures)
                results["wrote"] += [*more, "report.html"]
        results["wrote"].append("results.json")
        storage.write_text(folder / "results.json", json.dumps(results, indent=2) + "\n")
    for warning in warnings:
        logging.warning("%s", one_line(warning))
    return results


def read_cohort(path: str | os.PathLike) -> np.ndarray:
    """Reads embeddings [C, D] to normalise scores by; UserError for one that is not finite."""
    cohort, ids = scoring.load_embeddings(path)
    scoring.check_finite(cohort, ids, path)
    return cohort


def titled(by_kind: dict) -> dict:
    """Renames the scores as papers do, for tables and plots."""
    return {TITLES.get(kind, kind): value for kind, value in by_kind.items()}


def warned(warnings: list[str]) -> str:
    """Formats warnings as a list in Markdown; none: nothing."""
    return "".join(["\n", *(f"- Warning: {report.in_markdown(warning)}\n" for warning in warnings)]) if warnings else ""


def read_calibration(path: str | os.PathLike) -> dict[str, tuple[float, float]]:
    """Reads {kind of score: (scale, offset)} from another list's results.json; UserError if it is none."""
    try:
        rows = json.loads(storage.read_text(path), parse_constant=_no_number)["ways"]
        pairs = {kind: row["calibration"] for kind, row in rows.items()}
        return {kind: (_finite(scale), _finite(offset)) for kind, (scale, offset) in pairs.items()}
    except OSError as error:
        raise UserError(f"cannot read --calibration={path} ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise UserError(f"--calibration={path} is not the results.json of a scored list with labels") from None


def _no_number(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError("no finite number")
    return float(value)


def score_every_kind(
    embeddings, ids, rows: tuple[np.ndarray, np.ndarray], cohort=None, top: int = 300, shrinkage: float = 0.7
) -> dict[str, np.ndarray]:
    """Scores trials by cosine and, with a cohort [C, D], centred, whitened, s_norm and as_norm: {kind: scores [N]}.

    rows: int [N] each, the embeddings of the trials' two sides.
    """
    scores_of = {"cosine": scoring.score_rows(embeddings, ids, *rows)}
    if cohort is None:
        return scores_of
    if cohort.shape[1] != embeddings.shape[1]:
        raise UserError(
            f"the cohort's embeddings have {cohort.shape[1]} dimensions, those of the trials {embeddings.shape[1]}: "
            "export both with the same model"
        )
    used, inverse = np.unique(rows, return_inverse=True)
    enrol, test = inverse.reshape(2, -1)
    used = embeddings[used]
    centred = normalisation.subtract_mean(used, cohort)
    scores_of["centred"] = scoring.cosine_scores(centred, enrol, test)
    transform = whitening(cohort, shrinkage)[1].astype(np.float32)
    scores_of["whitened"] = scoring.cosine_scores(centred @ transform, enrol, test)
    for kind, nearest in (("s_norm", None), ("as_norm", min(top, len(cohort) // 2))):
        statistics = normalisation.cohort_statistics(used, cohort, nearest)
        scores_of[kind] = normalisation.normalise(scores_of["cosine"], enrol, test, statistics)
    return scores_of


def draw_more(
    output: Path, scores, embeddings, ids, trials: Trials, rows, seconds: np.ndarray | None, projection: str
) -> list[str]:
    """Draws duration.png, where durations are known, and map.png; returns their names."""
    enrol, test = rows
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
    """Writes <stem>.txt of cosine and <stem>_<kind>.txt of the others, `enrol test score` lines; returns the names.

    Between tabs, if an id holds white space.
    """
    names, mark = [], separator_of(trials)
    for kind, scores in scores_of.items():
        names.append(f"{stem}.txt" if kind == "cosine" else f"{stem}_{kind}.txt")
        rows = zip(trials.enrol, trials.test, scores.tolist(), strict=True)
        lines = (f"{enrol}{mark}{test}{mark}{value:.8f}\n" for enrol, test, value in rows)
        with storage.written(output / names[-1]) as file:
            file.writelines(line.encode("utf-8", "surrogateescape") for line in lines)
    return names


def separator_of(trials: Trials) -> str:
    """What can part the ids of the trials: a blank, or a tab if one of them holds white space."""
    return "\t" if any(len(name.split()) != 1 for name in {*trials.enrol, *trials.test}) else " "


def write_skipped(output: Path, trials: Trials, skipped: np.ndarray) -> list[str]:
    """Writes skipped_trials.txt, `line enrol test` of each trial where `skipped` [N]; returns its name."""
    mark = separator_of(trials)
    with (output / SKIPPED).open("w", encoding="utf-8") as file:
        for i in np.flatnonzero(skipped):
            file.write(f"{trials.lines[i]}{mark}{trials.enrol[i]}{mark}{trials.test[i]}\n")
    return [SKIPPED]


def notes(results: dict) -> list[str]:
    """Says what was scored with what, one line each."""
    targets = f" ({results['targets']:,} target)" if "targets" in results else ", whose labels are unknown,"
    lines = [
        f"{results['trials']:,} trials{targets} from {results['trials_file']}",
        f"{results['dimension']}-dimensional embeddings from {results['embeddings']}",
    ]
    if results["skipped_trials"]:
        lines.append(f"{results['skipped_trials']:,} trials left out, as they name utterances without an embedding")
    if results["cohort"]:
        lines.append(f"cohort from {results['cohort']}")
    if "threshold_at_eer" in results:
        lines.append(f"threshold at the EER: cosine {results['threshold_at_eer']:.4f}")
    return lines


def summary(results: dict, output: str | os.PathLike) -> str:
    """Summarises the results and says where each file is."""
    table = [report.markdown(report.table_of(titled(results["ways"]))), ""] if "ways" in results else []
    said = map(one_line, notes(results))
    return "\n".join([*table, *said, *(f"wrote {storage.place(output) / name}" for name in results["wrote"])])
