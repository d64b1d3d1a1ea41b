"""Named speakers in an SQLite file: whole after a kill, and safe with several writers at the same time."""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float

from sdpn_jax import storage
from sdpn_jax.errors import UserError, shown
from sdpn_jax.speaker import gallery as galleries
from sdpn_jax.speaker.gallery import MOST_RECORDINGS, Gallery, composed, is_name
from sdpn_jax.vectors import unit

SUFFIX, MAGIC = ".db", b"SQLite format 3\0"
SCHEMA = (
    "CREATE TABLE about (model TEXT NOT NULL) STRICT",
    "CREATE TABLE speakers (name TEXT PRIMARY KEY, sum BLOB NOT NULL, count INTEGER NOT NULL) STRICT, WITHOUT ROWID",
)
PATIENCE_S = 20.0  # for another writer to finish
MOST_SPEAKERS, MOST_NAME = 10_000, 200  # speakers of a gallery, letters of a name
NO_NAMES = (".", "..")  # as parts of an address browsers leave them out: they could not be deleted


class Full(UserError):
    """A gallery holds as many speakers as it can."""


class Voices:
    """A gallery as a database, whose every change is on the disk when the call returns. Threads may share it."""

    def __init__(self, path: Path | None, model: str, first: Gallery | None = None):
        """path: of the file, made where there is none, with the speakers of `first`; None: kept in memory alone.

        model: the fingerprint of the encoder whose embeddings they are. Raises UserError for a file that is no gallery,
        or one of another model.
        """
        self.path, self._alone = path, threading.Lock()
        self._known: tuple[int, Gallery] | None = None
        self._changes = 0
        with self._one_line():
            if path is not None and path.exists():
                _check_is_database(path)
            self._file = sqlite3.connect(
                path or ":memory:", timeout=PATIENCE_S, isolation_level=None, check_same_thread=False
            )
            # Nothing that a stranger's schema holds is run, deleted voices are overwritten, commits reach the disk.
            for setting in ("trusted_schema=OFF", "cell_size_check=ON", "secure_delete=ON", "synchronous=FULL"):
                self._file.execute(f"PRAGMA {setting}")
            with self._writing():
                if not self._file.execute("SELECT 1 FROM sqlite_master").fetchone():
                    self._make(model, first)
            self._check(model)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def enrol(self, name: str, embeddings: Float[np.ndarray, "M D"]) -> int:
        """Adds recordings [M, D] of a speaker, who may be there already; returns how many there are of them now.

        Raises UserError for a name that will not do, Full for one speaker too many.
        """
        name = composed(name)
        fits = is_name(name) and 0 < len(name) <= MOST_NAME and name == name.strip()
        if not fits or name in NO_NAMES:
            raise UserError(f"a name has 1 to {MOST_NAME} letters, no control characters, no space at its ends")
        units = unit(embeddings)
        with self._alone, self._one_line(), self._writing():
            row = self._file.execute("SELECT sum, count FROM speakers WHERE name = ?", (name,)).fetchone()
            if row is None and self._count() >= MOST_SPEAKERS:
                raise Full(f"there are {MOST_SPEAKERS:,} speakers already: delete some")
            before = np.frombuffer(row[0], np.float64) if row else np.zeros(units.shape[1])
            if len(before) != units.shape[1]:
                raise UserError(f"{self.path}: the speaker {shown(name)} is damaged: delete the file, and enrol again")
            total = before + units.sum(0)
            count = len(units) + (row[1] if row else 0)
            self._file.execute("INSERT OR REPLACE INTO speakers VALUES (?, ?, ?)", (name, total.tobytes(), count))
            self._changes += 1
        return count

    def delete(self, name: str | None) -> int:
        """Deletes a speaker, or all of them (None); returns how many were there."""
        where, values = ("", ()) if name is None else (" WHERE name IN (?, ?)", (name, composed(name.strip())))
        with self._alone, self._one_line(), self._writing():
            self._changes += 1
            return self._file.execute("DELETE FROM speakers" + where, values).rowcount

    def gallery(self) -> Gallery:
        """Reads all speakers, those that other processes have enrolled too."""
        with self._alone, self._one_line():
            version = self._file.execute("PRAGMA data_version").fetchone()[0] + self._changes
            if self._known is None or self._known[0] != version:
                self._known = version, self._read()
            return self._known[1]

    def _read(self) -> Gallery:
        model = self._file.execute("SELECT model FROM about").fetchone()[0]
        rows = self._file.execute("SELECT name, sum, count FROM speakers ORDER BY name LIMIT ?", (MOST_SPEAKERS,))
        names, sums, counts = [], [], []
        for name, total, count in rows:
            values = np.frombuffer(total, np.float64) if len(total) % 8 == 0 else np.full(1, np.nan)
            as_others = len(values) == len(sums[0] if sums else values)
            fits = as_others and is_name(name) and 1 <= count <= MOST_RECORDINGS
            if not (fits and np.all(np.abs(values) <= 1.001 * count)):
                raise UserError(f"{self.path}: the speaker {shown(name)} is damaged: delete the file, and enrol again")
            names.append(name)
            sums.append(values)
            counts.append(count)
        return Gallery(names, np.stack(sums) if sums else np.zeros((0, 0)), np.asarray(counts, int), model)

    def _make(self, model: str, first: Gallery | None) -> None:
        for statement in SCHEMA:
            self._file.execute(statement)
        self._file.execute("INSERT INTO about VALUES (?)", (model,))
        for name, total, count in zip(first.names, first.sums, first.counts, strict=True) if first else ():
            self._file.execute("INSERT INTO speakers VALUES (?, ?, ?)", (name, total.tobytes(), int(count)))

    def _check(self, model: str) -> None:
        found = {row[0] for row in self._file.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}
        if found != {*SCHEMA}:
            raise UserError(f"{self.path} is a database, but no gallery: give another name")
        if self._file.execute("SELECT model FROM about").fetchall() != [(model,)]:
            raise UserError(
                f"{self.path} was made with another model: embeddings of two models cannot be compared; enrol again"
            )

    def _count(self) -> int:
        return self._file.execute("SELECT count(*) FROM speakers").fetchone()[0]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A change as a whole, alone among all processes."""
        self._file.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._file.execute("ROLLBACK")
            raise
        self._file.execute("COMMIT")

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise UserError(f"{self.path or 'the gallery'} cannot be used ({shown(error)})") from None


def opened(path: Path, model: str) -> Voices:
    """Opens the database of a gallery: NAME.db itself, or for NAME.npz the NAME.db beside it.

    A new NAME.db begins with the speakers of the NAME.npz, which is not looked at again: who was deleted stays deleted.
    """
    if path.suffix == SUFFIX:
        return Voices(path, model)
    database = path.with_name(path.name.removesuffix(".npz") + SUFFIX)
    first = galleries.read(path, model) if path.exists() and not database.exists() else None
    return Voices(database, model, first)


def gallery_in(path: str | os.PathLike, model: str) -> Gallery:
    """Reads the speakers of a gallery, NAME.npz or NAME.db; UserError as `gallery.read` and `Voices` raise it."""
    place = storage.place(path)
    if place.suffix != SUFFIX:
        return galleries.read(place, model)
    if not isinstance(place, Path) or not place.exists():
        raise UserError(f"{path}: no such file on this machine; give a gallery")
    if place.is_file() and not place.stat().st_size:
        raise UserError(f"{path} is empty, which no gallery is: copy it again")
    voices = Voices(place, model)
    try:
        return voices.gallery()
    finally:
        voices.close()


def _check_is_database(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path} is no file, but a folder, a pipe or a device")
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
    if start not in (b"", MAGIC):
        raise UserError(f"{path} is no database of voices: give another name, or one that ends in .npz")
