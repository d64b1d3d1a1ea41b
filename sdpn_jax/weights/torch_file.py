"""Reads what `torch.save` wrote, without PyTorch and without running anything that a pickle may ask for."""

import math
import os
import pickle
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np

from sdpn_jax import storage
from sdpn_jax.errors import UserError

DTYPES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
# Numbers of an optimizer whose schedule was a NumPy array: they may stand in the file, and are not looked at.
IGNORED = (
    "numpy.dtype _codecs.encode numpy.core.multiarray.scalar numpy._core.multiarray.scalar torch.device torch.Size"
).split()
ZIP, PICKLE, TAR = b"PK\x03\x04", b"\x80", b"ustar"  # how files begin; the latter two PyTorch wrote before 1.6
UNREADABLE = (zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError, RuntimeError, EOFError, OSError)


class Archive:
    """The zip file of a checkpoint: one folder with data.pkl, and the bytes of each storage in data/."""

    def __init__(self, path: Path, file: zipfile.ZipFile):
        self.path, self._file, self._last = path, file, (None, b"")
        folders = [name.removesuffix("data.pkl") for name in file.namelist() if name.endswith("/data.pkl")]
        if not folders:
            raise UserError(f"{path} is a zip file without data.pkl: give a checkpoint that torch.save wrote")
        self._folder = folders[0]
        has_byteorder = self._folder + "byteorder" in file.namelist()
        self.byteorder: Literal[">", "<"] = ">" if has_byteorder and self.read("byteorder") == b"big" else "<"

    def read(self, name: str) -> bytes:
        """Reads all bytes of a member and compares its checksum; raises UserError if it is damaged or missing."""
        if self._last[0] != name:  # tensors may share a storage, and then mostly follow each other
            try:
                self._last = name, self._file.read(self._folder + name)
            except UNREADABLE as error:
                raise UserError(f"{self.path} is damaged at {name} ({error}): copy it again") from error
        return self._last[1]


class Untouchable:
    """What a pickle may hold but not alter: BUILD, its instruction to set attributes, changes nothing."""

    def __setstate__(self, state):
        pass


class Dictionary(Untouchable, dict):
    """Stands for an OrderedDict; the versions of modules that PyTorch attaches to one are dropped."""


@dataclass(frozen=True)
class Storage(Untouchable):
    """A run of numbers in the file; tensors are windows of it."""

    archive: Archive
    key: str
    dtype: np.dtype
    size: int  # elements

    def read(self) -> np.ndarray:
        """Reads the numbers [size]; raises UserError if the file is damaged."""
        data = self.archive.read(f"data/{self.key}")
        if len(data) != self.size * self.dtype.itemsize:
            raise UserError(f"{self.archive.path} is damaged: storage {self.key} has not {self.size} {self.dtype}")
        return np.frombuffer(data, self.dtype.newbyteorder(self.archive.byteorder))


@dataclass(frozen=True)
class Tensor(Untouchable):
    """A tensor that is still in the file: np.asarray(tensor) reads it."""

    storage: Storage
    offset: int  # elements, as the strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        numbers = self.storage.read()[self.offset :]
        strides = [stride * numbers.itemsize for stride in self.strides]
        window = np.lib.stride_tricks.as_strided(numbers, self.shape, strides, writeable=False)
        return np.array(window, dtype or self.storage.dtype)


class Reader(pickle.Unpickler):
    """Builds dictionaries, lists, numbers, texts and Tensors; whatever else the pickle names is refused.

    What it returns for a name are methods and texts, which the pickle cannot alter, never a class or a function.
    """

    def __init__(self, archive: Archive):
        super().__init__(BytesIO(archive.read("data.pkl")))
        self._archive = archive

    def find_class(self, module: str, name: str):
        """Returns a stand-in for a name that the pickle imports; raises UserError for one that no checkpoint needs."""
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        full_name = f"{module}.{name}"
        if full_name in IGNORED:
            return self._ignored
        known = {
            "collections.OrderedDict": self._dictionary,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": self._parameter,
        }
        if full_name not in known:
            raise UserError(
                f"{self._archive.path} asks for {full_name!r}, which is no tensor; nothing was run: give a checkpoint "
                "of state dictionaries alone, as the released training script writes it"
            )
        return known[full_name]

    def persistent_load(self, description) -> Storage:
        """Returns the storage that (kind, type, key, device, size) describes."""
        kind, dtype, key, _, size = description
        if kind != "storage" or dtype not in DTYPES.values() or type(size) is not int or size < 0:
            raise pickle.UnpicklingError(f"no storage: {description!r}")
        return Storage(self._archive, str(key), jnp.dtype(dtype), size)

    def _tensor(self, storage, offset, shape, strides, *_) -> Tensor:
        shape, strides = tuple(shape), tuple(strides)
        if not isinstance(storage, Storage) or len(shape) != len(strides) or len(shape) > 32:
            raise pickle.UnpicklingError("no tensor")
        if any(type(number) is not int or number < 0 for number in (offset, *shape, *strides)):
            raise pickle.UnpicklingError("a tensor with a negative size, stride or offset")
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        # More elements than the storage has would be a tensor that repeats itself, of any size.
        if math.prod(shape) > storage.size or (math.prod(shape) and last >= storage.size):
            raise pickle.UnpicklingError(f"a tensor that reaches past the {storage.size} elements of its storage")
        return Tensor(storage, offset, shape, strides)

    def _parameter(self, tensor, *_):
        return tensor

    def _dictionary(self, items=()) -> Dictionary:
        return Dictionary(items)

    def _ignored(self, *_) -> Untouchable:
        return Untouchable()


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[dict]:
    """Opens the dictionary that `torch.save` wrote to a file; each tensor is a Tensor, to be read while it is open.

    Raises UserError, with what to do, for a file that is missing, damaged, of another kind, or not of tensors alone.
    """
    path = _here(path)
    _check_kind(path)
    try:
        file = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} is cut short or damaged ({error}): copy it again") from error
    with file:
        archive = Archive(path, file)
        try:
            contents = Reader(archive).load()
        except UserError:
            raise
        except Exception as error:  # a pickle of random bytes can raise anything
            raise UserError(f"{path} is damaged at data.pkl ({error}): copy it again") from error
        if not isinstance(contents, dict):
            raise UserError(f"{path} holds {type(contents).__name__}, not a dictionary of state dictionaries")
        yield contents


def _here(path: str | os.PathLike) -> Path:
    try:
        return storage.local(path)
    except FileNotFoundError:
        raise UserError(f"{os.fspath(path)} does not exist") from None


def _check_kind(path: Path) -> None:
    """Raises UserError for files that are not PyTorch's zip format."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a checkpoint that torch.save wrote") from error
    if start[:1] == PICKLE or start[257:262] == TAR:
        raise UserError(
            f"{path} is in the format of before PyTorch 1.6: open it with PyTorch and save it again with "
            "torch.save(torch.load(OLD, map_location='cpu'), NEW)"
        )
    if not start.startswith(ZIP):
        what = f"begins with {start[:8]!r}" if start else "is empty"
        raise UserError(f"{path} is not a PyTorch checkpoint, it {what}: give a file that torch.save wrote")
