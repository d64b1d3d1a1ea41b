"""The processes of one run on several hosts: how they join, and how they save and stop at the same step."""

import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jax
from jax.sharding import Mesh

from sdpn_jax.errors import INTERRUPTED, TERMINATED, USER_ERROR, Terminated, UserError, fault_of_machine
from sdpn_jax.training import sharding

JOIN_TIMEOUT_S = 300  # for all processes to arrive
HEARTBEAT_TIMEOUT_S = 60  # after which a silent host ends the run on all others


def several_expected(environment: Mapping[str, str]) -> bool:
    """Tells whether this is one process among several: under SLURM's srun, mpirun, or on a TPU pod's worker.

    Raises UserError in a shell of a SLURM allocation for several tasks that srun did not start.
    """
    if "SLURM_PROCID" in environment and int(environment.get("SLURM_NTASKS", 1)) > 1:
        if not {"SLURM_STEP_ID", "SLURM_STEPID"} & set(environment):
            raise UserError(
                f"this shell is in a SLURM allocation of {environment['SLURM_NTASKS']} tasks, but srun did not start "
                "this process: begin with `srun sdpn train`, or give --alone for one process"
            )
        return int(environment.get("SLURM_STEP_NUM_TASKS", environment["SLURM_NTASKS"])) > 1
    mpi = int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    return mpi or "," in environment.get("TPU_WORKER_HOSTNAMES", "")


def gpus_of_task(environment: Mapping[str, str]) -> list[int] | None:
    """Numbers the GPUs, among those that it sees, that a task of SLURM uses; None: as JAX decides.

    A task alone on its node uses all that it sees, and so does one that sees its own GPU alone; several on a node share
    evenly those that all of them see. JAX would give each task one.
    """
    tasks = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE", "")))
    visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name not in ("", "-1")]
    count = len(visible) or int(environment.get("SLURM_GPUS_ON_NODE", 0))
    if "SLURM_PROCID" not in environment or not tasks or not count:
        return None
    on_node, local = int(tasks[0]), int(environment.get("SLURM_LOCALID", 0))
    if on_node == 1 or count == 1:
        return list(range(count))
    if count % on_node:
        return None
    share = count // on_node
    return list(range(local * share, (local + 1) * share))


def join(
    coordinator: str | None,
    process_count: int | None,
    process_index: int | None,
    local_devices: Sequence[int] | None = None,
) -> None:
    """Connects this process with the others through the `coordinator` (host:port of process 0).

    local_devices: numbers of the accelerators that this process uses. What is None is found by JAX: SLURM, Open MPI,
    Kubernetes, TPU metadata. Raises UserError when it cannot be found, or when not all processes arrive in time. A host
    that fails later ends the run on all others after HEARTBEAT_TIMEOUT_S; started again, it resumes.
    """
    try:
        jax.distributed.initialize(
            coordinator,
            process_count,
            process_index,
            local_devices,
            initialization_timeout=JOIN_TIMEOUT_S,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
        )
    except (ValueError, TypeError, RuntimeError, jax.errors.JaxRuntimeError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot join the other processes (coordinator {coordinator or 'unset'}, process "
            f"{'?' if process_index is None else process_index} of {process_count or '?'}): {first_line}. Give every "
            "process the same --coordinator=HOST:PORT and --process_count, and its own --process_index"
        ) from error


def alone() -> bool:
    """Tells whether this process is the whole run."""
    return jax.process_count() == 1


def abandon(error: BaseException) -> NoReturn:
    """Ends this process of several at once with one line; does not return.

    An orderly exit would first wait for the others, which wait for this process in the middle of a step.
    """
    name, first_line = type(error).__name__, (str(error).strip().splitlines() or [""])[0]
    line, code = fault_of_machine(error) or first_line or name, USER_ERROR
    if isinstance(error, (KeyboardInterrupt, Terminated)):
        code = INTERRUPTED if isinstance(error, KeyboardInterrupt) else TERMINATED
    elif isinstance(error, jax.errors.JaxRuntimeError):
        line += ". If another process of this run failed, its log says why; started again, the run resumes"
    elif not isinstance(error, UserError) and line == first_line:
        traceback.print_exception(error)
    print(f"error: process {jax.process_index()} cannot go on: {line}", file=sys.stderr, flush=True)
    os._exit(code)


NOTHING, SAVE, STOP = 0, 1, 2  # what a process can ask of the run


class Stopped(Exception):
    """A run was asked to stop and has saved: at step `done` of `num_steps`; `exit_code` is that of shells."""

    def __init__(self, done: int, num_steps: int, by: int):
        name = "Ctrl-C" if by == signal.SIGINT else "SIGTERM"
        super().__init__(f"stopped by {name}; saved at step {done} of {num_steps}, the same command resumes there")
        self.exit_code = 128 + by


class Requests:
    """What this process asks of the run: a checkpoint every so many minutes, the last one after SIGTERM or Ctrl-C.

    A context: inside it neither ends the process, but for a second Ctrl-C. All processes act on the largest of their
    requests, so that all of them save, and stop, after the same step. signal: the one that came, or SIGTERM.
    """

    def __init__(self, checkpoint_minutes: float):
        self._period = 60 * checkpoint_minutes or float("inf")
        self._saved, self._stop, self._interrupted = time.monotonic(), False, False
        self._previous: dict[int, Any] = {}
        self.signal: int = signal.SIGTERM

    def __enter__(self) -> "Requests":
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) != signal.SIG_IGN:  # whoever started us in the background wants it ignored
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
            print("stopping after this step and a checkpoint; a second Ctrl-C ends at once", file=sys.stderr)
        self._stop, self.signal = True, number

    def saved(self) -> None:
        """Restarts the clock, as a checkpoint has just been made."""
        self._saved = time.monotonic()

    def now(self) -> int:
        """Returns NOTHING, SAVE or STOP; the clock of process 0 counts for all."""
        if self._stop:
            return STOP
        if time.monotonic() - self._saved > self._period and jax.process_index() == 0:
            self.saved()  # said once is enough
            return SAVE
        return NOTHING

    def of_all(self, mesh: Mesh) -> int | jax.Array:
        """Returns the largest request of all processes, who must all ask; with several, as an array to be read later.

        Read after the next step has been dispatched, it costs no wait.
        """
        if alone():
            return self.now()
        return sharding.largest(self.now(), mesh)
