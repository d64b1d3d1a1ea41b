"""Positives from neighbours: who may be exchanged for whom, and what a step makes of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdpn_jax.training import positives, sharding
from sdpn_jax.training.step import Positives, TrainState

# Three clusters on a circle: 0 and 1 are neighbours, 2 is nearer to 1 than to 0.
ANGLES = [0.0, 0.05, 0.1, 1.0, 1.05, 2.5, 2.55, 2.6, 2.65]
EMBEDDINGS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1).astype(np.float32)


@pytest.fixture(scope="module")
def kept():
    """The nine embeddings on the circle, in every second of 18 rows, and rows of nothing."""
    rows = np.zeros((sharding.ROWS, 2), np.float32)
    rows[0:18:2] = EMBEDDINGS
    cluster, order, first, nearest = positives.groups(rows, 3, seed=0)
    projections = np.arange(sharding.ROWS, dtype=np.float32)[:, None] * np.ones(4, np.float32)
    return Positives(*map(jnp.asarray, (rows, projections, cluster, order, first, nearest)))


def test_rows_are_grouped_and_groups_know_their_neighbours(kept):
    cluster = np.asarray(kept.cluster)
    assert (cluster[1:18:2] == positives.UNKNOWN).all() and (cluster[18:] == positives.UNKNOWN).all()
    members = [set(np.flatnonzero(cluster == k).tolist()) for k in range(3)]
    assert sorted(map(sorted, members)) == [[0, 2, 4], [6, 8], [10, 12, 14, 16]]
    for k in range(3):
        own = np.asarray(kept.order)[int(kept.first[k]) : int(kept.first[k + 1])]
        assert set(own.tolist()) == members[k]
    a, b, c = (int(cluster[row]) for row in (0, 6, 10))
    assert [int(kept.nearest[k]) for k in (a, b, c)] == [b, a, b]


def test_partners_are_drawn_evenly_from_the_nearest_other_group(kept):
    number = jnp.asarray([0, 6, 10, 1])
    draw = jax.jit(functools.partial(positives.partners, share=1.0))
    drawn = [draw(jax.random.key(i), kept, number) for i in range(300)]
    partner = np.stack([np.asarray(pair[0]) for pair in drawn])
    np.testing.assert_array_equal(drawn[0][1], [True, True, True, False])  # row 1 was never seen
    assert set(partner[:, 0].tolist()) == {6, 8} == set(partner[:, 2].tolist())
    assert set(partner[:, 1].tolist()) == {0, 2, 4}
    assert np.all(np.bincount(partner[:, 1])[[0, 2, 4]] > 70)

    used = np.mean([draw_of(kept, number, i, 0.3)[:3].mean() for i in range(300)])
    assert used == pytest.approx(0.3, abs=0.05)


@functools.partial(jax.jit, static_argnums=3)
def draw_of(kept, number, seed, share):
    return positives.partners(jax.random.key(seed), kept, number, share)[1]


def test_some_of_a_batch_are_exchanged(kept):
    number = jnp.asarray([0, 1, 10])
    rng = np.random.default_rng(0)
    projection = jnp.asarray(rng.normal(size=(3, 2, 4)), jnp.float32)
    state = TrainState(jnp.asarray(7), {}, {}, jnp.zeros((5, 4)), jnp.zeros(5), (), positives=kept)
    truth = np.zeros(sharding.ROWS, np.int32)
    truth[[6, 8]] = 1  # the neighbours of 0, which has another speaker, and of 10, which has the same
    truth[10] = 1
    exchange = positives.make_exchange(1.0, seed=3)
    exchanged, metrics = jax.jit(exchange)(state, number, projection, {"truth": jnp.asarray(truth)})
    for place in (0, 2):
        value = float(exchanged[place, 0, 0])
        assert value in (6.0, 8.0), "the row of a neighbour, by which its projection is known"
        np.testing.assert_array_equal(exchanged[place], np.full((2, 4), value))
    np.testing.assert_array_equal(exchanged[1], projection[1])
    assert float(metrics["exchanged"]) == pytest.approx(2 / 3)
    assert float(metrics["exchanged_right"]) == pytest.approx(1 / 2)


def test_what_the_teacher_hears_is_kept(kept):
    number, rng = np.array([0, 1, 10]), np.random.default_rng(0)
    embedding, projection = rng.normal(size=(3, 2)), rng.normal(size=(3, 4))
    now = jax.jit(positives.keep)(kept, number, embedding, projection)
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    np.testing.assert_allclose(now.embeddings[number], unit, atol=1e-3)
    np.testing.assert_allclose(now.projections[number], projection, atol=2e-3)
    untouched = np.setdiff1d(np.arange(sharding.ROWS), number)
    np.testing.assert_array_equal(now.projections[untouched], kept.projections[untouched])


def test_too_few_are_no_groups():
    cluster, _, first, _ = positives.groups(np.zeros((sharding.ROWS, 2), np.float32), 4, 0)
    assert (cluster == positives.UNKNOWN).all() and (first == 0).all()


def test_regrouping_is_a_function_of_what_is_kept(kept):
    again = positives.regrouped(kept, np.asarray(kept.embeddings), 0)
    for name in ("cluster", "order", "first", "nearest"):
        np.testing.assert_array_equal(getattr(again, name), getattr(kept, name))
