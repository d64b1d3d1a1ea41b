"""Positives from neighbours: what the student must predict may come from another utterance, likely of the same speaker.

SSPS (Lepage and Dehak, arXiv 2505.14561): views of one utterance share its recording, which is then learnt with the
voice. Late in training the teacher's embeddings are good enough to find other recordings of a speaker: those of the
cluster nearest to the utterance's own, one step beyond what the network already takes for the same. Before each epoch
the teacher hears a clean view of every utterance: of augmented ones half as many neighbours are the same speaker.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from sdpn_jax.eval.kmeans import kmeans, rivals
from sdpn_jax.models.head import l2_normalise
from sdpn_jax.training.sharding import padded_rows
from sdpn_jax.training.step import Metrics, Positives, TrainState

PARTNERS = 4  # folded into the seed's key; see classify.CLASSES
UNKNOWN = -1  # the cluster of an utterance that was not heard yet

Exchange = Callable[..., tuple[Array, Metrics]]


def begin(state: TrainState, utterances: int, size: int, clusters: int) -> TrainState:
    """Adds to a state what is kept of all utterances, whose embeddings have this size: nothing yet, and no clusters."""
    rows = padded_rows(utterances)
    none = lambda *shape: jnp.zeros(shape, jnp.float16)  # noqa: E731
    return state.replace(
        positives=Positives(
            embeddings=none(rows, size),
            projections=none(rows, state.prototypes.shape[1]),
            cluster=jnp.full(rows, UNKNOWN, jnp.int32),
            order=jnp.zeros(rows, jnp.int32),
            first=jnp.zeros(clusters + 1, jnp.int32),
            nearest=jnp.zeros(clusters, jnp.int32),
        )
    )


def partners(
    key: PRNGKeyArray, positives: Positives, number: Int[Array, " B"], share: float
) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
    """Draws for each utterance one of the nearest other cluster; returns their numbers, and which are to be used.

    Used are a `share` of them, none of utterances without a cluster.
    """
    key_member, key_share = jax.random.split(key)
    cluster = positives.cluster[number]
    other = positives.nearest[cluster]
    start, count = positives.first[other], positives.first[other + 1] - positives.first[other]
    member = start + jnp.floor(jax.random.uniform(key_member, number.shape) * count).astype(jnp.int32)
    used = (cluster >= 0) & (count > 0) & (jax.random.uniform(key_share, number.shape) < share)
    return positives.order[jnp.minimum(member, len(positives.order) - 1)], used


def make_exchange(share: float, seed: int, replicate: Callable[[Array], Array] = lambda x: x) -> Exchange:
    """Makes the function that exchanges some of the teacher's projections of a batch for kept ones of others.

    It takes (state, numbers [B], projection [B, G, P], what is known: perhaps "truth" [N]) and returns (projection,
    metrics). `replicate` puts an array on every device.
    """

    def exchange(
        state: TrainState,
        number: Int[Array, " B"],
        projection: Float[Array, "B G P"],
        known: Mapping[str, Array],
    ) -> tuple[Array, Metrics]:
        assert state.positives is not None, "init_state keeps nothing: positives.begin does"
        kept, number = state.positives, replicate(number)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), PARTNERS), state.step)
        partner, used = partners(key, kept, number, share)
        stored = kept.projections[partner].astype(projection.dtype)
        exchanged = jnp.where(used[:, None, None], stored[:, None], projection)
        metrics = {"exchanged": jnp.mean(used.astype(projection.dtype))}
        if "truth" in known:
            theirs, ours = known["truth"][partner], known["truth"][number]
            told = used & (theirs >= 0) & (ours >= 0)
            metrics["exchanged_right"] = jnp.sum(told & (theirs == ours)) / jnp.maximum(told.sum(), 1)
        return exchanged, metrics

    return exchange


def keep(
    positives: Positives, number: Int[Array, " B"], embedding: Float[Array, "B D"], projection: Float[Array, "B P"]
) -> Positives:
    """Keeps what the teacher makes of the clean views of utterances."""
    return positives.replace(
        embeddings=positives.embeddings.at[number].set(l2_normalise(embedding).astype(jnp.float16)),
        projections=positives.projections.at[number].set(projection.astype(jnp.float16)),
    )


def regrouped(positives: Positives, embeddings: np.ndarray, seed: int) -> Positives:
    """Clusters the `embeddings` [R, D] kept, which all processes have, and says which cluster is nearest to which.

    The first process clusters for all. As arrays of the host, for what is kept on the devices.
    """
    clusters, rows = len(positives.nearest), len(embeddings)
    found = groups(np.asarray(embeddings, np.float32), clusters, seed) if jax.process_index() == 0 else (
        np.zeros(rows, np.int32), np.zeros(rows, np.int32), np.zeros(clusters + 1, np.int32),
        np.zeros(clusters, np.int32),
    )  # fmt: skip
    if jax.process_count() > 1:
        found = multihost_utils.broadcast_one_to_all(found)
    cluster, order, first, nearest = (np.asarray(array, np.int32) for array in found)
    return positives.replace(cluster=cluster, order=order, first=first, nearest=nearest)


def groups(embeddings: np.ndarray, clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Clusters embeddings [R, D], of length 1 or zeros where nothing is known.

    Returns each row's cluster or UNKNOWN [R]; the rows by cluster [R], those of cluster k from first[k] on; `first`
    [K + 1]; and the nearest other cluster of each [K]. With fewer embeddings than clusters all are UNKNOWN.
    """
    rows = np.flatnonzero(np.any(embeddings != 0, axis=1))
    cluster, order = np.full(len(embeddings), UNKNOWN, np.int32), np.zeros(len(embeddings), np.int32)
    first, nearest = np.zeros(clusters + 1, np.int32), np.zeros(clusters, np.int32)
    if len(rows) < clusters:
        logging.warning("%d utterances known are too few for %d clusters", len(rows), clusters)
        return cluster, order, first, nearest
    units = embeddings[rows] / np.linalg.norm(embeddings[rows], axis=1, keepdims=True)
    found, centroids, cosines = kmeans(units.astype(np.float32), clusters, seed)
    sizes = np.bincount(found, minlength=clusters)
    full = np.flatnonzero(sizes)
    nearest[full] = full[rivals(centroids[full], np.arange(len(full)), centroids[full])[1]]
    cluster[rows] = found
    order[: len(rows)] = rows[np.argsort(found, kind="stable")]
    first[1:] = np.cumsum(sizes)
    logging.info("%d utterances in %d clusters, mean cosine %.2f", len(rows), len(full), cosines.mean())
    return cluster, order, first, nearest
