"""A trained encoder from wherever it is kept: model folder, training run, or a file of weights."""

import os
from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from sdpn_jax import storage
from sdpn_jax.decision import Decision
from sdpn_jax.errors import UserError, shown
from sdpn_jax.models.network import Network, network_of
from sdpn_jax.weights import hub, model_folder, sdpn_names

FILES_OF_FOLDERS = f"{sdpn_names.SPEECHBRAIN}.ckpt", "avg_model.pt"  # as SpeechBrain and WeSpeaker hand them out
OF_WHOLE_FOLDERS = model_folder.WEIGHTS, "checkpoints"  # in a model folder, in a training workdir


def located(path: str | os.PathLike) -> storage.Place:
    """Finds a model, on this machine if a hub has it: a file of weights, a model folder or a training workdir.

    path: as for `load_network`; what does not exist stays as it is. Raises UserError for a folder of several files of
    weights, and as `hub.fetched` does.
    """
    if storage.is_hub(path):
        return hub.fetched(path, file_of)
    path = storage.place(path)
    file = file_of(storage.names(path), os.fspath(path)) if storage.is_folder(path) else None
    return path / file if file else path


def file_of(names: Collection[str], folder: str) -> str | None:
    """Tells which of the names in a folder is the model's file; None if the folder is the model, or holds none.

    Raises UserError for several files of weights none of which is known by its name.
    """
    for name in FILES_OF_FOLDERS:
        if name in names:
            return name
    weights = sorted(name for name in names if name.endswith(hub.ENDINGS))
    if not weights or any(name in names for name in OF_WHOLE_FOLDERS):
        return None
    if len(weights) > 1:
        raise UserError(
            f"{folder} holds {len(weights)} files of weights ({sdpn_names.first_of(weights, 10)}): name one of them, "
            f"such as {folder.rstrip('/')}/{shown(weights[0])}"
        )
    return weights[0]


def load_network(
    path: str | os.PathLike, which: str = "teacher", step: int | None = None
) -> tuple[Network, dict[str, Any], float | None]:
    """Loads a trained encoder: (network, variables, threshold or None); see `load_decided`."""
    network, variables, decision = load_decided(path, which, step)
    return network, variables, decision.threshold


def load_decided(
    path: str | os.PathLike, which: str = "teacher", step: int | None = None
) -> tuple[Network, dict[str, Any], Decision]:
    """Loads a trained encoder: (network, variables, threshold and calibration where it has any).

    path: a model folder (`sdpn export`), a training workdir, a checkpoint of the released PyTorch code or of RDINO, of
    which the teacher is taken, an ECAPA-TDNN of 3D-Speaker or SpeechBrain, a ResNet or ECAPA-TDNN of WeSpeaker,
    CAM++ of 3D-Speaker or WeSpeaker, ERes2NetV2 of 3D-Speaker, weights under the released names (.safetensors), a
    folder with one such file, or the address of any but a workdir in a hub (hf://OWNER/NAME, modelscope://OWNER/NAME;
    see hub.py). The head may be missing from the variables.
    which: the run's "teacher" or "student", or the network "untrained"; step: the run's checkpoint, by default the
    newest. Raises UserError when there is no such thing, when it cannot be read, or when it is no run and has neither
    student nor steps, and as `located` does.
    """
    path = located(path)
    if storage.is_folder(path) and not model_folder.is_model(path):
        from sdpn_jax.weights import run  # which loads Orbax

        network, variables, _ = run.read_network(path, step, which)
        return network, variables, Decision()
    if not storage.exists(path):
        raise UserError(f"{path} does not exist: give a model folder, a training workdir or a PyTorch checkpoint")
    if which != "teacher" or step is not None:
        raise UserError(f"{path} is no training run: it has one network, no {which} and no steps to choose from")
    if storage.is_folder(path):
        network, variables, config = model_folder.read_model(path)
        return network, variables, model_folder.decision_of(config)
    if path.suffix == ".safetensors":
        sizes, variables = sdpn_names.from_released(model_folder.read_arrays(path), str(path))
    else:
        sizes, variables = sdpn_names.read_encoder(path)
    return network_of(sizes), jax.tree.map(lambda x: np.asarray(x, np.float32), variables), Decision()
