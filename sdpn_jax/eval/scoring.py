"""Trial lists, embeddings and what joins them: reading, matching utterance ids, cosine scores, error rates."""

import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import logging

from sdpn_jax.errors import UserError
from sdpn_jax.eval import metrics

AUDIO_EXTENSIONS = frozenset(
    ("wav", "flac", "mp3", "m4a", "mp4", "aac", "ogg", "opus", "webm", "wma", "aif", "aiff", "sph")
)
VOXCELEB_LABELS = {"1": 1, "0": 0}
KALDI_LABELS = {"target": 1, "nontarget": 0}
UNREADABLE = (ValueError, EOFError, zipfile.BadZipFile, zlib.error)  # what NumPy raises for a damaged or pickled file


@dataclass
class Trials:
    """Pairs of utterances, and whether one speaker spoke both.

    labels: int8 [N], 1 target, 0 nontarget. enrol, test: N utterance ids each. lines: int [N], the line of each
    trial in its file (1, 2, ... when left out). source: the file, for messages.
    """

    labels: np.ndarray
    enrol: list[str]
    test: list[str]
    lines: np.ndarray | None = None
    source: str = "the trial list"

    def __post_init__(self):
        if self.lines is None:
            self.lines = np.arange(1, len(self.enrol) + 1)
        if not len(self.labels) == len(self.enrol) == len(self.test) == len(self.lines):
            raise ValueError("labels, enrol, test and lines must be equally long")

    def __len__(self) -> int:
        return len(self.labels)


def read_trials(path: str | Path) -> Trials:
    """Reads a trial list: VoxCeleb's `1 enrol test` or Kaldi's `enrol test target`, told apart by the first trial.

    Blank lines and carriage returns do no harm. Raises UserError for a file that cannot be read, is empty, or has a
    line of another form.
    """
    labels, enrol, test, lines = [], [], [], []
    names = {}  # one string object per utterance: lists name each of them hundreds of times
    kaldi = None
    for number, line in enumerate(_read_text(path, "trial list").split("\n"), 1):
        fields = line.split()
        if not fields:
            continue
        if kaldi is None:
            kaldi = fields[-1] in KALDI_LABELS
        try:
            first, second, third = fields
            labels.append(KALDI_LABELS[third] if kaldi else VOXCELEB_LABELS[first])
        except (ValueError, KeyError):
            raise _malformed(path, number, line, kaldi) from None
        a, b = (first, second) if kaldi else (second, third)
        enrol.append(names.setdefault(a, a))
        test.append(names.setdefault(b, b))
        lines.append(number)
    if not labels:
        raise UserError(f"{path}: the trial list is empty; it needs lines such as '1 enrol.wav test.wav'")
    return Trials(np.array(labels, np.int8), enrol, test, np.array(lines), str(path))


def load_embeddings(path: str | Path) -> tuple[np.ndarray, list[str]]:
    """Reads embeddings float32 [N, D] and their N ids.

    `path` is an .npz with the arrays `embeddings` and `ids`, or a folder with embeddings.npy and ids.txt (one a line).
    Raises UserError when something is missing, unreadable, or does not fit together.
    """
    path = Path(path)
    if path.is_dir():
        embeddings = _load_array(path / "embeddings.npy")
        ids = _read_text(path / "ids.txt", "list of ids").split("\n")
        ids = [name.rstrip("\r") for name in (ids if ids[-1] else ids[:-1])]
    else:
        archive = _load_array(path)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UserError(f"{path}: not an .npz archive; wanted are the arrays 'embeddings' and 'ids' in one")
        with archive:
            embeddings, ids = (_member(archive, path, key) for key in ("embeddings", "ids"))
        if ids.ndim != 1 or ids.dtype.kind not in "US":
            raise UserError(f"{path}: 'ids' must be one row of strings, not {ids.dtype} {list(ids.shape)}")
        ids = [str(name) for name in (np.char.decode(ids, "utf-8") if ids.dtype.kind == "S" else ids)]
    if embeddings.ndim != 2 or embeddings.dtype.kind != "f" or 0 in embeddings.shape:
        raise UserError(
            f"{path}: embeddings must be floating-point numbers [utterances, dimension], "
            f"not {embeddings.dtype} {list(embeddings.shape)}"
        )
    if len(ids) != len(embeddings):
        raise UserError(f"{path}: {len(embeddings):,} embeddings but {len(ids):,} ids; export them again")
    if len(set(ids)) != len(ids):
        name, count = Counter(ids).most_common(1)[0]
        raise UserError(f"{path}: the id {name!r} occurs {count} times; every embedding needs its own")
    return embeddings.astype(np.float32, copy=False), ids


def load_seconds(path: str | Path) -> np.ndarray | None:
    """The lengths [N] of the utterances of `load_embeddings`, in seconds; None where they are not there."""
    path = Path(path)
    if path.is_dir():
        return _load_array(path / "seconds.npy") if (path / "seconds.npy").exists() else None
    with _load_array(path) as archive:
        return _member(archive, path, "seconds") if "seconds" in archive else None


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
    """Rows of the embeddings of each trial's two sides, int [N] each; UserError when one is missing or ambiguous."""
    rows, faults = match_ids(ids, [*trials.enrol, *trials.test])
    missing = {name for name, candidates in faults.items() if not candidates}
    if missing:
        raise UserError(
            f"{trials.source}: {_blame(trials, missing, 'utterances without an embedding')}; the embeddings' ids look "
            f"like {ids[0]!r}; export the missing ones with python -m sdpn_jax.eval.export"
        )
    if faults:
        name, (one, other, *_) = next(iter(faults.items()))
        raise UserError(
            f"{trials.source}: {_blame(trials, faults, 'utterances that fit several embeddings')}; {name!r} fits "
            f"{ids[one]!r} and {ids[other]!r}; write the ids in the list as they are in the embeddings"
        )
    return tuple(
        np.fromiter((rows[name] for name in side), np.int64, len(trials)) for side in (trials.enrol, trials.test)
    )


def cosine_scores(
    embeddings: np.ndarray, enrol_rows: np.ndarray, test_rows: np.ndarray, block: int = 1024
) -> np.ndarray:
    """Cosine of the angle between the two embeddings of each trial, computed in float64: [trials] in [-1, 1].

    embeddings: [N, D]. enrol_rows, test_rows: int [trials]. An embedding of zeros scores 0. `block` trials are worked
    on at a time, which bounds the memory to a few block * D float64.
    """
    scores = np.empty(len(enrol_rows))
    for start in range(0, len(scores), block):
        enrol = embeddings[enrol_rows[start : start + block]].astype(np.float64)
        test = embeddings[test_rows[start : start + block]].astype(np.float64)
        norms = np.sqrt(_dots(enrol, enrol) * _dots(test, test))
        np.divide(_dots(enrol, test), norms, out=scores[start : start + block], where=norms != 0)
        scores[start : start + block][norms == 0] = 0.0
    return scores


def score_trials(embeddings: np.ndarray, ids: Sequence[str], trials: Trials) -> np.ndarray:
    """Cosine score of each trial, float64 [N]; UserError for unknown utterances and embeddings that are not finite."""
    enrol_rows, test_rows = trial_rows(ids, trials)
    used = np.union1d(enrol_rows, test_rows)
    infinite = used[~np.isfinite(embeddings).all(1)[used]]
    if len(infinite):
        raise UserError(
            f"{len(infinite):,} of {len(used):,} embeddings hold NaN or infinity, first: {ids[infinite[0]]!r}; "
            "export them from a checkpoint whose loss was finite"
        )
    zero = used[~np.any(embeddings, axis=1)[used]]
    if len(zero):
        message = "%d of %d embeddings are all zeros, first: %r; their trials score 0"
        logging.warning(message, len(zero), len(used), ids[zero[0]])
    return cosine_scores(embeddings, enrol_rows, test_rows)


def summarize(scores: np.ndarray, labels: np.ndarray) -> dict[str, float | int]:
    """Error rates and counts of scored trials; the costs are those of c_miss = c_fa = 1. Errors as in `det_points`."""
    rate, threshold = metrics.eer_and_threshold(scores, labels)
    return {
        "eer_percent": 100 * rate,
        "min_dcf_0.01": metrics.min_dcf(scores, labels, p_target=0.01),
        "min_dcf_0.05": metrics.min_dcf(scores, labels, p_target=0.05),
        "threshold_at_eer": threshold,
        "trials": len(labels),
        "targets": int(np.sum(labels)),
    }


def evaluate(embeddings: np.ndarray, ids: Sequence[str], trials: Trials) -> dict[str, float | int]:
    """Scores the trials and sums them up.

    embeddings: [N, D] with their N ids. Returns eer_percent, min_dcf_0.01, min_dcf_0.05, threshold_at_eer (a cosine),
    trials and targets (counts). Errors as in `score_trials` and `det_points`.
    """
    return summarize(score_trials(embeddings, ids, trials), trials.labels)


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


def _malformed(path: str | Path, number: int, line: str, kaldi: bool) -> UserError:
    line = line.strip()
    shown = line if len(line) <= 200 else line[:200] + "..."
    form = "'enrol test target' or 'enrol test nontarget'" if kaldi else "'1 enrol test', '0 enrol test'"
    if len(line.split()) > 3:
        form += " (paths with spaces cannot be read: rename them)"
    return UserError(f"{path}, line {number}: not a trial: {shown!r}; wanted is {form}")


def _read_text(path: str | Path, what: str) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: the {what} is not a text file in UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read the {what} ({error.strerror})") from None


def _load_array(path: Path) -> np.ndarray | np.lib.npyio.NpzFile:
    try:
        return np.load(path, allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path}: cannot read the embeddings ({error.strerror or 'not a NumPy file'})") from None
    except UNREADABLE:
        raise UserError(f"{path}: not a NumPy file of plain arrays; export the embeddings again") from None


def _member(archive: np.lib.npyio.NpzFile, path: Path, key: str) -> np.ndarray:
    if key not in archive:
        raise UserError(f"{path}: no array {key!r} (it holds {', '.join(map(repr, archive)) or 'nothing'})")
    try:
        return archive[key]
    except UNREADABLE:
        raise UserError(f"{path}: array {key!r} cannot be read; export the embeddings again") from None


def _dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("td,td->t", a, b)
