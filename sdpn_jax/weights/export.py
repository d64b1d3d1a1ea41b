"""A training run's network as a folder to keep and share: config.json, model.safetensors, model card.

    python -m sdpn_jax.weights.export --workdir=runs/vox2 --output=models/vox2 --results=runs/vox2/vox1_o/results.json

--results is what sdpn_jax.eval.score wrote: its error rate goes into the model card, its threshold becomes the one of
`verify`. SpeakerEncoder.load takes the folder; the weights in it are bit for bit those of the checkpoint.
"""

import json
from pathlib import Path

from absl import flags

from sdpn_jax import errors
from sdpn_jax.data import records
from sdpn_jax.errors import UserError
from sdpn_jax.speaker.corpus import load_encoder
from sdpn_jax.training import checkpoint
from sdpn_jax.weights import model_folder


def read_results(path: str | Path) -> dict:
    """The results.json of a scored list with labels; UserError where it is none."""
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        return {key: results[key] for key in ("eer_percent", "threshold_at_eer", "trials", "trials_file")}
    except OSError as error:
        raise UserError(f"cannot read --results={path} ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"--results={path} is not the results.json of a scored list with labels") from None


def facts(config: dict, which: str, step: int, results: dict | None) -> dict[str, str]:
    """What people want to know of a model."""
    about = {"weights": f"{which}, step {step:,}"}
    if "converted_from" in config:
        about["converted from"] = f"{config['converted_from']}, a checkpoint of the released PyTorch code"
    else:
        about["weights"] += f" of batches of {config['batch_size']}"
        about["trained on"] = source_of(config["data_dir"])
    if results:
        about["equal error rate"] = (
            f"{results['eer_percent']:.2f} % on {results['trials']:,} trials of {Path(results['trials_file']).name}"
        )
        about["threshold there"] = f"cosine {results['threshold_at_eer']:.4f}"
    return about


def source_of(data_dir: str) -> str:
    """What the shards were made of."""
    try:
        data = records.read_metadata(data_dir)
    except UserError:
        return f"shards in {data_dir}, which are gone"
    return f"{data['source']}: {data['utterances']:,} utterances, {data['hours']:.1f} hours, no labels"


def export_model(
    workdir: str | Path,
    output: str | Path,
    which: str = "teacher",
    step: int | None = None,
    results_path: str | Path | None = None,
    license: str = "unknown",
) -> dict:
    """Writes the model folder and returns the facts of its card."""
    results = read_results(results_path) if results_path else None
    _, variables, step = load_encoder(workdir, step, which)
    config = checkpoint.read_config(workdir)
    about = facts(config, which, step, results)
    threshold = results and results["threshold_at_eer"]
    model_folder.write_model(output, config["model"], variables, about, threshold, license)
    return about


def main(_) -> None:
    about = export_model(FLAGS.workdir, FLAGS.output, FLAGS.encoder, FLAGS.step, FLAGS.results, FLAGS.license)
    for name, value in about.items():
        print(f"{name}: {value}")
    for name in (model_folder.CONFIG, model_folder.WEIGHTS, model_folder.CARD):
        print(f"wrote {Path(FLAGS.output) / name}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("workdir", None, "Training run: the folder with config.json and checkpoints/.", required=True)
    flags.DEFINE_string("output", None, "The folder to write.", required=True)
    flags.DEFINE_string("results", None, "results.json of sdpn_jax.eval.score, for error rate and threshold.")
    flags.DEFINE_string("license", "unknown", "Of the weights, for the model card (an SPDX identifier).")
    flags.DEFINE_enum("encoder", "teacher", ["teacher", "student"], "Whose weights.")
    flags.DEFINE_integer("step", None, "Checkpoint to take; default the newest.")
    errors.run(main)
