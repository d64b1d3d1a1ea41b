"""Pictures of scores and embeddings: DET curves, score histograms, error by duration, maps, cluster sizes and numbers.

Every function writes one file, whose extension chooses the format (png, pdf, svg), at the width of a paper's column.
"""

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter
from numpy.typing import ArrayLike
from scipy.stats import norm

from sdpn_jax.eval import intervals, metrics
from sdpn_jax.figures import BLUE, COLOURS, COLUMN, DASHES, MARKERS, RED, drawing
from sdpn_jax.vectors import unit

MAPPED_POINTS = 5000
RATE_TICKS = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40, 60, 80, 90, 95, 98, 99, 99.5, 99.9]) / 100


def plot_det(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], path: str | os.PathLike) -> None:
    """Draws detection error tradeoff curves (Martin et al., Eurospeech 1997), the EER of each marked, into one file.

    curves: name -> (scores [N], labels [N]). Both rates on probit axes; rates beyond the axes are drawn at their edge.
    Raises what `det_points` raises.
    """
    rates = {name: metrics.eer(*trials) for name, trials in curves.items()}
    ticks = _det_ticks(min(rates.values()), max(rates.values()))
    low, high = norm.ppf(ticks[[0, -1]])
    with drawing(path, COLUMN, COLUMN) as figure:
        axes = figure.add_subplot()
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


def plot_score_histogram(scores: ArrayLike, labels: ArrayLike, path: str | os.PathLike) -> None:
    """Draws the densities of the target and the nontarget trials' scores, with the threshold at the EER, into one file.

    scores, labels: [N] as in `det_points`, which says what is raised.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    rate, threshold = metrics.eer_and_threshold(scores, labels)
    groups = {"nontarget": (scores[labels == 0], RED), "target": (scores[labels == 1], BLUE)}
    fewest = min(len(values) for values, _ in groups.values())
    middle, half = (scores.max() + scores.min()) / 2, max(0.5001 * np.ptp(scores), 0.05)  # scores may be all but equal
    bins = np.linspace(middle - half, middle + half, 1 + int(np.clip(1.5 * math.sqrt(fewest), 20, 100)))
    with drawing(path, COLUMN, 0.75 * COLUMN) as figure:
        axes = figure.add_subplot()
        for name, (values, colour) in groups.items():
            density, _ = np.histogram(values, bins, density=True)
            axes.stairs(density, bins, fill=True, color=colour, alpha=0.25)
            axes.stairs(density, bins, color=colour, linewidth=1.2, zorder=3, label=f"{name} ({len(values):,})")
        label = f"EER {100 * rate:.2f} % at {threshold:.3f}"
        axes.axvline(threshold, color="0.2", linestyle="--", linewidth=1.0, zorder=4, label=label)
        axes.set(xlabel="Cosine score", ylabel="Density", xlim=(bins[0], bins[-1]), ylim=(0, None))
        figure.legend(loc="outside upper center", ncols=3, handlelength=1.4, columnspacing=1.2, handletextpad=0.5)


def plot_eer_by_duration(
    seconds: ArrayLike, scores: ArrayLike, labels: ArrayLike, speakers: Sequence[np.ndarray], path: str | os.PathLike
) -> None:
    """Draws the EER of up to five equally large groups of trials of similar duration, with its interval, into one file.

    seconds, scores, labels: [N], the duration being that of a trial's shorter utterance; speakers: as `speakers_of`
    gives them. Bars span a group's durations and the 95 % interval of its EER.
    """
    seconds, scores, labels = np.asarray(seconds), np.asarray(scores), np.asarray(labels)
    count = int(np.clip(np.sum(labels) // 30, 1, 5))
    edges = np.unique(np.quantile(seconds, np.linspace(0, 1, count + 1)))
    group = np.clip(np.searchsorted(edges, seconds, side="right") - 1, 0, max(len(edges) - 2, 0))
    with drawing(path, COLUMN, 0.75 * COLUMN) as figure:
        axes = figure.add_subplot()
        highest = 0.0
        for number in np.unique(group):
            chosen = group == number
            if len(np.unique(labels[chosen])) < 2:
                continue
            rate = metrics.eer(scores[chosen], labels[chosen])
            enrol, test = speakers
            bootstrap = intervals.SpeakerBootstrap(labels[chosen], enrol[chosen], test[chosen], 300)
            low, high = intervals.interval(bootstrap.rates(scores[chosen]))
            middle = np.median(seconds[chosen])
            width = [[middle - seconds[chosen].min()], [seconds[chosen].max() - middle]]
            height = [[100 * max(rate - low, 0)], [100 * max(high - rate, 0)]]
            axes.errorbar(middle, 100 * rate, height, width, fmt="o", color=BLUE, markersize=4, elinewidth=1, capsize=2)
            highest = np.nanmax([highest, 100 * rate, 100 * high])  # of few speakers there is no interval
        axes.set(xlabel="Duration of the shorter utterance (s)", ylabel="EER (%)", ylim=(0, 1.05 * highest or 1))


def plot_map(
    embeddings: np.ndarray,
    groups: ArrayLike,
    path: str | os.PathLike,
    projection: str = "pca",
    seed: int = 0,
    title: str = "",
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
    with drawing(path, COLUMN, COLUMN, axes_grid=False) as figure:
        axes = figure.add_subplot()
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


def _two_dimensions(embeddings: np.ndarray, projection: str, seed: int) -> tuple[np.ndarray, tuple[float, float]]:
    """(points [N, 2], the shares of the variance that both axes show, zeros where that means nothing)."""
    from sklearn import decomposition, manifold  # which takes a second, for this picture alone

    units = unit(embeddings)
    if projection == "tsne" and len(units) > 4:
        perplexity = min(30.0, (len(units) - 1) / 3)
        tsne = manifold.TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=seed)
        return tsne.fit_transform(units), (0.0, 0.0)
    units = np.pad(units, ((0, 0), (0, max(2 - units.shape[1], 0))))
    pca = decomposition.PCA(2, random_state=seed)
    return pca.fit_transform(units), tuple(pca.explained_variance_ratio_)


def plot_sizes(sizes: ArrayLike, path: str | os.PathLike) -> None:
    """Draws the sizes of clusters, the largest first, into one file."""
    sizes = np.sort(sizes)[::-1]
    with drawing(path, COLUMN, 0.6 * COLUMN) as figure:
        axes = figure.add_subplot()
        axes.stairs(sizes, np.arange(len(sizes) + 1), fill=True, color=BLUE, alpha=0.8)
        axes.set(xlabel="Cluster, by size", ylabel="Utterances", xlim=(0, len(sizes)), ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def plot_numbers(
    silhouettes: Mapping[int, float],
    chosen: int,
    path: str | os.PathLike,
    retrievals: Mapping[int, float] | None = None,
) -> None:
    """Draws the silhouette, and where known the retrieval of crops, against the number of clusters, into one file."""
    curves = {"Silhouette": silhouettes} | ({"Crops retrieved": retrievals} if retrievals else {})
    with drawing(path, COLUMN, (0.4 + 0.3 * len(curves)) * COLUMN) as figure:
        panels = figure.subplots(len(curves), sharex=True, squeeze=False)[:, 0]
        for axes, colour, (name, curve) in zip(panels, COLOURS, curves.items(), strict=False):
            axes.plot(list(curve), list(curve.values()), "o-", color=colour, markersize=3)
            axes.axvline(chosen, color="0.2", linestyle="--", linewidth=1.0, label=f"chosen: {chosen:,}")
            axes.set(xscale="log", ylabel=name)
        panels[-1].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        panels[-1].xaxis.set_minor_formatter(NullFormatter())
        panels[-1].set_xlabel("Clusters")
        panels[0].legend(loc="upper right")


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
