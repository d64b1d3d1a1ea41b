"""How a run came to be: what it began from, with which data, and where its schedule was changed.

<workdir>/history.json holds a list of entries, each {"step": the first it speaks of, "date": ..., "data": fingerprint,
"schedule": {field: value}}; the first one also {"origin": ...} where the run began from other weights.
"""

import datetime
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from sdpn_jax import config as configs
from sdpn_jax import storage
from sdpn_jax.config import Config
from sdpn_jax.errors import UserError
from sdpn_jax.training import checkpoint
from sdpn_jax.weights import run


def check(config: Config, workdir: str | os.PathLike, data: str, extend: bool) -> None:
    """Checks that a run with checkpoints goes on as itself: same model, objective, data, and unless `extend` schedule.

    data: fingerprint of the shards. Raises UserError otherwise.
    """
    theirs = run.read_config(workdir)
    if theirs is None:
        raise UserError(f"{workdir} holds checkpoints and no {run.CONFIG}: put it back, or choose another --workdir")
    configs.check_same_run(config, theirs, workdir, extend)
    known = [entry["data"] for entry in run.read_history(workdir) if "data" in entry]
    if known and known[-1] != data:
        raise UserError(
            f"{config.data_dir} holds other data than the run in {workdir} was trained on, wherever that lies now: "
            "name the folder with its shards, or begin a new run (--config.init_from takes its weights)"
        )
    if not known and "data_dir" in theirs and not _same_place(theirs["data_dir"], config.data_dir):
        raise UserError(
            f"the run in {workdir} is of an earlier version, which knew its data by their path alone: resume it once "
            f"with --config.data_dir={theirs['data_dir']} (a link to where they are now will do)"
        )


def _same_place(a: str, b: str) -> bool:
    return os.path.normpath(a) == os.path.normpath(b) or Path(a).resolve() == Path(b).resolve()


def check_end(step: int, num_steps: int) -> None:
    """Raises UserError for a schedule that ends before the step that the run has reached."""
    if num_steps < step:
        raise UserError(f"the run has reached step {step}, beyond the {num_steps} steps of this config: ask for more")


def record(
    config: Mapping[str, Any], workdir: str | os.PathLike, step: int, data: str, origin: Mapping[str, Any] | None = None
) -> None:
    """Writes config.json, and into history.json what is new at `step`, where the run begins or goes on.

    config: as `configs.as_json` keeps it. Entries beyond `step` speak of what is computed again, and go.
    """
    earlier = run.read_config(workdir) if step else None
    entries = [entry for entry in run.read_history(workdir) if step and entry["step"] <= step]
    schedule = configs.schedule_of(dict(config))
    if earlier and not entries and "converted_from" not in earlier:  # of a version that kept no history
        entries = [{"step": 0, "schedule": configs.schedule_of(earlier)}]
    before = entries[-1].get("schedule") if entries else None
    if before != schedule or not any("data" in entry for entry in entries):
        entry: dict[str, Any] = {"step": step, "date": _now(), "data": data, "schedule": schedule}
        if origin:
            entry["origin"] = origin
        changed = [f"{name} {before.get(name)} -> {value}" for name, value in schedule.items()
                   if before is not None and before.get(name) != value]  # fmt: skip
        if changed:
            logging.info("from step %d on the schedule is another: %s", step, ", ".join(changed))
        entries = [kept for kept in entries if kept["step"] < step or "origin" in kept] + [entry]
    checkpoint.write_config(workdir, dict(config))
    storage.write_text(storage.place(workdir) / run.HISTORY, json.dumps(entries, indent=2) + "\n")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
