"""Spherical k-means (Dhillon and Modha, 2001) for millions of embeddings and tens of thousands of clusters.

The devices compare blocks of rows, split over them, with all centroids: there are never N x K cosines in memory. The
host adds up the members, which takes a hundredth of the time and has one order whatever the number of devices.
"""

import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Float32, Int, Int32
from scipy import sparse
from tqdm import tqdm

ROWS, COSINES = 4096, 2**26  # of a block on one device, at most: 256 MiB
SAMPLED, LEAST = 16, 1000  # the first sample: embeddings for each of the clusters, but of so many clusters at least
GROWTH = 4  # of the sample from stage to stage
STEPS = (16, 4, 3)  # at most, in the first stage, those between and the last
STEPS_ALONE = 100  # where the first stage has all embeddings
HALVING_STEPS = 5
ROUNDING = 1e-5  # of a cluster's cosines: what a swap must gain

Progress = Callable[[int], object]  # called with the number of rows done


def kmeans(
    units: Float32[np.ndarray, "N D"], clusters: int, seed: int = 0
) -> tuple[Int32[np.ndarray, " N"], Float32[np.ndarray, "K D"], Float32[np.ndarray, " N"]]:
    """Seeks K clusters of embeddings of length 1 whose members have a high mean cosine with their centroid.

    Returns each embedding's cluster, the centroids, of length 1, and each embedding's cosine with its own. A seed gives
    one result, up to rounding on any number of devices. The first centroids are embeddings drawn at random; they are
    improved on a growing sample, then on all (`improved`). Clusters are empty where embeddings repeat so often that
    fewer than K differ. An embedding of zeros has the cosine 0 with all.
    """
    order = np.random.default_rng(seed).permutation(len(units))
    sizes = sample_sizes(len(units), clusters)
    steps = (STEPS[0], *[STEPS[1]] * (len(sizes) - 2), STEPS[2]) if len(sizes) > 1 else (STEPS_ALONE,)
    centroids = units[order[:clusters]]
    planned = sum(size * most for size, most in zip(sizes, steps, strict=True)) + len(units)
    with tqdm(total=planned, unit="row", unit_scale=True, desc="k-means", delay=5, mininterval=1) as progress:
        for size, most in zip(sizes, steps, strict=True):
            sample = units[np.sort(order[:size])] if size < len(units) else units
            centroids, taken = improved(sample, centroids, most, progress.update)
            progress.total -= size * (most - taken)
        labels, cosines = nearest(units, centroids, progress.update)
    return labels, centroids, cosines


def sample_sizes(rows: int, clusters: int) -> list[int]:
    """Chooses how many embeddings each stage works with: each GROWTH times as many as the last, in the end all."""
    sizes = [SAMPLED * max(clusters, LEAST)]
    while 2 * GROWTH * sizes[-1] <= rows:
        sizes.append(GROWTH * sizes[-1])
    return [*sizes, rows] if 2 * sizes[0] <= rows else [rows]


def improved(
    units: Float32[np.ndarray, "N D"],
    centroids: Float32[np.ndarray, "K D"],
    steps: int,
    progress: Progress = lambda rows: None,
) -> tuple[Float32[np.ndarray, "K D"], int]:
    """Takes Lloyd steps (Lloyd, 1982), every other one with swaps (`swapped`), until nothing changes, at most `steps`.

    Returns the centroids and the number of steps taken.
    """
    before = None
    for step in range(1, steps + 1):
        labels, cosines = nearest(units, centroids, progress)
        settled = before is not None and np.array_equal(labels, before)
        before = labels
        sums = member_sums(units, labels, len(centroids))
        centroids = directions(sums, centroids)
        swaps = 0
        if settled or step % 2 == 0:
            centroids, swaps = swapped(units, labels, cosines, sums, centroids)
        if settled and not swaps:
            return centroids, step
    return centroids, steps


def nearest(
    units: Float32[np.ndarray, "N D"], centroids: Float32[np.ndarray, "K D"], progress: Progress = lambda rows: None
) -> tuple[Int32[np.ndarray, " N"], Float32[np.ndarray, " N"]]:
    """Finds each embedding's centroid of the highest cosine, the first of several, and that cosine."""
    labels, cosines = _in_blocks(_nearest, (units,), centroids, progress)
    return labels, cosines


def rivals(
    units: Float32[np.ndarray, "N D"],
    labels: Int[np.ndarray, " N"],
    centroids: Float32[np.ndarray, "K D"],
    progress: Progress = lambda rows: None,
) -> tuple[Float32[np.ndarray, " N"], Int32[np.ndarray, " N"], Float32[np.ndarray, " N"]]:
    """Finds each embedding's product with the centroid of its own label, the nearest other one, and that product."""
    own, other, cosines = _in_blocks(_rivals, (units, labels.astype(np.int32)), centroids, progress)
    return own, other, cosines


def member_sums(
    units: Float32[np.ndarray, "N D"], labels: Int[np.ndarray, " N"], clusters: int
) -> Float32[np.ndarray, "K D"]:
    """Adds up the embeddings of each cluster; zeros where there are none."""
    ones = np.ones(len(labels), np.float32)
    return sparse.csr_array((ones, (labels, np.arange(len(labels)))), (clusters, len(labels))) @ units


def directions(
    sums: Float32[np.ndarray, "K D"], otherwise: Float32[np.ndarray, "K D"] | float = 0.0
) -> Float32[np.ndarray, "K D"]:
    """Scales sums to length 1; where they are zeros, `otherwise`."""
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.where(lengths > 0, sums / np.where(lengths > 0, lengths, 1), otherwise).astype(np.float32)


def swapped(
    units: Float32[np.ndarray, "N D"],
    labels: Int[np.ndarray, " N"],
    cosines: Float32[np.ndarray, " N"],
    sums: Float32[np.ndarray, "K D"],
    centroids: Float32[np.ndarray, "K D"],
) -> tuple[Float32[np.ndarray, "K D"], int]:
    """Merges two near clusters wherever that costs less than halving a third one gains; returns (centroids, swaps).

    A cluster contributes the length of its sum to the sum of all cosines, so that both are known before anything is
    tried. Lloyd steps alone never move a centroid from where there are two too many to where one is missing. An empty
    cluster costs nothing, and is put to use first. The utility of Patane and Russo (2001) is the same idea.
    """
    halves = half_sums(units, labels, cosines, centroids)
    lengths, half_lengths = np.linalg.norm(sums, axis=-1), np.linalg.norm(halves, axis=-1)
    gains = half_lengths.sum(axis=1) - (1 + ROUNDING) * lengths
    _, other, _ = rivals(centroids, np.arange(len(centroids)), centroids)
    costs = lengths + lengths[other] - np.linalg.norm(sums + sums[other], axis=-1)
    split, freed, kept = np.array(list(_exchanges(gains, costs, other)), int).reshape(-1, 3).T
    centroids = centroids.copy()
    centroids[kept] = directions(sums[kept] + sums[freed], centroids[kept])
    centroids[split], centroids[freed] = directions(halves[split, 0]), directions(halves[split, 1])
    return centroids, len(split)


def half_sums(
    units: Float32[np.ndarray, "N D"],
    labels: Int[np.ndarray, " N"],
    cosines: Float32[np.ndarray, " N"],
    centroids: Float32[np.ndarray, "K D"],
) -> Float32[np.ndarray, "K 2 D"]:
    """Halves every cluster by k-means, and adds up the halves; one is empty where all members are the same.

    The first halves lie on either side of the centroid as seen towards the member that is farthest from it.
    """
    order = np.lexsort((cosines, labels))
    found, first = np.unique(labels[order], return_index=True)
    axes = np.zeros_like(centroids)
    axes[found] = units[order[first]]
    axes -= np.einsum("kd,kd->k", axes, centroids)[:, None] * centroids
    halves = _halved(units, labels, axes)
    for _ in range(HALVING_STEPS - 1):
        halves = _halved(units, labels, directions(halves[:, 1]) - directions(halves[:, 0]))
    return halves


def _halved(units: np.ndarray, labels: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Sums [K, 2, D] of each cluster's members on either side of its axis [K, D]."""
    upper = _own_products(units, labels, axes) > 0
    return member_sums(units, 2 * labels + upper, 2 * len(axes)).reshape(len(axes), 2, -1)


def _exchanges(
    gains: Float[np.ndarray, " K"], costs: Float[np.ndarray, " K"], other: Int[np.ndarray, " K"]
) -> Iterator[tuple[int, int, int]]:
    """Pairs the best halvings with the cheapest mergers: (halved, freed by the merger, what it is merged into)."""
    busy = np.zeros(len(gains), bool)
    partners = other.tolist()
    mergers = iter(np.argsort(costs, kind="stable").tolist())
    for split in np.argsort(-gains, kind="stable").tolist():
        if busy[split]:
            continue
        busy[split] = True
        freed = next((at for at in mergers if at != partners[at] and not busy[[at, partners[at]]].any()), None)
        if freed is None or gains[split] <= costs[freed]:
            return
        busy[[freed, partners[freed]]] = True
        yield split, freed, partners[freed]


def _own_products(
    units: Float32[np.ndarray, "N D"], labels: Int[np.ndarray, " N"], vectors: Float32[np.ndarray, "K D"]
) -> Float32[np.ndarray, " N"]:
    """Each embedding's product with the vector of its cluster."""
    blocks = [slice(start, start + ROWS) for start in range(0, len(units), ROWS)]
    return np.concatenate([np.einsum("nd,nd->n", units[block], vectors[labels[block]]) for block in blocks])


def _in_blocks(work: Callable, rows: tuple[np.ndarray, ...], centroids: np.ndarray, progress: Progress) -> list:
    """What `work(*rows, centroids)` returns, arrays [N, ...], computed in blocks of rows split over all devices.

    The next block is on its way while the devices work on one.
    """
    mesh = _mesh()
    split, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    count = len(rows[0])
    size = mesh.size * min(ROWS, max(1, COSINES // len(centroids)), math.ceil(count / mesh.size))
    centroids_there = jax.device_put(centroids, everywhere)
    found, running = [], None
    for start in range(0, count, size):
        parts = [array[start : start + size] for array in rows]
        missing = size - len(parts[0])
        parts = [np.pad(part, [(0, missing), *[(0, 0)] * (part.ndim - 1)]) if missing else part for part in parts]
        started = work(*jax.device_put(parts, split), centroids_there)
        if running is not None:
            found.append(jax.device_get(running))
        running = started
        progress(size - missing)
    found.append(jax.device_get(running))
    return [np.concatenate(parts)[:count] for parts in zip(*found, strict=True)]


@jax.jit
def _nearest(units, centroids):
    cosines = _products(centroids, units)
    return _first_at_the_highest(cosines)


@jax.jit
def _rivals(units, labels, centroids):
    products = _products(centroids, units)
    own = jnp.arange(len(centroids))[:, None] == labels
    return jnp.where(own, products, 0).sum(0), *_first_at_the_highest(jnp.where(own, -jnp.inf, products))


def _products(centroids, units):
    """[K, rows]: CPUs find the highest of each column faster than that of each row."""
    return jnp.matmul(centroids, units.T, precision=jax.lax.Precision.HIGHEST)


def _first_at_the_highest(products):
    """(rows of the highest value of each column, these values); argmax takes longer on CPUs."""
    highest = products.max(0)
    rows = jnp.arange(len(products), dtype=jnp.int32)[:, None]
    return jnp.where(products == highest, rows, len(products) - 1).min(0), highest


@functools.cache
def _mesh() -> Mesh:
    return Mesh(np.asarray(jax.local_devices()), ("data",))
