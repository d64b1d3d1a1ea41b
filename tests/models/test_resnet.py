"""ResNet: counts of the originals, padding, training. Its numbers are compared in tests/weights/test_convert.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_variables

from sdpn_jax.models.eres2net import ERes2NetV2, Res2NetBlock
from sdpn_jax.models.resnet import ResidualBlock, ResNet

SMALL = ResNet(blocks=(1, 2, 1, 1), width=4, embedding_size=6)


def variables_of(network, frames=40):
    return network.init(jax.random.key(0), jnp.zeros((2, frames, 80)), True)


@pytest.mark.parametrize("blocks, bottleneck, count", [
    ((3, 4, 6, 3), False, 6_634_336), ((10, 20, 64, 3), True, 28_626_016),
])  # fmt: skip
def test_parameters_of_the_originals(blocks, bottleneck, count):
    shapes = jax.eval_shape(lambda: variables_of(ResNet(blocks, bottleneck)))["params"]
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize(
    "block",
    [
        ResidualBlock(8, 1, False),
        ResidualBlock(2, 1, True),
        Res2NetBlock(8, 3, 2, 1, False),
        Res2NetBlock(8, 4, 2, 1, True),
    ],
)
def test_a_block_begins_as_the_identity_and_can_leave_it(block):
    x = np.random.default_rng(0).uniform(0, 1, (2, 5, 6, 8)).astype(np.float32)
    variables = jax.jit(lambda: block.init(jax.random.key(0), x, True))()

    def squares(params):
        output = block.apply(variables | {"params": params}, x, True, mutable=["batch_stats"])[0]
        return jnp.square(output).sum(), output

    gradient, output = jax.jit(jax.grad(squares, has_aux=True))(variables["params"])
    np.testing.assert_array_equal(output, x)
    last = max(name for name in gradient if name.startswith("bn") and not name.startswith("bns"))
    assert (np.abs(gradient[last]["scale"]) > 1e-3).all()


@pytest.mark.parametrize("network", [ResNet(width=4, embedding_size=4), ERes2NetV2(width=4, embedding_size=4)])
def test_a_longer_stage_holds_no_more_maps(network):
    """Were the sums of all earlier blocks computed again in each block, their maps would have to be kept."""

    def maps_of(blocks):
        longer = network.clone(blocks=(blocks, 1, 1, 1))
        shapes = jax.eval_shape(lambda: variables_of(longer))
        compiled = jax.jit(lambda v, x: longer.apply(v, x, False)).lower(shapes, np.zeros((1, 100, 80))).compile()
        return compiled.memory_analysis().temp_size_in_bytes / (4 * 100 * 80 * 4)

    assert maps_of(16) < maps_of(4) + 2


@pytest.mark.parametrize("bottleneck", [False, True])
def test_padding_does_not_change_the_embedding(bottleneck):
    network = SMALL.clone(bottleneck=bottleneck)
    rng, variables = np.random.default_rng(0), random_variables.of_module(network, np.zeros((2, 40, 80)), True)
    x, lengths = rng.normal(size=(4, 61, 80)).astype(np.float32), np.array([61, 33, 16, 7])
    padded = x.copy()
    for row, length in enumerate(lengths):
        padded[row, length:] = 1e3  # whatever stands there must not be heard
    embed = jax.jit(lambda x, lengths: network.apply(variables, x, False, lengths))
    together = embed(padded, lengths)
    for row, length in enumerate(lengths):
        alone = embed(x[row : row + 1, :length], None)[0]
        np.testing.assert_allclose(together[row], alone, rtol=2e-4, atol=2e-4 * np.abs(alone).max())


@pytest.mark.slow
def test_training_refuses_lengths_and_remat_changes_nothing():
    variables = jax.tree.map(lambda x: x + 0.3, variables_of(SMALL))  # no branch of a block at rest
    x = np.random.default_rng(0).normal(size=(3, 40, 80)).astype(np.float32)
    with pytest.raises(ValueError, match="batch norm would count the padding"):
        SMALL.apply(variables, x, True, np.array([40, 30, 20]), mutable=["batch_stats"])

    def gradient(network):
        def loss(params):
            embedding, _ = network.apply(variables | {"params": params}, x, True, mutable=["batch_stats"])
            return jnp.square(embedding).sum()

        return jax.grad(loss)(variables["params"])

    plain, again = gradient(SMALL), gradient(SMALL.clone(remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(a).max()), plain, again)
