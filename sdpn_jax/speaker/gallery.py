"""Named speakers in a small .npz file: who is enrolled, and who of them a recording sounds like."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdpn_jax import storage
from sdpn_jax.errors import UserError


@dataclass
class Gallery:
    """names: N speakers; sums: float64 [N, D], of their recordings' embeddings of length 1; counts: int [N].

    model: the fingerprint of the encoder that made them.
    """

    names: list[str]
    sums: np.ndarray
    counts: np.ndarray
    model: str

    def enrol(self, name: str, embeddings: np.ndarray) -> None:
        """Adds recordings [M, D] of a speaker, who may be there already."""
        units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        if name not in self.names:
            self.names.append(name)
            self.sums = np.concatenate([self.sums.reshape(-1, units.shape[1]), np.zeros((1, units.shape[1]))])
            self.counts = np.append(self.counts, 0)
        row = self.names.index(name)
        self.sums[row] += units.sum(0)
        self.counts[row] += len(units)

    def scores(self, embedding: np.ndarray) -> list[tuple[str, float]]:
        """(name, cosine with the mean of the speaker's embeddings), the most alike first."""
        norms = np.linalg.norm(self.sums, axis=1) * np.linalg.norm(embedding)
        cosines = self.sums @ embedding / np.maximum(norms, 1e-30)
        order = np.argsort(-cosines, kind="stable")
        return [(self.names[row], float(cosines[row])) for row in order]


def new(model: str) -> Gallery:
    """A gallery without speakers."""
    return Gallery([], np.zeros((0, 0)), np.zeros(0, int), model)


def read(path: str | Path, model: str) -> Gallery:
    """The gallery of a file; UserError when it is none, or was made with a model of another fingerprint."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            names, sums, counts, theirs = (archive[key] for key in ("names", "sums", "counts", "model"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the gallery ({error.strerror or 'not a NumPy file'})") from None
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise UserError(f"{path} is not a gallery: make one with python -m sdpn_jax.cli.enrol") from None
    if str(theirs) != model:
        raise UserError(f"{path} was made with another model: embeddings of two models cannot be compared; enrol again")
    return Gallery(names.tolist(), sums, counts, model)


def write(path: str | Path, gallery: Gallery) -> None:
    """Writes the gallery, complete or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    names, model = np.asarray(gallery.names), np.asarray(gallery.model)
    storage.write_npz(path, names=names, sums=gallery.sums, counts=gallery.counts, model=model)
