"""What is checked of a model file before it is used: its JSON, the sizes of its network, its numbers."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from sdpn_jax.data.front_ends import FRONT_ENDS
from sdpn_jax.errors import UserError, shown
from sdpn_jax.models.eres2net import BASE, ERes2NetV2
from sdpn_jax.models.network import ENCODER, ENCODERS, network_of

MOST_SIZE = 65536  # channels, or numbers of an embedding; the paper's most are 3072
CHANNELS, GROUPS = 5, 8  # of ECAPA-TDNN: widths of SDPN's, and the groups that those of the blocks are split into
MOST_COUNT = 100  # blocks of a stage, or anything else that is counted
MOST_GROUPS = 500  # of an ERes2NetV2, whose published ones have 32 and 64: to trace many more takes minutes
DERIVED = ("width", "initial", "growth")  # where they are 0: as published
SIZES = ("se_bottleneck", "attention", "embedding_size", "hidden_size", "projection_size", "base_width", *DERIVED)
COUNTS = ("bottleneck_factor", "scale", "expansion")
SWITCHES = ("remat", "bottleneck", "global_context", "embedding_norm")
CHOICES = {"encoder": ENCODERS, "front_end": FRONT_ENDS, "dtype": ("float32", "bfloat16", "float16")}
ROUNDING = 1e-6  # by which a cosine may exceed 1


def check_fields(content: Any, names: Iterable[str], where: str) -> None:
    """Raises ValueError if `content` is no object, or has fields other than `names`; `where` says what it is."""
    if type(content) is not dict:
        raise ValueError(f"{where} is no object")
    unknown = [name for name in content if name not in names]
    if unknown:
        raise ValueError(f"{where} has an unknown field '{shown(unknown[0])}'")


def check_calibration(content: Any) -> None:
    """Checks a model's map from cosines to log-likelihood ratios; raises ValueError, which names the field."""
    names = ("scale", "offset", "prior")
    check_fields(content, names, "calibration")
    for name in names:
        value = content.get(name)
        if type(value) not in (int, float) or not abs(value) < MOST_SIZE:  # NaN is not, either
            raise ValueError(f"calibration.{name} is no number, or too large")
    if not content["scale"] > 0:
        raise ValueError("calibration.scale is not above 0")
    if not 0 < content["prior"] < 1:
        raise ValueError("calibration.prior is not between 0 and 1")


def check_sizes(sizes: Any) -> None:
    """Checks what `network_of` shall take, before anything is made of it; raises ValueError, which names the field."""
    check_fields(sizes, (*SIZES, *COUNTS, *SWITCHES, *CHOICES, "channels", "blocks"), "model")
    for name, choices in CHOICES.items():
        if name in sizes and (type(sizes[name]) is not str or sizes[name] not in choices):
            raise ValueError(f"model.{name} is none of {', '.join(choices)}")
    if sizes.get("encoder", ENCODER) == ENCODER or "channels" in sizes:
        _check_channels(sizes.get("channels"))
    stages = getattr(ENCODERS[sizes.get("encoder", ENCODER)][0], "blocks", ())
    if stages and "blocks" in sizes:
        _check_blocks(sizes["blocks"], len(stages))
    for names, most in ((SIZES, MOST_SIZE), (COUNTS, MOST_COUNT)):
        for name in names:
            lowest = 0 if name in DERIVED else 1
            if name in sizes and not (type(sizes[name]) is int and lowest <= sizes[name] <= most):
                raise ValueError(f"model.{name} is no whole number from {lowest} to {most}")
    if sizes.get("encoder") == "ecapa_wespeaker" and sizes.get("width", 0) % GROUPS:
        raise ValueError(f"model.width is no multiple of {GROUPS}")
    for name in SWITCHES:
        if type(sizes.get(name, False)) is not bool:
            raise ValueError(f"model.{name} is neither true nor false")
    _check_groups(sizes)


def _check_channels(channels: Any) -> None:
    if not isinstance(channels, list | tuple) or len(channels) != CHANNELS or not all(map(is_size, channels)):
        raise ValueError(f"model.channels is not {CHANNELS} whole numbers from 1 to {MOST_SIZE}")
    if any(size % GROUPS for size in channels[1:-1]):
        raise ValueError(f"model.channels: the inner three are no multiples of {GROUPS}")


def _check_blocks(blocks: Any, stages: int) -> None:
    if not isinstance(blocks, list | tuple) or len(blocks) != stages or not all(map(is_size, blocks)):
        raise ValueError(f"model.blocks is not {stages} whole numbers from 1 to {MOST_COUNT}")
    if max(blocks) > MOST_COUNT:
        raise ValueError(f"model.blocks has more than {MOST_COUNT}")


def _check_groups(sizes: Any) -> None:
    encoder = network_of(sizes).encoder
    if not isinstance(encoder, ERes2NetV2):
        return
    if sum(encoder.blocks) * encoder.scale > MOST_GROUPS:
        raise ValueError(f"model.blocks and model.scale make more than {MOST_GROUPS} groups")
    if encoder.width * encoder.base_width < BASE:
        raise ValueError(f"model.width times model.base_width is less than {BASE}: groups without channels")


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
    if name.split("/")[-1] == "var" and (array < 0).any():
        raise UserError(f"{source}: array {shown(name)} holds negative variances: it is damaged, get the model again")
    return array
