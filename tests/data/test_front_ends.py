"""Features of other toolkits: numbers that they printed, and formulas written plainly in float64."""

import librosa
import numpy as np
import pytest

from sdpn_jax.data import features, front_ends

FILES = {"kaldi80": ("ecapa_3dspeaker", "campplus_3dspeaker", "eres2netv2_3dspeaker"),
         "wespeaker": ("resnet34_wespeaker", "ecapa_wespeaker"), "speechbrain": ("ecapa_speechbrain",)}  # fmt: skip


@pytest.mark.parametrize("front_end, name", [(kind, name) for kind, names in FILES.items() for name in names])
def test_numbers_of_the_toolkits(golden, front_end, name):
    """They compute in float32: frames next to silence differ by up to 4e-4, also from the formula in float64."""
    with np.load(golden / "encoders" / name / "expected.npz") as expected:
        for i in range(2):
            truth = expected[f"features_{i}"]
            ours = front_ends.FRONT_ENDS[front_end](expected[f"waveform_{i}"] / np.float32(32768))
            assert ours.dtype == np.float32
            assert np.sqrt(np.mean((ours - truth) ** 2)) < 2e-5 * truth.std()
            np.testing.assert_allclose(ours, truth, atol=5e-4 * truth.std())


def plainly(waveform, frame, scale):
    """Kaldi's features of one frame, sum by sum in float64, before the mean over time is subtracted."""
    x = np.float64(scale) * waveform[160 * frame : 160 * frame + 400].astype(np.float64)
    x = x - x.mean()
    x = np.array([x[n] - 0.97 * x[max(n - 1, 0)] for n in range(400)])
    hann = [0.5 - 0.5 * np.cos(2 * np.pi * n / 399) for n in range(400)]
    x = x * np.power(hann, 0.85)
    power = [abs(sum(x[n] * np.exp(-2j * np.pi * k * n / 512) for n in range(400))) ** 2 for k in range(256)]
    mel = lambda hz: 1127 * np.log(1 + hz / 700)  # noqa: E731
    step, found = (mel(8000.0) - mel(20.0)) / 81, []
    for centre in mel(20.0) + step * np.arange(1, 81):
        weights = [max(0.0, 1 - abs(mel(16000 / 512 * k) - centre) / step) for k in range(256)]
        found.append(np.log(max(np.dot(weights, power), np.finfo(np.float32).eps)))
    return np.array(found)


def test_kaldi_by_its_formula():
    waveform = np.random.default_rng(0).normal(0, 0.1, 400 + 160 * 3).astype(np.float32)
    truth = np.stack([plainly(waveform, frame, 1.0) for frame in range(4)])
    np.testing.assert_allclose(front_ends.kaldi80(waveform), truth - truth.mean(0), atol=2e-5)


def test_frames_are_counted_as_the_toolkits_do():
    waveform = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    assert len(front_ends.kaldi80(waveform)) == len(front_ends.wespeaker(waveform)) == 98
    assert len(front_ends.speechbrain(waveform)) == len(features.log_mel(waveform)) == 101


def test_speechbrain_cuts_what_is_80_db_below_the_loudest():
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000).astype(np.float32)
    decibels = front_ends.speechbrain(tone)
    spectrum = np.abs(librosa.stft(tone, n_fft=400, hop_length=160, window="hamming", pad_mode="constant")) ** 2
    assert decibels.shape[0] == spectrum.shape[1]
    assert np.ptp(decibels[20:-20], axis=0).max() < 25, "a steady tone is steady"
