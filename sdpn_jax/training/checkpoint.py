"""Checkpoints with Orbax: asynchronous, complete or absent, the newest readable one found again after a kill."""

import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from sdpn_jax import storage
from sdpn_jax.errors import UserError, fault_of_machine
from sdpn_jax.training import sharding
from sdpn_jax.training.step import Labelled, Positives, TrainState
from sdpn_jax.weights import run

DAMAGED = "damaged-checkpoints"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def manager(workdir: str | os.PathLike, keep: int = 3, keep_every: int = 0) -> Any:
    """Opens the manager of <workdir>/checkpoints, which writes in the background.

    It keeps the newest `keep` and, if `keep_every` is not 0, all whose step is a multiple of it.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, keep_period=keep_every or None, enable_async_checkpointing=True
    )
    return run.opened(workdir, options)


def parts_of(state: TrainState) -> dict[str, Any]:
    """Splits a state into the parts of a checkpoint, so that a network can be read without the rest."""
    rest = {"step": state.step, "prototypes": state.prototypes, "offset": state.offset, "opt_state": state.opt_state}
    parts = {"student": state.student, "teacher": state.teacher, "rest": rest}
    if state.positives is not None:
        parts["positives"] = {name: getattr(state.positives, name) for name in Positives.__dataclass_fields__}
    if state.labelled is None:
        return parts
    trust = {"losses": state.labelled.losses, "gate": state.labelled.gate}
    return {**parts, "classes": {"centres": state.labelled.centres}, "trust": trust}


def state_of(parts: dict[str, Any]) -> TrainState:
    """Puts together the state that `parts_of` took apart."""
    labelled = Labelled(**parts["classes"], **parts["trust"]) if "classes" in parts else None
    positives = Positives(**parts["positives"]) if "positives" in parts else None
    return TrainState(
        student=parts["student"], teacher=parts["teacher"], **parts["rest"], labelled=labelled, positives=positives
    )


def save(checkpoints: Any, step: int, parts: dict[str, Any], config: dict[str, Any]) -> None:
    """Starts writing {part name: tree of arrays} under `step`; returns once the arrays are copied.

    Raises UserError when this one, or the one before, could not be written. The part `about` holds the config and the
    versions of everything that computed it.
    """
    items: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in parts.items()}
    items["about"] = ocp.args.JsonSave({"config": config, "versions": versions()})
    with _save_errors(checkpoints):
        checkpoints.save(step, args=ocp.args.Composite(**items))


def wait(checkpoints: Any) -> None:
    """Waits until what `save` began is written; raises what it failed of."""
    with _save_errors(checkpoints):
        checkpoints.wait_until_finished()


@contextlib.contextmanager
def _save_errors(checkpoints: Any) -> Iterator[None]:
    """Gives one line to files that could not be written: Orbax finds them missing where the system said why before."""
    try:
        yield
    except (OSError, ValueError) as error:
        if fault_of_machine(error):
            raise
        why = " ".join(str(error).split())[:300]
        raise UserError(
            f"a checkpoint could not be written to {checkpoints.directory} ({why}): look at the storage and run the "
            "same command again; complete checkpoints are kept"
        ) from error


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a run's numbers depend on."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def resume(checkpoints: Any, templates: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Restores (parts, step) of the newest checkpoint that all processes can read; see `weights.run.restore`.

    Newer ones, which are damaged, are moved to <workdir>/damaged-checkpoints: the run will write these steps again.
    """
    parts, step = run.restore(checkpoints, templates, agree=sharding.all_agree)
    damaged = [other for other in checkpoints.all_steps() if other > step]
    for other in damaged:
        if jax.process_index() == 0:
            place = set_aside(storage.place(checkpoints.directory) / str(other))
            logging.warning("going on from step %d; the damaged checkpoint of step %d is now %s", step, other, place)
    if damaged:
        sharding.all_agree(True)  # that they are gone, before anybody looks again
        checkpoints.reload()
    return parts, step


def set_aside(checkpoint: storage.Place) -> storage.Place:
    """Moves a damaged checkpoint to a folder that says so, beside the others' folder, and returns its new place."""
    folder = storage.make_folder(checkpoint.parent.parent / DAMAGED)
    taken = storage.names(folder)
    number = next(number for number in itertools.count() if f"{checkpoint.name}-{number}" not in taken)
    return storage.rename(checkpoint, folder / f"{checkpoint.name}-{number}")


def write_config(workdir: str | os.PathLike, config: dict[str, Any]) -> None:
    """Writes the run's config beside its checkpoints, as <workdir>/config.json."""
    storage.write_text(storage.make_folder(workdir) / run.CONFIG, json.dumps(config, indent=2, allow_nan=False) + "\n")
