"""Who speaks, or what was found to: lists of `utterance label` lines, as Kaldi's utt2spk is, and folders as labels."""

import os
from collections.abc import Iterable, Mapping

from sdpn_jax import storage
from sdpn_jax.errors import UserError, shown

LABELS = "labels.txt"  # beside the shards that they came with


def read_labels(path: str | os.PathLike) -> dict[str, str]:
    """Reads {utterance: label} of lines `utterance label`; what follows the last space of a line is the label.

    Raises UserError, with the line, for a line of one word, an utterance of two labels and a file that is no text.
    """
    try:
        text = storage.read_bytes(path).removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    except OSError as error:
        raise UserError(f"{path}: cannot read the labels ({error.strerror})") from None
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        fields = line.strip().rsplit(maxsplit=1)
        if not fields:
            continue
        if len(fields) != 2 or "\0" in line:
            raise UserError(f"{path}, line {number}: wanted is 'utterance label', not {shown(line.strip())}")
        if found.setdefault(*fields) != fields[1]:
            raise UserError(f"{path}, line {number}: {shown(fields[0])} has another label before: leave one of them")
    if not found:
        raise UserError(f"{path} has no line 'utterance label'")
    return found


def of_folders(ids: Iterable[str]) -> dict[str, str]:
    """Takes the first folder of each id for its label, as in VoxCeleb and LibriSpeech; UserError for an id without."""
    labels = {}
    for name in ids:
        folder, _, rest = name.lstrip("/").partition("/")
        if not rest:
            raise UserError(
                f"--labels=folders: {shown(name)} lies in no folder below --input that could name its speaker"
            )
        labels[name] = folder
    return labels


def check_labels(labels: Mapping[str, str], source: str | os.PathLike) -> None:
    """Raises UserError for an utterance or a label that cannot stand in a line, as a name with a blank."""
    for name, label in labels.items():
        if name != name.strip() or not name or "\n" in name or len(label.split()) != 1:
            raise UserError(f"{source}: the utterance {shown(name)} and label {shown(label)} cannot stand in a line")


def write_labels(path: storage.Place, labels: Mapping[str, str]) -> None:
    """Writes lines `utterance label`; UserError for what would not be read as it was."""
    check_labels(labels, path)
    text = "".join(f"{name} {label}\n" for name, label in labels.items())
    storage.write_text(path, text)
