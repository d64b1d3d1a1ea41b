"""Windows of one speaker together: cosine clustering, with the number of speakers given or estimated.

Windows that lie next to each other share sound, which makes them alike whoever speaks: each is averaged with its
neighbours, and what a pair has in common counts only where it has no sound in common.
"""

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float, Float64, Int
from scipy.cluster import hierarchy

from sdpn_jax.diarization.windows import LENGTH, Windows
from sdpn_jax.vectors import unit

METHODS = ("spectral", "agglomerative")
MOST_ROWS = 1500  # clustered at once: time grows with their third power
MOST_SPEAKERS = 8  # estimated
FEWEST = 4  # windows that several speakers are looked for in
MOST_NEIGHBOURS = 0.25  # of all rows: the largest share that is tried
TRIED = 20  # numbers of neighbours
LEAST_SILHOUETTE = 0.05  # below it there is one speaker
ALIKE = 0.7  # of the mean cosine within two clusters: where it is as high between them, they are one speaker's
APART = LENGTH  # frames between windows whose cosine tells that


def cluster(
    embeddings: Float[np.ndarray, "N D"], windows: Windows, speakers: int | None, method: str
) -> Int[np.ndarray, " N"]:
    """Numbers the speakers of windows, from 0 by first appearance. speakers: how many, None: to be estimated.

    Of more than MOST_ROWS windows every second (third, ...) is clustered, and all take the nearest cluster's mean.
    """
    alone = unit(embeddings)
    units = smoothed(alone, windows.regions)
    rows = slice(None, None, -(-len(units) // MOST_ROWS))
    cosines = units[rows] @ units[rows].T
    near = overlapping(windows.starts[rows], windows.ends[rows])
    labels = (spectral if method == "spectral" else agglomerative)(cosines, near, speakers)
    if speakers is None:
        apart = ~overlapping(windows.starts[rows], windows.ends[rows] + APART)
        labels = merged(alone[rows] @ alone[rows].T, apart, labels)
    if len(labels) < len(units):
        labels = np.argmax(units @ means(units[rows], labels).T, axis=1)
    return by_appearance(labels)


def smoothed(units: Float[np.ndarray, "N D"], regions: Int[np.ndarray, " N"]) -> Float64[np.ndarray, "N D"]:
    """Averages the embedding of each window with those before and behind it in its region, to length 1."""
    total = units.copy()
    same = (regions[1:] == regions[:-1])[:, None]
    total[1:] += same * units[:-1]
    total[:-1] += same * units[1:]
    return unit(total)


def overlapping(starts: Int[np.ndarray, " N"], ends: Int[np.ndarray, " N"]) -> Bool[np.ndarray, "N N"]:
    """Tells which windows share frames, each with itself too."""
    return (starts[:, None] < ends) & (starts < ends[:, None])


def means(units: Float[np.ndarray, "N D"], labels: Int[np.ndarray, " N"]) -> Float64[np.ndarray, "K D"]:
    """Computes the direction of each cluster, [K, D] of length 1; a cluster without members is all zeros."""
    sums = np.zeros((labels.max() + 1, units.shape[1]))
    np.add.at(sums, labels, units)
    return unit(sums)


def merged(
    cosines: Float[np.ndarray, "N N"], apart: Bool[np.ndarray, "N N"], labels: Int[np.ndarray, " N"]
) -> Int[np.ndarray, " N"]:
    """Merges clusters that are ALIKE, the most alike first; only the cosines of windows that are `apart` count.

    One speaker, in whose graph the largest gap of eigenvalues means nothing, becomes one again.
    """
    labels = by_appearance(labels)
    members = (labels[:, None] == np.arange(labels.max() + 1)).astype(np.float64)
    counts, sums = members.T @ apart @ members, members.T @ np.where(apart, cosines, 0) @ members
    own = np.diag(sums) / np.maximum(np.diag(counts), 1)
    own = np.where(np.diag(counts) >= FEWEST, own, np.trace(sums) / max(np.trace(counts), 1))
    within = np.maximum((own[:, None] + own) / 2, 1e-3)
    alike = np.where(counts > 0, sums / np.maximum(counts, 1) / within, -np.inf)
    first, second = np.unravel_index(np.argmax(np.triu(alike + 10, 1)), alike.shape)
    if first == second or alike[first, second] < ALIKE:
        return labels
    return merged(cosines, apart, np.where(labels == second, first, labels))


def by_appearance(labels: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """Numbers clusters anew, in the order in which they first occur."""
    _, first, places = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[places]


def agglomerative(
    cosines: Float[np.ndarray, "N N"], near: Bool[np.ndarray, "N N"], speakers: int | None
) -> Int[np.ndarray, " N"]:
    """Clusters by average linkage of cosine distances; the number has the highest silhouette."""
    if len(cosines) < FEWEST and speakers is None or len(cosines) == 1:
        return np.zeros(len(cosines), int)
    distances = np.maximum(1 - cosines, 0)
    tree = hierarchy.linkage(distances[np.triu_indices(len(distances), 1)], "average")
    if speakers:
        return hierarchy.fcluster(tree, min(speakers, len(cosines)), "maxclust") - 1
    best = LEAST_SILHOUETTE, np.zeros(len(cosines), int)
    for count in range(2, min(MOST_SPEAKERS, len(cosines) // 2) + 1):
        labels = hierarchy.fcluster(tree, count, "maxclust") - 1
        if (width := silhouette(distances, near, labels)) > best[0]:
            best = width, labels
    return best[1]


def silhouette(
    distances: Float[np.ndarray, "N N"], near: Bool[np.ndarray, "N N"], labels: Int[np.ndarray, " N"]
) -> float:
    """Computes the mean silhouette (Rousseeuw, 1987) of rows, pairs that are `near` left out; 0 for one cluster."""
    members = labels[:, None] == np.arange(labels.max() + 1)
    counts = (~near).astype(np.float64) @ members
    sums = np.where(near, 0, distances) @ members
    mean = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    own = mean[members]
    other = np.where(members, np.inf, mean).min(axis=1)
    known = np.isfinite(own) & np.isfinite(other)
    widths = np.zeros(len(labels))
    widths[known] = (other - own)[known] / np.maximum(np.maximum(own, other)[known], 1e-12)
    return float(widths.mean())


def spectral(
    cosines: Float[np.ndarray, "N N"], near: Bool[np.ndarray, "N N"], speakers: int | None
) -> Int[np.ndarray, " N"]:
    """Clusters a graph of nearest neighbours by its eigenvectors (Park and others, 2019, arXiv 2003.02405).

    The number of neighbours is the one whose ratio to the normalised maximum eigengap is smallest, and the largest gap
    among the smallest eigenvalues of the Laplacian tells the number of speakers.
    """
    if len(cosines) < FEWEST:
        return agglomerative(cosines, near, speakers)
    apart = np.where(near, -2.0, cosines)
    most = max(2, int(MOST_NEIGHBOURS * len(cosines)))

    def tried(count: int) -> tuple[float, int, np.ndarray]:
        graph = laplacian(neighbours(apart, count) & ~near)
        values = scipy.linalg.eigvalsh(graph)
        gaps = np.diff(values)[:MOST_SPEAKERS]
        return count * values[-1] / max(gaps.max(), 1e-10), int(np.argmax(gaps)) + 1, graph

    counts = np.unique(np.linspace(2, most, TRIED).astype(int)).tolist()
    _, estimated, graph = min(map(tried, counts), key=lambda each: each[0])
    count = min(speakers or estimated, len(cosines))
    if count == 1:
        return np.zeros(len(cosines), int)
    _, vectors = scipy.linalg.eigh(graph, subset_by_index=(0, count - 1))
    from sklearn.cluster import KMeans  # which takes a second

    return KMeans(count, n_init=10, random_state=0).fit_predict(vectors)  # type: ignore[arg-type]


def neighbours(cosines: Float[np.ndarray, "N N"], count: int) -> Bool[np.ndarray, "N N"]:
    """Marks the `count` most alike of each row."""
    marked = np.zeros(cosines.shape, bool)
    np.put_along_axis(marked, np.argpartition(-cosines, count - 1, axis=1)[:, :count], True, axis=1)
    return marked


def laplacian(marked: Bool[np.ndarray, "N N"]) -> Float64[np.ndarray, "N N"]:
    """Computes the Laplacian of a graph in which an edge counts half from each of its ends."""
    weights = (marked.astype(np.float64) + marked.T) / 2
    return np.diag(weights.sum(1)) - weights
