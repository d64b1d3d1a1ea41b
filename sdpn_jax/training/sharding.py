"""The mesh and where each array lives: batches split over all devices, large state over `fsdp`, the rest everywhere."""

import functools

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdpn_jax.errors import UserError

ROWS_APART = {"centres", "classes", "embeddings", "projections"}  # of classes, in state and optimizer; and kept ones
ROWS = 256
LARGE = 2**16  # elements from which on an array of the state is split over `fsdp`


def make_mesh(fsdp: int = 1, devices=None) -> Mesh:
    """Arranges the devices (default: all of all processes) along `data` and, `fsdp` neighbours at a time, `fsdp`.

    They keep their order, so that a process's share of the batch stays one run of rows. Raises UserError when `fsdp`
    does not divide their number.
    """
    devices = np.asarray(jax.devices() if devices is None else devices)
    if fsdp < 1 or devices.size % fsdp:
        raise UserError(f"mesh.fsdp={fsdp} does not divide {devices.size} devices: choose a divisor")
    return Mesh(devices.reshape(-1, fsdp), ("data", "fsdp"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Keeps the whole array on every device: statistics, metrics, noise."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_sharding(mesh: Mesh, state):
    """Chooses the sharding of each array of the state (parameters, teacher, momentum): a tree like `state`.

    Arrays of LARGE elements and more are split over `fsdp` along their longest axis that it divides. What has a row for
    each class or utterance can be most of the state: it is split along the rows over all devices that divide them.
    """

    def of(path, array):
        if ROWS_APART & {getattr(key, "name", getattr(key, "key", None)) for key in path}:
            return NamedSharding(mesh, PartitionSpec(_dividing(len(array.shape) and array.shape[0], mesh)))
        size = mesh.shape["fsdp"]
        axes = [axis for axis, length in enumerate(array.shape) if length % size == 0]
        if size == 1 or array.size < LARGE or not axes:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: array.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * longest, "fsdp"))

    return jax.tree_util.tree_map_with_path(of, state)


def described(tree, places):
    """Describes the arrays of a tree where they will lie; `places` are shardings of its arrays or of its branches."""
    of = lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)  # noqa: E731
    return jax.tree.map(of, tree, jax.tree.broadcast(places, tree))


def padded_rows(count: int) -> int:
    """Rounds a number of rows up to one that any usual number of devices divides."""
    return -(-count // ROWS) * ROWS


def _dividing(length: int, mesh: Mesh) -> tuple[str, ...]:
    """The axes of the mesh over which an axis of this length can be split: all of them, or as many as divide it."""
    axes = ("data", "fsdp")
    return next(
        (taken for taken in (axes, axes[:1], axes[1:]) if not length % np.prod([mesh.shape[x] for x in taken])), ()
    )


def check_batch_size(batch_size: int, microbatches: int, mesh: Mesh) -> None:
    """Checks that the devices can share each microbatch equally; raises UserError otherwise."""
    shares = mesh.size * microbatches
    if batch_size % shares:
        split = f", each in {microbatches} microbatches" if microbatches > 1 else ""
        raise UserError(
            f"batch_size={batch_size} cannot be divided over {mesh.size} devices{split}: choose a multiple of {shares}"
        )


def put_batch(batch: dict, mesh: Mesh) -> dict:
    """Puts this process's share of a batch, NumPy arrays [b, ...], on the mesh as global arrays [B, ...]."""
    sharding = batch_sharding(mesh)
    with jax.transfer_guard("allow"):  # with several processes JAX does not see that this transfer is meant
        return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def all_agree(yes: bool) -> bool:
    """Tells whether every process says yes; all of them must ask."""
    return bool(np.all(multihost_utils.process_allgather(np.asarray(yes))))


def largest(number: int, mesh: Mesh) -> jax.Array:
    """Finds the largest of all processes' numbers, on every device; all of them must ask."""
    local = np.full(len(mesh.local_devices), int(number), np.int32)
    return _largest_of(mesh)(put_batch({"": local}, mesh)[""])


@functools.cache
def _largest_of(mesh: Mesh):
    return jax.jit(lambda numbers: numbers.max(), out_shardings=replicated(mesh))


@functools.cache
def _copy_to_every_device(mesh: Mesh):
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def gather(tree, mesh: Mesh):
    """Gathers the whole arrays of a tree on this process's first device; all processes must ask."""
    return jax.tree.map(lambda x: x.addressable_data(0), _copy_to_every_device(mesh)(tree))
