"""Memory that a step frees is kept for the next, in processes of their own: the setting holds for a whole process."""

import os
import platform
import subprocess
import sys

import pytest

PAGES_OF_A_STEP = """
import resource, sys
import jax
import jax.numpy as jnp
from sdpn_jax.training import memory

if sys.argv[1] == "kept":
    memory.keep_freed()

@jax.jit
def step(x):
    return (x @ x.T) @ x  # of an array of 64 MB

x = jnp.ones((4096, 64))
pages = [resource.getrusage(resource.RUSAGE_SELF).ru_minflt]
for _ in range(20):
    step(x).block_until_ready()
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(min(after - before for before, after in zip(pages, pages[1:])))
"""


def pages_of_a_step(how: str, **variables: str) -> int:
    """Counts the pages that the system gives to a step, the least of twenty: small arrays may cut into what is kept."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GLIBC_", "MALLOC_"))}
    run = [sys.executable, "-c", PAGES_OF_A_STEP, how]
    return int(subprocess.run(run, env=environment | variables, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="wants glibc")
def test_a_step_gets_no_fresh_memory_unless_the_user_settles_that():
    fresh = 64 * 2**20 // os.sysconf("SC_PAGE_SIZE")  # pages of that array
    assert pages_of_a_step("kept") < fresh / 10
    assert pages_of_a_step("given back") > fresh / 2
    assert pages_of_a_step("kept", MALLOC_MMAP_THRESHOLD_="1000000") > fresh / 2
