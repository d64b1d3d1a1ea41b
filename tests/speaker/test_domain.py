"""Models adapted to a domain: what their folder holds, what every command makes of it, and what is refused."""

import json

import numpy as np
import onnxruntime
import pytest
import random_variables
import soundfile
from commands import sdpn
from safetensors.numpy import load_file, save_file
from small_network import SIZES

from sdpn_jax import SpeakerEncoder
from sdpn_jax.eval import adaptation
from sdpn_jax.models.network import network_of
from sdpn_jax.speaker import domain
from sdpn_jax.weights import model_folder, onnx_file
from sdpn_jax.weights.load import load_network


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Twelve recordings of 2.3 s, each a noise of its own colour, and a file that is none."""
    folder = tmp_path_factory.mktemp("domain")
    for number in range(12):
        rng = np.random.default_rng(number)
        colour = np.convolve(rng.normal(size=36800), rng.normal(size=20), "same")
        soundfile.write(folder / f"{number}.wav", 0.02 * colour, 16000)
    (folder / "broken.wav").write_bytes(b"RIFF")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "plain"
    variables = random_variables.of_network(network_of(SIZES))
    model_folder.write_model(folder, SIZES, variables, {"trained": "never"}, 0.5, "CC0-1.0")
    return folder


@pytest.fixture(scope="module")
def adapted(model, recordings, tmp_path_factory):
    output = tmp_path_factory.mktemp("adapted") / "model"
    done = sdpn("adapt", f"--model={model}", f"--input={recordings}", f"--output={output}", "--crop_seconds=0.5",
                "--shrinkage=0.3")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "0.3  " in done.stdout and "<- taken" in done.stdout and "broken.wav" in done.stdout
    assert "threshold is to be found anew" in done.stdout
    return output


def test_embeddings_are_adapted_wherever_the_folder_is_used(model, adapted, recordings):
    """By the formula in float64, from the embeddings of the plain model."""
    files = sorted(recordings.glob("[0-9]*.wav"))
    before, after = (SpeakerEncoder.load(folder).embed(files) for folder in (model, adapted))
    units = before / np.linalg.norm(before.astype(float), axis=1, keepdims=True)
    affine = adaptation.whitening(units, 0.3)
    np.testing.assert_allclose(after, adaptation.adapted(before, affine), atol=2e-5)
    assert np.abs(after.mean(0)).max() < 1e-5
    assert SpeakerEncoder.load(adapted).threshold is None
    assert SpeakerEncoder.load(model).fingerprint() != SpeakerEncoder.load(adapted).fingerprint()
    card = json.loads((adapted / "config.json").read_text())["about"]
    assert card == {"adapted from": str(model), "trained": "never", "adapted to": "12 recordings", "shrinkage": 0.3}


def test_it_travels_with_onnx(adapted, tmp_path):
    network, variables, _ = load_network(adapted)
    onnx_file.write(tmp_path / "a.onnx", network, variables)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    samples = 0.1 * np.random.default_rng(0).normal(size=20000).astype(np.float32)
    theirs = session.run(None, {"samples": samples[None]})[0][0]
    ours = SpeakerEncoder.load(adapted).embed((samples, 16000))
    np.testing.assert_allclose(theirs, ours, atol=1e-5 * np.abs(ours).max() + 1e-5)


def test_crops_and_what_is_skipped(model, recordings):
    found = domain.read(model, recordings, 1.0)
    assert found.embeddings.shape == (12, 12) and found.crops.shape == (24, 12)
    np.testing.assert_array_equal(found.recordings, np.repeat(np.arange(12), 2))
    assert [path.rpartition("/")[2] for path, _ in found.skipped] == ["broken.wav"]


def test_adapting_again_begins_from_the_plain_model(model, adapted, recordings):
    one, two = (domain.read(folder, recordings, 1.0) for folder in (model, adapted))
    np.testing.assert_allclose(one.embeddings, two.embeddings, atol=1e-6)


def test_recordings_too_short_for_crops(model, recordings, tmp_path):
    done = sdpn("adapt", f"--model={model}", f"--input={recordings}", f"--output={tmp_path / 'a'}",
                "--crop_seconds=2.2")  # fmt: skip
    assert done.returncode == 2
    assert "0 recordings are long enough for two crops, too few to adapt with" in done.stderr
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name, array", [("adaptation/mean", np.zeros(11)), ("adaptation/transform", None),
                                         ("adaptation/other", np.zeros(3))])  # fmt: skip
def test_adaptations_that_do_not_fit_are_refused(adapted, tmp_path, name, array):
    arrays = load_file(adapted / "model.safetensors") | {name: array}
    arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items() if array is not None}
    (tmp_path / "config.json").write_bytes((adapted / "config.json").read_bytes())
    save_file(arrays, tmp_path / "model.safetensors")
    done = sdpn("verify", str(adapted), str(adapted), f"--model={tmp_path}")
    assert done.returncode == 2 and f"first {name}" in done.stderr
