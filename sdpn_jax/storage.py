"""Where files lie: folders of this machine and buckets (gs://, s3://). Files are complete or absent, whenever we die.

Buckets are reached through fsspec, by the extras `gcs` and `s3`. What libraries can only read from a disk is kept in
`cache_folder()`; what they can only write there is uploaded when it is complete.
"""

import contextlib
import errno
import functools
import glob
import hashlib
import importlib.util
import io
import json
import math
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from absl import logging
from etils import epath

from sdpn_jax.errors import UserError

Place: TypeAlias = Path | epath.Path  # a local path, or one in a bucket; both have pathlib's methods
Result = TypeVar("Result")

EXTRAS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}  # scheme: (module, extra that installs it)
HUBS = {"hf": ("huggingface_hub", "hub"), "modelscope": ("modelscope_hub", "modelscope")}  # the same; weights/hub.py
PAUSES_S = (1.0, 2.0, 4.0, 8.0)  # between tries of a bucket that does not answer
CACHE_VARIABLE, CACHE_GB_VARIABLE, CACHE_GB = "SDPN_JAX_CACHE", "SDPN_JAX_CACHE_GB", 100.0
MOST_JSON = 1 << 20  # bytes; the config of a model has 1,000
PART = 8 << 20  # bytes read or written at once


def is_bucket(path: str | os.PathLike) -> bool:
    """Tells whether a path lies in a bucket."""
    return os.fspath(path).startswith(tuple(f"{scheme}://" for scheme in EXTRAS))


def is_hub(path: str | os.PathLike) -> bool:
    """Tells whether a path is an address in a hub of models, of which a pathlib.Path keeps one slash."""
    return os.fspath(path).startswith(tuple(f"{scheme}:/" for scheme in HUBS))


def place(path: str | os.PathLike) -> Place:
    """Turns what a user wrote into a path with pathlib's methods.

    Raises UserError for the address of anything but a bucket, and for a bucket whose extra is not installed.
    """
    text = os.fspath(path)
    if is_hub(path):
        raise UserError(
            f"{text}: models alone come from a hub, by --model, --config.init_from and `sdpn convert --input`"
        )
    if text.startswith(tuple(f"{scheme}:/" for scheme in EXTRAS)) and not is_bucket(text):
        raise UserError(f"{text}: the address of a bucket has two slashes, as in gs://bucket/folder")
    scheme, colon, _ = text.partition("://")
    if not colon or not scheme.isalnum():
        return Path(text).expanduser() if text.startswith("~/") else Path(text)  # no shell does so behind "="
    if scheme not in EXTRAS:
        raise UserError(f"{text}: only {', '.join(f'{known}://' for known in EXTRAS)} and local paths are understood")
    module, extra = EXTRAS[scheme]
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{text} needs {module}: pip install 'sdpn_jax[{extra}]'")
    _set_up_fsspec()
    return epath.Path(text)


def _set_up_fsspec() -> None:
    """Other processes write to our buckets: no listing may be remembered."""
    import fsspec.config

    for scheme in ("gs", "gcs", "s3"):
        fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)


def patiently(path: str | os.PathLike, work: Callable[[], Result]) -> Result:
    """Returns work(), which reads or writes `path`; in a bucket it is tried again while the bucket does not answer.

    Raises what `work` raises for a local path, and for a file that is not there; UserError for a bucket out of reach.
    """
    if not is_bucket(path):
        return work()
    for pause in (*PAUSES_S, None):
        try:
            return work()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise
        except Exception as error:  # whatever the bucket's client raises
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if pause is None:
                raise UserError(
                    f"{os.fspath(path)} is out of reach ({why}): look at network and credentials, then run the same "
                    "command again"
                ) from error
            logging.warning("%s does not answer (%s); trying again in %.0f s", os.fspath(path), why, pause)
            time.sleep(pause)
    raise AssertionError


def read_bytes(path: str | os.PathLike) -> bytes:
    """Reads a whole file; UserError for a pipe or a device."""
    check_is_file(path)
    return patiently(path, place(path).read_bytes)


def check_is_file(path: str | os.PathLike) -> None:
    """Raises UserError for a pipe, which would be waited for, and for a device, which has no end."""
    source = place(path)
    if isinstance(source, Path):
        with contextlib.suppress(OSError, ValueError):  # what reads it will say what is wrong
            mode = source.stat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise UserError(f"{source} is no file, but a pipe or a device: write to a file what is to be read")


def read_text(path: str | os.PathLike) -> str:
    """Reads a whole file of UTF-8, line ends as they are."""
    return read_bytes(path).decode("utf-8")


def read_json(path: str | os.PathLike, most: int = MOST_JSON) -> Any:
    """Reads a JSON file of at most `most` bytes and of finite numbers.

    Raises OSError as opening does, and ValueError with a reason that fits in one line for what is no such file.
    """

    check_is_file(path)

    def work() -> bytes:
        with place(path).open("rb") as file:
            return file.read(most + 1)

    data = patiently(path, work)
    if len(data) > most:
        raise ValueError(f"it has more than {most >> 20} MB")
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise ValueError("it nests too deep") from None


def _no_number(text: str) -> float:
    raise ValueError(f"it holds {text}, which is no number")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError("it holds a number beyond all floating point")
    return number


def exists(path: str | os.PathLike) -> bool:
    """Tells whether there is a file or folder; no name that the system cannot hold is one."""
    try:
        return patiently(path, place(path).exists)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def is_folder(path: str | os.PathLike) -> bool:
    """Tells whether a path is a folder, in a bucket one that holds something."""
    return patiently(path, place(path).is_dir)


def names(folder: str | os.PathLike) -> list[str]:
    """Lists the names in a folder, in order; none if there is no such folder."""
    try:
        return patiently(folder, lambda: sorted(path.name for path in place(folder).iterdir()))
    except FileNotFoundError:
        return []


def files_below(folder: str | os.PathLike) -> list[str]:
    """Lists the files of a bucket below a folder, by their names relative to it, in order."""
    import fsspec.core

    def work() -> list[str]:
        system, inside = fsspec.core.url_to_fs(os.fspath(place(folder)))
        return sorted(name.removeprefix(inside).lstrip("/") for name in system.find(inside))

    return patiently(folder, work)


def make_folder(path: str | os.PathLike) -> Place:
    """Makes a folder and those around it; a bucket has no folders to make."""
    folder = place(path)
    if not is_bucket(path):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def remove(path: str | os.PathLike) -> None:
    """Removes a file, or a folder with all in it, if it is there."""

    def work() -> None:
        target = place(path)
        if target.is_dir():
            target.rmtree() if isinstance(target, epath.Path) else shutil.rmtree(target)
        elif target.exists():
            target.unlink()

    with contextlib.suppress(FileNotFoundError):
        patiently(path, work)


def rename(path: str | os.PathLike, target: str | os.PathLike) -> Place:
    """Gives a file or folder another name in the same bucket or file system; returns it."""
    if not is_bucket(path):
        return place(path).rename(target)
    import fsspec.core

    for name in files_below(path):
        system, source = fsspec.core.url_to_fs(os.fspath(place(path) / name))
        copy = system._strip_protocol(os.fspath(place(target) / name))
        patiently(path, functools.partial(system.cp_file, source, copy))
    remove(path)
    return place(target)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a file of UTF-8 as `write_bytes` does; bytes that are no UTF-8 come out as they came in."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file so that nobody ever finds half of it, and that it is on the disk when this returns."""
    with written(path) as file:
        file.write(data)


def write_npz(path: str | os.PathLike, **arrays: Any) -> None:
    """Writes an .npz of arrays as `write_bytes` does."""
    with written(path) as file:
        np.savez(file, **arrays)


@contextlib.contextmanager
def written(path: str | os.PathLike) -> Iterator[Any]:
    """Opens a file to write; it appears under its name when the block ends without an error, and else never."""
    target = place(path)
    if not isinstance(target, Path):
        buffer = io.BytesIO()
        yield buffer
        patiently(path, lambda: target.write_bytes(buffer.getvalue()))
        return
    temporary = temporary_beside(target)
    try:
        with open(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), "w+b") as file:
            yield file
        replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_beside(path: Path) -> Path:
    """Makes up a name beside a file that nobody can foresee."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def clear_temporaries(path: Path) -> None:
    """Removes what killed writers of a file left beside it."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        left.unlink(missing_ok=True)


def replace(temporary: Path, path: str | os.PathLike) -> None:
    """Puts a complete local file in its place: renamed and on the disk, or uploaded and then removed."""
    target = place(path)
    if not isinstance(target, Path):
        upload(temporary, path)
        temporary.unlink()
        return
    sync(temporary)
    temporary.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk; not every file system can say so of a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def upload(source: Path, path: str | os.PathLike) -> None:
    """Copies a local file into a bucket, where it appears when all of it is there."""

    def work() -> None:
        with source.open("rb") as file, place(path).open("wb") as remote:
            shutil.copyfileobj(file, remote, PART)

    patiently(path, work)


def upload_folder(source: Path, path: str | os.PathLike) -> None:
    """Copies all files of a local folder into a bucket, by their names in order."""
    for file in sorted(source.rglob("*")):
        if file.is_file():
            upload(file, place(path) / file.relative_to(source).as_posix())


def download(path: str | os.PathLike, target: Path) -> None:
    """Copies a file of a bucket to this machine, complete or not at all."""

    def work() -> None:
        with written(target) as file, place(path).open("rb") as remote:
            shutil.copyfileobj(remote, file, PART)

    patiently(path, work)


def download_folder(path: str | os.PathLike, target: Path) -> None:
    """Copies a folder of a bucket, with the folders in it, to this machine."""
    for name in files_below(path):
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        download(place(path) / name, copy)


def local(path: str | os.PathLike) -> Path:
    """Returns a file where libraries can open it: itself, or a copy of what a bucket holds now.

    Raises FileNotFoundError when the bucket holds no such file, and UserError as `check_is_file` and `cached` do.
    """
    source = place(path)
    if isinstance(source, Path):
        check_is_file(source)
        return source
    about = stamp(path)
    if about is None:
        raise FileNotFoundError(2, "No such file", os.fspath(path))
    return cached(source, about[0], str(about[1]))


def cached(source: Place, size: int, version: str = "") -> Path:
    """Returns the local copy of a bucket's file of `size` bytes; `version` tells files of one name and size apart.

    The copies used longest ago make room. Raises UserError when the file alone exceeds the bound.
    """
    name = hashlib.sha256(f"{os.fspath(source)} {size} {version}".encode()).hexdigest()[:24]
    copy = cache_folder() / "files" / f"{name}-{source.name}"
    if copy.exists() and copy.stat().st_size == size:
        os.utime(copy)
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    _make_room(copy.parent, size)
    download(source, copy)
    return copy


def _make_room(folder: Path, size: int) -> None:
    """Removes the copies used longest ago until `size` more bytes keep the bound; other threads may do the same."""
    bound = cache_bytes()
    if size > bound:
        raise UserError(f"a file of {size / 1e9:.2f} GB exceeds the cache in {folder}: raise {CACHE_GB_VARIABLE}")
    copies = []
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            about = file.stat()
            copies.append((about.st_mtime, about.st_size, file))
    held = sum(length for _, length, _ in copies)
    for _, length, file in sorted(copies):
        if held + size <= bound:
            return
        file.unlink(missing_ok=True)
        held -= length


def cache_folder() -> Path:
    """Returns the folder of what is kept of buckets: that of SDPN_JAX_CACHE, by default ~/.cache/sdpn_jax/buckets."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path("~/.cache/sdpn_jax/buckets").expanduser())


def cache_bytes() -> float:
    """Returns the bound of the cache in bytes: SDPN_JAX_CACHE_GB gigabytes, by default 100."""
    return 1e9 * float(os.environ.get(CACHE_GB_VARIABLE) or CACHE_GB)


@contextlib.contextmanager
def output_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Makes a folder for a command's results; for a bucket a local one, uploaded when the block ends without error.

    Raises UserError when it cannot be written to.
    """
    try:
        folder = make_folder(path)
        if isinstance(folder, Path):
            yield folder
            return
        with tempfile.TemporaryDirectory(prefix="sdpn_jax-") as staging:
            yield Path(staging)
            upload_folder(Path(staging), path)
    except OSError as error:
        raise UserError(f"cannot write into --output={os.fspath(path)} ({error.strerror})") from None


class Outbox:
    """A folder to write to bit by bit. One in a bucket is staged on this machine (`folder`) and sent when asked."""

    def __init__(self, path: str | os.PathLike):
        self._target = make_folder(path)
        self._staging = tempfile.TemporaryDirectory(prefix="sdpn_jax-") if is_bucket(path) else None
        self._sent: dict[Path, object] = {}
        self.folder = Path(self._staging.name) if self._staging else Path(self._target)

    def fetch(self, name: str) -> None:
        """Brings a file that is there already, if it is, to be added to."""
        if self._staging and exists(self._target / name):
            download(self._target / name, self.folder / name)

    def send(self) -> None:
        """Sends what has changed since."""
        if not self._staging:
            return
        for file in sorted(self.folder.rglob("*")):
            if file.is_file() and self._sent.get(file) != stamp(file):
                self._sent[file] = stamp(file)
                upload(file, self._target / file.relative_to(self.folder).as_posix())

    def close(self) -> None:
        """Sends what has changed and removes what was staged."""
        try:
            self.send()
        finally:
            if self._staging:
                self._staging.cleanup()


def stamp(path: str | os.PathLike) -> tuple[int, int | str] | None:
    """Returns (size, time of the last change, or a bucket's tag), which changes with a file; None if there is none."""
    if is_bucket(path):
        try:
            return patiently(path, lambda: _tag(path))
        except FileNotFoundError:
            return None
    try:
        status = Path(path).stat()
    except (OSError, ValueError):  # no name that the system can hold
        return None
    return status.st_size, status.st_mtime_ns


def _tag(path: str | os.PathLike) -> tuple[int, str]:
    import fsspec.core

    system, inside = fsspec.core.url_to_fs(os.fspath(path))
    return system.size(inside), str(system.ukey(inside))
