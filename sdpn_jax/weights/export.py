"""A training run's network as a folder to keep and share, with what people want to know of it in its model card."""

import json
import os
from pathlib import Path

from sdpn_jax import storage
from sdpn_jax.data.shards import read_metadata
from sdpn_jax.errors import UserError
from sdpn_jax.weights import model_folder, run


def read_results(path: str | os.PathLike) -> dict:
    """Reads the results.json of a scored list with labels; UserError if it is none."""
    try:
        results = json.loads(storage.read_text(path))
        return {key: results[key] for key in ("eer_percent", "threshold_at_eer", "trials", "trials_file")}
    except OSError as error:
        raise UserError(f"cannot read --results={path} ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"--results={path} is not the results.json of a scored list with labels") from None


def facts(config: dict, history: list[dict], which: str, step: int, results: dict | None) -> dict[str, str]:
    """Collects what people want to know about a model; history: as `run.read_history` gives it."""
    about = {"weights": f"{which}, step {step:,}"}
    if "converted_from" in config:
        about["converted from"] = f"{config['converted_from']}, a checkpoint of the released PyTorch code"
    else:
        about["weights"] += f" of batches of {config['batch_size']}"
        about["trained on"] = source_of(config["data_dir"])
        if origins := [entry["origin"] for entry in history if "origin" in entry]:
            about["begun from"] = described(origins[0])
    if results:
        about["equal error rate"] = (
            f"{results['eer_percent']:.2f} % on {results['trials']:,} trials of {Path(results['trials_file']).name}"
        )
        about["threshold there"] = f"cosine {results['threshold_at_eer']:.4f}"
    return about


def described(origin: dict) -> str:
    """Says in words what weights a run began from, and what those began from."""
    if "step" not in origin:
        return f"{origin['source']} (fingerprint {origin['fingerprint'][:12]})"
    earlier = [described(entry["origin"]) for entry in origin.get("history", []) if "origin" in entry]
    networks = "student and teacher" if origin["networks"] == "both" else "teacher"
    of = f"the {networks} of step {origin['step']:,} of {origin['source']} (fingerprint {origin['fingerprint'][:12]})"
    return of + (f", itself begun from {earlier[0]}" if earlier else "")


def source_of(data_dir: str) -> str:
    """Says what the shards were made of."""
    try:
        data = read_metadata(data_dir)
    except UserError:
        return f"shards in {data_dir}, which are gone"
    return f"{data['source']}: {data['utterances']:,} utterances, {data['hours']:.1f} hours, no labels"


def export_model(
    workdir: str | os.PathLike,
    output: str | os.PathLike,
    which: str = "teacher",
    step: int | None = None,
    results_path: str | os.PathLike | None = None,
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
    about = facts(config, run.read_history(workdir), which, step, results)
    threshold = results["threshold_at_eer"] if results else None
    # The type that a run computes its steps in is the run's own affair, like how it saves memory.
    model = config["model"] | {"dtype": "float32", "remat": False}
    model_folder.write_model(output, model, variables, about, threshold, license)
    return about
