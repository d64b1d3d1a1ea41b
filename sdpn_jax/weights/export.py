"""A trained encoder as a folder to keep and share, with what people want to know of it in its model card."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sdpn_jax import storage
from sdpn_jax.data.shards import read_metadata
from sdpn_jax.decision import Calibration, Decision
from sdpn_jax.errors import UserError
from sdpn_jax.models.network import ADAPTATION, sizes_of
from sdpn_jax.weights import checks, model_folder, run
from sdpn_jax.weights.load import load_decided, load_network, located

MOST_RESULTS = 16 << 20  # bytes
MOST_TEXT = 300  # characters of a name on the card


def read_results(path: str | os.PathLike) -> dict:
    """Reads the results.json of a scored list with labels; UserError if it is none."""
    try:
        content = storage.read_json(path, MOST_RESULTS)
        results = {key: content[key] for key in ("eer_percent", "threshold_at_eer", "trials", "trials_file")}
    except OSError as error:
        raise UserError(f"cannot read --results={path} ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"--results={path} is not the results.json of a scored list with labels") from None
    right = {
        "eer_percent": checks.is_number(results["eer_percent"], 0, 100),
        "threshold_at_eer": checks.is_cosine(results["threshold_at_eer"]),
        "trials": type(results["trials"]) is int and 0 < results["trials"] < 2**63,
        "trials_file": type(results["trials_file"]) is str,
    }
    if wrong := [name for name in right if not right[name]]:
        raise UserError(f"--results={path}: {wrong[0]} is not what `sdpn score` writes: score the list again")
    return results


def facts(config: dict, history: list[dict], which: str, step: int, results: dict | None) -> dict[str, str]:
    """Collects what people want to know about a model; history: as `run.read_history` gives it."""
    about = {"weights": f"{which}, step {step:,}"}
    if "converted_from" in config:
        about["converted from"] = f"{_line(config['converted_from'])}, a checkpoint of the released PyTorch code"
    else:
        if missing := [name for name in ("batch_size", "data_dir") if name not in config]:
            raise UserError(f"the {run.CONFIG} of this run has no {missing[0]}: put back the one it was started with")
        about["weights"] += f" of batches of {config['batch_size']}"
        labels = (
            f"labels of {config.get('labels') or 'the shards'}" if config.get("task") == "classify" else "no labels"
        )
        about["trained on"] = f"{source_of(config['data_dir'])}, {_line(labels)}"
        if origins := [entry["origin"] for entry in history if "origin" in entry]:
            about["begun from"] = described(origins[0])
    return about | (_measured(results) if results else {})


def _measured(results: dict) -> dict[str, str]:
    trials = f"{results['trials']:,} trials of {_line(Path(results['trials_file']).name)}"
    return {
        "equal error rate": f"{results['eer_percent']:.2f} % on {trials}",
        "threshold there": f"cosine {results['threshold_at_eer']:.4f}",
    }


def described(origin: dict) -> str:
    """Says in words what weights a run began from, and what those began from."""
    source = f"{_line(origin.get('source', ''))} (fingerprint {_line(origin.get('fingerprint', 'unknown'))[:12]})"
    if "step" not in origin:
        return source
    earlier = [described(entry["origin"]) for entry in origin.get("history", []) if "origin" in entry]
    networks = "student and teacher" if origin.get("networks") == "both" else "teacher"
    of = f"the {networks} of step {origin['step']:,} of {source}"
    return of + (f", itself begun from {earlier[0]}" if earlier else "")


def _line(text: str) -> str:
    """Writes a text so that it stays within its line of the card."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:MOST_TEXT])


def source_of(data_dir: str) -> str:
    """Says what the shards were made of."""
    try:
        data = read_metadata(data_dir)
    except UserError:
        return f"shards in {data_dir}, which are gone"
    return f"{data['source']}: {data['utterances']:,} utterances, {data['hours']:.1f} hours"


def export_model(
    source: str | os.PathLike,
    output: str | os.PathLike,
    which: str = "teacher",
    step: int | None = None,
    results_path: str | os.PathLike | None = None,
    license: str = "unknown",
    with_head: bool = True,
) -> dict:
    """Writes the model folder of a trained encoder and returns the facts of its card.

    source: what `load_network` takes; of a training run its "teacher" or "student". The weights are bit for bit the
    source's; without the head, which is most of a small model, only training cannot go on with it. results_path: the
    results.json of `sdpn score`, whose error rate goes into the card and whose threshold becomes the model's. Raises
    UserError as `load_network` does, or when the results are none.
    """
    results = read_results(results_path) if results_path else None
    if not run.is_run(source):
        return _export_loaded(source, output, which, step, results, license, with_head)
    _, variables, step = run.read_network(source, step, which)
    config = run.read_config(source) or {}
    about = facts(config, run.read_history(source), which, step, results)
    threshold = results["threshold_at_eer"] if results else None
    # The type that a run computes its steps in is the run's own affair, like how it saves memory.
    model = config["model"] | {"dtype": "float32", "remat": False}
    model_folder.write_model(output, model, _kept(variables, with_head), about, threshold, license)
    return about


def _kept(variables: Mapping, with_head: bool) -> dict:
    """The variables of encoder and adaptation, and of the head if it is wanted."""
    unwanted = () if with_head else ("head",)
    return {kind: {name: of[name] for name in of if name not in unwanted} for kind, of in variables.items()}


def _export_loaded(
    source: str | os.PathLike,
    output: str | os.PathLike,
    which: str,
    step: int | None,
    results: dict | None,
    license: str,
    with_head: bool,
) -> dict:
    place = located(source)
    network, variables, decision = load_decided(place, which, step)
    about, origin = {"converted from": _line(os.fspath(source))}, model_folder.CONVERTED
    if model_folder.is_model(place):
        about, origin = model_folder.read_config(place)["about"], model_folder.TRAINED
    if results:
        about, decision = about | _measured(results), Decision(results["threshold_at_eer"])
    kept = _kept(variables, with_head)
    sizes = sizes_of(network)
    model_folder.write_model(output, sizes, kept, about, decision.threshold, license, origin, decision.calibration)
    return about


def export_adapted(
    source: str | os.PathLike,
    output: str | os.PathLike,
    affine: tuple[np.ndarray, np.ndarray],
    about: Mapping[str, str | float],
    license: str = "unknown",
) -> None:
    """Writes the model in `source`, what `load_network` takes, with an adaptation: mean [D] and transform [D, D].

    about: facts of the adaptation beside the model's own. The folder has no threshold, as cosines change.
    """
    place = located(source)
    network, variables, _ = load_network(place)
    own = model_folder.read_config(place)["about"] if model_folder.is_model(place) else {}
    mean, transform = (np.asarray(array, np.float32) for array in affine)
    variables = {**variables, ADAPTATION: {"mean": mean, "transform": transform}}
    facts = {"adapted from": _line(os.fspath(source))} | own | dict(about)
    sizes = sizes_of(network) | {"dtype": "float32", "remat": False}
    model_folder.write_model(output, sizes, variables, facts, None, license, model_folder.ADAPTED)


def export_calibrated(
    source: str | os.PathLike,
    output: str | os.PathLike,
    calibration: Calibration,
    about: Mapping[str, str | float],
    license: str = "unknown",
) -> None:
    """Gives the model in `source`, what `load_network` takes, a calibration and its threshold.

    output: a new model folder, or `source` itself where that is one; about: facts of the calibration.
    """
    place = located(source)
    if storage.place(output) != place:
        export_model(place, output, license=license)
    model_folder.write_decision(output, Decision(calibration.threshold(), calibration), about)
