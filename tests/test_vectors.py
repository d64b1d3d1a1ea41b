"""Unit length and cosine against plain loops."""

import math

import numpy as np

from sdpn_jax.vectors import cosine, unit


def test_unit_and_cosine_by_hand():
    x = np.array([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0]], np.float32)
    np.testing.assert_allclose(unit(x), [[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]], atol=1e-12)
    assert cosine(x[0], np.array([4.0, 3.0])) == 24 / 25
    assert cosine(x, np.array([0.0, 2.0])).tolist() == [0.8, 0.0, 0.0]


def test_random_vectors():
    a, b = np.random.default_rng(0).normal(size=(2, 7))
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    expected = dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))
    assert math.isclose(float(cosine(a, b)), expected, rel_tol=1e-12)
