"""Pictures of scores and of a training run, drawn without pyplot: DET curves, score histograms, training metrics.

Every function writes one file, whose extension chooses the format (png, pdf, svg), at the width of a paper's column.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, ScalarFormatter
from numpy.typing import ArrayLike
from scipy.stats import norm

from sdpn_jax.errors import UserError
from sdpn_jax.eval import intervals, metrics

# Okabe and Ito's palette, told apart by colour-blind readers too.
BLUE, RED, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
MARKERS = ("o", "s", "^", "D", "v", "P")
MAPPED_POINTS = 5000
DASHES = ("-", "--", "-.", (0, (1, 1)))
COLUMN = 3.5  # inches
STYLE = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "savefig.dpi": 300,
}
RATE_TICKS = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40, 60, 80, 90, 95, 98, 99, 99.5, 99.9]) / 100

# Title, keys and labels of each panel of plot_training; keys ending in * stand for all that begin so.
PANELS = (
    ("Loss", {"loss": "total", "cross_entropy": "cross-entropy"}),
    (
        "Loss terms, unweighted",
        {"me_max": "me-max", "koleo": "KoLeo", "off_diagonal": "off-diagonal", "frobenius": "Frobenius"},
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


def plot_det(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], path: str | Path) -> None:
    """Draws detection error tradeoff curves (Martin et al., Eurospeech 1997), the EER of each marked, into one file.

    curves: name -> (scores [N], labels [N]). Both rates on probit axes; rates beyond the axes are drawn at their edge.
    Raises what `det_points` raises.
    """
    rates = {name: metrics.eer(*trials) for name, trials in curves.items()}
    ticks = _det_ticks(min(rates.values()), max(rates.values()))
    low, high = norm.ppf(ticks[[0, -1]])
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(COLUMN, COLUMN)
        axes.plot([low, high], [low, high], color="0.7", linewidth=0.8, linestyle=":")
        for number, (name, (scores, labels)) in enumerate(curves.items()):
            colour = COLOURS[number % len(COLOURS)]
            _, miss, false_alarm = metrics.det_points(scores, labels)
            miss, false_alarm = _refined(miss), _refined(false_alarm)
            label = f"{name}: EER {100 * rates[name]:.2f} %"
            axes.plot(
                np.clip(norm.ppf(false_alarm), low, high),
                np.clip(norm.ppf(miss), low, high),
                color=colour,
                linestyle=DASHES[number % len(DASHES)],
                label=label,
            )
            point = np.clip(norm.ppf(rates[name]), low, high)
            axes.plot(point, point, "o", color=colour, markersize=5, markeredgecolor="white", clip_on=False, zorder=4)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(norm.ppf(ticks), _tick_labels(ticks))
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.set(xlabel="False alarm rate (%)", ylabel="Miss rate (%)")
        axes.legend(loc="upper right", frameon=True, edgecolor="none", framealpha=0.9)
        figure.savefig(path)


def plot_score_histogram(scores: ArrayLike, labels: ArrayLike, path: str | Path) -> None:
    """Draws the densities of the target and the nontarget trials' scores, with the threshold at the EER, into one file.

    scores, labels: [N] as in `det_points`, which says what is raised.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    rate, threshold = metrics.eer_and_threshold(scores, labels)
    groups = {"nontarget": (scores[labels == 0], RED), "target": (scores[labels == 1], BLUE)}
    fewest = min(len(values) for values, _ in groups.values())
    middle, half = (scores.max() + scores.min()) / 2, max(0.5001 * np.ptp(scores), 0.05)  # scores may be all but equal
    bins = np.linspace(middle - half, middle + half, 1 + int(np.clip(1.5 * math.sqrt(fewest), 20, 100)))
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(COLUMN, 0.75 * COLUMN)
        for name, (values, colour) in groups.items():
            density, _ = np.histogram(values, bins, density=True)
            axes.stairs(density, bins, fill=True, color=colour, alpha=0.25)
            axes.stairs(density, bins, color=colour, linewidth=1.2, zorder=3, label=f"{name} ({len(values):,})")
        label = f"EER {100 * rate:.2f} % at {threshold:.3f}"
        axes.axvline(threshold, color="0.2", linestyle="--", linewidth=1.0, zorder=4, label=label)
        axes.set(xlabel="Cosine score", ylabel="Density", xlim=(bins[0], bins[-1]), ylim=(0, None))
        figure.legend(loc="outside upper center", ncols=3, handlelength=1.4, columnspacing=1.2, handletextpad=0.5)
        figure.savefig(path)


def plot_eer_by_duration(
    seconds: ArrayLike, scores: ArrayLike, labels: ArrayLike, speakers: Sequence[np.ndarray], path: str | Path
) -> None:
    """Draws the EER of up to five equally large groups of trials of similar duration, with its interval, into one file.

    seconds, scores, labels: [N], the duration being that of a trial's shorter utterance; speakers: as `speakers_of`
    gives them. Bars span a group's durations and the 95 % interval of its EER.
    """
    seconds, scores, labels = np.asarray(seconds), np.asarray(scores), np.asarray(labels)
    count = int(np.clip(np.sum(labels) // 30, 1, 5))
    edges = np.unique(np.quantile(seconds, np.linspace(0, 1, count + 1)))
    group = np.clip(np.searchsorted(edges, seconds, side="right") - 1, 0, max(len(edges) - 2, 0))
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(COLUMN, 0.75 * COLUMN)
        highest = 0.0
        for number in np.unique(group):
            chosen = group == number
            if len(np.unique(labels[chosen])) < 2:
                continue
            rate = metrics.eer(scores[chosen], labels[chosen])
            bootstrap = intervals.SpeakerBootstrap(labels[chosen], *(side[chosen] for side in speakers), 300)
            low, high = intervals.interval(bootstrap.rates(scores[chosen]))
            middle = np.median(seconds[chosen])
            width = [[middle - seconds[chosen].min()], [seconds[chosen].max() - middle]]
            height = [[100 * max(rate - low, 0)], [100 * max(high - rate, 0)]]
            axes.errorbar(middle, 100 * rate, height, width, fmt="o", color=BLUE, markersize=4, elinewidth=1, capsize=2)
            highest = max(highest, 100 * high)
        axes.set(xlabel="Duration of the shorter utterance (s)", ylabel="EER (%)", ylim=(0, 1.05 * highest or 1))
        figure.savefig(path)


def plot_map(
    embeddings: np.ndarray, groups: ArrayLike, path: str | Path, projection: str = "pca", seed: int = 0, title: str = ""
) -> None:
    """Draws embeddings [N, D], scaled to length 1, in two dimensions, coloured by group [N], into one file.

    projection: "pca", the two principal components, or "tsne" (van der Maaten and Hinton, 2008) with cosine distances,
    in which distances between groups mean nothing. Beyond MAPPED_POINTS a random sample of them is drawn. `title`: what
    the groups are.
    """
    groups = np.asarray(groups)
    chosen = np.arange(len(groups))
    if len(groups) > MAPPED_POINTS:
        chosen = np.sort(np.random.default_rng(seed).choice(len(groups), MAPPED_POINTS, replace=False))
    points, shares = _two_dimensions(embeddings[chosen], projection, seed)
    names, members = np.unique(groups[chosen], return_inverse=True)
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = _figure(COLUMN, COLUMN)
        for number, name in enumerate(names):
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number // len(COLOURS) % len(MARKERS)]
            x, y = points[members == number].T
            size = float(np.clip(4000 / len(chosen), 1, 16))
            axes.scatter(x, y, size, colour, marker=marker, linewidths=0, alpha=0.8, label=str(name))
        for axis, share, number in ((axes.xaxis, shares[0], 1), (axes.yaxis, shares[1], 2)):
            label = f"Principal component {number} ({100 * share:.0f} % of variance)" if share else f"t-SNE {number}"
            axis.set_label_text(label)
            axis.set_ticks([])
        if len(names) <= 10:
            spacing = {"handletextpad": 0.1, "columnspacing": 0.8, "markerscale": 1.5}
            figure.legend(loc="outside upper center", ncols=5, title=title, title_fontsize=7, **spacing)
        figure.savefig(path)


def _two_dimensions(embeddings: np.ndarray, projection: str, seed: int) -> tuple[np.ndarray, tuple[float, float]]:
    """(points [N, 2], the shares of the variance that both axes show, zeros where that means nothing)."""
    from sklearn import decomposition, manifold  # which takes a second, for this picture alone

    units = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    if projection == "tsne" and len(units) > 4:
        perplexity = min(30.0, (len(units) - 1) / 3)
        tsne = manifold.TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=seed)
        return tsne.fit_transform(units), (0.0, 0.0)
    pca = decomposition.PCA(2, random_state=seed)
    return pca.fit_transform(units), tuple(pca.explained_variance_ratio_)


def plot_sizes(sizes: ArrayLike, path: str | Path) -> None:
    """Draws the sizes of clusters, the largest first, into one file."""
    sizes = np.sort(sizes)[::-1]
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(COLUMN, 0.6 * COLUMN)
        axes.stairs(sizes, np.arange(len(sizes) + 1), fill=True, color=BLUE, alpha=0.8)
        axes.set(xlabel="Cluster, by size", ylabel="Utterances", xlim=(0, len(sizes)), ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        figure.savefig(path)


def plot_training(rows: Sequence[Mapping], path: str | Path) -> None:
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
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN * columns, 1.75 * lines + 0.2), layout="constrained")
        FigureCanvasAgg(figure)
        for number, (title, curves) in enumerate(panels, 1):
            axes = figure.add_subplot(lines, columns, number)
            _draw_panel(axes, title, curves)
            axes.set_xlim(min(steps) - margin, max(steps) + margin)
            if number > len(panels) - columns:
                axes.set_xlabel("Step")
        figure.savefig(path)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _det_ticks(lowest: float, highest: float) -> np.ndarray:
    """The ticks from 1.2 standard deviations below the lowest EER to 1.8 above the highest one."""
    probit = norm.ppf(RATE_TICKS)
    below, above = norm.ppf(np.clip([lowest, highest], 0.01, 0.99)) + [-1.2, 1.8]
    first = max(np.searchsorted(probit, below, side="right") - 1, 0)
    last = min(np.searchsorted(probit, above), len(probit) - 1)
    return RATE_TICKS[first : last + 1]


def _tick_labels(ticks: np.ndarray) -> list[str]:
    """Percentages, with empty labels where there is no room for one beside the label before it."""
    places = norm.ppf(ticks)
    character = 0.019 * (places[-1] - places[0])  # width of a digit on axes one column wide
    labels, right_end = [], -np.inf
    for tick, place in zip(ticks, places, strict=True):
        label = f"{100 * tick:g}"
        half = len(label) * character / 2
        fits = place - half > right_end + 0.5 * character
        labels.append(label if fits else "")
        right_end = place + half if fits else right_end
    return labels


def _refined(rates: np.ndarray) -> np.ndarray:
    """Points between the points, so that the ROC's straight lines become the curves that they are on probit axes."""
    parts = max(1, 2000 // len(rates))
    at = np.arange(parts * (len(rates) - 1) + 1) / parts
    return np.interp(at, np.arange(len(rates)), rates)


def _curve(rows: Sequence[Mapping], key: str) -> dict[float, float]:
    """step -> value in the steps' order, NaN where it is not finite; empty when no value is finite."""
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
    axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    axes.yaxis.get_major_formatter().set_powerlimits((-3, 5))
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
