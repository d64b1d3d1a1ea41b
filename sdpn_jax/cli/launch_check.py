"""`sdpn launch-check`: the training step compiled for accelerators that are not there."""

import json
import os
import time
from typing import Annotated

from typer import Option

from sdpn_jax.cli.options import Config, Overrides
from sdpn_jax.errors import returns_exit_code


@returns_exit_code
def launch_check(
    config: Config = "vox2",
    topology: Annotated[
        str,
        Option(
            help="TPU slice: v4, v5e, v5p or v6e, a colon, its shape in chips; or GPUs: h100 or h200, hosts x devices."
        ),
    ] = "v5e:4x8",
    utterances: Annotated[int, Option(help="Prepared utterances, for the length of the run.", min=1)] = 1_092_009,
    classes: Annotated[int, Option(help="Labels, with task=classify.", min=2)] = 50_000,
    output: Annotated[str | None, Option(help="Also write the figures to this file, as JSON.")] = None,
    compare: Annotated[str | None, Option(help="Figures that --output wrote before, to show what has changed.")] = None,
    hlo: Annotated[str | None, Option(help="Also write the compiled program's text to this file.")] = None,
    overrides: Overrides = None,
) -> int:
    """Compile a config's step for accelerators that are not there: does it fit, how fast, what is sent.

    TPU slices need libtpu, which the extra `tpu` of this package brings, and GPUs the extra `cuda12-aot`.
    Times of TPUs follow from the chip's peak rates and are lower bounds, those of GPUs are estimates.
    """
    from sdpn_jax import storage

    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from sdpn_jax import config as configs
    from sdpn_jax.compiled import launch_check as check

    before = check.read_figures(compare) if compare else None
    chosen, devices, started = configs.load(config, overrides or ()), check.devices_of(topology), time.time()
    name = topology.partition(":")[0]
    kind = check.gpu.GPUS.get(name)
    options = check.gpu.COMPILER_OPTIONS if kind else None
    compiled, program = check.compile_step(chosen, devices, utterances, classes, options)
    print(
        f"{topology}: {len(devices)} devices, batch {chosen.batch_size}, fsdp {chosen.mesh.fsdp}, "
        f"{chosen.microbatches} microbatches, compiled in {time.time() - started:.0f} s\n"
    )
    if kind:
        hosts, _ = check.gpu.shape_of(topology)
        text, figures = check.report_of_gpu(compiled, program, kind, len(devices), hosts, chosen.batch_size)
    else:
        text, figures = check.report(compiled, program, check.CHIPS[name], len(devices))
    print(text)
    if before:
        print(f"\nBeside {compare}:\n\n{check.compared(figures, before)}")
    if chosen.microbatches > 1:
        print("\nMicrobatches pass in a loop, of whose collectives each is counted once.")
    if output:
        storage.write_text(storage.place(output), json.dumps(figures, indent=2) + "\n")
        print(f"\nwritten: {output}, the figures")
    if hlo:
        storage.write_text(hlo, compiled.as_text())
        print(f"\nwritten: {hlo}, the compiled program")
    return 0
