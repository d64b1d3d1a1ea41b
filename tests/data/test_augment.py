"""The distribution of noise and reverberation, measured."""

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile

from sdpn_jax.data import augment
from sdpn_jax.errors import UserError

NONE = augment.Sources()


def speech(num_samples=16000, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, num_samples).astype(np.float32)


def write(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, 16000, subtype="FLOAT")


def test_shares_of_each_kind():
    rng, draws = np.random.default_rng(0), 3000
    kinds = Counter(augment.augment(speech(1600), NONE, rng)[1] for _ in range(draws))
    expected = {"none": 1 / 6, "reverb": 1 / 8, "noise": 3 / 8, "reverb+noise": 1 / 3}
    assert set(kinds) == set(expected)
    for kind, share in expected.items():
        assert abs(kinds[kind] / draws - share) < 4 * np.sqrt(share * (1 - share) / draws), kind


def test_augmented_waveforms_keep_length_and_type():
    rng = np.random.default_rng(0)
    for _ in range(30):
        waveform, _ = augment.augment(speech(5000), NONE, rng)
        assert waveform.shape == (5000,)
        assert waveform.dtype == np.float32
        assert np.all(np.isfinite(waveform))


@pytest.mark.parametrize("snr", [0.0, 7.5, 20.0])
def test_mix_has_the_snr(snr):
    clean, noise = speech(seed=1), speech(seed=2) * 3
    added = augment.mix(clean, noise, snr).astype(np.float64) - clean
    assert 10 * np.log10(np.mean(clean.astype(np.float64) ** 2) / np.mean(added**2)) == pytest.approx(snr, abs=0.01)


def test_digital_silence_as_noise_changes_nothing():
    np.testing.assert_array_equal(augment.mix(speech(), np.zeros(16000, np.float32), 5.0), speech())


def test_snr_ranges_and_types_of_a_musan_folder(tmp_path):
    frequencies = {"noise": 1000, "speech": 2000, "music": 4000}
    for kind, frequency in frequencies.items():
        write(tmp_path / kind / "a.wav", 0.1 * np.sin(2 * np.pi * frequency * np.arange(8000) / 16000))
    sources = augment.find_sources(tmp_path, None)
    assert set(sources.noises) == set(frequencies)
    clean, rng = speech(), np.random.default_rng(0)
    snrs = {kind: [] for kind in frequencies}
    for _ in range(300):
        added = augment.add_noise(clean, sources, rng).astype(np.float64) - clean
        spectrum = np.abs(np.fft.rfft(added))
        kind = next(kind for kind, frequency in frequencies.items() if abs(np.argmax(spectrum) - frequency) < 5)
        snrs[kind].append(10 * np.log10(np.mean(clean.astype(np.float64) ** 2) / np.mean(added**2)))
    for kind, (low, high) in {"noise": (0, 15), "speech": (13, 20), "music": (5, 15)}.items():
        assert 70 < len(snrs[kind]) < 130
        assert low - 0.1 < min(snrs[kind]) < low + 1
        assert high - 1 < max(snrs[kind]) < high + 0.1


def test_a_plain_folder_is_noise_and_unusable_files_are_left_out(tmp_path):
    write(tmp_path / "x" / "a.wav", speech())
    (tmp_path / "x" / "b.wav").write_text("no audio")
    sources = augment.find_sources(tmp_path / "x", tmp_path / "x")
    assert [path.name for path in sources.noises["noise"]] == ["a.wav"]
    assert [path.name for path in sources.rirs] == ["a.wav"]
    (tmp_path / "x" / "a.wav").unlink()
    with pytest.raises(UserError, match="none of the 1 files"):
        augment.find_sources(tmp_path / "x", None)


@pytest.mark.parametrize("length", [100, 999, 1000, 2500])
def test_noise_is_cut_or_repeated(length):
    noise = np.arange(1000, dtype=np.float32)
    fitted = augment.fit_length(noise, length, np.random.default_rng(0))
    assert len(fitted) == length
    np.testing.assert_array_equal(np.diff(fitted) % 1000, 1)  # always the next sample, the first after the last


def test_the_direct_path_is_not_delayed():
    waveform, rng = speech(), np.random.default_rng(0)
    rir = np.concatenate([np.zeros(300), augment.synthetic_rir(0.4, rng)])
    wet = augment.convolve_rir(waveform, rir)
    assert len(wet) == len(waveform)
    correlation = scipy.signal.correlate(wet, waveform)
    assert np.argmax(np.abs(correlation)) - (len(waveform) - 1) == 0


def test_reverberation_is_the_convolution_with_unit_energy():
    waveform, rir = speech(500), np.array([0.0, 2.0, -1.0, 0.5])
    expected = np.convolve(waveform.astype(np.float64), rir / np.sqrt(np.sum(rir**2)))[1:501]
    np.testing.assert_allclose(augment.convolve_rir(waveform, rir), expected, atol=1e-6)


def test_reverberation_gain(tmp_path):
    write(tmp_path / "a.wav", np.concatenate([[0.9], np.zeros(3999)]))  # a room without echo: the gain alone is left
    sources, waveform = augment.find_sources(None, tmp_path), speech()
    rng = np.random.default_rng(0)
    gains = [np.std(augment.add_reverb(waveform, sources, rng)) / np.std(waveform) for _ in range(300)]
    decibels = 20 * np.log10(gains)
    assert -7.01 < decibels.min() < -6.8
    assert 2.8 < decibels.max() < 3.01


@pytest.mark.parametrize("rt60", [0.2, 0.6])
def test_synthetic_rooms_have_their_decay(rt60):
    rir = augment.synthetic_rir(rt60, np.random.default_rng(0))[1:]
    decay = 10 * np.log10(np.cumsum(np.square(rir[::-1], dtype=np.float64))[::-1])  # Schroeder
    decay -= decay[0]
    start, end = np.argmax(decay < -5), np.argmax(decay < -25)
    assert 3 * (end - start) / 16000 == pytest.approx(rt60, rel=0.15)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_colour_of_noise(exponent):
    noise = augment.coloured_noise(160000, exponent, np.random.default_rng(0))
    frequency, power = scipy.signal.welch(noise, 16000, nperseg=4096)
    band = (frequency > 50) & (frequency < 4000)
    slope = np.polyfit(np.log(frequency[band]), np.log(power[band]), 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.1)


CASES = Path(__file__).parents[1] / "cases"


def test_types_of_noise_are_found_below_the_folder(caplog):
    """One folder too high, speech and music are not taken for noise."""
    caplog.set_level(logging.INFO)
    sources = augment.find_sources(CASES / "musan_nested" / "musan_parent", None)
    assert {kind: [path.name for path in files] for kind, files in sources.noises.items()} == {
        "noise": ["noise-0.wav"], "speech": ["speech-0.wav"], "music": ["music-0.wav"]
    }  # fmt: skip
    assert "1 files of noise, 1 files of speech, 1 files of music" in caplog.text


def test_the_name_of_a_corpus_of_rooms_is_no_noise():
    for folder in ("rirs_parent", "rirs_parent/RIRS_NOISES"):
        sources = augment.find_sources(None, CASES / "rirs_nested" / folder)
        assert [path.name for path in sources.rirs] == ["Room001-00001.wav"]


def test_a_list_may_name_noise_that_lies_elsewhere(tmp_path):
    write(tmp_path / "far" / "a.wav", speech())
    (tmp_path / "kaldi").mkdir()
    (tmp_path / "kaldi" / "wav.scp").write_text(f"noise/a {tmp_path}/far/a.wav\n")
    assert augment.find_sources(tmp_path / "kaldi", None).noises == {"noise": [tmp_path / "far" / "a.wav"]}
    (tmp_path / "kaldi" / "wav.scp").write_text(f"room {tmp_path}/far/a.wav\n")
    assert augment.find_sources(None, tmp_path / "kaldi").rirs == [tmp_path / "far" / "a.wav"]
