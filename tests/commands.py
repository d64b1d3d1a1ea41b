"""Runs commands as a user would: in this process, which takes no time, or in one of their own."""

import contextlib
import io
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from absl import logging as absl_logging

from sdpn_jax.cli.program import main


@dataclass
class Done:
    """How a command ended: exit code and what it printed, its log in stderr."""

    returncode: int
    stdout: str
    stderr: str


def sdpn(*arguments) -> Done:
    """`sdpn ARGUMENTS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    log = logging.StreamHandler(err)
    absl_logging.get_absl_logger().addHandler(log)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(argument) for argument in arguments])
    finally:
        absl_logging.get_absl_logger().removeHandler(log)
    return Done(code, out.getvalue(), err.getvalue())


def ran(*arguments) -> Done:
    """`sdpn ARGUMENTS`, which must succeed."""
    done = sdpn(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def refused(*arguments) -> str:
    """The one line with which `sdpn ARGUMENTS` says what the user can mend."""
    return line_of_refusal(sdpn(*arguments))


def line_of_refusal(done) -> str:
    """The one line of a command that ended as it does when the user can mend something."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    assert len(errors) == 1, done.stderr[-3000:]
    return errors[0]


def command_of(*arguments) -> list[str]:
    """The command `sdpn ARGUMENTS` for a process of its own."""
    return [sys.executable, "-c", "from sdpn_jax.cli.program import run; run()", *map(str, arguments)]


def process(*arguments, devices: int = 1, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """`sdpn ARGUMENTS` in a process of its own with so many devices."""
    xla = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    environment, command = {**os.environ, "XLA_FLAGS": xla}, command_of(*arguments)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=500)
