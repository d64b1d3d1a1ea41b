"""Names of WeSpeaker's ECAPA-TDNN, and of this project's."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sdpn_jax.models.ecapa_wespeaker import FRAME_CHANNELS, WeSpeakerECAPA
from sdpn_jax.weights.renaming import encoder_of, outputs, renamed, without_classifier

MODULES = [  # ours, theirs, in this order
    (r"norm\.$", "bn."),
    (r"^tdnn\.", "layer1."),
    *((rf"^block_{i}\.", f"layer{i + 1}.se_res2block.") for i in (1, 2, 3)),
    (r"\.tdnn1\.", ".0."),
    (r"\.res2net\.block_(\d)\.(conv|bn)\.", r".1.\2s.\1."),
    (r"\.tdnn2\.", ".2."),
    (r"\.se\.squeeze\.", ".3.linear1."),
    (r"\.se\.excite\.", ".3.linear2."),
    (r"^mfa\.", "conv."),
    (r"^pooling\.tdnn_conv\.", "pool.linear1."),
    (r"^pooling\.conv\.", "pool.linear2."),
    (r"^pooling_bn\.", "bn."),
    (r"^embedding\.", "linear."),
    (r"^embedding_bn\.", "bn2."),
]
FIRST, BLOCK, ATTENTION = "layer1.conv.weight", "layer2.se_res2block", "pool.linear1.weight"


def is_ecapa(state: Mapping) -> bool:
    """Tells whether a state dictionary has the names of an ECAPA-TDNN of WeSpeaker."""
    return FIRST in state and f"{BLOCK}.0.conv.weight" in state


def released_name(path: tuple[str, ...]) -> str:
    """("params", "encoder", "block_1", "tdnn1", "norm", "scale") -> "layer2.se_res2block.0.bn.weight"."""
    return renamed(path[2:], MODULES)


def sizes_of(state: Mapping) -> dict[str, Any]:
    """Infers the sizes of a network from the arrays' names and shapes; those that they do not show are published."""
    attention = np.shape(state[ATTENTION]) if ATTENTION in state else ()
    return {
        "encoder": "ecapa_wespeaker",
        "front_end": "wespeaker",
        "width": outputs(state, FIRST, WeSpeakerECAPA.width),
        "se_bottleneck": outputs(state, f"{BLOCK}.3.linear1.weight", WeSpeakerECAPA.se_bottleneck),
        "attention": outputs(state, ATTENTION, WeSpeakerECAPA.attention),
        "global_context": attention[1:2] != (FRAME_CHANNELS,),
        "embedding_size": outputs(state, "linear.weight", WeSpeakerECAPA.embedding_size),
        "embedding_norm": "bn2.weight" in state,
    }


def from_wespeaker(state: Mapping, source: str) -> tuple[dict, dict]:
    """Converts {name: array} to (sizes of a network, variables of its encoder); UserError where they do not fit."""
    state = without_classifier(state)
    sizes = sizes_of(state)
    what = "an ECAPA-TDNN of WeSpeaker with attentive statistics pooling"
    return sizes, encoder_of(state, sizes, released_name, source, what)
