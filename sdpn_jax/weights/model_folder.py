"""A trained model as a folder to keep, share and load: config.json, model.safetensors and a model card, README.md."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save

from sdpn_jax import storage
from sdpn_jax.data import features
from sdpn_jax.decision import Calibration, Decision
from sdpn_jax.errors import UserError, one_line, shown
from sdpn_jax.models.network import ADAPTATION, ENCODER, FRONT_END, Network, initial_variables, network_of
from sdpn_jax.weights import checks, sdpn_names

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
MODEL_TYPE, FIELDS = "sdpn_jax", ("model_type", "model", "features", "threshold", "about")
CALIBRATION = "calibration"  # a field that calibrated models have beside FIELDS
HEAD = ("params/head/", "batch_stats/head/")
NAMES = {
    "ecapa": "ECAPA-TDNN",
    "campplus": "CAM++",
    "ecapa_wespeaker": "WeSpeaker's ECAPA-TDNN",
    "eres2netv2": "ERes2NetV2",
    "eres2netv2_w24s4ep4": "ERes2NetV2 (w24s4ep4)",
} | {f"resnet{layers}": f"ResNet{layers}" for layers in (18, 34, 50, 101, 152, 221, 293)}
MOST_HEADER = 4 << 20  # bytes of a .safetensors file before its numbers; a model's has 40,000
CARD_TEXT = """---
license: {license}
tags: [speaker-verification, speaker-embedding, self-supervised, jax]
---

# {title}

{origin}:
{encoder}, {parameters:.1f} million parameters, {embedding_size}-dimensional embeddings of 16 kHz mono speech.

{facts}

```python
from sdpn_jax import SpeakerEncoder

encoder = SpeakerEncoder.load("PATH_TO_THIS_FOLDER")
embedding = encoder.embed("a.wav")
print(encoder.verify("a.wav", "b.wav"))
```

Measure the error rate on recordings like yours before relying on a verdict. Error rates differ between groups of
speakers, languages, rooms and microphones.
"""


TRAINED = (
    "A speaker encoder trained without speaker labels by SDPN (Self-Distillation Prototypes Network, arXiv 2308.02774)"
)
ADAPTED = "A speaker encoder adapted to a domain by unlabelled recordings of it"
CONVERTED = "A speaker encoder converted from the weights of another toolkit"


def write_model(
    folder: str | os.PathLike,
    model: Mapping,
    variables: Mapping,
    about: Mapping,
    threshold: float | None,
    license: str,
    origin: str = TRAINED,
    calibration: Calibration | None = None,
) -> None:
    """Writes a model folder.

    model: what `network_of` takes; variables: {"params", "batch_stats"}, of the encoder alone or with its head; about:
    facts for people, of how the model was made and what it achieves; threshold: the cosine to accept from; license: of
    the weights (an SPDX identifier); origin: how the model card begins.
    """
    check_output(folder)
    folder = storage.make_folder(folder)
    about = {name: one_line(fact) if isinstance(fact, str) else fact for name, fact in about.items()}
    # In rows: of an array that is transposed in memory safetensors writes the bytes as they lie.
    flat = {
        name: np.array(value, order="C") for name, value in flatten_dict(jax.device_get(variables), sep="/").items()
    }
    config = {
        "model_type": MODEL_TYPE,
        "model": dict(model),
        "features": _settings(model),
        **_decided(Decision(threshold, calibration)),
        "about": dict(about),
    }
    storage.remove(folder / CONFIG)  # without it the folder is no model, until all is written
    storage.write_bytes(folder / WEIGHTS, save(flat))
    encoder = sum(value.size for name, value in flat.items() if name.startswith("params/encoder"))
    storage.write_text(
        folder / CARD,
        CARD_TEXT.format(
            license=license,
            origin=origin,
            encoder=NAMES[model.get("encoder", ENCODER)],
            title=folder.name,
            parameters=encoder / 1e6,
            embedding_size=model["embedding_size"],
            facts="\n".join(f"- {name}: {value}" for name, value in about.items()),
        ),
    )
    _write_config(folder, config)


def check_output(folder: str | os.PathLike) -> None:
    """Raises UserError for a folder that holds another config.json or README.md: a training run's, or a project's."""
    folder, model_type = storage.place(folder), None
    if storage.exists(folder / CONFIG):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            model_type = storage.read_json(folder / CONFIG).get("model_type")
        if model_type != MODEL_TYPE:
            raise UserError(f"{folder} holds the {CONFIG} of something else than a model: give another --output")
    elif storage.exists(folder / CARD) and not is_model(folder):
        raise UserError(f"{folder} holds a {CARD} that is not a model's: give another --output")


def _write_config(folder: storage.Place, config: Mapping) -> None:
    storage.write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def _decided(decision: Decision) -> dict[str, Any]:
    """The fields of a decision."""
    about = {CALIBRATION: dataclasses.asdict(decision.calibration)} if decision.calibration else {}
    return {"threshold": decision.threshold, **about}


def decision_of(config: Mapping) -> Decision:
    """Takes the decision from the content of a config.json."""
    calibration = config.get(CALIBRATION)
    return Decision(config["threshold"], Calibration(**calibration) if calibration else None)


def write_decision(folder: str | os.PathLike, decision: Decision, about: Mapping[str, str | float]) -> None:
    """Gives a model folder another threshold and calibration; about: facts of them, which are added to the model's."""
    folder = storage.place(folder)
    config = {name: value for name, value in read_config(folder).items() if name != CALIBRATION}
    _write_config(folder, {**config, **_decided(decision), "about": config["about"] | dict(about)})


def _settings(model: Mapping) -> dict[str, Any]:
    """Settings of SDPN's features; other front ends have none, and are known by their name in `model`."""
    return dataclasses.asdict(features.DEFAULT) if model.get("front_end", FRONT_END) == FRONT_END else {}


def is_model(folder: str | os.PathLike) -> bool:
    """Tells whether `write_model` wrote this folder, or began to."""
    return storage.exists(storage.place(folder) / WEIGHTS)


def read_arrays(path: storage.Place) -> dict[str, np.ndarray]:
    """Reads {name: array} of a .safetensors file, weights in float32; UserError if it is none, damaged or not finite.

    Beside weights it may hold PyTorch's counts of batches, which stay as they are.
    """
    try:
        local = storage.local(path)
        with local.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > MOST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        arrays = load_file(local)
    except Exception as error:  # the library raises a handful of kinds for random bytes
        why = error.strerror if isinstance(error, OSError) and error.strerror else shown(error)
        raise UserError(f"{path} cannot be read ({why}); export the model again") from None
    for name, array in arrays.items():
        if not name.endswith(sdpn_names.COUNT):
            arrays[name] = checks.check_weights(name, array, str(path)).astype(np.float32, copy=False)
    return arrays


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
    """Reads the config.json of a model folder, all of it checked; UserError, which names the field, if one is wrong."""
    path = storage.place(folder) / CONFIG
    try:
        config = storage.read_json(path)
        check_config(config)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); export the model again") from None
    except ValueError as error:
        raise UserError(
            f"{path} is not the config of a model of this package ({error}); export the model again"
        ) from None
    ours = _settings(config["model"])
    if config["features"] != ours:
        differing = [name for name, value in ours.items() if config["features"].get(name) != value]
        raise UserError(f"{path}: the model needs other features than this package makes, in {', '.join(differing)}")
    return config


def check_config(config: Any) -> None:
    """Raises ValueError, which names the field, if a config is not as `write_model` writes them."""
    checks.check_fields(config, (*FIELDS, CALIBRATION), "the file")
    missing = [name for name in FIELDS if name not in config]
    if missing:
        raise ValueError(f"it has no {missing[0]}")
    if config["model_type"] != MODEL_TYPE:
        raise ValueError(f"model_type is not '{MODEL_TYPE}'")
    checks.check_sizes(config["model"])
    checks.check_fields(config["features"], _settings(config["model"]), "features")
    if config["threshold"] is not None and not checks.is_cosine(config["threshold"]):
        raise ValueError("threshold is neither null nor a number from -1 to 1")
    if CALIBRATION in config:
        checks.check_calibration(config[CALIBRATION])
    about = config["about"]
    if type(about) is not dict or not all(type(fact) in (str, int, float) for fact in about.values()):
        raise ValueError("about is no object of texts and numbers")


def read_model(folder: str | os.PathLike) -> tuple[Network, dict, dict]:
    """Reads (network, variables, content of config.json) of a model folder; UserError if something does not fit."""
    folder = storage.place(folder)
    config = read_config(folder)
    network = network_of(config["model"])
    flat = read_arrays(folder / WEIGHTS)
    wanted: dict[str, Any] = flatten_dict(jax.eval_shape(lambda: initial_variables(network, 0)), sep="/")
    if not any(name.startswith(HEAD) for name in flat):  # as weights of other toolkits have none
        wanted = {name: array for name, array in wanted.items() if not name.startswith(HEAD)}
    if any(name.startswith(f"{ADAPTATION}/") for name in flat):
        size = network.embedding_size
        shapes = {"mean": (size,), "transform": (size, size)}
        wanted |= {f"{ADAPTATION}/{name}": jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    wrong = sorted(
        {*wanted} ^ {*flat} | {name for name in {*wanted} & {*flat} if wanted[name].shape != flat[name].shape}
    )
    if wrong:
        raise UserError(
            f"{folder / WEIGHTS} does not hold the weights that {CONFIG} describes: {len(wrong)} arrays are missing, "
            f"unknown or of another shape, first {shown(wrong[0])}"
        )
    return network, unflatten_dict(flat, sep="/"), config
