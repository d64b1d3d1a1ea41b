"""Trial lists: reading every usual format, and finding each utterance they name among those at hand."""

import csv
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sdpn_jax import storage
from sdpn_jax.errors import UserError
from sdpn_jax.vectors import unit

AUDIO_EXTENSIONS = frozenset(
    ("wav", "flac", "mp3", "m4a", "mp4", "aac", "ogg", "opus", "webm", "wma", "aif", "aiff", "sph")
)
LABELS = {"1": 1, "0": 0, "target": 1, "nontarget": 0}
HEADINGS = {  # of tables
    "label": ("label", "target", "same", "same_speaker"),
    "enrol": ("enrol", "enroll", "enrolment", "enrollment", "model", "reference", "file1"),
    "test": ("test", "probe", "file2"),
}


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

    def known_labels(self) -> np.ndarray:
        """Returns the labels; UserError if there are none."""
        if self.labels is None:
            raise UserError(
                f"{self.source}: the list does not say which trials are targets: no error rate can be given"
            )
        return self.labels


@dataclass(frozen=True)
class Form:
    """How a list writes a trial: its separator (None: white space), and in which field label, enrol and test are.

    label: None where there is none.
    """

    separator: str | None
    label: int | None
    enrol: int
    test: int

    def fields(self, line: str) -> list[str]:
        """The fields of one line."""
        if self.separator is None:
            return line.split()
        return [field.strip() for field in next(csv.reader([line.strip()], delimiter=self.separator))]

    def trial(self, line: str) -> tuple[int | None, str, str]:
        """(label, enrol, test) of one line; ValueError where it has another form."""
        fields = self.fields(line)
        if len(fields) != max(self.label or 0, self.enrol, self.test) + 1 or not all(fields):
            raise ValueError("another number of fields")
        label = None if self.label is None else LABELS.get(fields[self.label])
        if self.label is not None and label is None:
            raise ValueError("not a label")
        return label, fields[self.enrol], fields[self.test]


def recognise(line: str) -> tuple[Form, bool] | None:
    """Recognises a list's form from its first line: (form, whether the line is a heading); None if it is no trial."""
    for separator in (None, "\t", ","):
        fields = Form(separator, None, 0, 1).fields(line)
        named = [next((name for name, words in HEADINGS.items() if word.lower() in words), None) for word in fields]
        if separator and {"enrol", "test"} <= set(named):
            label = named.index("label") if "label" in named else None
            return Form(separator, label, named.index("enrol"), named.index("test")), True
        if len(fields) != 3:
            continue
        if fields[2] in ("target", "nontarget"):
            return Form(separator, 2, 0, 1), False
        if fields[0] in LABELS:
            return Form(separator, 0, 1, 2), False
        if fields[2] in LABELS:
            return Form(separator, 2, 0, 1), False
    for separator in (",", None):
        form = Form(separator, None, 0, 1)
        fields = form.fields(line)
        if len(fields) == 2 and all(fields) and fields[0] not in LABELS:
            return form, False
    return None


def read_trials(path: str | os.PathLike) -> Trials:
    """Reads a trial list; its first line shows which form it has.

    VoxCeleb and VoxSRC `1 enrol test`, Kaldi `enrol test target`, CN-Celeb `enrol test 1`, lists without labels `enrol
    test`, the same with commas or tabs, and tables with a heading such as `enrol,test,label`. Blank lines and carriage
    returns do no harm. Raises UserError for a file that cannot be read, is empty, or has a line of another form.
    """
    labels, enrol, test, lines = [], [], [], []
    names = {}  # one string object per utterance: lists name each of them hundreds of times
    form = None
    for number, line in enumerate(read_text(path, "trial list").split("\n"), 1):
        if not line.strip():
            continue
        if form is None:
            form, is_heading = recognise(line) or (Form(None, 0, 1, 2), False)
            if is_heading:
                continue
        try:
            label, a, b = form.trial(line)
        except ValueError:
            raise _malformed(path, number, line, form) from None
        labels.append(label)
        enrol.append(names.setdefault(a, a))
        test.append(names.setdefault(b, b))
        lines.append(number)
    if not lines:
        raise UserError(f"{path}: the trial list is empty; it needs lines such as '1 enrol.wav test.wav'")
    known = None if form is None or form.label is None else np.array(labels, np.int8)
    return Trials(known, enrol, test, np.array(lines), str(path))


def read_models(path: str | os.PathLike) -> dict[str, list[str]]:
    """Reads {model: its enrolment utterances} from `model utterance [utterance ...]` lines; lines of one model add up.

    CN-Celeb's enroll.lst and enroll.map, Kaldi's spk2utt. Raises UserError for a file without such lines.
    """
    models = defaultdict(list)
    for number, line in enumerate(read_text(path, "list of models").split("\n"), 1):
        fields = line.split()
        if len(fields) == 1:
            raise UserError(
                f"{path}, line {number}: a model without an utterance: {fields[0]!r}; wanted is 'model utt'"
            )
        if fields:
            models[fields[0]] += fields[1:]
    if not models:
        raise UserError(f"{path}: the list of models is empty; it needs lines such as 'model1 a.wav b.wav'")
    return dict(models)


def add_models(
    embeddings: np.ndarray, ids: Sequence[str], models: Mapping[str, Sequence[str]]
) -> tuple[np.ndarray, list[str]]:
    """Appends M models to embeddings and ids: the means of their utterances' embeddings of length 1, [N + M, D].

    Raises UserError, with counts, when an utterance of a model is missing or ambiguous.
    """
    rows, faults = match_ids(ids, [name for names in models.values() for name in names])
    if faults:
        name = next(iter(faults))
        what = "fits several embeddings" if faults[name] else "has no embedding"
        raise UserError(
            f"{len(faults):,} utterances of the models cannot be found among the embeddings; first: {name!r} {what}"
        )
    means = []
    for names in models.values():
        means.append(unit(embeddings[[rows[name] for name in names]]).mean(0))
    return np.concatenate([embeddings, np.asarray(means, embeddings.dtype)]), [*ids, *models]


def match_ids(ids: Sequence[str], wanted: Iterable[str]) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Finds the row of each wanted utterance among `ids`, which may be written relative to another folder.

    Tried in this order, each only for what is still unknown: the same id; the same but for the audio extension; one is
    the other's end at a folder's border (`test/1688/x.flac` and `1688/x.flac`, either way round); the same but for the
    extension (`x` and `1688/x.flac`).

    Returns (rows, faults): the row of every utterance that fits exactly one id, and for each of the others the rows
    that it fits: none, or several. Time and memory grow with len(ids) + len(wanted), not with their product.
    """
    rows, faults = {}, {}
    left = list(dict.fromkeys(wanted))
    for search in (_same, _same_end):
        for form in (str, _without_extension):
            if not left:
                return rows, faults
            found = search([form(name) for name in ids], [form(name) for name in left])
            for name, candidates in zip(left, found, strict=True):
                if len(candidates) == 1:
                    rows[name] = candidates[0]
                elif candidates:
                    faults[name] = candidates
            left = [name for name, candidates in zip(left, found, strict=True) if not candidates]
    faults.update((name, []) for name in left)
    return rows, faults


def trial_rows(ids: Sequence[str], trials: Trials) -> tuple[np.ndarray, np.ndarray]:
    """Finds the embedding rows of each trial's two sides, int [N] each; UserError if one is missing or ambiguous."""
    rows, faults = match_ids(ids, [*trials.enrol, *trials.test])
    missing = {name for name, candidates in faults.items() if not candidates}
    if missing:
        raise UserError(
            f"{trials.source}: {_blame(trials, missing, 'utterances without an embedding')}; the embeddings' ids look "
            f"like {ids[0]!r}; embed the missing ones with `sdpn embed`"
        )
    if faults:
        name, (one, other, *_) = next(iter(faults.items()))
        raise UserError(
            f"{trials.source}: {_blame(trials, faults, 'utterances that fit several embeddings')}; {name!r} fits "
            f"{ids[one]!r} and {ids[other]!r}; write the ids in the list as they are in the embeddings"
        )
    enrol, test = (np.array([rows[name] for name in side], np.int64) for side in (trials.enrol, trials.test))
    return enrol, test


def _same(ids: list[str], wanted: list[str]) -> list[list[int]]:
    """The rows of the ids equal to each wanted one."""
    found = {name: [] for name in wanted}
    for row, name in enumerate(ids):
        if name in found:
            found[name].append(row)
    return [found[name] for name in wanted]


def _same_end(ids: list[str], wanted: list[str]) -> list[list[int]]:
    """The rows of the ids that end in each wanted path, and of those that it ends in, at a folder's border."""
    longer = {name: [] for name in wanted}
    shorter = defaultdict(list)
    ends = {end for name in wanted for end in _ends(name)}
    for row, name in enumerate(ids):
        if name in ends:
            shorter[name].append(row)
        for end in _ends(name):
            if end in longer:
                longer[end].append(row)
    return [longer[name] + [row for end in _ends(name) for row in shorter.get(end, ())] for name in wanted]


def _ends(name: str) -> Iterator[str]:
    """`b/c` and `c` of `a/b/c`."""
    while "/" in name:
        name = name.partition("/")[2]
        yield name


def _without_extension(name: str) -> str:
    stem, dot, extension = name.rpartition(".")
    return stem if dot and extension.lower() in AUDIO_EXTENSIONS else name


def _blame(trials: Trials, names: Iterable[str], what: str) -> str:
    """Counts the trials that use one of the names and shows the first three with their lines."""
    names = set(names)
    uses = [name for sides in zip(trials.enrol, trials.test, strict=True) for name in sides]
    guilty = np.fromiter((name in names for name in uses), bool, len(uses)).reshape(-1, 2)
    first = dict.fromkeys(name for name in uses if name in names)
    shown = []
    for name in list(first)[:3]:
        position = uses.index(name)
        shown.append(f"line {trials.lines[position // 2]} {name!r}")
    count = f"{guilty.any(1).sum():,} of {len(trials):,} trials"
    return f"{count} name {what} ({len(first):,} utterances), first: {', '.join(shown)}"


def _malformed(path: str | os.PathLike, number: int, line: str, form: Form) -> UserError:
    line = line.strip()
    shown = line if len(line) <= 200 else line[:200] + "..."
    columns = {form.enrol: "enrol", form.test: "test"}
    wanted = [
        (form.separator or " ").join(
            (columns | {form.label: label})[i] for i in sorted({*columns, form.label} - {None})
        )
        for label in (("target", "nontarget") if form.label == 2 else ("1", "0") if form.label is not None else ("",))
    ]
    hint = " (paths with spaces need commas: 1,enrol,test)" if not form.separator and len(line.split()) > 3 else ""
    return UserError(f"{path}, line {number}: not a trial: {shown!r}; wanted is {' or '.join(map(repr, wanted))}{hint}")


def read_text(path: str | os.PathLike, what: str) -> str:
    try:
        return storage.read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: the {what} is not a text file in UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read the {what} ({error.strerror})") from None
