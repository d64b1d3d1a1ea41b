"""CAM++: counts of the originals, its layers in plain NumPy, padding, training; its numbers: tests/weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_variables

from sdpn_jax.models import frames
from sdpn_jax.models.campplus import VARIANCE_FLOOR, CAMPlus, ContextGated, TimeDelay, segment_averages

SMALL = CAMPlus(blocks=(1, 2, 1), width=4, initial=8, growth=4, bottleneck_factor=2, embedding_size=6)


def variables_of(network):
    return jax.jit(lambda: network.init(jax.random.key(0), jnp.zeros((2, 40, 80)), True))()


@pytest.mark.parametrize("embedding_size, count", [(512, 7_176_224), (192, 6_848_544)])
def test_parameters_of_the_originals(embedding_size, count):
    shapes = jax.eval_shape(lambda: variables_of(CAMPlus(embedding_size=embedding_size)))["params"]
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize("taps, dilation, stride, num_frames", [(5, 1, 2, 8), (5, 1, 2, 9), (3, 2, 1, 7), (1, 1, 1, 3)])
def test_time_delay_is_a_correlation_of_the_sequence_between_zeros(taps, dilation, stride, num_frames):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, num_frames, 3)), rng.normal(size=(taps, 3, 4))
    found = TimeDelay(4, taps, dilation, stride).apply({"params": {"kernel": kernel}}, x)
    pad = dilation * (taps // 2)
    zeros = np.zeros((2, pad, 3))
    around = np.concatenate([zeros, x, zeros], axis=1)
    expected = [sum(around[:, t + dilation * i] @ kernel[i] for i in range(taps)) for t in range(0, num_frames, stride)]
    np.testing.assert_allclose(found, np.stack(expected, axis=1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_frames", [7, 100, 101, 250])
def test_the_gate_sees_the_sequence_and_the_segment(num_frames):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, num_frames, 4)).astype(np.float32)
    layer = ContextGated(features=3, dilation=1)
    params = random_variables.of_module(layer, x, segment_averages(x))["params"]
    found = jax.jit(lambda params, x: layer.apply({"params": params}, x, segment_averages(x)))(params, x)[0]
    local, squeeze, excite = params["local"], params["squeeze"], params["excite"]
    around = np.pad(x[0].astype(np.float64), ((1, 1), (0, 0)))
    for t in range(num_frames):
        begin = t // 100 * 100
        context = x[0].mean(0) + x[0, begin : begin + 100].mean(0)
        hidden = np.maximum(context @ squeeze["kernel"][0] + squeeze["bias"], 0)
        gate = 1 / (1 + np.exp(-hidden @ excite["kernel"][0] - excite["bias"]))
        expected = sum(around[t + i] @ local["kernel"][i] for i in range(3)) * gate
        np.testing.assert_allclose(found[t], expected, rtol=1e-4, atol=1e-5)


def test_a_dense_block_begins_by_passing_on_what_it_was_given_and_can_leave_it():
    x = np.random.default_rng(0).normal(size=(3, 40, 80)).astype(np.float32)
    variables = variables_of(SMALL)
    expected = {"transit1_norm": (8, 4), "transit2_norm": (6, 8), "transit3_norm": (7, 4)}
    for name, (given, made) in expected.items():
        np.testing.assert_array_equal(variables["params"][name]["scale"], np.float32([1.0] * given + [0.01] * made))

    def loss(params):
        return SMALL.apply(variables | {"params": params}, x, True, mutable=["batch_stats"])[0][:, 0] @ np.arange(3.0)

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    assert all((np.abs(gradient[name]["scale"][given:]) > 0).all() for name, (given, _) in expected.items())


def test_padding_does_not_change_the_embedding():
    """Of the two lengths about 200 frames one is a whole segment after the stride, the other one frame more."""
    rng, lengths = np.random.default_rng(0), np.array([230, 201, 200, 7])
    variables, x = random_variables.of_module(SMALL, np.zeros((2, 40, 80)), True), rng.normal(size=(4, 230, 80))
    padded = x.copy()
    for row, length in enumerate(lengths):
        padded[row, length:] = 1e3  # whatever stands there must not be heard
    with jax.enable_x64(True):
        network = SMALL.clone(dtype=np.float64)
        embed = jax.jit(lambda v, x, lengths: network.apply(v, x, False, lengths))
        together = embed(variables, padded, lengths)
        for row, length in enumerate(lengths):
            alone = embed(variables, x[row : row + 1, :length], None)[0]
            assert np.abs(alone).max() > 0.1
            np.testing.assert_allclose(together[row], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_training_refuses_lengths_and_remat_changes_nothing():
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(3, 40, 80)), rng.normal(size=(3, 6))
    with jax.enable_x64(True):
        variables = jax.tree.map(
            lambda array: jnp.asarray(array, jnp.float64),
            random_variables.of_module(SMALL, np.zeros((2, 40, 80)), True),
        )
        exact = SMALL.clone(dtype=np.float64)
        with pytest.raises(ValueError, match="batch norm would count the padding"):
            exact.apply(variables, x, True, np.array([40, 30, 20]), mutable=["batch_stats"])

        def gradient(network):
            def loss(params):
                embedding, _ = network.apply(variables | {"params": params}, x, True, mutable=["batch_stats"])
                return (embedding * weight).sum()

            return jax.jit(jax.grad(loss))(variables["params"])

        plain, again = gradient(exact), gradient(exact.clone(remat=True))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(plain))
    assert np.abs(plain["conv1"]["kernel"]).max() > 1e-3
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12 * largest), plain, again)


def test_channels_that_do_not_change_have_no_deviation_and_a_gradient():
    x = jnp.ones((1, 5, 2))
    deviation, gradient = jax.value_and_grad(lambda x: frames.mean_and_deviation(x, None, VARIANCE_FLOOR)[:, 2:].sum())(
        x
    )
    assert deviation == pytest.approx(0, abs=1e-12)
    np.testing.assert_array_equal(gradient, 0)
