"""How a run came to be, and what it may go on with."""

import json

import pytest

from sdpn_jax import config as configs
from sdpn_jax.errors import UserError
from sdpn_jax.training import history
from sdpn_jax.weights import run


def config(*flags):
    return configs.load("vox2", [f"--config.{flag}" for flag in flags])


def record(folder, step, *flags, data="d", origin=None):
    history.record(configs.as_json(config(*flags)), folder, step, data, origin)
    return [(entry["step"], entry["schedule"]["num_epochs"]) for entry in run.read_history(folder)]


def test_every_schedule_has_an_entry(tmp_path):
    assert record(tmp_path, 0, origin={"source": "x"}) == [(0, 150)]
    assert record(tmp_path, 100) == [(0, 150)], "resumed"
    assert record(tmp_path, 100, "num_epochs=200") == [(0, 150), (100, 200)]
    assert record(tmp_path, 100, "num_epochs=300") == [(0, 150), (100, 300)], "no step was made with 200"
    assert record(tmp_path, 120, "num_epochs=400") == [(0, 150), (100, 300), (120, 400)]
    assert record(tmp_path, 110, "num_epochs=400") == [(0, 150), (100, 300), (110, 400)], "from an older checkpoint"
    assert run.read_history(tmp_path)[0]["origin"] == {"source": "x"}
    assert run.read_config(tmp_path)["num_epochs"] == 400
    assert record(tmp_path, 0) == [(0, 150)], "a new run"


def test_a_run_of_an_earlier_version_gets_a_history(tmp_path):
    (tmp_path / run.CONFIG).write_text(json.dumps(configs.as_json(config())))
    assert record(tmp_path, 50, "num_epochs=200") == [(0, 150), (50, 200)]


def test_data_are_known_by_content(tmp_path):
    record(tmp_path, 0)
    history.check(config("data_dir=moved"), tmp_path, "d", extend=False)
    with pytest.raises(UserError, match="holds other data than the run"):
        history.check(config(), tmp_path, "e", extend=False)
    with pytest.raises(UserError, match="--extend"):
        history.check(config("num_epochs=200"), tmp_path, "d", extend=False)
    history.check(config("num_epochs=200"), tmp_path, "d", extend=True)


def test_data_of_an_earlier_version_are_known_by_their_path(tmp_path):
    (tmp_path / run.CONFIG).write_text(json.dumps(configs.as_json(config())))
    history.check(config("data_dir=data/vox2/"), tmp_path, "d", extend=False)
    with pytest.raises(UserError, match="resume it once with --config.data_dir=data/vox2"):
        history.check(config("data_dir=moved"), tmp_path, "d", extend=False)


def test_checkpoints_without_a_config(tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        history.check(config(), tmp_path, "d", extend=False)


@pytest.mark.parametrize("text", ["{", "[1]", '[{"step": "x"}]', "7"])
def test_a_damaged_history(tmp_path, text):
    (tmp_path / run.HISTORY).write_text(text)
    with pytest.raises(UserError, match="history.json is damaged"):
        run.read_history(tmp_path)


def test_a_schedule_that_ends_before_the_run():
    history.check_end(10, 10)
    with pytest.raises(UserError, match="reached step 10, beyond the 9 steps"):
        history.check_end(10, 9)
