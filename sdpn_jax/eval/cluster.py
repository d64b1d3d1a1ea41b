"""Speakers without labels: clusters of embeddings, and the pseudo-labels that they give.

Of cosines, a cluster's sum of embeddings of length 1 tells all: the mean cosine of two clusters' members is the product
of their means. Average linkage and silhouettes are therefore exact here, without the distances of all pairs.
"""

import json
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Float, Float32, Int, Shaped
from scipy import signal, sparse
from sklearn import metrics
from tqdm import tqdm

from sdpn_jax import storage
from sdpn_jax.errors import UserError
from sdpn_jax.eval import plots, scoring
from sdpn_jax.eval.kmeans import kmeans, member_sums, rivals
from sdpn_jax.eval.matching import known_of
from sdpn_jax.eval.text import quoted, read_text
from sdpn_jax.vectors import unit

METHODS = ("kmeans", "agglomerative", "kmeans+agglomerative")
FEW = 20_000  # utterances, beyond which k-means to many centroids comes first
MOST_CENTROIDS = 50_000
UTTERANCES_A_CENTROID = 8
SILHOUETTE_SAMPLE = 20_000
NUMBERS_TRIED = 20
TOLERANCE = 0.03  # of the highest silhouette: what makes no difference
BLOCK = 2**24  # cosines worked on at a time: 64 MiB
FILES = ("pseudo_labels.txt", "confidence.txt", "left_out.txt", "clusters.json", "map.png", "sizes.png")

Partition = Callable[[int], np.ndarray]  # a number of clusters -> each embedding's cluster [N]


class Crops(NamedTuple):
    """Embeddings of crops [C, D] of length 1, and the row of the utterance that each was cut from [C]."""

    units: np.ndarray
    rows: np.ndarray


def default_method(utterances: int) -> str:
    """Chooses k-means for up to FEW utterances; for more, k-means to many centroids and then average linkage."""
    return "kmeans" if utterances <= FEW else "kmeans+agglomerative"


def default_centroids(utterances: int, clusters: int = 2) -> int:
    """Chooses more centroids than speakers: one for eight utterances, or two for each of the clusters; at most 50,000.

    There are never fewer than the clusters.
    """
    wanted = max(utterances // UTTERANCES_A_CENTROID, 2 * clusters)
    return min(utterances, max(clusters, min(wanted, MOST_CENTROIDS)))


def cluster(
    embeddings: Float[np.ndarray, "N D"], method: str, clusters: int, seed: int = 0, centroids: int | None = None
) -> Int[np.ndarray, " N"]:
    """Clusters embeddings; returns each one's cluster, from 0, the largest cluster first.

    method: "kmeans" on the embeddings of length 1, "agglomerative", average linkage of cosine distances, or
    "kmeans+agglomerative", average linkage that begins with the clusters of k-means, `centroids` of them (default:
    `default_centroids`). Raises UserError for a number of clusters or centroids that the embeddings do not admit.
    """
    _check_number("clusters", clusters, len(embeddings), "the number of embeddings")
    return partition(_units(embeddings), method, seed, centroids, at_least=clusters)(clusters)


def partition(
    units: Float32[np.ndarray, "N D"], method: str, seed: int = 0, centroids: int | None = None, at_least: int = 2
) -> Partition:
    """Prepares clustering by a method of `cluster`; a tree is built once and then cut at any number of clusters."""
    if method == "kmeans":
        return lambda clusters: largest_first(kmeans(units, clusters, seed)[0])
    start = np.arange(len(units))
    if method == "kmeans+agglomerative":
        centroids = centroids or default_centroids(len(units), at_least)
        _check_number("centroids", centroids, len(units), "the number of embeddings")
        if at_least > centroids:
            raise UserError(f"--clusters={at_least} cannot be merged from --centroids={centroids}: give more centroids")
        start = largest_first(kmeans(units, centroids, seed)[0])
    sizes = np.bincount(start)
    pairs, _ = average_linkage(member_sums(units, start, len(sizes)) / sizes[:, None], sizes)
    return lambda clusters: largest_first(cut(pairs, clusters)[start])


def largest_first(labels: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """Numbers clusters anew: from 0, without gaps, the largest first, of equal ones the one met first."""
    _, first, labels, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), int)
    rank[np.lexsort((first, -sizes))] = np.arange(len(sizes))
    return rank[labels]


def average_linkage(
    means: Float[np.ndarray, "K D"], sizes: Int[np.ndarray, " K"]
) -> tuple[Int[np.ndarray, "K-1 2"], Float[np.ndarray, " K-1"]]:
    """Merges clusters of embeddings of length 1 by their members' mean cosine, until one is left (UPGMA).

    means: of each cluster's members, not of length 1; sizes: their number. Returns the mergers, the most similar first,
    each as a member of either side (of the clusters 0 to K-1), and the mean cosines.

    All pairs that are each other's nearest are merged at once: a merger comes no closer to a third cluster than its
    sides were, so that the order does not matter (Bruynooghe, 1978). Memory is that of `means`, and the time about
    that of 2.5 K^2 products.
    """
    means, sizes = means.astype(np.float32), sizes.astype(np.float64)
    nearest, similarity = np.zeros(len(means), int), np.zeros(len(means), np.float32)
    alive = outdated = np.arange(len(means))
    pairs, similarities = [], []
    with tqdm(total=len(means) - 1, unit="merger", desc="linkage", delay=5, mininterval=1) as progress:
        while len(alive) > 1:
            nearest[outdated], similarity[outdated] = _nearest_alive(means, outdated, alive)
            a = alive[(nearest[nearest[alive]] == alive) & (alive < nearest[alive])]
            if not len(a):  # equal similarities, rounded apart, may point round in a circle
                a = alive[[similarity[alive].argmax()]]
            b = nearest[a]
            pairs.append(np.stack([a, b], axis=1))
            similarities.append(similarity[a])
            share = (sizes[b] / (sizes[a] + sizes[b]))[:, None].astype(np.float32)
            means[a] += share * (means[b] - means[a])
            sizes[a] += sizes[b]
            merged = np.zeros(len(means), bool)
            merged[a] = merged[b] = True
            alive = np.setdiff1d(alive, b, assume_unique=True)
            outdated = alive[merged[alive] | merged[nearest[alive]]]
            progress.update(len(a))
    similarities = np.concatenate([*similarities, np.zeros(0, np.float32)])
    order = np.argsort(-similarities, kind="stable")
    return np.concatenate([*pairs, np.zeros((0, 2), int)])[order], similarities[order]


def _nearest_alive(means: np.ndarray, rows: np.ndarray, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of the rows the other cluster alive with the highest product, the first of several, and that product."""
    nearest, similarity = np.empty(len(rows), int), np.empty(len(rows), np.float32)
    candidates, step = means[alive], max(1, BLOCK // len(alive))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        products = means[part] @ candidates.T
        products[np.arange(len(part)), np.searchsorted(alive, part)] = -np.inf
        highest = products.argmax(axis=1)
        nearest[start : start + step] = alive[highest]
        similarity[start : start + step] = products[np.arange(len(part)), highest]
    return nearest, similarity


def cut(pairs: Int[np.ndarray, "K-1 2"], clusters: int) -> Int[np.ndarray, " K"]:
    """Takes the first mergers of `average_linkage`, until so many clusters are left; returns each one's cluster [K]."""
    count = len(pairs) + 1
    taken = pairs[: max(0, count - clusters)]
    graph = sparse.csr_array((np.ones(len(taken)), (taken[:, 0], taken[:, 1])), (count, count))
    return sparse.csgraph.connected_components(graph, directed=False)[1]


def silhouettes(
    units: Float32[np.ndarray, "N D"], labels: Int[np.ndarray, " N"], rows: Int[np.ndarray, " R"] | None = None
) -> Float[np.ndarray, " R"]:
    """Computes the silhouette coefficients (Rousseeuw, 1987) by cosine distance, of all embeddings or of some rows.

    labels: clusters from 0 without gaps, two or more. With a, the mean distance to the others of its cluster, and b, to
    the members of the nearest other cluster, it is (b - a) / max(a, b), in [-1, 1]; 0 for a cluster of one.
    """
    sizes = np.bincount(labels)
    chosen = np.arange(len(units)) if rows is None else rows
    ours = units if rows is None else units[rows]
    means = member_sums(units, labels, len(sizes)) / sizes[:, None].astype(np.float32)
    within, among = _leaving_out(ours, ours, labels[chosen], means, sizes)
    distance, other = 1 - within, 1 - among
    with np.errstate(invalid="ignore"):
        coefficients = (other - distance) / np.maximum(np.maximum(distance, other), 1e-12)
    return np.where(sizes[labels[chosen]] > 1, coefficients, 0)


def _leaving_out(
    queries: np.ndarray, left_out: np.ndarray, labels: np.ndarray, means: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean cosines of queries [R, D] with their cluster, of which one member [R, D] is left out, and the nearest other.

    labels: the queries' clusters [R]; means [K, D] and sizes [K] of the clusters' members.
    """
    own, _, other = rivals(queries, labels, means)
    size = sizes[labels]
    itself = np.einsum("rd,rd->r", queries, left_out)
    return (own * size - itself) / np.maximum(size - 1, 1), other


def silhouette(units: Float32[np.ndarray, "N D"], labels: Int[np.ndarray, " N"], seed: int = 0) -> float:
    """Computes the mean silhouette coefficient, of 20,000 embeddings if there are more; NaN where it means nothing."""
    if not 2 <= labels.max() + 1 < len(labels):
        return float("nan")
    rows = None
    if len(labels) > SILHOUETTE_SAMPLE:
        rows = np.sort(np.random.default_rng(seed).choice(len(labels), SILHOUETTE_SAMPLE, replace=False))
    return float(silhouettes(units, labels, rows).mean())


def retrieval(units: Float32[np.ndarray, "N D"], labels: Int[np.ndarray, " N"], crops: Crops) -> float:
    """Computes how well crops find the cluster of the utterance that they were cut from: their share, above chance.

    A crop finds its utterance's cluster when its mean cosine with the others of the cluster, without that utterance, is
    higher than with every other cluster. The share p becomes (p - c) / (1 - c), as kappa (Cohen, 1960), c being what
    clusters drawn by their sizes would reach.
    """
    sizes = np.bincount(labels)
    means = member_sums(units, labels, len(sizes)) / sizes[:, None].astype(np.float32)
    theirs = labels[crops.rows]
    own, other = _leaving_out(crops.units, units[crops.rows], theirs, means, sizes)
    share = np.mean((own > other) & (sizes[theirs] > 1))
    chance = np.sum((sizes / len(labels)) ** 2)
    return float((share - chance) / (1 - chance)) if len(sizes) > 1 else float("nan")


def choose_number(silhouettes: Mapping[int, float]) -> int:
    """Chooses of the numbers of clusters tried the largest at which the silhouette has a peak.

    Coarser groups, the sexes above all, have peaks of their own, at fewer clusters and often higher ones. A peak must
    stand out by TOLERANCE of the highest silhouette from the valleys around it (its prominence), and a larger number
    within TOLERANCE of it is preferred: two clusters of one speaker cost a learner less than two speakers in one.
    """
    numbers = np.array(sorted(number for number, value in silhouettes.items() if not np.isnan(value)))
    if not len(numbers):
        return min(silhouettes)
    values = np.array([silhouettes[number] for number in numbers])
    least = TOLERANCE * np.abs(values).max()
    peaks, _ = signal.find_peaks([-np.inf, *values, -np.inf], prominence=least)
    return int(numbers[values >= values[peaks[-1] - 1] - least].max())


def contingency(labels: Shaped[np.ndarray, " N"], speakers: Shaped[np.ndarray, " N"]) -> sparse.csr_array:
    """Counts each speaker's utterances in each cluster, sparse [speakers, clusters]."""
    return sparse.csr_array(metrics.cluster.contingency_matrix(speakers, labels, sparse=True))


def purity(labels: Shaped[np.ndarray, " N"], speakers: Shaped[np.ndarray, " N"]) -> float:
    """Computes the share of utterances whose cluster's most frequent speaker is theirs."""
    return float(contingency(labels, speakers).max(axis=0).sum() / len(labels))


def b_cubed(labels: Shaped[np.ndarray, " N"], speakers: Shaped[np.ndarray, " N"]) -> tuple[float, float, float]:
    """Computes B-cubed precision, recall and their harmonic mean F (Bagga and Baldwin, 1998).

    Precision is the share of an utterance's cluster, itself included, that is of its speaker, recall the share of its
    speaker's utterances that are in its cluster, both averaged over utterances.
    """
    counts = contingency(labels, speakers).astype(np.float64)
    squares = counts.multiply(counts)
    precision = float((squares.sum(axis=0) / counts.sum(axis=0)).sum() / len(labels))
    recall = float((squares.sum(axis=1) / counts.sum(axis=1)).sum() / len(labels))
    return precision, recall, 2 * precision * recall / (precision + recall)


def agreement(labels: Shaped[np.ndarray, " N"], speakers: Shaped[np.ndarray, " N"]) -> dict[str, float]:
    """Compares clusters with true speakers: normalised mutual information, adjusted Rand index, purity, B-cubed."""
    precision, recall, f = b_cubed(labels, speakers)
    return {
        "speakers": len(np.unique(speakers)),
        "nmi": float(metrics.normalized_mutual_info_score(speakers, labels)),
        "adjusted_rand": float(metrics.adjusted_rand_score(speakers, labels)),
        "purity": purity(labels, speakers),
        "b_cubed_precision": precision,
        "b_cubed_recall": recall,
        "b_cubed_f": f,
    }


def read_speakers(path: str | os.PathLike, ids: list[str]) -> np.ndarray:
    """Reads each id's speaker [N] from `utterance speaker` lines; UserError if one is missing or has two."""
    speaker_of: dict[str, str] = {}
    for number, line in enumerate(read_text(path, "list of speakers", "surrogateescape").split("\n"), 1):
        fields = line.strip().rsplit(maxsplit=1)  # an utterance may have blanks in its name
        if fields and len(fields) != 2:
            raise UserError(f"{path}, line {number}: wanted is 'utterance speaker', not {quoted(line.strip())}")
        if fields and speaker_of.setdefault(*fields) != fields[1]:
            raise UserError(f"{path}, line {number}: {quoted(fields[0])} has another speaker before: leave one of them")
    speakers, faults = known_of(ids, speaker_of)
    if faults:
        name = next(iter(faults))
        raise UserError(
            f"{path}: the speaker of {len(faults):,} of {len(ids):,} utterances is unclear, first: {quoted(name)}"
        )
    return np.asarray(speakers)


def read_crops(path: str | os.PathLike, ids: list[str], dimension: int) -> Crops:
    """Reads embeddings of crops, whose ids are `utterance#anything`; UserError for those of unknown utterances."""
    embeddings, names = scoring.load_embeddings(path)
    if embeddings.shape[1] != dimension:
        raise UserError(f"{path}: crops of {embeddings.shape[1]} dimensions, utterances of {dimension}: use one model")
    row_of = {name: row for row, name in enumerate(ids)}
    utterances = [name.rpartition("#")[0] for name in names]
    unknown = [name for name, utterance in zip(names, utterances, strict=True) if utterance not in row_of]
    if unknown:
        raise UserError(
            f"{path}: {len(unknown):,} of {len(names):,} crops are of no known utterance, first: {quoted(unknown[0])}; "
            "an id must be that of an utterance and, after '#', which crop of it"
        )
    scoring.check_finite(embeddings, names, path)
    return Crops(_units(embeddings), np.array([row_of[name] for name in utterances]))


def cluster_file(
    embeddings_path: str | os.PathLike,
    output: str | os.PathLike,
    clusters: int | None = None,
    method: str | None = None,
    speakers_path: str | os.PathLike | None = None,
    projection: str = "pca",
    seed: int = 0,
    centroids: int | None = None,
    smallest: int = 2,
    crops_path: str | os.PathLike | None = None,
) -> dict:
    """Clusters the embeddings of a file, writes into the folder `output`, and returns what clusters.json holds.

    method: None for that of `default_method`; clusters: None for the number that `choose_number` chooses. Clusters of
    fewer than `smallest` utterances get no pseudo-labels.
    """
    embeddings, ids = scoring.load_embeddings(embeddings_path)
    if len(embeddings) < 3:
        raise UserError(f"{embeddings_path}: {len(embeddings)} embeddings are too few for clusters")
    scoring.check_finite(embeddings, ids, embeddings_path)
    if odd := [name for name in ids if name != name.strip() or len(name.splitlines()) != 1]:
        raise UserError(f"{embeddings_path}: the id {quoted(odd[0])} cannot stand in a line of pseudo-labels")
    method = method or default_method(len(embeddings))
    if centroids and method != "kmeans+agglomerative":
        raise UserError(f"--centroids={centroids} is of --method=kmeans+agglomerative, not of {method}: leave it out")
    if clusters is not None:
        _check_number("clusters", clusters, len(embeddings), "the number of embeddings")
    speakers = read_speakers(speakers_path, ids) if speakers_path else None
    crops = read_crops(crops_path, ids, embeddings.shape[1]) if crops_path else None
    units = _units(embeddings)
    clusters_of = partition(units, method, seed, centroids, clusters or 2)
    if clusters is None:
        most = len(units) // 2 if method != "kmeans+agglomerative" else centroids or default_centroids(len(units))
        numbers = _numbers_to_try(min(most, MOST_CENTROIDS))
    else:
        numbers = [clusters]
    tried = {number: _try(units, clusters_of(number), crops, seed) for number in numbers}
    number = choose_number({number: found.silhouette for number, found in tried.items()})
    labels = tried[number].labels
    sizes = np.bincount(labels)
    kept = sizes >= smallest
    if not kept.any():
        raise UserError(f"--smallest={smallest}: the largest cluster has {sizes.max():,} utterances: choose fewer")
    chosen = kept[labels]
    results = {
        "embeddings": str(embeddings_path),
        "method": method,
        "clusters": int(kept.sum()),
        "largest": int(sizes.max()),
        "smallest": int(sizes[kept].min()),
        "left_out": int(np.sum(~chosen)),
        "silhouette": _finite(tried[number].silhouette),
        "tried": None if clusters else {number: _finite(found.silhouette) for number, found in tried.items()},
    }
    retrievals = {number: found.retrieval for number, found in tried.items() if found.retrieval is not None}
    if retrievals:
        results |= {"retrieval": retrievals[number], "tried_retrieval": None if clusters else retrievals}
    results |= agreement(labels, speakers) if speakers is not None else {}
    confidence = silhouettes(units, labels) if len(sizes) > 1 else np.zeros(len(labels))
    with storage.output_folder(output) as folder:
        _write_lines(folder / "pseudo_labels.txt", ids, labels, chosen)
        _write_lines(folder / "confidence.txt", ids, [f"{value:.4f}" for value in confidence.tolist()], chosen)
        _write_lines(folder / "left_out.txt", ids, labels, ~chosen)
        storage.write_text(folder / "clusters.json", json.dumps(results, indent=2) + "\n")
        plots.plot_map(embeddings, labels, folder / "map.png", projection, seed, "cluster")
        plots.plot_sizes(sizes, folder / "sizes.png")
        storage.remove(folder / "numbers.png")  # of an earlier search
        if results["tried"]:
            plots.plot_numbers(
                {k: v for k, v in results["tried"].items() if v is not None}, number, folder / "numbers.png", retrievals
            )
    return results


def files_of(results: Mapping) -> list[str]:
    """Names the files that `cluster_file` has written."""
    return [*FILES, *(["numbers.png"] if results["tried"] else [])]


def summary(results: Mapping) -> str:
    """Summarises the content of clusters.json, one line per item."""
    names = "clusters largest smallest left_out silhouette retrieval speakers nmi adjusted_rand purity"
    lines = []
    for name in [*names.split(), "b_cubed_precision", "b_cubed_recall", "b_cubed_f"]:
        if results.get(name) is not None:
            value = results[name]
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
            lines.append(f"{name.replace('_', ' '):<18} {shown}")
    return "\n".join(lines)


def _finite(value: float) -> float | None:
    """What JSON can hold of a number that may mean nothing."""
    return None if np.isnan(value) else value


class _Tried(NamedTuple):
    labels: np.ndarray
    silhouette: float
    retrieval: float | None  # where there are crops


def _try(units: np.ndarray, labels: np.ndarray, crops: Crops | None, seed: int) -> _Tried:
    found = _Tried(labels, silhouette(units, labels, seed), retrieval(units, labels, crops) if crops else None)
    logging.info("%d clusters: silhouette %.3f", labels.max() + 1, found.silhouette)
    return found


def _numbers_to_try(highest: int) -> list[int]:
    return np.unique(np.geomspace(2, max(2, highest), NUMBERS_TRIED).round().astype(int)).tolist()


def _units(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings scaled to length 1, float32; in parts, since there may be gigabytes of them."""
    units = np.empty(embeddings.shape, np.float32)
    for start in range(0, len(units), FEW):
        units[start : start + FEW] = unit(embeddings[start : start + FEW])
    return units


def _check_number(name: str, number: int, most: int, what: str) -> None:
    if not 2 <= number <= most:
        raise UserError(f"--{name}={number}: choose 2 to {most:,}, {what}")


def _write_lines(path: os.PathLike, ids: list[str], values, chosen: np.ndarray) -> None:
    """Lines `utterance value` of the chosen utterances."""
    lines = (f"{name} {value}\n" for name, value, wanted in zip(ids, values, chosen, strict=True) if wanted)
    storage.write_text(path, "".join(lines))
