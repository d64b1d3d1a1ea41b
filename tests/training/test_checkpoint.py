"""Checkpoints that are whole, damaged, or of another model."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import random_variables

from sdpn_jax.errors import UserError
from sdpn_jax.models.network import network_of
from sdpn_jax.training import checkpoint
from sdpn_jax.weights import run

STEPS = 10, 20, 30


def parts(value: float, width: int = 300) -> dict:
    return {"network": {"kernel": jnp.full((width, 4), value)}, "rest": {"step": jnp.asarray(value)}}


@pytest.fixture
def written(tmp_path):
    """A manager of a folder with checkpoints of three steps, each full of its step's number."""
    with checkpoint.manager(tmp_path, keep=3) as checkpoints:
        for step in STEPS:
            checkpoint.save(checkpoints, step, parts(step), {"batch_size": 8})
            checkpoints.wait_until_finished()
    with checkpoint.manager(tmp_path, keep=3) as checkpoints:
        yield checkpoints


def damage(checkpoints, step: int) -> None:
    """Cuts all files of arrays to half of their length, as a full disk might."""
    files = [path for path in Path(checkpoints.directory, str(step)).rglob("d/*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_the_newest_one(written):
    restored, step = checkpoint.resume(written, parts(0))
    assert step == 30
    np.testing.assert_array_equal(restored["network"]["kernel"], np.full((300, 4), 30))
    np.testing.assert_array_equal(run.restore(written, parts(0), 10)[0]["rest"]["step"], 10)


def test_the_config_and_versions_lie_inside(written):
    about = next((written.directory / "30" / "about").glob("*")).read_text()
    assert '"batch_size": 8' in about.replace('":8', '": 8')
    assert set(checkpoint.PACKAGES) <= set(checkpoint.versions())
    assert all(version in about for version in checkpoint.versions().values())


def test_a_damaged_newest_one_falls_back_and_is_written_again(written, caplog):
    damage(written, 30)
    with pytest.raises(UserError, match="can be read"):
        run.restore(written, parts(0), 30)
    assert run.restore(written, parts(0))[1] == 20
    assert 30 in written.all_steps(), "only a run that goes on may delete"
    restored, step = checkpoint.resume(written, parts(0))
    assert step == 20
    np.testing.assert_array_equal(restored["network"]["kernel"], np.full((300, 4), 20))
    assert "checkpoint 30" in caplog.text
    assert "the damaged checkpoint of step 30 is now" in caplog.text
    aside = written.directory.parent / "damaged-checkpoints" / "30-0"
    assert any(path.is_file() for path in Path(aside).rglob("*"))
    checkpoint.save(written, 30, parts(31), {})
    written.wait_until_finished()
    assert float(run.restore(written, parts(0), 30)[0]["rest"]["step"]) == 31


def test_nothing_is_deleted_when_none_can_be_read(written):
    """That speaks of another model rather than of damage."""
    with pytest.raises(UserError, match="use the config it was trained with"):
        checkpoint.resume(written, parts(0, width=200))
    assert sorted(written.all_steps()) == list(STEPS)


def test_no_checkpoint(tmp_path):
    with checkpoint.manager(tmp_path) as checkpoints, pytest.raises(UserError, match="there is none yet"):
        run.restore(checkpoints, parts(0))


def test_which_ones_are_kept(tmp_path):
    with checkpoint.manager(tmp_path, keep=2, keep_every=20) as checkpoints:
        for step in range(10, 70, 10):
            checkpoint.save(checkpoints, step, parts(step), {})
        checkpoints.wait_until_finished()
        assert sorted(checkpoints.all_steps()) == [20, 40, 50, 60]


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), RuntimeError("RESOURCE_EXHAUSTED: out of memory"), MemoryError(),
              ValueError("UNAVAILABLE: no route to host")],
)  # fmt: skip
def test_what_cannot_be_reached_is_tried_again_and_never_touched(written, monkeypatch, error):
    pauses, tries, restore = [], [], written.restore
    monkeypatch.setattr(run.time, "sleep", pauses.append)

    def failing(step, **arguments):
        tries.append(step)
        if len(tries) <= hiccups:
            raise error
        return restore(step, **arguments)

    monkeypatch.setattr(written, "restore", failing)
    hiccups = 2
    assert checkpoint.resume(written, parts(0))[1] == 30, "two hiccups are waited out"
    assert pauses == [2.0, 4.0]
    tries.clear()
    hiccups = 100
    with pytest.raises(UserError, match="checkpoint 30 in .* is out of reach .* nothing was changed"):
        checkpoint.resume(written, parts(0))
    assert set(tries) == {30}, "an older one is not taken instead"
    assert sorted(written.all_steps()) == list(STEPS)


@pytest.mark.parametrize("processes, tries", [(1, 4), (2, 1)])
def test_a_folder_that_cannot_be_listed_ends_in_one_line(tmp_path, monkeypatch, processes, tries):
    asked = []

    def failing(*_, **__):
        asked.append(1)
        raise NotADirectoryError("Path is not a directory: 5")

    monkeypatch.setattr(run.ocp, "CheckpointManager", failing)
    monkeypatch.setattr(run.jax, "process_count", lambda: processes)
    monkeypatch.setattr(run.time, "sleep", lambda _: None)
    with pytest.raises(UserError, match="checkpoints is out of reach .NotADirectoryError.* nothing was changed"):
        checkpoint.manager(tmp_path)
    assert len(asked) == tries, "one of several processes must not try again alone: the others wait for it"


def test_a_checkpoint_that_once_seems_gone_is_not_set_aside(written, monkeypatch):
    """Orbax takes a file for missing that could not be looked at."""
    tries, restore = [], written.restore

    def failing(step, **arguments):
        tries.append(step)
        if len(tries) == 1:
            raise FileNotFoundError(f"Checkpoint at {step} not found.")
        return restore(step, **arguments)

    monkeypatch.setattr(written, "restore", failing)
    assert checkpoint.resume(written, parts(0))[1] == 30
    assert sorted(written.all_steps()) == list(STEPS)


def test_a_checkpoint_that_cannot_be_written_ends_in_one_line(written, monkeypatch):
    def failing(*_, **__):
        raise ValueError("Checkpoint directory does not exist: 40.orbax-checkpoint-tmp")

    monkeypatch.setattr(written, "wait_until_finished", failing)
    with pytest.raises(UserError, match="a checkpoint could not be written to .*: look at the storage"):
        checkpoint.wait(written)


def test_steps_are_listed_without_the_other_processes(written, monkeypatch):
    (written.directory / "40.orbax-checkpoint-tmp").mkdir()
    monkeypatch.setattr(run.ocp, "CheckpointManager", lambda *_, **__: pytest.fail("waits for the other processes"))
    assert run.steps_of(written.directory.parent) == list(STEPS)


def test_reading_writes_nothing(tmp_path, caplog):
    run_of = tmp_path / "run"
    sizes = {"channels": (8,) * 5, "se_bottleneck": 8, "attention": 8, "embedding_size": 8, "hidden_size": 8}
    variables = random_variables.of_network(network_of(sizes))
    with checkpoint.manager(run_of) as checkpoints:
        checkpoint.save(checkpoints, 5, {"teacher": variables}, {})
        checkpoints.wait_until_finished()
    checkpoint.write_config(run_of, {"model": sizes})
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    caplog.clear()
    assert run.read_network(run_of)[2] == 5
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    (tmp_path / "empty").mkdir()
    checkpoint.write_config(tmp_path / "empty", {"model": sizes})
    with pytest.raises(UserError, match="there is none yet"):
        run.read_network(tmp_path / "empty")
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "config", [{}, {"model": 3}, {"model": {"channels": 7}}, {"model": {"such": 1, "channels": [8]}}]
)
def test_a_config_of_something_else(tmp_path, config):
    checkpoint.write_config(tmp_path, config)
    with pytest.raises(UserError, match="is not the config of a training run"):
        run.read_network(tmp_path)
