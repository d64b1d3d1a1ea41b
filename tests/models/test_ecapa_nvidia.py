"""The kernels for NVIDIA GPUs, gone through on a CPU as they are written, beside the layers that they stand for."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import Mesh

from sdpn_jax.models import ecapa_nvidia
from sdpn_jax.models.ecapa import ECAPA, TDNN, Res2Net, applied
from sdpn_jax.models.layers import BatchNorm
from sdpn_jax.models.network import Network, network_of, sizes_of
from sdpn_jax.models.pooling import AttentiveStatisticsPooling

RNG = np.random.default_rng(0)
MESH = Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))


class Groups(nn.Module):
    """A norm and a Res2Net of three groups, of which two are convolved."""

    dilation: int = 2
    dtype: type = jnp.float32
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, x):
        x = BatchNorm(name="norm").pending(nn.relu(x), True)
        x = Res2Net(3, self.dilation, 3, self.dtype, mesh=self.mesh, name="res2net")(x, True)
        return x.value()


class Tail(nn.Module):
    """The last frame layer and the pooling."""

    dtype: type = jnp.float32
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, x):
        if self.mesh is not None and not self.is_initializing():
            return applied(self, ecapa_nvidia.pooled, x, self.mesh)
        x = TDNN(128, dtype=self.dtype, name="mfa")(x, True)
        return AttentiveStatisticsPooling(64, self.dtype, name="pooling")(x, True)


def drawn(tree):
    return jax.tree.map(lambda x: x + RNG.uniform(-0.1, 0.1, x.shape).astype(np.float32), tree)


def passed(module, variables, x, weights):
    """Output, running statistics, and the gradients of a weighted sum."""

    def loss(params, x):
        out, updated = module.apply(variables | {"params": params}, x, mutable=["batch_stats"])
        return (out * weights).sum(), (out, updated["batch_stats"])

    (_, (out, stats)), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables["params"], x)
    return {"out": out, "stats": stats, "gradients": gradients}


def difference(actual, expected):
    """The largest difference, as a share of the largest number of the array it is in, unless all of these are tiny."""
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    return np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-2)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="on a card the kernels are for bfloat16")
@pytest.mark.parametrize(
    ("module", "shape"), [(Groups(dilation=3), (3, 75, 48)), (Groups(dilation=4), (2, 5, 48)), (Tail(), (2, 130, 24))]
)
def test_as_the_layers(module, shape):
    x = RNG.normal(size=shape).astype(np.float32)
    variables = drawn(module.init(jax.random.key(0), x))
    weights = RNG.normal(size=module.apply(variables, x, mutable=["batch_stats"])[0].shape).astype(np.float32)
    expected = passed(module, variables, x, weights)
    actual = passed(module.clone(mesh=MESH), variables, x, weights)
    found = jax.tree.map(difference, actual, expected)
    assert max(jax.tree.leaves(found)) < 1e-5, found


@pytest.mark.parametrize(("module", "shape"), [(Groups(), (3, 75, 48)), (Tail(), (3, 75, 24))])
def test_in_bfloat16_no_further_from_float32_than_the_layers(module, shape):
    x = RNG.normal(size=shape).astype(np.float32)
    variables = drawn(module.init(jax.random.key(0), x))
    weights = RNG.normal(size=module.apply(variables, x, mutable=["batch_stats"])[0].shape).astype(np.float32)
    exact = passed(module, variables, x, weights)
    far = lambda module: np.mean(  # noqa: E731
        jax.tree.leaves(jax.tree.map(difference, passed(module, variables, x.astype(jnp.bfloat16), weights), exact))
    )
    plain = module.clone(dtype=jnp.bfloat16)
    assert 0 < far(plain.clone(mesh=MESH)) < 1.2 * far(plain)


def gpus(kind="NVIDIA H100 80GB HBM3", capability="9.0"):
    device = SimpleNamespace(device_kind=kind, compute_capability=capability)
    return SimpleNamespace(devices=np.asarray([device], object))


SIZES = {"channels": (512, 512, 512, 512, 1536), "dtype": "bfloat16"}


def test_kernels_where_they_are_written_for():
    on = lambda mesh, **sizes: network_of(SIZES | sizes).on(mesh).encoder.mesh  # noqa: E731
    assert on(gpus()) is not None
    assert on(gpus("NVIDIA A100-SXM4-40GB", "8.0")) is not None
    assert on(gpus("Tesla V100-SXM2-16GB", "7.0")) is None
    assert on(gpus("AMD Instinct MI300X", "gfx942")) is None
    assert on(MESH) is None
    assert on(gpus(), dtype="float32") is None
    assert on(gpus(), attention=96) is None
    assert on(gpus(), channels=(512, 512, 512, 512, 1500)) is None
    assert on(gpus(), channels=(512, 768, 768, 768, 1536)) is None
    resnet = network_of({"encoder": "resnet18", "dtype": "bfloat16"})
    assert resnet.on(gpus()) is resnet


def test_devices_are_no_size_of_a_network():
    network = Network(ECAPA(mesh=MESH))
    assert sizes_of(network) == sizes_of(Network())
