"""The record format and the metadata beside the shards."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpn_jax.data import features, records
from sdpn_jax.errors import UserError


def utterance(name="a/b.wav", versions=2, frames=5, bins=80, num_samples=800):
    rng = np.random.default_rng(0)
    return records.Utterance(
        id=name,
        num_samples=num_samples,
        log_mel=rng.normal(size=(versions, frames, bins)).astype(np.float16),
        tail=rng.normal(size=(versions, 3, bins)).astype(np.float16),
    )


@settings(max_examples=50, deadline=None)
@given(
    name=st.one_of(st.text(max_size=40), st.just(b"not utf-8 \xff".decode("utf-8", "surrogateescape"))),
    versions=st.integers(1, 5),
    frames=st.integers(1, 30),
    bins=st.integers(1, 90),
    num_samples=st.integers(0, 2**40),
)
def test_round_trip(name, versions, frames, bins, num_samples):
    original = utterance(name, versions, frames, bins, num_samples)
    decoded = records.decode(records.encode(original))
    assert (decoded.id, decoded.num_samples) == (name, num_samples)
    np.testing.assert_array_equal(decoded.log_mel, original.log_mel)
    np.testing.assert_array_equal(decoded.tail, original.tail)


def test_decoding_copies_nothing():
    record = records.encode(utterance())
    whole = np.frombuffer(record, np.uint8)
    assert np.shares_memory(records.decode(record).log_mel, whole)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda r: b"", "not of this project's format"),
        (lambda r: b"XXXX" + r[4:], "not of this project's format"),
        (lambda r: r[:4] + b"\x63\x00" + r[6:], "version 99"),
        (lambda r: r[:-2], "damaged"),
        (lambda r: r + b"\0\0", "damaged"),
    ],
)
def test_foreign_and_damaged_records(damage, message):
    with pytest.raises(UserError, match=message):
        records.decode(damage(records.encode(utterance())))


def test_recordings_keep_their_samples():
    samples = np.random.default_rng(0).integers(-32768, 32768, 3000).astype(np.int16)
    back = records.decode(records.encode(records.Recording("s/ü.wav", samples)))
    assert back.id == "s/ü.wav"
    assert back.num_samples == 3000
    np.testing.assert_array_equal(back.samples, samples)
    expected = features.log_mel(samples.astype(np.float32) / 32768)
    np.testing.assert_array_equal(back.log_mel, expected[None].astype(np.float16))
    with pytest.raises(UserError, match="damaged"):
        records.decode(records.encode(records.Recording("a", samples))[:-1])
