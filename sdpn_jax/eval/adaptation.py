"""Embeddings brought to a domain by its unlabelled recordings: mean subtraction and shrunken whitening."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Float64, Int

from sdpn_jax.errors import UserError
from sdpn_jax.eval.metrics import crop_retrieval
from sdpn_jax.vectors import unit

Affine: TypeAlias = tuple[Float64[np.ndarray, " D"], Float64[np.ndarray, "D D"]]  # mean, transform

SHRINKAGES = (1.0, 0.9, 0.8, 0.7, 0.5, 0.3, 0.2, 0.1)
FEWEST = 8  # recordings: half of them fit, half of them judge
HALVES = 10  # divisions of the recordings


def whitening(embeddings: Float[np.ndarray, "N D"], shrinkage: float) -> Affine:
    """Fits mean and transform, for (x - mean) @ transform of embeddings x of unit length.

    The transform is c^1/2 ((1 - s) S + s c I)^-1/2 with S the covariance of the embeddings, of unit length, c the mean
    of its diagonal and s the shrinkage, in (0, 1] (Ledoit and Wolf, "A well-conditioned estimator for large-dimensional
    covariance matrices", 2004). s = 1 subtracts the mean alone; the less, the more the directions in which the domain
    varies most count less.
    """
    return whitenings(embeddings, [shrinkage])[0]


def whitenings(embeddings: Float[np.ndarray, "N D"], shrinkages: Sequence[float]) -> list[Affine]:
    """Fits `whitening` with each shrinkage, from one decomposition of the covariance."""
    units = unit(np.asarray(embeddings, np.float64))
    mean = units.mean(0)
    covariance = (units - mean).T @ (units - mean) / len(units)
    scale = np.trace(covariance) / len(covariance)
    values, vectors = np.linalg.eigh(covariance)
    shrunken = [(1 - shrinkage) * np.maximum(values, 0) + shrinkage * scale for shrinkage in shrinkages]
    return [(mean, (vectors * np.sqrt(scale / np.maximum(each, 1e-12))) @ vectors.T) for each in shrunken]


def adapted(embeddings: Float[np.ndarray, "N D"], affine: Affine) -> Float64[np.ndarray, "N D"]:
    """Applies `whitening` to embeddings of any length."""
    mean, transform = affine
    return (unit(np.asarray(embeddings, np.float64)) - mean) @ transform


def crop_rates(
    embeddings: Float[np.ndarray, "N D"],
    crops: Float[np.ndarray, "M D"],
    recordings: Int[np.ndarray, " M"],
    shrinkages: Sequence[float] = SHRINKAGES,
) -> Float64[np.ndarray, "halves candidates"]:
    """Measures how well crops find their recording, EER in %: without adaptation, then with each shrinkage.

    embeddings: of whole recordings; recordings: the row that each crop is from. For each of HALVES random divisions,
    half of the recordings fit and the crops of the others judge. Raises UserError for fewer than FEWEST recordings with
    two crops or more.
    """
    counts = np.bincount(recordings, minlength=len(embeddings))
    usable = np.flatnonzero(counts > 1)
    if len(usable) < FEWEST:
        raise UserError(
            f"{len(usable)} recordings are long enough for two crops, too few to adapt with: give {FEWEST} or more, or "
            "shorter crops"
        )
    rng, rates = np.random.default_rng(0), []
    for _ in range(HALVES):
        order = rng.permutation(usable)
        fitting, judging = np.split(order, [len(order) // 2])
        chosen = np.isin(recordings, judging)
        fits = whitenings(embeddings[fitting], shrinkages)
        ways = [crops[chosen], *(adapted(crops[chosen], affine) for affine in fits)]
        rates.append([crop_retrieval(way, recordings[chosen])["crop_eer_percent"] for way in ways])
    return np.asarray(rates)


def choose(rates: Float[np.ndarray, "halves candidates"]) -> int:
    """Chooses the candidate, in the order from none on, that is as good as the best one.

    Of all whose difference from the best is within its standard error over the halves it is the first: the one that
    changes least.
    """
    best = int(np.argmin(rates.mean(0)))
    worse = rates - rates[:, [best]]
    return int(np.argmax(worse.mean(0) <= worse.std(0) / np.sqrt(len(rates))))
