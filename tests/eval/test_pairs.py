"""Calibration from one's own recordings: beside logistic regression by SciPy, and the whole command."""

import json
import math
import shutil

import numpy as np
import pytest
import scipy.optimize
import soundfile
from commands import ran, refused, sdpn

from sdpn_jax import PRETRAINED, SpeakerEncoder
from sdpn_jax.decision import Calibration
from sdpn_jax.errors import UserError
from sdpn_jax.eval import pairs
from sdpn_jax.weights import model_folder


def people(speakers=12, each=6, spread=0.8, seed=0):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(speakers), each)
    return rng.normal(size=(speakers, 16))[groups] + spread * rng.normal(size=(len(groups), 16)), groups


@pytest.mark.parametrize("prior", [0.5, 0.05])
def test_the_map_is_logistic_regression(prior):
    scores, labels = pairs.trials(*people())
    weights = np.where(labels == 1, prior / labels.sum(), (1 - prior) / (1 - labels).sum())

    def cross_entropy(parameters):
        odds = parameters[0] * scores + parameters[1] + math.log(prior / (1 - prior))
        return (weights * np.logaddexp(0, np.where(labels == 1, -odds, odds))).sum()

    best = scipy.optimize.minimize(cross_entropy, [1.0, 0.0], tol=1e-12).x
    found = pairs.fit(scores, labels, prior)
    np.testing.assert_allclose([found.scale, found.offset], best, rtol=2e-3)
    assert found.probability(found.threshold()) == pytest.approx(0.5)


def test_probabilities_by_hand():
    calibration = Calibration(4.0, -1.0, 0.2)
    assert calibration.probability(0.5) == pytest.approx(0.2 * math.e / (0.2 * math.e + 0.8))
    assert calibration.threshold() == pytest.approx((math.log(4) + 1) / 4)
    assert Calibration(1e4, 0, 0.5).probability(1.0) == 1.0
    assert Calibration(0.1, -5, 0.5).threshold() == 1.0


def test_trials_are_all_pairs():
    scores, labels = pairs.trials(np.array([[1.0, 0], [2, 0], [0, 3]]), np.array([0, 0, 1]))
    np.testing.assert_allclose(scores, [1, 0, 0])
    assert labels.tolist() == [1, 0, 0]


def test_the_cost_of_a_threshold_by_hand():
    scores, labels = np.array([0.1, 0.4, 0.6, 0.2, 0.5]), np.array([1, 1, 1, 0, 0])
    assert pairs.cost(0.45, scores, labels, 0.5) == pytest.approx((2 / 3 + 1 / 2) * 0.5 / 0.5)
    assert pairs.cost(0.45, scores, labels, 0.1) == pytest.approx((0.1 * 2 / 3 + 0.9 / 2) / 0.1)


def test_costs_are_of_others():
    embeddings, groups = people(20)
    costs = pairs.held_out_costs(embeddings, groups, 0.5, -1.0)
    assert costs["before"] == pytest.approx(1.0)  # which accepts all
    assert costs["least"] <= costs["after"] < 0.5
    assert pairs.held_out_costs(*people(9), 0.5, None) == {}


def test_whole_groups_are_chosen_from_many(monkeypatch):
    monkeypatch.setattr(pairs, "MOST", 20)
    _, groups = people(12, 6)
    chosen = pairs.some(groups)
    assert len(chosen) == 20
    assert sorted(np.bincount(groups[chosen]).tolist())[-3:] == [6, 6, 6]


def test_speakers_who_cannot_be_told_apart():
    scores, labels = np.array([0.1, 0.2, 0.8, 0.9]), np.array([1, 1, 0, 0])
    with pytest.raises(UserError, match="of no use"):
        pairs.fit(scores, labels, 0.5)
    with pytest.raises(UserError, match="too few"):
        pairs.groups_of(list("aabbcc"))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A model, and recordings of ten speakers, who hum each at a pitch of their own."""
    folder = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    for speaker in range(10):
        (folder / "audio" / f"s{speaker}").mkdir(parents=True)
        for number in range(3):
            time_s = np.arange(int(rng.integers(35000, 40000))) / 16000
            hz = (90 + 25 * speaker) * (1 + 0.05 * np.sin(2 * np.pi * (2 + number) * time_s))
            phase = 2 * np.pi * np.cumsum(hz) / 16000
            samples = sum(np.sin(k * phase) / k for k in range(1, 20)) + 0.1 * rng.normal(size=len(time_s))
            soundfile.write(folder / "audio" / f"s{speaker}" / f"{number}.wav", 0.02 * samples, 16000)
    shutil.copytree(PRETRAINED, folder / "m")
    soundfile.write(folder / "audio" / "s0" / "short.wav", 0.1 * rng.normal(size=16000), 16000)
    return folder


@pytest.mark.parametrize("labels", [["--labels=folders"], []])
def test_the_command(workplace, labels, tmp_path):
    model, out = workplace / "m", tmp_path / "new"
    told = ran("calibrate", f"--model={model}", f"--input={workplace / 'audio'}", "-o", out, *labels).stdout
    assert f"wrote {out / 'config.json'}" in told
    assert ("without labels" in told) == (not labels)
    assert ("short.wav: shorter than 2 s" in told) == (not labels)
    config = model_folder.read_config(out)
    encoder = SpeakerEncoder.load(out)
    assert config["threshold"] == encoder.threshold == encoder.calibration.threshold()
    assert "calibrated on" in config["about"]
    a, b = workplace / "audio" / "s0" / "0.wav", workplace / "audio" / "s9" / "1.wav"
    done = json.loads(sdpn("verify", a, b, f"--model={out}", "--json").stdout)
    expected = encoder.calibration.probability(done["score"])
    assert done["probability"] == pytest.approx(expected)
    assert f"probability of the same one {100 * expected:.1f} %" in sdpn("verify", a, b, f"--model={out}").stdout
    np.testing.assert_array_equal(encoder.embed(a), SpeakerEncoder.load(model).embed(a))


def test_a_model_folder_is_calibrated_in_its_place(workplace, tmp_path):
    shutil.copytree(workplace / "m", tmp_path / "m")
    before = model_folder.read_config(tmp_path / "m")["about"]
    for _ in range(2):
        ran("calibrate", f"--model={tmp_path / 'm'}", f"--input={workplace / 'audio'}", "--labels=folders")
        config = model_folder.read_config(tmp_path / "m")
        assert config["threshold"] < 1
        assert [*config["about"]] == [*before, "calibrated on"]


def test_recordings_whose_speaker_is_unclear_are_listed(workplace, tmp_path):
    named = [f"s{speaker}/{number}.wav" for speaker in range(10) for number in range(3)]
    named.remove("s9/2.wav")
    lines = [f"{name} {name[:2]}" for name in named] + ["a/s9/2.wav s9", "b/s9/2.wav s8"]
    (tmp_path / "labels").write_text("\n".join(lines) + "\n")
    arguments = "calibrate", f"--input={workplace / 'audio'}", f"--labels={tmp_path / 'labels'}", "-o", tmp_path / "new"
    told = ran(*arguments).stdout
    assert "left out: s9/2.wav: 's9/2.wav' fits 'a/s9/2.wav' and 'b/s9/2.wav'" in told
    assert "left out: 1 recordings without a speaker" in told  # s0/short.wav
    left_out = json.loads(ran(*arguments, "--json").stdout)["left_out"]
    assert [*left_out] == ["s9/2.wav", "s0/short.wav"]


def test_what_cannot_be_calibrated(workplace, tmp_path):
    audio = f"--input={workplace / 'audio'}"
    assert "--output" in refused("calibrate", audio)
    (tmp_path / "labels").write_text("nobody a\n")
    told = refused("calibrate", audio, f"--model={workplace / 'm'}", f"--labels={tmp_path / 'labels'}")
    assert "names none of the 31 recordings" in told


@pytest.mark.parametrize(
    "calibration",
    [{"scale": -1.0, "offset": 0.0, "prior": 0.5}, {"scale": 1.0, "offset": 0.0, "prior": 1.0}, {"scale": 1.0}, [], 1,
     {"scale": float("nan"), "offset": 0.0, "prior": 0.5}, {"scale": True, "offset": 0.0, "prior": 0.5}],
)  # fmt: skip
def test_a_calibration_that_is_none(workplace, calibration, tmp_path):
    config = json.loads((workplace / "m" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "calibration": calibration}))
    with pytest.raises(UserError, match="calibration"):
        model_folder.read_config(tmp_path)
