"""What a run writes while it goes: rows of metrics, TensorBoard, a line for people, and how fast it is."""

import datetime
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import scipy.special
from absl import logging
from tensorboardX import SummaryWriter

from sdpn_jax import storage

METRICS = "metrics.jsonl"
MOST_WAITING = 10_000  # scalars for TensorBoard's thread: more than a row has
LONGEST_S = 1e9  # of an ETA
TOLD = {  # in the line for people: {metric: (name, form)}
    "loss": ("loss", ".3f"),
    "classification": ("classification", ".3f"),
    "accuracy": ("accuracy", ".2f"),
    "labels_distrusted": ("distrusted", ".2f"),
    "labels_corrected": ("corrected", ".2f"),
    "exchanged": ("exchanged", ".2f"),
    "cross_entropy": ("cross-entropy", ".3f"),
    "me_max": ("me-max", ".3f"),
    "koleo": ("KoLeo", ".3f"),
    "prototypes_in_use": ("prototypes in use", ".1f"),
    "embedding_std": ("embedding std", ".2f"),
    "effective_rank": ("effective rank", ".1f"),
}


class Timer:
    """Speed since the first step, which compiles and does not count."""

    def __init__(self):
        self.started, self.waited, self.steps = time.monotonic(), 0.0, 0

    def elapsed(self) -> float:
        """Returns the seconds so far, without pauses."""
        return max(time.monotonic() - self.started, 1e-9)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        before = time.monotonic()
        yield
        self.waited += time.monotonic() - before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count the time inside."""
        before = time.monotonic()
        yield
        self.started += time.monotonic() - before


class Board:
    """TensorBoard's files. Their writer is a thread, which a full disk ends: the run goes on without them."""

    def __init__(self, folder: Path, first_step: int):
        self._writer: SummaryWriter | None = SummaryWriter(
            str(folder), purge_step=first_step + 1 if first_step else 0, max_queue=MOST_WAITING
        )

    def add(self, step: int, row: dict[str, float]) -> None:
        """Adds one row of scalars."""
        if writer := self._living():
            for name, value in row.items():
                writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Writes what waits."""
        if writer := self._living():
            with suppress(OSError):
                writer.flush()

    def close(self) -> None:
        """Writes what waits and ends the thread."""
        if writer := self._living():
            with suppress(OSError):
                writer.close()

    def _living(self) -> SummaryWriter | None:
        """The writer while its thread lives; whoever gave a dead one more than its queue holds would wait for ever."""
        files: Any = self._writer and self._writer.file_writer
        if files:
            events = files.event_writer
            if events._worker and not events._worker.is_alive():
                logging.warning("TensorBoard's events can no longer be written; metrics.jsonl goes on")
                events._event_queue.cancel_join_thread()
                self._writer = None
        return self._writer


class MetricsWriter:
    """Writes scalars to <workdir>/metrics.jsonl and TensorBoard; a resumed run first drops what it will write again.

    folder: where files can be written bit by bit; for a workdir in a bucket one of this machine, sent by `send`.
    """

    def __init__(self, workdir: storage.Place, first_step: int):
        self._outbox = storage.Outbox(workdir)
        self.folder = self._outbox.folder
        self._outbox.fetch(METRICS)
        self._path = self.folder / METRICS
        # Without a checkpoint nothing is gone on with: an evaluation of step 0 may be another network's.
        rows = [row for row in read_rows(self._path) if row["step"] <= first_step] if first_step else []
        storage.write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        self._board = Board(self.folder, first_step)

    def write(self, step: int, row: dict[str, float]) -> None:
        """Adds one row of scalars."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **row}) + "\n")
        self._board.add(step, row)

    def lacks_evaluation(self, step: int) -> bool:
        """Tells whether no evaluation of this step has been written."""
        of_step = [row for row in read_rows(self._path) if row["step"] == step]
        return not any(name.startswith(("eer_percent/", "crop_eer_percent")) for row in of_step for name in row)

    def rows(self) -> list[dict]:
        """Returns all rows, including those from before a restart."""
        return read_rows(self._path)

    def send(self) -> None:
        """Makes sure that all rows are where the workdir is."""
        self._board.flush()
        self._outbox.send()

    def close(self) -> None:
        """Closes the files and sends them."""
        self._board.close()
        self._outbox.close()


def read_rows(path: Path) -> list[dict]:
    """Reads the rows of a metrics.jsonl, without a last line that a kill cut short, or any other that is no row."""
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
            if type(row["step"]) is not int:
                raise TypeError
            rows.append(row)
        except (ValueError, TypeError, KeyError, RecursionError):
            logging.warning("%s, line %d: an incomplete line is left out", path, number)
    return rows


def interval_means(rows: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Averages the metrics of some steps; adds `prototypes_in_interval`, the perplexity of their mean target."""
    means = {name: np.mean([row[name] for row in rows], axis=0, dtype=np.float64) for name in rows[0]}
    mean_target = means.pop("mean_target", None)
    row = {name: float(value) for name, value in means.items()}
    if mean_target is not None:
        row["prototypes_in_interval"] = float(np.exp(scipy.special.entr(mean_target).sum()))
    return row


def log_progress(done: int, num_steps: int, row: dict[str, float], batch_size: int, timer: Timer) -> None:
    """Logs one line: where the run is, how fast, and whether it is healthy."""
    told = "  ".join(f"{name} {row[key]:{form}}" for key, (name, form) in TOLD.items() if key in row)
    steps_per_second = timer.steps / timer.elapsed()
    left = "unknown"
    if timer.steps:
        left = datetime.timedelta(seconds=round(min((num_steps - done) / steps_per_second, LONGEST_S)))
    logging.info(
        "step %d/%d  %s  %.2f steps/s, %.0f utterances/s, waiting for data %.0f %%, ETA %s",
        done,
        num_steps,
        told,
        steps_per_second,
        steps_per_second * batch_size,
        100 * timer.waited / timer.elapsed(),
        left,
    )
