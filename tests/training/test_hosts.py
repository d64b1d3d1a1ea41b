"""What a process asks of the run, and whether it expects others."""

import os
import signal

import pytest

from sdpn_jax.errors import UserError
from sdpn_jax.training import hosts


def test_sigterm_becomes_a_request_to_stop_and_is_itself_again_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with hosts.Requests(0) as requests:
        assert requests.now() == hosts.NOTHING
        os.kill(os.getpid(), signal.SIGTERM)
        assert requests.now() == hosts.STOP
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_second_interrupt_ends_at_once(capsys):
    with hosts.Requests(0) as requests:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert requests.now() == hosts.STOP, "SIGTERM and one Ctrl-C together, as a script sends them"
        assert requests.signal == signal.SIGINT
        assert "a second Ctrl-C ends at once" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert hosts.Stopped(3, 9, signal.SIGINT).exit_code == 130
    assert "stopped by SIGTERM; saved at step 3 of 9" in str(hosts.Stopped(3, 9, signal.SIGTERM))


def test_an_ignored_interrupt_stays_ignored():
    """As for programs that nohup or a script's & started."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with hosts.Requests(0) as requests:
            os.kill(os.getpid(), signal.SIGINT)
            assert requests.now() == hosts.NOTHING
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_checkpoint_is_asked_for_once_a_period(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(hosts.time, "monotonic", lambda: clock[0])
    requests = hosts.Requests(checkpoint_minutes=2)
    heard = []
    for clock[0] in (100, 219, 221, 222, 300, 342):
        heard.append(requests.now())
    assert heard == [hosts.NOTHING, hosts.NOTHING, hosts.SAVE, hosts.NOTHING, hosts.NOTHING, hosts.SAVE]
    clock[0] = 400
    requests.saved()  # for another reason
    clock[0] = 500
    assert requests.now() == hosts.NOTHING


@pytest.mark.parametrize(
    "environment, several",
    [
        ({}, False),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, False),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8"}, True),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_NTASKS": "8"}, False),  # a shell of salloc
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ],
)
def test_whether_others_are_expected(environment, several):
    assert hosts.several_expected(environment) is several


def test_a_shell_of_an_allocation_without_srun():
    with pytest.raises(UserError, match="SLURM allocation of 8 tasks, but srun did not start .*--alone"):
        hosts.several_expected({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"})


@pytest.mark.parametrize(
    "tasks, local, visible, on_node, expected",
    [
        ("1(x4)", 0, "0,1,2,3", "4", [0, 1, 2, 3]),  # a task a node
        ("8(x2)", 3, "0,1,2,3,4,5,6,7", "8", [3]),  # a task a GPU
        ("8(x2)", 3, "3", "8", [0]),  # each sees its own alone
        ("2", 1, "0,1,2,3", "4", [2, 3]),
        ("1", 0, "", "8", list(range(8))),
        ("3", 0, "0,1,2,3", "4", None),
        ("1", 0, "", "0", None),  # no GPU
    ],
)
def test_gpus_of_a_slurm_task(tasks, local, visible, on_node, expected):
    environment = {"SLURM_PROCID": "5", "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_LOCALID": str(local),
                   "CUDA_VISIBLE_DEVICES": visible, "SLURM_GPUS_ON_NODE": on_node}  # fmt: skip
    assert hosts.gpus_of_task(environment) == expected
    assert hosts.gpus_of_task({"CUDA_VISIBLE_DEVICES": visible}) is None
