"""The loop's own judgements, without a loop."""

import numpy as np
import pytest

from sdpn_jax.errors import UserError
from sdpn_jax.train import stop_if_not_finite


class Checkpoints:
    """Stands in for the manager; tells whether writing was waited for."""

    waited = False

    def wait_until_finished(self):
        self.waited = True

    def latest_step(self):
        return 40


def of_step(loss, koleo=0.5):
    return {"loss": np.float32(loss), "cross_entropy": np.float32(1.0), "koleo": np.float32(koleo)}


def test_finite_steps_go_on():
    stop_if_not_finite([of_step(1.0), of_step(2.0)], 7, Checkpoints(), everything=True)
    stop_if_not_finite([], 1, Checkpoints(), everything=True)


def test_the_step_before_the_newest_is_looked_at():
    """Step 8 runs still, step 7 was not finite: its number, its term, and the checkpoint to go back to are told."""
    checkpoints = Checkpoints()
    with pytest.raises(UserError, match=r"step 7: .*koleo = nan.*step 40") as told:
        stop_if_not_finite([of_step(1.0), of_step(np.nan, np.nan), of_step(1.0)], 8, checkpoints)
    assert "cross_entropy" not in str(told.value)
    assert checkpoints.waited


def test_the_newest_step_is_looked_at_when_everything_is():
    rows = [of_step(1.0), of_step(np.inf)]
    stop_if_not_finite(rows, 8, Checkpoints())
    with pytest.raises(UserError, match="step 8: .*inf"):
        stop_if_not_finite(rows, 8, Checkpoints(), everything=True)
