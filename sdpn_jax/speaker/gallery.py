"""Named speakers in a small .npz file: who is enrolled, and who of them a recording sounds like."""

import contextlib
import fcntl
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float64, Int

from sdpn_jax import storage
from sdpn_jax.arrays import read_npz
from sdpn_jax.errors import UserError, shown
from sdpn_jax.vectors import cosine, unit

MOST_RECORDINGS = 2**48  # of one speaker


@dataclass
class Gallery:
    """names: N speakers; sums: float64 [N, D], of their recordings' embeddings of length 1; counts: int [N].

    model: the fingerprint of the encoder that made them; stamp: of the file it was read from, None for a new one.
    """

    names: list[str]
    sums: Float64[np.ndarray, "N D"]
    counts: Int[np.ndarray, " N"]
    model: str
    stamp: tuple[int, int | str] | None = None

    def enrol(self, name: str, embeddings: Float[np.ndarray, "M D"]) -> None:
        """Adds recordings [M, D] of a speaker, who may be there already; UserError if D or the name will not do."""
        units, name = unit(embeddings), composed(name)
        if not is_name(name):
            raise UserError(f"the name '{shown(name)}' is empty or holds control characters: choose another")
        self._check_dimension(units.shape[1])
        if name not in self.names:
            self.names.append(name)
            self.sums = np.concatenate([self.sums.reshape(-1, units.shape[1]), np.zeros((1, units.shape[1]))])
            self.counts = np.append(self.counts, 0)
        row = self.names.index(name)
        self.sums[row] += units.sum(0)
        self.counts[row] += len(units)

    def scores(self, embedding: Float[np.ndarray, " D"]) -> list[tuple[str, float]]:
        """Ranks (name, cosine with the mean of the speaker's embeddings), the most alike first.

        Raises UserError for another D.
        """
        if not self.names:
            return []
        self._check_dimension(len(embedding))
        cosines = np.asarray(cosine(self.sums, embedding))
        order = np.argsort(-cosines, kind="stable")
        return [(self.names[row], float(cosines[row])) for row in order]

    def _check_dimension(self, dimension: int) -> None:
        if self.names and self.sums.shape[1] != dimension:
            held = self.sums.shape[1]
            raise UserError(f"the gallery holds embeddings of {held} numbers, the model makes {dimension}: enrol again")


def identify(
    speakers: Gallery, recordings: Sequence[str], embeddings: Float[np.ndarray, "N D"], threshold: float, show: int
) -> list[dict]:
    """Identifies recordings by their embeddings [D]: each one's speaker (or None) and the `show` most alike.

    It is the most alike speaker where the cosine reaches the threshold.
    """
    results = []
    for recording, embedding in zip(recordings, embeddings, strict=True):
        ranking = speakers.scores(embedding)
        name = ranking[0][0] if ranking and ranking[0][1] >= threshold else None
        shown = [{"name": other, "score": score} for other, score in ranking[:show]]
        results.append({"recording": recording, "speaker": name, "threshold": threshold, "ranking": shown})
    return results


def new(model: str) -> Gallery:
    """Makes a gallery without speakers."""
    return Gallery([], np.zeros((0, 0)), np.zeros(0, int), model)


def read(path: str | os.PathLike, model: str) -> Gallery:
    """Reads a gallery; UserError if it is none, or was made with a model of another fingerprint."""
    stamp = storage.stamp(path)
    arrays = read_npz(path, "a gallery")
    if wrong := _fault_of(arrays):
        raise UserError(f"{path} is not a gallery ({wrong}): make one with `sdpn enrol`")
    if str(arrays["model"]) != model:
        raise UserError(f"{path} was made with another model: embeddings of two models cannot be compared; enrol again")
    return Gallery(arrays["names"].tolist(), arrays["sums"], arrays["counts"], model, stamp)


def _fault_of(arrays: dict[str, np.ndarray]) -> str | None:
    """Says what is wrong with the arrays of a gallery; None where nothing is."""
    if {*arrays} != {"names", "sums", "counts", "model"}:
        return "wanted are names, sums, counts and model"
    names, sums, counts = arrays["names"], arrays["sums"], arrays["counts"]
    if names.dtype.kind != "U" or names.ndim != 1 or arrays["model"].dtype.kind != "U" or arrays["model"].ndim:
        return "names or model are no texts"
    if not all(map(is_name, names.tolist())) or len({*names.tolist()}) < len(names):
        return "a name that is there twice, is empty, or holds control characters"
    if sums.dtype != np.float64 or sums.ndim != 2 or counts.dtype.kind != "i" or counts.ndim != 1:
        return "sums or counts are of another type or shape"
    if not len(names) == len(sums) == len(counts):
        return f"{len(names)} names, {len(sums)} sums and {len(counts)} counts"
    if not ((counts >= 1) & (counts <= MOST_RECORDINGS)).all():
        return "a count below 1, or too high"
    if not (np.abs(sums) <= 1.001 * counts[:, None]).all():  # NaN is not, either
        return "a sum that the recordings cannot have"
    return None


def composed(name: str) -> str:
    """Writes a name in the one form of Unicode that galleries keep (NFC): macOS takes letters and accents apart."""
    return unicodedata.normalize("NFC", name)


def is_name(name: str) -> bool:
    """Tells whether a text may be a speaker's name: not an empty one, nor control characters or halves of any."""
    return bool(name.strip()) and not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)


def write(path: str | os.PathLike, gallery: Gallery) -> None:
    """Writes a gallery, complete or not at all.

    Raises UserError when the file is no longer the one that the gallery was read from: another speaker would be lost.
    """
    path = storage.place(path)
    storage.make_folder(path.parent)
    names, model = np.asarray(gallery.names, str), np.asarray(gallery.model)
    with _alone_in(path.parent):
        if storage.stamp(path) != gallery.stamp:
            raise UserError(f"{path} was changed by another command meanwhile: run this one again")
        storage.write_npz(path, names=names, sums=gallery.sums, counts=gallery.counts, model=model)
        gallery.stamp = storage.stamp(path)


@contextlib.contextmanager
def _alone_in(folder: storage.Place) -> Iterator[None]:
    """Waits until no other process of this machine writes a gallery there; buckets and some networks know no locks."""
    if not isinstance(folder, Path):
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
