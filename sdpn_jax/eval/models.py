"""Models of several enrolment utterances, which trials may name in place of an utterance."""

import os
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from sdpn_jax.errors import UserError
from sdpn_jax.eval.forms import HEADINGS, LOOKED_AT, NOUNS, columns_of, fields_of, is_heading, split
from sdpn_jax.eval.matching import match_ids, why_unclear
from sdpn_jax.eval.text import quoted, read_text
from sdpn_jax.eval.trials import Trials
from sdpn_jax.vectors import unit

COLUMNS = {"model": HEADINGS["enrol"] - {"left"}, "utterance": HEADINGS["test"] | frozenset(NOUNS)}
WANTED = "wanted are lines 'model utterance ...'"


def read_models(path: str | os.PathLike, trials: Trials) -> dict[str, list[str]]:
    """Reads {model: its enrolment utterances} of the models that the trials name; lines of one model add up.

    Kaldi's spk2utt and CN-Celeb's enroll.lst and enroll.map (`model utterance [utterance ...]`), Kaldi's utt2spk
    (`utterance model`: where the list names more of the second column than of the first), and NIST's tables with a
    heading such as `modelid segmentid`. Raises UserError for a file that has other lines or none of the list's models.
    """
    rows = _rows(path)
    sides = set(trials.enrol), {*trials.enrol, *trials.test}
    if all(len(row) == 2 for row in rows) and _known(rows, 1, sides) > _known(rows, 0, sides):
        rows = [(model, utterance) for utterance, model in rows]
    models = defaultdict(list)
    for model, *utterances in rows:
        if model in sides[1]:
            models[model] += utterances
    if not models:
        raise UserError(
            f"{path}: none of its {len({row[0] for row in rows}):,} models, such as {quoted(rows[0][0])}, is named in "
            f"{trials.source}, whose trials have {quoted(trials.enrol[0])} and {quoted(trials.test[0])}; {WANTED}"
        )
    return dict(models)


def add_models(
    embeddings: np.ndarray,
    ids: Sequence[str],
    models: Mapping[str, Sequence[str]],
    trials: Trials,
    skip_missing: bool = False,
) -> tuple[np.ndarray, list[str], list[str]]:
    """Appends M models to embeddings and ids: the means of their utterances' embeddings of length 1, [N + M, D].

    Returns also warnings: with `skip_missing` utterances without an embedding are left out, and models that have no
    other. Raises UserError, with counts, when an utterance of a model is missing or ambiguous, also together with the
    utterances that the trials name.
    """
    enrol, test = ([name for name in side if name not in models] for side in (trials.enrol, trials.test))
    rows, faults = match_ids(ids, [name for names in models.values() for name in names], enrol, test)
    wanted = {name for names in models.values() for name in names}
    missing = {name for name in wanted if faults.get(name) == []}
    unclear = [name for name in faults if name in wanted and name not in missing]
    if unclear:
        raise UserError(
            f"{len(unclear):,} utterances of the models cannot be told apart; first: "
            f"{why_unclear(unclear[0], ids, faults)}"
        )
    first = next((name for names in models.values() for name in names if name in missing), None)
    if missing and not skip_missing:
        raise UserError(
            f"{len(missing):,} utterances of the models cannot be found among the embeddings; first: {quoted(first)} "
            "has no embedding; embed them, or leave them out by --skip_missing"
        )
    means = {}
    for model, names in models.items():
        if present := [rows[name] for name in names if name in rows]:
            means[model] = unit(embeddings[present]).mean(0)
    if means:
        embeddings = np.concatenate([embeddings, np.asarray(list(means.values()), embeddings.dtype)])
    warnings = []
    if missing:
        warnings.append(
            f"{len(missing):,} of {len(wanted):,} enrolment utterances have no embedding and are left out, first: "
            f"{quoted(first)}; {len(models) - len(means):,} of {len(models):,} models have no other"
        )
    return embeddings, [*ids, *means], warnings


def _known(rows: Sequence[Sequence[str]], column: int, sides: Sequence[Collection[str]]) -> list[int]:
    """How many names of a column each side of the trials has."""
    names = {row[column] for row in rows}
    return [len(names.intersection(side)) for side in sides]


def _rows(path: str | os.PathLike) -> list[list[str]]:
    """(model, utterance, ...) of each line."""
    lines = [
        (number, line) for number, line in enumerate(read_text(path, "list of models").split("\n"), 1) if line.strip()
    ]
    if not lines:
        raise UserError(f"{path}: the list of models is empty; it needs lines such as 'model1 a.wav b.wav'")
    number, first = lines[0]
    try:
        separator, columns = _form(first, [line for _, line in lines[1:LOOKED_AT]])
        rows = []
        for number, line in lines[1:] if columns else lines:  # noqa: B007  # for the message
            fields = split(line, separator)
            row = [fields[i] for i in columns if i < len(fields)] if columns else fields
            if len(row) < 2 or not all(row):
                raise ValueError(f"a model without an utterance: {quoted(line.strip())}; {WANTED}")
            rows.append(row)
    except ValueError as error:
        raise UserError(f"{path}, line {number}: {error}") from None
    if not rows:
        raise UserError(f"{path}: the list of models has a heading alone; {WANTED}")
    return rows


def _form(first: str, below: Sequence[str]) -> tuple[str | None, list[int]]:
    """A list's separator (None: white space) and, where its first line is a heading, its two columns."""
    for separator in ("\t", ",", ";", None):
        words = split(first, separator)
        columns = list(columns_of(words, COLUMNS).values())
        if len(columns) == 2 and is_heading(words, columns, [fields_of(line, separator) for line in below]):
            return separator, columns
    return next((mark for mark in (",", ";") if mark in first and len(first.split()) == 1), None), []
