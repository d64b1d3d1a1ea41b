"""The labels of a run: which class each utterance of its shards belongs to, as far as that is known."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from absl import logging
from jaxtyping import Int32

from sdpn_jax import storage
from sdpn_jax.data.labels import LABELS, read_labels
from sdpn_jax.data.shards import Shards
from sdpn_jax.errors import UserError, shown
from sdpn_jax.eval.matching import known_of

NONE = -1  # the class of an utterance without a label


@dataclass(frozen=True)
class Labels:
    """What is known of the utterances of a run's shards.

    of: the class [N] of each, or NONE; names: of the classes, none where nothing is learnt from labels; truth: [N]
    speakers known for judging.
    """

    of: Int32[np.ndarray, " N"]
    names: tuple[str, ...]
    truth: Int32[np.ndarray, " N"] | None = None

    def fingerprint(self) -> str:
        """A digest of what is learnt from."""
        digest = hashlib.sha256("\n".join(self.names).encode("utf-8", "surrogateescape"))
        digest.update(np.ascontiguousarray(self.of, "<i4").tobytes())
        return digest.hexdigest()

    def arrays(self) -> dict[str, Int32[np.ndarray, "..."]]:
        """What the steps want to know; see classify.py and positives.py."""
        arrays = {"labels": self.of} if self.names else {}
        if self.truth is not None:
            arrays["truth"] = self.truth
        if self.names and self.truth is not None:
            arrays["speaker_of_class"] = self._most_frequent(self.truth)
        return arrays

    def _most_frequent(self, truth: Int32[np.ndarray, " N"]) -> Int32[np.ndarray, " C"]:
        """The speaker whom each class has most of; NONE where nobody is known."""
        counts = Counter(zip(self.of.tolist(), truth.tolist(), strict=True))
        best = np.full(len(self.names), NONE, np.int32)
        for (number, speaker), _ in sorted(counts.items(), key=lambda item: item[1]):  # the most frequent comes last
            if number != NONE and speaker != NONE:
                best[number] = speaker
        return best


def labels_of(shards: Shards, path: str, truth_path: str = "", held_out: int = 0) -> Labels:
    """Reads the labels of the shards' utterances: of the list `path`, or the one that came with the shards.

    The last `held_out` utterances are not learnt from and their labels count for nothing. Utterances that the list does
    not name have no label. Raises UserError for a list that cannot be read, that names an utterance in a way that fits
    several, or that leaves fewer than two classes.
    """
    source = path or _beside(shards)
    names, of = _numbered(shards.ids, read_labels(source), source)
    if held_out:
        of[len(of) - held_out :] = NONE
        used = np.unique(of[of != NONE])
        names, of = [names[number] for number in used], _renumbered(of, used)
    if len(names) < 2:
        raise UserError(f"{source}: {len(names)} labels for the utterances in {shards.folder}, wanted are two or more")
    labelled = int(np.sum(of != NONE))
    logging.info("%d classes; %d of %d utterances have a label", len(names), labelled, len(of) - held_out)
    return Labels(of, tuple(names), _truth(shards, truth_path))


def no_labels(shards: Shards, truth_path: str = "") -> Labels:
    """Returns what is known where nothing is learnt from labels; UserError as reading the true ones does."""
    return Labels(np.full(shards.utterances, NONE, np.int32), (), _truth(shards, truth_path))


def _truth(shards: Shards, path: str) -> Int32[np.ndarray, " N"] | None:
    return _numbered(shards.ids, read_labels(path), path)[1] if path else None


def _beside(shards: Shards) -> storage.Place:
    path = shards.folder / LABELS
    if not storage.exists(path):
        raise UserError(
            f"task=classify learns from labels, and {shards.folder} has none: name a list of `utterance label` lines "
            "by --config.labels=FILE, or prepare with --labels"
        )
    return path


def _numbered(
    ids: Sequence[str], label_of: Mapping[str, str], source: str | os.PathLike
) -> tuple[list[str], Int32[np.ndarray, " N"]]:
    """The names of the labels that occur, in order, and each id's number among them, or NONE."""
    given, faults = known_of(ids, label_of)
    unclear = [name for name, found in faults.items() if found]
    if unclear:
        raise UserError(
            f"{source}: {len(unclear):,} utterances fit several lines, first: {shown(unclear[0])}: write whole ids"
        )
    names = sorted({label for label in given if label is not None})
    number = {name: i for i, name in enumerate(names)}
    return names, np.asarray([NONE if label is None else number[label] for label in given], np.int32)


def _renumbered(of: Int32[np.ndarray, " N"], used: np.ndarray) -> Int32[np.ndarray, " N"]:
    """Numbers the `used` classes from 0."""
    return np.where(of == NONE, NONE, np.searchsorted(used, of)).astype(np.int32)
