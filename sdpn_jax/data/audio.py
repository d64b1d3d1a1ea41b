"""Finding utterances and decoding them: any audio file -> 16 kHz mono float32, or the reason why not."""

import io
import os
from collections import Counter
from pathlib import Path

import av
import av.error
import numpy as np
import soundfile
import soxr

from sdpn_jax import storage
from sdpn_jax.errors import UserError

SAMPLE_RATE = 16000  # Hz
MIN_SECONDS = 0.1
SILENCE_PEAK = 1e-4  # of full scale, after removing the mean: below it a recording counts as silent
FFMPEG_EXTENSIONS = frozenset((".m4a", ".mp4", ".aac"))
EXTENSIONS = FFMPEG_EXTENSIONS | {".wav", ".flac", ".ogg", ".opus", ".mp3"}


class AudioError(Exception):
    """Why a file cannot be used; such files are skipped and listed."""


def read_audio(path: str | os.PathLike, channel: int | None = None) -> np.ndarray:
    """Reads a recording as 16 kHz mono float32 [N] in [-1, 1]: the mean of its channels, or one `channel`.

    WAV, FLAC, OGG and MP3 through libsndfile, M4A, AAC and MP4 through FFmpeg. Raises AudioError for a file that is
    missing, unreadable, empty, shorter than 0.1 s, silent, or holds NaN or infinite samples.
    """
    path = storage.place(path)
    try:
        if isinstance(path, Path):
            if path.stat().st_size == 0:
                raise AudioError("empty file")
            samples, rate = _decode(path, path.suffix)
        else:
            samples, rate = _decode(io.BytesIO(storage.read_bytes(path)), path.suffix)
    except OSError as error:
        raise AudioError(error.strerror or "cannot be opened") from error
    except (AudioError, UserError):
        raise
    except Exception as error:  # damaged bytes make the decoders raise almost anything, MemoryError among it
        raise AudioError(f"unreadable: {type(error).__name__}") from error
    return at_16_khz(samples, rate, channel)


def at_16_khz(samples: np.ndarray, rate: float, channel: int | None = None) -> np.ndarray:
    """Converts samples [N, channels] at `rate` Hz to what `read_audio` returns; raises AudioError as it does."""
    if not len(samples):
        raise AudioError("no samples")
    if not np.isfinite(samples).all():
        raise AudioError("NaN or infinite samples")
    if samples.shape[1] == 1:
        mono = samples[:, 0]
    else:
        mono = samples.mean(axis=1, dtype=np.float32) if channel is None else np.ascontiguousarray(samples[:, channel])
    if rate != SAMPLE_RATE and np.isfinite(mono).all():
        mono = soxr.resample(mono, rate, SAMPLE_RATE)
    if not np.isfinite(mono).all():  # finite samples near the end of float32's range overflow above
        raise AudioError("samples too large")
    if len(mono) < MIN_SECONDS * SAMPLE_RATE:
        raise AudioError(f"shorter than {MIN_SECONDS} s")
    if np.abs(mono - mono.mean()).max() < SILENCE_PEAK:
        raise AudioError("silent")
    return mono


def seconds_of(path: str | os.PathLike) -> float | None:
    """Returns a recording's length in seconds from its header, without decoding; None if no header can be read."""
    path = Path(storage.local(path))
    try:
        if path.suffix.lower() in FFMPEG_EXTENSIONS:
            with av.open(str(path)) as container:
                return container.duration / av.time_base if container.duration else None
        info = soundfile.info(path)
        return info.frames / info.samplerate if 0 < info.frames < 2**62 else None
    except Exception:  # as in read_audio, which will say what is wrong with the file
        return None


def read_stretch(path: str | os.PathLike, num_samples: int, rng: np.random.Generator) -> np.ndarray | None:
    """Reads `num_samples` samples from a random place in a 16 kHz recording, and nothing else of it.

    None when that cannot be done: another rate, a container that cannot be searched, or too short a recording.
    """
    try:
        with soundfile.SoundFile(storage.local(path)) as file:
            if file.samplerate != SAMPLE_RATE or not file.seekable() or not num_samples <= file.frames < 2**62:
                return None
            file.seek(int(rng.integers(file.frames - num_samples + 1)))
            samples = file.read(num_samples, dtype="float32", always_2d=True).mean(axis=1)
    except (soundfile.LibsndfileError, OSError):
        return None
    return samples if len(samples) == num_samples and np.isfinite(samples).all() else None


def _decode(source: Path | io.BytesIO, suffix: str) -> tuple[np.ndarray, int]:
    """(samples float32 [N, channels], rate in Hz)."""
    if suffix.lower() in FFMPEG_EXTENSIONS:
        return _decode_ffmpeg(source)
    try:
        with soundfile.SoundFile(source) as file:
            samples = file.read(dtype="float32", always_2d=True)
            if 0 < file.frames < 2**62 and len(samples) < file.frames:
                raise AudioError(f"truncated: {len(samples)} of {file.frames} samples")
            return samples, file.samplerate
    except soundfile.LibsndfileError as error:
        raise AudioError(f"unreadable: {error.error_string}") from error


def _decode_ffmpeg(source: Path | io.BytesIO) -> tuple[np.ndarray, int]:
    try:
        with av.open(str(source) if isinstance(source, Path) else source, "r") as container:
            if not container.streams.audio:
                raise AudioError("no audio in it")
            frames = list(container.decode(audio=0))
            forms = {(frame.sample_rate, frame.layout.nb_channels) for frame in frames}
            if len(forms) > 1:
                raise AudioError("unreadable: rate or channels change within the file")
            if any(channels > 8 for _, channels in forms):  # beyond 8 PyAV reads outside of a frame's memory
                raise AudioError("unreadable: more than 8 channels")
            to_float = av.AudioResampler(format="fltp")
            blocks = [block.to_ndarray().T for frame in frames for block in to_float.resample(frame)]
    except av.error.FFmpegError as error:
        raise AudioError(f"unreadable: {error.strerror}") from error
    except (AttributeError, LookupError) as error:  # PyAV's stream of an unknown codec lacks attributes
        raise AudioError("unreadable: unknown codec") from error
    if not blocks:
        raise AudioError("no samples")
    return np.concatenate(blocks), frames[0].sample_rate


def find_utterances(source: str | os.PathLike) -> list[tuple[str, storage.Place]]:
    """Lists (utterance id, path) of every recording of `source`, sorted by id.

    A folder: all audio files below it, ids their paths relative to it with '/' and extension, as VoxCeleb's trial lists
    write them; folders `wav` and `aac` that hold everything are left out of the ids, so that VoxCeleb's own root will
    do. A text file: a path on each line (relative: to the list's folder), ids relative to the folder that all have in
    common. A Kaldi `wav.scp`: `id path` on each line. Raises UserError when it is missing, empty or malformed.
    """
    source = storage.place(source)
    is_folder = storage.is_folder(source)
    if is_folder:
        files = _audio_files(source) if isinstance(source, Path) else _audio_objects(source)
        found = _below_wav_or_aac([(path.relative_to(source).as_posix(), path) for path in files])
    elif storage.exists(source):
        found = _read_scp(source) if source.suffix == ".scp" else _read_list(source)
    else:
        raise UserError(f"{source} does not exist: give a folder of audio, a text file of paths, or a wav.scp")
    if not found:
        kinds = " ".join(sorted(EXTENSIONS))
        raise UserError(f"no recordings in {source}: looked for files ending in {kinds}" if is_folder
                        else f"{source} is empty: expected one recording on each line")  # fmt: skip
    if twice := ids_twice(found):
        raise UserError(f"{source}: {len(twice)} utterance ids occur twice, first {twice[0]!r}: make them unique")
    return sorted(found)


def ids_twice(found: list[tuple[str, storage.Place]]) -> list[str]:
    """Lists the utterance ids that occur more than once."""
    return [name for name, count in Counter(name for name, _ in found).items() if count > 1]


def _below_wav_or_aac(found: list[tuple[str, storage.Place]]) -> list[tuple[str, storage.Place]]:
    """The same with ids relative to the last `wav` or `aac` among the folders that all have in common."""
    common = os.path.commonprefix([name.split("/")[:-1] for name, _ in found])
    places = [i for i, part in enumerate(common) if part in ("wav", "aac")]
    return [(name.split("/", places[-1] + 1)[-1], path) for name, path in found] if places else found


def _audio_files(folder: Path) -> list[Path]:
    """All audio files below a folder, hidden ones left out; links to folders are followed, each folder once."""

    def refuse(error: OSError):
        raise UserError(f"cannot look into {error.filename} ({error.strerror}): give access or leave it out")

    seen, found = set(), []
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(parent, name)
            for name in sorted(files)
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS
        ]
    return found


def _audio_objects(folder: storage.Place) -> list[storage.Place]:
    """All audio files of a bucket below a folder, hidden ones left out."""
    found = []
    for name in storage.files_below(folder):
        if os.path.splitext(name)[1].lower() in EXTENSIONS and not any(part[0] == "." for part in name.split("/")):
            found.append(folder / name)
    return found


def _lines(path: storage.Place) -> list[tuple[int, str]]:
    try:
        text = storage.read_text(path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file: give a list of paths, a wav.scp, or a folder") from error
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _read_scp(path: storage.Place) -> list[tuple[str, storage.Place]]:
    found = []
    for number, line in _lines(path):
        name, _, location = line.partition(" ")
        location = location.strip()
        if not location:
            raise UserError(f"{path}, line {number}: expected 'id path', found {line!r}")
        if location.endswith("|"):
            raise UserError(
                f"{path}, line {number}: a command ({location!r}); write its output to files and name those"
            )
        found.append((name, _beside(path, location)))
    return found


def _read_list(path: storage.Place) -> list[tuple[str, storage.Place]]:
    paths = [_beside(path, line) for _, line in _lines(path)]
    absolute = [os.fspath(place) if storage.is_bucket(place) else os.path.abspath(place) for place in paths]
    if not paths:
        return []
    common = os.path.commonprefix([name.split("/")[:-1] for name in absolute])
    return [("/".join(name.split("/")[len(common) :]), storage.place(name)) for name in absolute]


def _beside(path: storage.Place, location: str) -> storage.Place:
    """What a line of a list names: a path relative to the list's folder, an absolute one, or one in a bucket."""
    return storage.place(location) if storage.is_bucket(location) else path.parent / location
