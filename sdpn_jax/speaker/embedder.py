"""Embeddings of utterances of any length with a network: padded batches over the local devices, or averaged crops."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Float32

from sdpn_jax.data.features import LogMel
from sdpn_jax.errors import UserError
from sdpn_jax.models.network import ENCODER, FRONT_END, Network, sizes_of
from sdpn_jax.vectors import unit

STEP = 16  # frames (0.16 s): lengths up to 1.28 s are padded to multiples of it
BATCH_FRAMES = {"cpu": 4096}  # frames of a padded batch on one device: on CPUs its activations should fit the caches
ACCELERATOR_BATCH_FRAMES = 65536
# XLA's library for reductions on CPUs (jaxlib 0.10) keeps each sum over time as an array of its own: without it the
# network takes a third of the time and of the memory.
COMPILER_OPTIONS = {"cpu": {"xla_cpu_experimental_ynn_fusion_type": ""}}

EARLIER_FIELDS = (
    "channels", "se_bottleneck", "attention", "embedding_size", "hidden_size", "projection_size", "dtype", "remat",
)  # fmt: skip

LogMels: TypeAlias = Sequence[Float[np.ndarray, "_T F"]]  # each of its own length


@dataclass(frozen=True)
class Shapes:
    """How frames of an utterance and rows of an incomplete batch are rounded up: each shape is a program to compile."""

    length: Callable[[int], int]
    rows: Callable[[int], int]


class Embedder:
    """Embeds utterances of different lengths in padded batches; padding does not change the result."""

    def __init__(self, network: Network, shapes: "Shapes | None" = None):
        """shapes: which padded batches there may be; by default many lengths, of which little is padding."""
        self._size, self._shapes = network.embedding_size, shapes or Shapes(padded_length, few_sizes)
        mesh = Mesh(jax.local_devices(), ("data",))
        self._everywhere, self._split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
        self._devices = mesh.size
        self._frames = self._devices * BATCH_FRAMES.get(jax.default_backend(), ACCELERATOR_BATCH_FRAMES)
        self._embed = jax.jit(
            lambda variables, x, lengths: network.apply(variables, x, lengths, method=network.embed),
            compiler_options=COMPILER_OPTIONS.get(jax.default_backend()),
        )

    def put(self, variables: dict) -> dict:
        """Puts a network's variables where they are needed, on each local device: once for many calls."""
        return jax.device_put(variables, self._everywhere)

    def __call__(self, variables: dict, log_mels: LogMels) -> Float32[np.ndarray, "N D"]:
        """Embeds log-mels with the running statistics of `variables`, best as `put` returns them."""
        embeddings = np.zeros((len(log_mels), self._size), np.float32)
        for rows, padded_frames in batches_of_similar_length(
            [len(x) for x in log_mels], self.rows_at_once, self._shapes.length
        ):
            size = min(
                self.rows_at_once(padded_frames), self._shapes.rows(-(-len(rows) // self._devices)) * self._devices
            )
            batch = np.zeros((size, padded_frames, log_mels[0].shape[1]), np.float32)
            lengths = np.full(len(batch), padded_frames, np.int32)
            for place, row in enumerate(rows):
                batch[place, : len(log_mels[row])] = log_mels[row]
                lengths[place] = len(log_mels[row])
            batch, lengths = jax.device_put((batch, lengths), self._split)
            embeddings[rows] = jax.device_get(self._embed(variables, batch, lengths))[: len(rows)]
        return embeddings

    def rows_at_once(self, padded_frames: int) -> int:
        """Returns how many utterances of this padded length make a batch: a multiple of the number of devices."""
        return max(1, self._frames // padded_frames // self._devices) * self._devices


def finite(embeddings: Float32[np.ndarray, "N D"]) -> Float32[np.ndarray, "N D"]:
    """Returns embeddings as they are; raises UserError for NaN or infinity, which no whole model makes."""
    if not np.isfinite(embeddings).all():
        raise UserError("the model makes embeddings that are not finite: its weights are damaged, get it again")
    return embeddings


def fingerprint(network: Network, variables: dict) -> str:
    """Computes a digest that changes with the network and its weights, not with how a backward pass saves memory."""
    digest = hashlib.sha256(_described(network).encode())
    for leaf in jax.tree.leaves(jax.device_get(variables)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _described(network: Network) -> str:
    """The network's sizes as text: of SDPN's own encoder in the words of earlier versions, which knew no other."""
    sizes: dict[str, Any] = sizes_of(network) | {"remat": False}
    if sizes["encoder"] != ENCODER:
        return json.dumps(sizes)
    sizes |= {"dtype": jnp.dtype(sizes["dtype"])}
    names = EARLIER_FIELDS + ("front_end",) * (network.front_end != FRONT_END)
    return "\n".join(["Network(", "    # attributes", *(f"    {name} = {sizes[name]!r}" for name in names), ")"])


def padded_length(frames: int) -> int:
    """Returns the length an utterance is padded to: four to an octave, so that few shapes are compiled.

    At most 61 lengths up to three hours; beyond 0.6 s at most a fifth of one is padding.
    """
    step = max(STEP, 1 << max(0, (frames - 1).bit_length() - 3))
    return -(-frames // step) * step


def few_sizes(rows: int) -> int:
    """Rounds the rows of an incomplete batch up to 1, 2, 3, 4, 6, 8, 12, ..., so that few shapes are compiled."""
    power = 1 << (rows - 1).bit_length()
    return 3 * power // 4 if power >= 4 and rows <= 3 * power // 4 else power


def batches_of_similar_length(
    lengths: Sequence[int], rows_at_once: Callable[[int], int], rounded: Callable[[int], int] = padded_length
) -> Iterator[tuple[list[int], int]]:
    """Yields batches of (positions in `lengths`, padded length in frames), every position exactly once.

    The last, incomplete batch of a length joins the next longer one, up to twice the length: a short list would
    otherwise compile many programs for few utterances each.
    """
    buckets: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        buckets.setdefault(rounded(length), []).append(row)
    waiting, last = [], 0
    for padded_frames, rows in sorted(buckets.items()):
        if waiting and padded_frames > 2 * rounded(lengths[waiting[0]]):  # the first is the shortest
            yield waiting, last
            waiting = []
        waiting += rows
        size, last = rows_at_once(padded_frames), padded_frames
        while len(waiting) >= size:
            yield waiting[:size], padded_frames
            waiting = waiting[size:]
    if waiting:
        yield waiting, last


def crops_of(log_mel: LogMel, count: int, frames: int) -> list[Float[np.ndarray, "_T F"]]:
    """Cuts `count` crops [frames, F] at equal distances; an utterance that is no longer than a crop is one crop."""
    if len(log_mel) <= frames:
        return [log_mel]
    starts = np.round(np.linspace(0, len(log_mel) - frames, count)).astype(int)
    return [log_mel[start : start + frames] for start in starts]


def mean_of_units(embeddings: Float[np.ndarray, "crops D"], counts: Sequence[int]) -> Float[np.ndarray, "N D"]:
    """Averages embeddings scaled to length 1 over each run of `counts`.

    The dot product of two such means is the mean cosine of all pairs of crops.
    """
    units = unit(embeddings)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(int)
    return np.add.reduceat(units, starts) / np.asarray(counts)[:, None]


def embed_crops(
    embed: Callable[[list[LogMel]], Float[np.ndarray, "crops D"]], log_mels: LogMels, count: int, frames: int
) -> Float[np.ndarray, "N D"]:
    """Embeds log-mels as the mean of their crops' embeddings of length 1."""
    crops = [crops_of(x, count, frames) for x in log_mels]
    return mean_of_units(embed([crop for of_one in crops for crop in of_one]), [len(of_one) for of_one in crops])
