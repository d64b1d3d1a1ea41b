"""What a run writes while it goes: rows of metrics, TensorBoard, a line for people, and how fast it is."""

import datetime
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import scipy.special
from absl import logging
from tensorboardX import SummaryWriter

from sdpn_jax import storage

METRICS = "metrics.jsonl"
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
        self.started, self.waited, self.steps = time.time(), 0.0, 0

    def elapsed(self) -> float:
        """Returns the seconds so far, without pauses."""
        return max(time.time() - self.started, 1e-9)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        before = time.time()
        yield
        self.waited += time.time() - before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count the time inside."""
        before = time.time()
        yield
        self.started += time.time() - before


class MetricsWriter:
    """Writes scalars to <workdir>/metrics.jsonl and TensorBoard; a resumed run first drops what it will write again.

    folder: where files can be written bit by bit; for a workdir in a bucket one of this machine, sent by `send`.
    """

    def __init__(self, workdir: storage.Place, first_step: int):
        self._outbox = storage.Outbox(workdir)
        self.folder = self._outbox.folder
        self._outbox.fetch(METRICS)
        self._path = self.folder / METRICS
        rows = [row for row in read_rows(self._path) if row["step"] <= first_step]
        storage.write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        self._board = SummaryWriter(str(self.folder), purge_step=first_step + 1 if first_step else None)

    def write(self, step: int, row: dict[str, float]) -> None:
        """Adds one row of scalars."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **row}) + "\n")
        for name, value in row.items():
            self._board.add_scalar(name, value, step)

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
    """Reads the rows of a metrics.jsonl, without a last line that a kill cut short."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            logging.warning("%s: an incomplete line is left out", path)
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
    left = datetime.timedelta(seconds=round((num_steps - done) / steps_per_second))
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
