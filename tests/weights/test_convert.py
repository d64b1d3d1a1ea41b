"""Weights from the released implementation and back: names, sizes, a run that goes on, the command's refusals."""

import json
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_variables
import safetensors.numpy
import soundfile
import torch_files
from commands import sdpn
from flax.traverse_util import flatten_dict, unflatten_dict

from sdpn_jax import SpeakerEncoder
from sdpn_jax import config as configs
from sdpn_jax.data import features
from sdpn_jax.errors import UserError
from sdpn_jax.models.network import initial_variables, network_of
from sdpn_jax.speaker import corpus
from sdpn_jax.training import beginning, checkpoint, converted, optim
from sdpn_jax.training.checkpoint import parts_of, state_of
from sdpn_jax.training.step import init_state
from sdpn_jax.weights import (
    campplus_names,
    convert,
    ecapa_wespeaker_names,
    eres2net_names,
    export,
    model_folder,
    resnet_names,
    run,
    sdpn_names,
    torch_file,
)
from sdpn_jax.weights.load import load_network

SIZES = dict(
    channels=(16, 16, 24, 16, 32), se_bottleneck=8, attention=12, embedding_size=10, hidden_size=20, projection_size=6
)
NETWORK = network_of(SIZES)
PROTOTYPES = 7


def variables_of(seed: int) -> dict:
    """Every array random, so that no two can be exchanged unseen."""
    return random_variables.of_network(NETWORK, seed)


def equal(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def contents_of(student: dict, teacher: dict, prefix: str = "module.") -> dict:
    """What the released training script saves."""
    states = {"student": student, "teacher": teacher}
    named = {
        part: OrderedDict((prefix + name, array) for name, array in sdpn_names.to_released(variables, 5).items())
        for part, variables in states.items()
    }
    prototypes = np.random.default_rng(3).random((PROTOTYPES, SIZES["projection_size"]), np.float32)
    return {**named, "prototypes": prototypes, "optimizer": {"state": {}}, "epoch": 3, "sdpn_loss": OrderedDict()}


@pytest.fixture
def contents():
    return contents_of(variables_of(1), variables_of(2))


def refused(tmp_path, contents) -> str:
    torch_files.write(tmp_path / "a.pth", contents)
    with pytest.raises(UserError) as told:
        converted.to_workdir(tmp_path / "a.pth", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert "\n" not in str(told.value)
    return str(told.value)


def refused_in_one_line(path, state: dict, message: str) -> None:
    """Writes {name: array, or None where it is missing} to a file, and loads it."""
    torch_files.write(path, {name: array for name, array in state.items() if array is not None})
    with pytest.raises(UserError, match=message) as told:
        load_network(path)
    assert str(path) in str(told.value) and "\n" not in str(told.value)


def test_names_are_the_released_ones(golden):
    """All names and shapes of a network of the golden checkpoint's sizes, from the list that comes with it."""
    listed = [line.split("\t") for line in (golden / "checkpoint_names.txt").read_text().splitlines()]
    network = network_of(
        {"channels": (32, 32, 32, 32, 96), "embedding_size": 16, "hidden_size": 48, "projection_size": 12}
    )
    state = sdpn_names.to_released(random_variables.of_network(network))
    told = {f"module.{name}": (str(array.shape), f"torch.{array.dtype}") for name, array in state.items()}
    assert told == {name: (shape, dtype) for name, shape, dtype in listed}


def test_there_and_back_again():
    variables = variables_of(0)
    sizes, back = sdpn_names.from_released(sdpn_names.to_released(variables, 3))
    assert sizes == SIZES
    assert {leaf.dtype for leaf in jax.tree.leaves(back)} == {np.dtype("float32")}
    equal(back, variables)


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_checkpoint_to_run_to_safetensors(tmp_path, prefix):
    student, teacher = variables_of(1), variables_of(2)
    contents = contents_of(student, teacher, prefix)
    torch_files.write(tmp_path / "a.pth", contents)
    converted.to_workdir(tmp_path / "a.pth", tmp_path / "run", step=40)
    for which, expected in {"student": student, "teacher": teacher}.items():
        network, variables, step = run.read_network(tmp_path / "run", None, which)
        assert (network, step) == (NETWORK, 40)
        equal(variables, expected)
        convert.to_safetensors(tmp_path / "run", tmp_path / "new" / "a.safetensors", which)
        written = safetensors.numpy.load_file(tmp_path / "new" / "a.safetensors")
        assert all(name.endswith("num_batches_tracked") == (array.dtype == np.int64) for name, array in written.items())
        equal(sdpn_names.from_released(written)[1], expected)
        assert {prefix + name for name in written} == set(contents[which])


@pytest.mark.slow
def test_a_run_resumes_from_it(tmp_path, contents):
    """The state has the form that training restores, the learning rate goes on at the step, nothing else is kept."""
    torch_files.write(tmp_path / "a.pth", contents)
    converted.to_workdir(tmp_path / "a.pth", tmp_path / "run", step=40)
    optimizer = optim.optimizer(lambda step: 0.1 * step, 0.8, 1e-4, 2.0, "global", prototype_multiplier=4.0)
    fresh = jax.jit(lambda: init_state(NETWORK, PROTOTYPES, optimizer, seed=0))()
    with checkpoint.manager(tmp_path / "run") as checkpoints:
        parts, step = checkpoint.resume(checkpoints, parts_of(fresh))
    state = state_of(parts)
    assert step == int(state.step) == 40
    equal(state.prototypes, contents["prototypes"])
    equal(state.teacher, variables_of(2))
    equal(state.offset, jnp.zeros(PROTOTYPES))
    assert jax.tree.map(jnp.shape, state.opt_state) == jax.tree.map(jnp.shape, fresh.opt_state)
    assert {float(x.max()) for x in jax.tree.leaves(state.opt_state)} == {0.0, 40.0}
    params = {"network": state.student["params"], "prototypes": state.prototypes}
    updates, _ = jax.jit(optimizer.update)(jax.tree.map(jnp.ones_like, params), state.opt_state, params)
    np.testing.assert_allclose(updates["prototypes"], -4.0 * 4.0, rtol=1e-6)


def test_which_configs_may_go_on(tmp_path, contents):
    """Those of the same sizes, whatever else they say; afterwards the run is like any other."""
    torch_files.write(tmp_path / "a.pth", contents)
    began_with = converted.to_workdir(tmp_path / "a.pth", tmp_path / "run")
    kept = run.read_config(tmp_path / "run")
    sizes = [f"--config.model.{name}={value}" for name, value in SIZES.items()]
    of_these = [*sizes, f"--config.num_prototypes={PROTOTYPES}"]
    configs.check_same_run(configs.load("vox2", of_these), kept, tmp_path / "run")
    for field in ("num_prototypes", "model.attention"):
        with pytest.raises(UserError, match=field):
            other = configs.load("vox2", [*of_these, f"--config.{field}=13"])
            configs.check_same_run(other, kept, tmp_path / "run")
    flags = converted.size_flags(began_with)
    assert "'--config.model.channels=(16, 16, 24, 16, 32)'" in flags
    assert "--config.num_prototypes=7 " in flags
    full = {name: configs.FIELDS[f"model.{name}"].default for name in SIZES}
    assert converted.size_flags({"model": full, "num_prototypes": 1024}) == ""


def test_half_precision(tmp_path):
    """Weights of any floating type become float32."""
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables_of(1))
    torch_files.write(tmp_path / "a.pth", contents_of(halves, halves))
    converted.to_workdir(tmp_path / "a.pth", tmp_path / "run")
    _, variables, _ = run.read_network(tmp_path / "run")
    equal(variables, jax.tree.map(lambda x: np.asarray(x, np.float32), halves))


def test_another_network(tmp_path, contents):
    """Missing, unknown and misshaped names are counted and the first of them named."""
    teacher = contents["teacher"]
    kernel = "module.backbone.blocks.0.conv.conv.weight"
    teacher["module.fc.weight"] = teacher["module.backbone.fc.conv.weight"]
    del teacher["module.backbone.fc.conv.weight"], teacher["module.head.mlp.3.bias"]
    teacher[kernel] = teacher[kernel][:, :40].copy()
    told = refused(tmp_path, contents)
    assert "the teacher of" in told
    assert "2 names missing (backbone.fc.conv.weight, head.mlp.3.bias)" in told
    assert "1 names unknown (fc.weight)" in told
    assert "1 arrays of another shape (backbone.blocks.0.conv.conv.weight is (16, 40, 5), not (16, 80, 5))" in told
    other = OrderedDict((f"layer{i}.weight", np.zeros(2)) for i in range(5))
    assert "5 names unknown (layer0.weight, layer1.weight, layer2.weight, ...)" in refused(
        tmp_path, contents | {"student": other}
    )


def test_other_contents(tmp_path, contents):
    assert "has no teacher, only student" in refused(tmp_path, {"student": contents["student"]})
    assert "only nothing" in refused(tmp_path, {})
    assert "no state dictionary" in refused(tmp_path, contents | {"student": [1]})
    assert "no state dictionary" in refused(tmp_path, contents | {"student": {1: 2}})
    assert "1 entries that are no tensors, such as x" in refused(tmp_path, contents | {"teacher": {"x": 1}})
    assert "(7, 5), not (any number, 6)" in refused(tmp_path, contents | {"prototypes": np.zeros((7, 5))})
    assert "prototypes" in refused(tmp_path, contents | {"prototypes": 3})
    assert "prototypes holds NaN" in refused(tmp_path, contents | {"prototypes": np.full((7, 6), np.nan)})
    assert "prototypes is of type int64" in refused(tmp_path, contents | {"prototypes": np.ones((7, 6), np.int64)})
    odd = {f"module.backbone.blocks.{i}.tdnn2.conv.conv.bias": np.zeros(12) for i in (1, 2, 3)}
    assert "multiples of 8" in refused(tmp_path, contents | {"student": contents["student"] | odd})


def test_a_checkpoint_without_prototypes_goes_on_with_drawn_ones(tmp_path, contents, caplog):
    """As the file that SDPN's authors published in 2024."""
    del contents["prototypes"]
    torch_files.write(tmp_path / "a.pth", contents)
    config = converted.to_workdir(tmp_path / "a.pth", tmp_path / "run")
    assert config["num_prototypes"] == converted.DRAWN_PROTOTYPES
    assert "holds no prototypes: 1024 are drawn anew" in caplog.text
    equal(run.read_network(tmp_path / "run")[1], variables_of(2))


def test_an_encoder_needs_no_more_than_itself(tmp_path, contents):
    """Teacher, else student, else the state itself; an unknown head, prototypes and optimizer are left out."""
    student, teacher = contents["student"], contents["teacher"]
    encoder = {name: array for name, array in teacher.items() if "backbone" in name}
    other_head = encoder | {"module.head.mlp.0.weight": np.zeros((3, 3), np.float32)}
    for number, (value, seed, parts) in enumerate([
        ({"teacher": teacher, "student": student}, 2, {"encoder", "head"}),
        ({"student": student}, 1, {"encoder", "head"}),
        ({"teacher": other_head, "student": student}, 2, {"encoder"}), (encoder, 2, {"encoder"}),
    ]):  # fmt: skip
        torch_files.write(tmp_path / f"{number}.pth", value)
        network, variables, threshold = load_network(tmp_path / f"{number}.pth")
        assert set(variables["params"]) == parts and threshold is None
        assert network.encoder == NETWORK.encoder
        for kind, arrays in variables.items():
            equal(arrays["encoder"], variables_of(seed)[kind]["encoder"])
    log_mel = np.random.default_rng(0).normal(size=(60, 80)).astype(np.float32)
    expected = SpeakerEncoder(NETWORK, variables_of(2)).embed_log_mels([log_mel])
    np.testing.assert_array_equal(SpeakerEncoder(network, variables).embed_log_mels([log_mel]), expected)
    torch_files.write(tmp_path / "none.pth", {"layer.weight": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match="has neither teacher nor student nor a backbone, only layer.weight"):
        load_network(tmp_path / "none.pth")


GOLDEN = {"sdpn_2024": "sdpn.pth", "rdino": "rdino.pth", "ecapa_3dspeaker": "ecapa_tdnn.bin",
          "ecapa_speechbrain": "embedding_model.ckpt", "resnet34_wespeaker": "avg_model.pt",
          "resnet_bottleneck_wespeaker": "avg_model.pt", "campplus_3dspeaker": "campplus_cn_common.bin",
          "ecapa_wespeaker": "avg_model.pt", "eres2netv2_3dspeaker": "pretrained_eres2netv2.ckpt",
          "eres2netv2_w24s4ep4_3dspeaker": "pretrained_eres2netv2w24s4ep4.ckpt"}  # fmt: skip
NAMES = {"resnet": resnet_names, "campplus": campplus_names, "ecapa_wespeaker": ecapa_wespeaker_names,
         "ecapa": sdpn_names, "eres2net": eres2net_names}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_encoders(golden, name):
    """Files as their authors publish them: without prototypes, with other heads, names, features and NumPy numbers."""
    folder = golden / "encoders" / name
    encoder = SpeakerEncoder.load(folder / GOLDEN[name])
    with np.load(folder / "expected.npz") as expected:
        for i in range(2):
            given = expected[f"features_{i}"]
            given = np.log(given.T + features.DEFAULT.floor) if len(given) == 80 else given
            truth = expected[f"embedding_{i}"]
            atol = 1e-5 * np.abs(truth).max()
            np.testing.assert_allclose(encoder.embed_log_mels([given])[0], truth, atol=atol)
            np.testing.assert_allclose(encoder.embed((expected[f"waveform_{i}"], 16000)), truth, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in GOLDEN if name not in ("sdpn_2024", "rdino")])
def test_golden_encoders_in_float64_and_in_training(golden, name):
    """Two sequences of different lengths in one batch; and a batch in training, after which statistics have moved."""
    folder = golden / "encoders" / name
    sizes, variables = sdpn_names.read_encoder(folder / GOLDEN[name])
    expected = dict(np.load(folder / "expected.npz"))
    with jax.enable_x64(True):
        network = network_of({**sizes, "dtype": "float64"}).bind(
            jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables)
        )
        alone, of_encoder = network.encoder.unbind()
        lengths = np.array([len(expected[f"features_{i}"]) for i in range(2)])
        padded = np.zeros((2, lengths.max(), 80))
        for i, length in enumerate(lengths):
            padded[i, :length] = expected[f"features_{i}"]
        # Convolutions over frequency and time take seconds in float64, unless optimised.
        options = {"xla_backend_optimization_level": int(name.startswith(("resnet", "eres2net")))}
        embed = jax.jit(lambda v, x, lengths: alone.apply(v, x, False, lengths), compiler_options=options)
        for i, found in enumerate(embed(of_encoder, padded, lengths)):
            np.testing.assert_allclose(found, expected[f"embedding_{i}"], atol=1e-9)
        train = jax.jit(lambda v, x: alone.apply(v, x, True, mutable=["batch_stats"]), compiler_options=options)
        found, after = train(of_encoder, expected["train_features"])
        np.testing.assert_allclose(found, expected["train_embedding"], atol=1e-8)
        names = next(module for part, module in NAMES.items() if part in name)
        statistics = flatten_dict({"batch_stats": {"encoder": after["batch_stats"]}})
        for path, array in statistics.items():
            theirs = names.released_name(path).removeprefix("backbone.")
            np.testing.assert_allclose(array, expected[f"after_train/{theirs}"], atol=1e-8)


def published(sizes: dict, names) -> tuple[dict, dict]:
    """Random arrays as another toolkit publishes them, and the encoder's variables that they are."""
    rng = np.random.default_rng(0)
    shapes = flatten_dict(jax.eval_shape(lambda: initial_variables(network_of(sizes), 0)))
    arrays = {path: rng.random(x.shape, np.float32) for path, x in shapes.items() if path[1] == "encoder"}
    back = {4: (3, 2, 0, 1), 3: (2, 1, 0), 1: (0,)}
    state = {names.released_name(path): array.transpose(back[array.ndim]) for path, array in arrays.items()}
    return state, unflatten_dict(arrays)


def test_resnets_that_do_not_fit(tmp_path):
    sizes = {"encoder": "resnet34", "front_end": "wespeaker", "width": 4, "embedding_size": 6, "blocks": [1] * 4}
    state, expected = published(sizes, resnet_names)
    state["seg_1.weight"] = state["seg_1.weight"][..., 0]
    torch_files.write(tmp_path / "good.pt", state | {"projection.weight": np.zeros((9, 9), np.float32)})
    network, variables, _ = load_network(tmp_path / "good.pt")
    assert network.encoder.blocks == (1, 1, 1, 1) and network.embedding_size == 6
    equal(variables, expected)
    for change, message in [
        ({"seg_2.weight": np.zeros((6, 6), np.float32)}, "1 arrays are missing, unknown or .* first seg_2.weight"),
        ({"seg_1.weight": np.zeros((6, 7), np.float32)}, "1 arrays .* first seg_1.weight"),
        ({"bn1.weight": np.full(4, np.nan, np.float32)}, "bn1.weight holds NaN"),
        ({"layer1.999.conv1.weight": np.zeros((4, 4, 3, 3), np.float32)}, "model.blocks has more than 100"),
    ]:
        refused_in_one_line(tmp_path / "bad.pt", state | change, message)


CAMPLUS = {"encoder": "campplus", "blocks": [1, 2, 1], "growth": 4, "bottleneck_factor": 2, "width": 4, "initial": 6,
           "embedding_size": 8}  # fmt: skip


@pytest.mark.parametrize("classifier, front_end", [("projection.weight", "wespeaker"), (None, "kaldi80")])
def test_who_published_a_campplus_tells_its_features(tmp_path, classifier, front_end):
    state, expected = published(CAMPLUS, campplus_names)
    torch_files.write(tmp_path / "a.pt", state | ({classifier: np.zeros((9, 9), np.float32)} if classifier else {}))
    network, variables, _ = load_network(tmp_path / "a.pt")
    assert network == network_of(CAMPLUS | {"front_end": front_end})
    equal(variables, expected)


def test_campplus_that_does_not_fit(tmp_path):
    state, _ = published(CAMPLUS, campplus_names)
    path, layer = tmp_path / "a.pt", "xvector.block2.tdnnd2.cam_layer"
    zeros = lambda *shape: np.zeros(shape, np.float32)  # noqa: E731
    for change, message in [
        ({f"{layer}.linear1.bias": None}, f"1 arrays are missing, unknown or .* first {layer}.linear1.bias"),
        ({f"{layer}.linear1.weight": zeros(4, 9, 1)}, f"1 arrays .* first {layer}.linear1.weight"),
        ({"head.conv1.weight": zeros(3, 3)}, "[0-9]+ arrays .* first head"),
        ({"xvector.block1.tdnnd" + "9" * 5000 + ".x": zeros(3)}, "1 arrays .* first xvector.block1.tdnnd9999"),
        ({"xvector.block1.tdnnd999.x": zeros(3)}, "model.blocks has more than 100"),
        (
            {"xvector.block1.tdnnd1.cam_layer.linear_local.weight": zeros(0, 8, 3)},
            "is not CAM.. as 3D-Speaker and WeSpeaker publish it",
        ),
        ({"xvector.tdnn.linear.weight": zeros()}, "[0-9]+ arrays are missing, unknown or of another shape"),
        ({"xvector.dense.nonlinear.batchnorm.running_var": np.full(8, np.inf, np.float32)}, "running_var holds NaN"),
    ]:
        refused_in_one_line(path, state | change, message)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="a.pt"):
        load_network(path)


OF_WESPEAKER = {"encoder": "ecapa_wespeaker", "front_end": "wespeaker", "width": 8, "se_bottleneck": 4, "attention": 6,
                "embedding_size": 5}  # fmt: skip


@pytest.mark.parametrize("global_context, embedding_norm", [(True, False), (False, True)])
def test_ecapas_of_wespeaker(tmp_path, global_context, embedding_norm):
    """From their folder, the classifier left out; what they are is seen in the arrays, not in config.yaml."""
    sizes = OF_WESPEAKER | {"global_context": global_context, "embedding_norm": embedding_norm}
    state, expected = published(sizes, ecapa_wespeaker_names)
    linear = [name for name in state if "linear" in name and "pool" not in name and "weight" in name]
    state |= {name: state[name][..., 0] for name in linear}
    state |= {"bn.num_batches_tracked": np.array(3), "projection.weight": np.zeros((9, 5), np.float32)}
    torch_files.write(tmp_path / "avg_model.pt", state)
    network, variables, _ = load_network(tmp_path)
    assert network == network_of(sizes)
    equal(variables, expected)
    assert ("bn2.running_mean" in state) == embedding_norm


def test_ecapas_of_wespeaker_that_do_not_fit(tmp_path):
    state, _ = published(OF_WESPEAKER, ecapa_wespeaker_names)
    path, block = tmp_path / "avg_model.pt", "layer3.se_res2block.1"
    zeros = lambda *shape: np.zeros(shape, np.float32)  # noqa: E731
    for change, message in [
        ({f"{block}.convs.2.bias": None}, f"1 arrays are missing, unknown or .* first {block}.convs.2.bias"),
        ({f"{block}.convs.2.weight": zeros(1, 2, 3)}, f"1 arrays .* first {block}.convs.2.weight"),
        ({f"{block}.convs.7.weight": zeros(1, 1, 3)}, f"1 arrays .* first {block}.convs.7.weight"),
        ({"pool.linear1.weight": zeros(6, 4607, 1)}, "1 arrays .* first pool.linear1.weight"),
        ({name: None for name in state if name.startswith("pool.")}, "4 arrays .* first pool.linear1.bias"),
        ({"layer1.conv.weight": zeros(12, 80, 5)}, "no network that can be built: model.width is no multiple of 8"),
        ({"layer1.conv.weight": zeros()}, "[0-9]+ arrays are missing, unknown or of another shape"),
        ({"linear.weight": zeros(10**5, 0)}, "model.embedding_size is no whole number from 1 to 65536"),
        ({"bn.running_var": np.full(3072, np.nan, np.float32)}, "bn.running_var holds NaN"),
        ({"layer2.x": 3}, "1 entries that are no tensors, such as layer2.x"),
    ]:
        refused_in_one_line(path, state | change, message)
    whole = path.read_bytes()
    for kept in (len(whole) // 2, len(whole) - 1000, 100):
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError) as told:
            load_network(tmp_path)
        assert str(path) in str(told.value) and "\n" not in str(told.value)


ERES2NET = {"encoder": "eres2netv2", "front_end": "kaldi80", "embedding_size": 6, "blocks": (1, 2, 1, 1)}


@pytest.mark.parametrize("sizes, name", [
    ({"width": 8}, "eres2netv2"), ({"width": 16, "base_width": 31, "scale": 3}, "eres2netv2"),
    ({"width": 8, "base_width": 24, "scale": 4, "expansion": 4}, "eres2netv2_w24s4ep4"),
])  # fmt: skip
def test_names_and_shapes_tell_the_sizes_of_an_eres2net(tmp_path, sizes, name):
    state, expected = published(ERES2NET | sizes, eres2net_names)
    state["seg_1.weight"] = state["seg_1.weight"][..., 0]
    assert eres2net_names.sizes_of(state)["encoder"] == name
    torch_files.write(tmp_path / "a.ckpt", state)
    network, variables, _ = load_network(tmp_path / "a.ckpt")
    assert network == network_of(ERES2NET | sizes)
    equal(variables, expected)


def test_eres2nets_that_do_not_fit(tmp_path):
    good, _ = published(ERES2NET | {"width": 4, "blocks": (1, 1, 1, 1)}, eres2net_names)
    path = tmp_path / "a.ckpt"
    missing = ["conv1.weight", "layer2.0.conv3.weight", "layer4.0.bn1.bias"]
    for change, message in [
        *(({name: None}, f"first {name}$") for name in missing),
        ({"seg_1.weight": None}, "model.embedding_size is no whole number from 1"),
        ({"layer1.0.convs.1.weight": None}, "67 arrays .* first layer1.0.bns.1.bias$"),
        ({"seg_2.weight": np.zeros((6, 6), np.float32)}, "1 arrays are missing, unknown or .* first seg_2.weight"),
        ({"layer3_ds.weight": np.zeros((64, 64, 1, 1), np.float32)}, "1 arrays .* first layer3_ds.weight"),
        ({"fuse34.local_att.0.weight": np.zeros(3, np.float32)}, "1 arrays .* first fuse34.local_att.0.weight"),
        ({"bn1.weight": np.full(4, np.nan, np.float32)}, "bn1.weight holds NaN"),
        ({"conv1.weight": np.zeros((65536, 1, 1, 1), np.float32)}, "model.expansion is no whole number from 1 to 100"),
        ({f"layer{i}.{name}": np.zeros(1, np.float32) for i, name in ((1, "0.convs.9."), (4, "60."))},
         "model.blocks and model.scale make more than 500 groups"),
        ({"conv1.weight": np.zeros((1, 1, 3, 3), np.float32), "layer4.0.convs.0.weight": np.zeros((6, 6, 3, 3))},
         "is less than 64: groups without channels"),
        ({"layer1.0.convs.999.weight": np.zeros(1, np.float32)}, "model.scale is no whole number from 1 to 100"),
        ({f"layer4.{'9' * 5000}.bn1.weight": np.zeros(1, np.float32)}, "1 arrays .* first layer4.9999"),
        ({"layer4.0.convs.0.weight": np.zeros((0, 3, 3, 3), np.float32)}, "model.base_width is no whole number from 1"),
    ]:  # fmt: skip
        refused_in_one_line(path, good | change, message)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(UserError, match="a.ckpt"):
        load_network(path)


def test_another_toolkit_s_encoder_is_heard_by_every_command(golden, tmp_path):
    """Also from SpeechBrain's folder; shards hold features that it does not hear."""
    folder = golden / "encoders" / "ecapa_speechbrain"
    soundfile.write(tmp_path / "a.wav", np.load(folder / "expected.npz")["waveform_0"], 16000)
    written = corpus.embed_corpus([tmp_path / "a.wav"], tmp_path / "e.npz", folder)
    truth = np.load(folder / "expected.npz")["embedding_0"]
    assert written.dimension == len(truth)
    np.testing.assert_allclose(np.load(tmp_path / "e.npz")["embeddings"][0], truth, atol=1e-5 * np.abs(truth).max())
    with pytest.raises(UserError, match="holds features of SDPN, this model hears those of speechbrain"):
        next(corpus.read_part(corpus.Part(shard=tmp_path), corpus.Notes(), front_end="speechbrain"))


def test_a_run_is_not_overwritten(tmp_path, contents):
    torch_files.write(tmp_path / "a.pth", contents)
    converted.to_workdir(tmp_path / "a.pth", tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_text()
    with pytest.raises(UserError, match="holds a run already"):
        converted.to_workdir(tmp_path / "a.pth", tmp_path / "run")
    assert (tmp_path / "run" / "config.json").read_text() == before
    assert json.loads(before)["num_prototypes"] == PROTOTYPES


@pytest.mark.parametrize("source", ["mel_power", "waveform"])
def test_golden_checkpoint(golden, source):
    """A checkpoint of the released script hears a recording as the released code does."""
    expected = np.load(golden / "checkpoint_expected.npz")
    with torch_file.opened(golden / "checkpoint.pth") as contents:
        sizes, variables = sdpn_names.from_released(contents["teacher"])
        assert contents["epoch"] == 3
    if source == "mel_power":
        log_mel = np.log(expected["mel_power"].T + features.DEFAULT.floor)
    else:
        log_mel = features.log_mel(expected["waveform"])
    outputs = network_of(sizes).apply(variables, log_mel[None].astype(np.float32), False)
    for name, output in zip(("teacher_embedding", "teacher_projection"), outputs, strict=True):
        error = np.abs(output - expected[name]).max() / np.abs(expected[name]).max()
        assert error < 1e-5


def test_the_type_of_the_steps_stays_with_the_run(tmp_path):
    sizes = SIZES | {"dtype": "bfloat16", "remat": True}
    checkpoint.write_config(tmp_path / "run", {"model": sizes, "batch_size": 8, "data_dir": "gone"})
    with checkpoint.manager(tmp_path / "run") as checkpoints:
        checkpoint.save(checkpoints, 5, {"teacher": variables_of(0)}, {})
        checkpoints.wait_until_finished()
    export.export_model(tmp_path / "run", tmp_path / "model")
    exported, read = model_folder.read_model(tmp_path / "model")[0], run.read_network(tmp_path / "run")[0]
    assert exported == read == network_of(SIZES | {"dtype": "float32", "remat": False})


@pytest.mark.parametrize("source", ["ecapa_3dspeaker/ecapa_tdnn.bin", "rdino/rdino.pth", "resnet34_wespeaker"])
def test_an_encoder_alone_becomes_a_model_folder(golden, tmp_path, source):
    """Its features travel with it: the folder's embeddings are the source's."""
    source = golden / "encoders" / source
    assert sdpn("convert", f"--input={source}", f"--output={tmp_path / 'model'}").returncode == 0
    folder = source if source.is_dir() else source.parent  # of its test vectors
    vectors = np.load(folder / "expected.npz")
    encoder, before = SpeakerEncoder.load(tmp_path / "model"), SpeakerEncoder.load(source)
    assert encoder.fingerprint() == before.fingerprint()
    truth = vectors["embedding_0"]
    embedding = encoder.embed((vectors["waveform_0"], 16000))
    np.testing.assert_allclose(embedding, truth, atol=1e-4 * np.abs(truth).max())
    card = (tmp_path / "model" / "README.md").read_text()
    assert "of another toolkit" in card and "without speaker labels" not in card
    found, about = beginning.read(tmp_path / "model", "teacher")
    assert "head" not in found["teacher"]["params"] and "converted from" in about["history"]
