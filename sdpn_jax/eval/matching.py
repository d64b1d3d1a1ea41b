"""Finding the utterances that a list names among those at hand, whose ids may be written another way."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from sdpn_jax.eval.forms import is_audio
from sdpn_jax.eval.text import quoted


def match_ids(ids: Sequence[str], *columns: Iterable[str]) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Finds the row of each wanted utterance among `ids`, which may be written relative to another folder.

    Tried in this order, each only for what is still unknown: the same id; the same but for the audio extension; one is
    the other's end at a folder's border (`test/1688/x.flac` and `1688/x.flac`, either way round); the same but for the
    extension (`x` and `1688/x.flac`).

    Names and ids match one to one or not at all. Only names of two `columns` of a list may have one row, if each could
    be the other: SITW writes `12/x` in one column and `sid/12/x.wav` in the other.

    Returns (rows, faults): the row of every utterance that fits exactly one id, and for each of the others the rows
    that it fits: none, one that other names fit too, or several. Time and memory grow with len(ids) and the number of
    names, not with their product.
    """
    columns = tuple(list(dict.fromkeys(column)) for column in columns)
    rows, faults = _fitting(ids, list(dict.fromkeys(name for column in columns for name in column)))
    for name in _sharing(rows, columns):
        faults[name] = [rows.pop(name)]
    return rows, faults


def known_of(ids: Sequence[str], known: Mapping[str, str]) -> tuple[list[str | None], dict[str, list[int]]]:
    """Finds what a list knows of each id, whose names in it may be written another way; None where it is unclear.

    known: {name: what is known}. Also returns the faults of `match_ids`.
    """
    names = list(known)
    rows, faults = match_ids(names, ids)
    return [known[names[rows[name]]] if name in rows else None for name in ids], faults


def why_unclear(name: str, ids: Sequence[str], faults: Mapping[str, list[int]]) -> str:
    """Says what else a name of `faults` fits, or which other name fits the same id."""
    rows = faults[name]
    if len(rows) > 1:
        return f"{quoted(name)} fits {quoted(ids[rows[0]])} and {quoted(ids[rows[1]])}"
    other = next(other for other, found in faults.items() if found == rows and other != name)
    return f"{quoted(name)} and {quoted(other)} both fit {quoted(ids[rows[0]])}"


def _fitting(ids: Sequence[str], wanted: list[str]) -> tuple[dict[str, int], dict[str, list[int]]]:
    """As match_ids, but for names that share a row."""
    rows, faults = {}, {}
    left = wanted
    for search in (_same, _same_end):
        for form in (str, without_extension):
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


def _sharing(rows: dict[str, int], columns: Sequence[Sequence[str]]) -> list[str]:
    """The names that have a row with another name, of their own column or one that cannot be the same utterance."""
    named = defaultdict(list)
    for name, row in rows.items():
        named[row].append(name)
    shared = {row: names for row, names in named.items() if len(names) > 1}
    if not shared:
        return []
    crowded = set()
    for column in columns:
        taken = set()
        for row in (rows[name] for name in column if name in rows):
            if row in taken:
                crowded.add(row)
            taken.add(row)
    guilty = (names for row, names in shared.items() if row in crowded or not _all_may_be_one(names))
    return [name for names in guilty for name in names]


def _all_may_be_one(names: Sequence[str]) -> bool:
    return all(_may_be_one(a, b) for i, a in enumerate(names) for b in names[:i])


def _may_be_one(a: str, b: str) -> bool:
    """Whether two names may be one utterance's: one is the other's end, but for an extension that one of them lacks."""
    if not is_audio(a) or not is_audio(b):
        a, b = without_extension(a), without_extension(b)
    return f"/{a}".endswith(f"/{b}") or f"/{b}".endswith(f"/{a}")


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


def without_extension(name: str) -> str:
    """A name less its extension of audio."""
    return name.rpartition(".")[0] if is_audio(name) else name
