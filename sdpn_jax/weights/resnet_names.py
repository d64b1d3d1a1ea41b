"""Names and layout of WeSpeaker's ResNets, and of this project's."""

import re
from collections.abc import Mapping
from typing import Any

from sdpn_jax.weights.renaming import ARRAYS, counted, encoder_of, outputs, without_classifier


def is_resnet(state: Mapping) -> bool:
    """Tells whether a state dictionary has the names of a ResNet of WeSpeaker."""
    return "layer1.0.conv1.weight" in state and "seg_1.weight" in state and "layer1.0.convs.0.weight" not in state


def released_name(path: tuple[str, ...]) -> str:
    """("params", "encoder", "layer1_0", "shortcut_1", "scale") -> "layer1.0.shortcut.1.weight"."""
    *modules, array = path[2:]
    names = [name if name == "seg_1" else re.sub(r"_(?=\d)", ".", name) for name in modules]
    return ".".join([*names, ARRAYS.get(array, array)])


def sizes_of(state: Mapping) -> dict[str, Any]:
    """Infers the sizes of Network from the arrays' names and shapes."""
    bottleneck = "layer1.0.conv3.weight" in state
    return {
        "encoder": "resnet50" if bottleneck else "resnet34",
        "front_end": "wespeaker",
        "blocks": blocks_of(state),
        "bottleneck": bottleneck,
        "width": outputs(state, "conv1.weight"),
        "embedding_size": outputs(state, "seg_1.weight"),
    }


def blocks_of(state: Mapping) -> tuple[int, ...]:
    """Counts the blocks of each of four stages."""
    return tuple(counted(state, f"layer{stage}.") for stage in (1, 2, 3, 4))


def from_wespeaker(state: Mapping, source: str) -> tuple[dict, dict]:
    """Converts {name: array} to (sizes of Network, variables of its encoder); UserError where they do not fit."""
    state = without_classifier(state)
    sizes = sizes_of(state)
    what = "a ResNet of WeSpeaker with one embedding layer and statistics pooling"
    return sizes, encoder_of(state, sizes, released_name, source, what)
