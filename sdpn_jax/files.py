"""Files that are complete or absent, whenever the program is killed."""

from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes under another name and renames, so that nobody ever finds half of it."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """As `write_text`."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
