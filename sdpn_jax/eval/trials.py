"""Trial lists: reading every usual format, finding each utterance that they name, and what looks wrong about them."""

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int

from sdpn_jax.errors import UserError
from sdpn_jax.eval.forms import recognise
from sdpn_jax.eval.matching import match_ids, why_unclear
from sdpn_jax.eval.text import quoted, read_text

UNWRITABLE = ("\n", "\r", "\t")  # which a line of scores could not hold


@dataclass
class Trials:
    """Pairs of utterances, and whether one speaker spoke both.

    labels: int8 [N], 1 target, 0 nontarget, or None where the list does not tell. enrol, test: N ids each, of
    utterances or of models (`read_models`). lines: int [N], the line of each trial in its file (1, 2, ... when left
    out). source: the file, for messages.
    """

    labels: np.ndarray | None
    enrol: list[str]
    test: list[str]
    lines: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    source: str = "the trial list"

    def __post_init__(self):
        if not len(self.lines):
            self.lines = np.arange(1, len(self.enrol) + 1)
        if self.labels is not None and len(self.labels) != len(self.enrol):
            raise ValueError("there must be a label for each trial")
        if not len(self.enrol) == len(self.test) == len(self.lines):
            raise ValueError("enrol, test and lines must be equally long")

    def __len__(self) -> int:
        return len(self.enrol)

    def where(self, chosen: Bool[np.ndarray, " N"]) -> "Trials":
        """The chosen trials alone, which must be one or more."""
        labels = None if self.labels is None else self.labels[chosen]
        enrol, test = ([side[i] for i in np.flatnonzero(chosen)] for side in (self.enrol, self.test))
        return Trials(labels, enrol, test, np.asarray(self.lines)[chosen], self.source)

    def known_labels(self) -> np.ndarray:
        """Returns the labels; UserError if there are none."""
        if self.labels is None:
            raise UserError(
                f"{self.source}: the list does not say which trials are targets: no error rate can be given"
            )
        return self.labels


def read_trials(path: str | os.PathLike) -> Trials:
    """Reads a trial list; its first lines show which form it has.

    Fields between white space, tabs, commas or semicolons: `label enrol test` (VoxCeleb, VoxSRC), `enrol test label`
    (Kaldi, CN-Celeb, SITW, VOiCES), `enrol test`; tables with a heading, whose further columns are ignored (NIST's
    keys); one JSON object a line. Labels are those of `forms.LABELS` in any case, or 1 and -1. Blank lines, carriage
    returns and a byte order mark do no harm. Raises UserError, with the line and the part that is wrong, for a file
    that cannot be read, is empty, or has a line of another form.
    """
    text = read_text(path, "trial list").replace("\r\n", "\n").replace("\r", "\n")
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    labels, sides, lines = [], ([], []), []
    names = {}  # one string object per utterance: lists name each of them hundreds of times
    if not numbered:
        raise UserError(f"{path}: the trial list is empty; it needs lines such as '1 enrol.wav test.wav'")
    number = numbered[0][0]
    try:
        form, is_heading = recognise([line for _, line in numbered])
        for number, line in numbered[is_heading:]:
            label, *pair = form.trial(line)
            for side, name in zip(sides, pair, strict=True):
                if name not in names:
                    names[name] = checked_id(name)
                side.append(names[name])
            labels.append(label)
            lines.append(number)
    except ValueError as error:
        raise UserError(f"{path}, line {number}: {error}") from None
    if not lines:
        raise UserError(f"{path}: the trial list is empty; it needs lines such as '1 enrol.wav test.wav'")
    known = None if form.label is None else _labels(np.array(labels, np.int8), lines, path)
    return Trials(known, *sides, np.array(lines), str(path))


def checked_id(name: str) -> str:
    """Returns an id; ValueError if a line of scores could not hold it."""
    if any(mark in name for mark in UNWRITABLE):
        raise ValueError(f"the id {quoted(name)} holds a line break or a tab")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the id {quoted(name)} is no text in Unicode") from None
    return name


def _labels(labels: np.ndarray, lines: list[int], path: str | os.PathLike) -> np.ndarray:
    """Labels of 1 and 0; a list that labels by 1 and -1 may have no 0."""
    if not np.any(labels == -1):
        return labels
    if np.any(labels == 0):
        negative, zero = lines[np.argmax(labels == -1)], lines[np.argmax(labels == 0)]
        raise UserError(
            f"{path}: both -1 (first in line {negative}) and 0 (line {zero}) are labels; wanted are 1 and 0, or 1 "
            "and -1"
        )
    return np.maximum(labels, 0)


def trial_rows(ids: Sequence[str], trials: Trials) -> tuple[np.ndarray, np.ndarray]:
    """Finds the embedding rows of each trial's two sides, int [N] each; UserError if one is missing or ambiguous."""
    rows, faults = match_ids(ids, trials.enrol, trials.test)
    missing = {name for name, candidates in faults.items() if not candidates}
    if missing:
        raise UserError(
            f"{trials.source}: {_blame(trials, missing, 'utterances without an embedding')}; the embeddings' ids look "
            f"like {quoted(ids[0])}; embed the missing ones with `sdpn embed`, or leave such trials out by "
            "`sdpn score --skip_missing`"
        )
    if faults:
        several = {name for name, candidates in faults.items() if len(candidates) > 1}
        what = "fit several embeddings" if several else "share an embedding with another name"
        guilty = several or set(faults)
        name = next(name for name in faults if name in guilty)
        blame = _blame(trials, guilty, f"utterances that {what}")
        raise UserError(
            f"{trials.source}: {blame}; {why_unclear(name, ids, faults)}; write the ids in the list as they are in the "
            "embeddings"
        )
    enrol, test = (np.array([rows[name] for name in side], np.int64) for side in (trials.enrol, trials.test))
    return enrol, test


def are_missing(ids: Sequence[str], trials: Trials, gone: Collection[str] = ()) -> Bool[np.ndarray, " N"]:
    """Tells of each trial whether one of its sides has no embedding, or is among `gone`."""
    _, faults = match_ids(ids, trials.enrol, trials.test)
    missing = {name for name, candidates in faults.items() if not candidates}.union(gone)
    sides = zip(trials.enrol, trials.test, strict=True)
    return np.fromiter((a in missing or b in missing for a, b in sides), bool, len(trials))


def numbered_sides(trials: Trials) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Numbers the ids of each trial's two sides, int [N] each: the same id, the same number."""
    numbers = {}
    enrol, test = (
        np.fromiter((numbers.setdefault(name, len(numbers)) for name in side), np.int64, len(side))
        for side in (trials.enrol, trials.test)
    )
    return enrol, test


def suspicions(trials: Trials, enrol: Int[np.ndarray, " N"], test: Int[np.ndarray, " N"]) -> list[str]:
    """Says, with counts and first lines, what looks wrong about a list: a sentence for each kind of fault.

    enrol, test: int [N], the utterances of each trial's sides, as `trial_rows` or `numbered_sides` give them.
    """
    found = []
    itself = enrol == test
    if itself.any():
        found.append(f"{_counted(itself, trials)} an utterance with itself")
    low, high = np.minimum(enrol, test), np.maximum(enrol, test)
    _, first, pair = np.unique(low * (high.max() + 1) + high, return_index=True, return_inverse=True)
    again = first[pair] != np.arange(len(trials))
    if trials.labels is not None:
        targets = np.bincount(pair, trials.labels, len(first))
        is_both = ((targets > 0) & (targets < np.bincount(pair, minlength=len(first))))[pair]
        if is_both.any():
            pairs = len(np.unique(pair[is_both]))
            both = "1 pair has" if pairs == 1 else f"{pairs:,} pairs have"
            other = trials.labels != trials.labels[first[pair]]
            one, two = (trials.lines[i] for i in (first[pair[np.argmax(other)]], np.argmax(other)))
            found.append(f"{both} both labels, target and nontarget, first in lines {one} and {two}")
        again &= ~is_both
    if again.any():
        found.append(f"{_counted(again, trials)} the same pair twice or more, in this order or the other")
    return [f"{trials.source}: {sentence}" for sentence in found]


def _counted(chosen: Bool[np.ndarray, " N"], trials: Trials) -> str:
    """`3 of 60 trials (first: line 7) are of`."""
    count, line = int(chosen.sum()), trials.lines[np.argmax(chosen)]
    return f"{count:,} of {len(trials):,} trials (first: line {line}) {'is' if count == 1 else 'are'} of"


def _blame(trials: Trials, names: Iterable[str], what: str) -> str:
    """Counts the trials that use one of the names and shows the first three with their lines."""
    names = set(names)
    uses = [name for sides in zip(trials.enrol, trials.test, strict=True) for name in sides]
    guilty = np.fromiter((name in names for name in uses), bool, len(uses)).reshape(-1, 2)
    first = dict.fromkeys(name for name in uses if name in names)
    places = ((name, uses.index(name) // 2) for name in list(first)[:3])
    where = ", ".join(f"line {trials.lines[place]} {quoted(name)}" for name, place in places)
    count = f"{guilty.any(1).sum():,} of {len(trials):,} trials"
    return f"{count} name {what} ({len(first):,} utterances), first: {where}"
