"""What a recording's file says of itself: of which kind it is, by its first bytes, and whether all of it is there."""

import io
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

START = 4096  # bytes that tell the kind of a file
MOST_CHUNKS = 100_000  # walked through in one file
TOLERANCE = 64  # bytes: some writers count their headers wrongly
ID3_HEADER = 10


class AudioError(Exception):
    """Why a file cannot be used; such files are skipped and listed."""


@dataclass(frozen=True)
class Kind:
    """One kind of file: its name, its demuxer in FFmpeg, and whether libsndfile is asked first."""

    name: str
    demuxer: str
    sndfile_first: bool = False


WAV, RF64, W64 = Kind("WAV", "wav", True), Kind("RF64", "wav", True), Kind("W64", "w64", True)
AIFF, AU, CAF = Kind("AIFF", "aiff", True), Kind("AU", "au", True), Kind("CAF", "caf", True)
SPHERE, FLAC, OGG = Kind("SPHERE", "nistsphere", True), Kind("FLAC", "flac", True), Kind("OGG", "ogg", True)
MP3, AAC, MP4, MATROSKA = Kind("MP3", "mp3"), Kind("AAC", "aac"), Kind("MP4", "mov"), Kind("Matroska", "matroska")
ASF, AVI, GSM = Kind("ASF", "asf"), Kind("AVI", "avi"), Kind("GSM", "gsm")
KINDS = (  # (what stands where, kind); "." is any byte
    (rb"RIF[FX]....WAVE", WAV),
    (rb"RF64....WAVE", RF64),
    (rb"BW64....WAVE", RF64),
    (rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb", W64),
    (rb"FORM....AIF[FC]", AIFF),
    (rb"\.snd", AU),
    (rb"caff\x00", CAF),
    (rb"NIST_1A", SPHERE),
    (rb"fLaC", FLAC),
    (rb"OggS", OGG),
    (rb"\x1aE\xdf\xa3", MATROSKA),
    (rb"....(ftyp|moov|mdat|wide|free|skip)", MP4),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", ASF),
    (rb"RIFF....AVI ", AVI),
    (rb"#!AMR", Kind("AMR", "amr")),
    (rb"wvpk", Kind("WavPack", "wv")),
    (rb"Creative Voice File", Kind("VOC", "voc", True)),
    (rb"FLV\x01", Kind("FLV", "flv")),
    (rb"\x00\x00\x01\xba", Kind("MPEG", "mpeg")),
    (rb"\x0b\x77", Kind("AC-3", "ac3")),
    (rb"(G.{187}){3}", Kind("MPEG-TS", "mpegts")),
    (rb"\xff[\xf0\xf1\xf8\xf9]", AAC),
    (rb"([\xd0-\xdf].{32}){5}", GSM),  # no signature: each block of 33 bytes begins with 1101
)
VORBIS_OR_OPUS = b"\x01vorbis", b"OpusHead"


def kind_of(file: BinaryIO) -> Kind:
    """Recognises a file by its content, whatever its name; raises AudioError for what is none of KINDS."""
    skipped = _id3_bytes(file)
    file.seek(skipped)
    start = file.read(START)
    kind = next((kind for pattern, kind in KINDS if re.match(pattern, start, re.DOTALL)), None)
    if kind is None and re.search(rb"\xff[\xe2-\xff]", start):  # FFmpeg wants two frames, one after the other
        kind = MP3
    if kind is None:
        raise AudioError("unreadable: no audio file of a known kind")
    if kind is OGG and not any(name in start[:64] for name in VORBIS_OR_OPUS):
        return Kind("OGG", "ogg")
    return Kind(kind.name, kind.demuxer) if skipped else kind


def _id3_bytes(file: BinaryIO) -> int:
    """How many bytes an ID3v2 tag takes at the beginning of a file (id3.org, ID3v2.4 structure, section 3.1)."""
    file.seek(0)
    head = file.read(ID3_HEADER)
    if len(head) < ID3_HEADER or head[:3] != b"ID3":
        return 0
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return size + ID3_HEADER * (2 if head[5] & 0x10 else 1)  # a footer repeats the header


def links_of(file: BinaryIO, kind: Kind, size: int) -> list[BinaryIO]:
    """Divides joined Ogg files: each decoder alone stops at the end of the first; any other file is one link.

    A link begins with pages that begin streams (RFC 3533, section 4).
    """
    if kind.name != "OGG":
        return [file]
    starts, offset, after_first_pages = [], 0, True
    for _ in range(MOST_CHUNKS):  # pages
        page = _bytes_at(file, offset, 27 + 255)
        if len(page) < 27 or page[:4] != b"OggS":
            break
        begins = bool(page[5] & 2)
        if begins and after_first_pages:
            starts.append(offset)
        after_first_pages = not begins
        offset += 27 + page[26] + sum(page[27 : 27 + page[26]])
    if len(starts) < 2:
        return [file]
    return [_patched(file, end, {}, start) for start, end in zip(starts, [*starts[1:], size], strict=True)]


@dataclass(frozen=True)
class Layout:
    """How a format writes its chunks: where the first one is, the struct of (name, size) or (size, name), and so on.

    counts_header: whether sizes count it; even: what the place of each chunk is a multiple of.
    """

    first: int
    head: str
    name_first: bool = True
    counts_header: bool = False
    even: int = 1


LAYOUTS = {
    "WAV": Layout(12, "<4sI", even=2),
    "RF64": Layout(12, "<4sI", even=2),
    "AVI": Layout(0, "<4sI", even=2),
    "AIFF": Layout(12, ">4sI", even=2),
    "CAF": Layout(8, ">4sQ"),
    "W64": Layout(40, "<16sQ", counts_header=True, even=8),
    "ASF": Layout(0, "<16sQ", counts_header=True),
    "MP4": Layout(0, ">I4s", name_first=False, counts_header=True),
}
SOUND = {"WAV": b"data", "RF64": b"data", "AIFF": b"SSND", "CAF": b"data", "W64": b"data\xf3\xac\xd3\x11\x8c\xd1"}

NEEDED = {**{name: (mark,) for name, mark in SOUND.items()}, "MP4": (b"mdat", b"moov", b"moof")}


@dataclass(frozen=True)
class Chunk:
    """A stretch of a file: its name, where its header and its content begin, and how long the header says that is."""

    name: bytes
    header: int
    content: int
    size: int


def chunks_of(file: BinaryIO, kind: Kind, size: int) -> Iterator[Chunk]:
    """Yields the chunks of a file of `size` bytes, up to the first one that does not end within it."""
    layout = LAYOUTS[kind.name]
    length, offset = struct.calcsize(layout.head), layout.first
    if kind.name == "WAV" and _bytes_at(file, 0, 4) == b"RIFX":
        layout = Layout(12, ">4sI", even=2)
    for _ in range(MOST_CHUNKS):
        head = _bytes_at(file, offset, length)
        if len(head) < length:
            return
        fields = struct.unpack(layout.head, head)
        name, claimed = fields if layout.name_first else fields[::-1]
        content = offset + length
        if kind.name == "MP4" and claimed == 1:  # a size of 64 bits follows
            wide = _bytes_at(file, content, 8)
            claimed, content = (int.from_bytes(wide, "big") if len(wide) == 8 else 0), content + 8
        elif kind.name == "MP4" and claimed == 0:  # to the end
            claimed = size - offset
        held = claimed - (content - offset) if layout.counts_header else claimed
        yield Chunk(name, offset, content, held)
        offset = content + held
        offset += -offset % layout.even
        if held < 0 or offset > size:
            return


def missing(file: BinaryIO, kind: Kind, size: int) -> str | None:
    """Says how much of a file of `size` bytes is missing by its own account; None where nothing is, or none is given.

    Sizes that writers leave open (0, or all ones) are no account: such files are read to their end.
    """
    if kind.name == "Matroska":
        return _words(size, _matroska_end(file))
    if kind.name == "SPHERE":
        return _words(size, _sphere_end(file))
    if kind.name == "AU":
        head = _bytes_at(file, 0, 12)
        held = int.from_bytes(head[8:12], "big")
        return _words(size, 0 if held in (0, 2**32 - 1) else int.from_bytes(head[4:8], "big") + held)
    if kind.name not in LAYOUTS:
        return None
    for chunk in chunks_of(file, kind, size):
        if _is_open(file, kind, chunk, size):
            return None
        if kind.name in NEEDED and not chunk.name.startswith(NEEDED[kind.name]):
            continue  # a title, or a picture, at the end: the sound is whole
        if lack := _words(size, chunk.content + _claimed(file, kind, chunk)):
            return lack
    return None


def _words(size: int, end: int) -> str | None:
    return f"truncated: {size:,} of {end:,} bytes" if end > size + TOLERANCE else None


def _claimed(file: BinaryIO, kind: Kind, chunk: Chunk) -> int:
    """The size of a chunk, which in RF64 stands elsewhere (EBU Tech 3306)."""
    if kind.name == "RF64" and chunk.name == b"data" and chunk.size == 2**32 - 1:
        return int.from_bytes(_bytes_at(file, 28, 8), "little")
    return chunk.size


def _is_open(file: BinaryIO, kind: Kind, chunk: Chunk, size: int) -> bool:
    """Tells whether a chunk's size was left open by its writer: it was killed, or wrote to a pipe."""
    claimed = _claimed(file, kind, chunk)
    if kind.name not in SOUND or not chunk.name.startswith(SOUND[kind.name]):
        return kind.name == "AVI" and claimed == 0
    at_most = {"WAV": 0x7FFFF000, "RF64": 2**63 - 1, "AIFF": 0x7FFFF000, "W64": 2**62, "CAF": 2**63}[kind.name]
    emptiness = 8 if kind.name == "AIFF" else 0  # offset and block size are counted
    return claimed <= emptiness or (claimed >= at_most and chunk.content + claimed > size)


def mended(file: BinaryIO, kind: Kind, size: int) -> BinaryIO:
    """Returns the file, or where its writer left the size of its sound open, one that says how long it is."""
    if kind.name == "AU" and _bytes_at(file, 8, 4) == bytes(4):
        return _patched(file, size, {8: b"\xff" * 4})
    if kind.name not in SOUND or kind.name == "CAF":
        return file
    found = []
    for chunk in chunks_of(file, kind, size):
        found.append(chunk)
        if chunk.name.startswith(SOUND[kind.name]):
            break
    if not found or not found[-1].name.startswith(SOUND[kind.name]) or not _is_open(file, kind, found[-1], size):
        return file
    sound = found[-1]
    held = size - sound.content
    if kind.name == "WAV":
        order = "big" if _bytes_at(file, 0, 4) == b"RIFX" else "little"
        sizes = {4: min(size - 8, 2**32 - 1), sound.header + 4: min(held, 2**32 - 2)}
        return _patched(file, size, {place: value.to_bytes(4, order) for place, value in sizes.items()})
    if kind.name == "RF64":
        block = _block_bytes(file, found)
        counts = [size - 8, held, held // block]
        return _patched(file, size, {20 + 8 * i: value.to_bytes(8, "little") for i, value in enumerate(counts)})
    if kind.name == "W64":
        counts = {16: size, sound.header + 16: held + 24}
        return _patched(file, size, {place: value.to_bytes(8, "little") for place, value in counts.items()})
    return _mended_aiff(file, found, sound, size)


def _block_bytes(file: BinaryIO, found: list[Chunk]) -> int:
    """Bytes of one sample of all channels, by the format chunk of a WAV."""
    form = next((chunk for chunk in found if chunk.name == b"fmt "), None)
    return max(1, int.from_bytes(_bytes_at(file, form.content + 12, 2), "little")) if form else 1


def _mended_aiff(file: BinaryIO, found: list[Chunk], sound: Chunk, size: int) -> BinaryIO:
    common = next((chunk for chunk in found if chunk.name == b"COMM"), None)
    if common is None:
        return file
    channels, _, bits = struct.unpack(">HIH", _bytes_at(file, common.content, 8).ljust(8, b"\0"))
    held = size - sound.content
    frames = max(0, held - 8) // max(1, channels * ((bits + 7) // 8))
    places = {4: size - 8, sound.header + 4: held, common.content + 2: frames}
    return _patched(file, size, {place: (value % 2**32).to_bytes(4, "big") for place, value in places.items()})


class Mended(io.RawIOBase):
    """A file, or its part from `first` to `size`, in which a few bytes read otherwise; patches: {place: bytes}."""

    def __init__(self, file: BinaryIO, size: int, patches: dict[int, bytes], first: int = 0):
        self._file, self._size, self._patches, self._first, self._at = file, size - first, patches, first, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer) -> int:
        length = max(0, min(len(buffer), self._size - self._at))
        data = bytearray(_bytes_at(self._file, self._first + self._at, length))
        for place, patch in self._patches.items():
            for i, byte in enumerate(patch, place - self._at):
                if 0 <= i < len(data):
                    data[i] = byte
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _patched(file: BinaryIO, size: int, patches: dict[int, bytes], first: int = 0) -> BinaryIO:
    return cast(BinaryIO, Mended(file, size, patches, first))


def _bytes_at(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _matroska_end(file: BinaryIO) -> int:
    """Where the segment of a Matroska file ends; 0 if that was left open (RFC 8794, section 5: sizes)."""
    offset = 0
    for _ in range(16):
        head = _bytes_at(file, offset, 12)
        if len(head) < 12 or not head[0]:
            return 0
        id_bytes = 9 - head[0].bit_length()
        first = head[id_bytes] if id_bytes < len(head) else 0
        if not first:
            return 0
        size_bytes = 9 - first.bit_length()
        value = int.from_bytes(head[id_bytes : id_bytes + size_bytes], "big") & ((1 << 7 * size_bytes) - 1)
        if value == (1 << 7 * size_bytes) - 1:
            return 0
        offset += id_bytes + size_bytes + value
        if head[:id_bytes] == b"\x18\x53\x80\x67":
            return offset
    return 0


def _sphere_end(file: BinaryIO) -> int:
    """Where the samples of a SPHERE file end; 0 where its header does not say (NIST SPHERE, header fields)."""
    head = _bytes_at(file, 0, START).decode("latin-1")
    told = {name: value for name, _, value in re.findall(r"^(\w+) -(\w+) (\S+)", head, re.MULTILINE)}
    try:
        count, width = int(told["sample_count"]), int(told.get("sample_n_bytes", 2)) * int(told["channel_count"])
        begin = int(head.split("\n")[1])
    except (KeyError, ValueError, IndexError):
        return 0
    return 0 if "embedded" in told.get("sample_coding", "") else begin + count * width


def claimed_samples(file: BinaryIO, kind: Kind) -> int:
    """Samples of each channel that a FLAC or MP3 file says it holds; 0 where it does not say."""
    start = _id3_bytes(file)
    if kind.name == "FLAC":  # RFC 9639, section 8.2
        return int.from_bytes(_bytes_at(file, start + 18, 8), "big") & (2**36 - 1)
    if kind.name != "MP3":
        return 0
    head = _bytes_at(file, start, 256)
    place = max(head.find(b"Xing"), head.find(b"Info"))
    if place < 0 or not head[place + 7] & 1:
        return 0
    samples = 1152 if head[1] & 8 else 576
    return samples * int.from_bytes(head[place + 8 : place + 12], "big")
