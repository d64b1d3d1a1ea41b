"""Weights under the names and in the layout of another implementation, put in their places in a network."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sdpn_jax.errors import UserError, shown
from sdpn_jax.models.network import initial_variables, network_of
from sdpn_jax.weights import checks

ARRAYS = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}  # ours, PyTorch's
CLASSIFIER = "projection."  # begins the names of the layer over the speakers that a toolkit trained on
Path: TypeAlias = tuple[str, ...]  # of an array in a network's variables: ("params", "encoder", ..., "kernel")


def renamed(path: Sequence[str], modules: Sequence[tuple[str, str]]) -> str:
    """Joins a path, such as ("tdnn", "norm", "scale"), by dots, its modules by patterns (ours, theirs), in this order.

    Patterns see the modules with a dot behind each, and not the array.
    """
    name = "".join(f"{module}." for module in path[:-1])
    for ours, theirs in modules:
        name = re.sub(ours, theirs, name)
    return name + ARRAYS.get(path[-1], path[-1])


def outputs(state: Mapping, name: str, default: int = 0) -> int:
    """Returns the first size of an array, which in PyTorch's layers is that of the outputs; `default` without one."""
    return next(iter(np.shape(state[name])), 0) or default if name in state else default


def counted(state: Mapping, prefix: str) -> int:
    """Returns the highest of the numbers from 0 to 999 that follow a prefix in names, plus 1."""
    found = (re.match(re.escape(prefix) + r"(\d{1,3})\.", name, re.ASCII) for name in state)
    return max((int(number[1]) + 1 for number in found if number), default=0)


def without_classifier(state: Mapping) -> dict:
    """Leaves out the classifier of the speakers that an encoder was trained on."""
    return {name: array for name, array in state.items() if not name.startswith(CLASSIFIER)}


def places_of(
    sizes: Mapping[str, Any], name_of: Callable[[Path], str], parts: Collection[str], source: str
) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Lists {their name: (path, shape)} of all arrays of a network's `parts` ("encoder", "head").

    Raises UserError, which calls the weights `source`, for sizes that no network has.
    """
    try:
        checks.check_sizes(sizes)
    except ValueError as error:
        raise UserError(f"{source} holds no network that can be built: {error}") from None
    ours: dict[Path, Any] = flatten_dict(jax.eval_shape(lambda: initial_variables(network_of(sizes), 0)))
    return {name_of(path): (path, array.shape) for path, array in ours.items() if path[1] in parts}


def variables_of(
    places: Mapping[str, tuple[Path, tuple[int, ...]]],
    state: Mapping[str, Any],
    layout: Callable[[Path, np.ndarray], np.ndarray],
    source: str,
) -> dict[str, Any]:
    """Builds variables of the arrays of `state`, each brought into our layout; UserError for one that is not finite."""
    arrays = {name: checks.check_weights(name, np.asarray(state[name]), source) for name in places}
    return unflatten_dict({path: layout(path, arrays[name]) for name, (path, _) in places.items()})


def encoder_of(
    state: Mapping[str, Any], sizes: Mapping[str, Any], name_of: Callable[[Path], str], source: str, what: str
) -> dict[str, Any]:
    """Builds the variables of an encoder of `sizes` from all of `state`, whose convolutions are laid out as PyTorch's.

    Raises UserError, which calls the weights `source` and tells that they are not `what`, where they do not fit.
    """
    places = places_of(sizes, name_of, ("encoder",), source)
    wrong = sorted({*places} ^ {*state}) + sorted(
        name for name in {*places} & {*state} if _our_shape(np.shape(state[name])) != places[name][1]
    )
    if wrong:
        raise UserError(
            f"{source} is not {what}: {len(wrong)} arrays are missing, unknown or of another shape, first "
            f"{shown(wrong[0])}"
        )
    return variables_of(places, state, _our_layout, source)


def _our_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """[out, in, height, width] -> [height, width, in, out]; [out, in, taps] or [out, in] -> [taps or 1, in, out]."""
    return shape if len(shape) < 2 else (*(shape[2:] or (1,)), shape[1], shape[0])


def _our_layout(path: Path, array: np.ndarray) -> np.ndarray:
    return array if array.ndim < 2 else np.moveaxis(array, (0, 1), (-1, -2)).reshape(_our_shape(array.shape))
