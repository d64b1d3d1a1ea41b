"""Which recordings a source names: a folder of audio, a list of paths, a Kaldi data folder, a manifest."""

import gzip
import io
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from absl import logging

from sdpn_jax import storage
from sdpn_jax.data.audio import Cut
from sdpn_jax.errors import UserError

EXTENSIONS = frozenset(
    ".3gp .aac .ac3 .aif .aifc .aiff .amr .asf .au .avi .awb .caf .flac .flv .gsm .m4a .m4b .m4v .mka .mkv .mov "
    ".mp2 .mp3 .mp4 .mpeg .mpg .nist .oga .ogg .ogv .opus .rf64 .snd .sph .spx .ts .voc .w64 .wav .wave .weba "
    ".webm .wma .wmv .wv".split()
)
MANIFESTS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".ndjson")
LISTS = (".txt", ".lst", ".list", ".scp", *MANIFESTS)  # of names of recordings; any other file is one
MOST_LIST_BYTES = 4 * 2**30
MOST_INFLATION = 200  # by which a packed list may grow
LOOKED_AT = 100  # lines that tell what a list's paths are relative to
PATHS = ("audio_filepath", "audio_path", "audio", "wav", "path", "file")  # fields of manifests
IDS = ("id", "utt_id", "uniq_id", "utt")


def find_utterances(source: str | os.PathLike) -> list[Cut]:
    """Lists every utterance of `source`, sorted by id.

    A folder: all audio files below it, ids their paths relative to it with '/' and extension, as VoxCeleb's trial lists
    write them; folders `wav` and `aac` that hold everything are left out of the ids, so that VoxCeleb's own root will
    do. A text file: a path on each line, ids relative to the folder that all have in common; or `id path`, where only
    what follows the id exists. Kaldi's `wav.scp`, or the folder that holds one: `id path` on each line; `segments`
    beside it names stretches. A manifest of JSON lines as NeMo or Lhotse write it. Relative paths: to the list's folder
    or, if nothing is there, to the working directory. Raises UserError when it is missing, empty or malformed.
    """
    source = storage.place(source)
    is_folder = storage.is_folder(source)
    if is_folder and storage.exists(source / "wav.scp"):
        logging.info("%s is read as a Kaldi data folder: what its wav.scp names", source)
        source, is_folder = source / "wav.scp", False
    if is_folder:
        found = _below_wav_or_aac(_in_folder(source))
    elif storage.exists(source):
        found = _of_list(source)
    else:
        raise UserError(f"{source} does not exist: give a folder of audio, a list of paths, a wav.scp or a manifest")
    if not found:
        kinds = " ".join(sorted(EXTENSIONS))
        raise UserError(f"no recordings in {source}: looked for files ending in {kinds}" if is_folder
                        else f"{source} is empty: expected one recording on each line")  # fmt: skip
    if twice := ids_twice(found):
        raise UserError(f"{source}: {len(twice)} utterance ids occur twice, first {twice[0]!r}: make them unique")
    return sorted(found, key=lambda cut: cut.id)


def ids_twice(found: Iterable[Cut]) -> list[str]:
    """Lists the utterance ids that occur more than once."""
    return [name for name, count in Counter(cut.id for cut in found).items() if count > 1]


def is_list(path: storage.Place) -> bool:
    """Tells by its name whether a file is a list of recordings rather than one."""
    return path.name.lower().endswith(LISTS)


def _below_wav_or_aac(found: list[Cut]) -> list[Cut]:
    """The same with ids relative to the last `wav` or `aac` among the folders that all have in common."""
    common = os.path.commonprefix([cut.id.split("/")[:-1] for cut in found])
    places = [i for i, part in enumerate(common) if part in ("wav", "aac")]
    return [Cut(cut.id.split("/", places[-1] + 1)[-1], cut.path) for cut in found] if places else found


def _in_folder(folder: storage.Place) -> list[Cut]:
    """All audio files below a folder, hidden ones left out; what is left out by its name is counted in the log."""
    names = _names_below(folder) if isinstance(folder, Path) else storage.files_below(folder)
    found, left_out = [], Counter()
    for name in names:
        extension = os.path.splitext(name)[1].lower()
        if any(part[0] == "." for part in name.split("/")):
            continue
        if extension in EXTENSIONS:
            found.append(Cut(name, folder / name))
        else:
            left_out[extension or "no extension"] += 1
    if left_out:
        kinds = ", ".join(f"{count:,} {kind!a}" for kind, count in left_out.most_common(8))
        logging.info("left out of %s, as no audio by their names: %s", folder, kinds)
    return found


def _names_below(folder: Path) -> Iterator[str]:
    """The names of all files below a folder, relative to it; links to folders are followed, each folder once."""

    def refuse(error: OSError):
        raise UserError(f"cannot look into {error.filename} ({error.strerror}): give access or leave it out")

    seen = set()
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(parent).relative_to(folder).as_posix()
        yield from (name if below == "." else f"{below}/{name}" for name in sorted(files))


def _of_list(path: storage.Place) -> list[Cut]:
    if path.name.lower().endswith(MANIFESTS):
        return _of_manifest(path)
    lines = _lines(path)
    if path.suffix != ".scp" and not _name_ids(path, [line for _, line in lines]):
        return _by_paths(path, [(line, 0.0, None, None) for _, line in lines])
    recordings = _of_scp(path, lines)
    segments = path.with_name("segments")
    return _of_segments(segments, recordings) if storage.exists(segments) else list(recordings.values())


def _lines(path: storage.Place) -> list[tuple[int, str]]:
    """(number, text) of the lines of a list that hold something; bytes that are no UTF-8 survive as they are."""
    about = storage.stamp(path)
    if about and about[0] > MOST_LIST_BYTES:
        raise UserError(f"{path} has {about[0]:,} bytes, a list may have {MOST_LIST_BYTES:,}: is it a recording?")
    data = storage.read_bytes(path)
    if path.suffix == ".gz":
        data = _inflated(path, data)
    if b"\0" in data:
        raise UserError(f"{path} is not a text file: give a list of paths, a wav.scp, a manifest, or a folder")
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    return [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _inflated(path: storage.Place, data: bytes) -> bytes:
    most = min(MOST_INFLATION * len(data) + (1 << 20), MOST_LIST_BYTES // 4)
    try:
        with gzip.open(io.BytesIO(data)) as file:
            text = file.read(most + 1)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} cannot be unpacked ({error}): copy it again") from None
    if len(text) > most:
        raise UserError(f"{path} unpacks to more than {most:,} bytes: is it a list? If so, unpack it")
    return text


def _name_ids(path: storage.Place, lines: list[str]) -> bool:
    """Whether a list has `id path` on its lines, as SITW's and CN-Celeb's enrolments: only what follows exists."""
    rests = [line.split(None, 1)[1] for line in lines[:LOOKED_AT] if len(line.split(None, 1)) == 2]
    folders = path.parent, storage.place(".")
    there = lambda names: any(_is_there(folder, name) for folder in folders for name in names)  # noqa: E731
    return bool(rests) and not there(lines[:LOOKED_AT]) and there(rests)


def _is_there(folder: storage.Place, location: str) -> bool:
    return storage.exists(location if storage.is_bucket(location) else folder / location)


def _of_scp(path: storage.Place, lines: list[tuple[int, str]]) -> dict[str, Cut]:
    rows = []
    for number, line in lines:
        fields = line.split(None, 1)
        if len(fields) < 2:
            raise UserError(f"{path}, line {number}: expected 'id path', found {line[:200]!a}")
        if fields[1].endswith("|"):
            raise UserError(
                f"{path}, line {number}: a command ({fields[1][:200]!a}); write its output to files and name those"
            )
        rows.append((number, *fields))
    base, recordings = _base(path, [location for _, _, location in rows]), {}
    for number, name, location in rows:
        if name in recordings:
            raise UserError(f"{path}, line {number}: the id {name[:200]!a} occurs twice: make the ids unique")
        recordings[name] = Cut(name, _beside(base, location, path, number))
    return recordings


def _of_segments(path: storage.Place, recordings: dict[str, Cut]) -> list[Cut]:
    """`utterance recording start end [channel]` in seconds, as Kaldi reads it: an end of -1 is the recording's."""
    logging.info("%s names the stretches of the recordings that are utterances", path)
    found: dict[str, Cut] = {}
    for number, line in _lines(path):
        fields = line.split()
        try:
            name, recording, start, end = fields[0], fields[1], float(fields[2]), float(fields[3])
            channel = int(fields[4]) if len(fields) > 4 else None
        except (IndexError, ValueError):
            raise UserError(
                f"{path}, line {number}: expected 'utterance recording start end' in seconds, found {line[:200]!a}"
            ) from None
        if recording not in recordings:
            raise UserError(f"{path}, line {number}: the recording {recording[:200]!a} is not in wav.scp")
        place = f"{path}, line {number}"
        if name in found:
            raise UserError(f"{place}: the id {name[:200]!a} occurs twice: make the ids unique")
        found[name] = _stretch(place, name, recordings[recording].path, start, None if end == -1 else end, channel)
    if not found:
        raise UserError(f"{path} is empty: remove it, or name the stretches that are utterances")
    return list(found.values())


def _stretch(
    place: str, name: str, path: storage.Place, start: float, end: float | None, channel: int | None = None
) -> Cut:
    """A part of a recording; UserError naming the place in the list where the times make no sense."""
    if not (math.isfinite(start) and start >= 0 and (end is None or (math.isfinite(end) and end > start))):
        raise UserError(f"{place}: from {start} to {end} s is no stretch of a recording")
    if channel is not None and not 0 <= channel < 64:
        raise UserError(f"{place}: there is no channel {channel}")
    return Cut(name, path, start, end, channel)


def _of_manifest(path: storage.Place) -> list[Cut]:
    """JSON lines as NeMo (audio_filepath, offset, duration) or Lhotse (recordings, cuts) writes them."""
    rows, names = [], []
    for number, line in _lines(path):
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError
        except (ValueError, RecursionError):
            raise UserError(f"{place}: expected a JSON object on each line, found {line[:100]!a}") from None
        name = next((_text(place, str(row[key])) for key in IDS if isinstance(row.get(key), str | int)), None)
        recording = row.get("recording", row)
        location = _location(place, row, recording if isinstance(recording, dict) else {})
        start, duration = (_number(place, row, key) for key in ("start" if "start" in row else "offset", "duration"))
        whole = "sources" in row or (start is None and "audio_filepath" in row)
        end = None if whole or duration is None else (start or 0.0) + duration
        channel = row.get("channel") if isinstance(row.get("channel"), int) else None
        _stretch(place, "", path, start or 0.0, end, channel)
        rows.append((location, start or 0.0, end, channel))
        names.append(name)
    found = _by_paths(path, rows)
    return [Cut(name or cut.id, cut.path, cut.start, cut.end, cut.channel)
            for name, cut in zip(names, found, strict=True)]  # fmt: skip


def _location(place: str, row: dict[str, Any], recording: dict[str, Any]) -> str:
    """The path that a line of a manifest names."""
    for key in PATHS:
        if isinstance(row.get(key), str):
            return _text(place, row[key])
    sources = recording.get("sources")
    if isinstance(sources, list) and len(sources) == 1 and isinstance(sources[0], dict):
        if sources[0].get("type") == "file" and isinstance(sources[0].get("source"), str):
            return _text(place, sources[0]["source"])
        raise UserError(f"{place}: a source of the type {str(sources[0].get('type'))[:50]!a}; only files are read")
    raise UserError(f"{place}: names no recording: expected one of the fields {', '.join(PATHS)}, or Lhotse's sources")


def _number(place: str, row: dict[str, Any], key: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{place}: {key} is no number of seconds: {str(value)[:50]!a}")
    try:
        return float(value)
    except OverflowError:
        raise UserError(f"{place}: {key} is beyond all numbers of seconds") from None


def _text(place: str, text: str) -> str:
    """A path or id of a manifest, which JSON may make of anything; UserError for what no file or list can hold."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise UserError(f"{place}: half a character in {text[:200]!a}") from None
    if any(sign in text for sign in "\0\n\r"):
        raise UserError(f"{place}: a line break or NUL in {text[:200]!a}")
    return text


def _by_paths(path: storage.Place, rows: list[tuple[str, float, float | None, int | None]]) -> list[Cut]:
    """Utterances by their paths, relative to the folder that all have in common, and stretches by their times."""
    if not rows:
        return []
    base = _base(path, [row[0] for row in rows])
    places = [_beside(base, row[0], path, number) for number, row in enumerate(rows, 1)]
    absolute = [os.fspath(place) if storage.is_bucket(place) else os.path.abspath(place) for place in places]
    common = len(os.path.commonprefix([name.split("/")[:-1] for name in absolute]))
    found = []
    for name, (_, start, end, channel) in zip(absolute, rows, strict=True):
        identity = "/".join(name.split("/")[common:])
        if start or end is not None:
            identity += f"-{start:g}-{'' if end is None else format(end, 'g')}"
        found.append(Cut(identity, storage.place(name), start, end, channel))
    return found


def _base(path: storage.Place, locations: list[str]) -> storage.Place:
    """What the relative paths of a list are relative to: its folder, or the working directory if only that fits."""
    relative = [location for location in locations if not storage.is_bucket(location) and not os.path.isabs(location)]
    for folder in (path.parent, storage.place(".")):
        if any(storage.exists(folder / location) for location in relative[:LOOKED_AT]):
            return folder
    return path.parent


def _beside(base: storage.Place, location: str, path: storage.Place, number: int) -> storage.Place:
    """What a line of a list names: a path relative to `base`, an absolute one, or one in a bucket."""
    if storage.is_bucket(location):
        return storage.place(location)
    try:
        return base / location
    except (ValueError, TypeError):
        raise UserError(f"{path}, line {number}: no path: {location[:200]!a}") from None
