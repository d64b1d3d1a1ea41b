"""A short form of benchmarks/fuzz.py: damaged files of every kind end in a result or in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"


@pytest.mark.slow
def test_damaged_files(tmp_path):
    command = [sys.executable, str(FUZZ), f"--output={tmp_path / 'out'}", "--count=150", "--seconds=60", "--seed=7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "connections: 0; files opened beside: 0" in done.stdout
    assert "| audio | 150 |" in done.stdout
