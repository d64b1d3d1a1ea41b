"""WeSpeaker's ECAPA: counts, padding, training. Its numbers are compared in tests/weights/test_convert.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_variables

from sdpn_jax.models.ecapa_wespeaker import AttentivePooling, WeSpeakerECAPA

SMALL = WeSpeakerECAPA(width=8, se_bottleneck=4, attention=6, embedding_size=5)
FORMS = [(True, False), (False, True)]  # global_context, embedding_norm


def variables_of(network):
    return random_variables.of_module(network, np.zeros((2, 40, 80)), True)


@pytest.mark.parametrize("sizes, count", [
    ({"width": 1024}, 14_657_088), ({"width": 512}, 6_190_720),
    ({"width": 512, "global_context": False}, 6_190_720 - 2 * 1536 * 128),
    ({"width": 512, "embedding_norm": True}, 6_190_720 + 2 * 192),
])  # fmt: skip
def test_parameters_of_the_originals(sizes, count):
    network = WeSpeakerECAPA(**sizes)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((2, 40, 80)), True))["params"]
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize("global_context, embedding_norm", FORMS)
def test_padding_does_not_change_the_embedding(global_context, embedding_norm):
    network = SMALL.clone(global_context=global_context, embedding_norm=embedding_norm)
    variables = variables_of(network)
    x, lengths = np.random.default_rng(1).normal(size=(3, 61, 80)).astype(np.float32), np.array([61, 33, 2])
    padded = x.copy()
    for row, length in enumerate(lengths):
        padded[row, length:] = 1e3  # whatever stands there must not be heard
    embed = jax.jit(lambda v, x, lengths: network.apply(v, x, False, lengths))
    together = embed(variables, padded, lengths)
    for row, length in enumerate(lengths):
        alone = embed(variables, x[row : row + 1, :length], None)[0]
        np.testing.assert_allclose(together[row], alone, rtol=1e-4, atol=1e-4 * np.abs(alone).max())


@pytest.mark.parametrize("global_context", [True, False])
def test_the_pooling_is_attention_weighted_statistics(global_context):
    """In float64, of the formulas: attention of tanh, deviation at least sqrt(1e-7), unbiased in the context."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(3, 7, 4)) * [1, 2, 1, 1e-5]
    x[..., 2] = 0.5  # never varies
    seen = [x, *(np.broadcast_to(m, x.shape) for m in (x.mean(1, keepdims=True), deviation(x.var(1, keepdims=True))))]
    seen = np.concatenate(seen if global_context else seen[:1], axis=-1)
    w1, b1, w2, b2 = (rng.normal(size=shape) for shape in [(seen.shape[-1], 5), 5, (5, 4), 4])
    attention = np.exp(np.tanh(seen @ w1 + b1) @ w2 + b2)
    attention /= attention.sum(1, keepdims=True)
    mean = (attention * x).sum(1)
    variance = (attention * x**2).sum(1) - mean**2
    expected = np.concatenate([mean, np.sqrt(variance.clip(1e-7))], axis=-1)
    params = {"tdnn_conv": {"kernel": w1[None], "bias": b1}, "conv": {"kernel": w2[None], "bias": b2}}
    with jax.enable_x64(True):
        pooling = AttentivePooling(5, global_context, jnp.float64)
        np.testing.assert_allclose(pooling.apply({"params": params}, jnp.asarray(x)), expected, rtol=1e-9)


def deviation(biased, frames=7):
    return np.sqrt(biased * frames / (frames - 1) + 1e-7)


@pytest.mark.parametrize("global_context", [True, False])
def test_channels_that_never_vary_have_a_finite_gradient(global_context):
    """Their deviation is the root of 0."""
    pooling, x = AttentivePooling(5, global_context), jnp.full((2, 7, 4), 0.5)
    params = pooling.init(jax.random.key(0), x)
    gradient = jax.grad(lambda params, x: (pooling.apply(params, x) ** 2).sum(), (0, 1))
    gradients = jax.jit(gradient)(params, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    np.testing.assert_allclose(gradients[1].sum(1), 2 * 0.5, rtol=1e-5)  # of the squared mean alone


@pytest.mark.slow
def test_training_refuses_lengths_and_remat_changes_nothing():
    network = SMALL.clone(embedding_norm=True)
    variables, x = variables_of(network), np.random.default_rng(0).normal(size=(3, 40, 80)).astype(np.float32)
    with pytest.raises(ValueError, match="batch norm would count the padding"):
        network.apply(variables, x, True, np.array([40, 30, 20]), mutable=["batch_stats"])

    def gradient(network):
        def loss(params, kept):
            embedding, _ = network.apply({"params": params, "batch_stats": kept}, x, True, mutable=["batch_stats"])
            return (embedding**3).sum()

        return jax.jit(jax.grad(loss))(variables["params"], variables["batch_stats"])

    plain, again = gradient(network), gradient(network.clone(remat=True))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain))
    assert np.isfinite(largest) and largest > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * largest), plain, again)


def test_the_embedding_is_normed_by_its_running_statistics():
    network = SMALL.clone(embedding_norm=True)
    variables = variables_of(network)
    x = np.random.default_rng(3).normal(size=(2, 20, 80)).astype(np.float32)
    within = lambda module, _: module.name == "embedding"  # noqa: E731
    embed = jax.jit(lambda v: network.apply(v, x, False, capture_intermediates=within))
    found, seen = embed(variables)
    before = seen["intermediates"]["embedding"]["__call__"][0][:, 0]
    norm, kept = variables["params"]["embedding_norm"], variables["batch_stats"]["embedding_norm"]
    expected = (before - kept["mean"]) / np.sqrt(kept["var"] + 1e-5) * norm["scale"] + norm["bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
