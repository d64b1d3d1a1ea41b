"""Named speakers in a small .npz file: who is enrolled, and who of them a recording sounds like."""

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int

from sdpn_jax import storage
from sdpn_jax.errors import UserError
from sdpn_jax.vectors import cosine, unit


@dataclass
class Gallery:
    """names: N speakers; sums: float64 [N, D], of their recordings' embeddings of length 1; counts: int [N].

    model: the fingerprint of the encoder that made them.
    """

    names: list[str]
    sums: Float64[np.ndarray, "N D"]
    counts: Int[np.ndarray, " N"]
    model: str

    def enrol(self, name: str, embeddings: Float[np.ndarray, "M D"]) -> None:
        """Adds recordings [M, D] of a speaker, who may be there already."""
        units = unit(embeddings)
        if name not in self.names:
            self.names.append(name)
            self.sums = np.concatenate([self.sums.reshape(-1, units.shape[1]), np.zeros((1, units.shape[1]))])
            self.counts = np.append(self.counts, 0)
        row = self.names.index(name)
        self.sums[row] += units.sum(0)
        self.counts[row] += len(units)

    def scores(self, embedding: Float[np.ndarray, " D"]) -> list[tuple[str, float]]:
        """Ranks (name, cosine with the mean of the speaker's embeddings), the most alike first."""
        cosines = np.asarray(cosine(self.sums, embedding))
        order = np.argsort(-cosines, kind="stable")
        return [(self.names[row], float(cosines[row])) for row in order]


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
    try:
        with np.load(storage.local(path), allow_pickle=False) as archive:
            names, sums, counts, theirs = (archive[key] for key in ("names", "sums", "counts", "model"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the gallery ({error.strerror or 'not a NumPy file'})") from None
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise UserError(f"{path} is not a gallery: make one with `sdpn enrol`") from None
    if str(theirs) != model:
        raise UserError(f"{path} was made with another model: embeddings of two models cannot be compared; enrol again")
    return Gallery(names.tolist(), sums, counts, model)


def write(path: str | os.PathLike, gallery: Gallery) -> None:
    """Writes a gallery, complete or not at all."""
    path = storage.place(path)
    storage.make_folder(path.parent)
    names, model = np.asarray(gallery.names), np.asarray(gallery.model)
    storage.write_npz(path, names=names, sums=gallery.sums, counts=gallery.counts, model=model)
