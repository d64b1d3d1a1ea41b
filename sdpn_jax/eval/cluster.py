"""Speakers without labels: clusters of embeddings, and the pseudo-labels that they give."""

import json
import os

import numpy as np
from absl import logging
from sklearn import cluster as algorithms
from sklearn import metrics

from sdpn_jax import storage
from sdpn_jax.errors import UserError
from sdpn_jax.eval import plots, scoring
from sdpn_jax.eval.matching import match_ids
from sdpn_jax.eval.text import quoted, read_text
from sdpn_jax.vectors import unit

AGGLOMERATIVE_LIMIT = 20_000  # utterances, whose distances take 3.2 GB
SILHOUETTE_SAMPLE = 10_000
NUMBERS_TRIED = 12
FILES = ("pseudo_labels.txt", "clusters.json", "map.png", "sizes.png")


def cluster(embeddings: np.ndarray, method: str, clusters: int, seed: int = 0) -> np.ndarray:
    """Clusters embeddings [N, D]; returns each one's cluster, int [N] from 0, the largest cluster first.

    method: "kmeans" on the embeddings of length 1 (mini-batches beyond 10,000), or "agglomerative", average linkage of
    cosine distances. Raises UserError for a number of clusters or of embeddings that the method cannot work with.
    """
    if not 2 <= clusters <= len(embeddings):
        raise UserError(f"--clusters={clusters}: choose 2 to {len(embeddings):,}, the number of embeddings")
    if method == "agglomerative":
        if len(embeddings) > AGGLOMERATIVE_LIMIT:
            raise UserError(
                f"--method=agglomerative needs the distances of all pairs, of {len(embeddings):,} embeddings "
                f"{4 * len(embeddings) ** 2 / 1e9:,.0f} GB or more: use --method=kmeans"
            )
        algorithm = algorithms.AgglomerativeClustering(clusters, metric="cosine", linkage="average")
    elif len(embeddings) > 10_000:
        batch = max(4096, 3 * clusters)
        algorithm = algorithms.MiniBatchKMeans(clusters, batch_size=batch, n_init=3, random_state=seed)  # pyright: ignore[reportArgumentType] # a count is fine
    else:
        algorithm = algorithms.KMeans(clusters, n_init=10, random_state=seed)  # pyright: ignore[reportArgumentType] # a count is fine
    labels = algorithm.fit_predict(unit(embeddings))
    _, labels, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), int)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    return rank[labels]


def silhouette(embeddings: np.ndarray, labels: np.ndarray, seed: int = 0) -> float:
    """Computes the mean silhouette coefficient by cosine distance (Rousseeuw, 1987), of a sample if there are many."""
    if not 2 <= len(np.unique(labels)) < len(labels):
        return float("nan")
    size = min(SILHOUETTE_SAMPLE, len(labels))
    try:
        return float(metrics.silhouette_score(embeddings, labels, metric="cosine", sample_size=size, random_state=seed))
    except ValueError:  # the sample may hold one cluster alone, or no two of any
        return float("nan")


def choose_number(embeddings: np.ndarray, method: str, seed: int = 0) -> tuple[np.ndarray, dict[int, float]]:
    """Tries 2 to N / 2 clusters; returns (clusters with the highest silhouette, {number tried: silhouette})."""
    highest = max(2, len(embeddings) // 2)
    tried, found = {}, {}
    for number in np.unique(np.geomspace(2, highest, NUMBERS_TRIED).round().astype(int)).tolist():
        tried[number] = cluster(embeddings, method, number, seed)
        found[number] = silhouette(embeddings, tried[number], seed)
        logging.info("%d clusters: silhouette %.3f", number, found[number])
    best = max(found, key=lambda number: -1 if np.isnan(found[number]) else found[number])
    return tried[best], found


def purity(labels: np.ndarray, speakers: np.ndarray) -> float:
    """Computes the share of utterances whose cluster's most frequent speaker is theirs."""
    return float(metrics.cluster.contingency_matrix(speakers, labels).max(axis=0).sum() / len(labels))


def agreement(labels: np.ndarray, speakers: np.ndarray) -> dict[str, float]:
    """Compares clusters [N] with true speakers [N]: normalised mutual information, adjusted Rand index, purity."""
    return {
        "speakers": len(np.unique(speakers)),
        "nmi": float(metrics.normalized_mutual_info_score(speakers, labels)),
        "adjusted_rand": float(metrics.adjusted_rand_score(speakers, labels)),
        "purity": purity(labels, speakers),
    }


def read_speakers(path: str | os.PathLike, ids: list[str]) -> np.ndarray:
    """Reads each id's speaker [N] from `utterance speaker` lines; UserError if one is missing."""
    speaker_of = {}
    for number, line in enumerate(read_text(path, "list of speakers").split("\n"), 1):
        fields = line.split()
        if fields and len(fields) != 2:
            raise UserError(f"{path}, line {number}: wanted is 'utterance speaker', not {quoted(line.strip())}")
        if fields:
            speaker_of[fields[0]] = fields[1]
    names = list(speaker_of)
    rows, faults = match_ids(names, ids)
    if faults:
        name = next(iter(faults))
        raise UserError(
            f"{path}: the speaker of {len(faults):,} of {len(ids):,} utterances is unclear, first: {quoted(name)}"
        )
    return np.asarray([speaker_of[names[rows[name]]] for name in ids])


def cluster_file(
    embeddings_path: str | os.PathLike,
    output: str | os.PathLike,
    clusters: int | None = None,
    method: str = "kmeans",
    speakers_path: str | os.PathLike | None = None,
    projection: str = "pca",
    seed: int = 0,
) -> dict:
    """Clusters the embeddings of a file, writes into the folder `output`, and returns what clusters.json holds."""
    embeddings, ids = scoring.load_embeddings(embeddings_path)
    if len(embeddings) < 3:
        raise UserError(f"{embeddings_path}: {len(embeddings)} embeddings are too few for clusters")
    speakers = read_speakers(speakers_path, ids) if speakers_path else None
    tried = None
    if clusters is None:
        labels, tried = choose_number(embeddings, method, seed)
    else:
        labels = cluster(embeddings, method, clusters, seed)
    sizes = np.bincount(labels)
    results = {
        "embeddings": str(embeddings_path),
        "method": method,
        "clusters": len(sizes),
        "largest": int(sizes.max()),
        "smallest": int(sizes.min()),
        "silhouette": tried[len(sizes)] if tried else silhouette(embeddings, labels, seed),
        "tried": tried,
    }
    results |= agreement(labels, speakers) if speakers is not None else {}
    with storage.output_folder(output) as folder:
        lines = "".join(f"{name} {label}\n" for name, label in zip(ids, labels.tolist(), strict=True))
        storage.write_text(folder / "pseudo_labels.txt", lines)
        storage.write_text(folder / "clusters.json", json.dumps(results, indent=2) + "\n")
        plots.plot_map(embeddings, labels, folder / "map.png", projection, seed, "cluster")
        plots.plot_sizes(sizes, folder / "sizes.png")
    return results


def summary(results: dict) -> str:
    """Summarises the content of clusters.json, one line per item."""
    lines = []
    for name in ("clusters", "largest", "smallest", "silhouette", "speakers", "nmi", "adjusted_rand", "purity"):
        if name in results:
            value = results[name]
            lines.append(
                f"{name.replace('_', ' '):<14} {value:,}" if isinstance(value, int) else f"{name:<14} {value:.3f}"
            )
    return "\n".join(lines)
