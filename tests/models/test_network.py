"""Networks of any encoder from their sizes, and back."""

import jax
import numpy as np
import pytest
import random_variables

from sdpn_jax.models.network import ENCODERS, network_of, sizes_of

NARROW = {"width": 8, "channels": (8,) * 5, "embedding_size": 6, "hidden_size": 8, "projection_size": 4}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_sizes_describe_a_network(encoder):
    network = network_of({"encoder": encoder, "embedding_size": 24, "front_end": "wespeaker", "remat": True})
    assert sizes_of(network)["encoder"] == encoder
    assert network_of(sizes_of(network)) == network


def test_a_width_of_zero_is_the_published_one():
    assert network_of({"encoder": "resnet34", "width": 0}).encoder.width == 32
    assert network_of({"encoder": "resnet34", "width": 8}).encoder.width == 8


def test_only_log_mel_is_normalised_inside():
    x = np.random.default_rng(0).normal(3, 2, size=(2, 40, 80)).astype(np.float32)
    normalised = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    of_sdpn, of_others = (network_of({**NARROW, "front_end": name}) for name in ("sdpn", "wespeaker"))
    variables = random_variables.of_network(of_sdpn)
    inside = jax.jit(lambda x: of_sdpn.apply(variables, x, method=of_sdpn.embed))(x)
    outside = jax.jit(lambda x: of_others.apply(variables, x, method=of_others.embed))
    np.testing.assert_allclose(inside, outside(normalised), rtol=1e-4, atol=1e-5)
    assert np.abs(inside - outside(x)).max() > 0.01
