"""A folder of shards: what makes it one, what is refused, what it tells of itself."""

import dataclasses
import json

import pytest

from sdpn_jax.data import features, records, shards
from sdpn_jax.errors import UserError


def metadata(**changes):
    settings = dataclasses.asdict(features.FeatureSettings())
    return {
        "format_version": records.VERSION,
        "features": settings,
        "shards": [{"name": "a", "bytes": 3}],
        "utterances": 1,
        "store": "log_mel",
        "augmentations": 4,
        "seed": 0,
        **changes,
    }


def test_metadata(tmp_path):
    with pytest.raises(UserError, match="metadata.json is missing"):
        shards.read_metadata(tmp_path)
    path = tmp_path / "metadata.json"
    path.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        shards.read_metadata(tmp_path)
    path.write_text(json.dumps(metadata(features={**metadata()["features"], "mel_bins": 64})))
    with pytest.raises(UserError, match="mel_bins=64, training needs mel_bins=80"):
        shards.read_metadata(tmp_path)
    path.write_text(json.dumps(metadata(format_version=0)))
    with pytest.raises(UserError, match="format version 0"):
        shards.read_metadata(tmp_path)
    path.write_text(json.dumps(metadata()))
    assert shards.read_metadata(tmp_path)["utterances"] == 1
    with pytest.raises(UserError, match="a is missing"):
        shards.open_shards(tmp_path)
    (tmp_path / "a").write_bytes(b"12")
    with pytest.raises(UserError, match=r"a is damaged \(2 bytes instead of 3\)"):
        shards.open_shards(tmp_path)
    (tmp_path / "a").write_bytes(b"123")
    assert shards.open_shards(tmp_path).paths == (tmp_path / "a",)


def test_somebody_elses_metadata_is_no_shards(tmp_path):
    assert not shards.is_shards(tmp_path)
    for text in ("[]", "{", '{"title": "my recordings"}'):
        (tmp_path / "metadata.json").write_text(text)
        assert not shards.is_shards(tmp_path)
    (tmp_path / "metadata.json").write_text(json.dumps(metadata()))
    assert shards.is_shards(tmp_path)


def test_the_fingerprint_is_of_the_data_not_of_its_place(tmp_path):
    def fingerprint(folder, **changes):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "metadata.json").write_text(json.dumps(metadata(**changes)))
        (tmp_path / folder / "a").write_bytes(b"123")
        return shards.open_shards(tmp_path / folder).fingerprint()

    assert fingerprint("one") == fingerprint("moved", source="elsewhere")
    assert fingerprint("other", seed=1) != fingerprint("another", seed=2)
