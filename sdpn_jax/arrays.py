"""Reads .npy and .npz files of which nothing is believed: neither the sizes they declare nor what they hold."""

import contextlib
import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from sdpn_jax import storage
from sdpn_jax.errors import UserError, shown

KINDS = "biufSU"  # truth values, numbers, texts; neither objects nor records
MOST_HEADER = 4096  # characters; NumPy writes 118 for a plain array
MOST_MEMBERS = 1000
MOST_TABLE = 4 << 20  # bytes of a zip file's table of contents; each takes some ten bytes of memory
PACKINGS = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
MOST_INFLATION, FREE = 100, 1 << 20  # what is packed may grow by this factor, and little files by more
MOST_PACKED = 1 << 30  # bytes by which any file may grow
LAST_CHARACTER = 0x10FFFF
PART = 8 << 20  # bytes read at once


class Bounded:
    """A file of which no single read may exceed `most` bytes, where it is set."""

    def __init__(self, file: IO[bytes], most: int):
        self._file, self.most = file, most
        self.seek, self.tell, self.close, self.seekable = file.seek, file.tell, file.close, file.seekable

    def read(self, count: int = -1) -> bytes:
        """Reads as the file does; raises ValueError beyond the bound."""
        if not self.most:
            return self._file.read(count)
        data = self._file.read(self.most + 1 if count < 0 else min(count, self.most + 1))
        if len(data) > self.most:
            raise ValueError(f"a table of contents of more than {self.most >> 20} MB")
        return data


@contextlib.contextmanager
def zip_file(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens a local zip file whose members have names of their own and, packed, are no larger than it together.

    Raises ValueError, or what zipfile and the system raise, for other files.
    """
    with path.open("rb") as file:
        bounded = Bounded(file, MOST_TABLE)
        with zipfile.ZipFile(bounded) as archive:  # type: ignore[arg-type]  # reads the table in one piece
            bounded.most = 0
            members = archive.infolist()
            if len({member.filename for member in members}) < len(members):
                raise ValueError("two members of one name")
            if sum(member.compress_size for member in members) > path.stat().st_size:
                raise ValueError("members that overlap")
            for member in members:
                if member.compress_type not in PACKINGS:  # others may ask for gigabytes to unpack a byte
                    raise ValueError(f"member {shown(member.filename)} is packed in an unusual way")
            yield archive


def read_npz(path: str | os.PathLike, what: str) -> dict[str, np.ndarray]:
    """Reads all arrays of an .npz file, {name: array}, of plain numbers and texts.

    Raises UserError, which says that the file is not `what` ("a gallery"), for one that is missing, damaged, of another
    kind, or would grow beyond MOST_INFLATION times its size.
    """
    with _one_line(path, what) as file, zip_file(file) as archive:
        members, size = archive.infolist(), file.stat().st_size
        if len(members) > MOST_MEMBERS:
            raise ValueError(f"{len(members)} members")
        if sum(member.file_size for member in members) > min(MOST_INFLATION * size + FREE, 4 * size + MOST_PACKED):
            raise ValueError(f"it would grow far beyond its {size} bytes")
        return {member.filename.removesuffix(".npy"): _member(archive, member) for member in members}


def read_npy(path: str | os.PathLike, what: str) -> np.ndarray:
    """Reads the array of an .npy file. Raises UserError as `read_npz` does."""
    with _one_line(path, what) as place, place.open("rb") as file:
        return _array(file, place.stat().st_size)


@contextlib.contextmanager
def _one_line(path: str | os.PathLike, what: str) -> Iterator[Path]:
    """Gives the local file; whatever fails in the block becomes a UserError."""
    name = shown(os.fspath(path), 1000)
    try:
        yield storage.local(path)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{name}: no such file; give {what}") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read as {what} ({error.strerror or shown(error)})") from None
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds for random bytes
        why = shown(error) or type(error).__name__
        raise UserError(f"{name} is not {what} ({why}): make or copy it again") from None


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    name = shown(member.filename)
    if not member.filename.endswith(".npy"):
        raise ValueError(f"member {name} is no array")
    try:
        with archive.open(member) as file:
            return _array(file, member.file_size)
    except Exception as error:  # see above
        raise ValueError(f"member {name}: {shown(error) or type(error).__name__}") from error


def _array(file: IO[bytes], size: int) -> np.ndarray:
    """Reads an array from a file of `size` bytes."""
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(file)
    if version not in read_header:  # a third one is for records
        raise ValueError(f"version {version}")
    shape, by_columns, dtype = read_header[version](file, max_header_size=MOST_HEADER)
    if dtype.kind not in KINDS or not dtype.itemsize:
        raise ValueError(f"items of type {dtype.name}")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f"an array {shown(shape)} of {dtype.name} in {size} bytes")
    array = _bytes(file, size - file.tell()).view(dtype).reshape(shape, order="F" if by_columns else "C")
    codes = array.dtype.byteorder + "u4" if dtype.kind == "U" else None
    if codes and array.size and np.ascontiguousarray(array).reshape(-1).view(codes).max() > LAST_CHARACTER:
        raise ValueError("a text with characters that do not exist")
    return array


def _bytes(file: IO[bytes], count: int) -> np.ndarray:
    """Reads the last `count` bytes of a file without a second copy of them."""
    data = np.empty(count, np.uint8)
    for start in range(0, count, PART):
        part = file.read(min(PART, count - start))
        data[start : start + len(part)] = np.frombuffer(part, np.uint8)
        if len(part) < min(PART, count - start):
            raise ValueError("cut short")
    return data
