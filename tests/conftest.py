"""Fixtures shared by all tests: where the optional measuring data and golden vectors are."""

import os
from pathlib import Path

import hypothesis
import pytest
from matplotlib.figure import Figure

# What tests compile is kept between runs; the worker processes of a run (pytest-xdist) inherit the variables, as do the
# commands that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path("~/.cache/sdpn_jax/tests").expanduser()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Compiling takes most of the tests' time, and their networks are too small to gain from optimised code.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
# Machines that others use as well are slow at times: only the test's own limit counts.
hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")


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


@pytest.fixture
def figures(monkeypatch):
    """The figures saved during the test."""
    saved = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (saved.append(figure), savefig(figure, *a, **k)))
    return saved
