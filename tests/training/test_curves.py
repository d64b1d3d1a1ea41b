"""The picture of a training run, read back from its figure."""

import numpy as np
import pytest
from drawn import curves as drawn_curves

from sdpn_jax.errors import UserError
from sdpn_jax.training import curves


def test_training_panels(tmp_path, figures):
    rows = [{"step": step, "loss": 7.0 - step / 10, "learning_rate": 0.1, "note": "text"} for step in range(5)]
    rows[2]["loss"] = float("nan")
    rows += [{"step": 4, "eer_percent_o": 12.5}, {"step": 2, "eer_percent_o": 20.0}, {"step": 2, "eer_percent": 30.0}]
    rows += [{"step": 1, "loss": 1.5}, {"step": 3, "loss": None}, {"loss": 3.0}]
    curves.plot_training(rows, tmp_path / "training.png")
    panels = {axes.get_title(loc="left"): axes for axes in figures[0].axes}
    assert list(panels) == ["Loss", "EER (%)", "Learning rate"]
    steps, loss = drawn_curves(panels["Loss"])["total"]
    assert list(steps) == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(loss, [7.0, 1.5, np.nan, 6.7, 6.6])  # the later row of step 1 counts, the NaN is a gap
    eer = drawn_curves(panels["EER (%)"])
    assert list(eer) == ["o: best 12.50 at step 4", "best 30.00 at step 2"]
    np.testing.assert_array_equal(eer["o: best 12.50 at step 4"], [[2, 4], [20.0, 12.5]])
    assert panels["Learning rate"].get_xlim() == panels["EER (%)"].get_xlim()


def test_every_panel(tmp_path, figures):
    keys = {key for _, panel in curves.PANELS for key in ([panel] if isinstance(panel, str) else panel)}
    curves.plot_training([dict.fromkeys(keys, 0.5) | {"step": 7}], tmp_path / "training.png")
    assert len(figures[0].axes) == len(curves.PANELS)
    assert sum(len(axes.lines) for axes in figures[0].axes) == len(keys)


@pytest.mark.parametrize("rows", [[], [{"step": 1}], [{"loss": 1.0}], [{"step": 1, "loss": float("nan")}]])
def test_nothing_to_plot(tmp_path, rows):
    with pytest.raises(UserError, match="nothing to plot"):
        curves.plot_training(rows, tmp_path / "training.png")
    assert not list(tmp_path.iterdir())
