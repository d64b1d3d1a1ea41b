"""Systems compared by their score files on one trial list, by a bootstrap over speakers with the same draws for all."""

import json
import math
import os
from pathlib import Path

import numpy as np
from absl import logging

from sdpn_jax import storage
from sdpn_jax.errors import UserError, one_line
from sdpn_jax.eval import plots, report
from sdpn_jax.eval.text import quoted, read_text
from sdpn_jax.eval.trials import Trials, numbered_sides, read_trials, suspicions

FILES = ("comparison.json", "comparison.md", "comparison.html", "det.png")


def read_scores(path: str | os.PathLike, trials: Trials) -> np.ndarray:
    """Reads the scores [N] of a file in the trials' order; UserError if it belongs to another list."""
    lines = [line for line in read_text(path, "scores").split("\n") if line.strip()]
    if len(lines) != len(trials):
        raise UserError(
            f"{path}: {len(lines):,} scores, but {trials.source} has {len(trials):,} trials (`--skip_missing` may have "
            "left some out)"
        )
    scores = np.empty(len(lines))
    for i, (line, enrol, test) in enumerate(zip(lines, trials.enrol, trials.test, strict=True)):
        mark = "\t" if "\t" in line else " "
        pair, _, value = line.rstrip().rpartition(mark)
        scores[i] = _number(value)
        if not math.isfinite(scores[i]):
            raise UserError(f"{path}, line {i + 1}: {quoted(value)} is not a score, a finite number")
        wanted = f"{enrol}{mark}{test}"
        if pair != wanted:
            raise UserError(f"{path}, line {i + 1}: {quoted(pair)} is not the list's trial {quoted(wanted)}")
    return scores


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def names_of(paths: list[str]) -> list[str]:
    """Names each score file by the shortest end of its path that tells it apart, if possible without suffix."""
    parts = [Path(path).with_suffix("").parts for path in paths]
    if len(set(parts)) < len(parts):  # cosine_0.1 and cosine_0.2 have no suffix, a.txt and a.tsv differ in theirs alone
        parts = [Path(path).parts for path in paths]
    names, size = [], 0
    while len(set(names)) < len(parts) and size < max(map(len, parts)):
        size += 1
        names = ["/".join(part[-size:]) for part in parts]
    return [one_line(name.removesuffix("/scores")) for name in names]


def compare(
    trials_path: str | os.PathLike, score_paths: list[str], output: str | os.PathLike, draws: int = 1000
) -> dict:
    """Writes the comparison into the folder `output` and returns {system: row of `report.assess`}."""
    if len(set(score_paths)) < 2 or len(set(score_paths)) < len(score_paths):
        raise UserError("give --scores of two or more different files")
    trials = read_trials(trials_path)
    systems = {name: read_scores(path, trials) for name, path in zip(names_of(score_paths), score_paths, strict=True)}
    rows, labels = report.assess(systems, trials, draws), trials.known_labels()
    warnings = suspicions(trials, *numbered_sides(trials))
    with storage.output_folder(output) as folder:
        lines = report.table_of(rows)
        storage.write_text(folder / "comparison.json", json.dumps(rows, indent=2) + "\n")
        storage.write_text(folder / "comparison.md", report.markdown(lines) + "\n")
        plots.plot_det({name: (scores, labels) for name, scores in systems.items()}, folder / "det.png")
        notes = [f"{len(trials):,} trials ({int(labels.sum()):,} target) from {trials_path}"]
        notes += [f"Warning: {warning}" for warning in warnings]
        figures = {folder / "det.png": "Detection error tradeoff; dots mark the equal error rates."}
        report.write_page(folder / "comparison.html", "Comparison", lines, notes, figures)
    for warning in warnings:
        logging.warning("%s", one_line(warning))
    return rows


def verdicts(rows: dict[str, dict]) -> str:
    """Says of each system but the first whether it is better than the first, and how surely."""
    first, *others = rows
    lines = []
    for name in others:
        better = "better" if rows[name]["eer_percent"] < rows[first]["eer_percent"] else "not better"
        p = rows[name]["p_value"]
        if p is None:
            sure = ", on too few speakers to tell chance from it"
        else:
            sure = f" (p = {p:.3f})" + ("" if p < 0.05 else ", but the draws do not exclude chance")
        lines.append(f"{name} is {better} than {first}{sure}")
    return "\n".join(lines)
