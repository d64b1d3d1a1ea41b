"""StableHLO of networks that hear the features of other toolkits; that of SDPN's is run in tests/speaker."""

import jax
import numpy as np
import pytest
from jax import export

from sdpn_jax.data import front_ends
from sdpn_jax.models.network import initial_variables, network_of
from sdpn_jax.weights import stablehlo


@pytest.mark.parametrize("front_end", ["wespeaker", "speechbrain"])
def test_features_of_other_toolkits(front_end):
    network = network_of({"encoder": "resnet18", "width": 4, "embedding_size": 6, "front_end": front_end})
    shapes, rng = jax.eval_shape(lambda: initial_variables(network, 0)), np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.random(x.shape, np.float32), shapes)
    samples = 0.1 * rng.normal(size=(2, 4001)).astype(np.float32)
    found = export.deserialize(bytearray(stablehlo.serialise(network, variables))).call(samples)
    features = np.stack([front_ends.FRONT_ENDS[front_end](row) for row in samples])
    truth = jax.jit(lambda x: network.apply(variables, x, method=network.embed))(features)
    np.testing.assert_allclose(found, truth, rtol=0, atol=1e-5 * np.abs(truth).max())
