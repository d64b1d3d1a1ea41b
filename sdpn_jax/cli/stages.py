"""`sdpn stages`: SDPN, then clusters and classification, in one command."""

from typing import Annotated

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
from sdpn_jax.cli.train import join, together
from sdpn_jax.errors import returns_exit_code


@returns_exit_code
def stages(
    config: Config = "own_stages",
    workdir: Annotated[
        str | None, Option(help="Where all stages go; default: the config's workdir. What is there is gone on with.")
    ] = None,
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    process_count: ProcessCount = None,
    process_index: ProcessIndex = None,
    local_devices: LocalDevices = None,
    alone: Alone = False,
    skip_damaged: SkipDamaged = False,
    overrides: Overrides = None,
) -> int:
    """Train SDPN and the stages after it, without labels: clusters, classification, fine-tuning.

    The same command goes on where it was stopped. Fields are those of the first stage; the configs of the
    others are named by stages.classify and stages.large_margin.
    """
    join(distributed, coordinator, process_count, process_index, local_devices, alone)

    def work() -> int:
        from sdpn_jax import config as configs

        settings = configs.load(config, overrides or ())
        from sdpn_jax.training import stages as training

        done = training.train_in_stages(settings, workdir or settings.workdir, skip_damaged)
        print(training.table(done.results, done.minutes))
        print(
            f"\nwritten: {done.workdir / training.RESULTS}; best by held-out crops: --model={done.workdir / done.best}"
        )
        return 0

    return together(work)
