"""A new run that begins from weights: those of another run, of a model folder, or of any file that can be read."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict

from sdpn_jax import storage
from sdpn_jax.errors import UserError
from sdpn_jax.models.network import FRONT_END
from sdpn_jax.speaker import embedder
from sdpn_jax.training.margins import drawn_centres
from sdpn_jax.training.step import TrainState
from sdpn_jax.weights import model_folder, run
from sdpn_jax.weights.load import load_network, located

CLASSES = "classes.txt"
SHOWN = 5  # names of what did not fit in the log; the history has all


def read(source: str | os.PathLike, networks: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads weights: ({"student", "teacher": variables, "prototypes": array or absent}, what the history says of them).

    source: what `load_network` takes. networks: "teacher", whose weights both networks get, or "both", each its own,
    which a training run alone has. Raises UserError as `load_network` does.
    """
    place = located(source)
    is_run = run.is_run(place)
    if networks == "both" and not is_run:
        raise UserError(f"init_networks=both, but {source} is no training run: it holds one network")
    about: dict[str, Any] = {"source": os.fspath(source), "networks": networks}
    found: dict[str, Any] = {}
    if is_run:
        network, teacher, step = run.read_network(place)
        config = run.read_config(place) or {}
        found["student"] = run.read_network(place, step, "student")[1] if networks == "both" else teacher
        if storage.exists(place / CLASSES):
            found["classes"] = classes_of(place, config, step)
        if "num_prototypes" in config:
            found["prototypes"] = prototypes_of(place, config, step)
        about |= {"step": step, "history": run.read_history(place)}
    elif model_folder.is_model(place):
        network, teacher, config = model_folder.read_model(place)
        about["history"] = config["about"]
    else:
        network, teacher, _ = load_network(place)
    if network.front_end != FRONT_END:
        logging.warning("%s was trained on the features of %s, and will hear those of SDPN", source, network.front_end)
    about["fingerprint"] = embedder.fingerprint(network, teacher)
    return {"teacher": teacher, "student": teacher, **found}, about


def prototypes_of(workdir: str | os.PathLike, config: Mapping[str, Any], step: int) -> np.ndarray:
    """Reads the prototypes [K, P] of a run's checkpoint of `step`."""
    shape = config["num_prototypes"], config["model"].get("projection_size", 256)
    template = run.on_one_device({"rest": {"prototypes": jax.ShapeDtypeStruct(shape, jnp.float32)}})
    with run.open_to_read(workdir) as checkpoints:
        parts, _ = run.restore(checkpoints, template, step, partly=True)
    return np.asarray(parts["rest"]["prototypes"])


def write_classes(workdir: str | os.PathLike, names: Sequence[str]) -> None:
    """Writes <workdir>/classes.txt: the labels of a run, one a line, in the order of its centres."""
    storage.write_text(storage.place(workdir) / CLASSES, "".join(f"{name}\n" for name in names))


def classes_of(workdir: str | os.PathLike, config: Mapping[str, Any], step: int) -> tuple[str, np.ndarray]:
    """Reads the fingerprint of a run's labels, and their centres [R, S, D] in its checkpoint of `step`."""
    text = storage.read_bytes(storage.place(workdir) / CLASSES).decode("utf-8", "surrogateescape")
    count = text.count("\n")
    data = [entry["data"] for entry in run.read_history(workdir) if "data" in entry]
    size, sub_centres = config["model"]["embedding_size"], config["classify"]["sub_centres"]
    centres = jax.eval_shape(lambda: drawn_centres(count, sub_centres, size, jax.random.key(0)))
    with run.open_to_read(workdir) as checkpoints:
        parts, _ = run.restore(checkpoints, run.on_one_device({"classes": {"centres": centres}}), step)
    return data[-1].partition(" ")[2] if data else "", np.asarray(parts["classes"]["centres"])


def put_in(state: TrainState, found: Mapping[str, Any], source: str, labels: str = "") -> tuple[TrainState, list[str]]:
    """Puts weights into the state of a new run where name and shape fit; returns it and the names of all others.

    What does not fit stays as it was drawn. Centres of classes fit where they were learnt from the same `labels`, by
    their fingerprint: names say little, those of clusters are numbers. Raises UserError when nothing of the encoder
    fits.
    """
    left: list[str] = []
    networks: dict[str, Any] = {
        name: _fitted(getattr(state, name), found[name], f"{name}/", left) for name in ("student", "teacher")
    }
    encoder = flatten_dict(state.student["params"]["encoder"], sep="/")
    if all(f"student/params/encoder/{name}" in left for name in encoder):
        raise UserError(f"init_from={source}: nothing of its encoder fits config.model: set the sizes it was made with")
    prototypes = found.get("prototypes")
    if prototypes is not None and prototypes.shape == state.prototypes.shape:
        networks["prototypes"] = jnp.asarray(prototypes, state.prototypes.dtype)
    else:
        left.append("prototypes")
    if state.labelled is not None:
        theirs, centres = found.get("classes", ("", np.zeros(0)))
        if theirs == labels and centres.shape == state.labelled.centres.shape:
            put = jnp.asarray(centres, state.labelled.centres.dtype)
            networks["labelled"] = state.labelled.replace(centres=put)
        else:
            left.append("classes")
    if left:
        shown = ", ".join(left[:SHOWN]) + (" ..." if len(left) > SHOWN else "")
        logging.warning("%d arrays are drawn anew, as %s has none that fit: %s", len(left), source, shown)
    return state.replace(**networks), left


def _fitted(drawn: dict, found: Mapping[str, Any], prefix: str, left: list[str]) -> dict:
    """`drawn` with the arrays of `found` that have its names and shapes; the other names are added to `left`."""
    ours: dict[str, Any] = flatten_dict(drawn, sep="/")
    theirs: dict[str, Any] = flatten_dict(dict(found), sep="/")
    for name, array in ours.items():
        if name in theirs and theirs[name].shape == array.shape:
            ours[name] = jnp.asarray(np.asarray(theirs[name]), array.dtype)
        else:
            left.append(prefix + name)
    return unflatten_dict(ours, sep="/")
