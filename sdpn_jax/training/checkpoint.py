"""Checkpoints with Orbax: asynchronous, complete or absent, the newest readable one found again after a kill."""

import importlib.metadata
import json
import platform
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from absl import logging

from sdpn_jax import storage
from sdpn_jax.errors import UserError
from sdpn_jax.training import sharding

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
UNREADABLE = (ValueError, KeyError, TypeError, OSError, RuntimeError)  # what Orbax raises for damaged files


def manager(workdir: str | Path, keep: int = 3, keep_every: int = 0) -> ocp.CheckpointManager:
    """The manager of <workdir>/checkpoints, which writes in the background.

    It keeps the newest `keep` and, if `keep_every` is not 0, all whose step is a multiple of it.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, keep_period=keep_every or None, enable_async_checkpointing=True
    )
    return ocp.CheckpointManager(Path(workdir).absolute() / "checkpoints", options=options)


def save(checkpoints: ocp.CheckpointManager, step: int, parts: dict, config: dict) -> None:
    """Starts writing {part name: tree of arrays} under `step`; returns once the arrays are copied.

    The part `about` holds the config and the versions of everything that computed it.
    """
    items = {name: ocp.args.StandardSave(tree) for name, tree in parts.items()}
    items["about"] = ocp.args.JsonSave({"config": config, "versions": versions()})
    checkpoints.save(step, args=ocp.args.Composite(**items))


def versions() -> dict[str, str]:
    """Of Python and of the packages that a run's numbers depend on."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def restore(checkpoints: ocp.CheckpointManager, templates: dict, step: int | None = None) -> tuple[dict, int]:
    """({part name: tree}, step) of checkpoint `step` (default: the newest readable) for the parts in `templates`.

    Templates (arrays or jax.ShapeDtypeStruct) give shapes, types and shardings. Checkpoints that cannot be read are
    named in a warning. Raises UserError when there is no such checkpoint, or when none can be read.
    """
    steps = sorted(checkpoints.all_steps(), reverse=True)
    if not steps or (step is not None and step not in steps):
        have = f"it has steps {steps[::-1]}" if steps else "there is none yet"
        raise UserError(f"no checkpoint{'' if step is None else f' of step {step}'} in {checkpoints.directory}: {have}")
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, templates)
    items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
    why = ""
    for candidate in steps if step is None else [step]:
        try:
            restored = checkpoints.restore(candidate, args=ocp.args.Composite(**items))
        except UNREADABLE as error:
            restored, why = None, str(error).strip().splitlines()[0]
        if sharding.all_agree(restored is not None):
            return {name: restored[name] for name in templates}, candidate
        logging.warning("checkpoint %d in %s cannot be read (%s)", candidate, checkpoints.directory, why)
    raise UserError(
        f"no checkpoint in {checkpoints.directory} can be read as the model of this config ({why}): "
        "use the config it was trained with, or another --workdir"
    )


def resume(checkpoints: ocp.CheckpointManager, templates: dict) -> tuple[dict, int]:
    """As `restore`; deletes newer checkpoints that could not be read, as the run will write these steps again."""
    parts, step = restore(checkpoints, templates)
    for damaged in [other for other in checkpoints.all_steps() if other > step]:
        logging.warning("going on from step %d; the damaged checkpoint of step %d is deleted", step, damaged)
        checkpoints.delete(damaged)
    return parts, step


def write_config(workdir: str | Path, config: dict) -> None:
    """Keeps the run's config beside its checkpoints, as <workdir>/config.json."""
    path = Path(workdir) / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_text(path, json.dumps(config, indent=2) + "\n")


def read_config(workdir: str | Path) -> dict | None:
    """The config that the run in this workdir was started with, None where there is no run."""
    path = Path(workdir) / "config.json"
    return json.loads(path.read_text()) if path.exists() else None
