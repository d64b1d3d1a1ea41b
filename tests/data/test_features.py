"""Log-mel against librosa, the released numbers, and silence-padded waveforms."""

import librosa
import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpn_jax.data import features


def reference(waveform):
    """librosa's log-mel with the same settings, [T, F]."""
    power = librosa.feature.melspectrogram(
        y=waveform,
        sr=16000,
        n_fft=512,
        win_length=400,
        hop_length=160,
        window="hann",
        center=True,
        pad_mode="reflect",
        power=2.0,
        n_mels=80,
        fmin=0,
        fmax=8000,
        htk=True,
        norm=None,
    )
    return np.log(power + 1e-6).T


def noise(num_samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, num_samples).astype(np.float32)


@pytest.mark.parametrize("num_samples", [1600, 1601, 15999, 16000, 16001, 64000])
def test_log_mel_equals_librosa(num_samples):
    waveform = noise(num_samples)
    ours = features.log_mel(waveform)
    assert ours.shape == (1 + num_samples // 160, 80)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, reference(waveform), atol=2e-4)


@pytest.mark.parametrize("other", [{}, dict(sample_rate=22050, n_fft=1024, window=551, mel_bins=64, fmin_hz=20.0)])
def test_window_and_filterbank_are_the_libraries(other):
    settings = features.FeatureSettings(**other)
    window, filterbank = features.window_and_filterbank(settings)
    hann = scipy.signal.get_window("hann", settings.window, fftbins=True)
    np.testing.assert_array_equal(window, librosa.util.pad_center(hann, size=settings.n_fft).astype(np.float32))
    mel = librosa.filters.mel(
        sr=settings.sample_rate,
        n_fft=settings.n_fft,
        n_mels=settings.mel_bins,
        fmin=settings.fmin_hz,
        fmax=settings.fmax_hz,
        htk=True,
        norm=None,
    )
    np.testing.assert_array_equal(filterbank, mel.T)


def test_mel_power_equals_a_plain_fourier_sum():
    waveform = noise(3200).astype(np.float64)
    frame, n = 7, np.arange(400)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / 400)
    segment = waveform[frame * 160 - 200 : frame * 160 + 200] * window
    spectrum = np.array([np.sum(segment * np.exp(-2j * np.pi * k * n / 512)) for k in range(257)])
    mel = 2595 * np.log10(1 + 8000 / 700) * np.arange(82) / 81
    edges = 700 * (10 ** (mel / 2595) - 1)
    frequency = np.arange(257) * 16000 / 512
    rising = (frequency - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - frequency) / np.diff(edges)[1:, None]
    filters = np.maximum(0, np.minimum(rising, falling))
    np.testing.assert_allclose(features.mel_power(waveform)[frame], filters @ np.abs(spectrum) ** 2, rtol=1e-4)


def test_golden_mel_power(golden):
    vectors = np.load(golden / "checkpoint_expected.npz")
    expected = np.squeeze(vectors["mel_power"]).T
    ours = features.mel_power(np.ravel(vectors["waveform"]))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6 * expected.max())


@settings(max_examples=60, deadline=None)
@given(num_samples=st.integers(1600, 40000), frames=st.integers(1, 400), seed=st.integers(0, 99))
def test_padding_equals_silence_after_the_waveform(num_samples, frames, seed):
    waveform = noise(num_samples, seed)
    padded = features.pad_with_silence(features.log_mel(waveform), features.silence_tail(waveform), num_samples, frames)
    expected = reference(np.pad(waveform, (0, frames * 160 + 1000)))[:frames]
    np.testing.assert_allclose(padded, expected, atol=3e-4)


@given(st.integers(1600, 40000), st.integers(5, 64))
def test_stretches_have_no_seams(num_samples, frames):
    waveform = noise(num_samples)
    whole = features.mel_power(waveform)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "FRAMES_OF_A_STRETCH", frames)
        np.testing.assert_allclose(features.mel_power(waveform), whole, rtol=1e-6, atol=1e-9)  # products of other sizes
