"""`sdpn demo`: the whole road on synthetic speech."""

from typing import Annotated

from typer import Option

from sdpn_jax.cli.options import Overrides
from sdpn_jax.cli.train import run
from sdpn_jax.errors import returns_exit_code


@returns_exit_code
def demo(
    workdir: Annotated[str, Option(help="Where everything goes.")] = "runs/demo",
    overrides: Overrides = None,
) -> int:
    """Make synthetic speakers, prepare, train, embed and score them, in a few minutes on a laptop.

    Needs the extra `demo` of this package and nothing else: no data, no network, no accelerator.
    """
    return run("demo", workdir, overrides or ())
