"""Padding, batching and crops: an embedding is that of the utterance alone."""

import jax
import numpy as np
import pytest
import random_variables
from hypothesis import example, given
from hypothesis import strategies as st

from sdpn_jax.models.network import initial_variables, network_of
from sdpn_jax.speaker import embedder

SMALL = network_of(
    {"channels": (16, 16, 16, 16, 24), "se_bottleneck": 8, "attention": 8, "embedding_size": 12, "hidden_size": 20}
)


@given(st.lists(st.integers(11, 5000), max_size=200))
@example([1025] * 7 + [2049, 2561])  # what is left of a batch of two lengths meets a third one
def test_batches_hold_everything_once_and_fit(lengths):
    seen = []
    for rows, padded_frames in embedder.batches_of_similar_length(lengths, lambda frames: max(1, 16384 // frames)):
        assert 1 <= len(rows) <= max(1, 16384 // padded_frames)
        assert all(lengths[row] <= padded_frames <= 2 * embedder.padded_length(lengths[row]) for row in rows)
        seen += rows
    assert sorted(seen) == list(range(len(lengths)))


def test_a_long_list_is_padded_to_the_nearest_length_but_for_a_few():
    lengths = np.random.default_rng(0).integers(200, 1500, size=20_000).tolist()
    batches = embedder.batches_of_similar_length(lengths, lambda frames: max(1, 16384 // frames))
    padding = sum(len(rows) * padded_frames for rows, padded_frames in batches)
    assert padding < 1.12 * sum(lengths)


def test_a_short_list_is_compiled_for_few_lengths():
    lengths = np.geomspace(200, 3200, 50).astype(int).tolist()
    batches = list(embedder.batches_of_similar_length(lengths, lambda frames: max(1, 16384 // frames)))
    assert len({padded_frames for _, padded_frames in batches}) <= len(set(map(embedder.padded_length, lengths))) / 2


def test_few_lengths_are_compiled():
    lengths = {embedder.padded_length(frames) for frames in range(1, 3 * 360_000, 7)}
    assert len(lengths) <= 61
    assert max(lengths) >= 3 * 360_000 - 7


def test_incomplete_batches_are_filled_up_by_less_than_a_half():
    sizes = [embedder.few_sizes(rows) for rows in range(1, 1025)]
    assert all(rows <= size < 1.5 * rows for rows, size in enumerate(sizes, 1))
    assert len(set(sizes)) == 20


@pytest.mark.slow
def test_an_embedding_does_not_depend_on_its_company():
    variables = random_variables.of_network(SMALL)
    rng = np.random.default_rng(0)
    log_mels = [rng.normal(size=(frames, 80)).astype(np.float32) for frames in (11, 120, 127, 128, 129, 300)]
    together = embedder.Embedder(SMALL)(variables, log_mels)
    for log_mel, embedding in zip(log_mels, together, strict=True):
        alone = np.asarray(SMALL.apply(variables, log_mel[None], method=SMALL.embed))[0].astype(np.float64)
        cosine = alone @ embedding / np.linalg.norm(alone) / np.linalg.norm(embedding)
        assert 1 - cosine < 1e-5


def test_crops_are_spread_from_start_to_end():
    log_mel = np.arange(100.0)[:, None]
    assert [crop[0, 0] for crop in embedder.crops_of(log_mel, 4, 40)] == [0, 20, 40, 60]
    assert all(len(crop) == 40 for crop in embedder.crops_of(log_mel, 4, 40))
    assert embedder.crops_of(log_mel, 4, 100) == [log_mel]
    assert embedder.crops_of(log_mel, 4, 300)[0].shape == (100, 1)


def test_averaged_crops_give_the_mean_cosine_of_all_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 8)), rng.normal(size=(2, 8))
    means = embedder.mean_of_units(np.concatenate([a, b]), [3, 2])
    cosines = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x in a for y in b]
    assert means[0] @ means[1] == pytest.approx(np.mean(cosines), abs=1e-12)


def test_crops_of_several_utterances_are_kept_apart():
    log_mels = [np.full((length, 2), value, np.float32) for length, value in ((50, 1.0), (10, 2.0), (30, -3.0))]
    embed = lambda crops: np.stack([[crop.mean(), len(crop)] for crop in crops])  # noqa: E731
    expected = [[mean, length] / np.hypot(mean, length) for mean, length in ((1, 20), (2, 10), (-3, 20))]
    np.testing.assert_allclose(embedder.embed_crops(embed, log_mels, 3, 20), expected)


def test_a_fingerprint_is_of_what_is_computed():
    sizes = {"channels": (8,) * 5, "se_bottleneck": 8, "attention": 8, "embedding_size": 8, "hidden_size": 8}
    plain = network_of(sizes)
    variables = random_variables.of_network(plain)
    first = embedder.fingerprint(plain, variables)
    assert embedder.fingerprint(network_of(sizes | {"remat": True}), variables) == first
    assert embedder.fingerprint(network_of(sizes | {"se_bottleneck": 16}), variables) != first
    assert embedder.fingerprint(plain, random_variables.of_network(plain, seed=1)) != first


@pytest.mark.parametrize("sizes, digest", [
    ({}, "5ed3442d441aac13a6a2d1e6e46e8ffee2013970fdefd506e07424b2dbac6a64"),
    ({"front_end": "kaldi80"}, "a32a084e8dfd4a53677c7e8742d1ff7e7c04141cc8264ca81bf842c25ac82e34"),
    ({"dtype": "bfloat16", "remat": True}, "477ab39a6f293d42d4af078e4d61d9554ca31c91828d05b82ed1dd2b12cf2f38"),
])  # fmt: skip
def test_fingerprints_stay_what_earlier_versions_wrote_into_galleries(sizes, digest):
    """Of weights that run from -1 to 1 in each array, by the version of before there were other encoders."""
    eights = {name: 8 for name in ("se_bottleneck", "attention", "embedding_size", "hidden_size", "projection_size")}
    network = network_of({"channels": (8,) * 5, **eights, **sizes})
    shapes = jax.eval_shape(lambda: initial_variables(network, 0))
    ramps = jax.tree.map(lambda x: np.linspace(-1, 1, x.size, dtype=np.float32).reshape(x.shape), shapes)
    assert embedder.fingerprint(network, ramps) == digest
