"""What is drawn is read back from the figures; that they please the eye was judged by eye."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from drawn import curves
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import norm

from sdpn_jax.eval import plots


def synthetic_trials(targets, nontargets, distance, seed=0):
    rng = np.random.default_rng(seed)
    scores = np.concatenate([rng.normal(0.1 * distance, 0.1, targets), rng.normal(0, 0.1, nontargets)])
    return scores, np.repeat([1, 0], [targets, nontargets])


def legend(owner):
    (box,) = owner.legends if isinstance(owner, Figure) else [owner.get_legend()]
    return [text.get_text() for text in box.get_texts()]


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


def test_global_state_is_left_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    plots.plot_score_histogram(*synthetic_trials(30, 30, 1.0), tmp_path / "histogram.pdf")
    assert (tmp_path / "histogram.pdf").read_bytes().startswith(b"%PDF")
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_not_loaded():
    program = "import sys; from sdpn_jax.eval import plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=300).returncode == 0
