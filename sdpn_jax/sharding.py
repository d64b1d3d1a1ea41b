"""The mesh and where each array lives: batches split over the `data` axis, everything else on every device."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdpn_jax.errors import UserError


def make_mesh() -> Mesh:
    """All devices of all processes along one axis, `data`."""
    return Mesh(np.asarray(jax.devices()), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device: parameters, statistics, optimizer state, metrics."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises UserError when the devices cannot share the batch equally."""
    if batch_size % mesh.size:
        raise UserError(
            f"batch_size={batch_size} cannot be divided over {mesh.size} devices: choose a multiple of {mesh.size}"
        )


def put_batch(batch: dict, mesh: Mesh) -> dict:
    """This process's share of a batch, NumPy arrays [b, ...] -> global arrays [B, ...] on the mesh."""
    sharding = batch_sharding(mesh)
    with jax.transfer_guard("allow"):  # with several processes JAX does not see that this transfer is meant
        return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}
