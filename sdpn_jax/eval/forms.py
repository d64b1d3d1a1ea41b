"""The forms in which lists write a trial, and which of them a list has."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sdpn_jax.eval.text import quoted

AUDIO_EXTENSIONS = frozenset(
    ("wav", "flac", "mp3", "m4a", "mp4", "aac", "ogg", "opus", "webm", "wma", "aif", "aiff", "sph", "spx")
)
TARGET = "1 1.0 +1 true t yes y target tgt tar same positive pos genuine match"
NONTARGET = (
    "0 0.0 false f no n nontarget non-target non_target impostor imposter imp non different diff negative neg "
    "mismatch nonmatch non-match"
)
LABELS: dict[str, int] = {
    **dict.fromkeys(TARGET.split(), 1), **dict.fromkeys(NONTARGET.split(), 0), **dict.fromkeys(("-1", "-1.0"), -1)
}  # fmt: skip
WANTED_LABELS = "1 or 0, target or nontarget, tgt or imp, true or false, yes or no, same or different"
NOUNS = "id utt utterance uttid file filename path filepath wav audio recording rec speech sample segment".split()
ENROLMENTS = "enrol enroll enrolment enrollment model ref reference"
HEADINGS = {  # of tables, in small letters and digits alone
    "label": frozenset(
        "label labels target targets istarget targettype trialtype key same samespeaker issame issamespeaker y match "
        "groundtruth".split()
    ),
    "enrol": frozenset(
        [f"{side}{noun}" for side in ENROLMENTS.split() for noun in ("", *NOUNS)]
        + [f"{noun}{one}" for noun in NOUNS for one in ("1", "a")]
        + "left speakermodel modelname enrolname enrollname".split()
    ),
    "test": frozenset(
        [f"{side}{noun}" for side in ("test", "probe") for noun in ("", *NOUNS)]
        + [f"{noun}{two}" for noun in NOUNS for two in ("2", "b")]
        + "segment segmentid right testname".split()
    ),
}  # fmt: skip
SEPARATORS = ("\t", ",", ";", None)  # None: white space
LOOKED_AT = 1000  # lines, to choose among the forms that the first line may have
Trial: TypeAlias = tuple[int | None, str, str]  # label, enrol, test


@dataclass(frozen=True)
class Fields:
    """A trial as fields of a line: their separator (None: white space), their number, and which is which.

    label: None where there is none.
    """

    separator: str | None
    width: int
    label: int | None
    enrol: int
    test: int

    def trial(self, line: str) -> Trial:
        """(label, enrol, test) of one line; ValueError says which part of it is wrong."""
        fields = split(line, self.separator)
        if len(fields) != self.width:
            hint = " (paths with spaces need commas: 1,enrol,test)" if not self.separator and len(fields) > 3 else ""
            raise ValueError(f"{_counted(fields)} in {quoted(line.strip())}; wanted is {self.example()}{hint}")
        enrol, test = fields[self.enrol], fields[self.test]
        if not enrol or not test:
            empty = self.test if enrol else self.enrol
            raise ValueError(f"field {empty + 1}, {'test' if enrol else 'enrol'}, is empty")
        if self.label is None:
            return None, enrol, test
        text = fields[self.label]
        label = LABELS.get(text)
        if label is None:
            label = LABELS.get(text.lower())
        if label is None:
            raise ValueError(f"field {self.label + 1}, {quoted(text)}, is no label: wanted is {WANTED_LABELS}")
        return label, enrol, test

    def example(self) -> str:
        """A line of this form, in quotes."""
        columns = ["..."] * self.width
        columns[self.enrol], columns[self.test] = "enrol", "test"
        if self.label is not None:
            columns[self.label] = "1"
        return repr((self.separator or " ").join(columns))


@dataclass(frozen=True)
class Objects:
    """A trial as a JSON object on a line: the keys of its parts; label: None where there is none."""

    label: str | None
    enrol: str
    test: str

    def trial(self, line: str) -> Trial:
        """(label, enrol, test) of one line; ValueError says which part of it is wrong."""
        found = json_object(line)
        if found is None:
            raise ValueError(f"{quoted(line.strip())} is no JSON object, as this list's first line is")
        for key in (self.label, self.enrol, self.test):
            if key is not None and key not in found:
                raise ValueError(f"the object has no {quoted(key)}")
        for key in (self.enrol, self.test):
            if not isinstance(found[key], str) or not found[key].strip():
                raise ValueError(f"{quoted(key)} must be a string, not {_short(found[key])}")
        if self.label is None:
            return None, found[self.enrol], found[self.test]
        value = found[self.label]
        label = LABELS.get(str(value).strip().lower()) if isinstance(value, (bool, int, float, str)) else None
        if label is None:
            wrong = f"{quoted(self.label)}, {_short(value)}, is no label"
            raise ValueError(f"{wrong}: wanted is {WANTED_LABELS}")
        return label, found[self.enrol], found[self.test]


Form: TypeAlias = Fields | Objects


def split(line: str, separator: str | None) -> list[str]:
    """The fields of one line, which may stand in double quotes but for white space; ValueError for broken quotes."""
    if separator is None:
        return line.split()
    if '"' not in line:
        return [field.strip() for field in line.split(separator)]
    try:
        rows = csv.reader([line.strip("\r\n ")], delimiter=separator, skipinitialspace=True, strict=True)
        return [field.strip() for field in next(rows)]
    except csv.Error as error:
        raise ValueError(f"{quoted(line.strip())} is no row of a table ({error})") from None


def json_object(line: str) -> dict[str, Any] | None:
    """The JSON object that a line holds; None if it holds none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _plain(word: str) -> str:
    """A word in small letters and digits alone, as HEADINGS has them."""
    return re.sub(r"[\W_]", "", word.lower())


def columns_of(words: Sequence[str], headings: Mapping[str, frozenset[str]] = HEADINGS) -> dict[str, int]:
    """Finds a heading's columns: {role: which word}, the first where several would do.

    Raises ValueError where two columns may be the label.
    """
    plain = [_plain(word) for word in words]
    found = {role: [i for i, word in enumerate(plain) if word in known] for role, known in headings.items()}
    if {"enrol", "test"} <= {role for role, places in found.items() if places} and len(found.get("label", ())) > 1:
        one, other = found["label"][:2]
        raise ValueError(f"both {quoted(words[one])} and {quoted(words[other])} may be the label: rename one of them")
    return {role: places[0] for role, places in found.items() if places}


def is_heading(words: Sequence[str], columns: Sequence[int], rows: Sequence[Sequence[str]]) -> bool:
    """Tells whether a line whose words may name columns does so, and is not the first row: `1 utt1 utt2`.

    columns: those of ids; rows: the fields of the next lines. It is a row if a label stands in it, if one of its ids
    stands in another row, or if an id is written like the one below it but for digits.
    """
    if any(word.lower() in LABELS and _plain(word) not in HEADINGS["label"] for word in words):
        return False
    below = {field for row in rows for field in row}
    if any(words[column] in below for column in columns):
        return False
    shapes = [[re.sub(r"\d+", "0", word) for word in line] for line in (words, *rows[:1])]
    if len(shapes) < 2 or len(shapes[0]) != len(shapes[1]):
        return True
    return not any("0" in shapes[0][column] and shapes[0][column] == shapes[1][column] for column in columns)


def recognise(lines: Sequence[str]) -> tuple[Form, bool]:
    """Recognises a list's form from its first lines: (form, whether the first is a heading).

    Where the first line may have several forms, that one which most lines have. ValueError says what is wrong with the
    first line if it has none.
    """
    first = lines[0]
    if first.lstrip().startswith("{") and (found := json_object(first)):
        keys = list(found)
        roles = {role: keys[i] for role, i in columns_of(keys).items()}
        if not {"enrol", "test"} <= set(roles):
            raise ValueError(f"the object's keys {quoted(', '.join(keys))} do not name both sides: enrol and test")
        return Objects(roles.get("label"), roles["enrol"], roles["test"]), False
    if first.lstrip().startswith("[") and "{" in first:
        raise ValueError("the list is one JSON array: write an object on each line, without brackets and commas")
    rows = {separator: fields_of(first, separator) for separator in SEPARATORS}
    for separator, fields in rows.items():
        roles = columns_of(fields)
        if not {"enrol", "test"} <= set(roles):
            continue
        below = [fields_of(line, separator) for line in lines[1:LOOKED_AT]]
        if is_heading(fields, (roles["enrol"], roles["test"]), below):
            return Fields(separator, len(fields), roles.get("label"), roles["enrol"], roles["test"]), True
    forms = _forms(rows)
    if not forms:
        raise ValueError(_why_no_form(first, rows))
    sample = lines[:LOOKED_AT]
    return max(forms, key=lambda form: sum(_fits(form, line) for line in sample)), False


def fields_of(line: str, separator: str | None) -> list[str]:
    """The fields of one line as `split` finds them; none of broken quotes."""
    try:
        return split(line, separator)
    except ValueError:
        return []


def _forms(rows: Mapping[str | None, list[str]]) -> list[Fields]:
    """The forms that a line with these fields may have, the likeliest first."""
    words, firsts, numbers, longer, unlabelled = [], [], [], [], []
    for separator in (None, "\t", ",", ";"):
        fields = rows[separator]
        if separator is None and any(field.endswith((",", ";")) for field in fields):
            continue  # `a, b, 1`
        size = len(fields)
        if size < 3:
            continue
        first, third = (fields[i].lower() in LABELS for i in (0, 2))
        if size > 3:
            if first != third and (separator or _is_clear(fields, 0 if first else 2)):
                longer.append(Fields(separator, size, *((0, 1, 2) if first else (2, 0, 1))))
            continue
        if third:
            (words if _is_word(fields[2]) else numbers).append(Fields(separator, 3, 2, 0, 1))
        if first:
            firsts.append(Fields(separator, 3, 0, 1, 2))
    for separator, fields in rows.items():
        if len(fields) == 2 and all(fields) and fields[0].lower() not in LABELS:
            unlabelled.append(Fields(separator, 2, None, 0, 1))
    return words + firsts + numbers + longer + unlabelled


def _is_clear(fields: Sequence[str], label: int) -> bool:
    """Whether white space surely parts more than three fields, and is not within a path."""
    if label == 2 and _is_word(fields[2]):
        return True
    sides = (1, 2) if label == 0 else (0, 1)
    return all(is_audio(fields[i]) for i in sides) and not any(is_audio(field) for field in fields[3:])


def _is_word(label: str) -> bool:
    """Whether a label can hardly be an id: `target`, not `1` or `y`."""
    return len(label) > 1 and label[0].isalpha()


def is_audio(name: str) -> bool:
    """Whether a name ends in an extension of audio."""
    return name.rpartition(".")[2].lower() in AUDIO_EXTENSIONS and "." in name


def _fits(form: Form, line: str) -> bool:
    try:
        form.trial(line)
    except ValueError:
        return False
    return True


def _why_no_form(line: str, rows: Mapping[str | None, list[str]]) -> str:
    """Says what is wrong with a list's first line."""
    if '"' in line and all(not rows[separator] for separator in ("\t", ",", ";")):
        return f"{quoted(line.strip())} has broken quotes"
    fields = next((rows[separator] for separator in SEPARATORS if len(rows[separator]) == 3), None)
    heading = "; of a table the first line must name the columns: enrol, test, label"
    if fields:
        parts = f"neither field 1, {quoted(fields[0])}, nor field 3, {quoted(fields[2])}, is a label"
        return f"not a trial: {parts}: wanted is {WANTED_LABELS}{heading}"
    fields = max(rows.values(), key=len)
    hint = " (paths with spaces need commas: 1,enrol,test)" if len(rows[None]) > 3 else ""
    return f"not a trial: {_counted(fields)} in {quoted(line.strip())}; wanted is '1 enrol test'{hint}{heading}"


def _short(value: object) -> str:
    return type(value).__name__ if isinstance(value, (dict, list)) else quoted(value)


def _counted(fields: Sequence[str]) -> str:
    return "1 field" if len(fields) == 1 else f"{len(fields)} fields"
