"""A trained encoder from wherever it is kept: model folder, training run, or a file of weights."""

import os
from typing import Any

import jax
import numpy as np

from sdpn_jax import storage
from sdpn_jax.errors import UserError
from sdpn_jax.models.network import Network, network_of
from sdpn_jax.weights import model_folder, sdpn_names

FILES_OF_FOLDERS = f"{sdpn_names.SPEECHBRAIN}.ckpt", "avg_model.pt"  # as SpeechBrain and WeSpeaker hand them out


def load_network(
    path: str | os.PathLike, which: str = "teacher", step: int | None = None
) -> tuple[Network, dict[str, Any], float | None]:
    """Loads a trained encoder: (network, variables, threshold or None).

    path: a model folder (`sdpn export`), a training workdir, a checkpoint of the released PyTorch code or of RDINO, of
    which the teacher is taken, an ECAPA-TDNN of 3D-Speaker or SpeechBrain, a ResNet of WeSpeaker (a file, or the folder
    of the latter two), or weights under the released names (.safetensors). The head may be missing from the variables.
    which: the run's "teacher" or "student", or the network "untrained"; step: the run's checkpoint, by default the
    newest. Raises UserError when there is no such thing, when it cannot be read, or when it is no run and has neither
    student nor steps.
    """
    path = storage.place(path)
    if storage.is_folder(path):
        path = next((path / name for name in FILES_OF_FOLDERS if storage.exists(path / name)), path)
    if storage.is_folder(path) and not model_folder.is_model(path):
        from sdpn_jax.weights import run  # which loads Orbax

        network, variables, _ = run.read_network(path, step, which)
        return network, variables, None
    if not storage.exists(path):
        raise UserError(f"{path} does not exist: give a model folder, a training workdir or a PyTorch checkpoint")
    if which != "teacher" or step is not None:
        raise UserError(f"{path} is no training run: it has one network, no {which} and no steps to choose from")
    if storage.is_folder(path):
        network, variables, config = model_folder.read_model(path)
        return network, variables, config["threshold"]
    if path.suffix == ".safetensors":
        sizes, variables = sdpn_names.from_released(model_folder.read_arrays(path), str(path))
    else:
        sizes, variables = sdpn_names.read_encoder(path)
    return network_of(sizes), jax.tree.map(lambda x: np.asarray(x, np.float32), variables), None
