"""A training run's network as a folder to keep and share, with what people want to know of it in its model card."""

import json
from pathlib import Path

from sdpn_jax.data.shards import read_metadata
from sdpn_jax.errors import UserError
from sdpn_jax.weights import model_folder, run


def read_results(path: str | Path) -> dict:
    """Reads the results.json of a scored list with labels; UserError if it is none."""
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        return {key: results[key] for key in ("eer_percent", "threshold_at_eer", "trials", "trials_file")}
    except OSError as error:
        raise UserError(f"cannot read --results={path} ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"--results={path} is not the results.json of a scored list with labels") from None


def facts(config: dict, which: str, step: int, results: dict | None) -> dict[str, str]:
    """Collects what people want to know about a model."""
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
    """Says what the shards were made of."""
    try:
        data = read_metadata(data_dir)
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
    """Writes the model folder of a run's "teacher" or "student" and returns the facts of its card.

    results_path: the results.json of `sdpn score`, whose error rate goes into the card and whose threshold becomes the
    model's. The weights are bit for bit those of the checkpoint. Raises UserError when there is no run or no checkpoint
    of `step` (default: the newest), or when the results are none.
    """
    results = read_results(results_path) if results_path else None
    _, variables, step = run.read_network(workdir, step, which)
    config = run.read_config(workdir) or {}
    about = facts(config, which, step, results)
    threshold = results["threshold_at_eer"] if results else None
    model_folder.write_model(output, config["model"], variables, about, threshold, license)
    return about
