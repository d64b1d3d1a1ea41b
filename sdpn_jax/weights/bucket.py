"""Checkpoints in a bucket: Orbax writes them on this machine, and what is complete is uploaded behind the run's back.

For runs of one process. Orbax itself writes to gs:// alone, which is what runs of several processes use.
"""

import tempfile
import threading
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from sdpn_jax import storage

COMPLETE = "commit_success.txt"  # in a checkpoint's folder, uploaded last; Orbax's own name for it in buckets


def complete_steps(folder: storage.Place) -> list[int]:
    """Lists the steps of a folder of checkpoints, oldest first, complete ones alone.

    On a disk Orbax gives a checkpoint its name when it is complete; in a bucket it ends with a file that says so.
    """
    in_bucket = storage.is_bucket(folder)
    steps = sorted(int(name) for name in storage.names(folder) if name.isdigit())
    return [step for step in steps if not in_bucket or storage.exists(folder / str(step) / COMPLETE)]


class BucketCheckpoints:
    """What our programs use of ocp.CheckpointManager, for a folder of checkpoints in a bucket."""

    def __init__(self, directory: storage.Place, options: ocp.CheckpointManagerOptions):
        self.directory, self._options = directory, options
        self._staging = tempfile.TemporaryDirectory(prefix="sdpn_jax-checkpoints-")
        self._folder = Path(self._staging.name)
        self._manager = ocp.CheckpointManager(self._folder, options=ocp.CheckpointManagerOptions(max_to_keep=1))
        self._sender: threading.Thread | None = None
        self._failure: BaseException | None = None

    def __enter__(self) -> "BucketCheckpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def all_steps(self) -> list[int]:
        """Lists the steps that the bucket holds complete."""
        return complete_steps(self.directory)

    def latest_step(self) -> int | None:
        """Returns the newest of them."""
        return max(self.all_steps(), default=None)

    def restore(self, step: int, args: Any) -> Any:
        """Downloads and restores a checkpoint."""
        if not (self._folder / str(step)).exists():
            storage.download_folder(self.directory / str(step), self._folder / str(step))
            self._manager.reload()
        return self._manager.restore(step, args=args)

    def save(self, step: int, args: Any) -> None:
        """Starts writing a checkpoint; returns once its arrays are copied and the one before is uploaded."""
        self.wait_until_finished()
        self._manager.save(step, args=args)
        self._sender = threading.Thread(target=self._send, args=(step,))
        self._sender.start()

    def wait_until_finished(self) -> None:
        """Waits for the upload under way; raises what it failed of."""
        if self._sender:
            self._sender.join()
            self._sender = None
        failure, self._failure = self._failure, None
        if failure:
            raise failure

    def reload(self) -> None:
        """Does nothing: the bucket is looked at every time."""

    def close(self) -> None:
        """Waits for the upload under way and removes what was staged."""
        try:
            self.wait_until_finished()
        finally:
            self._manager.close()
            self._staging.cleanup()

    def _send(self, step: int) -> None:
        try:
            self._manager.wait_until_finished()
            storage.upload_folder(self._folder / str(step), self.directory / str(step))
            storage.write_text(self.directory / str(step) / COMPLETE, "complete\n")
            self._retire()
        except BaseException as error:  # raised again where somebody waits
            self._failure = error

    def _retire(self) -> None:
        """Removes checkpoints that are neither among the newest nor kept for good."""
        period, steps = self._options.keep_period, self.all_steps()
        for step in steps[: -(self._options.max_to_keep or len(steps))]:
            if not period or step % period:
                storage.remove(self.directory / str(step) / COMPLETE)  # first: half a folder is no checkpoint
                storage.remove(self.directory / str(step))
