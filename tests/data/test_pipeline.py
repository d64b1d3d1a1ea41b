"""Crops, masks and batches: purity in (seed, step), whatever the hosts, workers and restarts."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpn_jax.data import augment, features, pipeline, records
from sdpn_jax.data.pipeline import Places, Views
from sdpn_jax.data.shards import open_shards, read_shard
from sdpn_jax.errors import UserError

SMALL = Views(global_frames=40, local_count=3, local_frames=20)


def utterance(name: str, num_samples: int, versions: int, seed: int) -> records.Utterance:
    waves = np.random.default_rng(seed).normal(size=(versions, num_samples)).astype(np.float32)
    return records.Utterance(
        id=name,
        num_samples=num_samples,
        log_mel=np.stack([features.log_mel(wave) for wave in waves]).astype(np.float16),
        tail=np.stack([features.silence_tail(wave) for wave in waves]).astype(np.float16),
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two shards with 11 utterances of different length."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    names = ["a.array_record", "b.array_record"]
    writers = [ArrayRecordWriter(str(folder / name), records.WRITER_OPTIONS) for name in names]
    for i in range(11):
        item = utterance(f"u{i}", int(rng.integers(2000, 16000)), 3, i)
        writers[i % 2].write(records.encode(item))
    for writer in writers:
        writer.close()
    sizes = [(folder / name).stat().st_size for name in names]
    entries = [{"name": n, "bytes": size, "utterances": u} for n, size, u in zip(names, sizes, (6, 5), strict=True)]
    metadata = {"format_version": records.VERSION, "features": dataclasses.asdict(features.DEFAULT), "shards": entries}
    (folder / "metadata.json").write_text(json.dumps({**metadata, "utterances": 11}))
    return open_shards(folder)


@settings(max_examples=40, deadline=None)
@given(num_samples=st.integers(1600, 20000), frames=st.integers(5, 130), seed=st.integers(0, 100))
def test_a_crop_is_a_stretch_of_its_version_or_padded(num_samples, frames, seed):
    item = utterance("u", num_samples, 2, 0)
    start = Places(num_samples, Views(local_frames=frames), np.random.default_rng(seed)).of_local()
    crop = pipeline.crop(item, 1, start, frames)
    assert crop.shape == (frames, 80)
    if num_samples >= frames * 160:
        starts = range(len(item.log_mel[1]) - frames + 1)
        assert any(np.array_equal(crop, item.log_mel[1][start : start + frames]) for start in starts)
    else:
        silent = max(0, -(-(num_samples + 200) // 160))  # the first frame whose window begins after the end
        np.testing.assert_array_equal(crop[silent:], np.float16(np.log(1e-6)))
        untouched = max(0, (num_samples - 200) // 160)
        np.testing.assert_array_equal(crop[:untouched], item.log_mel[1][:untouched])


def test_every_start_is_drawn():
    places = Places(16 * 160, Views(global_frames=14, local_frames=14), np.random.default_rng(0))  # of 17 frames
    assert {places.of_global() for _ in range(60)} == {places.of_local() for _ in range(60)} == {0, 1, 2, 3}


@given(frames=st.integers(8, 60), whole=st.integers(5, 40), local=st.integers(5, 40), seed=st.integers(0, 100))
def test_views_apart_share_as_few_frames_as_they_can(frames, whole, local, seed):
    views = Views(global_frames=whole, local_frames=local, apart=True)
    places = Places((frames - 1) * 160, views, np.random.default_rng(seed))
    begin, starts = places.of_global(), [places.of_local() for _ in range(5)]
    if begin is None or starts[0] is None:
        assert max(whole, local) > frames - 1
        return
    heard = set(range(begin, begin + whole))
    for start in starts:
        assert 0 <= start <= frames - local
        assert len(heard & set(range(start, start + local))) == max(0, whole + local - frames)


def test_views_apart_are_anywhere_beside_each_other():
    """Of 9 frames the global view of 3 leaves 4 on one side when it begins at most 2 or at least 4."""
    seen = set()
    for seed in range(400):
        places = Places(8 * 160, Views(global_frames=3, local_frames=4, apart=True), np.random.default_rng(seed))
        seen.add((places.of_global(), places.of_local()))
    before, after = {(4, 0), (5, 0), (5, 1), (6, 0), (6, 1), (6, 2)}, {(0, 3), (0, 4), (0, 5), (1, 4), (1, 5), (2, 5)}
    assert seen == before | after


@pytest.mark.parametrize("value", ["mean", "silence"])
def test_mask(value):
    views = Views(mask_probability=1.0, mask_value=value)
    x = np.random.default_rng(0).normal(5, 1, size=(200, 80)).astype(np.float16)
    fill = x.mean(0, dtype=np.float32).astype(np.float16) if value == "mean" else np.float16(np.log(1e-6))
    widths = {"frames": [], "bins": []}
    for seed in range(300):
        masked = pipeline.mask(x, views, np.random.default_rng(seed))
        changed = masked != x
        np.testing.assert_array_equal(masked[changed], np.broadcast_to(fill, x.shape)[changed])
        frames, bins = changed.mean(1) > 0.5, changed.mean(0) > 0.5
        for name, hidden in (("frames", frames), ("bins", bins)):
            where = np.flatnonzero(hidden)
            assert len(where) == 0 or where[-1] - where[0] + 1 == len(where)  # one stretch
            widths[name].append(len(where))
    assert set(widths["frames"]) == set(range(10))
    assert set(widths["bins"]) == set(range(6))


def test_masks_have_their_probability_and_leave_the_record_alone():
    x = np.random.default_rng(0).normal(size=(200, 80)).astype(np.float16)
    x.flags.writeable = False
    rng = np.random.default_rng(0)
    masked = sum(pipeline.mask(x, Views(), rng) is not x for _ in range(4000))
    assert abs(masked / 4000 - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 4000)


def version_of(crop, item) -> int | None:
    """Which version of an utterance a crop is cut from."""
    for version, log_mel in enumerate(item.log_mel):
        for start in range(len(log_mel)):
            if np.array_equal(crop, log_mel[start : start + len(crop)]):
                return version


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_global_views_are_augmented_by_their_share(share):
    item = utterance("u", 16000, 3, 0)
    views = dataclasses.replace(SMALL, global_augmented=share, global_count=60)
    made = pipeline.make_views(item, views, np.random.default_rng(0))
    versions = np.array([version_of(crop, item) for crop in made["global"]])
    assert set(versions) == ({1, 2} if share == 1 else {0, 1, 2})
    assert abs((versions > 0).mean() - share) <= 4 * np.sqrt(share * (1 - share) / 60)


def test_global_views_are_clean_and_local_ones_augmented():
    item = utterance("u", 16000, 3, 0)
    views = dataclasses.replace(SMALL, mask_probability=0.0, local_count=30)
    made = pipeline.make_views(item, views, np.random.default_rng(0))
    assert made["global"].shape == (1, 40, 80)
    assert made["local"].shape == (30, 20, 80)
    assert {x.dtype for x in made.values()} == {np.dtype("float16")}

    assert version_of(made["global"][0], item) == 0
    assert {version_of(crop, item) for crop in made["local"]} == {1, 2}


def test_without_augmented_versions_the_clean_one_is_used():
    made = pipeline.make_views(utterance("u", 16000, 1, 0), SMALL, np.random.default_rng(0))
    assert made["local"].shape == (3, 20, 80)


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_batches_are_a_function_of_seed_and_step(shards):
    whole = take(pipeline.batches(pipeline.dataset(shards, 4, 7, SMALL)), 6)
    assert_same(whole, take(pipeline.batches(pipeline.dataset(shards, 4, 7, SMALL)), 6))
    assert_same(whole[4:], take(pipeline.batches(pipeline.dataset(shards, 4, 7, SMALL), first_step=4), 2))
    other = take(pipeline.batches(pipeline.dataset(shards, 4, 8, SMALL)), 1)[0]
    assert not np.array_equal(other["local"], whole[0]["local"])
    assert not np.array_equal(whole[0]["local"], whole[2]["local"])


def test_hosts_share_the_global_batch(shards):
    whole = take(pipeline.batches(pipeline.dataset(shards, 4, 7, SMALL)), 5)
    shares = [take(pipeline.batches(pipeline.dataset(shards, 4, 7, SMALL, host, 2)), 5) for host in range(2)]
    for step, batch in enumerate(whole):
        both = jax.tree.map(lambda *parts: np.concatenate(parts), *(share[step] for share in shares))
        assert_same(batch, both)


def test_batches_tell_whose_views_they_are(shards):
    """Each view of the chosen utterances is found in the record with the number beside it, and those are all."""
    source = [records.decode(record) for path in shards.paths for record in read_shard(path)]
    views = Views(global_count=0, global_frames=40, local_count=1, local_frames=10, mask_probability=0.0)
    chosen = np.array([1, 2, 5, 8, 10])
    seen = set()
    for batch in take(pipeline.batches(pipeline.dataset(shards, 5, 3, views, numbers=chosen)), 2):
        assert batch["global"].shape == (5, 0, 40, 80)
        seen |= set(batch["number"].tolist())
        for number, (crop,) in zip(batch["number"], batch["local"], strict=True):
            versions = source[number].log_mel
            starts = range(versions.shape[1] - 9)
            assert any(np.array_equal(crop, version[s : s + 10]) for version in versions for s in starts)
    assert seen == set(chosen.tolist())


def test_views_of_the_teacher_alone_are_clean(shards):
    source = [records.decode(record) for path in shards.paths for record in read_shard(path)]
    views = Views(global_frames=10, local_count=0, local_frames=20)
    batch = take(pipeline.batches(pipeline.dataset(shards, 4, 7, views)), 1)[0]
    assert batch["local"].shape == (4, 0, 20, 80)
    for number, (crop,) in zip(batch["number"], batch["global"], strict=True):
        clean = source[number].log_mel[0]
        assert any(np.array_equal(crop, clean[s : s + 10]) for s in range(len(clean) - 9))


@pytest.mark.slow
def test_workers_do_not_change_the_batches(shards):
    alone = take(pipeline.batches(pipeline.dataset(shards, 4, 7, SMALL), first_step=1), 5)
    with_workers = take(pipeline.batches(pipeline.dataset(shards, 4, 7, SMALL), first_step=1, workers=2), 5)
    assert_same(alone, with_workers)


def test_every_utterance_once_an_epoch_and_new_orders(shards):
    source = pipeline.dataset(shards, 4, 7, dataclasses.replace(SMALL, mask_probability=0.0))
    ids = {}
    for path in shards.paths:
        for record in read_shard(path):
            item = records.decode(record)
            ids[item.id] = item.log_mel[0]

    def who(crop):
        return next(
            name
            for name, log_mel in ids.items()
            if any(np.array_equal(crop[:10], log_mel[s : s + 10]) for s in range(len(log_mel)))
        )

    epochs = [[who(view[0]) for step in (0, 1) for view in source[2 * epoch + step]["global"]] for epoch in range(3)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_batch_larger_than_the_corpus_is_refused(shards):
    with pytest.raises(UserError, match="batch_size=12 is more than the 11"):
        pipeline.dataset(shards, 12, 0, SMALL)


def test_held_out_utterances_are_not_trained_on(shards):
    """Every crop of the training batches and none of the held-out ones is found in the first utterances."""
    source = [records.decode(record) for path in shards.paths for record in read_shard(path)]

    def owner(crop):
        windows = (
            (i, version[start : start + len(crop)])
            for i, item in enumerate(source)
            for version in item.log_mel
            for start in range(len(version) - len(crop) + 1)
        )
        return {i for i, window in windows if np.array_equal(window, crop)}

    views = Views(global_frames=5, local_count=1, local_frames=5, mask_probability=0)
    batches = itertools.islice(pipeline.batches(pipeline.dataset(shards, 4, 0, views, numbers=np.arange(8))), 4)
    trained = [owner(crop) for batch in batches for crop in batch["local"].reshape(-1, 5, 80)]
    assert set().union(*trained) == set(range(8))
    crops, numbers = pipeline.held_out_crops(shards, 3, 5)
    assert crops.dtype == np.float16
    assert set(numbers) == {8, 9, 10}
    clean = [item.log_mel[0] for item in source]
    found = [{i for i, log_mel in enumerate(clean) if places_of(crop, log_mel)} for crop in crops]
    assert found == [{number} for number in numbers]


def places_of(crop, clean):
    """Where in the clean log-mel a crop with noise was cut: noise adds to every value."""
    length = len(crop)
    return [s for s in range(len(clean) - length + 1) if (crop > clean[s : s + length] - 0.02).all()]


def test_held_out_crops_do_not_overlap(shards):
    crops, numbers = pipeline.held_out_crops(shards, 11, 20)
    source = [records.decode(record) for path in shards.paths for record in read_shard(path)]
    for number in set(numbers):
        starts, clean = [], source[number].log_mel[0]
        for crop in crops[numbers == number]:
            found = places_of(crop, clean)
            assert len(found) == 1 and not np.array_equal(crop, clean[found[0] : found[0] + 20])
            starts += found
        assert 2 <= len(starts) <= 4
        assert np.all(np.diff(starts) >= 20)
    again, _ = pipeline.held_out_crops(shards, 11, 20)
    np.testing.assert_array_equal(crops, again)


def test_noise_in_the_mel_domain_is_that_of_the_mixture():
    """Against a mixture of samples at the same signal-to-noise ratio; the frames at both ends are not compared."""
    rng = np.random.default_rng(3)
    speech = rng.normal(size=160 * 400) * (1 + np.sin(np.arange(160 * 400) / 3000))  # loud and soft
    log_mel = features.log_mel(speech.astype(np.float32))
    for seed in range(6):
        noisy = np.exp(pipeline.with_noise(log_mel, np.random.default_rng(seed)), dtype=np.float64)
        assert (noisy >= 0.999 * np.exp(log_mel)).all()
        draws = np.random.default_rng(seed)
        noise = augment.coloured_noise(400 * 160 + 400, draws.uniform(0, 2), draws)[: len(speech)]
        ratio = np.exp(features.log_mel(noise), dtype=np.float64).sum() / np.exp(log_mel, dtype=np.float64).sum()
        scale = 1 / np.sqrt(ratio * 10 ** (draws.uniform(0, 15) / 10))
        mixture = np.exp(features.log_mel((speech + scale * noise).astype(np.float32)), dtype=np.float64)
        np.testing.assert_allclose(noisy[2:-2].mean(0), mixture[2:-2].mean(0), rtol=0.2)


def test_too_few_held_out_utterances(shards):
    with pytest.raises(UserError, match="held_out=1"):
        pipeline.held_out_crops(shards, 1, 10)
    with pytest.raises(UserError, match="batch_size=9 is more than the 8"):
        pipeline.dataset(shards, 9, 0, SMALL, numbers=np.arange(8))


def test_automatic_workers():
    assert [pipeline.automatic_workers(cores) for cores in (1, 4, 8, 16, 128)] == [0, 0, 4, 8, 16]
