"""Turns as files: RTTM, NIST's format of who spoke when, and JSON."""

import json
import math
import os
import re
from collections.abc import Sequence

from absl import logging

from sdpn_jax import storage
from sdpn_jax.diarization.turns import Turn
from sdpn_jax.errors import UserError, shown

MOST_BYTES = 64 << 20
LONGEST_S = 1e6  # of a recording: eleven days
FIELDS = 10
NUMBER = re.compile(r"-?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII)
ESCAPED = re.compile(r"[\s%]|\x7f|[\x00-\x1f]")


def write_rttm(path: str | os.PathLike, recording: str, turns: Sequence[Turn]) -> None:
    """Writes lines `SPEAKER recording 1 start duration <NA> <NA> speaker <NA> <NA>`, times in seconds.

    Blanks, controls and % in names are percent-encoded, so that each name is one field and read back as it was.
    """
    lines = [
        f"SPEAKER {_field(recording)} 1 {turn.start:.3f} {turn.end - turn.start:.3f} <NA> <NA> {_field(turn.speaker)} "
        "<NA> <NA>\n"
        for turn in turns
    ]
    storage.write_text(path, "".join(lines))


def read_rttm(path: str | os.PathLike) -> dict[str, list[Turn]]:
    """Reads {recording: its turns in order} of an RTTM file; lines of other types than SPEAKER are passed over.

    Raises UserError, with line and field, for times that are no numbers, negative or too large, and lines cut short.
    """
    try:
        storage.check_is_file(path)
        data = storage.patiently(path, lambda: _start_of(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read as RTTM ({error.strerror})") from None
    if len(data) > MOST_BYTES:
        raise UserError(f"{path}: more than {MOST_BYTES >> 20} MB, which no RTTM file has")
    found: dict[str, list[Turn]] = {}
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").split("\n"), 1):
        fields = line.split()
        if not fields or fields[0].startswith(";") or fields[0] != "SPEAKER":
            continue
        if len(fields) < FIELDS - 1:
            raise UserError(f"{path}, line {number}: {len(fields)} fields, wanted are {FIELDS}, as RTTM has them")
        start, duration = (_time(fields[place], place, f"{path}, line {number}") for place in (3, 4))
        turn = Turn(start, start + duration, _name(fields[7]))
        found.setdefault(_name(fields[1]), []).append(turn)
    if not found:
        raise UserError(f"{path} has no line of the type SPEAKER: it is no RTTM file of who spoke when")
    return {name: sorted(turns, key=lambda turn: turn.start) for name, turns in found.items()}


def turns_of(found: dict[str, list[Turn]], recording: str, path: str | os.PathLike) -> list[Turn]:
    """Returns a recording's turns, or the only ones that were read; UserError where several are and none is its own."""
    if recording not in found and len(found) > 1:
        raise UserError(f"{path} has {len(found)} recordings, but none is called {shown(recording)}")
    if recording in found:
        return found[recording]
    (name, turns), *_ = found.items()
    logging.warning("%s is of %s, not of %s: it is taken for the same recording", path, shown(name), shown(recording))
    return turns


def write_json(path: str | os.PathLike, recording: str, seconds: float, turns: Sequence[Turn], spoken: dict) -> None:
    """Writes one object: the recording, its seconds, seconds of each speaker, and all turns."""
    content = {
        "recording": recording,
        "seconds": seconds,
        "speakers": [{"speaker": name, "seconds": round(value, 3)} for name, value in spoken.items()],
        "segments": [{"start": turn.start, "end": turn.end, "speaker": turn.speaker} for turn in turns],
    }
    storage.write_text(path, json.dumps(content, indent=1) + "\n")


def _start_of(path: str | os.PathLike) -> bytes:
    with storage.place(path).open("rb") as file:
        return file.read(MOST_BYTES + 1)


def _field(name: str) -> str:
    return ESCAPED.sub(lambda sign: "".join(f"%{byte:02X}" for byte in sign[0].encode()), name) or "%"


def _name(field: str) -> str:
    if field == "%":
        return ""
    encoded = re.sub(rb"%([0-9A-F]{2})", lambda code: bytes.fromhex(code[1].decode()), field.encode())
    return encoded.decode("utf-8", "replace")


def _time(text: str, place: int, where: str) -> float:
    value = float(text) if NUMBER.fullmatch(text) else math.nan
    if not 0 <= value <= LONGEST_S:
        name = ("start", "duration")[place - 3]
        raise UserError(f"{where}: the {name} {shown(text, 20)} is no time from 0 to {LONGEST_S:,.0f} s")
    return value
