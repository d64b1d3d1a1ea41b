"""A few steps of a run recorded for TensorBoard's profile plug-in."""

from pathlib import Path

import jax
from absl import logging

FIRST, LAST = 10, 20  # steps of this start: the first ones compile and fill the queues


class Profiler:
    """Records the steps FIRST to LAST after a start; does nothing where it is not `on` or has no workdir."""

    def __init__(self, workdir: Path | None, first_step: int, on: bool):
        self._workdir, self._on, self._recording = workdir, on and workdir is not None, False
        self._first, self._last = first_step + FIRST, first_step + LAST

    def before(self, step: int) -> None:
        """Called with the number of steps done before each step."""
        if self._on and step == self._first:
            jax.profiler.start_trace(str(self._workdir))
            self._recording = True

    def after(self, step: int, result: jax.Array) -> None:
        """Called with the number of steps done after each step, and something that it computed."""
        if self._recording and step == self._last:
            jax.block_until_ready(result)
            self.close()
            logging.info(
                "steps %d to %d recorded in %s/plugins/profile, for TensorBoard with its profile plug-in (--logdir=%s)",
                self._first, self._last, self._workdir, self._workdir,
            )  # fmt: skip

    def close(self) -> None:
        """Ends a recording that still goes on."""
        if self._recording:
            jax.profiler.stop_trace()
            self._recording = False
