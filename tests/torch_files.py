"""Writes files as torch.save does, without PyTorch: a zip file with a pickle and the bytes of each storage."""

import pickle
import zipfile
from collections import OrderedDict

import numpy as np

from sdpn_jax.weights.torch_file import DTYPES

STORAGES = {dtype: name for name, dtype in DTYPES.items()}


def call(name: str, *arguments, storages: dict) -> bytes:
    """The pickle's instructions to call `name`, "module function", with arguments."""
    module, function = name.split(" ")
    return f"c{module}\n{function}\n".encode() + emit(arguments, storages) + b"R"


def emit(value, storages: dict) -> bytes:
    """The pickle's instructions that build a value; the arrays that tensors are views of go to `storages`."""
    if isinstance(value, dict):
        new = call("collections OrderedDict", storages=storages) if isinstance(value, OrderedDict) else b"}"
        return new + b"(" + b"".join(emit(x, storages) for item in value.items() for x in item) + b"u"
    if isinstance(value, tuple | list):
        new, end = (b"(", b"t") if isinstance(value, tuple) else (b"](", b"e")
        return new + b"".join(emit(x, storages) for x in value) + end
    if isinstance(value, np.ndarray):
        return tensor(value, storages)
    if isinstance(value, bytes):  # instructions already
        return value
    return pickle.dumps(value, 2)[2:-1]


def tensor(array: np.ndarray, storages: dict) -> bytes:
    """The instructions for a tensor; a view shares the storage of the array that it is a view of."""
    base = array if array.base is None else array.base
    key = next((key for key, other in storages.items() if other is base), str(len(storages)))
    storages[key] = base
    offset = (array.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // base.itemsize
    strides = tuple(stride // base.itemsize for stride in array.strides)
    return tensor_of(key, base.dtype.name, base.size, offset, array.shape, strides, storages)


def tensor_of(key: str, dtype: str, size: int, offset, shape, strides, storages: dict) -> bytes:
    """The instructions for a tensor as they are, right or wrong."""
    kind = f"ctorch\n{STORAGES[dtype]}\n".encode()
    storage = emit(("storage", kind, key, "cpu", size), storages) + b"Q"
    hooks = call("collections OrderedDict", storages=storages)
    return call("torch._utils _rebuild_tensor_v2", storage, offset, shape, strides, False, hooks, storages=storages)


def write(path, value, byteorder: str = "little", more: dict | None = None) -> None:
    """Writes a value of dictionaries, arrays, numbers and instructions as torch.save does; `more` are raw storages."""
    storages = {}
    pickled = b"\x80\x02" + emit(value, storages) + b"."
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("checkpoint/data.pkl", pickled)
        file.writestr("checkpoint/version", "3\n")
        file.writestr("checkpoint/byteorder", byteorder)
        for key, array in {**storages, **(more or {})}.items():
            ordered = array if byteorder == "little" else array.astype(array.dtype.newbyteorder(">"))
            file.writestr(f"checkpoint/data/{key}", ordered.tobytes())
