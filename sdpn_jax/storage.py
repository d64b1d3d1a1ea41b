"""Files that are complete or absent, whenever the program is killed."""

from pathlib import Path
from typing import Any

import numpy as np


def write_text(path: Path, text: str) -> None:
    """Writes a text file under another name and renames it, so that nobody ever finds half of it."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file of bytes, complete or not at all, as `write_text` does."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def write_npz(path: Path, **arrays: Any) -> None:
    """Writes an .npz of arrays, complete or not at all, as `write_text` does."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
    temporary.replace(path)


def stamp(path: Path) -> tuple[int, int] | None:
    """Returns (size, time of the last change), by which a changed file is recognised; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
