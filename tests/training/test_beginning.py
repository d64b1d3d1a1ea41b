"""A run that begins from weights: what is taken, what is drawn anew, what is refused."""

import jax
import numpy as np
import pytest
import random_variables
from small_network import SIZES

from sdpn_jax.errors import UserError
from sdpn_jax.models.network import network_of
from sdpn_jax.training import beginning, checkpoint, history, optim
from sdpn_jax.training.step import init_state
from sdpn_jax.weights import model_folder


def state_of(seed, prototypes=5, **changes):
    optimizer = optim.optimizer(lambda _: 0.1, 0.9, 0.0, 1.0)
    return jax.jit(lambda: init_state(network_of({**SIZES, **changes}), prototypes, optimizer, seed))()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run whose teacher, student and prototypes all differ."""
    folder = tmp_path_factory.mktemp("source")
    state = state_of(1).replace(teacher=random_variables.of_network(network_of(SIZES), 2))
    with checkpoint.manager(folder) as checkpoints:
        checkpoint.save(checkpoints, 7, checkpoint.parts_of(state), {})
        checkpoints.wait_until_finished()
    config = {"model": SIZES, "num_prototypes": 5, "num_steps": 9, "num_epochs": 0}
    history.record(config, folder, 0, "data")
    return folder, state


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("networks", ["teacher", "both"])
def test_a_workdir(source, networks):
    folder, theirs = source
    found, about = beginning.read(folder, networks)
    state, left = beginning.put_in(state_of(3), found, str(folder))
    assert left == []
    assert_equal(state.teacher, theirs.teacher)
    assert_equal(state.student, theirs.student if networks == "both" else theirs.teacher)
    assert_equal(state.prototypes, theirs.prototypes)
    assert about["step"] == 7
    assert about["history"][0]["data"] == "data"
    assert len(about["fingerprint"]) == 64


def test_a_model_folder_has_no_prototypes(source, tmp_path, caplog):
    _, theirs = source
    model_folder.write_model(tmp_path / "m", SIZES, theirs.teacher, {"weights": "teacher"}, None, "MIT")
    found, about = beginning.read(tmp_path / "m", "teacher")
    state, left = beginning.put_in(state_of(3), found, "m")
    assert left == ["prototypes"]
    assert "1 arrays are drawn anew, as m has none that fit: prototypes" in caplog.text
    assert_equal(state.student, theirs.teacher)
    assert_equal(state.prototypes, state_of(3).prototypes)
    assert about["history"] == {"weights": "teacher"}
    with pytest.raises(UserError, match="it holds one network"):
        beginning.read(tmp_path / "m", "both")


def test_what_does_not_fit_is_named_and_drawn(source):
    folder, theirs = source
    drawn = state_of(3, prototypes=6, hidden_size=12)
    state, left = beginning.put_in(drawn, beginning.read(folder, "teacher")[0], "source")
    assert "student/params/head/dense_0/kernel" in left
    assert "prototypes" in left
    assert not [name for name in left if "/encoder/" in name]
    assert_equal(state.student["params"]["encoder"], theirs.teacher["params"]["encoder"])
    assert_equal(state.student["params"]["head"]["dense_0"], drawn.student["params"]["head"]["dense_0"])


def test_an_encoder_of_other_sizes_is_refused(source):
    found = beginning.read(source[0], "teacher")[0]
    wider = state_of(3, width=8, embedding_size=4)
    with pytest.raises(UserError, match="nothing of its encoder fits"):
        beginning.put_in(wider, found, "source")


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        beginning.read(tmp_path / "none", "teacher")
