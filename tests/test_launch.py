"""What starts runs elsewhere, as far as it can be checked here: syntax, options, and what scripts hand on."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import typer

from sdpn_jax.cli import program

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
YAML = [*sorted(LAUNCH.glob("*.yaml")), *sorted(ROOT.glob(".github/**/*.y*ml")), ROOT / ".pre-commit-config.yaml"]
KUBERNETES = sorted(LAUNCH.glob("k8s_*.yaml"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(path):
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_yaml_parses(path):
    yaml = pytest.importorskip("yaml")
    assert all(isinstance(part, dict) for part in yaml.safe_load_all(path.read_text()))


def pod_of(path):
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load(path.read_text())["spec"]["replicatedJobs"][0]["template"]["spec"]
    return job["template"]["spec"]


def options_of(command):
    parameters = typer.main.get_command(program.app).commands[command].params
    return {option for parameter in parameters for option in parameter.opts if option.startswith("--")}


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_kubernetes_runs_the_program_itself_with_options_that_it_has(path):
    (container,) = pod_of(path)["containers"]
    command, subcommand, *options = container["command"]
    assert (command, subcommand) == ("sdpn", "train")
    assert all(option.startswith("--") for option in options)
    assert {option.partition("=")[0] for option in options if not option.startswith("--config.")} <= options_of("train")
    assert "/dev/shm" in {mount["mountPath"] for mount in container["volumeMounts"]}


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_the_user_in_a_pod_can_write_its_volume(path):
    """The image's user is not root, to whom new volumes belong."""
    user = int(re.search(r"^USER (\d+)$", (LAUNCH / "Dockerfile").read_text(), re.M).group(1))
    security = pod_of(path)["securityContext"]
    assert security.get("fsGroup") == user or security.get("runAsUser") == 0


def test_the_image_runs_the_program():
    text = (LAUNCH / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["sdpn"]' in text


def test_images_are_built_with_extras_that_there_are():
    project = (ROOT / "pyproject.toml").read_text()
    for path in [LAUNCH / "Dockerfile", *KUBERNETES]:
        extras = re.findall(r"--build-arg EXTRA=(\w+)", path.read_text())
        assert extras and all(re.search(rf"^{extra} = ", project, re.M) for extra in extras), path.name


def make_program(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/usr/bin/env bash", *lines, ""]))
    path.chmod(0o755)


def run_script(name, arguments=(), cwd=None, **variables):
    environment = {"PATH": os.environ["PATH"], **variables}
    command = ["bash", LAUNCH / name, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def stand_in(tmp_path):
    """A folder with an `sdpn` and an `nvidia-smi`; the first writes what it was given into one file a process."""
    said = f'> "{tmp_path}/said-$$"'
    make_program(tmp_path / "sdpn", f'echo "${{XLA_FLAGS-unset}}|${{CUDA_VISIBLE_DEVICES-unset}}|$*" {said}')
    make_program(tmp_path / "nvidia-smi")
    return tmp_path


def started(folder, **variables):
    """How launch/local.sh ended, and (XLA_FLAGS, CUDA_VISIBLE_DEVICES, arguments) of the two processes it starts."""
    path = f"{folder}:{os.environ['PATH']}"
    done = run_script("local.sh", ["--config=vox2"], PATH=path, PROCESSES="2", **variables)
    said = [path.read_text().strip().split("|") for path in folder.glob("said-*")]
    return done, sorted(said, key=lambda words: words[2][-1])


def test_local_processes_keep_the_flags_that_the_user_set(stand_in):
    done, said = started(stand_in, JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_dump_to=x", DEVICES="4")
    assert done.returncode == 0, done.stderr
    assert [words[0] for words in said] == ["--xla_dump_to=x --xla_force_host_platform_device_count=4"] * 2
    assert said[0][2].startswith("train --config=vox2 --coordinator=localhost:")
    assert said[1][2].endswith("--process_count=2 --process_index=1")


def test_local_processes_take_the_gpus_that_the_user_chose(stand_in):
    _, said = started(stand_in, CUDA_VISIBLE_DEVICES="5,7", XLA_FLAGS="--xla_dump_to=x")
    assert [words[:2] for words in said] == [["--xla_dump_to=x", "5"], ["--xla_dump_to=x", "7"]]


def test_local_processes_take_a_gpu_each(stand_in):
    assert [words[1] for words in started(stand_in)[1]] == ["0", "1"]


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_local_processes_leave_hidden_gpus_alone(stand_in, hidden):
    _, said = started(stand_in, CUDA_VISIBLE_DEVICES=hidden)
    assert [words[:2] for words in said] == [["--xla_force_host_platform_device_count=1", hidden]] * 2


def test_more_local_processes_than_gpus_are_refused_before_any_starts(stand_in):
    done, said = started(stand_in, CUDA_VISIBLE_DEVICES="5")
    assert done.returncode == 2
    assert "PROCESSES=2, but CUDA_VISIBLE_DEVICES=5" in done.stderr
    assert not said


@pytest.mark.parametrize("name", ["slurm.sh", "slurm_prepare.sh"])
def test_slurm_without_a_virtual_environment_ends_in_one_line(name, tmp_path):
    done = run_script(name, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: no virtual environment at .venv: make one (README.md) or set VENV\n"


@pytest.mark.parametrize("code", [0, 2, 143])
def test_slurm_queues_a_stopped_run_again(tmp_path, code):
    """And only that: not one that is done or has failed."""
    make_program(tmp_path / "env/bin/activate", f'PATH="{tmp_path}/env/bin:$PATH"')
    make_program(tmp_path / "env/bin/srun", 'echo "srun $*"', f"exit {code}")
    make_program(tmp_path / "env/bin/scontrol", 'echo "scontrol $*"')
    variables = {"VENV": str(tmp_path / "env"), "HOME": str(tmp_path), "SLURM_JOB_ID": "7"}
    done = run_script("slurm.sh", ["--config=vox2", "--workdir=a run"], **variables)
    assert done.returncode == code
    said = ["srun --kill-on-bad-exit=1 sdpn train --config=vox2 --workdir=a run"]
    assert done.stdout.splitlines() == said + ["scontrol requeue 7"] * (code == 143)


GCLOUD = """
next_of() {{ head -n 1 "$1"; [ "$(wc -l < "$1")" -gt 1 ] && sed -i 1d "$1"; true; }}
echo "$*" >> "{folder}/asked"
case "$*" in
    *"tpu-vm describe"*) state=$(next_of "{folder}/states"); [ "$state" = NONE ] && exit 1; echo "$state" ;;
    *"queued-resources describe"*) state=$(next_of "{folder}/queued"); [ "$state" = NONE ] && exit 1; echo "$state" ;;
    *"queued-resources create"*) rm -rf "{folder}/host"; mkdir "{folder}/host" ;;
    *"queued-resources delete"*) ;;
    *) cd "{folder}/host"; words="${{@: -1}}"; exec bash -c "${{words#--command=}}" ;;
esac
"""


def run_on_tpu(folder, python_runs=True, states="READY", queued="NONE", train="exit 0", **variables):
    """launch/tpu_pod.sh with `folder`/host for all hosts, where each program says what it was asked.

    python3.13 and python3.12 are found but do not run, as under pyenv; python3.11 does if `python_runs`. states,
    queued: what gcloud says of the slice and of the queued resource, one after the other; the last one for good.
    train: how `sdpn` ends.
    """
    programs = folder / "programs"
    (folder / "host").mkdir(exist_ok=True)
    (folder / "states").write_text("\n".join([*states.split(), ""]))
    (folder / "queued").write_text("\n".join([*queued.split(), ""]))
    make_program(programs / "gcloud", *GCLOUD.format(folder=folder).splitlines())
    make_program(programs / "git", 'echo "git $*"', "[ $1 != clone ] || mkdir sdpn_jax")
    make_program(programs / "tool", 'echo "$(basename "$0") $*"')
    make_program(programs / "trained", 'echo "sdpn $*"', train)
    make_program(programs / "python3.13", "exit 127")
    make_program(programs / "python3.12", "exit 127")
    make_program(
        programs / "python3.11",
        f"[ $1 != -c ] || exit {0 if python_runs else 127}",
        'echo "$(basename "$0") $*"',
        'mkdir -p .venv/bin && cp "$0" .venv/bin/python',
        f'cp "{programs}/tool" .venv/bin/pip && cp "{programs}/trained" .venv/bin/sdpn',
    )
    given = {"TPU": "slice", "ZONE": "zone", "REPOSITORY": "origin", "HOME": str(folder), "POLL_SECONDS": "0.1"}
    path = f"{programs}:{os.environ['PATH']}"
    return run_script("tpu_pod.sh", ["--config=vox2", "--workdir=a run"], PATH=path, **given, **variables)


def asked_of_gcloud(folder):
    """The queued resources that were created and deleted, in order."""
    lines = (folder / "asked").read_text().splitlines()
    return [line for line in lines if "queued-resources create" in line or "queued-resources delete" in line]


MADE = "python3.11 -m venv --clear .venv"
TRAINED = ["pip install --quiet -e .[tpu,gcs]", "sdpn train --distributed --config=vox2 --workdir=a run"]


def test_tpu_hosts_clone_once_and_then_pull(tmp_path):
    first, again = run_on_tpu(tmp_path), run_on_tpu(tmp_path)
    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    assert first.stdout.splitlines() == ["git clone --quiet origin sdpn_jax", MADE, *TRAINED]
    assert again.stdout.splitlines() == ["git -C sdpn_jax pull --quiet --ff-only", *TRAINED]


def test_tpu_hosts_replace_an_environment_of_an_old_python(tmp_path):
    make_program(tmp_path / "host/sdpn_jax/.venv/bin/python", "exit 1")
    assert MADE in run_on_tpu(tmp_path).stdout.splitlines()


@pytest.mark.parametrize("code", [0, 2])
def test_a_tpu_run_ends_as_its_program_does(tmp_path, code):
    assert run_on_tpu(tmp_path, train=f"exit {code}").returncode == code


def test_a_spot_slice_that_is_taken_away_is_asked_for_again(tmp_path):
    done = run_on_tpu(
        tmp_path,
        states="NONE CREATING READY READY READY PREEMPTED PREEMPTED READY",
        queued="NONE ACTIVE",
        train=f'[ -f "{tmp_path}/once" ] && exit 0; touch "{tmp_path}/once"; sleep 3',
        TYPE="v5litepod-32",
        RUNTIME="v2-alpha-tpuv5-lite",
        SPOT="1",
    )
    assert done.returncode == 0, done.stderr
    create = ("compute tpus queued-resources create slice --node-id=slice --zone=zone --accelerator-type=v5litepod-32 "
              "--runtime-version=v2-alpha-tpuv5-lite --spot --quiet")  # fmt: skip
    delete = "compute tpus queued-resources delete slice --zone=zone --force --quiet"
    assert asked_of_gcloud(tmp_path) == [create, delete, create]
    assert done.stdout.count("git clone") == 2, "the new hosts are set up from nothing"


def test_a_run_stopped_before_maintenance_begins_again(tmp_path):
    once = f'[ -f "{tmp_path}/once" ] && exit 0; touch "{tmp_path}/once"; exit 143'
    done = run_on_tpu(tmp_path, train=once)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sdpn train --distributed") == 2


def test_a_slice_that_is_not_there_and_may_not_be_asked_for(tmp_path):
    done = run_on_tpu(tmp_path, states="NONE")
    assert done.returncode == 2
    assert "error: the slice slice is NONE: create it, or set TYPE and RUNTIME" in done.stderr


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_kubernetes_jobs_follow_the_public_schema(path):
    """The jobs inside a JobSet, whose own schema is an extension's."""
    yaml, schema = pytest.importorskip("yaml"), pytest.importorskip("kubernetes_validate")
    for document in yaml.safe_load_all(path.read_text()):
        assert (document["apiVersion"], document["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
        for part in document["spec"]["replicatedJobs"]:
            job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": part["name"]}, **part["template"]}
            schema.validate(job, "1.30", strict=True)


def test_tpu_hosts_without_a_new_python_end_in_one_line(tmp_path):
    done = run_on_tpu(tmp_path, False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: Python 3.11 or newer is needed")
    assert len(done.stderr.splitlines()) == 1
    assert "pip" not in done.stdout and "sdpn train" not in done.stdout
