"""The distortions on the accelerator are those of the host."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from sdpn_jax.data import channels, device_channels

RATE = 16000


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(samples).astype(np.float32)


def many(distortion, count: int, segment: np.ndarray) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.jit(jax.vmap(lambda key: distortion(key, jnp.asarray(segment))))(keys))


@pytest.mark.parametrize("samples", [1600, 40001])
def test_a_response_filters_as_on_the_host(samples):
    response = lambda pitch: 10 * np.sin(np.maximum(pitch, 7))  # noqa: E731
    here = device_channels._filtered(jnp.asarray(noise(samples)), response)
    there = channels._filtered(noise(samples), response)
    # Padded to other lengths, the response is sampled at other places.
    assert np.sqrt(np.mean((here - there) ** 2)) < 0.02 * np.std(there)


@pytest.mark.parametrize("name", ["equaliser", "band"])
def test_responses_vary_as_on_the_host(name):
    """Mean and deviation, over draws, of the power in six bands, in dB."""
    segment = noise(20000)
    rngs = [np.random.default_rng(seed) for seed in range(300)]
    there = np.stack([channels.DISTORTIONS[name](segment, rng) for rng in rngs])
    here = many(device_channels.DISTORTIONS[name], 300, segment)

    def levels(waveforms):
        hertz, power = scipy.signal.welch(waveforms, RATE, nperseg=1024)
        edges = [40, 200, 500, 1500, 3000, 5000, 7900]
        bands = [(hertz >= low) & (hertz < high) for low, high in zip(edges, edges[1:], strict=False)]
        return 10 * np.log10(np.stack([power[:, chosen].mean(1) for chosen in bands], 1) + 1e-12)

    ours, theirs = levels(here), levels(there)
    spread = np.hypot(ours.std(0), theirs.std(0)) / np.sqrt(300)
    assert np.all(np.abs(ours.mean(0) - theirs.mean(0)) < 4 * spread + 0.1)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.25, atol=0.2)


def test_clipping_cuts_a_share():
    segment = noise(40000)
    clipped = many(device_channels.clipping, 50, segment)
    shares = (clipped != segment).mean(1)
    assert 0.0003 < shares.min() < 0.005 and 0.02 < shares.max() < 0.06


def test_mu_law_has_two_hundred_and_fifty_six_levels():
    segment = noise(40000)
    coded = many(device_channels.codec, 1, segment)[0]
    assert len(np.unique(coded)) <= 256
    assert 32 < 10 * np.log10(np.mean(segment**2) / np.mean((coded - segment) ** 2)) < 42


def test_lost_packets_and_gain():
    lost = many(device_channels.loss, 200, np.ones(3200 * 10, np.float32)).reshape(200, -1, 320)
    silent = (lost == 0).all(2)
    assert np.all(silent | (lost == 1).all(2))
    assert abs(silent.mean() - 0.055) < 0.01
    decibels = 20 * np.log10(many(device_channels.gain, 300, np.ones(4, np.float32))[:, 0])
    assert -25 <= decibels.min() < -23 and 3 < decibels.max() <= 5.01


def test_shares_and_silence():
    """What is not named is not done; behind an utterance's end there is silence."""
    segment, audible = noise(3200) + 1, np.arange(3200) < 3000
    distort = functools.partial(device_channels.distort, audible=jnp.asarray(audible), names=("clipping", "loss"))
    out = many(lambda key, x: distort(key, x), 400, segment)
    assert not out[:, 3000:].any()
    for chosen, share in (((out[:, :3000] == 0).any(1), 0.1 * (1 - 0.6)), ((out.max(1) < segment.max()), 0.1)):
        assert abs(chosen.mean() - share) < 0.07
    nothing = many(lambda key, x: device_channels.distort(key, x, jnp.asarray(audible), ()), 2, segment)
    np.testing.assert_array_equal(nothing[0], np.where(audible, segment, 0))
