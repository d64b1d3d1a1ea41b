"""Joins the processes of one run on several hosts: flags, SLURM, Open MPI, Kubernetes or TPU metadata."""

from collections.abc import Mapping

import jax

from sdpn_jax.errors import UserError

JOIN_TIMEOUT_S = 300  # for all processes to arrive
HEARTBEAT_TIMEOUT_S = 60  # after which a silent host ends the run on all others


def several_expected(environment: Mapping[str, str]) -> bool:
    """Whether the environment is that of one process among several: SLURM's srun, mpirun, or a TPU pod's worker."""
    slurm = "SLURM_PROCID" in environment and int(environment.get("SLURM_NTASKS", 1)) > 1
    mpi = int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    return slurm or mpi or "," in environment.get("TPU_WORKER_HOSTNAMES", "")


def join(coordinator: str | None, process_count: int | None, process_index: int | None) -> None:
    """Connects this process with the others through the `coordinator` (host:port of process 0).

    What is None is found by JAX: SLURM, Open MPI, Kubernetes, TPU metadata. Raises UserError when it cannot be found,
    or when not all processes arrive in time. A host that fails later ends the run on all others after
    HEARTBEAT_TIMEOUT_S; started again, it resumes.
    """
    try:
        jax.distributed.initialize(
            coordinator,
            process_count,
            process_index,
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
