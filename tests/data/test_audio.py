"""Decoding of good and bad files, and finding utterances."""

import os

import av
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdpn_jax.data import audio
from sdpn_jax.errors import UserError


def sine(rate, seconds=1.0, frequency=440.0, level=0.5):
    return level * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)


def write_m4a(path, samples, rate):
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def check_sine(waveform, seconds=1.0, frequency=440.0, level=0.5):
    assert waveform.dtype == np.float32
    assert abs(len(waveform) - 16000 * seconds) < 3000  # lossy formats pad
    middle = waveform[4000:12000].astype(np.float64)
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(8000)))
    assert np.argmax(spectrum) * 2 == pytest.approx(frequency, abs=3)
    assert np.sqrt(2 * np.mean(middle**2)) == pytest.approx(level, rel=0.05)


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3", "m4a"])
def test_formats(tmp_path, extension):
    path = tmp_path / f"a.{extension}"
    if extension == "m4a":
        write_m4a(path, sine(16000), 16000)
    else:
        soundfile.write(path, sine(16000), 16000)
    check_sine(audio.read_audio(path))


@pytest.mark.parametrize("rate", [8000, 44100, 48000, 96000])
def test_rates(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", sine(rate), rate)
    check_sine(audio.read_audio(tmp_path / "a.wav"))


def test_m4a_of_another_rate(tmp_path):
    write_m4a(tmp_path / "a.m4a", sine(44100), 44100)
    check_sine(audio.read_audio(tmp_path / "a.m4a"))


@pytest.mark.parametrize("channels", [2, 6])
def test_channels_are_averaged(tmp_path, channels):
    rng = np.random.default_rng(0)
    samples = rng.uniform(-0.5, 0.5, size=(8000, channels))
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    np.testing.assert_allclose(audio.read_audio(tmp_path / "a.wav"), samples.mean(1), atol=1e-6)


def bad_files(folder):
    soundfile.write(folder / "good.flac", np.random.default_rng(0).normal(0, 0.1, 32000), 16000)
    whole = (folder / "good.flac").read_bytes()
    (folder / "truncated.flac").write_bytes(whole[: len(whole) // 2])
    (folder / "zero.wav").write_bytes(b"")
    soundfile.write(folder / "header.wav", np.zeros(0), 16000)
    (folder / "text.wav").write_text("this is not audio\n" * 100)
    nan = sine(16000)
    nan[100] = np.nan
    soundfile.write(folder / "nan.wav", nan, 16000, subtype="FLOAT")
    soundfile.write(folder / "dc.wav", np.full(16000, 0.3), 16000)
    soundfile.write(folder / "silent.wav", np.zeros(16000), 16000)
    soundfile.write(folder / "short.wav", sine(16000, 0.05), 16000)
    write_m4a(folder / "whole.m4a", sine(16000), 16000)
    (folder / "text.m4a").write_text("no container")
    return {
        "missing.wav": "No such file",
        "truncated.flac": "unreadable|truncated",
        "zero.wav": "empty",
        "header.wav": "no samples",
        "text.wav": "unreadable",
        "nan.wav": "NaN",
        "dc.wav": "silent",
        "silent.wav": "silent",
        "short.wav": "shorter than 0.1 s",
        "text.m4a": "unreadable",
    }


def test_bad_files_say_why(tmp_path):
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(audio.AudioError, match=reason):
            audio.read_audio(tmp_path / name)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["wav", "flac", "ogg", "mp3", "m4a"]), cut=st.floats(0, 1), seed=st.integers(0, 2**16))
def test_mutated_files_never_raise_anything_else(tmp_path, kind, cut, seed):
    source = tmp_path / f"source.{kind}"
    if not source.exists():
        if kind == "m4a":
            write_m4a(source, sine(16000), 16000)
        else:
            soundfile.write(source, sine(16000), 16000)
    rng = np.random.default_rng(seed)
    data = bytearray(source.read_bytes())
    for place in rng.integers(len(data), size=rng.integers(20)):
        data[place] = rng.integers(256)
    mutant = tmp_path / f"mutant.{kind}"
    mutant.write_bytes(data[: int(len(data) * max(cut, 0.01))])
    try:
        waveform = audio.read_audio(mutant)
    except audio.AudioError:
        return
    assert np.all(np.isfinite(waveform))


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_a_folder(tmp_path):
    touch(tmp_path, "b/2.wav", "b/1.FLAC", "a b/é.m4a", "new\nline.wav", "notes.txt", ".hidden/x.wav", ".y.wav")
    os.symlink(tmp_path, tmp_path / "b" / "loop")
    found = audio.find_utterances(tmp_path)
    assert [name for name, _ in found] == ["a b/é.m4a", "b/1.FLAC", "b/2.wav", "new\nline.wav"]
    assert all(path.read_bytes() == b"x" for _, path in found)


def test_a_list_of_paths(tmp_path):
    touch(tmp_path, "audio/x/1.wav", "audio/y/2.wav")
    (tmp_path / "list.txt").write_text(f"audio/x/1.wav\r\n\n{tmp_path}/audio/y/2.wav\n")
    assert [name for name, _ in audio.find_utterances(tmp_path / "list.txt")] == ["x/1.wav", "y/2.wav"]


def test_a_wav_scp(tmp_path):
    (tmp_path / "wav.scp").write_text(f"utt1 a b.wav\nutt0 {tmp_path}/c.wav\n")
    found = audio.find_utterances(tmp_path / "wav.scp")
    assert found == [("utt0", tmp_path / "c.wav"), ("utt1", tmp_path / "a b.wav")]


def test_bad_sources(tmp_path):
    def refused(name, text, message):
        (tmp_path / name).write_bytes(text)
        with pytest.raises(UserError, match=message):
            audio.find_utterances(tmp_path / name)

    refused("pipe.scp", b"a a.wav\nb sph2pipe b.sph |\n", r"pipe.scp, line 2: a command")
    refused("short.scp", b"a\n", "line 1: expected 'id path'")
    refused("twice.scp", b"a 1.wav\na 2.wav\n", "twice, first 'a'")
    refused("empty.txt", b"\n", "is empty")
    refused("binary.txt", bytes(range(256)), "not a text file")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="no recordings"):
        audio.find_utterances(tmp_path / "folder")
    with pytest.raises(UserError, match="does not exist"):
        audio.find_utterances(tmp_path / "nowhere")


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_at_the_end_of_the_range_are_refused_or_finite(rate, channels):
    """Finite ones near 3.4e38 overflow in a mean or in resampling."""
    signs = np.where(np.arange(rate) % 50 < 25, 1, -1)
    samples = np.tile((3.3e38 * signs).astype(np.float32)[:, None], (1, channels))
    try:
        assert np.isfinite(audio.at_16_khz(samples, rate)).all()
    except audio.AudioError as error:
        assert "too large" in str(error)
