"""Who spoke when: on signals made by hand, whose speakers are known, with embeddings made by hand."""

import itertools
import json
import tracemalloc

import numpy as np
import pytest
import soundfile
from commands import ran, refused
from hypothesis import given
from hypothesis import strategies as st

from sdpn_jax.data import features
from sdpn_jax.diarization import boundaries, clusters, rttm, speech, windows
from sdpn_jax.diarization.diarize import diarize, named, seconds_of
from sdpn_jax.diarization.turns import Diarization, Turn
from sdpn_jax.errors import UserError
from sdpn_jax.speaker import gallery as galleries

RATE = 16000


def voice(number, seconds, seed):
    """Noise in a band of its own, which comes and goes as syllables do."""
    samples = np.random.default_rng(seed).normal(size=int(seconds * RATE))
    spectrum = np.fft.rfft(samples)
    hz = np.fft.rfftfreq(len(samples), 1 / RATE)
    spectrum[(hz < 300 + 900 * number) | (hz > 1000 + 900 * number)] = 0
    swelling = 0.6 + 0.4 * np.sin(2 * np.pi * 4 * np.arange(len(samples)) / RATE)
    return (0.3 * np.fft.irfft(spectrum, len(samples)) * swelling).astype(np.float32)


def meeting(turns, pause=1.0):
    """(samples, turns) of (speaker, seconds), in order, each followed by a pause."""
    rng, pieces, truth, at = np.random.default_rng(0), [], [], 0.0
    for seed, (number, seconds) in enumerate(turns):
        pieces += [voice(number, seconds, seed), (1e-4 * rng.normal(size=int(pause * RATE))).astype(np.float32)]
        truth.append(Turn(at, at + seconds, f"speaker{number + 1}"))
        at += seconds + pause
    return np.concatenate(pieces), truth


def embed(log_mels):
    """The mean spectrum, centred: tells the bands apart."""
    means = np.stack([log_mel.mean(0) for log_mel in log_mels])
    return means - means.mean(1, keepdims=True)


def pieces_of(samples, size=7777):
    return lambda: (samples[start : start + size] for start in range(0, len(samples), size))


@pytest.mark.parametrize("method", clusters.METHODS)
@pytest.mark.parametrize("speakers", [None, 3])
def test_three_voices(method, speakers):
    samples, truth = meeting([(0, 4), (1, 5), (0, 3), (2, 6), (1, 4), (2, 3), (0, 5)])
    found = diarize(pieces_of(samples), embed, features.log_mel, speakers, method)
    assert [turn.speaker for turn in found.turns] == [turn.speaker for turn in truth]
    times = [(turn.start, turn.end) for turn in found.turns]
    np.testing.assert_allclose(times, [(turn.start, turn.end) for turn in truth], atol=0.15)
    assert found.seconds == pytest.approx(len(samples) / RATE, abs=0.01)
    assert [*found.voices] == ["speaker1", "speaker2", "speaker3"]
    np.testing.assert_allclose([np.linalg.norm(each) for each in found.voices.values()], 1)


def test_a_change_without_a_pause():
    samples, _ = meeting([(0, 6), (1, 6)], pause=0.0)
    found = diarize(pieces_of(samples), embed, features.log_mel)
    assert [turn.speaker for turn in found.turns] == ["speaker1", "speaker2"]
    assert found.turns[0].end == found.turns[1].start == pytest.approx(6.0, abs=0.4)


@pytest.mark.parametrize("method", clusters.METHODS)
@pytest.mark.parametrize("speakers", [None, 1])
def test_one_voice(method, speakers):
    samples, _ = meeting([(1, 4), (1, 3), (1, 5)])
    found = diarize(pieces_of(samples), embed, features.log_mel, speakers, method)
    assert seconds_of(found.turns) == {"speaker1": pytest.approx(12, abs=0.4)}


@pytest.mark.parametrize("samples", [np.zeros(50000), 1e-3 * np.random.default_rng(0).normal(size=50000), np.zeros(10)])
def test_where_nobody_speaks(samples):
    with pytest.raises(UserError, match="no speech"):
        diarize(pieces_of(samples.astype(np.float32)), embed, features.log_mel)


def test_one_short_word():
    samples, _ = meeting([(0, 0.4)])
    assert len(diarize(pieces_of(samples), embed, features.log_mel).turns) == 1


def test_energy_does_not_depend_on_pieces():
    samples = np.random.default_rng(0).normal(size=16123).astype(np.float32)
    whole = speech.energies([samples])
    expected = 10 * np.log10([samples[i : i + 160].astype(float).var() for i in range(0, 16000, 160)])
    np.testing.assert_allclose(whole, expected, rtol=1e-6)
    np.testing.assert_array_equal(whole, speech.energies(pieces_of(samples, 61)()))


def test_windows_lie_in_their_regions():
    planned = windows.plan(np.array([[0, 100], [200, 500], [600, 750]]))
    spans = list(zip(planned.starts.tolist(), planned.ends.tolist(), planned.regions.tolist(), strict=True))
    assert spans == [(0, 100, 0), (200, 350, 1), (275, 425, 1), (350, 500, 1), (600, 750, 2)]


def test_windows_hold_the_samples_they_name():
    samples = np.arange(100000, dtype=np.float32)
    planned = windows.plan(np.array([[3, 320], [400, 410]]))
    found = list(windows.samples_of(planned, pieces_of(samples, 997)()))
    for start, end, window in zip(planned.starts, planned.ends, found, strict=True):
        np.testing.assert_array_equal(window, samples[160 * start : 160 * end])
    with pytest.raises(UserError, match="become shorter"):
        list(windows.samples_of(planned, pieces_of(samples[:1000])()))


def test_a_long_recording_is_not_held():
    def pieces():
        rng = np.random.default_rng(0)
        for second in range(600):
            yield (0.1 if second % 10 < 8 else 1e-4) * rng.normal(size=RATE).astype(np.float32)

    tracemalloc.start()
    planned = windows.plan(speech.regions(speech.energies(pieces())))
    count = sum(1 for _ in windows.samples_of(planned, pieces()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == len(planned.starts) > 500
    assert peak < 6 << 20  # the recording has 38 MB


def test_more_windows_than_are_clustered(monkeypatch):
    rng = np.random.default_rng(0)
    centres = np.eye(3, 16)
    truth = np.repeat([0, 1, 2, 1, 0], 40)
    planned = windows.plan(np.cumsum(np.tile([[100, 250]], (200, 1)).reshape(-1)).reshape(200, 2))
    planned = windows.Windows(planned.starts[:200], planned.ends[:200], np.repeat(np.arange(5), 40))
    embeddings = centres[truth] + 0.05 * rng.normal(size=(200, 16))
    monkeypatch.setattr(clusters, "MOST_ROWS", 60)
    for method in clusters.METHODS:
        assert np.mean(clusters.cluster(embeddings, planned, 3, method) == truth) > 0.97


def test_the_silhouette_is_scikit_learns():
    from sklearn.metrics import silhouette_score

    rng = np.random.default_rng(0)
    distances = np.abs(rng.normal(size=(12, 12)))
    distances = distances + distances.T
    np.fill_diagonal(distances, 0)
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 3])
    found = clusters.silhouette(distances, np.eye(12, dtype=bool), labels)
    assert found == pytest.approx(silhouette_score(distances, labels, metric="precomputed"))


def test_clusters_of_one_speaker_are_merged():
    rng = np.random.default_rng(0)
    units = np.eye(3, 16)[np.repeat([0, 1, 2], 20)] + 0.2 * rng.normal(size=(60, 16))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    split = np.repeat(np.arange(6), 10)  # each speaker in two clusters
    apart = ~np.eye(60, dtype=bool)
    assert clusters.merged(units @ units.T, apart, split).tolist() == np.repeat([0, 1, 2], 20).tolist()
    assert clusters.merged(units[:20] @ units[:20].T, apart[:20, :20], split[:20]).tolist() == [0] * 20
    assert clusters.merged(units @ units.T, np.zeros((60, 60), bool), split).tolist() == split.tolist()


def test_the_best_path_is_the_best_of_all():
    rng = np.random.default_rng(0)
    for change in (0.0, 0.3, 2.0):
        scores = rng.normal(size=(6, 3))

        def worth(path, scores=scores, change=change):
            changes = sum(a != b for a, b in itertools.pairwise(path))
            return sum(scores[row, speaker] for row, speaker in enumerate(path)) - change * changes

        best = max(itertools.product(range(3), repeat=6), key=worth)
        assert worth(boundaries.best_path(scores, change)) == pytest.approx(worth(best))


def test_cells_cover_their_regions():
    cells = boundaries.cells_of(np.array([[0, 100], [150, 160], [200, 249]]))
    expected = [[0, 25, 0], [25, 50, 0], [50, 75, 0], [75, 100, 0], [150, 160, 1], [200, 249, 2]]
    assert cells.tolist() == expected


def test_speakers_of_a_gallery_are_named():
    voices = {"speaker1": np.eye(4)[0], "speaker2": np.eye(4)[1], "speaker3": np.eye(4)[2]}
    turns = [Turn(0, 1, "speaker1"), Turn(1, 2, "speaker2"), Turn(2, 3, "speaker3")]
    gallery = galleries.new("model")
    gallery.enrol("Ann", np.array([[0.9, 0.1, 0, 0.3]]))
    gallery.enrol("Bob", np.array([[0.8, 0, 0.55, 0]]))  # more like speaker1, whose name is Ann
    found = named(Diarization(turns, voices, 3.0), gallery, 0.5)
    assert [turn.speaker for turn in found.turns] == ["Ann", "speaker2", "Bob"]
    assert [*found.voices] == ["Ann", "speaker2", "Bob"]
    strict = named(Diarization(turns, voices, 3.0), gallery, 0.9)
    assert [turn.speaker for turn in strict.turns] == ["Ann", "speaker2", "speaker3"]


def test_a_name_like_a_number_is_nobody_elses():
    voices = {"speaker1": np.eye(3)[0], "speaker2": np.eye(3)[1]}
    gallery = galleries.new("model")
    gallery.enrol("speaker2", np.eye(3)[:1])
    found = named(Diarization([Turn(0, 1, "speaker1"), Turn(1, 2, "speaker2")], voices, 2.0), gallery, 0.5)
    assert [turn.speaker for turn in found.turns] == [*found.voices] == ["speaker2", "speaker3"]


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TIMES = st.integers(0, 10**7).map(lambda ms: ms / 1000)


@given(st.lists(st.tuples(TIMES, TIMES, NAMES), min_size=1, max_size=5), NAMES)
def test_rttm_reads_back(rows, recording):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        turns = sorted((Turn(start, start + length, name) for start, length, name in rows), key=lambda x: x.start)
        rttm.write_rttm(f"{folder}/a.rttm", recording, turns)
        ((name, found),) = rttm.read_rttm(f"{folder}/a.rttm").items()
    assert name == recording
    assert [turn.speaker for turn in found] == [turn.speaker for turn in turns]
    np.testing.assert_allclose([(x.start, x.end) for x in found], [(x.start, x.end) for x in turns], atol=2e-3)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("SPEAKER a 1 x 1 <NA> <NA> s <NA> <NA>", "line 2: the start x"),
        ("SPEAKER a 1 0 -1 <NA> <NA> s <NA> <NA>", "line 2: the duration -1"),
        ("SPEAKER a 1 nan 1 <NA> <NA> s <NA> <NA>", "line 2: the start nan"),
        ("SPEAKER a 1 1_0 1 <NA> <NA> s <NA> <NA>", "line 2: the start 1_0"),
        ("SPEAKER a 1 0 inf <NA> <NA> s <NA> <NA>", "line 2: the duration inf"),
        ("SPEAKER a 1 0 1e9 <NA> <NA> s <NA> <NA>", "line 2: the duration 1e9"),
        ("SPEAKER a 1 0", "line 2: 4 fields"),
    ],
)
def test_rttm_that_is_wrong(line, why, tmp_path):
    (tmp_path / "a.rttm").write_text(f";; a comment\n{line}\n")
    with pytest.raises(UserError, match=why):
        rttm.read_rttm(tmp_path / "a.rttm")


def test_what_is_no_rttm(tmp_path):
    (tmp_path / "a.rttm").write_text("SPKR-INFO a 1 <NA> <NA> <NA> unknown s <NA>\n")
    with pytest.raises(UserError, match="no line of the type SPEAKER"):
        rttm.read_rttm(tmp_path / "a.rttm")
    with pytest.raises(UserError, match="cannot be read"):
        rttm.read_rttm(tmp_path / "none.rttm")


def test_an_rttm_of_several_recordings():
    found = {"a": [Turn(0, 1, "x")], "b": [Turn(0, 2, "y")]}
    assert rttm.turns_of(found, "b", "r.rttm") == found["b"]
    with pytest.raises(UserError, match="r.rttm has 2 recordings, but none is called c"):
        rttm.turns_of(found, "c", "r.rttm")
    assert rttm.turns_of({"a": found["a"]}, "c", "r.rttm") == found["a"]


def test_error_rates_by_hand():
    pytest.importorskip("pyannote.metrics", reason="the extra diarize is not installed")
    from sdpn_jax.diarization.rates import error_rates

    reference = [Turn(0, 4, "a"), Turn(5, 9, "b"), Turn(8, 10, "a")]  # 10 s of speech
    found = [Turn(0, 4, "x"), Turn(4, 4.5, "x"), Turn(5, 7, "x"), Turn(7, 10, "y")]
    # false alarm 0.5; from 8 to 9 one of two is missed; x is a: 5 to 7 is b's, 9 to 10 is a's: 3 s confused
    rates = error_rates(reference, found, 10.0)
    assert rates["der_percent"] == pytest.approx(45)
    assert rates["false_alarm_percent"] == pytest.approx(5)
    assert rates["miss_percent"] == pytest.approx(10)
    assert rates["confusion_percent"] == pytest.approx(30)
    # Within 0.25 s of a boundary nothing counts: of 7.5 s (0.25 to 3.75, 5.25 to 7.75, twice 8.25 to 8.75,
    # 9.25 to 9.75) 0.5 of the overlap is missed, and x is wrong from 5.25 to 7, y from 9.25 to 9.75.
    collared = error_rates(reference, found, 10.0, 0.25)
    assert collared["miss_percent"] == pytest.approx(100 * 0.5 / 7.5)
    assert collared["false_alarm_percent"] == pytest.approx(100 * 0.25 / 7.5)
    assert collared["confusion_percent"] == pytest.approx(100 * (1.75 + 0.5) / 7.5)
    # a and x: 4 of 8.5 s (0 to 4.5, 5 to 7, 8 to 10); b and y: 2 of 5 s
    assert rates["jer_percent"] == pytest.approx(100 * ((1 - 4 / 8.5) + (1 - 2 / 5)) / 2)


def test_the_command(tmp_path):
    samples, truth = meeting([(0, 3), (1, 3), (0, 3)])
    soundfile.write(tmp_path / "m.wav", samples, RATE)
    rttm.write_rttm(tmp_path / "ref.rttm", "m", truth)
    out = tmp_path / "out" / "m.rttm"
    told = ran("diarize", tmp_path / "m.wav", "-o", out, "--speakers=2").stdout
    assert told.splitlines()[-3:] == [f"wrote {out.with_suffix(end)}" for end in (".rttm", ".json", ".png")]
    (turns,) = rttm.read_rttm(out).values()
    np.testing.assert_allclose([(x.start, x.end) for x in turns], [(x.start, x.end) for x in truth], atol=0.2)
    content = json.loads(out.with_suffix(".json").read_text())
    assert content["seconds"] == pytest.approx(12)
    assert len(content["segments"]) == 3
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    dated = tmp_path / "m_26.11"  # no suffix: beside it lies nothing of m_26.12
    told = ran("diarize", tmp_path / "m.wav", "-o", dated, "--speakers=2").stdout
    assert told.splitlines()[-3:] == [f"wrote {dated}{end}" for end in ("", ".json", ".png")]
    assert "--method=x" in refused("diarize", tmp_path / "m.wav", "-o", out, "--method=x")
    assert "--output=m.json" in refused("diarize", tmp_path / "m.wav", "-o", "m.json")
    assert "no such file" in refused("diarize", tmp_path / "none.wav", "-o", out).lower()


def test_no_input_is_written_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("m.wav", "m.rttm"):
        (tmp_path / name).write_text("x")
    assert "--output=m.wav: it would be written over ./m.wav" in refused("diarize", "./m.wav", "-o", "m.wav")
    told = refused("diarize", "m.wav", "-o", "m.rttm", f"--reference={tmp_path}/m.rttm")
    assert "it would be written over" in told


def test_rttm_of_other_writers(tmp_path):
    line = "SPEAKER m 1 .5 2. <NA> <NA> a <NA> <NA>\n"
    (tmp_path / "a.rttm").write_bytes(b"\xef\xbb\xbf" + line.encode())
    assert rttm.read_rttm(tmp_path / "a.rttm")["m"] == [Turn(0.5, 2.5, "a")]


def test_a_reference_without_speech():
    pytest.importorskip("pyannote.metrics")
    from sdpn_jax.diarization.rates import error_rates

    with pytest.raises(UserError, match="the reference has no speech: no error rates"):
        error_rates([Turn(1, 1, "a")], [Turn(0, 4, "x")], 10.0)
