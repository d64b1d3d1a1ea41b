"""A trained model as a folder to keep, share and load: config.json, model.safetensors and a model card, README.md."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from sdpn_jax import storage
from sdpn_jax.data import features
from sdpn_jax.errors import UserError
from sdpn_jax.models.network import Network, initial_variables, network_of

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
CARD_TEXT = """---
license: {license}
tags: [speaker-verification, speaker-embedding, self-supervised, jax]
---

# {title}

A speaker encoder trained without speaker labels by SDPN (Self-Distillation Prototypes Network, arXiv 2308.02774):
ECAPA-TDNN, {parameters:.1f} million parameters, {embedding_size}-dimensional embeddings of 16 kHz mono speech.

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


def write_model(
    folder: str | os.PathLike, model: Mapping, variables: Mapping, about: Mapping, threshold: float | None, license: str
) -> None:
    """Writes a model folder.

    model: what `network_of` takes; variables: {"params", "batch_stats"}; about: facts for people, of how the model was
    made and what it achieves; threshold: the cosine to accept from; license: of the weights (an SPDX identifier).
    """
    folder = storage.make_folder(folder)
    flat = {name: np.asarray(value) for name, value in flatten_dict(jax.device_get(variables), sep="/").items()}
    config = {
        "model_type": "sdpn_jax",
        "model": dict(model),
        "features": dataclasses.asdict(features.DEFAULT),
        "threshold": threshold,
        "about": dict(about),
    }
    storage.remove(folder / CONFIG)  # without it the folder is no model, until all is written
    storage.write_bytes(folder / WEIGHTS, save(flat))
    encoder = sum(value.size for name, value in flat.items() if name.startswith("params/encoder"))
    storage.write_text(
        folder / CARD,
        CARD_TEXT.format(
            license=license,
            title=folder.name,
            parameters=encoder / 1e6,
            embedding_size=model["embedding_size"],
            facts="\n".join(f"- {name}: {value}" for name, value in about.items()),
        ),
    )
    storage.write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def is_model(folder: str | os.PathLike) -> bool:
    """Tells whether `write_model` wrote this folder, or began to."""
    return storage.exists(storage.place(folder) / WEIGHTS)


def read_arrays(path: storage.Place) -> dict[str, np.ndarray]:
    """Reads {name: array} of a .safetensors file; UserError if it is none or damaged."""
    try:
        return load_file(storage.local(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); export the model again") from None


def read_model(folder: str | os.PathLike) -> tuple[Network, dict, dict]:
    """Reads (network, variables, content of config.json) of a model folder; UserError if something does not fit."""
    folder = storage.place(folder)
    try:
        config = json.loads(storage.read_text(folder / CONFIG))
        network = network_of(config["model"])
        theirs = config["features"]
    except OSError as error:
        raise UserError(f"{folder / CONFIG}: cannot be read ({error.strerror}); export the model again") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG} is not the config of a model of this package ({error})") from None
    if theirs != dataclasses.asdict(features.DEFAULT):
        raise UserError(f"{folder / CONFIG}: the model needs features {theirs}, this package makes {features.DEFAULT}")
    flat = read_arrays(folder / WEIGHTS)
    wanted: dict[str, Any] = flatten_dict(jax.eval_shape(lambda: initial_variables(network, 0)), sep="/")
    wrong = sorted(
        {*wanted} ^ {*flat} | {name for name in {*wanted} & {*flat} if wanted[name].shape != flat[name].shape}
    )
    if wrong:
        raise UserError(
            f"{folder / WEIGHTS} does not hold the weights that {CONFIG} describes: {len(wrong)} arrays are missing, "
            f"unknown or of another shape, first {wrong[0]}"
        )
    return network, unflatten_dict(flat, sep="/"), config
