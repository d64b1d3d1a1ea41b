"""A folder of shards: what makes it one, what is refused, what it tells of itself."""

import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from sdpn_jax.data import features, records, shards
from sdpn_jax.errors import UserError


def metadata(**changes):
    settings = dataclasses.asdict(features.FeatureSettings())
    return {
        "format_version": records.VERSION,
        "features": settings,
        "shards": [{"name": "a", "bytes": 3, "utterances": 1}],
        "utterances": 1,
        "store": "log_mel",
        "augmentations": 4,
        "seed": 0,
        "skipped": 0,
        "hours": 0.1,
        "source": "somewhere",
        "noise": "coloured noise",
        "rirs": "synthetic",
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


@pytest.mark.parametrize("changes", [
    {"utterances": 2}, {"utterances": "1"}, {"utterances": True}, {"hours": None}, {"store": "x"}, {"store": []},
    {"distortions": "all"}, {"distortions": ["gain", "fuzz"]}, {"distortions": [[]]},
    {"shards": []}, {"shards": {}}, {"shards": [3]}, {"shards": [{"name": "a", "bytes": -1, "utterances": 1}]},
    *({"shards": [{"name": name, "bytes": 3, "utterances": 1}]} for name in ("/etc/passwd", "../a", "..", "", 3)),
])  # fmt: skip
def test_odd_metadata_ends_in_one_line(tmp_path, changes):
    (tmp_path / "metadata.json").write_text(json.dumps(metadata(**changes)))
    with pytest.raises(UserError, match="metadata.json is damaged .*: run sdpn prepare again"):
        shards.open_shards(tmp_path)


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


@pytest.fixture
def two_shards(tmp_path):
    """Two shards of waveforms, u0, u2, u4 and u1, u3, u5, whose samples are their number."""
    entries = []
    for shard in range(2):
        path = tmp_path / f"{shard}.array_record"
        writer = ArrayRecordWriter(str(path), records.WRITER_OPTIONS)
        for number in range(shard, 6, 2):
            writer.write(records.encode(records.Recording(f"u{number}", np.full(2000, number, np.int16))))
        writer.close()
        entries.append({"name": path.name, "bytes": path.stat().st_size, "utterances": 3})
    (tmp_path / "metadata.json").write_text(json.dumps(metadata(shards=entries, utterances=6, store="waveform")))
    return tmp_path


def test_records_by_number(two_shards):
    found = shards.open_shards(two_shards).records
    assert [found[number].id for number in range(len(found))] == ["u0", "u2", "u4", "u1", "u3", "u5"]
    copy = pickle.loads(pickle.dumps(found))  # as it goes to a reader process
    assert copy[4].id == "u3"


def damage(folder, shard, number):
    """Changes one sample in the file: the length stays."""
    path = folder / f"{shard}.array_record"
    content = bytearray(path.read_bytes())
    place = content.index(np.full(2000, number, np.int16).tobytes())
    content[place + 100] ^= 255
    path.write_bytes(content)


def test_a_damaged_record_is_named(two_shards):
    damage(two_shards, 1, 3)
    found = shards.open_shards(two_shards).records
    with pytest.raises(UserError, match=r"1\.array_record, record 1 is damaged .*--skip_damaged"):
        found[4]
    assert found[5].id == "u5", "the reader is as good as before"


def test_the_next_one_stands_for_a_damaged_record(two_shards, caplog):
    for shard, number in ((0, 4), (1, 1), (1, 5)):
        damage(two_shards, shard, number)
    found = shards.open_shards(two_shards, skip_damaged=True).records
    assert [found[number].id for number in range(6)] == ["u0", "u2", "u3", "u3", "u3", "u0"]
    assert [found[number].id for number in range(6)] == ["u0", "u2", "u3", "u3", "u3", "u0"]
    assert "0.array_record, record 2 is damaged" in caplog.text
    assert "(3 so far)" in caplog.text
    assert "(4 so far)" not in caplog.text


def test_nothing_left(two_shards):
    for number in range(6):
        damage(two_shards, number % 2, number)
    with pytest.raises(UserError, match="none of the 6 records"):
        shards.open_shards(two_shards, skip_damaged=True).records[0]


def test_the_fingerprint_is_of_the_content_not_of_the_place(two_shards, tmp_path_factory):
    first = shards.open_shards(two_shards).fingerprint()
    elsewhere = tmp_path_factory.mktemp("other") / "shards"
    shutil.copytree(two_shards, elsewhere)
    assert shards.open_shards(elsewhere).fingerprint() == first
    told = json.loads((elsewhere / "metadata.json").read_text())
    told["shards"][0]["sha256"] = "another"
    (elsewhere / "metadata.json").write_text(json.dumps(told))
    assert shards.open_shards(elsewhere).fingerprint() != first


def test_a_damaged_shard_read_from_its_beginning_is_named(two_shards):
    path = two_shards / "0.array_record"
    assert len(list(shards.read_shard(path))) == 3
    data = bytearray(path.read_bytes())
    data[80:200] = bytes(120)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"0\.array_record, record 0 is damaged .*: delete the shard"):
        list(shards.read_shard(path))
