"""A run's weights under the names of the released PyTorch implementation."""

import os

import jax
import safetensors.numpy
from absl import logging

from sdpn_jax import storage
from sdpn_jax.weights import run, sdpn_names


def to_safetensors(
    workdir: str | os.PathLike, output: str | os.PathLike, which: str = "teacher", step: int | None = None
) -> int:
    """Writes encoder and head of a run's "teacher" or "student" under the released names; returns their step.

    Raises UserError when there is no run or no checkpoint of `step` (default: the newest).
    """
    network, variables, step = run.read_network(workdir, step, which)
    state = sdpn_names.to_released(jax.device_get(variables), step)
    storage.make_folder(storage.place(output).parent)
    about = {"format": "pt", "encoder": which, "step": str(step)}
    storage.write_bytes(output, safetensors.numpy.save(state, about))
    logging.info("%s of %s, step %d", which, workdir, step)
    return step
