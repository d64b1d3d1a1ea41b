"""One run on several devices and on several hosts, each in processes of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_run import ECAPA, arguments_of, losses_of, make_workplace, train_on

ROOT = Path(__file__).parents[2]
# With a head that is large enough to be split over devices, and the encoder whose products are fast in float64.
WIDE_FLOAT64 = [
    *ECAPA, "--config.model.dtype=float64", "--config.model.hidden_size=512", "--config.model.projection_size=128",
]  # fmt: skip


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return make_workplace(tmp_path_factory.mktemp("workplace"))


@pytest.mark.slow
def test_four_devices_give_the_same_losses(workplace, monkeypatch):
    """In float64, where the order of additions cannot grow into a difference within a few steps; state split in two."""
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    train_on(1, workplace, workplace / "1", *WIDE_FLOAT64)
    one = losses_of(workplace / "1")
    assert sorted(one) == list(range(1, 21))
    train_on(4, workplace, workplace / "4", *WIDE_FLOAT64, "--config.mesh.fsdp=2")
    np.testing.assert_allclose(list(losses_of(workplace / "4").values()), list(one.values()), rtol=1e-8)


@pytest.mark.slow
def test_two_hosts_give_the_same_losses(workplace, monkeypatch):
    """Two processes of two devices on loopback, beside one of one device (which the test before has left).

    Their run can be resumed elsewhere.
    """
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    if not (workplace / "1").exists():
        train_on(1, workplace, workplace / "1", *WIDE_FLOAT64)
    command = ["bash", "launch/local.sh", *arguments_of(workplace, workplace / "hosts"), *WIDE_FLOAT64]
    python = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PROCESSES": "2", "DEVICES": "2", "JAX_PLATFORMS": "cpu", "PATH": python}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = losses_of(workplace / "1"), losses_of(workplace / "hosts")
    assert sorted(one) == sorted(two) == list(range(1, 21))
    np.testing.assert_allclose([two[k] for k in one], list(one.values()), rtol=1e-8)

    shutil.rmtree(workplace / "hosts" / "checkpoints" / "20")
    said = train_on(1, workplace, workplace / "hosts", *WIDE_FLOAT64).stderr
    assert "resumed from the checkpoint of step 15" in said, "on one device of one host"
    np.testing.assert_allclose(list(losses_of(workplace / "hosts").values()), list(one.values()), rtol=1e-8)
