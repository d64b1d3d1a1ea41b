"""The picture of a training run: losses, error rates, signs of collapse and schedules over the steps."""

import math
import os
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator, ScalarFormatter

from sdpn_jax.errors import UserError
from sdpn_jax.figures import COLOURS, COLUMN, DASHES, drawing

# Title, keys and labels of each panel of plot_training; keys ending in * stand for all that begin so.
PANELS = (
    ("Loss", {"loss": "total", "cross_entropy": "cross-entropy"}),
    (
        "Loss terms, unweighted",
        {"me_max": "me-max", "koleo": "KoLeo", "off_diagonal": "off-diagonal", "frobenius": "Frobenius"},
    ),
    ("Classification loss", {"classification": ""}),
    ("Share of views whose class is found", {"accuracy": ""}),
    (
        "Labels, or targets of others: shares",
        {
            "labels_distrusted": "distrusted",
            "labels_corrected": "corrected",
            "labels_right": "right",
            "trusted_right": "trusted: right",
            "corrected_right": "corrected: right",
            "exchanged": "exchanged",
            "exchanged_right": "exchanged: right",
        },
    ),
    ("EER (%)", "eer_percent"),
    ("Crops of held-out utterances (%)", {"crop_retrieval_percent": "found", "crop_eer_percent": "EER"}),
    (
        "Prototypes in use (perplexity)",
        {
            "prototypes_in_interval": "log interval",
            "prototypes_in_use": "one batch",
            "targets_told_apart": "told apart",
        },
    ),
    ("Targets", {"target_max": "mean maximum", "agreement": "agreement with student"}),
    ("Embedding std. (1: spread evenly, 0: collapsed)", {"embedding_std": ""}),
    ("Effective rank of the embeddings", {"effective_rank": ""}),
    ("Cosine of two embeddings", {"embedding_cosine": "mean", "embedding_cosine_max": "nearest"}),
    ("Teacher-student distance, relative", {"ema_distance": ""}),
    ("Learning rate", {"learning_rate": ""}),
    ("Teacher momentum", {"teacher_momentum": ""}),
)


def plot_training(rows: Sequence[Mapping], path: str | os.PathLike) -> None:
    """Draws a training run's losses, EER, signs of collapse and schedules over the steps into one file.

    rows: as in a run's metrics.jsonl, dicts with "step" and some of the keys of PANELS; every key that begins with
    eer_percent is a curve. Keys may be missing from rows, a later row replaces an earlier one of the same step, and
    numbers that are not finite leave a gap. Panels without data are left out; UserError when none is left.
    """
    panels = []
    for title, keys in PANELS:
        if isinstance(keys, str):
            found = dict.fromkeys(key for row in rows for key in row if key.startswith(keys))
            keys = {key: key.removeprefix(keys).strip("_./ ") for key in found}
        curves = {label: curve for key, label in keys.items() if (curve := _curve(rows, key))}
        if curves:
            panels.append((title, curves))
    if not panels:
        raise UserError("nothing to plot: no row of the metrics has a step and a finite loss, EER or other known key")

    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    steps = [step for _, curves in panels for curve in curves.values() for step in curve]
    margin = 0.02 * (max(steps) - min(steps)) or 1
    with drawing(path, COLUMN * columns, 1.75 * lines + 0.2) as figure:
        for number, (title, curves) in enumerate(panels, 1):
            axes = figure.add_subplot(lines, columns, number)
            _draw_panel(axes, title, curves)
            axes.set_xlim(min(steps) - margin, max(steps) + margin)
            if number > len(panels) - columns:
                axes.set_xlabel("Step")


def _curve(rows: Sequence[Mapping], key: str) -> dict[float, float]:
    """Collects {step: value} in the steps' order, NaN if not finite; empty if no value is finite."""
    values = {}
    for row in rows:
        if row.get(key) is not None and row.get("step") is not None:
            values[float(row["step"])] = float(row[key])
    if not any(map(math.isfinite, values.values())):
        return {}
    return {step: values[step] if math.isfinite(values[step]) else math.nan for step in sorted(values)}


def _draw_panel(axes: Axes, title: str, curves: Mapping[str, Mapping[float, float]]) -> None:
    for (label, curve), colour, dash in zip(curves.items(), COLOURS * 9, DASHES * 9, strict=False):
        steps, values = list(curve), list(curve.values())
        if title.startswith("EER"):
            best = min(curve, key=lambda step: (math.isnan(curve[step]), curve[step]))
            label = f"{label}: best {curve[best]:.2f} at step {best:,.0f}".removeprefix(": ")
        few = {"marker": "o", "markersize": 2.5} if len(steps) <= 40 else {}
        many = {"linewidth": 0.7, "linestyle": "-"} if len(steps) > 400 else {}
        axes.plot(steps, values, **{"color": colour, "linestyle": dash, "label": label or None} | few | many)
    axes.set_title(title, loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    plain = ScalarFormatter(useOffset=False)
    plain.set_powerlimits((-3, 5))
    axes.yaxis.set_major_formatter(plain)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
