"""Names of CAM++ as 3D-Speaker and WeSpeaker publish it, and of this project's."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from sdpn_jax.weights.renaming import ARRAYS, encoder_of

MODULES = [  # ours, theirs, in this order
    (r"^(conv|bn|layer)(\d)", r"head.\1\2"),
    (r"^head\.layer(\d)_(\d)", r"head.layer\1.\2"),
    (r"\.shortcut_", ".shortcut."),
    (r"^(tdnn|transit\d|embedding)\.", r"xvector.\1.linear."),
    (r"^(tdnn|transit\d|embedding)_norm\.", r"xvector.\1.nonlinear.batchnorm."),
    (r"^xvector\.embedding\.", "xvector.dense."),
    (r"^out_norm\.", "xvector.out_nonlinear.batchnorm."),
    (r"^block(\d)_(\d+)\.", r"xvector.block\1.tdnnd\2."),
    (r"\.norm(\d)\.", r".nonlinear\1.batchnorm."),
    (r"(\.tdnnd\d+)\.linear\.", r"\1.linear1."),
    (r"\.cam\.local\.", ".cam_layer.linear_local."),
    (r"\.cam\.squeeze\.", ".cam_layer.linear1."),
    (r"\.cam\.excite\.", ".cam_layer.linear2."),
]
FIRST, LAYER = "xvector.tdnn.linear.weight", "xvector.block1.tdnnd1."
CLASSIFIER = "projection."  # of the speakers that it was trained on: WeSpeaker leaves it in the file


def is_campplus(state: Mapping) -> bool:
    """Tells whether a state dictionary has the names of CAM++."""
    return FIRST in state and f"{LAYER}cam_layer.linear_local.weight" in state


def released_name(path: tuple[str, ...]) -> str:
    """("params", "encoder", "block1_2", "norm1", "scale") -> "xvector.block1.tdnnd2.nonlinear1.batchnorm.weight"."""
    *modules, array = path[2:]
    name = ".".join(modules) + "."
    for ours, theirs in MODULES:
        name = re.sub(ours, theirs, name)
    return name + ARRAYS.get(array, array)


def sizes_of(state: Mapping) -> dict[str, Any]:
    """Infers the sizes of a network from the arrays' names and shapes."""

    def outputs(name: str) -> int:
        shape = np.shape(state[name]) if name in state else ()
        return shape[0] if shape else 0

    blocks = [0, 0, 0]
    for name in state:
        if layer := re.match(r"xvector\.block([123])\.tdnnd(\d{1,3})\.", name, re.ASCII):
            block = int(layer[1]) - 1
            blocks[block] = max(blocks[block], int(layer[2]))
    growth = outputs(f"{LAYER}cam_layer.linear_local.weight")
    return {
        "encoder": "campplus",
        "front_end": "wespeaker" if any(name.startswith(CLASSIFIER) for name in state) else "kaldi80",
        "blocks": tuple(blocks),
        "growth": growth,
        "bottleneck_factor": outputs(f"{LAYER}linear1.weight") // max(growth, 1),
        "width": outputs("head.conv1.weight"),
        "initial": outputs(FIRST),
        "embedding_size": outputs("xvector.dense.linear.weight"),
    }


def from_released(state: Mapping, source: str) -> tuple[dict, dict]:
    """Converts {name: array} to (sizes of a network, variables of its encoder); UserError where they do not fit."""
    sizes = sizes_of(state)
    state = {name: array for name, array in state.items() if not name.startswith(CLASSIFIER)}
    return sizes, encoder_of(state, sizes, released_name, source, "CAM++ as 3D-Speaker and WeSpeaker publish it")
