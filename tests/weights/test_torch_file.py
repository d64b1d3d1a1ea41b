"""Files of torch.save: whole, strange, damaged and hostile ones."""

import pickle
import zipfile
from collections import OrderedDict

import jax.numpy as jnp
import numpy as np
import pytest
import torch_files
from mutations import mutated

from sdpn_jax import arrays
from sdpn_jax.errors import UserError
from sdpn_jax.weights import pickled
from sdpn_jax.weights.torch_file import Tensor, opened

RNG = np.random.default_rng(0)


def arrays_of(path) -> dict:
    with opened(path) as contents:
        return {name: np.asarray(value) for name, value in contents.items()}


def refused(path) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(UserError) as told, opened(path) as contents:
        {name: np.asarray(value) for name, value in contents.items()}
    message = str(told.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("byteorder", ["little", "big"])
@pytest.mark.parametrize("dtype", sorted(torch_files.STORAGES))
def test_types(tmp_path, dtype, byteorder):
    written = np.array(RNG.integers(0, 100, size=(3, 4)).astype(jnp.dtype(dtype)))
    torch_files.write(tmp_path / "a.pth", {"a": written}, byteorder)
    read = arrays_of(tmp_path / "a.pth")["a"]
    assert read.dtype == written.dtype
    np.testing.assert_array_equal(read, written)


def test_tensors_that_are_windows_of_one_storage(tmp_path):
    """Transposed, strided, offset, a single element, an empty one: each is written as PyTorch writes its views."""
    base = np.arange(5 * 7 * 3, dtype=np.float32).reshape(5, 7, 3).copy()
    views = {"all": base, "t": base.T, "some": base[1:4:2, ::3], "one": base[4, 6, 2:], "empty": base[:, 7:]}
    torch_files.write(tmp_path / "views.pth", views)
    with zipfile.ZipFile(tmp_path / "views.pth") as file:
        assert [name for name in file.namelist() if "/data/" in name] == ["checkpoint/data/0"]
    read = arrays_of(tmp_path / "views.pth")
    for name, view in views.items():
        np.testing.assert_array_equal(read[name], view)


def test_what_else_a_checkpoint_holds(tmp_path):
    """Numbers, texts, nested lists; a parameter; versions of modules; an optimizer whose rate is NumPy's number."""
    storages = {}
    call = lambda *arguments: torch_files.call(*arguments, storages=storages)  # noqa: E731
    weight = np.ones(3, np.float32)
    parameter = call("torch._utils _rebuild_parameter", weight, True, OrderedDict())
    with_versions = torch_files.emit(OrderedDict(a=1), storages) + torch_files.emit({"_metadata": {}}, storages) + b"b"
    dtype = call("numpy dtype", "f8", False, True) + torch_files.emit((3, "<", None, None, None, -1, -1, 0), {}) + b"b"
    rate = call("numpy._core.multiarray scalar", dtype, call("_codecs encode", "\0" * 8, "latin1"))
    contents = {"epoch": 7, "name": "é", "optimizer": {"lr": rate, "betas": [0.9, (1, None)]}, "w": parameter}
    torch_files.write(tmp_path / "a.pth", {**contents, "state": with_versions}, more=storages)
    with opened(tmp_path / "a.pth") as read:
        assert read["epoch"] == 7 and read["name"] == "é"
        assert read["optimizer"]["betas"] == [0.9, (1, None)]
        assert read["state"] == {"a": 1}
        np.testing.assert_array_equal(read["w"], weight)


@pytest.mark.parametrize(
    "name", ["os system", "posix system", "builtins eval", "builtins getattr", "subprocess Popen", "torch.nn Module"]
)
def test_a_pickle_that_would_run_something(tmp_path, name):
    marker = tmp_path / "it ran"
    hostile = torch_files.call(name, f"touch '{marker}'", storages={})
    torch_files.write(tmp_path / "a.pth", {"student": hostile})
    assert name.replace(" ", ".") in refused(tmp_path / "a.pth")
    assert not marker.exists()


class Runs:
    """Pickled by Python itself, in each of its protocols."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return exec, (f"open({str(self.marker)!r}, 'w')",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_protocol_runs_anything(tmp_path, protocol):
    marker = tmp_path / "it ran"
    data = pickle.dumps({"student": Runs(marker)}, protocol)
    pickle.loads(data)
    assert marker.exists()
    marker.unlink()
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as file:
        file.writestr("archive/data.pkl", data)
    assert "builtin" in refused(tmp_path / "a.pth")
    assert not marker.exists()


@pytest.mark.parametrize("admitted", ["collections\nOrderedDict", "torch\nFloatStorage", "numpy\ndtype"])
def test_a_pickle_cannot_alter_what_it_may_name(tmp_path, admitted):
    """BUILD, on the name itself, with attributes as a dictionary and as slots."""
    for state in ({"x": 1}, (None, {"x": 1}), (None, {"__call__": 1, "__defaults__": ()})):
        data = f"c{admitted}\n".encode() + torch_files.emit(state, {}) + b"b"
        torch_files.write(tmp_path / "a.pth", {"student": data})
        try:
            with opened(tmp_path / "a.pth"):
                pass
        except UserError as error:
            assert "data.pkl" in str(error)
    torch_files.write(tmp_path / "b.pth", {"a": np.ones(2, np.float32)})
    np.testing.assert_array_equal(arrays_of(tmp_path / "b.pth")["a"], [1, 1])


@pytest.mark.parametrize(
    "offset, shape, strides",
    [
        (0, (5,), (1,)),  # of four elements
        (1, (4,), (1,)),
        (0, (2, 2), (3, 1)),
        (0, (10**12,), (0,)),
        (-1, (2,), (1,)),
        (3, (2,), (-1,)),
        (0, (2, 2), (1,)),
        (0, ("2",), (1,)),
        (0, (1,) * 40, (1,) * 40),
        (0, (2.0,), (1,)),
    ],
)
def test_windows_beyond_the_storage(tmp_path, offset, shape, strides):
    tensor = torch_files.tensor_of("0", "float32", 4, offset, shape, strides, {})
    torch_files.write(tmp_path / "a.pth", {"a": tensor}, more={"0": np.zeros(4, np.float32)})
    assert "data.pkl" in refused(tmp_path / "a.pth")


def test_a_tensor_is_not_altered_after_it_was_checked(tmp_path):
    tensor = torch_files.tensor_of("0", "float32", 4, 0, (4,), (1,), {})
    for state in ({"shape": (10**6,)}, (None, {"shape": (10**6,)}), [0, (10**6,)]):
        data = tensor + torch_files.emit(state, {}) + b"b"
        torch_files.write(tmp_path / "a.pth", {"a": data}, more={"0": np.zeros(4, np.float32)})
        assert arrays_of(tmp_path / "a.pth")["a"].shape == (4,)


def test_storages_that_are_short_or_missing(tmp_path):
    tensor = torch_files.tensor_of("0", "float32", 4, 0, (4,), (1,), {})
    torch_files.write(tmp_path / "a.pth", {"a": tensor}, more={"0": np.zeros(3, np.float32)})
    assert "storage 0" in refused(tmp_path / "a.pth")
    torch_files.write(tmp_path / "a.pth", {"a": tensor}, more={"0": np.zeros(5, np.float32)})
    assert "20 bytes, where 16 are the most" in refused(tmp_path / "a.pth")
    torch_files.write(tmp_path / "a.pth", {"a": tensor})
    assert "data/0" in refused(tmp_path / "a.pth")


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "whole.pth"
    torch_files.write(path, {"a": RNG.normal(size=1000)})
    return path


@pytest.mark.parametrize("kept", [0.001, 0.1, 0.5, 0.9, 0.99])
def test_cut_short(whole, kept):
    data = whole.read_bytes()
    whole.write_bytes(data[: int(len(data) * kept)])
    assert "copy it again" in refused(whole)


def test_a_changed_byte(whole):
    data = bytearray(whole.read_bytes())
    data[len(data) // 2] ^= 1
    whole.write_bytes(data)
    assert "copy it again" in refused(whole)


@pytest.mark.parametrize("seed", range(30))
def test_random_pickles(tmp_path, seed):
    """Whatever bytes stand in data.pkl, there is one line."""
    rng = np.random.default_rng(seed)
    data = bytearray(b"\x80\x02" + torch_files.emit({"a": np.ones(3), "b": [1, (2.0, "c")]}, {}) + b".")
    for place in rng.integers(2, len(data) - 1, size=3):
        data[place] = rng.choice(np.frombuffer(b"}]()RbtuQ.\x85KMX0cNe", np.uint8))
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as file:
        file.writestr("archive/data.pkl", bytes(data))
    with pytest.raises(UserError), opened(tmp_path / "a.pth"):
        raise UserError("it could be read, by chance")


def test_other_files(tmp_path):
    path = tmp_path / "a.pth"
    assert "No such file" in refused(path)
    assert "directory" in refused(tmp_path)
    for data, told in {
        b"": "is empty",
        b"epoch 3, loss 0.5\n": "begins with b'epoch 3,'",
        pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"...": "before PyTorch 1.6",
        b"\0" * 257 + b"ustar" + b"\0" * 300: "before PyTorch 1.6",
    }.items():
        path.write_bytes(data)
        assert told in refused(path)
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    assert "data.pkl" in refused(tmp_path / "a.npz")
    torch_files.write(path, [1, 2])
    assert "list" in refused(path)


def with_pickle(path, body: bytes, more: dict | None = None) -> str:
    """The line with which a file of this pickle is refused."""
    torch_files.write(path, body, more=more)
    return refused(path)


def shared(levels: int) -> bytes:
    """The instructions for pairs of one pair, and so on: to look at every element takes 2 ** levels steps."""
    return b")" + b"".join(bytes([ord("q"), i, ord("h"), i, 0x86]) for i in range(levels))


def item(key: bytes, value: bytes = b"N") -> bytes:
    return b"}" + key + value + b"s"


A = b"X\x01\0\0\0a"  # the text "a"
PICKLES = {
    "100 deep": [
        item(A, b")" + b"\x85" * 200_000),
        item(A, b"]" * 200 + b"a" * 199),
        item(A, (b"}" + A) * 200 + b"N" + b"s" * 200),
    ],
    "key that is a": [
        item(b")"),
        item(b")" + b"\x85" * 50),
        item(shared(60)),
        item(b"]"),
        item(b"ctorch\nFloatStorage\n"),
        b"}(" + shared(60) + b"Nu",
        b"(" + shared(60) + b"Nd",
        item(b"\x8a\x09" + b"\1" * 9),  # of integers those beyond 64 bits
    ],
    "a storage that is not": [item(A, shared(60) + b"Q"), item(A, b"]Q")],
    "no storage": [item(A, b"(" + shared(60) + b"N" * 4 + b"tQ"), item(A, b"(X\x07\0\0\0storage" + b"N" * 4 + b"tQ")],
    "a call of a": [item(A, b")" + shared(60) + b"R"), item(A, b"ctorch\nSize\n]R")],
    "arguments that are not its own": [
        item(A, b"ccollections\nOrderedDict\n(" + shared(60) + b"tR"),
        item(A, b"ctorch._utils\n_rebuild_parameter\n(" + shared(60) + b"tR"),
        item(A, b"ctorch._utils\n_rebuild_tensor_v2\n)R"),
        item(A, b"ctorch\nFloatStorage\n)R"),
    ],
    "no tensor": [item(A, b"ctorch._utils\n_rebuild_tensor_v2\n(" + shared(60) + b"K\0))tR")],
    "remembered": [item(A, b"Nr\xff\xff\xff\x7f"), item(A, b"Np99999999999999\n"), item(A, b"h\x07")],
    "holds itself": [b"]q\0h\0a", b"}q\0" + A + b"h\0s"],
    "no complete": [item(A, b"]q\0") + A + b"h\0Nas", b"}q\0]h\0ah\0" + A + b"Ns", b"NNa", b"NNNs"],
    "which PyTorch does not write": [
        b"ctorch\nSize\n)\x81",
        b"(ctorch\nSize\no",
        b"\x8f(N\x90",
        b"\x82\x01",
        b"N2",
        b"N0",
        b"Pid\n",
        b"\x8b\x01\0\0\0\1",
    ],
    "without a mark": [b"t", b"}u"],
    "without a value": [b"", b"(Nu", b"]N(a", b"\x85", b"b", b"Nb", b"R", b"q\0"],
    "key without a value": [b"}(Nu"],
    "name of an import": [b"NN\x93"],
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("told, body", [(told, body) for told, bodies in PICKLES.items() for body in bodies])
def test_pickles_that_torch_save_never_writes(tmp_path, told, body):
    """Each would crash Python's own reader, keep it busy for years, eat memory, or is none."""
    assert told in with_pickle(tmp_path / "a.pth", body)


@pytest.mark.timeout(30)
def test_values_that_nobody_looks_at_may_be_shared(tmp_path):
    torch_files.write(tmp_path / "a.pth", item(A, shared(60)) + shared(60) + b"b")
    with opened(tmp_path / "a.pth") as contents:
        assert len(contents["a"]) == 2


def test_a_pickle_within_bounds(tmp_path, monkeypatch):
    torch_files.write(tmp_path / "a.pth", {"a": [1] * 100})
    for bound in ("MOST_BYTES", "MOST_INSTRUCTIONS"):
        with monkeypatch.context() as patch:
            patch.setattr(pickled, bound, 100)
            assert "data.pkl" in refused(tmp_path / "a.pth")
    assert with_pickle(tmp_path / "b.pth", item(A, b"X\xff\xff\xff\x7fa"))
    assert with_pickle(tmp_path / "b.pth", item(A, b"\x8d" + b"\xff" * 7 + b"\x7fa"))


def test_messages_hold_little_of_a_file(tmp_path):
    name = b"os\x1b[31m" + b"m" * 100_000
    told = with_pickle(tmp_path / "a.pth", b"c" + name + b"\nsystem\n)R")
    assert len(told) < 500
    assert told.isprintable()
    assert "os\\x1b[31mmm" in told


@pytest.mark.parametrize(
    "size, key, told", [(10**9, "0", "cannot hold"), (-1, "0", "cannot hold"), (4, "../0", "number")]
)
def test_storages_that_cannot_be(tmp_path, size, key, told):
    tensor = torch_files.tensor_of(key, "float32", size, 0, (4,), (1,), {})
    assert told in with_pickle(tmp_path / "a.pth", item(A, tensor), {"0": np.zeros(4, np.float32)})


def test_tensors_that_hold_more_than_the_file(tmp_path):
    """One storage, many windows of all of it; and one of nothing, of huge sizes."""
    base = np.zeros(10_000, np.float32)
    torch_files.write(tmp_path / "a.pth", {str(i): base[:] for i in range(3)})
    assert len(arrays_of(tmp_path / "a.pth")) == 3
    torch_files.write(tmp_path / "a.pth", {str(i): base[:] for i in range(100)})
    assert "far more than the file" in refused(tmp_path / "a.pth")
    for shape in ((2**60, 0), (2**40, 2**40, 0)):
        tensor = torch_files.tensor_of("0", "float32", 4, 0, shape, (0,) * len(shape), {})
        assert "huge" in with_pickle(tmp_path / "a.pth", item(A, tensor), {"0": np.zeros(4, np.float32)})


def test_packed_members(tmp_path):
    for packed in ("data.pkl", "data/0"):
        torch_files.write(tmp_path / "a.pth", {"a": RNG.normal(size=1000)})
        with zipfile.ZipFile(tmp_path / "a.pth") as file, zipfile.ZipFile(tmp_path / "b.pth", "w") as other:
            for name in file.namelist():
                how = zipfile.ZIP_DEFLATED if name.endswith(packed) else zipfile.ZIP_STORED
                other.writestr(name, file.read(name), how)
        assert f"{packed} (packed" in refused(tmp_path / "b.pth")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_files_that_torch_save_never_writes(tmp_path, monkeypatch):
    torch_files.write(tmp_path / "a.pth", {"a": np.ones(1000)})
    with zipfile.ZipFile(tmp_path / "a.pth", "a") as file:
        for i in range(100):
            file.writestr(f"checkpoint/more/{i}", b"")
    assert len(arrays_of(tmp_path / "a.pth")) == 1
    monkeypatch.setattr(arrays, "MOST_TABLE", 3000)
    assert "table of contents" in refused(tmp_path / "a.pth")
    torch_files.write(tmp_path / "a.pth", {"a": np.ones(1000)})
    with zipfile.ZipFile(tmp_path / "a.pth", "a") as file:
        file.writestr("checkpoint/data.pkl", b"\x80\x02}.")
    assert "two members of one name" in refused(tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as file:
        file.writestr("checkpoint/data.pkl", b"\x80\x02}.", zipfile.ZIP_LZMA)
    assert "unusual" in refused(tmp_path / "a.pth")


def test_members_that_overlap(tmp_path):
    """Ten entries of the table name the same bytes."""
    torch_files.write(tmp_path / "a.pth", {str(i): np.ones(1000) for i in range(10)})
    with zipfile.ZipFile(tmp_path / "a.pth", "a") as file:
        first = file.getinfo("checkpoint/data/0")
        for i in range(100):
            again = zipfile.ZipInfo(f"checkpoint/more/{i}")
            again.header_offset, again.CRC = first.header_offset, first.CRC
            again.file_size = again.compress_size = first.file_size
            file.filelist.append(again)
        file._didModify = True
    assert "overlap" in refused(tmp_path / "a.pth")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("seed", range(5))
def test_mutated_files(tmp_path, seed):
    """Bytes changed, cut and doubled: a file is read, or refused in one line."""
    rng, path = np.random.default_rng(seed), tmp_path / "a.pth"
    torch_files.write(path, {"a": np.ones(3), "s": {"b": [1, (2.0, "c")], "d": np.zeros((2, 2), np.float32)}})
    whole = path.read_bytes()
    for _ in range(100):
        path.write_bytes(mutated(whole, rng))
        try:
            with opened(path) as contents:
                [np.asarray(value) for value in contents.values() if isinstance(value, Tensor)]
        except UserError as error:
            assert "\n" not in str(error)
