"""Names of CAM++ as 3D-Speaker and WeSpeaker publish it, and of this project's."""

from collections.abc import Mapping
from typing import Any

from sdpn_jax.weights.renaming import CLASSIFIER, counted, encoder_of, outputs, renamed, without_classifier

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


def is_campplus(state: Mapping) -> bool:
    """Tells whether a state dictionary has the names of CAM++."""
    return FIRST in state and f"{LAYER}cam_layer.linear_local.weight" in state


def released_name(path: tuple[str, ...]) -> str:
    """("params", "encoder", "block1_2", "norm1", "scale") -> "xvector.block1.tdnnd2.nonlinear1.batchnorm.weight"."""
    return renamed(path[2:], MODULES)


def sizes_of(state: Mapping) -> dict[str, Any]:
    """Infers the sizes of a network from the arrays' names and shapes."""
    last_layers = (counted(state, f"xvector.block{block}.tdnnd") - 1 for block in (1, 2, 3))  # numbered from 1
    growth = outputs(state, f"{LAYER}cam_layer.linear_local.weight")
    return {
        "encoder": "campplus",
        # WeSpeaker leaves the classifier in the file
        "front_end": "wespeaker" if any(name.startswith(CLASSIFIER) for name in state) else "kaldi80",
        "blocks": tuple(max(last, 0) for last in last_layers),
        "growth": growth,
        "bottleneck_factor": outputs(state, f"{LAYER}linear1.weight") // max(growth, 1),
        "width": outputs(state, "head.conv1.weight"),
        "initial": outputs(state, FIRST),
        "embedding_size": outputs(state, "xvector.dense.linear.weight"),
    }


def from_released(state: Mapping, source: str) -> tuple[dict, dict]:
    """Converts {name: array} to (sizes of a network, variables of its encoder); UserError where they do not fit."""
    sizes = sizes_of(state)
    return sizes, encoder_of(
        without_classifier(state), sizes, released_name, source, "CAM++ as 3D-Speaker and WeSpeaker publish it"
    )
