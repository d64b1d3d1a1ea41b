"""Model folders, results and runs of strangers: whatever their files say, there is one line."""

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
import random_variables
import safetensors.numpy
from mutations import mutated

from sdpn_jax.errors import UserError
from sdpn_jax.models.network import network_of
from sdpn_jax.weights import checks, export, model_folder, run, sdpn_names
from sdpn_jax.weights.load import load_network

SIZES = {
    "channels": [16, 16, 16, 16, 24], "se_bottleneck": 8, "attention": 8, "embedding_size": 12, "hidden_size": 20,
    "projection_size": 10, "dtype": "float32", "remat": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def variables() -> dict:
    return random_variables.of_network(network_of(SIZES))


@pytest.fixture
def model(tmp_path, variables):
    folder = tmp_path / "model"
    model_folder.write_model(folder, SIZES, variables, {"weights": "random"}, 0.5, "CC0-1.0")
    return folder


def one_line(told) -> str:
    message = str(told.value)
    assert message.isprintable() and len(message) < 600
    return message


def refused(path) -> str:
    with pytest.raises(UserError) as told:
        load_network(path)
    return one_line(told)


def changed(config: dict, field: str, value) -> str:
    """The text of a config of which one field, such as "model.dtype", has another value."""
    outer, _, inner = field.rpartition(".")
    config = config | {outer: config[outer] | {inner: value}} if outer else config | {field: value}
    return json.dumps(config)


@pytest.mark.parametrize(
    "field, values",
    [
        ("threshold", [float("nan"), float("inf"), 1.5, -2, "0.5", True, [0.5], 10**400]),
        ("model.channels", [7, [16] * 4, [16] * 6, [16, 16, 16, 16, 10**9], [16, 12, 16, 16, 24], [16, 16, 16, 16, 2.0],
                            [True] * 5, [[16]] * 5, None, {}, [0, 16, 16, 16, 24], [16, -8, 16, 16, 24]]),
        ("model.embedding_size", [0, -1, 10**9, 10**30, 12.0, "12", None, True]),
        ("model.hidden_size", [65537]),
        ("model.dtype", ["int8", "float64", "object", "complex64", None, ["float32"], 3, "x" * 10**5]),
        ("model.remat", [1, "yes", None]),
        ("model.global_context", [1, "yes", None]),
        ("model.encoder", ["resnet", [], 3, None, "x" * 10**5]),
        ("model.front_end", ["kaldi", [], {}, None]),
        ("model.width", [-1, 65537, 8.0, "8", None]),
        ("model.name", ["x"]),
        ("model.parent", [None]),
        ("model", [3, None, [], "x"]),
        ("model_type", ["bert", None, []]),
        ("features", [None, [], {"sample_rate": 8000}]),
        ("features.hop", [80, None]),
        ("features.more", [1]),
        ("about", [None, [], {"a": {}}, {"a": None}]),
        ("more\x1b[31m\n", [1]),
    ],
)  # fmt: skip
def test_configs_that_do_not_fit(model, field, values):
    path = model / "config.json"
    config = json.loads(path.read_text())
    for value in values:
        path.write_text(changed(config, field, value))
        message = refused(model)
        assert str(path) in message
        assert field.rpartition(".")[2].split("\x1b")[0] in message or "is no number" in message


def test_a_config_without_a_field(model):
    path = model / "config.json"
    config = json.loads(path.read_text())
    for field in config:
        path.write_text(json.dumps({name: value for name, value in config.items() if name != field}))
        assert f"no {field}" in refused(model)


@pytest.mark.parametrize(
    "data, told",
    [
        (b"[" * 100_000, "nests too deep"),
        (b'{"a":' * 100_000, "nests too deep"),
        (b" " * (1 << 20) + b"{}", "more than 1 MB"),
        (b"NaN", "NaN"),
        (b'{"threshold": 1e999}', "beyond"),
        (b"1" * 5000, "config"),
        (b"\xff\xfe{}", "config"),
        (b"", "config"),
        (b"3", "no object"),
    ],
)
def test_json_that_is_no_config(model, data, told):
    (model / "config.json").write_bytes(data)
    assert told in refused(model)


def test_sizes_are_compared_before_anything_is_made(model):
    """A network of the largest sizes would take terabytes."""
    path = model / "config.json"
    largest = {name: checks.MOST_SIZE for name in checks.SIZES} | {"channels": [checks.MOST_SIZE] * 5}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model": largest}))
    assert "of another shape" in refused(model)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(model, variables, bad, tmp_path):
    path, name = model / "model.safetensors", "params/encoder/embedding/bias"
    arrays = safetensors.numpy.load_file(path)
    arrays[name][3] = bad
    safetensors.numpy.save_file(arrays, path)
    assert f"array {name} holds NaN" in refused(model)
    state = sdpn_names.to_released(variables)
    state["backbone.fc.conv.bias"] = state["backbone.fc.conv.bias"] + bad
    with pytest.raises(UserError, match=r"array backbone.fc.conv.bias holds NaN"):
        sdpn_names.from_released(state, "a.pth")


@pytest.mark.filterwarnings("error")
def test_types_of_weights(model):
    path, name = model / "model.safetensors", "params/encoder/embedding/bias"
    arrays = safetensors.numpy.load_file(path)
    for dtype in (np.float16, jnp.bfloat16, np.float64):
        safetensors.numpy.save_file(arrays | {name: arrays[name].astype(dtype)}, path)
        read = model_folder.read_arrays(path)[name]
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, arrays[name].astype(dtype).astype(np.float32))
    safetensors.numpy.save_file(arrays | {name: np.full_like(arrays[name], 1e300, np.float64)}, path)
    assert "beyond float32" in refused(model)
    for dtype in (np.int32, bool, np.complex64):
        safetensors.numpy.save_file(arrays | {name: arrays[name].astype(dtype)}, path)
        assert f"array {name} is of type" in refused(model)


def header(told: dict | bytes, numbers: bytes = b"") -> bytes:
    text = told if isinstance(told, bytes) else json.dumps(told).encode()
    return struct.pack("<Q", len(text)) + text + numbers


@pytest.mark.parametrize(
    "data",
    [
        b"",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 50 << 20) + b"{}",
        header(b" " * (5 << 20) + b"{}"),
        header(b'{"a":' * 10_000),
        header({"a": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4]}}, b"1234"),
        header({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}),
        header({"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, b"1234"),
        header({"a": {"dtype": "X\n", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"1234"),
        header({"a": 3}),
    ],
)
def test_files_that_are_no_safetensors(model, data, tmp_path):
    for path in (model / "model.safetensors", tmp_path / "a.safetensors"):
        path.write_bytes(data)
    assert "model.safetensors cannot be read" in refused(model)
    assert "a.safetensors cannot be read" in refused(tmp_path / "a.safetensors")


def test_names_and_sizes_of_released_arrays(tmp_path, variables):
    """Sizes are taken from arrays: of nothing, they may be huge; names may be anything."""
    state = sdpn_names.to_released(variables)
    state["backbone.fc.conv.bias"] = np.zeros((10**9, 0), np.float32)
    safetensors.numpy.save_file(state, tmp_path / "a.safetensors")
    assert "embedding_size" in refused(tmp_path / "a.safetensors")
    safetensors.numpy.save_file({"a\x1b[31m\n" + "b" * 10_000: np.zeros(2, np.float32)}, tmp_path / "a.safetensors")
    assert "a\\x1b[31m\\nbbb" in refused(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_mutated_models(model, name):
    rng, whole = np.random.default_rng(0), (model / name).read_bytes()
    begin = whole[:2000]  # where there is something to misunderstand
    for _ in range(150):
        (model / name).write_bytes(mutated(begin, rng) + whole[2000:])
        try:
            model_folder.read_config(model) if name == "config.json" else model_folder.read_arrays(model / name)
        except UserError as error:
            assert "\n" not in str(error)


RESULTS = {"eer_percent": 2.5, "threshold_at_eer": 0.4, "trials": 100, "trials_file": "a.txt"}


@pytest.mark.parametrize(
    "field, values",
    [
        ("eer_percent", [float("nan"), -1, 101, "2", None, 10**400]),
        ("threshold_at_eer", [float("nan"), float("inf"), 2, "0.4", True]),
        ("trials", [0, 1.5, "1", True, 10**400]),
        ("trials_file", [3, None, ["a"]]),
    ],
)
def test_results_that_do_not_fit(tmp_path, field, values):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(RESULTS | {"ways": {}}))
    assert export.read_results(path) == RESULTS
    for value in values:
        path.write_text(json.dumps(RESULTS | {field: value}))
        with pytest.raises(UserError, match=f"{field} is not|is not the results") as told:
            export.read_results(path)
        assert str(path) in one_line(told)


@pytest.mark.parametrize("data", [b"[" * 100_000, b"", b"[]", b"3", b"\xff", b"{}", b"1" * 5000])
def test_files_that_are_no_results(tmp_path, data):
    (tmp_path / "results.json").write_bytes(data)
    with pytest.raises(UserError, match="is not the results.json") as told:
        export.read_results(tmp_path / "results.json")
    one_line(told)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "NaN", '{"seed": -1}', '{"seed": 1e999}', '{"model": 3}', '{"num_prototypes": "7"}',
     '{"batch_size": 0.5}', '{"data_dir": 3}', '{"converted_from": []}', '{"seed": 1' + "0" * 100 + "}", "{}",
     '{"model": {"channels": [16, 16, 16, 16, 1000000000]}}'],
)  # fmt: skip
def test_runs_of_odd_configs(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is (damaged|not the config of a training run)") as told:
        run.read_network(tmp_path, which="untrained")
    one_line(told)


def history(levels: int) -> list:
    entries: list = [{"step": 0}]
    for _ in range(levels):
        entries = [{"step": 1, "origin": {"source": "s", "fingerprint": "f", "step": 1, "history": entries}}]
    return entries


@pytest.mark.parametrize(
    "entries",
    ["[" * 100_000, "{}", '[{"step": NaN}]', '[{"step": -1}]', '[{"step": true}]', '[{"step": 1, "data": 3}]',
     '[{"step": 1, "schedule": []}]', '[{"step": 1, "origin": 3}]', '[{"step": 1, "origin": {"source": 3}}]',
     '[{"step": 1, "origin": {"step": "1"}}]', '[{"step": 1, "origin": {"step": 1, "history": 3}}]',
     json.dumps(history(100))],
)  # fmt: skip
def test_runs_of_odd_histories(tmp_path, entries):
    (tmp_path / "history.json").write_text(entries)
    with pytest.raises(UserError, match=r"history\.json is damaged") as told:
        run.read_history(tmp_path)
    one_line(told)


def test_texts_of_others_stay_in_their_line_of_the_card():
    about = export.facts(
        {"batch_size": 8, "data_dir": "gone"},
        [{"step": 0, "origin": {"source": "a\n# title", "fingerprint": "f"}}],
        "teacher",
        5,
        RESULTS | {"trials_file": "dir/b\nc.txt"},
    )
    assert about["begun from"] == "a?# title (fingerprint f)"
    assert about["equal error rate"] == "2.50 % on 100 trials of b?c.txt"
    with pytest.raises(UserError, match="no data_dir"):
        export.facts({"batch_size": 8}, [], "teacher", 5, None)


def test_negative_variances(model, variables):
    flat = safetensors.numpy.load_file(model / model_folder.WEIGHTS)
    name = next(name for name in flat if name.endswith("/var"))
    safetensors.numpy.save_file(flat | {name: -1 - np.abs(flat[name])}, model / model_folder.WEIGHTS)
    assert "holds negative variances" in refused(model)


def test_nothing_but_a_model_is_written_over(model, variables, tmp_path):
    def write(folder):
        model_folder.write_model(folder, SIZES, variables, {"fact": "a\n---\nb"}, 0.5, "unknown")

    write(model)  # again
    assert "\n---\nb" not in (model / model_folder.CARD).read_text()
    for name, text in (("config.json", '{"batch_size": 4}'), ("config.json", "x"), ("README.md", "my project")):
        folder = tmp_path / f"other{len(text)}"
        folder.mkdir()
        (folder / name).write_text(text)
        with pytest.raises(UserError, match=f"holds (the|a) {name}"):
            write(folder)
        assert [(path.name, path.read_text()) for path in folder.iterdir()] == [(name, text)]
