"""The `sdpn` program: its commands, and how it begins and ends."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from sdpn_jax.cli import options
from sdpn_jax.cli.adapt import adapt
from sdpn_jax.cli.calibrate import calibrate
from sdpn_jax.cli.cluster import cluster
from sdpn_jax.cli.compare import compare
from sdpn_jax.cli.convert import convert
from sdpn_jax.cli.demo import demo
from sdpn_jax.cli.diarize import diarize
from sdpn_jax.cli.embed import embed
from sdpn_jax.cli.enrol import enrol
from sdpn_jax.cli.export import export
from sdpn_jax.cli.identify import identify
from sdpn_jax.cli.inspect import inspect
from sdpn_jax.cli.launch_check import launch_check
from sdpn_jax.cli.prepare import prepare
from sdpn_jax.cli.score import score
from sdpn_jax.cli.serve import serve
from sdpn_jax.cli.stages import stages
from sdpn_jax.cli.train import train
from sdpn_jax.cli.verify import verify
from sdpn_jax.errors import INTERRUPTED, USER_ERROR

app = typer.Typer(name="sdpn", help="Self-supervised speaker verification in JAX.", no_args_is_help=True)
TRAINING, MODELS, EVALUATION = "Training", "Models", "Evaluation"
app.command(rich_help_panel=TRAINING)(prepare)
app.command(rich_help_panel=TRAINING, context_settings=options.FIELDS)(inspect)
app.command(rich_help_panel=TRAINING, context_settings=options.FIELDS, add_help_option=False)(train)
app.command(rich_help_panel=TRAINING, context_settings=options.FIELDS)(stages)
app.command(rich_help_panel=TRAINING, context_settings=options.FIELDS)(demo)
app.command("launch-check", rich_help_panel=TRAINING, context_settings=options.FIELDS)(launch_check)
app.command(rich_help_panel=EVALUATION)(embed)
app.command(rich_help_panel=EVALUATION)(score)
app.command(rich_help_panel=EVALUATION)(compare)
app.command(rich_help_panel=EVALUATION)(cluster)
app.command(rich_help_panel=MODELS)(verify)
app.command(rich_help_panel=MODELS)(enrol)
app.command(rich_help_panel=MODELS)(identify)
app.command(rich_help_panel=MODELS)(diarize)
app.command(rich_help_panel=MODELS)(adapt)
app.command(rich_help_panel=MODELS)(calibrate)
app.command(rich_help_panel=MODELS)(serve)
app.command(rich_help_panel=MODELS)(export)
app.command(rich_help_panel=MODELS)(convert)


def main(arguments: Sequence[str]) -> int:
    """Runs `sdpn ARGUMENTS` in this process and returns its exit code."""
    try:
        return app(list(arguments), prog_name="sdpn", standalone_mode=False, obj=list(arguments)) or 0
    except typer.Exit as ended:
        return ended.exit_code
    except typer.Abort:
        return INTERRUPTED
    except Exception as error:
        message = getattr(error, "format_message", None)  # what typer raises for arguments that do not fit
        if message is None:
            raise
        if text := message():  # without arguments the help has been shown
            print(f"error: {text} (see --help)", file=sys.stderr)
        return USER_ERROR


def run() -> None:
    """The installed program `sdpn`."""
    leave(main(sys.argv[1:]))


def leave(code: int) -> NoReturn:
    """Ends the process with an exit code, after a failure at once.

    Threads of libraries may then wait for what will never come: Orbax's for the signal that a folder has been made, for
    ten minutes, where there was no space for it.
    """
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
