"""The whole road on synthetic speech: corpus, shards, training, embeddings, EER; then the commands for own data."""

import json
import os
from pathlib import Path

from absl import logging

from sdpn_jax import storage
from sdpn_jax.config import Config
from sdpn_jax.data import prepare, synthetic
from sdpn_jax.errors import UserError
from sdpn_jax.eval import score
from sdpn_jax.speaker.corpus import embed_corpus
from sdpn_jax.training import loop

SYSTEMS = ("statistics", "untrained", "teacher")


def run(config: Config, workdir: str | os.PathLike) -> dict:
    """Runs every stage under `workdir`, reusing what is there; prints a closing table and returns the results.

    <workdir>/results.json holds `eer_<system>_percent` for mean and standard deviation of log-mel ("statistics"), the
    untrained encoder and the trained teacher ("trained").
    """
    if storage.is_bucket(workdir):
        raise UserError(f"--workdir={workdir}: the demo keeps everything on this machine, name a local folder")
    workdir = Path(workdir)
    corpus, shards = workdir / "corpus", workdir / "shards"

    _announce("1/4", "speaking", f"{config.demo.train_speakers} synthetic speakers for training, unlabelled, "
              f"and {config.demo.test_speakers} others for the test")  # fmt: skip
    synthetic.make_corpus(corpus, seed=config.seed, **config.demo)

    _announce("2/4", "preparing", "log-mel features, clean and augmented, into shards")
    prepare.prepare(corpus / "train", shards, augmentations=4, seed=config.seed)  # what is complete is kept
    config.data_dir = str(shards)
    config.eval.input = str(corpus / "test")
    config.eval.trials = (str(corpus / "trials.txt"),)

    _announce("3/4", "training", "student and teacher, without a single label; the EER below is watched, not used")
    loop.train_and_evaluate(config, workdir)

    _announce("4/4", "scoring", "embeddings of the test speakers, and the equal error rate on all pairs")
    results, scored = {}, {}
    for system in SYSTEMS:
        embed_corpus([corpus / "test"], workdir / "scores" / f"{system}.npz", workdir, system)
        scored = score.score(workdir / "scores" / f"{system}.npz", corpus / "trials.txt", workdir / "scores" / system)
        name = "trained" if system == "teacher" else system
        results[f"eer_{name}_percent"] = scored["eer_percent"]
        results[f"min_dcf_0.05_{name}"] = scored["min_dcf_0.05"]
    results |= {"trials": scored["trials"], "targets": scored["targets"]}
    storage.write_text(workdir / "results.json", json.dumps(results, indent=2) + "\n")
    print(closing_words(results, workdir))
    return results


def closing_words(results: dict, workdir: Path) -> str:
    """Composes the closing table, where every file is, and the commands for your own data."""
    rows = [
        ("mean and deviation of log-mel", "statistics"),
        ("encoder, untrained", "untrained"),
        ("encoder, trained", "trained"),
    ]
    table = "\n".join(
        f"  {label:32s} {results[f'eer_{name}_percent']:6.2f} %   {results[f'min_dcf_0.05_{name}']:7.3f}"
        for label, name in rows
    )
    return f"""
Equal error rate on {results["trials"]} trials ({results["targets"]} of one speaker), lower is better
  {"embedding":32s} {"EER":>8s}   minDCF(0.05)
{table}

What is where
  {workdir}/corpus          the recordings and trials.txt
  {workdir}/shards          prepared features
  {workdir}/checkpoints     what a resumed run and the export read
  {workdir}/training.png    losses, EER and signs of collapse over the steps
  {workdir}/metrics.jsonl   the same as numbers; TensorBoard: tensorboard --logdir={workdir}
  {workdir}/scores          embeddings (.npz), and per system det.png, histogram.png, scores.txt, results.json
  {workdir}/results.json    the table above

The same with your own recordings (a folder of WAV, FLAC, OGG, MP3 or M4A; no labels)
  sdpn prepare --input=RECORDINGS --output=data/mine [--noise=MUSAN --rirs=RIRS]
  sdpn train --config=own --config.data_dir=data/mine --workdir=runs/mine
  sdpn embed OTHER_RECORDINGS --model=runs/mine --output=embeddings.npz
  sdpn score --embeddings=embeddings.npz --trials=TRIALS.txt --output=scores   (lines: 1 a.wav b.wav)
"""


def _announce(number: str, what: str, detail: str) -> None:
    logging.info("---- %s %s: %s", number, what, detail)
