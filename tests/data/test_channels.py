"""Distortions of microphones, lines and codecs."""

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpn_jax.data import audio, channels, prepare
from sdpn_jax.data.augment import Sources
from sdpn_jax.errors import UserError

RATE = audio.SAMPLE_RATE


def voice(seconds: float = 3.0) -> np.ndarray:
    """Harmonics of 120 Hz that come and go, over a little noise: a voice's bandwidth and pauses."""
    time = np.arange(int(seconds * RATE)) / RATE
    harmonics = sum(np.sin(2 * np.pi * 120 * k * time + k) / k for k in range(1, 50))
    syllables = np.maximum(np.sin(2 * np.pi * 3 * time), 0)
    noise = np.random.default_rng(0).standard_normal(len(time))
    return (0.1 * harmonics * syllables + 0.002 * noise).astype(np.float32)


def decibels(power: np.ndarray) -> np.ndarray:
    return 10 * np.log10(power)


def response(distortion, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(Hz, dB) of a distortion of white noise, by Welch's method; without its gain."""
    noise = np.random.default_rng(5).standard_normal(20 * RATE).astype(np.float32)
    hertz, before = scipy.signal.welch(noise, RATE, nperseg=2048)
    _, after = scipy.signal.welch(distortion(noise, np.random.default_rng(seed)), RATE, nperseg=2048)
    return hertz[8:], (decibels(after) - decibels(before))[8:]


@pytest.mark.parametrize("seed", range(3))
def test_an_equaliser_is_a_smooth_response_without_delay(seed):
    hertz, gains = response(channels.equaliser, seed)
    assert np.ptp(gains) > 3
    octave = np.searchsorted(hertz, 2 * hertz)
    inside = octave < len(hertz)
    steps = np.abs(gains[octave[inside]] - gains[inside])
    # Seven points an octave apart, of deviation 6 dB each, and a tilt of at most 4 dB an octave.
    assert steps.max() < 4 * 6 * np.sqrt(2) + 4 + 1
    speech = voice()
    equalised = channels.equaliser(speech, np.random.default_rng(seed))
    lags = scipy.signal.correlate(equalised, speech, "same")
    assert abs(np.argmax(lags) - len(speech) // 2) <= 2
    np.testing.assert_allclose(np.mean(equalised**2), np.mean(speech**2), rtol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_a_band_has_edges(seed):
    rng = np.random.default_rng(seed)
    low, high = rng.uniform(20, 400), rng.uniform(2800, 7500)
    hertz, gains = response(channels.band, seed)
    passed = gains[(hertz > 1.1 * low) & (hertz < 0.95 * high)]
    assert np.ptp(passed) < 3
    above = hertz > high * 1.2
    expected = np.median(passed) - 60 * np.log2(hertz[above] / high)
    np.testing.assert_allclose(gains[above], expected, atol=3)


def test_clipping_cuts_a_share_of_the_samples():
    speech = voice()
    for seed in range(5):
        clipped = channels.clipping(speech, np.random.default_rng(seed))
        changed = clipped != speech
        assert 0.0005 < changed.mean() <= 0.051
        assert np.abs(clipped[changed]).min() == pytest.approx(np.abs(clipped).max())


@pytest.mark.parametrize("number", range(len(channels.CODECS)))
def test_codecs_keep_length_level_and_time(number, monkeypatch):
    container, coding, _, rates = channels.CODECS[number]
    monkeypatch.setattr(channels, "CODECS", [channels.CODECS[number]])
    speech = voice()
    for seed in range(3):
        coded = channels.codec(speech, np.random.default_rng(seed))
        assert coded.shape == speech.shape
        assert not np.array_equal(coded, speech)
        correlation = scipy.signal.correlate(coded, speech, "same")
        assert abs(np.argmax(correlation) - len(speech) // 2) <= 16, (coding, seed)
        assert np.corrcoef(coded, speech)[0, 1] > 0.7, (coding, seed)


def test_mu_law_is_as_exact_as_eight_bits_allow(monkeypatch):
    """G.711 has a signal-to-noise ratio of 38 dB whatever the level (ITU-T G.711; Jayant and Noll, 1984)."""
    monkeypatch.setattr(channels, "CODECS", [("WAV", "ULAW", None, (16000,))])
    speech = voice()
    noise = channels.codec(speech, np.random.default_rng(0)) - speech
    assert 32 < decibels(np.mean(speech**2) / np.mean(noise**2)) < 42


def test_lost_packets_are_silent_and_the_others_whole():
    speech = np.ones(RATE * 10, np.float32)
    for seed in range(5):
        packets = channels.loss(speech, np.random.default_rng(seed)).reshape(-1, 320)
        assert np.all((packets == 0).all(1) | (packets == 1).all(1))
        assert 0 < (packets == 0).all(1).mean() < 0.2


def test_gain():
    gains = [channels.gain(np.ones(3), np.random.default_rng(seed))[0] for seed in range(200)]
    assert -25 <= 20 * np.log10(min(gains)) < -20 and 0 < 20 * np.log10(max(gains)) <= 5


def test_shares():
    """Of many utterances each distortion meets its share; those that are not named, none."""
    counts = dict.fromkeys(channels.SHARES, 0)
    names = [name for name in channels.SHARES if name != "codec"]
    for seed in range(300):
        _, chosen = channels.distort(np.ones(1600, np.float32), names, np.random.default_rng(seed))
        for name in chosen:
            counts[name] += 1
    assert counts.pop("codec") == 0
    for name, count in counts.items():
        share = channels.SHARES[name]
        assert abs(count / 300 - share) < 4 * np.sqrt(share * (1 - share) / 300) + 1e-9, name


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), samples=st.integers(1600, 20000), level=st.sampled_from([0.0, 1e-6, 0.1, 1.0, 3.0]))
def test_whatever_is_distorted_stays_finite_and_as_long(seed, samples, level):
    rng = np.random.default_rng(seed)
    waveform = (level * rng.standard_normal(samples)).astype(np.float32)
    distorted, _ = channels.distort(waveform, list(channels.SHARES), rng)
    assert distorted.shape == waveform.shape and distorted.dtype == np.float32
    assert np.isfinite(distorted).all()


def test_versions_are_distorted_and_the_clean_one_is_not():
    plain = prepare.make_recipe(None, None, 2, 0)
    recipe = prepare.make_recipe(None, None, 2, 0, distortions=["gain", "equaliser"])
    assert recipe.distortions == ("equaliser", "gain")
    assert recipe.fingerprint() != plain.fingerprint()
    assert plain.fingerprint() == prepare.Recipe(Sources(), 2, 0, Sources().fingerprint()).fingerprint()
    before, after = (prepare.make_record("a", voice(), each).log_mel.astype(float) for each in (plain, recipe))
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(before[1:] - after[1:]).mean((1, 2)).min() > 0.5
    np.testing.assert_array_equal(after, prepare.make_record("a", voice(), recipe).log_mel)


def test_unknown_distortions_are_refused():
    with pytest.raises(UserError, match="'fuzz' is none of equaliser, clipping"):
        prepare.make_recipe(None, None, 2, 0, distortions=["gain", "fuzz"])
