"""Embeddings and their cosine scores: reading, scoring the trials of a list, error rates."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging
from jaxtyping import Float, Float32, Float64, Int, Real, Shaped

from sdpn_jax import storage
from sdpn_jax.arrays import read_npy, read_npz
from sdpn_jax.errors import UserError
from sdpn_jax.eval import metrics
from sdpn_jax.eval.text import quoted, read_text
from sdpn_jax.eval.trials import Trials, trial_rows

WHAT = "a NumPy file of embeddings"


def check_finite(embeddings: Float32[np.ndarray, "N D"], ids: Sequence[str], path: str | os.PathLike) -> None:
    """Raises UserError, which names the first, for embeddings of NaN or infinity."""
    faulty = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(faulty):
        raise UserError(
            f"{path}: {len(faulty):,} of {len(ids):,} embeddings hold NaN or infinity, "
            f"first: {quoted(ids[faulty[0]])}; export them from a checkpoint whose loss was finite"
        )


def load_embeddings(path: str | os.PathLike) -> tuple[Float32[np.ndarray, "N D"], list[str]]:
    """Reads embeddings float32 [N, D] and their N ids.

    `path` is an .npz with the arrays `embeddings` and `ids`, or a folder with embeddings.npy and ids.txt (one a line).
    Raises UserError when something is missing, unreadable, or does not fit together.
    """
    path = storage.place(path)
    if storage.is_folder(path):
        embeddings = read_npy(path / "embeddings.npy", WHAT)
        ids = read_text(path / "ids.txt", "list of ids", "surrogateescape").split("\n")
        ids = [name.rstrip("\r") for name in (ids if ids[-1] else ids[:-1])]
    else:
        found = read_npz(path, WHAT)
        embeddings, ids = (_member(found, path, key) for key in ("embeddings", "ids"))
        if ids.ndim != 1 or ids.dtype.kind not in "US":
            raise UserError(f"{path}: 'ids' must be one row of strings, not {ids.dtype} {list(ids.shape)}")
        try:
            ids = [str(name) for name in (np.char.decode(ids, "utf-8") if ids.dtype.kind == "S" else ids)]
        except ValueError:
            raise UserError(f"{path}: 'ids' are not text in Unicode; embed the recordings again") from None
    if embeddings.ndim != 2 or embeddings.dtype.kind != "f" or 0 in embeddings.shape:
        raise UserError(
            f"{path}: embeddings must be floating-point numbers [utterances, dimension], "
            f"not {embeddings.dtype} {list(embeddings.shape)}"
        )
    if len(ids) != len(embeddings):
        raise UserError(f"{path}: {len(embeddings):,} embeddings but {len(ids):,} ids; export them again")
    if len(set(ids)) != len(ids):
        name, count = Counter(ids).most_common(1)[0]
        raise UserError(f"{path}: the id {quoted(name)} occurs {count} times; every embedding needs its own")
    return embeddings.astype(np.float32, copy=False), ids


def load_seconds(path: str | os.PathLike, count: int | None = None) -> Real[np.ndarray, " N"] | None:
    """Reads the lengths in seconds of the utterances of `load_embeddings`; None if they are missing.

    Raises UserError when they are not `count` finite numbers (None: any number of them).
    """
    seconds = _seconds(storage.place(path))
    if seconds is None:
        return None
    if seconds.ndim != 1 or seconds.dtype.kind not in "fiu" or (count is not None and len(seconds) != count):
        wanted = "one number for each id" if count is None else f"{count:,} numbers, one for each id"
        raise UserError(f"{path}: 'seconds' must be {wanted}, not {seconds.dtype} {list(seconds.shape)}")
    if not np.all(np.isfinite(seconds)):
        raise UserError(f"{path}: 'seconds' holds NaN or infinity; embed the recordings again")
    return seconds


def cosine_scores(
    embeddings: Float[np.ndarray, "N D"],
    enrol_rows: Int[np.ndarray, " trials"],
    test_rows: Int[np.ndarray, " trials"],
    block: int = 1024,
) -> Float64[np.ndarray, " trials"]:
    """Computes the cosine of each trial's two embeddings in float64, in [-1, 1].

    embeddings: [N, D]. enrol_rows, test_rows: int [trials]. An embedding of zeros scores 0. `block` trials are worked
    on at a time, which bounds the memory to a few block * D float64.
    """
    scores = np.empty(len(enrol_rows))
    for start in range(0, len(scores), block):
        enrol = embeddings[enrol_rows[start : start + block]].astype(np.float64)
        test = embeddings[test_rows[start : start + block]].astype(np.float64)
        norms = np.sqrt(_dots(enrol, enrol) * _dots(test, test))
        np.divide(_dots(enrol, test), norms, out=scores[start : start + block], where=norms != 0)
        scores[start : start + block][norms == 0] = 0.0
    return scores


def score_trials(
    embeddings: Float[np.ndarray, "N D"], ids: Sequence[str], trials: Trials
) -> Float64[np.ndarray, " trials"]:
    """Scores each trial by cosine; UserError for unknown utterances and embeddings that are not finite."""
    return score_rows(embeddings, ids, *trial_rows(ids, trials))


def score_rows(
    embeddings: Float[np.ndarray, "N D"],
    ids: Sequence[str],
    enrol_rows: Int[np.ndarray, " trials"],
    test_rows: Int[np.ndarray, " trials"],
) -> Float64[np.ndarray, " trials"]:
    """As score_trials, for trials given by the rows of their two sides."""
    used = np.union1d(enrol_rows, test_rows)
    infinite = used[~np.isfinite(embeddings[used]).all(axis=1)]
    if len(infinite):
        raise UserError(
            f"{len(infinite):,} of {len(used):,} embeddings hold NaN or infinity, first: {quoted(ids[infinite[0]])}; "
            "export them from a checkpoint whose loss was finite"
        )
    zero = used[~embeddings[used].any(axis=1)]
    if len(zero):
        message = "%d of %d embeddings are all zeros, first: %s; their trials score 0"
        logging.warning(message, len(zero), len(used), quoted(ids[zero[0]]))
    return cosine_scores(embeddings, enrol_rows, test_rows)


def summarize(scores: Float[np.ndarray, " N"], labels: Shaped[np.ndarray, " N"]) -> dict[str, float | int]:
    """Computes error rates and counts of scored trials, with costs of 1. Errors as in `det_points`."""
    rate, threshold = metrics.eer_and_threshold(scores, labels)
    return {
        "eer_percent": 100 * rate,
        "min_dcf_0.01": metrics.min_dcf(scores, labels, p_target=0.01),
        "min_dcf_0.05": metrics.min_dcf(scores, labels, p_target=0.05),
        "threshold_at_eer": threshold,
        "trials": len(labels),
        "targets": int(np.sum(labels)),
    }


def evaluate(embeddings: Float[np.ndarray, "N D"], ids: Sequence[str], trials: Trials) -> dict[str, float | int]:
    """Scores the trials and computes their error rates.

    embeddings: [N, D] with their N ids. Returns eer_percent, min_dcf_0.01, min_dcf_0.05, threshold_at_eer (a cosine),
    trials and targets (counts). Errors as in `score_trials` and `det_points`.
    """
    labels = trials.known_labels()
    return summarize(score_trials(embeddings, ids, trials), labels)


def _seconds(path: storage.Place) -> np.ndarray | None:
    if storage.is_folder(path):
        return read_npy(path / "seconds.npy", WHAT) if storage.exists(path / "seconds.npy") else None
    return read_npz(path, WHAT).get("seconds")


def _member(found: Mapping[str, np.ndarray], path: storage.Place, key: str) -> np.ndarray:
    if key not in found:
        names = ", ".join(quoted(name) for name in found) or "nothing"
        raise UserError(f"{path}: no array {key!r} (it holds {names}); wanted are 'embeddings' and 'ids' in one .npz")
    return found[key]


def _dots(a: Float[np.ndarray, "trials D"], b: Float[np.ndarray, "trials D"]) -> Float[np.ndarray, " trials"]:
    return np.einsum("td,td->t", a, b)
