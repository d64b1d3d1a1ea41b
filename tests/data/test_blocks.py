"""A recording piece by piece is the recording as a whole, and is refused for the same reasons."""

import numpy as np
import pytest
import soundfile

from sdpn_jax.data import audio, decode


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("channel", [None, 1])
def test_pieces_are_the_whole(tmp_path, monkeypatch, rate, channel):
    monkeypatch.setattr(decode, "BLOCK", 10000)
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (2 * rate, 2))
    soundfile.write(tmp_path / "a.wav", samples, rate)
    reading = audio.Reading(channel)
    pieces = list(audio.blocks_at_16_khz(tmp_path / "a.wav", reading))
    assert len(pieces) > 5
    np.testing.assert_array_equal(np.concatenate(pieces), audio.read_audio(tmp_path / "a.wav", reading))


@pytest.mark.parametrize(
    ("samples", "why"),
    [
        (np.zeros(32000), "silent"),
        (np.full(32000, 0.5), "silent"),
        (np.full(100, 0.5), "shorter than 0.1 s"),
        (np.where(np.arange(32000) == 31999, np.nan, 0.1), "NaN"),
        (3000 * np.sin(np.arange(32000)), "integer scale"),
    ],
)
def test_what_is_refused(tmp_path, samples, why):
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(audio.AudioError, match=why):
        list(audio.blocks_at_16_khz(tmp_path / "a.wav"))


def test_what_is_no_recording(tmp_path):
    (tmp_path / "a.wav").write_text("no audio\n" * 100)
    for name in ("a.wav", "none.wav"):
        with pytest.raises(audio.AudioError):
            list(audio.blocks_at_16_khz(tmp_path / name))
