"""Trains every variant of the objective with several seeds on one small corpus, and writes the table of results.

    python benchmarks/ablation.py --data_dir=data/librispeech --trials_input=librispeech \
        --trials=librispeech/trials.txt,librispeech/trials_degraded.txt --output=runs/ablation

Each run is one `python -m sdpn_jax.main` whose command is printed and kept in the table's file; a run that is complete
is not repeated. Prints and writes <output>/table.md and <output>/results.json.
"""

import json
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

from absl import app, flags, logging
from scipy.stats import spearmanr

# What each variant changes in configs/librispeech.py.
VARIANTS = {
    "full objective (balanced targets)": {},
    "no diversity term": {"objective.koleo_weight": 0.0},
    "no me-max": {"objective.me_max_weight": 0.0},
    "Sinkhorn targets": {"objective.targets": "sinkhorn"},
    "dimension regularisation": {"objective.koleo_weight": 0.0, "objective.frobenius_weight": 1.0},
    "fixed random prototypes": {"prototype_multiplier": 0.0},
    "centred targets": {"objective.targets": "centred", "objective.offset_rate": 0.1},
    "softmax targets": {"objective.targets": "softmax"},
}
HEALTH = ("prototypes_in_interval", "targets_told_apart", "effective_rank", "crop_eer_percent")


def command(name: str, seed: int, workdir: Path) -> list[str]:
    """The training command of one variant and seed."""
    trials = tuple(FLAGS.trials)
    settings = {
        "seed": seed,
        "num_steps": FLAGS.steps,
        "warmup_steps": FLAGS.steps // 10,
        "data_dir": FLAGS.data_dir,
        "eval.input": FLAGS.trials_input,
        "eval.trials": trials,
        "eval.every_steps": FLAGS.steps // 4,
        "checkpoint_every": FLAGS.steps,
        "model.channels": (FLAGS.width,) * 4 + (3 * FLAGS.width,),
        **VARIANTS[name],
    }
    overrides = [f"--config.{field}={value}" for field, value in settings.items()]
    return [
        sys.executable,
        "-m",
        "sdpn_jax.main",
        "--config=configs/librispeech.py",
        f"--workdir={workdir}",
        *overrides,
    ]


def train(name: str, seed: int) -> list[dict]:
    """The rows of metrics of one run, trained now unless it is complete already."""
    workdir = Path(FLAGS.output) / f"{list(VARIANTS).index(name)}-{seed}"
    metrics = workdir / "metrics.jsonl"
    if not (workdir / "training.png").exists():
        arguments = command(name, seed, workdir)
        logging.info("%s, seed %d: %s", name, seed, shlex.join(arguments))
        workdir.mkdir(parents=True, exist_ok=True)
        with (workdir / "log.txt").open("w") as log:
            subprocess.run(arguments, stdout=log, stderr=log, check=True)
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def summarise(rows: list[dict]) -> dict[str, float]:
    """EER at the last step, and the mean of the signs of health over the last fifth of the steps."""
    last = {name: value for row in rows for name, value in row.items()}
    late = [row for row in rows if row["step"] > 0.8 * rows[-1]["step"]]
    health = {}
    for name in HEALTH:
        values = [row[name] for row in late if name in row]
        if values:
            health[name] = statistics.fmean(values)
    return {name: value for name, value in last.items() if name.startswith("eer_percent/")} | health


def table(results: dict[str, list[dict]]) -> str:
    """A Markdown table: mean and, in brackets, lowest and highest over the seeds."""
    columns = list(dict.fromkeys(key for runs in results.values() for run in runs for key in run))
    lines = ["| variant | seeds | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, runs in results.items():
        cells = []
        for column in columns:
            values = [run[column] for run in runs if column in run]
            cells.append(f"{statistics.fmean(values):.1f} ({min(values):.1f}-{max(values):.1f})" if values else "")
        lines.append(f"| {name} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def label_free_agreement(rows: list[dict]) -> str:
    """How the crops' EER, which needs no labels, ranks evaluations compared with the EER of the last trial list."""
    trials = f"eer_percent/{Path(FLAGS.trials[-1]).stem}"
    points = [(row["crop_eer_percent"], row[trials]) for row in rows if trials in row and "crop_eer_percent" in row]
    if len(points) < 3:
        return ""
    crops, labelled = zip(*points, strict=True)
    rank_correlation = spearmanr(crops, labelled)[0]
    return f"Spearman correlation of crop EER and {trials} over {len(points)} evaluations: {rank_correlation:.2f}\n"


def main(_) -> None:
    logging.set_verbosity(logging.INFO)
    names = [list(VARIANTS)[int(i)] for i in FLAGS.variants] if FLAGS.variants else list(VARIANTS)
    output, results, everything = Path(FLAGS.output), {}, []
    started, done = time.time(), 0
    for seed in range(FLAGS.seeds):
        for name in names:
            rows = train(name, seed)
            results.setdefault(name, []).append(summarise(rows))
            everything += rows
            done += 1
            left = (time.time() - started) / done * (FLAGS.seeds * len(names) - done)
            logging.info("%d of %d runs, %.0f min left", done, FLAGS.seeds * len(names), left / 60)
            (output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
            (output / "table.md").write_text(table(results) + "\n" + label_free_agreement(everything))
    print((output / "table.md").read_text())
    print(f"written: {output / 'table.md'}, {output / 'results.json'}, and one run in each folder of {output}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("data_dir", None, "Prepared shards.", required=True)
    flags.DEFINE_string("trials_input", None, "Audio folder that the trial lists speak of.", required=True)
    flags.DEFINE_list("trials", None, "Trial lists; the last one is the one that counts.", required=True)
    flags.DEFINE_string("output", "runs/ablation", "Where the runs and the table go.")
    flags.DEFINE_integer("steps", 300, "Training steps of each run.")
    flags.DEFINE_integer("width", 64, "Channels of the encoder.")
    flags.DEFINE_integer("seeds", 3, "Runs of each variant.")
    flags.DEFINE_list("variants", None, "Numbers of the variants to run, from 0; default all.")
    app.run(main)
