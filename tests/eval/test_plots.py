"""What is drawn is read back from the figures; that they please the eye was judged by eye."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import norm

from sdpn_jax.errors import UserError
from sdpn_jax.eval import plots


@pytest.fixture
def figures(monkeypatch):
    """The figures saved during the test."""
    saved = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: (saved.append(figure), savefig(figure, path)))
    return saved


def synthetic_trials(targets, nontargets, distance, seed=0):
    rng = np.random.default_rng(seed)
    scores = np.concatenate([rng.normal(0.1 * distance, 0.1, targets), rng.normal(0, 0.1, nontargets)])
    return scores, np.repeat([1, 0], [targets, nontargets])


def legend(owner):
    (box,) = owner.legends if isinstance(owner, Figure) else [owner.get_legend()]
    return [text.get_text() for text in box.get_texts()]


def curves(axes):
    """label -> (x, y) of every labelled line."""
    return {line.get_label(): line.get_data() for line in axes.lines if not line.get_label().startswith("_")}


def test_det_draws_probits_of_both_rates(tmp_path, figures):
    plots.plot_det({"system": synthetic_trials(4000, 4000, 2.0)}, tmp_path / "det.png")
    (axes,) = figures[0].axes
    ((label, (x, y)),) = curves(axes).items()
    # Two Gaussians of equal width: the line y = -x - distance on probit axes, EER = Phi(-distance / 2).
    inside = (x > -1.8) & (x < -0.2)
    np.testing.assert_allclose(y[inside], -x[inside] - 2.0, atol=0.12)
    assert float(label.split("EER ")[1].removesuffix(" %")) == pytest.approx(100 * norm.cdf(-1), abs=1.0)
    assert legend(axes) == [label]
    marker = [line for line in axes.lines if line.get_marker() == "o"][0]
    np.testing.assert_allclose(marker.get_data(), -1.0, atol=0.05)
    tick = [text.get_text() for text in axes.get_xticklabels()].index("20")
    assert axes.get_xticks()[tick] == pytest.approx(norm.ppf(0.2))
    assert axes.get_xlabel().endswith("(%)") and axes.get_ylabel().endswith("(%)")


@pytest.mark.parametrize(
    "trials",
    [
        ([1.0, 0.0], [1, 0]),
        ([0.0, 1.0], [1, 0]),
        ([0.5, 0.5, 0.5], [1, 0, 0]),
        synthetic_trials(30, 100, 9.0),
        (1 - 1e-12 * np.arange(10), [0, 1] * 5),
    ],
    ids=["perfect pair", "inverted pair", "all tied", "perfect", "collapsed"],
)
def test_extreme_lists_have_finite_axes(tmp_path, figures, trials):
    plots.plot_det({"a": trials}, tmp_path / "det.png")
    plots.plot_score_histogram(*trials, tmp_path / "histogram.png")
    det = figures[0].axes[0]
    assert np.isfinite([det.get_xlim(), det.get_ylim()]).all()
    assert all(np.isfinite(line.get_xydata()).all() for line in det.lines)
    (histogram,) = figures[1].axes
    assert np.isfinite(histogram.get_ylim()).all()
    assert np.ptp(histogram.get_xlim()) > 0.09  # equal scores are one narrow bar, not the whole width
    for name in ("det.png", "histogram.png"):
        assert np.asarray(Image.open(tmp_path / name).convert("L")).std() > 5  # something is drawn


def test_det_ties_are_straight_in_rates(tmp_path, figures):
    """The marker of an EER inside a tie lies on the curve."""
    plots.plot_det({"a": ([3, 2, 2, 2, 1], [1, 1, 0, 0, 0])}, tmp_path / "det.png")
    (line,) = [line for line in figures[0].axes[0].lines if not line.get_label().startswith("_")]
    (marker,) = [line for line in figures[0].axes[0].lines if line.get_marker() == "o"]
    assert np.abs(line.get_xydata() - marker.get_xydata()).max(1).min() < 0.01


def test_histogram_areas_are_one(tmp_path, figures):
    scores, labels = synthetic_trials(225, 1000, 1.0)
    plots.plot_score_histogram(scores, labels, tmp_path / "histogram.png")
    (axes,) = figures[0].axes
    assert len(axes.patches) == 4  # area and outline of two densities
    for patch in axes.patches:
        heights, edges, _ = patch.get_data()
        assert np.sum(heights * np.diff(edges)) == pytest.approx(1.0)
    nontarget, target, threshold = legend(figures[0])
    assert (nontarget, target) == ("nontarget (1,000)", "target (225)")
    (line,) = axes.lines
    assert threshold.endswith(f"at {line.get_xdata()[0]:.3f}")
    rates = np.mean(scores[labels == 1] < line.get_xdata()[0]), np.mean(scores[labels == 0] >= line.get_xdata()[0])
    assert rates[0] == pytest.approx(rates[1], abs=1 / 225)


def test_training_panels(tmp_path, figures):
    rows = [{"step": step, "loss": 7.0 - step / 10, "learning_rate": 0.1, "note": "text"} for step in range(5)]
    rows[2]["loss"] = float("nan")
    rows += [{"step": 4, "eer_percent_o": 12.5}, {"step": 2, "eer_percent_o": 20.0}, {"step": 2, "eer_percent": 30.0}]
    rows += [{"step": 1, "loss": 1.5}, {"step": 3, "loss": None}, {"loss": 3.0}]
    plots.plot_training(rows, tmp_path / "training.png")
    panels = {axes.get_title(loc="left"): axes for axes in figures[0].axes}
    assert list(panels) == ["Loss", "EER (%)", "Learning rate"]
    steps, loss = curves(panels["Loss"])["total"]
    assert list(steps) == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(loss, [7.0, 1.5, np.nan, 6.7, 6.6])  # the later row of step 1 counts, the NaN is a gap
    eer = curves(panels["EER (%)"])
    assert list(eer) == ["o: best 12.50 at step 4", "best 30.00 at step 2"]
    np.testing.assert_array_equal(eer["o: best 12.50 at step 4"], [[2, 4], [20.0, 12.5]])
    assert panels["Learning rate"].get_xlim() == panels["EER (%)"].get_xlim()


def test_every_panel(tmp_path, figures):
    keys = {key for _, panel in plots.PANELS for key in ([panel] if isinstance(panel, str) else panel)}
    plots.plot_training([dict.fromkeys(keys, 0.5) | {"step": 7}], tmp_path / "training.png")
    assert len(figures[0].axes) == len(plots.PANELS)
    assert sum(len(axes.lines) for axes in figures[0].axes) == len(keys)


@pytest.mark.parametrize("rows", [[], [{"step": 1}], [{"loss": 1.0}], [{"step": 1, "loss": float("nan")}]])
def test_nothing_to_plot(tmp_path, rows):
    with pytest.raises(UserError, match="nothing to plot"):
        plots.plot_training(rows, tmp_path / "training.png")
    assert not list(tmp_path.iterdir())


def test_global_state_is_left_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    plots.plot_score_histogram(*synthetic_trials(30, 30, 1.0), tmp_path / "histogram.pdf")
    assert (tmp_path / "histogram.pdf").read_bytes().startswith(b"%PDF")
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_not_loaded():
    program = "import sys; from sdpn_jax.eval import plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=300).returncode == 0
