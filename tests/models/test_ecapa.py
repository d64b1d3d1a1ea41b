"""The encoder and head against the released PyTorch numbers, and properties that a formula can state."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_variables

from sdpn_jax.models import ecapa
from sdpn_jax.models.network import Network, initial_variables, network_of
from sdpn_jax.weights.sdpn_names import from_released

SMALL = dict(channels=(16, 16, 16, 16, 24), se_bottleneck=8, attention=8, embedding_size=12, hidden_size=20)
SHALLOW = SMALL | {"channels": (16, 16, 24)}  # one block of three, which compiles sooner


@pytest.fixture(scope="module")
def vectors(golden):
    return dict(np.load(golden / "encoder.npz"))


def of_state(vectors: dict, prefix: str) -> dict:
    """The released arrays whose names in the vectors start with `prefix`."""
    return {name.removeprefix(prefix): array for name, array in vectors.items() if name.startswith(prefix)}


def log_mel(vectors, name, dtype):
    return jnp.log(jnp.asarray(vectors[name], dtype).swapaxes(1, 2) + 1e-6)


@pytest.mark.parametrize("dtype, rtol", [(np.float64, 1e-9), (np.float32, 1e-4)])
def test_golden_encoder(vectors, dtype, rtol):
    def close(actual, expected):
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * np.abs(expected).max())

    with jax.enable_x64(dtype == np.float64):
        state = of_state(vectors, "state/")
        sizes, released = from_released(state)
        variables = jax.tree.map(lambda x: jnp.asarray(x, dtype), released)
        network = network_of({**sizes, "dtype": dtype})
        x = log_mel(vectors, "input_mel_power", dtype)

        embedding, projection = jax.jit(lambda v, x: network.apply(v, x, False))(variables, x)
        close(embedding, vectors["eval_embedding"])
        close(projection, vectors["eval_projection"])

        train = jax.jit(lambda v, x: network.apply(v, x, True, mutable=["batch_stats"]))
        (embedding, projection), updated = train(variables, x)
        close(embedding, vectors["train_embedding"])
        close(projection, vectors["train_projection"])
        after = from_released(state | of_state(vectors, "state_after_train/"))[1]["batch_stats"]
        jax.tree.map(close, updated["batch_stats"], after)

        x = log_mel(vectors, "input_mel_power_long", dtype)
        embed = jax.jit(lambda v, x: network.apply(v, x, method=network.embed))
        close(embed(variables, x), vectors["eval_embedding_long"])


def test_parameter_counts_of_the_full_size():
    shapes = jax.eval_shape(lambda: initial_variables(Network(), 0))["params"]
    count = {part: sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes[part])) for part in shapes}
    assert count == {"encoder": 22_733_952, "head": 5_779_712}  # of the released model


def test_padding_does_not_change_the_embedding():
    network = network_of(SMALL)
    variables = random_variables.of_network(network)
    x = np.random.default_rng(0).normal(size=(3, 60, 80)).astype(np.float32)
    lengths = np.array([60, 33, 6])
    padded = x.copy()
    for row, length in enumerate(lengths):
        padded[row, length:] = 1e3  # whatever stands there must not be heard
    embed = jax.jit(lambda x, lengths: network.apply(variables, x, lengths, method=network.embed))
    together = embed(padded, lengths)
    for row, length in enumerate(lengths):
        alone = embed(x[row : row + 1, :length], None)[0]
        np.testing.assert_allclose(together[row], alone, rtol=2e-4, atol=2e-5)


def test_training_mode_refuses_lengths():
    with pytest.raises(ValueError, match="count the padding"):
        ecapa.ECAPA().init(jax.random.key(0), jnp.zeros((2, 20, 80)), True, jnp.array([20, 10]))


def test_embedding_ignores_the_level_of_each_mel_bin():
    network = network_of(SHALLOW)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 40, 80)).astype(np.float32)
    louder = 0.5 * x + rng.normal(size=(1, 1, 80)).astype(np.float32)
    embed = jax.jit(partial(network.apply, random_variables.of_network(network), method=network.embed))
    a, b = embed(x), embed(louder)
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_no_gradient_reaches_the_features():
    network = network_of(SHALLOW)
    variables = random_variables.of_network(network)
    x = np.random.default_rng(2).normal(size=(2, 40, 80)).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda x: network.apply(variables, x, method=network.embed).sum()))(x)
    assert not np.any(gradient)


@pytest.mark.slow
def test_bfloat16_keeps_parameters_statistics_and_outputs_in_float32():
    network = network_of({**SMALL, "projection_size": 6, "dtype": "bfloat16"})
    variables = initial_variables(network, 0)
    x = np.random.default_rng(3).normal(size=(4, 40, 80)).astype(np.float16)
    (embedding, projection), updated = network.apply(variables, x, True, mutable=["batch_stats"])
    leaves = [*jax.tree.leaves(variables), *jax.tree.leaves(updated), embedding, projection]
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    exact = network_of({**SMALL, "projection_size": 6}).apply(variables, x, True, mutable=["batch_stats"])[0][0]
    cosine = np.sum(embedding * exact, -1) / np.linalg.norm(embedding, axis=-1) / np.linalg.norm(exact, axis=-1)
    assert np.all(cosine > 0.99)


def test_initial_variables_follow_the_seed():
    network = network_of(SHALLOW)
    first, again, other = (initial_variables(network, seed)["params"] for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernel = lambda params: params["encoder"]["mfa"]["conv"]["kernel"]  # noqa: E731
    assert np.all(kernel(first) != kernel(other))
    bound = 16**-0.5
    assert np.abs(kernel(first)).max() <= bound
    assert np.abs(kernel(first)).std() == pytest.approx(bound * 12**-0.5, rel=0.1)
