"""What is checked of a model file before it is used: its JSON, the sizes of its network, its numbers."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from sdpn_jax.data.front_ends import FRONT_ENDS
from sdpn_jax.errors import UserError, shown

MOST_SIZE = 65536  # channels, or numbers of an embedding; the paper's most are 3072
CHANNELS, GROUPS = 5, 8  # of the encoder: its widths, and the groups that those of the blocks are split into
SIZES = ("se_bottleneck", "attention", "embedding_size", "hidden_size", "projection_size")
OF_OTHERS = ("front_end", "architecture", "blocks", "bottleneck", "width")
STAGES, MOST_BLOCKS = 4, 100  # of a ResNet
TYPES = ("float32", "bfloat16", "float16")
ROUNDING = 1e-6  # by which a cosine may exceed 1


def check_fields(content: Any, names: Iterable[str], where: str) -> None:
    """Raises ValueError if `content` is no object, or has fields other than `names`; `where` says what it is."""
    if type(content) is not dict:
        raise ValueError(f"{where} is no object")
    unknown = [name for name in content if name not in names]
    if unknown:
        raise ValueError(f"{where} has an unknown field '{shown(unknown[0])}'")


def check_sizes(sizes: Any) -> None:
    """Checks what `network_of` shall take, before anything is made of it; raises ValueError, which names the field."""
    check_fields(sizes, ("channels", *SIZES, "dtype", "remat", *OF_OTHERS), "model")
    if sizes.get("architecture", "ecapa") == "resnet":
        _check_resnet(sizes)
        sizes = {"channels": (8,) * CHANNELS, **sizes}
    if sizes.get("front_end", "sdpn") not in FRONT_ENDS:
        raise ValueError(f"model.front_end is none of {', '.join(FRONT_ENDS)}")
    channels = sizes.get("channels")
    if not isinstance(channels, list | tuple) or len(channels) != CHANNELS or not all(map(is_size, channels)):
        raise ValueError(f"model.channels is not {CHANNELS} whole numbers from 1 to {MOST_SIZE}")
    if any(size % GROUPS for size in channels[1:-1]):
        raise ValueError(f"model.channels: the inner three are no multiples of {GROUPS}")
    for name in SIZES:
        if name in sizes and not is_size(sizes[name]):
            raise ValueError(f"model.{name} is no whole number from 1 to {MOST_SIZE}")
    dtype = sizes.get("dtype", TYPES[0])
    if type(dtype) is not str or dtype not in TYPES:
        raise ValueError(f"model.dtype is none of {', '.join(TYPES)}")
    if type(sizes.get("remat", False)) is not bool:
        raise ValueError("model.remat is neither true nor false")


def _check_resnet(sizes: Any) -> None:
    blocks = sizes.get("blocks", (1,) * STAGES)
    if not isinstance(blocks, list | tuple) or len(blocks) != STAGES or not all(map(is_size, blocks)):
        raise ValueError(f"model.blocks is not {STAGES} whole numbers from 1 to {MOST_BLOCKS}")
    if max(blocks) > MOST_BLOCKS:
        raise ValueError(f"model.blocks has more than {MOST_BLOCKS}")
    if not is_size(sizes.get("width", 1)):
        raise ValueError(f"model.width is no whole number from 1 to {MOST_SIZE}")
    if type(sizes.get("bottleneck", False)) is not bool:
        raise ValueError("model.bottleneck is neither true nor false")


def is_size(value: Any) -> bool:
    """Tells whether a value is a whole number from 1 to MOST_SIZE."""
    return type(value) is int and 1 <= value <= MOST_SIZE


def is_number(value: Any, lowest: float, highest: float) -> bool:
    """Tells whether a value is a number, not NaN, within bounds."""
    return type(value) in (int, float) and lowest <= value <= highest


def is_cosine(value: Any) -> bool:
    """Tells whether a value is a number in [-1, 1] up to rounding."""
    return is_number(value, -1 - ROUNDING, 1 + ROUNDING)


def check_weights(name: str, array: np.ndarray, source: str) -> np.ndarray:
    """Returns an array of finite floating-point numbers as it is; raises UserError, naming it, for any other."""
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise UserError(f"{source}: array {shown(name)} is of type {array.dtype.name}, where weights are numbers")
    with np.errstate(over="ignore"):
        finite = np.isfinite(array.astype(np.float32, copy=False)).all()
    if not finite:
        raise UserError(
            f"{source}: array {shown(name)} holds NaN or numbers beyond float32: take another checkpoint, of a step "
            "whose loss was finite"
        )
    return array
