"""Names and layout of WeSpeaker's ResNets, and of this project's."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sdpn_jax.errors import UserError, shown
from sdpn_jax.weights import checks
from sdpn_jax.weights.renaming import ARRAYS, places_of, variables_of

IGNORED = ("projection.",)  # the classifier of the speakers that it was trained on


def is_resnet(state: Mapping) -> bool:
    """Tells whether a state dictionary has the names of a ResNet of WeSpeaker."""
    return "layer1.0.conv1.weight" in state and "seg_1.weight" in state and "layer1.0.convs.0.weight" not in state


def released_name(path: tuple[str, ...]) -> str:
    """("params", "encoder", "layer1_0", "shortcut_1", "scale") -> "layer1.0.shortcut.1.weight"."""
    *modules, array = path[2:]
    names = [name if name == "seg_1" else name.replace("_", ".") for name in modules]
    return ".".join([*names, ARRAYS.get(array, array)])


def sizes_of(state: Mapping) -> dict[str, Any]:
    """Infers the sizes of Network from the arrays' names and shapes."""
    blocks = [0, 0, 0, 0]
    for name in state:
        parts = name.split(".")
        if parts[0] in ("layer1", "layer2", "layer3", "layer4") and len(parts) > 2 and parts[1].isdecimal():
            stage = int(parts[0][-1]) - 1
            blocks[stage] = max(blocks[stage], min(int(parts[1]), checks.MOST_COUNT) + 1)
    bottleneck = "layer1.0.conv3.weight" in state
    first, last = (np.shape(state[name]) if name in state else () for name in ("conv1.weight", "seg_1.weight"))
    return {
        "encoder": "resnet50" if bottleneck else "resnet34",
        "front_end": "wespeaker",
        "blocks": tuple(blocks),
        "bottleneck": bottleneck,
        "width": first[0] if first else 0,
        "embedding_size": last[0] if last else 0,
    }


def from_wespeaker(state: Mapping, source: str) -> tuple[dict, dict]:
    """Converts {name: array} to (sizes of Network, variables of its encoder); UserError where they do not fit."""
    state = {name: array for name, array in state.items() if not name.startswith(IGNORED)}
    sizes = sizes_of(state)
    places = places_of(sizes, released_name, ("encoder",), source)
    wrong = sorted({*places} ^ {*state}) + sorted(
        name for name in {*places} & {*state} if np.shape(state[name]) != _their_shape(places[name][1])
    )
    if wrong:
        raise UserError(
            f"{source} is not a ResNet of WeSpeaker with one embedding layer and statistics pooling: {len(wrong)} "
            f"arrays are missing, unknown or of another shape, first {shown(wrong[0])}"
        )
    return sizes, variables_of(places, state, _layout, source)


def _their_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """[height, width, in, out] -> [out, in, height, width]; [1, in, out] -> [out, in]."""
    if len(shape) == 4:
        return shape[3], shape[2], shape[0], shape[1]
    return shape[:0:-1] if len(shape) == 3 else shape


def _layout(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T[None] if path[-1] == "kernel" else array
