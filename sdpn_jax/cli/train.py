"""`sdpn train`: a training run, begun or resumed, on one process or several."""

import os
from collections.abc import Callable, Sequence
from typing import Annotated

import typer
from typer import Option

from sdpn_jax.cli.options import (
    Alone,
    Config,
    Coordinator,
    Distributed,
    LocalDevices,
    Overrides,
    ProcessCount,
    ProcessIndex,
    SkipDamaged,
)
from sdpn_jax.errors import Terminated, UserError, returns_exit_code


def show_help(context: typer.Context, wanted: bool) -> None:
    """Prints the command's help and every field of the config that is named on the command line."""
    if not wanted:
        return
    from sdpn_jax import config as configs

    print(context.get_help())
    words = " ".join(context.obj or ()).replace("--config ", "--config=").split()
    source = next((word.partition("=")[2] for word in words if word.startswith("--config=")), "vox2")
    print(f"\nFields of {source}, each set by --config.FIELD=VALUE:\n\n{configs.describe(configs.load(source))}")
    raise typer.Exit


@returns_exit_code
def train(
    config: Config,
    workdir: Annotated[
        str | None, Option(help="Where the run goes; default: the config's workdir. A run there is resumed.")
    ] = None,
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    process_count: ProcessCount = None,
    process_index: ProcessIndex = None,
    local_devices: LocalDevices = None,
    alone: Alone = False,
    extend: Annotated[
        bool, Option("--extend", help="Go on from the newest checkpoint with the schedule of this config.")
    ] = False,
    skip_damaged: SkipDamaged = False,
    help: Annotated[
        bool, Option("--help", is_eager=True, callback=show_help, help="Show this and all fields.")
    ] = False,
    overrides: Overrides = None,
) -> int:
    """Train SDPN as a config says, from prepared shards; the same command resumes a run.

    Exit codes 143 and 130: stopped by SIGTERM or Ctrl-C after a checkpoint. A second Ctrl-C ends at once.
    """
    join(distributed, coordinator, process_count, process_index, local_devices, alone)
    return together(lambda: run(config, workdir, overrides or (), extend, skip_damaged))


def join(
    distributed: bool,
    coordinator: str | None,
    process_count: int | None,
    process_index: int | None,
    local_devices: str | None,
    alone: bool,
) -> None:
    """Joins the other processes of a run, where the options or the environment speak of any."""
    from sdpn_jax.training import hosts

    if not alone and (coordinator or distributed or hosts.several_expected(os.environ)):
        hosts.join(coordinator, process_count, process_index, numbers(local_devices) or hosts.gpus_of_task(os.environ))


def together(work: Callable[[], int]) -> int:
    """Does the work of one process, perhaps of several, and returns the exit code: none waits for one that failed."""
    from absl import logging

    from sdpn_jax.training import hosts

    try:
        return work()
    except hosts.Stopped as stopped:
        logging.warning("%s", stopped)
        return stopped.exit_code
    except (Exception, KeyboardInterrupt, Terminated) as error:
        if hosts.alone():
            raise
        hosts.abandon(error)


def numbers(text: str | None) -> list[int] | None:
    """Reads "0,1"; UserError for anything else."""
    try:
        return [int(number) for number in text.split(",")] if text else None
    except ValueError:
        raise UserError(f"--local_devices={text}: wanted are numbers with commas, such as 0,1") from None


def run(
    source: str, workdir: str | None, overrides: Sequence[str], extend: bool = False, skip_damaged: bool = False
) -> int:
    """Trains, or does all stages of the demo where the config asks for one."""
    from sdpn_jax import config as configs

    config = configs.load(source, overrides)  # before what takes seconds to import
    if config.demo.train_speakers:
        from sdpn_jax import demo

        demo.run(config, workdir or config.workdir)
    else:
        from sdpn_jax.training import loop

        loop.train_and_evaluate(config, workdir or config.workdir, extend, skip_damaged)
    return 0
