"""ONNX files through onnxruntime: the same embeddings at any size, the names that other programs look for, sizes."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_variables
from commands import sdpn
from jax import export

from sdpn_jax.data import front_ends
from sdpn_jax.errors import UserError
from sdpn_jax.models.network import network_of, sizes_of
from sdpn_jax.weights import model_folder, onnx_file
from sdpn_jax.weights.load import load_network

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'sdpn_jax[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime, which runs what is written")
from sdpn_jax.weights.onnx_graph import Graph  # noqa: E402

ECAPA = {"channels": [16, 16, 24, 16, 32], "se_bottleneck": 8, "attention": 12, "embedding_size": 10}
RESNET = {"encoder": "resnet18", "width": 8, "embedding_size": 12}
HEAD = {"hidden_size": 4, "projection_size": 3}
NETWORKS = {
    "ecapa of samples": (ECAPA | {"front_end": "sdpn"}, "samples"),
    "ecapa of features": (ECAPA | {"front_end": "kaldi80", "dtype": "bfloat16"}, "features"),
    "resnet of features": (RESNET | {"front_end": "wespeaker", "remat": True}, "features"),
}
SECONDS = 0.1, 0.37, 1.0, 1.603, 2.5
GOLDEN = {"sdpn_2024": "sdpn.pth", "ecapa_3dspeaker": "ecapa_tdnn.bin", "ecapa_speechbrain": "embedding_model.ckpt",
          "resnet34_wespeaker": "avg_model.pt", "resnet_bottleneck_wespeaker": "avg_model.pt",
          "eres2netv2_w24s4ep4_3dspeaker": "pretrained_eres2netv2w24s4ep4.ckpt",
          "ecapa_wespeaker": "avg_model.pt"}  # fmt: skip


@functools.cache
def network_and_variables(name):
    network = network_of(NETWORKS[name][0] | HEAD)
    return network, random_variables.of_network(network)


def session_of(content: bytes):
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    return onnxruntime.InferenceSession(content)


def outputs_of(session, x):
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def recordings_of(seconds):
    return 0.1 * np.random.default_rng(int(1000 * seconds)).normal(size=(2, int(16000 * seconds))).astype(np.float32)


@functools.cache
def reference(encoder):
    return jax.jit(lambda variables, x, lengths: encoder.apply(variables, x, False, lengths))


def embedded(network, variables, heard):
    """What JAX makes of the features of recordings, all in one batch, each with its length."""
    if network.front_end == "sdpn":
        heard = [(x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) for x in heard]
    lengths = np.array([len(x) for x in heard])
    padded = np.stack([np.pad(x, ((0, 256 - len(x)), (0, 0))) for x in heard])
    of_encoder = {kind: arrays["encoder"] for kind, arrays in variables.items()}
    return np.asarray(reference(network.encoder.clone(dtype=jnp.float32))(of_encoder, padded, lengths))


@pytest.mark.parametrize("name", NETWORKS)
def test_any_length_in_any_batch(name):
    """Each recording alone and two together, features made by NumPy."""
    network, variables = network_and_variables(name)
    recordings = [recordings_of(seconds) for seconds in SECONDS]
    features = [np.stack([front_ends.FRONT_ENDS[network.front_end](x) for x in pair]) for pair in recordings]
    truth = embedded(network, variables, [x for pair in features for x in pair]).reshape(len(SECONDS), 2, -1)
    session = session_of(onnx_file.serialise(network, variables, NETWORKS[name][1]))
    for pair, expected in zip(features if "features" in name else recordings, truth, strict=True):
        for rows in (1, 2):
            tolerance = 1e-5 * np.abs(expected).max()
            np.testing.assert_allclose(outputs_of(session, pair[:rows]), expected[:rows], atol=tolerance, rtol=0)


@pytest.mark.parametrize("sizes", [RESNET, {"encoder": "eres2netv2", "width": 4, "blocks": [1] * 4}])
def test_a_block_ends_in_what_runtimes_join_with_the_sum_before_it(sizes):
    network = network_of({**sizes, **HEAD, "front_end": "kaldi80"})
    content = onnx_file.serialise(network, random_variables.of_network(network), "features")
    kinds = [node.op_type for node in onnx.load_from_string(content).graph.node]
    assert "Where" not in kinds and kinds.count("Relu") >= 4


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_encoders(golden, name):
    folder = golden / "encoders" / name
    network, variables, _ = load_network(folder / GOLDEN[name])
    session = session_of(onnx_file.serialise(network, variables, "samples"))
    with np.load(folder / "expected.npz") as expected:
        for i in range(2):
            samples, truth = expected[f"waveform_{i}"] / np.float32(32768), expected[f"embedding_{i}"]
            np.testing.assert_allclose(
                outputs_of(session, samples[None])[0], truth, atol=2e-5 * np.abs(truth).max(), rtol=0
            )


def test_what_sherpa_onnx_and_wespeaker_look_for(tmp_path):
    of_3dspeaker = {"framework": "3d-speaker", "normalize_samples": "1", "output_dim": "10"}
    of_wespeaker = {"framework": "wespeaker", "normalize_samples": "0", "output_dim": "12"}
    for name, names, facts in [
        ("ecapa of features", ("x", "embedding"), of_3dspeaker),
        ("resnet of features", ("feats", "embs"), of_wespeaker),
    ]:
        network, variables = network_and_variables(name)
        about = {"language": "Welsh", "trained on": "speech", "framework": "mine"}
        size = onnx_file.write(tmp_path / "new" / "a.onnx", network, variables, "features", about=about)
        assert (tmp_path / "new" / "a.onnx").stat().st_size == size
        session = onnxruntime.InferenceSession(tmp_path / "new" / "a.onnx")
        (x,), (y,) = session.get_inputs(), session.get_outputs()
        assert (x.name, x.shape, y.name, y.shape) == (
            names[0], ["B", "T", 80], names[1], ["B", int(facts["output_dim"])],
        )  # fmt: skip
        assert session.get_modelmeta().custom_metadata_map == {
            "language": "Welsh", "trained on": "speech", "url": "unknown", "comment": "written by sdpn_jax",
            "sample_rate": "16000", "feature_normalize_type": "global-mean", "front_end": network.front_end, **facts,
        }  # fmt: skip


def test_a_file_of_samples_is_none_of_sherpa_onnx():
    network, variables = network_and_variables("resnet of features")
    session = session_of(onnx_file.serialise(network, variables))
    assert session.get_modelmeta().custom_metadata_map["framework"] == "sdpn_jax"
    assert [x.name for x in session.get_inputs() + session.get_outputs()] == ["samples", "embedding"]


def test_any_runtime_since_1_6_reads_it():
    model = onnx.load_from_string(onnx_file.serialise(*network_and_variables("resnet of features"), "features"))
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 13)]
    assert model.ir_version == 7


def test_smaller_files():
    """Rounding moves the embedding a little; matrices alone are rounded, and none of those that make the features."""
    network = network_of(RESNET | HEAD | {"front_end": "wespeaker", "width": 16})
    variables = random_variables.of_network(network)
    contents = {w: onnx_file.serialise(network, variables, "samples", w) for w in ("float32", "float16", "int8")}
    models = {w: onnx.load_from_string(content) for w, content in contents.items()}
    # 400 taps, real and imaginary parts of 257 frequencies; their 80 triangles
    features = [[514, 1, 400], [257, 80]]
    for model in models.values():
        kept = [list(x.dims) for x in model.graph.initializer if x.data_type == onnx.TensorProto.FLOAT]
        assert [dims for dims in features if dims in kept] == features
    of_features = 4 * (514 * 400 + 257 * 80)
    full, half, quarter = (len(content) - of_features for content in contents.values())
    assert half < 0.53 * full
    assert quarter < 0.28 * full

    samples = recordings_of(2.5)
    truth, *rounded = (outputs_of(session_of(content), samples) for content in contents.values())
    for found, least in zip(rounded, (1 - 1e-6, 1 - 1e-3), strict=True):
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(truth, axis=1)
        cosines = (found.astype(float) * truth).sum(1) / lengths
        assert np.all(cosines > least)
        assert np.abs(found - truth).max() > 1e-5 * np.abs(truth).max()


def test_int8_has_a_step_for_each_channel():
    """Channels of very different sizes, one of them silent, are each within half a step of their own."""
    scales = np.array([1e-3, 1.0, 0.0, 1e3], np.float32)
    matrix = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32) * scales
    kernel = np.random.default_rng(1).normal(size=(4, 5, 3)).astype(np.float32) * scales[:, None, None]
    for weights, ends in ((matrix, (0,)), (kernel, (1, 2))):
        graph = Graph()
        graph.constants["w"] = weights
        graph.nodes.append(onnx.helper.make_node("Identity", ["w"], ["y"]))
        content = graph.model({"x": (1,)}, {"y": weights.shape}, {}, {"w": "int8"})
        found = onnxruntime.InferenceSession(content).run(None, {"x": np.zeros(1, np.float32)})[0]
        half_step = np.abs(weights).max(ends, keepdims=True) / 127 / 2
        assert np.all(np.abs(found - weights) <= half_step * 1.0001)


def of_integers(x):
    time, first = jnp.arange(x.shape[1]), jnp.arange(0, x.shape[1], 7)
    return jnp.where((time // 7 == first[:, None] // 7) & (time != 3) & (time < 11), x.sum(), x.max())


OPERATIONS = {
    "sizes": lambda x: x.sum((0, 1)) * (-(-x.shape[1] // 3)) + x.shape[1] % 4 - (1 - x.shape[1]) // 5 + x.shape[1] ** 2,
    "integers": of_integers,
    "grids": lambda x: jnp.arange(x.shape[1])[:, None] * jax.lax.broadcasted_iota(jnp.float32, x.shape[:2], 1)[0, :3],
    "slices": lambda x: jnp.concatenate([x[:, 2:9:3], x[:, -3:], x[:, 1 : x.shape[1] - 1 : 2], jnp.flip(x, 1)], 1),
    "one of many": lambda x: x[1] + x[:, -1][:, None].sum(0) + x[..., 2][..., None][0] + x[0, :9].sum(),
    "groups": lambda x: sum(part * i for i, part in enumerate(jnp.split(x, [1, 2], 2), 1)),
    "padding": lambda x: jnp.pad(jnp.pad(x, ((0, 0), (3, 1), (0, 2))) + 1, ((0, 0), (4, 4), (0, 0)), "reflect"),
    "products": lambda x: (x @ x.swapaxes(1, 2)) @ x @ jnp.arange(12.0).reshape(4, 3),
    "shapes": lambda x: jnp.broadcast_to(x.reshape(x.shape[0], -1)[:, None, :5], (*x.shape[:2], 5)).transpose(1, 0, 2),
    "choices": lambda x: jnp.where((x > 0.5) | ~(x >= -0.5) | (x <= -2), jnp.sign(x), jnp.clip(x, -0.2, 0.3)) - abs(-x),
    "functions": lambda x: jax.nn.softmax(jax.nn.silu(x), 1) + jnp.tanh(x) * jax.lax.rsqrt(x**4 + 1) - jnp.log(9 + x),
    "maxima": lambda x: jax.nn.relu(x) + jnp.maximum(0.0, x) + jnp.maximum(x, 1.0) * jnp.sqrt(x.max()),
    "convolution": lambda x: jax.lax.conv_general_dilated(
        x, jnp.arange(24.0).reshape(3, 2, 4), (2,), ((1, 2),), rhs_dilation=(2,),
        dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=2),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name):
    graph, function = Graph(), OPERATIONS[name]
    sizes = export.symbolic_shape("B, T, 4", constraints=["B >= 2", "T >= 9"])
    made = graph.inline(function, "x", sizes, "y")
    content = graph.model({"x": sizes}, {"y": [f"out{i}" for i in range(len(made))]}, {}, {})
    session = session_of(content)
    for rows, length in ((2, 9), (3, 14)):
        x = np.random.default_rng(length).normal(size=(rows, length, 4)).astype(np.float32)
        truth = np.asarray(jax.jit(function)(x))
        np.testing.assert_allclose(outputs_of(session, x), truth, rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("function, told", [
    (jnp.sort, "sort of JAX is none of the operations"),
    (lambda x: x.astype(jnp.bfloat16), "computes in bfloat16"),
    (lambda x: jnp.einsum("btf,ctf->bc", x, x), "products other than of matrices"),
    (lambda x: jnp.take_along_axis(x, (x > 0).astype(int), 1), "indexing other than"),
    (lambda x: jax.lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 1), (0, 0, 0))), "between the numbers"),
    (lambda x: jax.lax.conv_transpose(x, jnp.ones((3, 4, 4)), (2,), ((1, 1),), dimension_numbers=("NWC", "WIO", "NWC")),
     "transposed convolutions"),
    (lambda x: jax.lax.scan(lambda a, b: (a + b, b), x[:, 0], x.swapaxes(0, 1))[0], "scan of JAX is none"),
])  # fmt: skip
def test_what_is_not_known_is_refused(function, told):
    with pytest.raises(UserError, match=told) as refusal:
        Graph().inline(function, "x", export.symbolic_shape("B, T, 4", constraints=["T >= 9"]), "y")
    assert "\n" not in str(refusal.value)


def test_features_that_nobody_computes_and_a_missing_package(monkeypatch):
    network, variables = network_and_variables("ecapa of samples")
    with pytest.raises(UserError, match="let the file take samples"):
        onnx_file.serialise(network, variables, "features")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"pip install 'sdpn_jax\[onnx\]'"):
        onnx_file.serialise(network, variables)


def test_the_command(tmp_path):
    network, variables = network_and_variables("ecapa of samples")
    model, file = tmp_path / "model", tmp_path / "out" / "a.onnx"
    model_folder.write_model(model, sizes_of(network), variables, {}, None, "unknown")
    done = sdpn("export", f"--model={model}", f"--output={file}", "--weights=float16")
    assert done.returncode == 0 and f"wrote {file}" in done.stdout and "float16" in done.stdout
    assert session_of(file.read_bytes()).get_inputs()[0].name == "samples"
    for arguments, told in (
        ([f"--output={file}", "--takes=features"], "no other program computes the features of sdpn"),
        ([f"--output={tmp_path / 'b'}", "--weights=int8"], "--format is folder: leave them out"),
        ([f"--output={file}", "--format=stablehlo", "--takes=features"], "--format is stablehlo: leave them out"),
        ([f"--output={file}", f"--results={file}"], "--results and --without_head are of model folders"),
    ):
        done = sdpn("export", f"--model={model}", *arguments)
        assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1
