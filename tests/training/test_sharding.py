"""Where arrays live, by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from sdpn_jax.errors import UserError
from sdpn_jax.training import sharding

MESH = AbstractMesh((2, 4), ("data", "fsdp"))


@pytest.mark.parametrize(
    "shape, where",
    [
        ((1, 4096, 1536), (None, "fsdp")),  # the longest axis
        ((4095, 256), (None, "fsdp")),  # the longest that four devices divide
        ((255, 257), ()),  # none does
        ((256, 255), ()),  # too small to bother
        ((256, 256), ("fsdp",)),
        ((), ()),
    ],
)
def test_large_state_is_split(shape, where):
    of = sharding.state_sharding(MESH, {"x": jax.ShapeDtypeStruct(shape, jnp.float32)})["x"]
    assert of.spec == PartitionSpec(*where)


def test_without_fsdp_all_of_the_state_is_everywhere():
    mesh = AbstractMesh((8, 1), ("data", "fsdp"))
    state = {"x": jax.ShapeDtypeStruct((4096, 4096), jnp.float32)}
    assert sharding.state_sharding(mesh, state)["x"].spec == PartitionSpec()


def test_batches_that_cannot_be_shared():
    sharding.check_batch_size(48, 3, MESH)
    with pytest.raises(UserError, match="over 8 devices, each in 3 microbatches: choose a multiple of 24"):
        sharding.check_batch_size(32, 3, MESH)


def test_fsdp_must_divide_the_devices():
    with pytest.raises(UserError, match="mesh.fsdp=3 does not divide 1 devices"):
        sharding.make_mesh(3)
