"""Names and layout of the released PyTorch implementation's weights, and of this project's: one into the other."""

import os
from collections.abc import Iterable, Mapping

import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict

from sdpn_jax import storage
from sdpn_jax.errors import UserError, shown
from sdpn_jax.models.ecapa import ECAPA
from sdpn_jax.models.head import ProjectionHead
from sdpn_jax.weights import (
    campplus_names,
    checks,
    ecapa_wespeaker_names,
    eres2net_names,
    resnet_names,
    torch_file,
)
from sdpn_jax.weights.renaming import outputs, places_of, renamed, variables_of

MODULES = [  # ours, theirs, in this order
    (r"(?<=\.)(conv|norm)\.$", r"\1.\1."),
    (r"\.tdnn_(conv|norm)\.$", r".tdnn.\1.\1."),
    (r"^encoder\.tdnn\.", "backbone.blocks.0."),
    (r"^encoder\.block_(\d+)\.", r"backbone.blocks.\1."),
    (r"^encoder\.pooling_norm\.", "backbone.asp_bn.norm."),
    (r"^encoder\.pooling\.", "backbone.asp."),
    (r"^encoder\.embedding\.", "backbone.fc.conv."),
    (r"^encoder\.", "backbone."),
    (r"\.res2net\.block_(\d+)\.", r".res2net_block.blocks.\1."),
    (r"\.se\.squeeze\.", ".se_block.conv1.conv."),
    (r"\.se\.excite\.", ".se_block.conv2.conv."),
    (r"\.shortcut\.", ".shortcut.conv."),
    (r"^head\.dense_0\.", "head.mlp.0."),
    (r"^head\.norm_0\.", "head.mlp.1."),
    (r"^head\.dense_1\.", "head.mlp.3."),
    (r"^head\.norm_1\.", "head.mlp.4."),
    (r"^head\.dense_2\.", "head.mlp.6."),
]
SDPN_HEAD = {f"head.mlp.{layer}.{name}" for layer in (0, 3, 6) for name in ("weight", "bias")} | {
    f"head.mlp.{layer}.{name}" for layer in (1, 4) for name in ("weight", "bias", "running_mean", "running_var")
}
BARE, SPEECHBRAIN = "blocks.0.conv.conv.weight", "embedding_model"  # a name without prefix; SpeechBrain's file
OTHERS = (
    (resnet_names.is_resnet, resnet_names.from_wespeaker),
    (campplus_names.is_campplus, campplus_names.from_released),
    (ecapa_wespeaker_names.is_ecapa, ecapa_wespeaker_names.from_wespeaker),
    (eres2net_names.is_eres2net, eres2net_names.from_3dspeaker),
)
PARTS = ("student", "teacher", "prototypes")  # of a checkpoint
COUNT = "num_batches_tracked"  # of training batches; PyTorch keeps it beside running_mean and uses it for nothing


def released_name(path: tuple[str, ...]) -> str:
    """("params", "encoder", "mfa", "conv", "kernel") -> "backbone.mfa.conv.conv.weight"."""
    return renamed(path[1:], MODULES)


def without_prefix(state: Mapping) -> dict:
    """Strips batch counts and the `module.` that training on several GPUs puts before names."""
    names = (name for name in state if not name.endswith(COUNT))
    return {name.removeprefix("module."): state[name] for name in names}


def network_sizes(state: Mapping) -> dict:
    """Infers the sizes of Network from released arrays; sizes they do not show are the paper's."""
    first = outputs(state, "backbone.blocks.0.conv.conv.bias", ECAPA.channels[0])
    blocks = [outputs(state, f"backbone.blocks.{i}.tdnn2.conv.conv.bias", ECAPA.channels[i]) for i in (1, 2, 3)]
    last = outputs(state, "backbone.mfa.conv.conv.bias", ECAPA.channels[4])
    return {
        "channels": (first, *blocks, last),
        "se_bottleneck": outputs(state, "backbone.blocks.1.se_block.conv1.conv.bias", ECAPA.se_bottleneck),
        "attention": outputs(state, "backbone.asp.tdnn.conv.conv.bias", ECAPA.attention),
        "embedding_size": outputs(state, "backbone.fc.conv.bias", ECAPA.embedding_size),
        "hidden_size": outputs(state, "head.mlp.0.bias", ProjectionHead.hidden_size),
        "projection_size": outputs(state, "head.mlp.6.bias", ProjectionHead.projection_size),
    }


def from_released(
    state: Mapping, source: str = "the state", sizes: dict | None = None, parts: tuple[str, ...] = ("encoder", "head")
) -> tuple[dict, dict]:
    """Converts the released {name: array} to (sizes of Network, variables {"params", "batch_stats"} in NumPy).

    Arrays keep their type. With `sizes` the network must have these; parts: what of it the variables are. Raises
    UserError, which calls the state `source`, when names are missing or unknown, arrays have another shape, or numbers
    are not finite.
    """
    state = without_prefix(state)
    sizes = sizes or network_sizes(state)
    places = places_of(sizes, released_name, parts, source)
    shapes = {name: shape[:: -1 if path[-1] == "kernel" else 1] for name, (path, shape) in places.items()}
    _check_names(state, shapes, source)
    return sizes, variables_of(places, state, _layout, source)


def read_encoder(path: str | os.PathLike) -> tuple[dict, dict]:
    """Reads (sizes of Network, variables) of a file's teacher, else of its student, else of the state that it is.

    Of the variables the head is there where it is SDPN's, which RDINO's is not. Nothing else of the file is looked at:
    neither prototypes, which the files of 2024 lack, nor an optimizer. Raises UserError where the encoder is another.
    """
    with torch_file.opened(path) as contents:
        if part := next((part for part in ("teacher", "student") if isinstance(contents.get(part), dict)), None):
            return _encoder_of(contents[part], f"the {part} of {path}")
        if isinstance(contents.get(BARE), torch_file.Tensor):
            return _bare_encoder(contents, path)
        for has_names, converted in OTHERS:
            if has_names(contents):
                _check_state(contents, str(path))
                return converted(without_prefix(contents), str(path))
        if any(isinstance(name, str) and "backbone." in name for name in contents):
            return _encoder_of(contents, str(path))
        names = first_of([str(name) for name in contents], 5) or "nothing"
        raise UserError(
            f"{path} has neither teacher nor student nor a backbone, only {names}: give a checkpoint of the released "
            "training script"
        )


def _encoder_of(state: Mapping, source: str) -> tuple[dict, dict]:
    """The encoder of a state under the released names, with its head if that is SDPN's."""
    _check_state(state, source)
    state = without_prefix(state)
    head = _head_of(state)
    if head == SDPN_HEAD:
        return from_released(state, source)
    if head:
        logging.info("%s: the head is not SDPN's (%s) and left out", source, first_of(sorted(head - SDPN_HEAD)))
    encoder = {name: array for name, array in state.items() if name.startswith("backbone.")}
    return from_released(encoder, source, parts=("encoder",))


def _head_of(names: Iterable[str]) -> set[str]:
    names = (name.removeprefix("module.") for name in names if not name.endswith(COUNT))
    return {name for name in names if name.startswith("head.")}


def _bare_encoder(state: Mapping, path: str | os.PathLike) -> tuple[dict, dict]:
    """The ECAPA-TDNN of 3D-Speaker or SpeechBrain, whose names are the same, and whose features are not."""
    _check_state(state, str(path))
    from_speechbrain = SPEECHBRAIN in (state[BARE].storage.archive.name, storage.place(path).stem)
    sizes, variables = from_released(
        {f"backbone.{name}": array for name, array in without_prefix(state).items()}, str(path), parts=("encoder",)
    )
    return sizes | {"front_end": "speechbrain" if from_speechbrain else "kaldi80"}, variables


def holds_both(path: str | os.PathLike) -> bool:
    """Tells whether a file of PyTorch holds student and teacher with SDPN's head; UserError for one that is none."""
    with torch_file.opened(path) as contents:
        states = [contents.get(part) for part in PARTS[:2]]
        return all(isinstance(state, dict) and _head_of(map(str, state)) == SDPN_HEAD for state in states)


def read_checkpoint(path: str | os.PathLike) -> tuple[dict, dict, dict, np.ndarray | None]:
    """Reads (sizes of Network, student, teacher, prototypes [K, P]) of a checkpoint of the released training script.

    Student and teacher are {"params", "batch_stats"}, all in the file's types. Prototypes are None where the file has
    none: they are saved since April 2025. Raises UserError for a file that is not such a checkpoint, or is of another
    network.
    """
    with torch_file.opened(path) as contents:
        missing = [part for part in PARTS[:2] if part not in contents]
        if missing:
            names = first_of([str(name) for name in contents], 5) or "nothing"
            raise UserError(
                f"{path} has no {' and no '.join(missing)}, only {names}: give a checkpoint of the released training "
                "script"
            )
        for part in PARTS[:2]:
            _check_state(contents[part], f"the {part} of {path}")
        sizes, student = from_released(contents["student"], f"the student of {path}")
        _, teacher = from_released(contents["teacher"], f"the teacher of {path}", sizes)
        if "prototypes" not in contents:
            return sizes, student, teacher, None
        prototypes = contents["prototypes"]
        shape = prototypes.shape if isinstance(prototypes, torch_file.Tensor) else ()
        if len(shape) != 2 or shape[1] != sizes["projection_size"]:
            raise UserError(f"the prototypes of {path} are {shape}, not (any number, {sizes['projection_size']})")
        return sizes, student, teacher, checks.check_weights("prototypes", np.asarray(prototypes), str(path))


def _check_state(state, source: str) -> None:
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise UserError(f"{source} is no state dictionary: give a checkpoint of the released training script")
    other = [str(name) for name, value in state.items() if not isinstance(value, torch_file.Tensor)]
    if other:
        raise UserError(f"{source} has {len(other)} entries that are no tensors, such as {shown(other[0])}")


def to_released(variables: dict, step: int = 0) -> dict[str, np.ndarray]:
    """Converts variables that have seen `step` batches to the released {name: array}, without `module.`."""
    state = {}
    for path, array in flatten_dict(variables).items():
        name = released_name(path)
        state[name] = np.ascontiguousarray(_layout(path, np.asarray(array)))
        if path[-1] == "var":
            state[name.removesuffix("running_var") + COUNT] = np.array(step, np.int64)
    return state


def _layout(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    """Kernels [taps, in, out] or [in, out] <-> [out, in, taps] or [out, in]; everything else as it is."""
    return array.T if path[-1] == "kernel" else array


def _check_names(state: Mapping, expected: dict[str, tuple], source: str) -> None:
    missing = sorted(name for name in expected if name not in state)
    unknown = [name for name in state if name not in expected]
    misshaped = [
        f"{name} is {np.shape(state[name])}, not {shape}"
        for name, shape in expected.items()
        if name in state and np.shape(state[name]) != shape
    ]
    faults = {"names missing": missing, "names unknown": unknown, "arrays of another shape": misshaped}
    if any(faults.values()):
        told = [f"{len(names)} {fault} ({first_of(names)})" for fault, names in faults.items() if names]
        raise UserError(
            f"{source} is not SDPN's ECAPA-TDNN of 80 mel bins with a head of three layers: {', '.join(told)}"
        )


def first_of(names: list[str], count: int = 3) -> str:
    """Shows the first names, for an error that must stay one line."""
    return ", ".join(map(shown, names[:count])) + (", ..." if len(names) > count else "")
