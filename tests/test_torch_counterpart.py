"""The plain PyTorch step that benchmarks compare with computes what this project's step computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import vox2
from sdpn_jax.models.network import network_of
from sdpn_jax.training import optim
from sdpn_jax.training.step import Objective, init_state, make_train_step

torch = pytest.importorskip("torch", reason="PyTorch is not installed (the extra `bench`)")
STEPS = 3


def small_config(targets: str):
    config = vox2.get_config()
    config.model.update(channels=(16, 16, 16, 16, 24), se_bottleneck=8, attention=8, embedding_size=12)
    config.model.update(hidden_size=20, projection_size=8, dtype="float64")
    config.objective.targets, config.num_prototypes = targets, 10
    return config


@pytest.mark.parametrize("targets", ["softmax", "balanced"])
def test_three_steps_are_the_same(targets):
    import torch_counterpart

    config = small_config(targets)
    rates, momenta = np.array([0.3, 0.2, 0.1]), np.array([0.9, 0.95, 0.99])
    with jax.enable_x64(True):
        network = network_of(config.model)
        learning_rate = lambda step: jnp.array(rates)[step]  # noqa: E731
        momentum = lambda step: jnp.array(momenta)[step]  # noqa: E731
        optimizer = optim.optimizer(learning_rate, config.momentum, config.weight_decay, config.clip_norm)
        state = init_state(network, config.num_prototypes, optimizer, 0)
        state = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state)
        theirs = torch_counterpart.counterpart_of(config, jax.device_get(state))
        step = jax.jit(make_train_step(network, optimizer, Objective(**config.objective), learning_rate, momentum))
        rng = np.random.default_rng(0)
        for k in range(STEPS):
            batch = {"global": rng.normal(size=(6, 1, 50, 80)), "local": rng.normal(size=(6, 4, 30, 80))}
            state, metrics = step(state, batch)
            as_torch = {name: torch.from_numpy(views) for name, views in batch.items()}
            loss = theirs.step(as_torch, rates[k], momenta[k])
            np.testing.assert_allclose(float(loss), float(metrics["loss"]), rtol=1e-10)
        state = jax.device_get(state)
    expected = {name: value.detach().numpy() for name, value in theirs.student.state_dict().items()}
    actual = torch_counterpart.sdpn_names.to_released(state.student, STEPS)
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-7, atol=1e-10, err_msg=name)
    actual = torch_counterpart.sdpn_names.to_released(state.teacher, STEPS)
    for name, value in theirs.teacher.state_dict().items():
        np.testing.assert_allclose(actual[name], value.detach().numpy(), rtol=1e-7, atol=1e-10, err_msg=name)
    np.testing.assert_allclose(state.prototypes, theirs.prototypes.detach().numpy(), rtol=1e-8)
    np.testing.assert_allclose(state.offset, theirs.offset.numpy(), rtol=1e-8, atol=1e-10)
