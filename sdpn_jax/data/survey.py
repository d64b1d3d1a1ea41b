"""A look into prepared shards: whether every record decodes, counts, lengths, and pictures of the features."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from tqdm import tqdm

from sdpn_jax import storage
from sdpn_jax.config import Config
from sdpn_jax.data import audio, device, features, pipeline, records
from sdpn_jax.data.shards import Shards, read_metadata, shard_here
from sdpn_jax.errors import UserError
from sdpn_jax.figures import BLUE, COLUMN, drawing

SHOWN_FRAMES = 400  # of an utterance in a picture
COLOUR_RANGE = (float(np.log(features.DEFAULT.floor)), 5.0)  # of a log-mel, the same in all pictures


@dataclass
class Survey:
    """What was found: seconds of every decoded utterance, problems in words, and a few utterances to look at.

    metadata: the content of the folder's metadata.json.
    """

    metadata: dict
    seconds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    examples: list[records.Utterance | records.Recording] = field(default_factory=list)


def survey(directory: str | os.PathLike, at_most: int = 0, examples: int = 4, seed: int = 0) -> Survey:
    """Decodes every record of every shard, or a random `at_most` of them, and keeps some at random.

    Raises UserError when the folder holds no shards of this program.
    """
    found, rng = Survey(read_metadata(directory)), np.random.default_rng(seed)
    folder, entries = storage.place(directory), found.metadata["shards"]
    share = min(1.0, at_most / sum(entry["utterances"] for entry in entries)) if at_most else 1.0
    seen = set()
    with tqdm(total=len(entries), unit="shard", desc="reading", mininterval=1) as progress:
        for entry in entries:
            for utterance in _read_shard(folder, entry, share, rng, found.problems):
                if utterance.id in seen:
                    found.problems.append(f"{entry['name']}: {utterance.id!r} occurs twice")
                seen.add(utterance.id)
                found.seconds.append(utterance.num_samples / audio.SAMPLE_RATE)
                place = len(found.seconds) - 1 if len(found.examples) < examples else rng.integers(len(found.seconds))
                if place < examples:  # reservoir sampling: each utterance has the same chance
                    found.examples[place : place + 1] = [utterance]
            progress.update()
    return found


def _read_shard(folder: storage.Place, entry: dict, share: float, rng: np.random.Generator, problems: list[str]):
    """The utterances of a shard, or a `share` of them; what cannot be read is added to `problems`."""
    name = entry["name"]
    try:
        reader = ArrayRecordReader(str(shard_here(folder, entry)))
        count = reader.num_records()
    except (RuntimeError, ValueError, OSError) as error:
        problems.append(f"{name}: cannot be read ({error})")
        return
    if count != entry["utterances"]:
        problems.append(f"{name}: {count} records instead of {entry['utterances']}")
    for i in range(count):
        if share < 1 and rng.random() >= share:
            continue
        try:
            utterance = records.decode(reader.read([i])[0])
            if not np.isfinite(utterance.log_mel).all():
                raise UserError("a log-mel is not finite")
            yield utterance
        except (RuntimeError, ValueError, OSError, UserError) as error:
            problems.append(f"{name}, record {i}: {error}")
    reader.close()


def plot_lengths(seconds: list[float], path: str | os.PathLike) -> None:
    """Draws a histogram of the utterances' lengths in seconds."""
    with drawing(path, COLUMN, 0.6 * COLUMN) as figure:
        axes = figure.add_subplot()
        axes.hist(seconds, bins=50, color=BLUE)
        axes.axvline(float(np.median(seconds)), color="0.2", linestyle="--", label=f"median {np.median(seconds):.1f} s")
        axes.set(xlabel="Length (s)", ylabel="Utterances")
        axes.legend()


def plot_utterances(utterances: Sequence[records.Utterance | records.Recording], path: str | os.PathLike) -> None:
    """Draws a row for each utterance: the first seconds of its clean log-mel and of up to four augmented ones."""
    rows = []
    for utterance in utterances:
        versions = utterance.log_mel[:5, :SHOWN_FRAMES]
        names = [utterance.id[-40:], *(f"augmented {i}" for i in range(1, len(versions)))]
        rows.append(list(zip(names, versions, strict=True)))
    _plot_log_mels(rows, path)


def plot_views(batch: dict[str, np.ndarray], path: str | os.PathLike, utterances: int = 4) -> None:
    """Draws a row for each of the first utterances of a batch: its global and local views."""
    rows = []
    for global_views, local_views in zip(batch["global"][:utterances], batch["local"][:utterances], strict=True):
        named = [(f"global {i + 1}", view) for i, view in enumerate(global_views)]
        rows.append(named + [(f"local {i + 1}", view) for i, view in enumerate(local_views)])
    _plot_log_mels(rows, path)


def _plot_log_mels(rows: list[list[tuple[str, np.ndarray]]], path: str | os.PathLike) -> None:
    columns = max(len(row) for row in rows)
    with drawing(path, 2.6 * columns, 1.5 * len(rows) + 0.3, axes_grid=False, savefig_dpi=150) as figure:
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        images = [
            _draw_log_mel(axes, name, log_mel)
            for row, panels in zip(grid, rows, strict=True)
            for axes, (name, log_mel) in zip(row, panels, strict=False)
        ]
        for axes in grid[-1]:
            axes.set_xlabel("Time (s)")
        for axes in grid[:, 0]:
            axes.set_ylabel("Mel bin")
        figure.colorbar(images[0], ax=grid, shrink=0.6, label="log power")


def _draw_log_mel(axes: Axes, name: str, log_mel: np.ndarray) -> AxesImage:
    axes.set_axis_on()
    axes.set_title(name, loc="left")
    extent = (0, len(log_mel) * features.DEFAULT.hop / features.DEFAULT.sample_rate, 0, log_mel.shape[1])
    return axes.imshow(
        log_mel.T.astype(np.float32),
        origin="lower",
        aspect="auto",
        extent=extent,
        vmin=COLOUR_RANGE[0],
        vmax=COLOUR_RANGE[1],
        interpolation="nearest",
    )


def views_of_batch(shards: Shards, config: Config, step: int, numbers: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the views that this config learns from in the batch of `step`: {"global", "local", "number"}.

    numbers: of the utterances that it learns from.
    """
    views = pipeline.Views(**config.views)
    batch = pipeline.dataset(shards, config.batch_size, config.seed, views, numbers=numbers)[step]
    bank, make_views = device.views_of_step(shards, config.seed, views)
    return jax.device_get(jax.jit(make_views)(step, batch, bank))


def report(found: Survey) -> str:
    """Summarises counts, lengths and sizes as text."""
    metadata = found.metadata
    quartiles = ", ".join(f"{value:.1f}" for value in np.quantile(found.seconds, [0, 0.25, 0.5, 0.75, 1]))
    size = sum(entry["bytes"] for entry in metadata["shards"])
    metadata = {"hours": 0.0, "augmentations": 0, "noise": "?", "rirs": "?", "skipped": 0, **metadata}
    return (
        f"{metadata['utterances']} utterances, {metadata['hours']:.2f} hours, each clean and "
        f"{metadata['augmentations']} times augmented; {len(metadata['shards'])} shards, {size / 1e9:.2f} GB\n"
        f"{len(found.seconds)} records decoded; lengths in s (least, quartiles, greatest): {quartiles}\n"
        f"noise: {metadata['noise']}; room impulse responses: {metadata['rirs']}; {metadata['skipped']} files skipped"
    )
