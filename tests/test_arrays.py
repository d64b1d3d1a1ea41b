"""NumPy's files: whole ones as NumPy reads them, and those of which nothing fits."""

import io
import zipfile

import numpy as np
import pytest
from mutations import mutated

from sdpn_jax import arrays
from sdpn_jax.arrays import read_npy, read_npz
from sdpn_jax.errors import UserError

RNG = np.random.default_rng(0)
WHOLE = {
    "numbers": RNG.normal(size=(3, 4)),
    "columns": np.asfortranarray(RNG.normal(size=(3, 4))),
    "halves": RNG.normal(size=5).astype(np.float16),
    "swapped": np.arange(5, dtype=">i4"),
    "truths": np.array([True, False]),
    "names": np.array(["a", "é𝄞", ""]),
    "swapped_names": np.array(["a", "é𝄞"]).astype(">U2"),
    "bytes": np.array([b"ab", b""]),
    "one": np.array("x"),
    "none": np.zeros((0, 7)),
}


def refused(path, read=read_npz) -> str:
    with pytest.raises(UserError) as told:
        read(path, "a gallery")
    message = str(told.value)
    assert message.isprintable() and len(message) < 500
    assert str(path) in message and "a gallery" in message
    return message


def header(shape: str = "(2, 3)", descr: str = "'<f8'", more: str = "", version: int = 1) -> bytes:
    """The beginning of an .npy file."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}{more}}}\n".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_whole_files(tmp_path, save):
    save(tmp_path / "a.npz", **WHOLE)
    read = read_npz(tmp_path / "a.npz", "a gallery")
    assert {*read} == {*WHOLE}
    for name, array in WHOLE.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
        np.save(tmp_path / "a.npy", array)
        np.testing.assert_array_equal(read_npy(tmp_path / "a.npy", "a gallery"), array)


def test_more_than_one_part(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "PART", 1000)
    np.savez_compressed(tmp_path / "a.npz", a=np.arange(1003.0))
    np.testing.assert_array_equal(read_npz(tmp_path / "a.npz", "a gallery")["a"], np.arange(1003.0))


@pytest.mark.parametrize(
    "data, told",
    [
        (header() + bytes(47), "in"),
        (header() + bytes(49), "in"),
        (header("(10**15,)") + bytes(48), ""),
        (header("(1000000000000000,)") + bytes(48), "an array (1000000000000000,)"),
        (header("(-2, -3)") + bytes(48), "an array"),
        (header("(1180591620717411303424, 0)"), ""),
        (header(descr="'|O'") + bytes(48), "type object"),
        (header(descr="[('a', '<f8')]") + bytes(48), "type"),
        (header(descr="'<c8'") + bytes(48), "type complex64"),
        (header("(1000000000000,)", descr="'<U0'"), "items of type"),
        (header("(1,)", descr="'<U1'") + b"\xff\xff\xff\xff", "characters that do not exist"),
        (header("(1,)", descr="'>U1'") + b"\x00\x11\x00\x00", "characters that do not exist"),
        (header("(" * 3000), ""),
        (header("-" * 3000 + "1"), ""),
        (header(more=", 'x': 1") + bytes(48), ""),
        (header(more=" " * 5000) + bytes(48), ""),
        (header(version=3) + bytes(48), "version"),
        (header(version=9) + bytes(48), ""),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}", ""),
        (b"", ""),
        (b"\x80\x04N.", ""),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, data, told):
    (tmp_path / "a.npy").write_bytes(data)
    assert told in refused(tmp_path / "a.npy", read_npy)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", data)
    assert told in refused(tmp_path / "a.npz")


def test_a_second_version_of_the_format(tmp_path):
    (tmp_path / "a.npy").write_bytes(header(version=2) + bytes(48))
    assert read_npy(tmp_path / "a.npy", "a gallery").shape == (2, 3)


def test_files_that_would_grow(tmp_path):
    """64 million zeros, packed a thousandfold."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as file, file.open("a.npy", "w") as member:
        member.write(header("(8388608,)"))
        for _ in range(64):
            member.write(bytes(1 << 20))
    assert "grow far beyond" in refused(tmp_path / "a.npz")


def test_members_shorter_than_they_declare(tmp_path):
    """With a checksum of what is there: the rest would be what the memory held before."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", header("(1000,)"))
        file.filelist[0].file_size += 8000
    assert "cut short" in refused(tmp_path / "a.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_of_other_members(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"

    def written(*names, how=zipfile.ZIP_STORED):
        with zipfile.ZipFile(path, "w", how) as file:
            for name in names:
                file.writestr(name, header() + bytes(48))

    written("a.npy", "b\x1b[1m.txt")
    assert "b\\x1b[1m.txt is no array" in refused(path)
    written("a.npy", "a.npy")
    assert "two members" in refused(path)
    written("a.npy", how=zipfile.ZIP_LZMA)
    assert "unusual" in refused(path)
    written(*[f"{i}.npy" for i in range(1001)])
    assert "1001 members" in refused(path)
    monkeypatch.setattr(arrays, "MOST_TABLE", 500)
    assert "table of contents" in refused(path)


def test_what_is_no_file(tmp_path):
    assert "no such file" in refused(tmp_path / "a.npz")
    assert "directory" in refused(tmp_path)
    (tmp_path / "a.npz").write_text("words")
    assert "copy it again" in refused(tmp_path / "a.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_mutated_files(tmp_path, save):
    rng, path, buffer = np.random.default_rng(1), tmp_path / "a.npz", io.BytesIO()
    save(buffer, names=np.array(["a", "b"]), sums=np.ones((2, 3)))
    for _ in range(300):
        path.write_bytes(mutated(buffer.getvalue(), rng))
        try:
            {name: array.tolist() for name, array in read_npz(path, "a gallery").items()}
        except UserError as error:
            assert "\n" not in str(error)
