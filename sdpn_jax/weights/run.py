"""A training run as others read it: its config.json and the networks in its checkpoints. Reading writes nothing."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from sdpn_jax import storage
from sdpn_jax.errors import UserError
from sdpn_jax.models.network import Network, initial_variables, network_of
from sdpn_jax.weights import checks
from sdpn_jax.weights.bucket import BucketCheckpoints, complete_steps

CONFIG, CHECKPOINTS, HISTORY = "config.json", "checkpoints", "history.json"
FIELDS = {"model": dict, "num_prototypes": int, "batch_size": int, "seed": int, "data_dir": str, "converted_from": str}
KINDS = {dict: "object", int: "whole number", str: "text"}
ORIGIN = ("source", "networks", "fingerprint")
MOST_HISTORY, MOST_ORIGINS = 16 << 20, 50  # bytes, and runs that began from each other
DAMAGED = (ValueError, KeyError, TypeError, FileNotFoundError)  # what Orbax raises for files cut, garbled or missing
OUT_OF_REACH = (OSError, RuntimeError, MemoryError)  # of which JAX's errors are a kind: out of memory, a lost host
# How TensorStore begins the ValueError of a file system that does not answer.
NOT_ANSWERING = (
    "UNAVAILABLE",
    "RESOURCE_EXHAUSTED",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "DEADLINE_EXCEEDED",
    "ABORTED",
)
RETRIES, FIRST_PAUSE_S, DAMAGE_PAUSE_S = 3, 2.0, 0.2
UNCHANGED = "nothing was changed. Run the same command again when storage and memory are back"


def is_run(workdir: str | os.PathLike) -> bool:
    """Tells whether a training run left checkpoints in this folder."""
    return (
        not storage.is_hub(workdir)
        and storage.is_folder(workdir)
        and storage.is_folder(storage.place(workdir) / CHECKPOINTS)
    )


def read_config(workdir: str | os.PathLike) -> dict[str, Any] | None:
    """Reads the config that the run in this workdir was started with; None if there is no run.

    Raises UserError for a file that is damaged, or has a field of another kind than `FIELDS` says.
    """
    path = storage.place(workdir) / CONFIG
    try:
        config = storage.read_json(path) if storage.exists(path) else None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): put back the config.json of this run") from error
    if config is not None and not isinstance(config, dict):
        raise UserError(f"{path} is not the config of a training run")
    for name, kind in FIELDS.items():
        value = (config or {}).get(name, kind())
        if type(value) is not kind or (kind is int and not 0 <= value < 2**63):
            raise UserError(f"{path} is not the config of a training run: {name} is no {KINDS[kind]}")
    return config


def read_history(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads how a run came to be, oldest first; see training/history.py. Empty for runs of earlier versions.

    Raises UserError for a file that is damaged.
    """
    path = storage.place(workdir) / HISTORY
    try:
        entries = storage.read_json(path, MOST_HISTORY) if storage.exists(path) else []
        _check_entries(entries, 0)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete it, and the run forgets how it came to be") from error
    return entries


def _check_entries(entries: Any, depth: int) -> None:
    """Raises ValueError for a history of another form than training/history.py writes."""
    if type(entries) is not list or depth > MOST_ORIGINS:
        raise ValueError("it is no list of entries")
    for entry in entries:
        if type(entry) is not dict or not _is_step(entry.get("step")):
            raise ValueError("an entry's step is no number")
        if type(entry.get("data", "")) is not str or type(entry.get("schedule", {})) is not dict:
            raise ValueError("an entry's data is no text, or its schedule no object")
        origin = entry.get("origin", {})
        if type(origin) is not dict or not all(type(origin.get(name, "")) is str for name in ORIGIN):
            raise ValueError(f"an entry's origin has no texts {', '.join(ORIGIN)}")
        if "step" in origin:  # of another run, which has a history of its own
            if not _is_step(origin["step"]):
                raise ValueError("an origin's step is no number")
            _check_entries(origin.get("history", []), depth + 1)


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def steps_of(workdir: str | os.PathLike) -> list[int]:
    """Lists the steps of a run's checkpoints, oldest first, complete ones alone.

    Any process may ask alone: unlike Orbax's manager it waits for no other one.
    """
    return complete_steps(storage.place(workdir) / CHECKPOINTS)


def opened(workdir: str | os.PathLike, options: ocp.CheckpointManagerOptions) -> Any:
    """Opens a run's checkpoints: ocp.CheckpointManager, or what does its work where Orbax cannot write.

    Raises UserError for several processes on a bucket that Orbax cannot write to, and for a folder out of reach.
    """
    folder, alone = storage.place(workdir) / CHECKPOINTS, jax.process_count() == 1
    if storage.is_bucket(folder) and alone:
        return BucketCheckpoints(folder, options)
    if storage.is_bucket(folder) and not str(folder).startswith("gs://"):
        raise UserError(f"{workdir}: several processes can write checkpoints to gs:// or a shared folder alone")
    where = folder if storage.is_bucket(folder) else Path(folder).absolute()
    # Processes meet in there: one of several cannot try again alone.
    opening = lambda: ocp.CheckpointManager(where, options=options)  # noqa: E731
    checkpoints, _, why = _read_again_and_again(opening, RETRIES if alone else 0)
    if checkpoints is None:
        raise UserError(f"{folder} is out of reach ({why}); {UNCHANGED}")
    return checkpoints


def open_to_read(workdir: str | os.PathLike) -> Any:
    """Opens a run's checkpoints, of which there must be a folder, to read."""
    return opened(workdir, ocp.CheckpointManagerOptions(create=False))


def restore(
    checkpoints: Any,
    templates: dict[str, Any],
    step: int | None = None,
    agree: Callable[[bool], bool] = bool,
    partly: bool = False,
) -> tuple[dict[str, Any], int]:
    """Restores ({part name: tree}, step) of checkpoint `step` (default: the newest readable), the parts in `templates`.

    Templates (arrays or jax.ShapeDtypeStruct) give shapes, types and shardings; `partly`: of some of a part's arrays
    alone. `agree` tells whether all processes
    say yes. Damaged checkpoints are named in a warning and passed over. One that cannot be reached (an I/O error, no
    memory left) is tried again and then ends the run: it may be whole. Raises UserError when there is no such
    checkpoint, when one is out of reach, or when none can be read.
    """
    steps = sorted(checkpoints.all_steps(), reverse=True)
    if not steps or (step is not None and step not in steps):
        have = f"it has steps {steps[::-1]}" if steps else "there is none yet"
        raise UserError(f"no checkpoint{'' if step is None else f' of step {step}'} in {checkpoints.directory}: {have}")
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, templates)
    items: dict[str, Any] = {name: _restore_args(tree, partly) for name, tree in abstract.items()}
    why = ""
    for candidate in steps if step is None else [step]:
        read = lambda step=candidate: checkpoints.restore(step, args=ocp.args.Composite(**items))  # noqa: E731
        restored, reached, why = _read_again_and_again(read)
        if not agree(reached):
            raise UserError(
                f"checkpoint {candidate} in {checkpoints.directory} is out of reach ({why or 'for another process'}); "
                f"{UNCHANGED}"
            )
        if agree(restored is not None):
            return {name: restored[name] for name in templates}, candidate
        logging.warning("checkpoint %d in %s is damaged (%s)", candidate, checkpoints.directory, why)
    raise UserError(
        f"no checkpoint in {checkpoints.directory} can be read as the model of this config ({why}): "
        "use the config it was trained with, or another --workdir"
    )


def _restore_args(tree: Any, partly: bool) -> Any:
    """How Orbax is asked for a tree, or for a tree of some of the arrays that it saved together."""
    if not partly:
        return ocp.args.StandardRestore(tree)
    wanted = ocp.checkpoint_utils.construct_restore_args(tree)
    return ocp.args.PyTreeRestore(tree, restore_args=wanted, partial_restore=True)


def _read_again_and_again(read: Callable[[], Any], retries: int = RETRIES) -> tuple[Any, bool, str]:
    """Returns (what `read` gives or None, whether its files could be reached, why not); pauses between the tries.

    Damage must show twice: Orbax takes files for missing that only could not be looked at.
    """
    pause, why, was_damaged = FIRST_PAUSE_S, "", False
    for left in reversed(range(retries + 1)):
        try:
            return read(), True, ""
        except (*DAMAGED, *OUT_OF_REACH) as error:
            why = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            damaged = isinstance(error, DAMAGED) and not str(error).startswith(NOT_ANSWERING)
            if damaged and was_damaged:
                return None, True, why
            was_damaged = damaged
        if left and was_damaged:
            time.sleep(DAMAGE_PAUSE_S)
        elif left:
            logging.warning("checkpoints are out of reach (%s); trying again in %.0f s", why, pause)
            time.sleep(pause)
            pause *= 2
    return None, False, why


def on_one_device(template: Any) -> Any:
    """Describes arrays that shall be on this process's first device, wherever they were when they were saved."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), template)


def read_network(
    workdir: str | os.PathLike, step: int | None = None, which: str = "teacher"
) -> tuple[Network, dict[str, Any], int]:
    """Reads network, variables and step of a training run: its "teacher" or "student", or the network "untrained".

    The network computes in float32, whatever its run computes its steps in. Raises UserError when there is no run or no
    checkpoint.
    """
    config = read_config(workdir)
    if config is None:
        raise UserError(f"no training run in {workdir} ({CONFIG} is missing): give the --workdir of `sdpn train`")
    try:
        sizes = config.get("model", {}) | {"dtype": "float32", "remat": False}
        checks.check_sizes(sizes)
    except ValueError as error:
        raise UserError(f"{storage.place(workdir) / CONFIG} is not the config of a training run ({error})") from error
    network, seed = network_of(sizes), config.get("seed", 0)  # converted weights have no seed
    if which == "untrained":
        return network, initial_variables(network, seed), 0
    folder = storage.place(workdir) / CHECKPOINTS
    if not storage.is_folder(folder):
        raise UserError(f"no checkpoint in {folder}: there is none yet")
    template = on_one_device(jax.eval_shape(lambda: initial_variables(network, seed)))
    with open_to_read(workdir) as checkpoints:
        parts, step = restore(checkpoints, {which: template}, step)
    return network, parts[which], step
