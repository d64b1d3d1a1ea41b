"""ERes2NetV2: counts of the originals, a block by hand, padding, training. Golden numbers: weights/test_convert.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_variables
from flax.traverse_util import flatten_dict, unflatten_dict

from sdpn_jax.models.eres2net import ERes2NetV2, Res2NetBlock

SMALL = ERes2NetV2(blocks=(1, 1, 2, 1), width=4, base_width=24, scale=3, embedding_size=6)


def shapes_of(network, shape=(2, 32, 80)):
    return jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros(shape), False))


@pytest.mark.parametrize("sizes, count", [
    ({}, 17_859_632), ({"base_width": 24, "scale": 4, "expansion": 4}, 53_513_632),
])  # fmt: skip
def test_parameters_of_the_originals(sizes, count):
    shapes = shapes_of(ERes2NetV2(**sizes))["params"]
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize("fused, x, expected", [(False, 30, 5), (False, 60, 20), (True, 30, 7.5), (True, 10, 0)])
def test_a_block_by_hand(fused, x, expected):
    """Of 30 both groups get 20, the first makes 10 of it, the second 15 of 20 + 10: 30 - 10 - 15 = 5.

    With attention 1.5 and 0.5 the second makes 12.5 of 1.5 * 10 + 0.5 * 20. Of 10: 5, 6.25, and less than nothing.
    """
    block = Res2NetBlock(features=1, group=4, scale=2, stride=1, fused=fused)
    x = jnp.full((1, 1, 1, 1), x, jnp.float32)
    shapes = flatten_dict(shapes_of(block, x.shape))
    variables = {path: np.full(leaf.shape, path[-1] in ("scale", "var"), np.float32) for path, leaf in shapes.items()}
    halved = np.zeros((3, 3, 4, 4), np.float32)
    halved[1, 1] = 0.5 * np.eye(4)
    spread, averaged = np.ones((1, 1, 1, 8)), np.full((1, 1, 8, 1), -0.25)
    for name, kernel in {"conv1": spread, "convs_0": halved, "convs_1": halved, "conv3": averaged}.items():
        variables["params", name, "kernel"] = kernel
    if fused:
        norm = ("params", "fuse_models_0", "local_att_4")
        variables |= {(*norm, "scale"): np.zeros(4), (*norm, "bias"): np.full(4, np.arctanh(0.5))}
    found = jax.jit(block.apply, static_argnums=2)(unflatten_dict(variables), x, False)
    np.testing.assert_allclose(found.item(), expected, rtol=1e-4)


def test_padding_does_not_change_the_embedding():
    rng = np.random.default_rng(0)
    variables = random_variables.drawn(shapes_of(SMALL))
    embed = jax.jit(lambda x, lengths: SMALL.apply(variables, x, False, lengths))
    x, lengths = rng.normal(size=(3, 45, 80)).astype(np.float32), np.array([45, 26, 7])
    padded = x.copy()
    for row, length in enumerate(lengths):
        padded[row, length:] = 1e3  # whatever stands there must not be heard
    together = embed(padded, lengths)
    for row, length in enumerate(lengths):
        alone = embed(x[row : row + 1, :length], None)[0]
        np.testing.assert_allclose(together[row], alone, rtol=2e-4, atol=2e-4 * np.abs(alone).max())


@pytest.mark.slow
def test_training_refuses_lengths_and_remat_changes_nothing():
    """All of the first maps exceed 20 here, where only those of the blocks are clipped: the gradient comes through."""
    rng = np.random.default_rng(0)
    network, x = SMALL.clone(blocks=(1, 1, 1, 1), scale=2), rng.normal(size=(2, 24, 80))
    with jax.enable_x64(True):
        variables = random_variables.drawn(shapes_of(network))
        variables["params"]["bn1"]["bias"] = np.full(4, 100.0)
        with pytest.raises(ValueError, match="batch norm would count the padding"):
            network.apply(variables, x, True, np.array([24, 20]), mutable=["batch_stats"])

        def gradient(network):
            def loss(params):
                embedding, _ = network.apply(variables | {"params": params}, x, True, mutable=["batch_stats"])
                return jnp.square(embedding).sum()

            return jax.jit(jax.grad(loss))(variables["params"])

        double = network.clone(dtype=np.float64)
        plain, again = gradient(double), gradient(double.clone(remat=True))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(plain))
    assert np.abs(plain["conv1"]["kernel"]).max() > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-10), plain, again)
