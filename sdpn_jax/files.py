"""Files that are complete or absent, whenever the program is killed."""

from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes under another name and renames, so that nobody ever finds half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
