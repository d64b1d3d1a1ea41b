"""Embeddings, similarities and verdicts for those who never train, from Python and from the command line."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import random_variables
import safetensors.numpy
import soundfile
import soxr
from commands import sdpn
from sklearn.metrics import roc_curve
from small_network import SIZES

from sdpn_jax import PRETRAINED, SpeakerEncoder
from sdpn_jax.data import features
from sdpn_jax.data.audio import Reading
from sdpn_jax.errors import UserError
from sdpn_jax.models.network import network_of
from sdpn_jax.speaker import gallery
from sdpn_jax.weights import model_folder, sdpn_names, stablehlo

SMALL = network_of(SIZES)


@pytest.fixture(scope="module")
def variables():
    """Of an untrained network whose batch statistics are not those of a new one."""
    return random_variables.of_network(SMALL)


@pytest.fixture(scope="module")
def model(tmp_path_factory, variables):
    """The folder of a model."""
    folder = tmp_path_factory.mktemp("models") / "small"
    model_folder.write_model(folder, SIZES, variables, {"weights": "random"}, 0.5, "CC0-1.0")
    return folder


@pytest.fixture(scope="module")
def encoder(model):
    return SpeakerEncoder.load(model)


def noise(seed, seconds=1.0, rate=16000):
    return 0.1 * np.random.default_rng(seed).normal(size=int(seconds * rate)).astype(np.float32)


def cosine(a, b):
    return a.astype(float) @ b / np.linalg.norm(a.astype(float)) / np.linalg.norm(b)


def test_a_model_folder_loads_back_bit_for_bit(model, variables):
    network, loaded, config = model_folder.read_model(model)
    assert network == SMALL
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(variables), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert config["threshold"] == 0.5
    card = (model / "README.md").read_text()
    assert "license: CC0-1.0" in card
    assert "- weights: random" in card


def test_a_folder_without_head_is_smaller_and_embeds_the_same(model, encoder, tmp_path):
    done = sdpn("export", f"--model={model}", f"--output={tmp_path / 'm'}", "--without_head")
    assert done.returncode == 0, done.stderr
    left = set(safetensors.numpy.load_file(tmp_path / "m" / "model.safetensors"))
    assert left and not any(name.split("/")[1] == "head" for name in left)
    again = SpeakerEncoder.load(tmp_path / "m")
    np.testing.assert_array_equal(again.embed((noise(0), 16000)), encoder.embed((noise(0), 16000)))
    assert again.threshold == encoder.threshold


def test_the_model_in_the_package(recordings):
    """Small, with a threshold and an attribution, and what all commands take unless told otherwise."""
    ours = SpeakerEncoder.load()
    assert (PRETRAINED / "model.safetensors").stat().st_size <= 6e6
    card = (PRETRAINED / "README.md").read_text()
    assert "license: cc-by-4.0" in card and all(f"openslr.org/{number}" in card for number in (12, 101))
    assert f"cosine of {ours.threshold:.4f}" in card
    same = sdpn("verify", recordings / "a.wav", recordings / "a.wav")
    assert (same.returncode, same.stdout) == (0, f"score 1.0000, threshold {ours.threshold:.4f}: same speaker\n")
    assert ours.embed((noise(0), 16000)).shape == (ours.embedding_size,)


@pytest.mark.slow
def test_the_model_in_the_package_tells_voices_apart(speech):
    """As its card says: EER by scikit-learn's ROC, of speakers it has not heard."""
    folder = speech / "speechocean_mini"
    lines = [line.split() for line in (folder / "trials_degraded.txt").read_text().splitlines()]
    names = sorted({name for line in lines for name in line[1:]})[::2]
    kept = [line for line in lines if {line[1], line[2]} <= set(names)]
    units = SpeakerEncoder.load().embed([folder / name for name in names])
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    row = {name: units[i] for i, name in enumerate(names)}
    labels, scores = [int(line[0]) for line in kept], [row[line[1]] @ row[line[2]] for line in kept]
    fpr, tpr, _ = roc_curve(labels, scores)
    assert 0.13 < fpr[np.argmin(np.abs(fpr + tpr - 1))] < 0.21


def test_embeddings_are_those_of_the_network(encoder, variables, tmp_path):
    waveforms = [noise(0, 1.0), noise(1, 2.3)]
    expected = [np.asarray(SMALL.apply(variables, features.log_mel(x)[None], method=SMALL.embed))[0] for x in waveforms]
    soundfile.write(tmp_path / "b.wav", waveforms[1], 16000, subtype="FLOAT")
    one = encoder.embed((waveforms[0], 16000))
    both = encoder.embed([(waveforms[0], 16000), tmp_path / "b.wav"])
    assert one.shape == (12,) and one.dtype == np.float32
    assert both.shape == (2, 12) and both.dtype == np.float32
    np.testing.assert_allclose(one, expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(both, expected, rtol=1e-4, atol=1e-5)
    assert encoder.embed(str(tmp_path / "b.wav")).shape == (12,)


def test_rates_channels_and_integers(encoder):
    x = noise(2, 1.5)
    reference = encoder.embed((x, 16000))
    np.testing.assert_array_equal(encoder.embed((np.stack([x, x], axis=1), 16000)), reference)
    assert cosine(encoder.embed((np.round(x * 32768).astype(np.int16), 16000)), reference) > 0.9999
    smooth = soxr.resample(soxr.resample(x, 16000, 8000), 8000, 16000)
    higher = encoder.embed((soxr.resample(smooth, 16000, 48000), 48000))
    assert cosine(higher, encoder.embed((smooth, 16000))) > 0.999


def test_similarity_and_verdict(encoder):
    a, b = (noise(3), 16000), (noise(4, 1.7), 16000)
    expected = cosine(*encoder.embed([a, b]))
    assert encoder.similarity(a, b) == pytest.approx(expected, abs=1e-6)
    assert encoder.similarity(*encoder.embed([a, b])) == pytest.approx(expected, abs=1e-6)
    assert encoder.similarity(a, a) == pytest.approx(1.0, abs=1e-6)
    verdict = encoder.verify(a, b, threshold=expected + 0.01)
    assert (verdict.same_speaker, verdict.threshold) == (False, pytest.approx(expected + 0.01))
    assert encoder.verify(a, b, threshold=expected - 0.01).same_speaker
    assert encoder.verify(a, a).threshold == 0.5
    assert encoder.verify(a, a, threshold=np.float64(0.5)).same_speaker is True, "not NumPy's own truth"


@pytest.mark.parametrize(
    ("recording", "message"),
    [
        ("nowhere.wav", r"nowhere\.wav: No such file"),
        ((np.zeros(16000, np.float32), 16000), "recording 0: silent"),
        ((noise(0, 0.05), 16000), "recording 0: shorter than 0.1 s"),
        ((noise(0).astype(np.int64), 16000), "recording 0: samples of type int64"),
        ((noise(0).reshape(2, 2, -1), 16000), r"samples of shape \(2, 2, 4000\)"),
        ((noise(0), 0), "at 0 Hz"),
        ((np.full(16000, np.nan), 16000), "NaN"),
    ],
)
def test_recordings_that_cannot_be_used(encoder, recording, message):
    with pytest.raises(UserError, match=message):
        encoder.embed(recording)


def test_weights_under_the_released_names(tmp_path):
    eights = {name: 8 for name in ("se_bottleneck", "attention", "embedding_size", "hidden_size", "projection_size")}
    network = network_of({"channels": (8,) * 5, **eights})
    variables = random_variables.of_network(network)
    safetensors.numpy.save_file(sdpn_names.to_released(variables), tmp_path / "w.safetensors")
    found = SpeakerEncoder.load(tmp_path / "w.safetensors")
    assert found.fingerprint() == SpeakerEncoder(network, variables).fingerprint()


def test_a_checkpoint_of_the_released_code(golden):
    expected = np.load(golden / "checkpoint_expected.npz")
    embedding = SpeakerEncoder.load(golden / "checkpoint.pth").embed((expected["waveform"], 16000))
    difference = np.linalg.norm(embedding - expected["teacher_embedding"].reshape(-1))
    assert difference < 1e-4 * np.linalg.norm(expected["teacher_embedding"])


def test_what_is_no_model(model, variables, tmp_path):
    with pytest.raises(UserError, match="does not exist: give a model folder"):
        SpeakerEncoder.load(tmp_path / "nothing")
    with pytest.raises(UserError, match="no training run"):
        SpeakerEncoder.load(tmp_path)
    wrong = SIZES | {"embedding_size": 13}
    model_folder.write_model(tmp_path / "wrong", wrong, variables, {}, None, "unknown")
    with pytest.raises(
        UserError, match=r"3 arrays are missing, unknown or of another shape, first params/encoder/seg_1"
    ):
        SpeakerEncoder.load(tmp_path / "wrong")
    cut = (model / "model.safetensors").read_bytes()[:5000]
    (tmp_path / "wrong" / "model.safetensors").write_bytes(cut)
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        SpeakerEncoder.load(tmp_path / "wrong")
    with pytest.raises(UserError, match="brings no threshold"):
        SpeakerEncoder(SMALL, variables).verify(noise(0), noise(1))
    with pytest.raises(UserError, match=r"shape \(16000,\) is no embedding; samples are given as \(samples, rate\)"):
        SpeakerEncoder(SMALL, variables).similarity(noise(0), noise(1))


def test_the_package_loads_neither_data_pipeline_nor_training():
    code = (
        "import sys; from sdpn_jax import SpeakerEncoder; heavy = {'grain', 'orbax', 'optax', 'array_record', "
        "'matplotlib', 'sdpn_jax.training', 'sdpn_jax.data.pipeline', 'librosa', 'numba', 'scipy.signal'} "
        "& set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_loading_changes_no_setting_of_jax(model):
    code = (
        "import os, sys, jax; before = dict(jax.config.values), dict(os.environ)\n"
        "from sdpn_jax import SpeakerEncoder; import numpy as np\n"
        "SpeakerEncoder.load(sys.argv[1]).embed((np.sin(np.arange(9000.0)), 16000))\n"
        "assert before == (dict(jax.config.values), dict(os.environ))"
    )
    subprocess.run([sys.executable, "-c", code, str(model)], check=True, timeout=120)


def test_gallery(tmp_path):
    speakers = gallery.new("one model")
    speakers.enrol("Ann", np.array([[2.0, 0.0], [0.0, 1.0]]))
    speakers.enrol("Bob", np.array([[-1.0, 0.0]]))
    speakers.enrol("Ann", np.array([[3.0, 0.0]]))
    gallery.write(tmp_path / "g.npz", speakers)
    read = gallery.read(tmp_path / "g.npz", "one model")
    assert read.counts.tolist() == [3, 1]
    assert read.scores(np.array([0.0, 5.0])) == [("Ann", pytest.approx(1 / 5**0.5)), ("Bob", 0.0)]
    with pytest.raises(UserError, match="was made with another model"):
        gallery.read(tmp_path / "g.npz", "other")
    np.savez(tmp_path / "other.npz", names=[1])
    with pytest.raises(UserError, match="is not a gallery"):
        gallery.read(tmp_path / "other.npz", "one model")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    for name in "abc":
        soundfile.write(folder / f"{name}.wav", noise(ord(name)), 16000)
    (folder / "broken.wav").write_text("no sound")
    return folder


def test_verify_command(model, recordings, encoder):
    a, b = recordings / "a.wav", recordings / "b.wav"
    same = sdpn("verify", a, a, f"--model={model}", "--json")
    assert same.returncode == 0, same.stderr
    assert json.loads(same.stdout)["same_speaker"] is True
    score = encoder.similarity(a, b)
    other = sdpn("verify", a, b, f"--model={model}", f"--threshold={score + 0.01}")
    assert other.returncode == 1, other.stderr
    assert other.stdout == f"score {score:.4f}, threshold {score + 0.01:.4f}: different speakers\n"
    wrong = sdpn("verify", a, recordings / "broken.wav", f"--model={model}")
    assert wrong.returncode == 2
    assert "broken.wav: unreadable" in wrong.stderr.strip().splitlines()[-1]
    assert sdpn("verify", a, f"--model={model}").returncode == 2


def test_embed_command(model, recordings, encoder, tmp_path):
    done = sdpn("embed", recordings, f"--model={model}", "-o", tmp_path / "e.npz")
    assert done.returncode == 0, done.stderr
    assert "3 embeddings of 12 dimensions written to" in done.stdout
    with np.load(tmp_path / "e.npz") as archive:
        assert archive["ids"].tolist() == ["a.wav", "b.wav", "c.wav"]
        np.testing.assert_allclose(archive["seconds"], 1.0)
        expected = encoder.embed([recordings / f"{name}.wav" for name in "abc"])
        np.testing.assert_allclose(archive["embeddings"], expected, rtol=1e-4, atol=1e-5)
    assert "broken.wav" in (tmp_path / "e.skipped.txt").read_text()


def test_enrol_and_identify_commands(model, recordings, tmp_path):
    where = f"--gallery={tmp_path}/g.npz", f"--model={model}"
    assert sdpn("enrol", recordings / "a.wav", "--name=Ann", *where).returncode == 0
    second = sdpn("enrol", recordings / "b.wav", "--name=Bob", *where)
    assert "2 speakers in all, 1 recordings of Bob" in second.stdout, second.stderr
    found = sdpn("identify", recordings / "a.wav", "--threshold=0.999", "--json", *where)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)[0]["speaker"] == "Ann"
    nobody = sdpn("identify", recordings / "c.wav", "--threshold=1.001", *where)
    assert nobody.returncode == 1
    assert "nobody enrolled" in nobody.stdout


def test_stablehlo_needs_no_package_and_takes_any_size(encoder, variables, tmp_path):
    (tmp_path / "m.stablehlo").write_bytes(stablehlo.serialise(SMALL, variables))
    sizes = [(1, 1600), (3, 20_001), (1, 50_000)]
    batches = {
        f"{rows}x{samples}": noise(samples, rows * samples / 16000).reshape(rows, samples) for rows, samples in sizes
    }
    np.savez(tmp_path / "in.npz", **batches)
    code = (
        "import sys, jax, numpy as np; f, i, o = sys.argv[1:]\n"
        "encoder = jax.export.deserialize(open(f, 'rb').read())\n"
        "np.savez(o, **{name: encoder.call(x) for name, x in np.load(i).items()})\n"
        "assert not [name for name in sys.modules if name.startswith(('sdpn_jax', 'flax'))]"
    )
    files = [str(tmp_path / name) for name in ("m.stablehlo", "in.npz", "out.npz")]
    subprocess.run([sys.executable, "-c", "import jax.export\n" + code, *files], check=True, timeout=300, cwd=tmp_path)
    with np.load(tmp_path / "out.npz") as results:
        for name, batch in batches.items():
            expected = encoder.embed([(row, 16000) for row in batch])
            np.testing.assert_allclose(results[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["", " ", "a\nb"])
def test_what_is_no_name(name):
    with pytest.raises(UserError, match="is empty or holds control characters"):
        gallery.new("one model").enrol(name, np.ones((1, 2)))


@pytest.mark.parametrize(
    ("recording", "message"),
    [
        (((np.zeros(0, np.float32), 16000),), "recording 0: no samples"),
        (((np.zeros((16000, 0), np.float32), 16000),), "recording 0: no samples"),
        (((np.ones(1600, np.float32), float("inf")),), "samples at inf Hz; wanted is a rate from 4,000 to 384,000"),
        (((np.ones(1600, np.float32), 16.0),), "samples at 16.0 Hz"),
        (((np.ones(1600, np.float32), "16000"),), "samples at 16000 Hz; wanted is a rate"),
        ((("a.wav", "b.wav", "c.wav"),), "recording 0: neither a file nor"),
        ((np.ones(1600, np.float32),), "recording 0: neither a file nor"),
        (((np.ones(16000 * 9, np.float32), 16000),), "recording 0: longer than 8.5 s"),
    ],
)
def test_samples_that_are_none(variables, recording, message):
    with pytest.raises(UserError, match=message):
        SpeakerEncoder(SMALL, variables, reading=Reading(max_seconds=8.5)).embed(list(recording))


def test_embeddings_and_thresholds_that_are_not_finite(variables):
    one = SpeakerEncoder(SMALL, variables)
    whole = np.ones(one.embedding_size, np.float32)
    with pytest.raises(UserError, match="an embedding holds NaN or infinity"):
        one.similarity(np.full_like(whole, np.nan), whole)
    with pytest.raises(UserError, match="a threshold of nan"):
        one.verify(whole, whole, threshold=float("nan"))
    assert -1 <= one.similarity(whole / 3, -whole / 7) <= one.similarity(whole / 3, whole / 7) <= 1
