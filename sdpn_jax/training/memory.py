"""Memory of the host between the steps of a run on a CPU."""

import ctypes
import functools
import os
import sys
from typing import Any

import jax

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt (malloc.h)
FOR_OTHERS = 2**29  # bytes of addresses, of which only those that are used become memory


@functools.cache  # of a process, once
def keep_freed() -> None:
    """Keeps the memory that a step on a CPU frees for the next step; to be called before JAX is first used.

    glibc would give large arrays back to the system, which clears them before it gives them again: up to a third of a
    step's time (docs/performance.md). It keeps what the main thread frees alone, so steps are run there. Does nothing
    with other C libraries, or where GLIBC_TUNABLES or a variable MALLOC_* is set.
    """
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt") or any(name.startswith(("GLIBC_TUNABLES", "MALLOC_")) for name in os.environ):
        return
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)
    _make_room_for_others(libc)
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def _make_room_for_others(libc: Any) -> None:
    """Leaves a gap for what outlives a step, and would else cut into what a step freed, which is then too small.

    glibc takes the smallest gap that fits. The second block, never used, keeps the gap from growing together with what
    comes behind it.
    """
    libc.malloc.restype = ctypes.c_void_p
    gap, _ = (ctypes.c_void_p(libc.malloc(ctypes.c_size_t(FOR_OTHERS))) for _ in range(2))
    libc.free(gap)
