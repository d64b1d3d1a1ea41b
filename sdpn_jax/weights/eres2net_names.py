"""Names and layout of 3D-Speaker's ERes2NetV2, and of this project's."""

from collections.abc import Mapping
from typing import Any

from sdpn_jax.models.eres2net import BASE
from sdpn_jax.models.network import ENCODERS
from sdpn_jax.weights.renaming import counted, encoder_of, outputs
from sdpn_jax.weights.resnet_names import blocks_of, released_name

NAMES = "eres2netv2", "eres2netv2_w24s4ep4"  # of ENCODERS


def is_eres2net(state: Mapping) -> bool:
    """Tells whether a state dictionary has the names of an ERes2NetV2."""
    return "layer3_ds.weight" in state and "fuse34.local_att.0.weight" in state


def sizes_of(state: Mapping) -> dict[str, Any]:
    """Infers the sizes of a network from the arrays' names and shapes."""
    width = outputs(state, "conv1.weight")
    of_blocks = {
        "base_width": _base_width(outputs(state, "layer4.0.convs.0.weight"), 8 * width),
        "scale": counted(state, "layer1.0.convs."),
        "expansion": outputs(state, "layer1.0.conv3.weight") // max(width, 1),
    }
    return {
        "encoder": next((name for name in NAMES if ENCODERS[name][1] == of_blocks), NAMES[0]),
        "front_end": "kaldi80",
        "blocks": blocks_of(state),
        "width": width,
        **of_blocks,
        "embedding_size": outputs(state, "seg_1.weight"),
    }


def _base_width(group: int, planes: int) -> int:
    """The published one if it gives groups of this width in a block of so many planes, else the least that does.

    Those of the last stage tell it: a base width that fits them fits the narrower groups of the stages before.
    """
    published = [ENCODERS[name][1]["base_width"] for name in NAMES]
    fits = (base for base in published if planes * base // BASE == group)
    return next(fits, -(-BASE * group // max(planes, 1)))


def from_3dspeaker(state: Mapping, source: str) -> tuple[dict, dict]:
    """Converts {name: array} to (sizes of a network, variables of its encoder); UserError where they do not fit."""
    sizes = sizes_of(state)
    what = "an ERes2NetV2 of 3D-Speaker with one embedding layer and statistics pooling"
    return sizes, encoder_of(state, sizes, released_name, source, what)
