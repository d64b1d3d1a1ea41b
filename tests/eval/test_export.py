"""Embeddings of whole utterances: padding, batching and files."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpn_jax.eval import export, scoring
from sdpn_jax.models.network import Network, initial_variables

SMALL = Network(channels=(16, 16, 16, 16, 24), se_bottleneck=8, attention=8, embedding_size=12, hidden_size=20)


@given(st.lists(st.integers(11, 5000), max_size=200))
def test_batches_hold_everything_once_and_fit(lengths):
    seen = []
    for rows, padded_frames in export.batches_of_similar_length(lengths):
        assert 1 <= len(rows) <= export.rows_at_once(padded_frames)
        assert all(padded_frames - export.BUCKET < lengths[row] <= padded_frames for row in rows)
        seen += rows
    assert sorted(seen) == list(range(len(lengths)))


def test_an_embedding_does_not_depend_on_its_company():
    variables = initial_variables(SMALL, 0)
    rng = np.random.default_rng(0)
    log_mels = [rng.normal(size=(frames, 80)).astype(np.float32) for frames in (11, 120, 255, 256, 257, 300)]
    together = export.Embedder(SMALL)(variables, log_mels)
    for log_mel, embedding in zip(log_mels, together, strict=True):
        alone = np.asarray(SMALL.apply(variables, log_mel[None], method=SMALL.embed))[0].astype(np.float64)
        cosine = alone @ embedding / np.linalg.norm(alone) / np.linalg.norm(embedding)
        assert 1 - cosine < 1e-5


def test_statistics():
    x = np.random.default_rng(0).normal(size=(50, 80))
    expected = [*x.mean(0), *np.sqrt(np.mean((x - x.mean(0)) ** 2, axis=0))]
    np.testing.assert_allclose(export.log_mel_statistics(x), expected)


@pytest.mark.parametrize("name", ["e.npz", "folder"])
def test_written_embeddings_are_read_back(tmp_path, name):
    embeddings = np.random.default_rng(0).normal(size=(3, 4))
    export.write_embeddings(tmp_path / "deep" / name, ["a/é.wav", "b c.wav", "d"], embeddings)
    read, ids = scoring.load_embeddings(tmp_path / "deep" / name)
    assert list(ids) == ["a/é.wav", "b c.wav", "d"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, embeddings.astype(np.float32))
