"""A run that begins from a checkpoint of the released PyTorch implementation."""

import os
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from sdpn_jax import storage
from sdpn_jax.config import FIELDS
from sdpn_jax.errors import UserError
from sdpn_jax.training import checkpoint, optim
from sdpn_jax.training.step import TrainState, drawn_prototypes
from sdpn_jax.weights import run, sdpn_names
from sdpn_jax.weights.load import located

DRAWN_PROTOTYPES = 1024  # the paper's, for files that hold none


def is_checkpoint(source: str | os.PathLike) -> bool:
    """Tells whether a file holds SDPN's student and teacher, with the head of which training can go on."""
    place = located(source)
    if storage.is_folder(place) or place.suffix == ".safetensors":
        return False
    return sdpn_names.holds_both(place)


def state_from(student: dict, teacher: dict, prototypes: np.ndarray, step: int) -> TrainState:
    """Makes the state of a run that goes on from these weights at `step`: float32, without momentum or offset."""
    student, teacher = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (student, teacher))
    learnt = jnp.asarray(prototypes, jnp.float32)
    # What SGD remembers has the same form for all settings; config.check_same_run refuses other optimizers.
    optimizer = optim.optimizer(lambda _: 0.0, momentum=0.9, weight_decay=0.0, clip_norm=1.0)
    opt_state = optimizer.init({"network": student["params"], "prototypes": learnt})
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        student=student,
        teacher=teacher,
        prototypes=learnt,
        offset=jnp.zeros(len(prototypes)),
        opt_state=optax.tree.set(opt_state, count=jnp.asarray(step, jnp.int32)),
    )


def to_workdir(source: str | os.PathLike, workdir: str | os.PathLike, step: int = 0) -> dict:
    """Makes a training run of a released checkpoint, at `step`, and returns its config.

    The config says only what the weights do, and where they are from: a run that goes on may choose everything else.
    Raises UserError when the checkpoint cannot be used or there is a run already.
    """
    workdir = storage.place(workdir)
    if storage.exists(workdir / run.CONFIG) or storage.exists(workdir / run.CHECKPOINTS):
        raise UserError(f"{workdir} holds a run already: choose another --output, or delete that one")
    sizes, student, teacher, prototypes = sdpn_names.read_checkpoint(located(source))
    if prototypes is None:
        shape = DRAWN_PROTOTYPES, sizes["projection_size"]
        prototypes = np.asarray(drawn_prototypes(*shape, seed=0))
        logging.warning("%s holds no prototypes: %d are drawn anew, and learnt as training goes on", source, shape[0])
    config = {"converted_from": str(source), "model": sizes, "num_prototypes": len(prototypes)}
    state = state_from(student, teacher, prototypes, step)
    with checkpoint.manager(workdir) as checkpoints:
        checkpoint.save(checkpoints, step, checkpoint.parts_of(state), config)
        checkpoints.wait_until_finished()
    checkpoint.write_config(workdir, config)  # last: a run without it is not whole
    return config


def size_flags(config: dict) -> str:
    """Writes the `sdpn train` flags, each followed by a space, for sizes other than those of configs/vox2.py."""
    ours = {"num_prototypes": config["num_prototypes"]} | {f"model.{k}": v for k, v in config["model"].items()}
    other = [f"--config.{name}={value}" for name, value in ours.items() if value != FIELDS[name].default]
    return "".join(f"{shlex.quote(flag)} " for flag in other)
