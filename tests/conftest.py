"""Fixtures shared by all tests: where the optional measuring data and golden vectors are."""

import os
import tempfile
from pathlib import Path

import pytest

# What several tests, or the commands that they start, compile alike is compiled once in a test run, whose worker
# processes (pytest-xdist) inherit the variables.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="sdpn_jax_compiled_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is unset: it would name the folder that this test reads")
    path = Path(value)
    if not path.is_dir():
        pytest.fail(f"{variable}={value} is not a folder")
    return path


@pytest.fixture(scope="session")
def speech() -> Path:
    """The folder of real speech (librispeech_mini/ and augment_mini/ inside)."""
    return _folder("SDPN_JAX_DATA")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of numbers printed by the released PyTorch code."""
    return _folder("SDPN_JAX_GOLDEN")
