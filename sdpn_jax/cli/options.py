"""Options that several commands share, and what commands that run a network have in common."""

import os
from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Option(help="Model folder, training workdir, PyTorch checkpoint of the released code, or .safetensors.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value, for scripts.")]
Config = Annotated[
    str, typer.Option(help="A Python file with get_config(), or the name of a shipped config such as vox2.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[--config.FIELD=VALUE]...", help="Fields of the config to change.", show_default=False),
]
FIELDS = {"ignore_unknown_options": True}  # context settings of commands that take Overrides
CACHE = Path("~/.cache/sdpn_jax").expanduser()


def keep_compiled_programs() -> None:
    """Lets the next command find what this one compiles in CACHE, unless JAX_COMPILATION_CACHE_DIR says where."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
