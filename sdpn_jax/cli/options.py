"""Options that several commands share, and what commands that run a network have in common."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

import sdpn_jax
from sdpn_jax.errors import UserError

Model = Annotated[
    str,
    typer.Option(
        help="Model folder, training workdir, file of weights of this or another toolkit, or "
        "hf://OWNER/NAME, modelscope://OWNER/NAME.",
        show_default="the one in the package",
    ),
]
PRETRAINED = str(sdpn_jax.PRETRAINED)  # the default of Model
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value, for scripts.")]
Channel = Annotated[str, typer.Option(help="Of recordings of several: mean, or the number of one, from 1.")]
SkipDamaged = Annotated[
    bool, typer.Option("--skip_damaged", help="Put the next whole record in the place of a damaged one.")
]
MaxSeconds = Annotated[
    float,
    typer.Option("--max_seconds", help="Longer recordings are skipped, or refused where one is asked for.", min=1.0),
]
MAX_SECONDS = 4 * 3600.0
Config = Annotated[
    str, typer.Option(help="A Python file with get_config(), or the name of a shipped config such as vox2.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[--config.FIELD=VALUE]...", help="Fields of the config to change.", show_default=False),
]
Distributed = Annotated[
    bool, typer.Option("--distributed", help="Join other processes as SLURM, Kubernetes or TPU metadata say.")
]
Coordinator = Annotated[str | None, typer.Option(help="HOST:PORT of process 0, where several processes make one run.")]
ProcessCount = Annotated[
    int | None, typer.Option("--process_count", help="With --coordinator: how many processes there are.")
]
ProcessIndex = Annotated[
    int | None, typer.Option("--process_index", help="With --coordinator: this one's number, from 0.")
]
LocalDevices = Annotated[
    str | None,
    typer.Option(
        "--local_devices", help="Numbers of this process's accelerators, such as 0,1; default: SLURM's share."
    ),
]
Alone = Annotated[
    bool, typer.Option("--alone", help="One process, whatever SLURM, mpirun or TPU variables say of others.")
]
FIELDS = {"ignore_unknown_options": True}  # context settings of commands that take Overrides
CACHE = Path("~/.cache/sdpn_jax").expanduser()


def reading_of(channel: str, max_seconds: float) -> Any:
    """Says how recordings are read, from --channel and --max_seconds; raises UserError for what is no channel."""
    from sdpn_jax.data.audio import Reading

    if channel != "mean" and not (channel.isdecimal() and int(channel) > 0):
        raise UserError(f"--channel={channel}: give mean, or the number of a channel, from 1")
    return Reading(None if channel == "mean" else int(channel) - 1, max_seconds)


def keep_compiled_programs() -> None:
    """Lets the next command find what this one compiles in CACHE, unless JAX_COMPILATION_CACHE_DIR says where."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
