"""Checkpoints with Orbax: asynchronous, complete or absent, the newest one found again after a kill."""

import json
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from sdpn_jax import files
from sdpn_jax.errors import UserError


def manager(workdir: str | Path, keep: int = 3) -> ocp.CheckpointManager:
    """The manager of <workdir>/checkpoints, which keeps the newest `keep` and finishes writing in the background."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
    return ocp.CheckpointManager(Path(workdir).absolute() / "checkpoints", options=options)


def save(checkpoints: ocp.CheckpointManager, step: int, parts: dict) -> None:
    """Starts writing {part name: tree of arrays} under `step`; returns once the arrays are copied."""
    items = {name: ocp.args.StandardSave(tree) for name, tree in parts.items()}
    checkpoints.save(step, args=ocp.args.Composite(**items))


def restore(checkpoints: ocp.CheckpointManager, templates: dict, step: int | None = None) -> tuple[dict, int]:
    """({part name: tree}, step) of checkpoint `step` (default: the newest) for the parts named in `templates`.

    Templates (arrays or jax.ShapeDtypeStruct) give shapes, types and shardings. Raises UserError when there is no such
    checkpoint, or when it does not fit.
    """
    steps = checkpoints.all_steps()
    if not steps or (step is not None and step not in steps):
        have = f"it has steps {sorted(steps)}" if steps else "there is none yet"
        raise UserError(f"no checkpoint{'' if step is None else f' of step {step}'} in {checkpoints.directory}: {have}")
    step = max(steps) if step is None else step
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, templates)
    items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
    try:
        restored = checkpoints.restore(step, args=ocp.args.Composite(**items))
    except (ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(
            f"checkpoint {step} in {checkpoints.directory} does not fit the model of this config ({first_line}): "
            "use the config it was trained with, or another --workdir"
        ) from error
    return {name: restored[name] for name in templates}, step


def write_config(workdir: str | Path, config: dict) -> None:
    """Keeps the run's config beside its checkpoints, as <workdir>/config.json."""
    path = Path(workdir) / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(config, indent=2) + "\n")


def read_config(workdir: str | Path) -> dict | None:
    """The config that the run in this workdir was started with, None where there is no run."""
    path = Path(workdir) / "config.json"
    return json.loads(path.read_text()) if path.exists() else None
