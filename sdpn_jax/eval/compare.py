"""Compares systems by their score files on one trial list: is B better than A?

    python -m sdpn_jax.eval.compare --trials=veri_test2.txt --scores=a/scores.txt --scores=b/scores.txt --output=a_and_b

Score files are `enrol test score` lines in the list's order, as sdpn_jax.eval.score writes them. The first system is
compared with each other one, by a bootstrap over speakers in which all meet the same draws. Writes comparison.json,
comparison.md, comparison.html and det.png.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from sdpn_jax import errors
from sdpn_jax.errors import UserError
from sdpn_jax.eval import plots, report
from sdpn_jax.eval.trials import Trials, read_text, read_trials


def read_scores(path: str | Path, trials: Trials) -> np.ndarray:
    """The scores [N] of a file with the trials in their order; UserError where it is not of this list."""
    lines = [line for line in read_text(path, "scores").split("\n") if line.strip()]
    if len(lines) != len(trials):
        raise UserError(f"{path}: {len(lines):,} scores, but {trials.source} has {len(trials):,} trials")
    scores = np.empty(len(lines))
    for i, (line, enrol, test) in enumerate(zip(lines, trials.enrol, trials.test, strict=True)):
        pair, _, value = line.rstrip().rpartition(" ")
        try:
            scores[i] = float(value)
        except ValueError:
            raise UserError(f"{path}, line {i + 1}: not a score: {line.strip()[:200]!r}") from None
        if pair != f"{enrol} {test}":
            raise UserError(f"{path}, line {i + 1}: {pair!r} is not the list's trial {f'{enrol} {test}'!r}")
    return scores


def names_of(paths: list[str]) -> list[str]:
    """A short name for each score file: the shortest ends of their paths that tell them apart."""
    parts = [Path(path).with_suffix("").parts for path in paths]
    for size in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-size:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return [name.removesuffix("/scores") for name in names]


def compare(trials_path: str | Path, score_paths: list[str], output: str | Path, draws: int = 1000) -> dict:
    """Writes the comparison into the folder `output` and returns {system: row of `report.assess`}."""
    if len(set(score_paths)) < 2 or len(set(score_paths)) < len(score_paths):
        raise UserError("give --scores of two or more different files")
    trials = read_trials(trials_path)
    systems = {name: read_scores(path, trials) for name, path in zip(names_of(score_paths), score_paths, strict=True)}
    rows = report.assess(systems, trials, draws)
    output = Path(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        lines = report.table_of(rows)
        (output / "comparison.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        (output / "comparison.md").write_text(report.markdown(lines) + "\n", encoding="utf-8")
        plots.plot_det({name: (scores, trials.labels) for name, scores in systems.items()}, output / "det.png")
        notes = [f"{len(trials):,} trials ({int(trials.labels.sum()):,} target) from {trials_path}"]
        figures = {output / "det.png": "Detection error tradeoff; dots mark the equal error rates."}
        report.write_page(output / "comparison.html", "Comparison", lines, notes, figures)
    except OSError as error:
        raise UserError(f"cannot write into --output={output} ({error.strerror})") from None
    return rows


def main(_) -> None:
    rows = compare(FLAGS.trials, FLAGS.scores, FLAGS.output, FLAGS.draws)
    first, *others = rows
    print(report.markdown(report.table_of(rows)) + "\n")
    for name in others:
        better = rows[name]["eer_percent"] < rows[first]["eer_percent"]
        sure = "" if rows[name]["p_value"] < 0.05 else ", but the draws do not exclude chance"
        print(f"{name} is {'better' if better else 'not better'} than {first} (p = {rows[name]['p_value']:.3f}){sure}")
    for name in ("comparison.json", "comparison.md", "comparison.html", "det.png"):
        print(f"wrote {Path(FLAGS.output) / name}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("trials", None, "The trial list that all systems scored.", required=True)
    flags.DEFINE_multi_string("scores", None, "A score file; twice or more.", required=True)
    flags.DEFINE_string("output", None, "The folder to write into.", required=True)
    flags.DEFINE_integer("draws", 1000, "Of the bootstrap over speakers.", 10)
    errors.run(main)
