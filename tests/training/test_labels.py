"""The labels of a run: matched to the shards' utterances, numbered, counted against the truth."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sdpn_jax.errors import UserError
from sdpn_jax.training.labels import NONE, Labels, labels_of

IDS = ["s1/a.wav", "s1/b.wav", "s2/a.wav", "s2/c.wav", "s3/d.wav"]


def shards_with(folder: Path, text: str | None):
    if text is not None:
        (folder / "labels.txt").write_text(text)
    return SimpleNamespace(ids=IDS, folder=folder)


def test_the_list_beside_the_shards_or_another(tmp_path):
    shards = shards_with(tmp_path, "s1/a.wav x\ns1/b.wav x\ns2/a.wav b\n")
    labels = labels_of(shards, "")
    assert labels.names == ("b", "x")
    np.testing.assert_array_equal(labels.of, [1, 1, 0, NONE, NONE])
    (tmp_path / "other").write_text("c 9\nd 10\n/corpus/s1/a.flac 9\n")  # written in other ways
    other = labels_of(shards, str(tmp_path / "other"))
    assert other.names == ("10", "9")
    np.testing.assert_array_equal(other.of, [1, NONE, NONE, 1, 0])
    assert labels.fingerprint() != other.fingerprint() == labels_of(shards, str(tmp_path / "other")).fingerprint()


def test_held_out_utterances_teach_nothing(tmp_path):
    shards = shards_with(tmp_path, "s1/a.wav a\ns1/b.wav b\ns2/a.wav c\ns2/c.wav b\ns3/d.wav d\n")
    labels = labels_of(shards, "", held_out=3)
    assert labels.names == ("a", "b")
    np.testing.assert_array_equal(labels.of, [0, 1, NONE, NONE, NONE])


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "task=classify learns from labels"),
        ("s1/a.wav x\n", "1 labels for the utterances"),
        ("unknown x\nelsewhere y\n", "0 labels for the utterances"),
        ("a.wav x\ns1/b.wav y\n", "fit several lines"),
    ],
)
def test_refusals(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        labels_of(shards_with(tmp_path, text), "")


def test_a_class_stands_for_the_speaker_it_has_most_of():
    of = np.array([0, 0, 0, 1, 1, NONE, 2], np.int32)
    truth = np.array([5, 7, 7, 3, NONE, 3, NONE], np.int32)
    arrays = Labels(of, ("a", "b", "c"), truth).arrays()
    np.testing.assert_array_equal(arrays["speaker_of_class"], [7, 3, NONE])
    assert set(Labels(of, ("a", "b", "c")).arrays()) == {"labels"}
