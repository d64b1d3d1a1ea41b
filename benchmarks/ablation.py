"""A study on small corpora: which settings learn the best encoder. It goes on where it stopped, within its minutes.

    python benchmarks/ablation.py --data_dir=SHARDS --trials_input=AUDIO \
        --trials=AUDIO/trials.txt,AUDIO/trials_degraded.txt --output=runs/ablation --minutes=60

FACTORS says what each variant changes; --distorted_dir names shards prepared with --distortions=all, which some ask
for. Round 1 trains every variant with seed 0, each further round the better half of the last one with one seed more
(--nohalving: all), judged by the EER of the last list, and always the first variant, with which all are compared. A run
is one `python -m sdpn_jax.main`; its command is logged, its result one line of <output>/results.jsonl, and it is not
repeated. Intervals are of a bootstrap over the lists' speakers and over the seeds, differences paired by both. Prints
and writes <output>/report.md.
"""

import json
import re
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging
from scipy.stats import spearmanr

from sdpn_jax.eval import intervals, scoring
from sdpn_jax.eval.metrics import eer
from sdpn_jax.eval.report import markdown
from sdpn_jax.eval.trials import read_trials
from sdpn_jax.speaker import corpus

# What each variant changes in configs/own.py.
FACTORS: dict[str, dict[str, Any]] = {
    "own": {},
    "no diversity term": {"objective.koleo_weight": 0.0},
    "no me-max": {"objective.me_max_weight": 0.0},
    "Sinkhorn targets": {"objective.targets": "sinkhorn"},
    "dimension regularisation": {"objective.koleo_weight": 0.0, "objective.frobenius_weight": 1.0},
    "fixed random prototypes": {"prototype_multiplier": 0.0},
    "centred targets": {"objective.targets": "centred", "objective.offset_rate": 0.1},
    "softmax targets": {"objective.targets": "softmax"},
    "centred projections": {"objective.centre_projections": True},
    "clean teacher": {"views.global_augmented": 0.0},
    "distorted": {"data_dir": "distorted"},
    "distorted, clean teacher": {"data_dir": "distorted", "views.global_augmented": 0.0},
    "distorted, half augmented teacher": {"data_dir": "distorted", "views.global_augmented": 0.5},
    "views apart": {"views.apart": True, "views.global_frames": 200},
    "two global views": {"views.global_count": 2},
    "four local views, a global one of 4 s": {"views.local_count": 4, "views.global_frames": 400},
    "eight local views of 1 s": {"views.local_count": 8, "views.local_frames": 100},
    "wide masks": {"views.mask_probability": 1.0, "views.mask_max_frames": 30, "views.mask_max_bins": 15},
    "slower teacher": {"ema_momentum": 0.996},
    "128 prototypes": {"num_prototypes": 128},
    "4096 prototypes": {"num_prototypes": 4096},
    "sharper targets": {"objective.sharpening": 0.1},
    "softer targets": {"objective.sharpening": 0.5},
    "half the learning rate": {"learning_rate": 0.4},
    "twice the learning rate": {"learning_rate": 1.6},
    "KoLeo weight 0.3": {"objective.koleo_weight": 0.3},
    "LARS": {"optimizer": "lars", "learning_rate": 4.0},
    "AdamW": {"optimizer": "adamw", "learning_rate": 0.008},
    "Muon": {"optimizer": "muon", "learning_rate": 0.016},
}
HEALTH = ("prototypes_in_interval", "targets_told_apart", "effective_rank", "crop_eer_percent")


class List:
    """A trial list, the recordings that it speaks of, and the bootstrap over its speakers."""

    def __init__(self, path: str, recordings: str):
        self.name, self.recordings = f"{Path(recordings).name}/{Path(path).stem}", recordings
        self.trials = read_trials(path)
        self.labels = self.trials.known_labels()
        speakers = intervals.speakers_of(self.trials.enrol, self.trials.test, self.labels)
        self.bootstrap = intervals.SpeakerBootstrap(self.labels, *speakers, FLAGS.draws)


def workdir_of(factor: str, seed: int) -> Path:
    """Where a run lies; scores beside its checkpoints."""
    return Path(FLAGS.output) / f"{re.sub('[^a-z0-9.]+', '-', factor.lower())}-{seed}"


def command(factor: str, seed: int) -> list[str]:
    """The training command of one variant and seed."""
    settings = {
        "seed": seed,
        "num_steps": FLAGS.steps,
        "warmup_steps": FLAGS.steps // 10,
        "data_dir": FLAGS.data_dir,
        "eval.every_steps": FLAGS.steps // 4,
        "checkpoint_every": FLAGS.steps,
        "model.channels": (FLAGS.width,) * 4 + (3 * FLAGS.width,),
        **FACTORS[factor],
    }
    if settings["data_dir"] == "distorted":
        settings["data_dir"] = FLAGS.distorted_dir
    overrides = [f"--config.{field}={value}" for field, value in settings.items()]
    start = [sys.executable, "-m", "sdpn_jax.main", f"--config={FLAGS.base}"]
    return [*start, f"--workdir={workdir_of(factor, seed)}", *overrides]


def train(factor: str, seed: int, lists: list[List]) -> dict:
    """Trains one run and scores its teacher: a line of results.jsonl."""
    workdir, arguments, started = workdir_of(factor, seed), command(factor, seed), time.time()
    logging.info("%s, seed %d: %s", factor, seed, shlex.join(arguments))
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "log.txt").open("a") as log:
        subprocess.run(arguments, stdout=log, stderr=log, check=True)
    rates = {}
    for recordings in dict.fromkeys(of.recordings for of in lists):
        path = workdir / f"{Path(recordings).name}.npz"
        corpus.embed_corpus([recordings], path, workdir)
        embeddings, ids = scoring.load_embeddings(path)
        for of in (of for of in lists if of.recordings == recordings):
            scores = scoring.score_trials(embeddings, ids, of.trials)
            np.save(scores_path(workdir, of), scores)
            rates[of.name] = 100 * eer(scores, of.labels)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {"factor": factor, "seed": seed, "eer_percent": rates, **health(rows), **speed(workdir, started)}


def scores_path(workdir: Path, of: List) -> Path:
    """Where the scores of a run on a list lie."""
    return workdir / f"{of.name.replace('/', '-')}.npy"


def health(rows: list[dict]) -> dict[str, float]:
    """The means of the signs of health over the last fifth of the steps."""
    late = [row for row in rows if row["step"] > 0.8 * rows[-1]["step"]]
    found = {name: [row[name] for row in late if name in row] for name in HEALTH}
    return {name: statistics.fmean(values) for name, values in found.items() if values}


def speed(workdir: Path, started: float) -> dict[str, float]:
    """Minutes in all, and the median of the steps a second that the log tells of."""
    found = re.findall(r"([\d.]+) steps/s", (workdir / "log.txt").read_text())
    return {"minutes": (time.time() - started) / 60, "steps_per_second": statistics.median(map(float, found))}


def rates_of(factor: str, seeds: list[int], of: List) -> np.ndarray:
    """EER in % [seeds, draws] of a variant's runs when the list's speakers are drawn again."""
    scores = [np.load(scores_path(workdir_of(factor, seed), of)) for seed in seeds]
    return 100 * np.stack([of.bootstrap.rates(each) for each in scores])


def over_seeds(rates: np.ndarray) -> np.ndarray:
    """Means [draws] over seeds that are drawn again, too, the same for all that have as many."""
    seeds, draws = rates.shape
    drawn = np.random.default_rng(1).integers(seeds, size=(seeds, draws))
    return np.take_along_axis(rates, drawn, axis=0).mean(0)


def cell(results: list[dict], factor: str, of: List) -> tuple[str, str]:
    """A variant's EER with its interval, and its difference from the first variant on the seeds that both have."""
    mine = {row["seed"]: row["eer_percent"][of.name] for row in results if row["factor"] == factor}
    low, high = intervals.interval(over_seeds(rates_of(factor, list(mine), of)))
    value = f"{statistics.fmean(mine.values()):.1f} ({low:.1f}-{high:.1f})"
    first = next(iter(FACTORS))
    theirs = {row["seed"]: row["eer_percent"][of.name] for row in results if row["factor"] == first}
    both = [seed for seed in mine if seed in theirs]
    if factor == first or not both:
        return value, ""
    difference = over_seeds(rates_of(factor, both, of) - rates_of(first, both, of))
    low, high = intervals.interval(difference)
    mean = statistics.fmean(mine[seed] - theirs[seed] for seed in both)
    return value, f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def report(results: list[dict], lists: list[List]) -> str:
    """Tables of all variants that have run, best first by the last list, and what could be known without labels."""
    factors = list(dict.fromkeys(row["factor"] for row in results))
    runs = {factor: [row for row in results if row["factor"] == factor] for factor in factors}
    mean = lambda factor, key: statistics.fmean(key(row) for row in runs[factor])  # noqa: E731
    factors.sort(key=lambda factor: mean(factor, lambda row: row["eer_percent"][lists[-1].name]))
    heading = ["variant", "seeds", "steps/s"]
    for of in lists:
        heading += [f"{of.name}, EER %", "against the first"]
    lines = [heading + list(HEALTH)]
    for factor in factors:
        line = [factor, str(len(runs[factor])), f"{mean(factor, lambda row: row['steps_per_second']):.2f}"]
        for of in lists:
            line += cell(results, factor, of)
        lines.append(line + [f"{mean(factor, lambda row, name=name: row.get(name, np.nan)):.1f}" for name in HEALTH])
    return markdown(lines) + "\n\n" + label_free(results, lists[-1])


def label_free(results: list[dict], of: List) -> str:
    """How the held-out crops' EER, which needs no labels, ranks the runs, and which run it would have chosen."""
    known = [row for row in results if "crop_eer_percent" in row]
    if len(known) < 3:
        return ""
    crops, labelled = [row["crop_eer_percent"] for row in known], [row["eer_percent"][of.name] for row in known]
    chosen = labelled[int(np.argmin(crops))]
    correlation = spearmanr(crops, labelled)[0]
    return (
        f"Spearman correlation of crop EER and {of.name} over {len(known)} runs: {correlation:.2f}; the run of the "
        f"least crop EER has {chosen:.1f} %, the best of all {min(labelled):.1f} %\n"
    )


def better_half(results: list[dict], factors: list[str], of: List) -> list[str]:
    """The variants that go on: the first, and of the others the better half, rounded up."""
    first, *others = factors
    mean = lambda factor: statistics.fmean(  # noqa: E731
        row["eer_percent"][of.name] for row in results if row["factor"] == factor
    )
    kept = sorted(others, key=mean)[: -(-len(others) // 2)]
    return [first, *(factor for factor in others if factor in kept)]


def main(_) -> None:
    logging.set_verbosity(logging.INFO)
    names = list(FACTORS)
    factors = [names[int(number)] for number in FLAGS.variants or range(len(names))]
    if not FLAGS.distorted_dir:
        factors = [factor for factor in factors if FACTORS[factor].get("data_dir") != "distorted"]
    inputs = FLAGS.trials_input * (len(FLAGS.trials) if len(FLAGS.trials_input) == 1 else 1)
    lists = [List(path, recordings) for path, recordings in zip(FLAGS.trials, inputs, strict=True)]
    output, started, done = Path(FLAGS.output), time.time(), 0
    output.mkdir(parents=True, exist_ok=True)
    file = output / "results.jsonl"
    results = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for seed in range(FLAGS.seeds):
        for factor in factors:
            if any((row["factor"], row["seed"]) == (factor, seed) for row in results):
                continue
            took = (time.time() - started) / 60
            if done and took + took / done > FLAGS.minutes:
                logging.info("%d runs in %.0f minutes, no time for another: the same command goes on", done, took)
                break
            results.append(train(factor, seed, lists))
            with file.open("a") as lines:
                lines.write(json.dumps(results[-1]) + "\n")
            done += 1
            logging.info("round %d: %s: %s %%", seed + 1, factor, results[-1]["eer_percent"])
        else:
            factors = better_half(results, factors, lists[-1]) if FLAGS.halving else factors
            continue
        break
    (output / "report.md").write_text(report(results, lists))
    print((output / "report.md").read_text())
    print(f"written: {output / 'report.md'}, {file}, and one run in each folder of {output}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("data_dir", None, "Prepared shards.", required=True)
    flags.DEFINE_string("distorted_dir", "", "Shards of the same recordings prepared with --distortions=all.")
    flags.DEFINE_list("trials", None, "Trial lists; the last one is the one that counts.", required=True)
    flags.DEFINE_list("trials_input", None, "Recordings that each list speaks of, or one for all.", required=True)
    flags.DEFINE_string("output", "runs/ablation", "Where the runs and the report go.")
    flags.DEFINE_string("base", "own", "The config that the variants change.")
    flags.DEFINE_integer("steps", 300, "Training steps of each run.")
    flags.DEFINE_integer("width", 64, "Channels of the encoder.")
    flags.DEFINE_integer("seeds", 3, "Rounds: the runs of a variant that is never left behind.", 1)
    flags.DEFINE_bool("halving", True, "Each round goes on with the better half of the last one.")
    flags.DEFINE_float("minutes", 1e9, "No run begins that would not end within them.")
    flags.DEFINE_integer("draws", 300, "Of the bootstrap.", 10)
    flags.DEFINE_list("variants", None, "Numbers of the variants, from 0; default all. The first is compared with.")
    app.run(main)
