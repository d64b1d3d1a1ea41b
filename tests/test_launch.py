"""What starts runs elsewhere, as far as it can be checked here: syntax, options, and what scripts hand on."""

import inspect
import os
import re
import subprocess
from pathlib import Path

import pytest

from sdpn_jax.cli import program

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
YAML = [*sorted(LAUNCH.glob("*.yaml")), *sorted((ROOT / ".github/workflows").glob("*.yml"))]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(path):
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_yaml_parses(path):
    yaml = pytest.importorskip("yaml")
    assert all(isinstance(part, dict) for part in yaml.safe_load_all(path.read_text()))


def containers(path):
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load(path.read_text())["spec"]["replicatedJobs"][0]["template"]["spec"]
    return job["template"]["spec"]["containers"]


@pytest.mark.parametrize("name", ["k8s_gpu.yaml", "k8s_tpu.yaml"])
def test_kubernetes_runs_the_program_itself_with_options_that_it_has(name):
    (container,) = containers(LAUNCH / name)
    command, subcommand, *options = container["command"]
    assert (command, subcommand) == ("sdpn", "train")
    known = {f"--{parameter}" for parameter in inspect.signature(program.train).parameters}
    given = {option.partition("=")[0] for option in options if not option.startswith("--config.")}
    assert given <= known
    assert "/dev/shm" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_the_image_runs_the_program():
    text = (LAUNCH / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["sdpn"]' in text
    extras = set(re.findall(r"EXTRA=(\w+)", text))
    assert extras and all(re.search(rf"^{extra} = ", (ROOT / "pyproject.toml").read_text(), re.M) for extra in extras)


@pytest.fixture
def stand_in(tmp_path):
    """A folder with an `sdpn` and an `nvidia-smi` that say what they were asked, one file a process."""
    for name, text in {
        "sdpn": f'echo "$XLA_FLAGS|$CUDA_VISIBLE_DEVICES|$*" > {tmp_path}/said-$$',
        "nvidia-smi": "",
    }.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def started(folder, **variables):
    """(XLA_FLAGS, CUDA_VISIBLE_DEVICES, arguments) of the two processes that launch/local.sh starts."""
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "PROCESSES": "2", **variables}
    done = subprocess.run(
        ["bash", LAUNCH / "local.sh", "--config=vox2"], env=environment, capture_output=True, text=True
    )
    said = [path.read_text().strip().split("|") for path in folder.glob("said-*")]
    return done, sorted(said, key=lambda words: words[2][-1])


def test_local_processes_keep_what_the_user_set(stand_in):
    done, said = started(stand_in, JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_dump_to=x", DEVICES="4")
    assert done.returncode == 0, done.stderr
    assert [words[0] for words in said] == ["--xla_dump_to=x --xla_force_host_platform_device_count=4"] * 2
    assert said[0][2].startswith("train --config=vox2 --coordinator=localhost:")
    assert said[1][2].endswith("--process_count=2 --process_index=1")


def test_local_processes_take_the_gpus_that_the_user_chose(stand_in):
    assert [words[1] for words in started(stand_in, CUDA_VISIBLE_DEVICES="5,7")[1]] == ["5", "7"]


def test_local_processes_take_a_gpu_each(stand_in):
    assert [words[1] for words in started(stand_in)[1]] == ["0", "1"]


def test_more_processes_than_gpus_are_refused(stand_in):
    done, _ = started(stand_in, CUDA_VISIBLE_DEVICES="5")
    assert done.returncode == 2
    assert "PROCESSES=2, but CUDA_VISIBLE_DEVICES=5" in done.stderr


@pytest.mark.parametrize("name", ["slurm.sh", "slurm_prepare.sh"])
def test_slurm_without_a_virtual_environment_ends_in_one_line(name, tmp_path):
    done = subprocess.run(["bash", LAUNCH / name], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: no virtual environment at .venv: make one (README.md) or set VENV\n"
