"""`sdpn launch-check`: the training step compiled for accelerators that are not there."""

import os
import time
from typing import Annotated

from typer import Option

from sdpn_jax.cli.options import Config, Overrides
from sdpn_jax.errors import returns_exit_code


@returns_exit_code
def launch_check(
    config: Config = "vox2",
    topology: Annotated[str, Option(help="Slice: v4, v5e, v5p or v6e, a colon and its shape in chips.")] = "v5e:4x8",
    utterances: Annotated[int, Option(help="Prepared utterances, for the length of the run.", min=1)] = 1_092_009,
    classes: Annotated[int, Option(help="Labels, with task=classify.", min=2)] = 50_000,
    hlo: Annotated[str | None, Option(help="Also write the compiled program's text to this file.")] = None,
    overrides: Overrides = None,
) -> int:
    """Compile a config's step for a TPU slice that is not there: does it fit, how fast, what is sent.

    Needs libtpu, which the extra `tpu` of this package brings. Times follow from the chip's peak rates
    and are lower bounds.
    """
    from sdpn_jax import storage

    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from sdpn_jax import config as configs
    from sdpn_jax.compiled import launch_check as check

    chosen, devices, started = configs.load(config, overrides or ()), check.devices_of(topology), time.time()
    compiled, program = check.compile_step(chosen, devices, utterances, classes)
    print(
        f"{topology}: {len(devices)} chips, batch {chosen.batch_size}, fsdp {chosen.mesh.fsdp}, "
        f"{chosen.microbatches} microbatches, compiled in {time.time() - started:.0f} s\n"
    )
    print(check.report(compiled, program, check.CHIPS[topology.split(":")[0]], len(devices)))
    if chosen.microbatches > 1:
        print("\nMicrobatches pass in a loop, of whose collectives each is counted once.")
    if hlo:
        storage.write_text(hlo, compiled.as_text())
        print(f"\nwritten: {hlo}, the compiled program")
    return 0
