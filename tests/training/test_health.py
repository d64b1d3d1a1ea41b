"""Judgements of a run, without a run: what is finite, what looks collapsed."""

import numpy as np
import pytest

from sdpn_jax.errors import UserError
from sdpn_jax.training.health import CollapseWatch, stop_if_not_finite


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


def test_an_infinite_gradient_of_a_finite_loss_stops_the_run():
    with pytest.raises(UserError, match=r"step 8: .*gradient_norm = inf"):
        stop_if_not_finite(of_step(1.0) | {"gradient_norm": np.float32(np.inf)}, 8, Checkpoints())


HEALTHY = {"targets_told_apart": 12.0, "embedding_cosine": 0.1, "effective_rank": 20.0}


def told(rows, caplog):
    """The messages of a watch after a warm-up of 10 steps that sees a row every 10 steps."""
    watch = CollapseWatch(warmup_steps=10)
    for number, row in enumerate(rows, 1):
        watch.look(10 * number, HEALTHY | row)
    return [record.getMessage() for record in caplog.records]


def test_the_watch_warns_once_and_says_when_it_is_over(caplog):
    caplog.set_level("INFO", logger="absl")
    messages = told([{"effective_rank": 1.0}] * 3 + [{}] * 2 + [{"embedding_cosine": 0.99}], caplog)
    assert len(messages) == 3, "nothing during the warm-up, once while it lasts, once when it is over, once again"
    assert "step 20: the run looks collapsed" in messages[0]
    assert "step 40: the run does not look collapsed any more" in messages[1]
    assert "step 60: the run looks collapsed" in messages[2]


def test_a_run_on_the_edge_does_not_warn_again_and_again(caplog):
    caplog.set_level("INFO", logger="absl")
    edge = [{"targets_told_apart": value} for value in (9, 1.4, 1.6, 1.4, 1.7, 1.45)]
    assert len(told(edge, caplog)) == 1
