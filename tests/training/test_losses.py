"""Each loss against float64 NumPy, its gradient against finite differences, and the released numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpn_jax.training import losses
from sdpn_jax.training.step import Objective, teacher_targets

cosine_logits = jax.jit(losses.cosine_logits)
student_log_probability = jax.jit(losses.student_log_probability)
softmax_targets = jax.jit(losses.softmax_targets)
cross_entropy = jax.jit(losses.cross_entropy)
balanced_targets = jax.jit(losses.balanced_targets, static_argnums=(2, 3, 4))
sinkhorn_targets = jax.jit(functools.partial(losses.sinkhorn_targets, iterations=3))
koleo_of_views = jax.jit(functools.partial(losses.over_view_groups, losses.koleo))
SHAPES = (2, 1, 2), (3, 2, 9), (5, 4, 4), (7, 3, 2)  # B, V, K or D: few, since each is compiled
sizes = st.tuples(st.sampled_from(SHAPES), st.integers(0, 2**16)).map(lambda drawn: (*drawn[0], drawn[1]))


@functools.cache
def with_gradient(term, normalisation=None):
    """A term and its gradient, of embeddings or of the correlations of their dimensions; compiled once."""
    of = term if normalisation is None else lambda x: term(losses.correlation(x, normalisation))
    return jax.jit(jax.value_and_grad(of))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def finite_difference(f, x, step=1e-6):
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += step
        down[i] -= step
        gradient[i] = (f(up) - f(down)) / (2 * step)
    return gradient


def koleo_float64(x, group=0):
    x = unit(x)
    distances = []
    for start in range(0, len(x), group or len(x)):
        part = x[start : start + (group or len(x))]
        for i, row in enumerate(part):
            others = np.delete(part, i, axis=0)
            distances.append(np.sqrt(np.square(row - others).sum(1)).min())
    return -np.log(np.asarray(distances) + 1e-8).mean()


def me_max_float64(log_p):
    mean = np.exp(log_p).reshape(-1, log_p.shape[-1]).mean(0)
    return np.log(log_p.shape[-1]) - scipy.special.entr(mean).sum()


@settings(max_examples=10, deadline=None)
@given(sizes)
def test_student_log_probability_and_targets(size):
    batch, _, prototypes, seed = size
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        x, c = rng.normal(size=(batch, 5)), rng.normal(size=(prototypes, 5))
        cosines = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in c] for a in x])
        np.testing.assert_allclose(cosine_logits(x, c), cosines, atol=1e-12)
        p = np.exp(cosines / 0.1) / np.exp(cosines / 0.1).sum(1, keepdims=True)
        np.testing.assert_allclose(np.exp(student_log_probability(cosines, 0.1)), p, rtol=1e-9)
        sharp = p**4 / (p**4).sum(1, keepdims=True)
        np.testing.assert_allclose(softmax_targets(cosines, 0.1, 0.25), sharp, rtol=1e-9)
        q = sharp
        for _ in range(3):
            q = q / q.sum(0, keepdims=True)
            q = q / q.sum(1, keepdims=True)
        np.testing.assert_allclose(sinkhorn_targets(cosines, 0.1, 0.25), q, rtol=1e-7)


@settings(max_examples=10, deadline=None)
@given(sizes)
def test_cross_entropy_and_me_max(size):
    batch, views, prototypes, seed = size
    rng = np.random.default_rng(seed)
    log_p = scipy.special.log_softmax(rng.normal(size=(batch, views, prototypes)), axis=-1)
    targets = rng.dirichlet(np.ones(prototypes), size=(batch, 2))
    expected = np.mean(
        [-(targets[b, g] * log_p[b, v]).sum() for b in range(batch) for g in range(2) for v in range(views)]
    )
    with jax.enable_x64(True):
        assert float(cross_entropy(log_p, targets)) == pytest.approx(expected, rel=1e-10)
        value, gradient = with_gradient(losses.me_max)(log_p)
    assert float(value) == pytest.approx(me_max_float64(log_p), rel=1e-9, abs=1e-12)
    np.testing.assert_allclose(gradient, finite_difference(me_max_float64, log_p), atol=1e-7)


@settings(max_examples=10, deadline=None)
@given(sizes)
def test_koleo_and_its_gradient(size):
    batch, views, dimension, seed = size
    x = np.random.default_rng(seed).normal(size=(batch, views, dimension))
    with jax.enable_x64(True):
        value, gradient = with_gradient(losses.koleo)(x[:, 0])
        summed = float(koleo_of_views(x))
    # The released form adds epsilon to every coordinate too, which shows below distances of about 1e-4.
    assert float(value) == pytest.approx(koleo_float64(x[:, 0]), abs=1e-3)
    assert summed == pytest.approx(sum(koleo_float64(x[:, v]) for v in range(views)), abs=1e-3 * views)
    reference = finite_difference(lambda y: float(koleo_float64(y)), x[:, 0])
    np.testing.assert_allclose(gradient, reference, atol=1e-4 * max(1.0, np.abs(reference).max()))


def test_koleo_in_groups():
    x = np.random.default_rng(0).normal(size=(12, 5))
    with jax.enable_x64(True):
        assert float(losses.koleo(x, 4)) == pytest.approx(koleo_float64(x, 4), rel=1e-6)
    assert koleo_float64(x, 4) != pytest.approx(koleo_float64(x), rel=1e-3)


def correlation_float64(x, normalisation):
    z = unit(x) if normalisation == "l2" else (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    return sum(np.outer(row, row) for row in z) / len(z)


@pytest.mark.parametrize("normalisation", ["l2", "standardise"])
@settings(max_examples=10, deadline=None)
@given(size=sizes)
def test_dimension_regularisation_and_its_gradient(normalisation, size):
    batch, _, dimension, seed = size
    x = np.random.default_rng(seed).normal(size=(batch, dimension))

    def off_diagonal(x):
        c = correlation_float64(x, normalisation)
        return sum(c[i, j] ** 2 for i in range(dimension) for j in range(dimension) if i != j) / dimension

    def frobenius(x):
        return np.linalg.norm(correlation_float64(x, normalisation))

    for actual, expected in ((losses.off_diagonal, off_diagonal), (losses.frobenius, frobenius)):
        with jax.enable_x64(True):
            value, gradient = with_gradient(actual, normalisation)(x)
        assert float(value) == pytest.approx(expected(x), rel=1e-9, abs=1e-9)
        reference = finite_difference(expected, x)
        np.testing.assert_allclose(gradient, reference, atol=1e-5 * max(1.0, np.abs(reference).max()))


def test_frobenius_of_known_batches():
    same, spread = np.ones((6, 4)), np.eye(4)  # one direction; every dimension equally
    assert float(losses.frobenius(losses.correlation(same, "l2"))) == pytest.approx(1)
    assert float(losses.frobenius(losses.correlation(spread, "l2"))) == pytest.approx(4**-0.5)
    assert float(losses.off_diagonal(losses.correlation(spread, "l2"))) == pytest.approx(0, abs=1e-7)


def test_me_max_is_zero_for_equal_use_and_log_k_for_one_prototype():
    equal = np.log(np.full((6, 2, 8), 1 / 8, np.float32))
    assert float(losses.me_max(equal)) == pytest.approx(0, abs=1e-6)
    one = np.full((6, 2, 8), -100, np.float32)
    one[..., 3] = 0
    assert float(losses.me_max(one)) == pytest.approx(np.log(8), rel=1e-6)


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_balanced_targets_settle_where_optimal_transport_is(rate):
    """Many steps on one batch give the plan of the regularised transport problem, by SciPy's solver on its dual."""
    cosines = np.random.default_rng(0).uniform(-1, 1, (12, 5))
    logits = cosines / (0.5 * 0.4)

    def dual(offset):  # convex; its gradient is the usage of every prototype minus 1 / K
        return scipy.special.logsumexp(logits - offset, axis=1).mean() + offset.mean()

    solution = scipy.optimize.minimize(dual, np.zeros(5), options={"gtol": 1e-10}).x
    with jax.enable_x64(True):
        offset = jnp.zeros(5)
        for _ in range(500):
            targets, offset = balanced_targets(cosines, offset, 0.5, 0.4, rate)
    np.testing.assert_allclose(np.asarray(targets).mean(0), 1 / 5, atol=1e-9)
    np.testing.assert_allclose(targets, scipy.special.softmax(logits - solution, axis=1), atol=1e-5)


def test_one_balancing_step_by_hand():
    """Two samples that both prefer prototype 0 with probability 3/4: usage 3/4, 1/4; K usage 3/2, 1/2."""
    cosines = np.log([[3.0, 1.0], [3.0, 1.0]])
    targets, offset = losses.balanced_targets(cosines, jnp.zeros(2), 1.0, 1.0, 0.5)
    np.testing.assert_allclose(offset, np.log([1.25, 0.75]), rtol=1e-5)
    np.testing.assert_allclose(
        targets, [[3 / 1.25 / (3 / 1.25 + 1 / 0.75), 1 / 0.75 / (3 / 1.25 + 1 / 0.75)]] * 2, rtol=1e-5
    )


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_balancing_is_finite_when_the_winner_changes(rate):
    """A prototype that nobody uses any more has a usage that underflows; float64 by SciPy is the reference."""
    batches = [np.array([[1.0, -1.0, 0.0]] * 4), np.array([[-1.0, 1.0, 0.0]] * 4), np.array([[1.0, -1.0, 0.5]] * 4)]
    offset, expected = jnp.zeros(3), np.zeros(3)
    for cosines in batches:
        targets, offset = balanced_targets(jnp.asarray(cosines, jnp.float32), offset, 0.1, 0.1, rate)
        log_p = scipy.special.log_softmax(cosines / 0.01 - expected, axis=1)
        log_usage = scipy.special.logsumexp(log_p, axis=0) - np.log(4)
        with np.errstate(divide="ignore"):
            expected = expected + np.logaddexp(np.log1p(-rate), np.log(rate * 3) + log_usage)
        np.testing.assert_allclose(offset, expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(targets, scipy.special.softmax(cosines / 0.01 - expected, axis=1), atol=1e-3)


@functools.cache
def all_terms(target):
    """The sum of all terms and its gradients, a function of embeddings and prototypes."""

    def total(x, prototypes):
        targets, _ = teacher_targets(x[:, None], prototypes, jnp.zeros(50), Objective(targets=target))
        log_p = losses.student_log_probability(losses.cosine_logits(x[:, None], prototypes), 1e-3)
        matrices = [losses.correlation(x, normalisation) for normalisation in ("l2", "standardise")]
        dimensions = sum(losses.off_diagonal(matrix) + losses.frobenius(matrix) for matrix in matrices)
        return losses.cross_entropy(log_p, targets) + losses.me_max(log_p) + losses.koleo(x) + dimensions

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1)))


@pytest.mark.parametrize("target", ["softmax", "balanced", "centred", "sinkhorn"])
@pytest.mark.parametrize("kind", ["equal", "opposite", "aligned"])
def test_everything_is_finite_in_float32_for_extreme_batches(target, kind):
    """Duplicates, zero distances and probabilities that underflow; K larger than the batch."""
    rng = np.random.default_rng(0)
    prototypes = unit(rng.normal(size=(50, 8))).astype(np.float32)
    rows = {"equal": np.ones((6, 8)), "opposite": np.kron([[1], [-1]] * 3, np.ones((1, 8))), "aligned": prototypes[:6]}
    x = rows[kind].astype(np.float32)

    value, gradients = all_terms(target)(x, prototypes)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


@pytest.mark.parametrize("kind", ["softmax", "sinkhorn"])
@pytest.mark.parametrize("dtype, rtol", [(np.float64, 1e-8), (np.float32, 1e-4)])
def test_golden_losses(golden, kind, dtype, rtol):
    vectors = np.load(golden / "losses.npz")

    def close(actual, expected):
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * np.abs(expected).max())

    with jax.enable_x64(dtype == np.float64):
        student, teacher, prototypes, embedding = (
            jnp.asarray(vectors[name], dtype)
            for name in ("student_projection", "teacher_projection", "prototypes", "koleo_embedding")
        )
        batch = len(teacher)
        targets, _ = teacher_targets(teacher[:, None], prototypes, jnp.zeros(()), Objective(targets=kind))
        close(targets[:, 0], vectors[f"{kind}/targets"])

        def terms(student, prototypes):
            views = student.reshape(-1, batch, student.shape[-1]).swapaxes(0, 1)
            log_p = losses.student_log_probability(losses.cosine_logits(views, prototypes), 0.1)
            both = losses.cross_entropy(log_p, targets), losses.me_max(log_p)
            return sum(both), both

        gradient_fn = jax.jit(jax.grad(terms, argnums=(0, 1), has_aux=True))
        gradients, (cross_entropy, me_max) = gradient_fn(student, prototypes)
        close(cross_entropy, vectors[f"{kind}/cross_entropy"])
        close(me_max, vectors[f"{kind}/me_max"])
        close(gradients[0], vectors[f"{kind}/grad_student_projection_of_sum"])
        close(gradients[1], vectors[f"{kind}/grad_prototypes_of_sum"])

        value, gradient = jax.jit(jax.value_and_grad(losses.koleo))(embedding)
        close(value, vectors["koleo"])
        close(gradient, vectors["koleo_grad"])
