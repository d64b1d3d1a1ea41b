"""The loop's own judgements, without a loop."""

import numpy as np
import pytest

from sdpn_jax.errors import UserError
from sdpn_jax.training.loop import stop_if_not_finite


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
    stop_if_not_finite(of_step(1.0), 7, Checkpoints())


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf])
def test_a_step_that_is_not_finite(loss):
    """Its number, its term, and the checkpoint to go back to are told, once the latter is complete."""
    checkpoints = Checkpoints()
    with pytest.raises(UserError, match=r"step 7: .*koleo = nan.*step 40") as told:
        stop_if_not_finite(of_step(loss, koleo=np.nan), 7, checkpoints)
    assert "cross_entropy" not in str(told.value)
    assert checkpoints.waited
