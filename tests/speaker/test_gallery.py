"""Galleries that do not hold what they should, and two writers of one."""

import numpy as np
import pytest
from mutations import mutated

from sdpn_jax.errors import UserError
from sdpn_jax.speaker import gallery

WHOLE = {
    "names": np.array(["Ann", "Bob 太郎"]),
    "sums": np.array([[1.0, 2.0], [0.5, 0.0]]),
    "counts": np.array([3, 1]),
    "model": np.array("m"),
}


def refused(path, model: str = "m") -> str:
    with pytest.raises(UserError) as told:
        gallery.read(path, model)
    assert "\n" not in str(told.value)
    assert str(path) in str(told.value)
    return str(told.value)


def test_a_whole_one(tmp_path):
    np.savez(tmp_path / "g.npz", **WHOLE)
    read = gallery.read(tmp_path / "g.npz", "m")
    assert read.names == ["Ann", "Bob 太郎"]
    read.enrol("Ann", np.array([[0.0, 3.0]]))
    assert read.counts.tolist() == [4, 1]
    np.testing.assert_array_equal(read.sums[0], [1.0, 3.0])


@pytest.mark.parametrize(
    "other",
    [
        {"names": np.array(["Ann", "Ann"])},
        {"names": np.array(["Ann", "B\x1b[31m"])},
        {"names": np.array(["Ann", "B\nob"])},
        {"names": np.array([1, 2])},
        {"names": np.array([["Ann", "Bob"]])},
        {"names": np.array(["Ann"])},
        {"sums": np.array([[1.0, np.nan], [0.5, 0.0]])},
        {"sums": np.array([[1.0, np.inf], [0.5, 0.0]])},
        {"sums": np.array([[1.0, 4.0], [0.5, 0.0]])},
        {"sums": np.ones((2, 2), np.float32)},
        {"sums": np.ones(2)},
        {"sums": np.ones((3, 2))},
        {"counts": np.array([3, 0])},
        {"counts": np.array([3, 2**60])},
        {"counts": np.array([3.0, 1.0])},
        {"counts": np.array([3])},
        {"counts": np.array([[3, 1]])},
        {"model": np.array(3)},
        {"model": np.array(["m"])},
        {"more": np.array(3)},
    ],
)
def test_arrays_that_no_gallery_has(tmp_path, other):
    np.savez(tmp_path / "g.npz", **{**WHOLE, **other})
    assert "is not a gallery" in refused(tmp_path / "g.npz")


def test_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "g.npz", **{**WHOLE, "names": np.array(["Ann", None], object)})
    assert "object" in refused(tmp_path / "g.npz")


def test_embeddings_of_another_size(tmp_path):
    np.savez(tmp_path / "g.npz", **{**WHOLE, "sums": np.ones((2, 1))})
    speakers = gallery.read(tmp_path / "g.npz", "m")
    with pytest.raises(UserError, match="embeddings of 1 numbers, the model makes 2"):
        speakers.scores(np.ones(2))
    with pytest.raises(UserError, match="embeddings of 1 numbers, the model makes 2"):
        speakers.enrol("Ann", np.ones((1, 2)))


def test_a_name_that_could_not_be_read_back():
    with pytest.raises(UserError, match="control characters"):
        gallery.new("m").enrol("A\nnn", np.ones((1, 2)))


def test_an_empty_one(tmp_path):
    gallery.write(tmp_path / "g.npz", gallery.new("m"))
    assert gallery.read(tmp_path / "g.npz", "m").names == []


def test_two_writers(tmp_path):
    """The second to write is refused, and the first one's speaker stays."""
    path = tmp_path / "g.npz"
    first, second = gallery.new("m"), gallery.new("m")
    first.enrol("Ann", np.ones((1, 2)))
    second.enrol("Bob", np.ones((1, 2)))
    gallery.write(path, first)
    with pytest.raises(UserError, match="changed by another command"):
        gallery.write(path, second)
    third = gallery.read(path, "m")
    third.enrol("Bob", np.ones((1, 2)))
    gallery.write(path, third)
    gallery.write(path, third)
    assert gallery.read(path, "m").names == ["Ann", "Bob"]
    with pytest.raises(UserError, match="changed by another command"):
        gallery.write(path, first)


def test_mutated_galleries(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "g.npz"
    np.savez(path, **WHOLE)
    whole = path.read_bytes()
    for _ in range(300):
        path.write_bytes(mutated(whole, rng))
        try:
            gallery.read(path, "m").scores(np.ones(2))
        except UserError as error:
            assert "\n" not in str(error)
