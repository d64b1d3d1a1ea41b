"""K-means at VoxCeleb2's size: 1,090,000 embeddings of 512 dimensions around 5,000 speakers, 10,000 clusters.

    python benchmarks/clustering.py

Random embeddings whose mean cosine with their speaker's direction is 0.55. Beside scikit-learn's MiniBatchKMeans, each
in a process of its own. With more clusters than speakers, normalised mutual information (NMI) falls the more evenly
speakers are divided, which says nothing about how well they are kept apart. So there are also homogeneity, 1 where no
cluster holds two speakers, and the NMI after average linkage of the clusters to the number of speakers, which is what
they are for. Prints a table and writes <output>.
"""

import time

import measure
import numpy as np
from absl import app, flags
from sklearn import metrics
from sklearn.cluster import MiniBatchKMeans

from sdpn_jax.eval import cluster, kmeans

DIMENSION, SPREAD = 512, 1.5


def make_embeddings(rows: int, speakers: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [rows, DIMENSION] of length 1 around random directions, and the speaker of each."""
    rng = np.random.default_rng(0)
    centres = kmeans.directions(rng.standard_normal((speakers, DIMENSION), np.float32))
    speaker = rng.integers(speakers, size=rows)
    units = rng.standard_normal((rows, DIMENSION), np.float32)
    for start in range(0, rows, 2**12):
        part = slice(start, start + 2**12)
        units[part] = kmeans.directions(centres[speaker[part]] + SPREAD / DIMENSION**0.5 * units[part])
    return units, speaker


def ours(units: np.ndarray, clusters: int) -> np.ndarray:
    return kmeans.kmeans(units, clusters)[0]


def plain(units: np.ndarray, clusters: int) -> np.ndarray:
    # its default first centres, greedy k-means++, take hours for so many clusters
    algorithm = MiniBatchKMeans(clusters, init="random", batch_size=max(4096, 3 * clusters), n_init=1, random_state=0)
    return algorithm.fit_predict(units)


def mean_cosine(units: np.ndarray, labels: np.ndarray) -> float:
    """That of embeddings with the direction of their cluster: what k-means makes as high as it can."""
    return float(np.linalg.norm(kmeans.member_sums(units, labels, labels.max() + 1), axis=1).sum() / len(units))


def merged(units: np.ndarray, labels: np.ndarray, clusters: int) -> np.ndarray:
    """Average linkage of the clusters, to fewer of them."""
    labels = cluster.largest_first(labels)
    sizes = np.bincount(labels)
    pairs, _ = cluster.average_linkage(kmeans.member_sums(units, labels, len(sizes)) / sizes[:, None], sizes)
    return cluster.cut(pairs, clusters)[labels]


def make_work(method, rows: int, speakers: int, clusters: int):
    units, speaker = make_embeddings(rows, speakers)

    def work(_) -> dict:
        started = time.perf_counter()
        labels = method(units, clusters)
        figures = {"minutes": (time.perf_counter() - started) / 60, "peak MiB": measure.peak_mib()}
        return figures | {
            "cosine": mean_cosine(units, labels),
            "NMI": metrics.normalized_mutual_info_score(speaker, labels),
            "homogeneity": metrics.homogeneity_score(speaker, labels),
            "NMI merged": metrics.normalized_mutual_info_score(speaker, merged(units, labels, speakers)),
        }

    return work


def main(_) -> None:
    results = {}
    for name, method in (("ours", ours), ("MiniBatchKMeans", plain)):
        elsewhere = measure.Elsewhere(make_work, method, FLAGS.rows, FLAGS.speakers, FLAGS.clusters)
        results[name] = elsewhere(0)
        elsewhere.close()
        measure.show(f"{FLAGS.rows:,} embeddings, {FLAGS.clusters:,} clusters, {name}", results[name])
    measure.write(FLAGS.output, {"rows": FLAGS.rows, "speakers": FLAGS.speakers, "clusters": FLAGS.clusters, **results})


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_integer("rows", 1_090_000, "Embeddings.")
    flags.DEFINE_integer("speakers", 5_000, "Directions that they lie around.")
    flags.DEFINE_integer("clusters", 10_000, "Clusters sought.")
    flags.DEFINE_string("output", "clustering_benchmark.json", "Where the figures go.")
    app.run(main)
