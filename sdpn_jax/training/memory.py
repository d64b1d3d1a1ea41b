"""Memory of the host between the steps of a run on a CPU."""

import ctypes
import os
import sys

import jax

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt (malloc.h)


def keep_freed() -> None:
    """Keeps the memory that a step on a CPU frees for the next step; to be called before JAX is first used.

    glibc would give large arrays back to the system, which clears them before it gives them again: up to a third of a
    step's time (docs/performance.md). It keeps what the main thread frees alone, so steps are run there. Does nothing
    with other C libraries, or where GLIBC_TUNABLES or a variable MALLOC_* is set.
    """
    settle = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if settle is None or any(name.startswith(("GLIBC_TUNABLES", "MALLOC_")) for name in os.environ):
        return
    settle(M_MMAP_MAX, 0)
    settle(M_TRIM_THRESHOLD, -1)
    jax.config.update("jax_cpu_enable_async_dispatch", False)
