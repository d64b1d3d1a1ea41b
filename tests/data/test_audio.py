"""Decoding of good and bad files of many kinds, whatever their names."""

import os
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr
from audio_files import KINDS, encoded, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdpn_jax.data import audio

CASES = Path(__file__).parents[1] / "cases"


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["a", "a.wav", "a.m4a"])
def test_kinds_are_known_by_their_content(tmp_path, kind, name):
    rate = 48000 if kind in ("webm", "ac3") else 16000
    written(tmp_path / name, sine(rate), rate, kind)
    check_sine(audio.read_audio(tmp_path / name))


def test_narrowband_amr(tmp_path):
    if "libopencore_amrnb" not in av.codecs_available:
        pytest.skip("this FFmpeg has no encoder of AMR")
    encoded(tmp_path / "a.amr", sine(8000)[:, None], 8000, "libopencore_amrnb", "amr")
    check_sine(audio.read_audio(tmp_path / "a.amr"), level=0.437)  # as its own decoder gives it


def test_raw_gsm(tmp_path):
    frame = bytes([0xD4, *range(32)])
    (tmp_path / "a.gsm").write_bytes(frame * 50)
    assert len(audio.read_audio(tmp_path / "a.gsm")) == 50 * 160 * 2  # frames of 20 ms at 8 kHz


@pytest.mark.parametrize("kind", ["mp3", "ogg", "opus"])
def test_joined_files_are_read_to_the_end(tmp_path, kind):
    written(tmp_path / "a", sine(16000), 16000, kind)
    (tmp_path / "two").write_bytes(2 * (tmp_path / "a").read_bytes())
    one, two = audio.read_audio(tmp_path / "a"), audio.read_audio(tmp_path / "two")
    assert len(two) == pytest.approx(2 * len(one), abs=3000)
    check_sine(two[len(two) // 2 :])


def test_an_id3_tag_before_the_sound_does_no_harm(tmp_path):
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, 8, 0]) + b"\xff\xfb" * 512
    for kind in ("mp3", "aac", "flac"):
        written(tmp_path / "a", sine(16000), 16000, kind)
        (tmp_path / "tagged").write_bytes(tag + (tmp_path / "a").read_bytes())
        check_sine(audio.read_audio(tmp_path / "tagged"))


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF])
@pytest.mark.parametrize("kind", ["wav", "wavex", "wav_ulaw", "wav24"])
def test_a_wav_whose_size_was_never_written(tmp_path, kind, size):
    written(tmp_path / "a.wav", sine(16000), 16000, kind)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    place = data.index(b"data") + 4
    expected = audio.read_audio(tmp_path / "a.wav")
    data[4:8] = data[place : place + 4] = struct.pack("<I", size)
    (tmp_path / "a.wav").write_bytes(data)
    np.testing.assert_array_equal(audio.read_audio(tmp_path / "a.wav"), expected)


@pytest.mark.parametrize("kind, places", [
    ("aiff", [(4, 4), (b"SSND", 4), (b"COMM", 4, 10)]), ("au", [(8, 4)]), ("w64", [(16, 8), (b"data\xf3", 8, 16)]),
    ("rf64", [(20, 8), (28, 8), (36, 8)]), ("caf", [(b"data", 8)]),
])  # fmt: skip
def test_sizes_that_a_killed_recorder_left_at_zero(tmp_path, kind, places):
    written(tmp_path / "a", sine(16000), 16000, kind)
    expected, data = audio.read_audio(tmp_path / "a"), bytearray((tmp_path / "a").read_bytes())
    for mark, size, *more in places:
        start = mark if isinstance(mark, int) else data.index(mark) + (more[0] if more else len(mark))
        data[start : start + size] = bytes(size)
    (tmp_path / "a").write_bytes(data)
    found = audio.read_audio(tmp_path / "a")
    np.testing.assert_array_equal(found[: len(expected)], expected)
    assert len(found) - len(expected) <= 8


@pytest.mark.parametrize("kind", "wav wav24 rf64 w64 aiff au caf sph flac m4a mkv wma avi mov".split())
def test_cut_files_are_refused_and_say_how_much_is_missing(tmp_path, kind):
    written(tmp_path / "a", sine(16000), 16000, kind)
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(data[: int(0.6 * len(data))])
    with pytest.raises(audio.AudioError, match=r"truncated: [\d,]+ of [\d,]+ (bytes|samples)|lost sync"):
        audio.read_audio(tmp_path / "a")


@pytest.mark.parametrize("name, seconds", [
    ("mp3_without_xing/cbr_pipe.mp3", 3.0), ("mp3_without_xing/vbr.mp3", 3.0), ("containers/flac_in.ogg", 1.0),
    ("containers/m4a_named.mp3", 3.0), ("containers/m4a_named.wav", 3.0), ("containers/o.webm", 3.0),
    ("containers/s.spx", 3.0), ("containers/tel.sph", 3.0), ("wav_sizes/zero.wav", 3.0),
])  # fmt: skip
def test_files_that_were_refused_or_cut(name, seconds):
    """What is coded in frames may end up to two of them later: an encoder's delay and padding."""
    found = len(audio.read_audio(CASES / name)) / 16000
    assert seconds <= found < seconds + (2 * 1152 / 16000 if "mp3" in name or "m4a" in name or "webm" in name else 1e-3)


def test_a_cut_wav():
    with pytest.raises(audio.AudioError, match="truncated: 38,400 of 96,078 bytes"):
        audio.read_audio(CASES / "wav_sizes" / "cut.wav")


def test_channels_that_cancel(tmp_path):
    path = CASES / "antiphase" / "antiphase.wav"
    with pytest.raises(audio.AudioError, match="silent: its channels cancel each other.*--channel"):
        audio.read_audio(path)
    first, second = (audio.read_audio(path, audio.Reading(channel)) for channel in (0, 1))
    np.testing.assert_allclose(first, -second, atol=1e-6)
    with pytest.raises(audio.AudioError, match="no channel 3: there are 2"):
        audio.read_audio(path, audio.Reading(2))


@pytest.mark.parametrize("scale", [2.0**15, 2.0**23, 2.0**31])
def test_float_samples_in_integer_scale(tmp_path, scale):
    soundfile.write(tmp_path / "a.wav", scale * sine(16000, level=0.8), 16000, subtype="DOUBLE")
    check_sine(audio.read_audio(tmp_path / "a.wav"), level=0.8)
    assert np.abs(audio.read_audio(CASES / "float_integer_scale" / "int_scale.wav")).max() < 1


def test_a_stretch_is_the_same_part_of_the_whole(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, 40000)
    for kind in ("wav", "flac", "mkv"):
        written(tmp_path / "a", noise, 16000, kind)
        whole = audio.read_audio(tmp_path / "a")
        np.testing.assert_array_equal(audio.read_audio(tmp_path / "a", start=0.5, end=2.0), whole[8000:32000])
        np.testing.assert_array_equal(audio.read_audio(tmp_path / "a", start=1.0), whole[16000:])
    with pytest.raises(audio.AudioError):
        audio.read_audio(tmp_path / "a", start=100.0)


@pytest.mark.parametrize("rate", [1, 100, 3999, 1_000_000])
def test_rates_that_no_recorder_has(tmp_path, rate):
    """A file of 32 kB at 1 Hz would become 4.4 hours."""
    soundfile.write(tmp_path / "a.wav", sine(16000), rate)
    with pytest.raises(audio.AudioError, match="samples a second"):
        audio.read_audio(tmp_path / "a.wav")


def test_long_recordings(tmp_path):
    """Zeros take next to nothing in FLAC: 12 kB are an hour."""
    soundfile.write(tmp_path / "a.flac", np.zeros(16000 * 100), 16000)
    with pytest.raises(audio.AudioError, match="longer than 60 s"):
        audio.read_audio(tmp_path / "a.flac", audio.Reading(max_seconds=60))


def test_blocks_are_joined_without_a_seam(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, (44100, 2)), 44100)
    whole = audio.read_audio(tmp_path / "a.wav")
    monkeypatch.setattr(audio.decode, "BLOCK", 1000)
    np.testing.assert_array_equal(audio.read_audio(tmp_path / "a.wav"), whole)
    expected = soxr.resample(soundfile.read(tmp_path / "a.wav", dtype="float32")[0].mean(1), 44100, 16000)
    np.testing.assert_allclose(whole, expected, atol=1e-6)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    for path in (tmp_path / "pipe.wav", tmp_path, Path("/dev/zero")):
        with pytest.raises(audio.AudioError, match="no file, but a folder, a pipe or a device|Is a directory"):
            audio.read_audio(path)
        assert audio.seconds_of(path) is None


def test_names_are_never_addresses(tmp_path, monkeypatch):
    """What FFmpeg would take for an address, or for a list of other files."""
    soundfile.write(tmp_path / "a.wav", sine(16000), 16000)
    for name in ("talk:1.m4a", "concat:a.wav", "http:", "%d.wav", "tcp:x.wav"):
        (tmp_path / name).write_bytes((tmp_path / "a.wav").read_bytes())
        check_sine(audio.read_audio(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    check_sine(audio.read_audio("talk:1.m4a"))
    (tmp_path / "list.m4a").write_text("ffconcat version 1.0\nfile a.wav\n")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\na.wav\n")
    for name in ("list.m4a", "list.m3u8"):
        with pytest.raises(audio.AudioError, match="unreadable"):
            audio.read_audio(tmp_path / name)


def test_hints(tmp_path):
    rng = np.random.default_rng(0)
    speech = 0.05 * rng.normal(size=32000).astype(np.float32)
    assert audio.hints_of(speech) == []
    assert audio.hints_of(speech[:8000]) == ["under one second"]
    assert audio.hints_of(np.clip(20 * speech, -1, 1)) == ["clipped"]
    assert audio.hints_of(soxr.resample(soxr.resample(speech, 16000, 8000), 8000, 16000)) == ["telephone bandwidth"]


@pytest.mark.parametrize("kind, head", [
    ("wav", b"LIST" + struct.pack("<I", 5000)), ("aiff", b"NAME" + struct.pack(">I", 5000)),
    ("m4a", struct.pack(">I", 5000) + b"free"),
])  # fmt: skip
def test_a_title_that_is_cut_short_does_not_spoil_the_sound(tmp_path, kind, head):
    written(tmp_path / "a", sine(16000), 16000, kind)
    expected = audio.read_audio(tmp_path / "a")
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes() + head + b"cut")
    np.testing.assert_array_equal(audio.read_audio(tmp_path / "a"), expected)
