"""Every head against a float64 formula in loops, its gradients against differences, and classes over devices."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdpn_jax.training import margins, sharding

N, C, S, D = 7, 11, 2, 5
HEADS = {
    "aam": margins.Head("aam", 30.0, 0.2),
    "aam, large margin": margins.Head("aam", 16.0, 1.2),
    "am": margins.Head("am", 30.0, 0.35),
    "aam, top k": margins.Head("aam", 30.0, 0.2, 3, 0.06),
    "aam, nearest spared": margins.Head("aam", 30.0, 0.2, 4, -0.3),
    "am, top k": margins.Head("am", 20.0, 0.2, 2, 0.1),
}


def drawn(seed=0, sub_centres=S):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(sharding.ROWS, sub_centres, D))
    embedding = rng.normal(size=(N, D))
    labels = rng.integers(C, size=N)
    embedding[0] = -3 * centres[labels[0], 0]  # theta + m beyond pi
    embedding[1] = 2 * centres[labels[1], 0]  # theta of 0, where sin(theta) has no gradient
    return embedding, centres, labels


def expected_losses(embedding, centres, labels, head, share):
    """-log softmax of the label, view by view and class by class."""
    losses = []
    for x, label in zip(embedding, labels, strict=True):
        cosine = np.array([
            max(float(x @ w / np.linalg.norm(x) / np.linalg.norm(w)) for w in centres[c]) for c in range(C)
        ])  # fmt: skip
        theta = np.arccos(np.clip(cosine, -1, 1))
        values, margin = cosine.copy(), share * head.margin
        if head.kind == "am":
            values[label] -= margin
        else:
            over = theta[label] + margin >= np.pi
            values[label] = cosine[label] - margin * np.sin(margin) if over else np.cos(theta[label] + margin)
        others = sorted((c for c in range(C) if c != label), key=lambda c: -cosine[c])
        for c in others[: head.top_k]:
            gain = share * head.top_k_margin
            values[c] = cosine[c] + gain if head.kind == "am" else np.cos(theta[c] - gain)
        scaled = head.scale * values
        losses.append(np.log(np.sum(np.exp(scaled - scaled.max()))) + scaled.max() - scaled[label])
    return np.array(losses)


def losses_of(embedding, centres, labels, head, share):
    cosines = margins.class_cosines(embedding, centres, C)
    return margins.cross_entropy(margins.logits(cosines, labels, C, head, share), labels)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_losses_are_those_of_the_formula(name, share):
    embedding, centres, labels = drawn()
    with jax.enable_x64(True):
        actual = losses_of(jnp.asarray(embedding), jnp.asarray(centres), jnp.asarray(labels), HEADS[name], share)
    expected = expected_losses(embedding, centres, labels, HEADS[name], share)
    np.testing.assert_allclose(np.delete(actual, 1), np.delete(expected, 1), rtol=1e-9)
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-5)  # where a rounding of cos(theta) is its root in sin


@pytest.mark.parametrize("name", HEADS)
def test_gradients_are_the_differences(name):
    embedding, centres, labels = drawn(1)
    embedding[1] += 0.1  # away from the cosine of 1, where differences of this size say nothing
    directions = (
        np.random.default_rng(2).normal(size=(3, N, D)),
        np.random.default_rng(3).normal(size=(3, *centres.shape)),
    )
    with jax.enable_x64(True):
        function = jax.jit(lambda x, w: losses_of(x, w, jnp.asarray(labels), HEADS[name], 1.0).sum())
        of_embedding, of_centres = jax.grad(function, (0, 1))(jnp.asarray(embedding), jnp.asarray(centres))
    step = 1e-6
    for u, v in zip(*directions, strict=True):
        ends = [
            expected_losses(embedding + s * step * u, centres + s * step * v, labels, HEADS[name], 1.0).sum()
            for s in (1, -1)
        ]
        slope = float(np.sum(of_embedding * u) + np.sum(of_centres * v))
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(of_centres)[C:], 0)  # rows that are no class


@pytest.mark.parametrize("name", HEADS)
def test_gradients_are_finite_where_the_angle_is_0_or_pi(name):
    centres = np.zeros((sharding.ROWS, 1, 2), np.float32)
    centres[:2, 0] = [[1, 0], [-1, 0]]
    function = lambda x: losses_of(x, jnp.asarray(centres), jnp.array([0, 1]), HEADS[name], 1.0).sum()  # noqa: E731
    for embedding in ([[2.0, 0.0], [3.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]):
        assert np.isfinite(jax.grad(function)(jnp.array(embedding))).all()


def test_a_margin_never_makes_the_loss_less():
    cosine = jnp.linspace(-1, 1, 2001)
    for kind in ("aam", "am"):
        lowered = margins.with_margin(cosine, 0.5, kind)
        assert np.all(lowered < cosine)
        assert np.all(np.diff(lowered) > -1e-6)  # it rises with the cosine, beyond pi - m as well


def test_split_classes_are_whole_ones():
    """Loss and gradients with the centres over eight devices and the views on all, in a process of its own."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
    code = "import test_margins; test_margins.compare_split_with_whole()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def compare_split_with_whole():
    embedding, centres, labels = drawn(4)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    assert mesh.size == 8
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    arrays = jnp.asarray(embedding), jnp.asarray(centres), jnp.asarray(labels)
    placed = [jax.device_put(x, where) for x, where in zip(arrays, (whole, split, whole), strict=True)]
    for head in HEADS.values():
        function = jax.value_and_grad(lambda x, w, y: losses_of(x, w, y, head, 1.0).mean(), (0, 1))  # noqa: B023
        shared = jax.jit(function, in_shardings=(whole, split, whole), out_shardings=(whole, (whole, split)))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12),
            shared(*placed),
            jax.jit(function)(*arrays),
        )
        text = shared.lower(*placed).compile().as_text()
        assert f"f64[{sharding.ROWS // 8},{S},{D}]" in text
        assert f"f64[{sharding.ROWS},{S},{D}]" not in text  # nowhere are all centres on one device


def test_classes_come_in_rows_that_devices_can_share():
    for classes, rows in ((2, 256), (256, 256), (257, 512)):
        assert margins.drawn_centres(classes, 2, 3, jax.random.key(0)).shape == (rows, 2, 3)


def test_the_nearest_class_is_found_among_the_classes_alone():
    centres = np.zeros((sharding.ROWS, 1, 2), np.float32)
    centres[:3, 0] = [[1, 0], [0, 1], [1, 1]]
    centres[3:, 0] = [-1, 0]  # unused, and nearest to the last view
    cosines = margins.class_cosines(jnp.array([[2.0, 1.9], [1.0, 0.0], [-1.0, 0.0]]), jnp.asarray(centres), 3)
    np.testing.assert_array_equal(margins.found(cosines, jnp.array([2, 1, 1])), [True, False, True])
