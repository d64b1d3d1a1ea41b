"""Reads what `torch.save` wrote, without PyTorch and without running anything that a pickle may ask for."""

import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from sdpn_jax import storage
from sdpn_jax.arrays import zip_file
from sdpn_jax.errors import UserError, shown
from sdpn_jax.weights import pickled

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
STORAGES = {f"torch.{name}": dtype for name, dtype in DTYPES.items()}
# Numbers of an optimizer whose schedule was a NumPy array: they may stand in the file, and are not looked at.
IGNORED = (
    "numpy.dtype _codecs.encode numpy.core.multiarray.scalar numpy._core.multiarray.scalar torch.device torch.Size"
).split()
DICTIONARY, TENSOR = "collections.OrderedDict", "torch._utils._rebuild_tensor_v2"
PARAMETER = "torch._utils._rebuild_parameter"
ZIP, PICKLE, TAR = b"PK\x03\x04", b"\x80", b"ustar"  # how files begin; the latter two PyTorch wrote before 1.6
MOST_AXES, HUGE = 32, 2**48
MOST_SHARING = 4  # times the file's size is what its tensors may hold together, some of them in the same storage


class Archive:
    """The zip file of a checkpoint: one folder with data.pkl, and the bytes of each storage in data/.

    name: the folder's, which `torch.save` calls as the file that it writes, less its extension.
    """

    def __init__(self, path: Path, file: zipfile.ZipFile):
        self.path, self._file, self._last = path, file, ("", b"")
        folders = [name.removesuffix("data.pkl") for name in file.namelist() if name.endswith("/data.pkl")]
        if not folders:
            raise UserError(f"{path} is a zip file without data.pkl: give a checkpoint that torch.save wrote")
        self._folder = folders[0]
        self.name = self._folder.removesuffix("/")
        has_byteorder = self._folder + "byteorder" in file.namelist()
        self.byteorder: Literal[">", "<"] = ">" if has_byteorder and self.read("byteorder", 16) == b"big" else "<"

    def read(self, name: str, most: int) -> bytes:
        """Reads all bytes of a member and compares its checksum.

        Raises UserError if it is damaged, missing, or larger than `most` bytes.
        """
        if self._last[0] != name:  # tensors may share a storage, and then mostly follow each other
            try:
                member = self._file.getinfo(self._folder + name)
                if member.compress_type != zipfile.ZIP_STORED:  # PyTorch packs nothing, and little may become a lot
                    raise ValueError("packed, as PyTorch packs none")
                if member.file_size > most:
                    raise ValueError(f"{member.file_size} bytes, where {most} are the most")
                self._last = name, self._file.read(member)
            except Exception as error:  # zipfile raises a dozen kinds for random bytes
                why = shown(error) or type(error).__name__
                raise UserError(f"{self.path} is damaged at {name} ({why}): copy it again") from error
        return self._last[1]


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the file; tensors are windows of it."""

    archive: Archive
    key: str
    dtype: np.dtype
    size: int  # elements

    def read(self) -> np.ndarray:
        """Reads the numbers [size]; raises UserError if the file is damaged."""
        count = self.size * self.dtype.itemsize
        data = self.archive.read(f"data/{self.key}", count)
        if len(data) != count:
            raise UserError(f"{self.archive.path} is damaged: storage {self.key} has not {self.size} {self.dtype}")
        return np.frombuffer(data, self.dtype.newbyteorder(self.archive.byteorder))


@dataclass(frozen=True)
class Tensor:
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


class Ignored:
    """Stands for a value that nobody looks at."""

    __slots__ = ()


class Reader(pickled.Interpreter):
    """Builds dictionaries, lists, numbers, texts and Tensors; whatever else the pickle names is refused."""

    def __init__(self, archive: Archive, size: int):
        """size: bytes of the file."""
        super().__init__()
        self._archive, self._size, self._left = archive, size, MOST_SHARING * size

    def admit(self, name: pickled.Name) -> None:
        """Raises UserError for an import that no checkpoint needs."""
        if name.full not in (*STORAGES, *IGNORED, DICTIONARY, TENSOR, PARAMETER):
            raise UserError(
                f"{self._archive.path} asks for '{shown(name.full)}', which is no tensor; nothing was run: give a "
                "checkpoint of state dictionaries alone, as the released training script writes it"
            )

    def call(self, name: pickled.Name, arguments: tuple) -> Any:
        """Returns the dictionary, Tensor or Ignored that an admitted import makes."""
        if name.full in IGNORED:
            return Ignored()
        if name.full == DICTIONARY and not arguments:
            return {}
        if name.full == TENSOR and len(arguments) >= 4:
            return self._tensor(*arguments[:4])
        if name.full == PARAMETER and arguments and isinstance(arguments[0], Tensor):
            return arguments[0]
        raise ValueError(f"{name.full} called with {len(arguments)} arguments that are not its own")

    def stored(self, description: Any) -> Storage:
        """Returns the storage that (kind, type, key, device, size) describes."""
        if type(description) is not tuple or len(description) != 5:
            raise ValueError("a storage that is not described by five values")
        kind, name, key, _, size = description
        if type(kind) is not str or kind != "storage" or not isinstance(name, pickled.Name):
            raise ValueError("no storage")
        if name.full not in STORAGES or type(key) is not str or not key.isascii() or not key.isalnum():
            raise ValueError("a storage without a known type or a number")
        dtype = jnp.dtype(STORAGES[name.full])
        if type(size) is not int or not 0 <= size * dtype.itemsize <= self._size:
            raise ValueError("a storage of a size that the file cannot hold")
        return Storage(self._archive, shown(key), dtype, size)

    def _tensor(self, of: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
        if not isinstance(of, Storage) or type(shape) is not tuple or type(strides) is not tuple:
            raise ValueError("no tensor")
        if len(shape) != len(strides) or len(shape) > MOST_AXES:
            raise ValueError(f"a tensor of {len(shape)} sizes and {len(strides)} strides")
        if any(type(number) is not int or not 0 <= number < HUGE for number in (offset, *shape, *strides)):
            raise ValueError("a tensor with a negative or huge size, stride or offset")
        if math.prod(max(size, 1) for size in shape) >= HUGE:
            raise ValueError("a tensor with huge sizes")
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        # More elements than the storage has would be a tensor that repeats itself, of any size.
        if math.prod(shape) > of.size or (math.prod(shape) and last >= of.size):
            raise ValueError(f"a tensor that reaches past the {of.size} elements of its storage")
        self._left -= math.prod(shape) * of.dtype.itemsize
        if self._left < 0:
            raise ValueError("tensors that hold far more than the file")
        return Tensor(of, offset, shape, strides)


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[dict]:
    """Opens the dictionary that `torch.save` wrote to a file; each tensor is a Tensor, to be read while it is open.

    Raises UserError, with what to do, for a file that is missing, damaged, of another kind, or not of tensors alone.
    """
    path = _here(path)
    _check_kind(path)
    with ExitStack() as stack:
        try:
            file = stack.enter_context(zip_file(path))
        except Exception as error:  # see Archive
            why = shown(error) or type(error).__name__
            raise UserError(f"{path} is cut short or damaged ({why}): copy it again") from error
        archive = Archive(path, file)
        data = archive.read("data.pkl", pickled.MOST_BYTES)
        try:
            contents = Reader(archive, path.stat().st_size).run(data)
        except UserError:
            raise
        except Exception as error:  # a pickle of random bytes can raise anything
            why = shown(error) or type(error).__name__
            raise UserError(f"{path} is damaged at data.pkl ({why}): copy it again") from error
        if type(contents) is not dict:
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
