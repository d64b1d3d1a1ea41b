"""The demo's corpus."""

import itertools

import numpy as np
import pytest
import soundfile

from sdpn_jax.data import synthetic

TINY = dict(train_speakers=2, train_utterances=2, test_speakers=2, test_utterances=2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "corpus"
    synthetic.make_corpus(folder, **TINY)
    return folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files(corpus):
    files = sorted(corpus.glob("*/*/*.flac"))
    assert len(files) == 8
    for path in files:
        information = soundfile.info(path)
        assert (information.samplerate, information.channels, information.subtype) == (16000, 1, "PCM_16")
        assert 2 < information.duration < 20
        samples = soundfile.read(path)[0]
        assert 0.1 < np.abs(samples).max() < 1
    speakers = {part: {path.name for path in (corpus / part).iterdir()} for part in ("train", "test")}
    assert not speakers["train"] & speakers["test"]


def test_trials(corpus):
    test = sorted(path.relative_to(corpus).as_posix() for path in (corpus / "test").rglob("*.flac"))
    lines = [line.split() for line in (corpus / "trials.txt").read_text().splitlines()]
    assert sorted((a, b) for _, a, b in lines) == sorted(itertools.combinations(test, 2))
    assert all((label == "1") == (a.split("/")[1] == b.split("/")[1]) for label, a, b in lines)


@pytest.mark.slow
def test_a_function_of_the_seed(corpus, tmp_path):
    synthetic.make_corpus(tmp_path / "again", **TINY)
    assert contents(tmp_path / "again") == contents(corpus)
    synthetic.make_corpus(tmp_path / "other", seed=1, **TINY)
    assert contents(tmp_path / "other")["trials.txt"] == contents(corpus)["trials.txt"]
    assert contents(tmp_path / "other") != contents(corpus)


def test_a_finished_corpus_is_reused(corpus):
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    synthetic.make_corpus(corpus, **TINY)
    assert before == {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}


def test_all_voices_exist():
    with synthetic.Espeak() as espeak:
        for accent in synthetic.ACCENTS:
            espeak("one", f"{accent}+{synthetic.VARIANTS[0]}", 150, 50, 50)
        lengths = {variant: len(espeak("one two", f"en+{variant}", 150, 50, 50)) for variant in synthetic.VARIANTS}
    assert min(lengths.values()) > 5000


def test_speakers_differ():
    speakers = synthetic.draw_speakers(200, 0)
    assert len({(s.voice, s.pitch, s.rate, s.formant_scale) for s in speakers}) == 200
    assert len({s.voice.split("+")[1] for s in speakers}) == len(synthetic.VARIANTS)
