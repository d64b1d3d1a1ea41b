"""Variables of networks, drawn by NumPy: what JAX would compile to draw them takes longer than most tests."""

import jax
import numpy as np

from sdpn_jax.models.network import initial_variables


def of_network(network, seed=0):
    """{"params", "batch_stats"} of a network with encoder and head."""
    return drawn(jax.eval_shape(lambda: initial_variables(network, 0)), seed)


def of_module(module, *inputs, seed=0):
    """The variables of one module, which takes these inputs."""
    return drawn(jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs)), seed)


def drawn(shapes, seed=0):
    """Kernels that keep their inputs' size, scales and variances about 1, biases and means about 0."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        size = 0.2 if leaf.ndim == 1 else 1 / np.sqrt(np.prod(leaf.shape[:-1]))
        return (size * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)
