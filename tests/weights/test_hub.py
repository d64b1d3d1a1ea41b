"""Models of the hubs: what is downloaded, found again without them, and refused."""

import importlib.util
import sys
from pathlib import Path

import hub_server
import jax
import numpy as np
import pytest
import torch_files
from commands import sdpn

from sdpn_jax import SpeakerEncoder, storage
from sdpn_jax.errors import UserError
from sdpn_jax.models.network import initial_variables, network_of
from sdpn_jax.speaker import corpus, embedder
from sdpn_jax.training import beginning
from sdpn_jax.weights import model_folder, run, sdpn_names
from sdpn_jax.weights.load import load_network, located

SIZES = {
    "channels": [16, 16, 16, 16, 24], "se_bottleneck": 8, "attention": 8, "embedding_size": 12, "hidden_size": 20,
    "projection_size": 10, "dtype": "float32", "remat": False,
}  # fmt: skip


@pytest.fixture(scope="module", params=storage.HUBS)
def scheme(request):
    if importlib.util.find_spec(storage.HUBS[request.param][0]) is None:
        pytest.skip(f"{storage.HUBS[request.param][0]} is not installed")
    return request.param


@pytest.fixture(scope="module")
def variables() -> tuple[dict, dict]:
    """Of two networks, every array random."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(lambda: initial_variables(network_of(SIZES), 0))
    return tuple(jax.tree.map(lambda x: rng.random(x.shape, np.float32), shapes) for _ in range(2))


@pytest.fixture(scope="module")
def server(scheme, variables, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    model_folder.write_model(folder / "m", SIZES, variables[0], {"weights": "random"}, 0.5, "CC0-1.0")
    ours = {path.name: path.read_bytes() for path in (folder / "m").iterdir()}
    for number, arrays in enumerate(variables):
        state = sdpn_names.to_released(arrays)
        torch_files.write(folder / f"{number}.pth", {"student": state, "teacher": state})
    first, second = ((folder / f"{number}.pth").read_bytes() for number in (0, 1))
    with hub_server.serving(folder) as hub:
        hub.repositories = {
            ("owner/folder", ""): ours | {"setup.py": b"raise SystemExit", "figures/a.bin": b"no"},
            ("owner/file", ""): {
                "x.bin": first,
                "config.json": b"{}",
                "modeling.py": b"raise SystemExit",
                "b.mp4": 10**12,
            },
            ("owner/file", "v1.0"): {"x.bin": second},
            ("owner/several", ""): {"small/a.pth": first, "a.pth": first, "b.pth": second, "c.py": b""},
            ("owner/avg", ""): {"avg_model.pt": second, "other.pt": b"no"},
            ("owner/large", ""): {"x.bin": 5 * 10**9},
            ("owner/large_folder", ""): {"config.json": 10**9, "model.safetensors": 35 * 10**8},
            ("owner/sharded", ""): {"model.safetensors": b"no", "a.md": b""},
            ("owner/text", ""): {"x.bin": b"no weights"},
            ("owner/none", ""): {"README.md": b"", "a b.md": b""},
            ("owner/empty", ""): {},
            ("owner/up", ""): {"x.bin": first, "../x.bin": second},
            ("owner/root", ""): {"x.bin": first, "/tmp/x.bin": second},
            ("owner/backslash", ""): {"x.bin": first, "..\\x.bin": second},
            ("owner/steering", ""): {"x.bin": first, "a\x1b[31m.bin": second},
        }
        yield hub


@pytest.fixture
def address(scheme, server):
    """Turns owner/name into an address; what the hub hands out is counted anew."""
    server.handed_out.clear()
    return lambda rest: f"{scheme}://{rest}"


def equal(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def refused(source) -> str:
    with pytest.raises(UserError) as told:
        load_network(source)
    message = str(told.value)
    assert message.isprintable() and len(message) < 700
    return message


def test_a_model_folder_is_there_without_the_hub_too(address, server, variables, caplog):
    source = address("owner/folder")
    _, ours, threshold = load_network(source)
    equal(ours, variables[0])
    assert threshold == 0.5
    assert sorted(server.handed_out) == ["config.json", "model.safetensors"]
    assert "out of reach" not in caplog.text
    load_network(Path(source))
    assert len(server.handed_out) == 2, "what the cache holds is not downloaded again"
    with server.stopped():
        equal(load_network(source)[1], variables[0])
    assert f"{source} is out of reach" in caplog.text


FILES = {  # what is asked for: repository, revision and file that it is
    "owner/file": ("owner/file", "", "x.bin"),
    "owner/file/": ("owner/file", "", "x.bin"),
    "owner/file@v1.0/x.bin": ("owner/file", "v1.0", "x.bin"),
    "owner/several/b.pth": ("owner/several", "", "b.pth"),
    "owner/several/small": ("owner/several", "", "small/a.pth"),
    "owner/avg": ("owner/avg", "", "avg_model.pt"),
}


def test_a_file_by_revision_and_name(address, server):
    def brought(rest: str) -> bool:
        name, revision, file = FILES[rest]
        path = located(address(rest))
        assert path.as_posix().endswith(f"/{file}")
        return path.read_bytes() == server.repositories[name, revision][file]

    assert all(map(brought, FILES))
    assert server.handed_out == ["x.bin", "x.bin", "b.pth", "small/a.pth", "avg_model.pt"]
    with server.stopped():
        assert all(map(brought, FILES))
    server.repositories["owner/avg", ""] = {"avg_model.pt": b"a newer one"}
    assert brought("owner/avg")
    with server.stopped():
        assert brought("owner/avg")


@pytest.mark.parametrize(
    "rest, told",
    [
        ("owner/missing", "the hub has no such repository or revision"),
        ("owner/file@v9", "the hub has no such repository or revision"),
        ("owner/file/y.bin", "is no model, .* there are: b.mp4, config.json, modeling.py, x.bin"),
        ("owner/file/modeling.py", "is no model"),
        ("owner/none", "is no model, .* there are: README.md, a b.md"),
        ("owner/empty", "is no model, .* there are: none"),
        ("owner/sharded", "is no model, .* there are: a.md, model.safetensors"),
        ("owner/several", r"holds 2 files of weights .a.pth, b.pth.: name one of them, such as .*owner/several/a.pth"),
        ("owner/large", "has 5.0 GB; models of at most 4 GB are downloaded"),
        ("owner/large_folder", "has 4.5 GB"),
        ("owner/up", "named ../x.bin, which may lie anywhere: nothing is downloaded"),
        ("owner/root", "named /tmp/x.bin"),
        ("owner/backslash", r"named ..\\x.bin"),
        ("owner/steering", r"named a\\x1b.31m.bin"),
        ("owner", "is no address of a model"),
        ("owner/..", "is no address of a model"),
        ("owner/file@../x.bin", "is no address of a model"),
        ("", "is no address of a model"),
    ],
)
def test_what_is_refused_before_anything_is_downloaded(address, server, rest, told):
    with pytest.raises(UserError, match=told):
        load_network(address(rest))
    refused(address(rest))
    assert server.handed_out == []


def test_a_file_that_is_no_model(address):
    assert "x.bin is not a PyTorch checkpoint, it begins with b'no weigh'" in refused(address("owner/text"))


def test_nothing_in_the_cache_and_no_hub(address, server, scheme):
    with server.stopped():
        assert f"not in the cache of {storage.HUBS[scheme][0]}: look at" in refused(address("owner/never_seen"))


def test_a_hub_that_breaks_off(address, server):
    server.repositories["owner/gone", ""] = {"x.bin": 7}
    assert "owner/gone cannot be downloaded" in refused(address("owner/gone"))


@pytest.mark.parametrize("scheme", ["modelscope"], indirect=True)
def test_a_hub_that_hands_out_more_than_it_lists(address, server, monkeypatch):
    """As when a branch moves on in between; of Hugging Face a commit is asked for."""
    monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_INTEGRITY_RETRY_BACKOFF", 0)
    server.repositories["owner/grown", ""] = {"grown.bin": bytes(1000)}
    server.claimed["grown.bin"] = 10
    assert "owner/grown cannot be downloaded (FileSizeMismatchError" in refused(address("owner/grown"))


def test_a_missing_extra(address, scheme, monkeypatch):
    module, extra = storage.HUBS[scheme]
    monkeypatch.setitem(sys.modules, module, None)
    assert f"needs {module}: pip install 'sdpn_jax[{extra}]'" in refused(address("owner/file"))


def test_every_way_to_name_a_model(address, variables, tmp_path):
    source = address("owner/file")
    network, read, _ = load_network(source)
    equal(read, variables[0])
    fingerprint = embedder.fingerprint(network, variables[0])
    assert SpeakerEncoder.load(Path(source)).fingerprint() == fingerprint
    assert corpus.load_model(source).digest == fingerprint
    found, about = beginning.read(source, "teacher")
    equal(found["student"], variables[0])
    assert (about["source"], about["fingerprint"]) == (source, fingerprint)
    with pytest.raises(UserError, match="init_networks=both, but .* is no training run"):
        beginning.read(source, "both")
    done = sdpn("export", f"--model={source}", f"--output={tmp_path / 'm'}")
    assert done.returncode == 0 and SpeakerEncoder.load(tmp_path / "m").fingerprint() == fingerprint


@pytest.mark.parametrize("scheme", ["hf"], indirect=True)
def test_a_run_is_converted(address, variables, tmp_path):
    source = address("owner/file")
    done = sdpn("convert", f"--input={source}", f"--output={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert run.read_config(tmp_path / "run")["converted_from"] == source
    (tmp_path / "run" / "teacher.bin").write_bytes(b"beside the run, which comes first")
    equal(load_network(tmp_path / "run")[1], variables[0])


def test_other_inputs_do_not_come_from_a_hub(address, server, tmp_path):
    for arguments in (
        ["embed", address("owner/file"), f"--model={tmp_path}", f"--output={tmp_path / 'e.npz'}"],
        ["prepare", f"--input={address('owner/file')}", f"--output={tmp_path / 'shards'}"],
        ["convert", f"--input={address('owner/file')}", f"--output={address('owner/mine')}"],
    ):
        done = sdpn(*arguments)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert "models alone come from a hub, by --model" in done.stderr, arguments
    assert server.handed_out == []


def test_folders_of_this_machine_follow_the_same_rule(variables, tmp_path):
    files = {name: tmp_path / name for name in ("x.bin", "y.ckpt")}
    for arrays, path in zip(variables, files.values(), strict=True):
        torch_files.write(path, sdpn_names.to_released(arrays))
    assert f"holds 2 files of weights (x.bin, y.ckpt): name one of them, such as {files['x.bin']}" in refused(tmp_path)
    files["x.bin"].rename(tmp_path / "x")
    equal(load_network(tmp_path)[1], variables[1])
    equal(beginning.read(tmp_path, "teacher")[0]["teacher"], variables[1])
