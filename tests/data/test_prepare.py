"""Preparation: what the shards hold, and that workers, order and interruptions do not change them."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import fuzz_preparation
import numpy as np
import pytest
import soundfile

from sdpn_jax.data import audio, estimate, features, prepare, recordings, records
from sdpn_jax.data.shards import open_shards, read_metadata, read_shard
from sdpn_jax.errors import UserError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for i in range(18):
        path = folder / f"s{i % 3}" / f"{i}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, rng.normal(0, 0.1, int(rng.integers(1600, 16000))), 16000)
    (folder / "bad\nname.wav").write_text("no audio")
    (folder / "empty.flac").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def prepared(corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp("prepared")
    return output, prepare.prepare(corpus, output, augmentations=2, workers=2)


def utterances(folder):
    return {item.id: item for path in open_shards(folder).paths for item in map(records.decode, read_shard(path))}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_metadata_and_skipped_files(prepared, corpus):
    output, metadata = prepared
    assert metadata == read_metadata(output)
    assert (metadata["utterances"], metadata["skipped"], metadata["augmentations"]) == (18, 2, 2)
    seconds = sum(soundfile.info(path).duration for path in corpus.glob("s*/*.wav"))
    assert metadata["hours"] == pytest.approx(seconds / 3600)
    lines = (output / "skipped.txt").read_text().splitlines()
    assert len(lines) == 2
    assert any("bad\\nname.wav\tunreadable" in line for line in lines)
    assert any(line.endswith("empty.flac\tempty file") for line in lines)


def test_every_utterance_is_there_with_its_features(prepared, corpus):
    items = utterances(prepared[0])
    assert sorted(items) == sorted(path.relative_to(corpus).as_posix() for path in corpus.glob("s*/*.wav"))
    for name, item in items.items():
        waveform = audio.read_audio(corpus / name)
        assert item.num_samples == len(waveform)
        assert item.log_mel.shape == (3, 1 + len(waveform) // 160, 80)
        np.testing.assert_array_equal(item.log_mel[0], features.log_mel(waveform).astype(np.float16))
        np.testing.assert_array_equal(item.tail[0], features.silence_tail(waveform).astype(np.float16))
        assert np.all(np.isfinite(item.log_mel))
    assert any(not np.array_equal(item.log_mel[0], item.log_mel[1]) for item in items.values())


@pytest.mark.slow
def test_one_worker_writes_the_same_bytes(prepared, corpus, tmp_path):
    prepare.prepare(corpus, tmp_path, augmentations=2, workers=1)
    assert contents(tmp_path) == contents(prepared[0])


@pytest.mark.slow
def test_an_interrupted_preparation_goes_on(prepared, corpus, tmp_path):
    for name, data in contents(prepared[0]).items():
        (tmp_path / name).write_bytes(data)
    shards = sorted(tmp_path.glob("*.array_record"))
    shards[3].rename(shards[3].with_name(f".{shards[3].name}.0123.tmp"))  # as a kill leaves it
    shards[5].with_suffix(".json").unlink()
    (tmp_path / "metadata.json").unlink()
    kept = shards[0].stat().st_mtime_ns
    prepare.prepare(corpus, tmp_path, augmentations=2, workers=1)
    assert contents(tmp_path) == contents(prepared[0])
    assert shards[0].stat().st_mtime_ns == kept


@pytest.mark.slow
def test_the_seed_changes_the_augmented_versions_alone(prepared, corpus, tmp_path):
    prepare.prepare(corpus, tmp_path, augmentations=2, seed=1, workers=1)
    ours, theirs = utterances(tmp_path), utterances(prepared[0])
    for name in ours:
        np.testing.assert_array_equal(ours[name].log_mel[0], theirs[name].log_mel[0])
    assert any(not np.array_equal(ours[name].log_mel[1:], theirs[name].log_mel[1:]) for name in ours)


def test_plan_bounds_the_shards(tmp_path):
    def sizes(count):
        names = [audio.Cut(str(i), tmp_path) for i in range(count)]
        return [len(shard.utterances) for shard in prepare.plan(names, tmp_path)]

    assert sizes(1) == [1]
    assert sizes(20) == [2] * 4 + [1] * 12
    assert len(sizes(100_000)) == 98
    assert sum(sizes(100_000)) == 100_000
    assert max(sizes(100_000)) <= 1024


@pytest.mark.slow
def test_nothing_usable(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").write_text("no audio")
    with pytest.raises(UserError, match="none of the 1 recordings"):
        prepare.prepare(tmp_path / "in", tmp_path / "out", workers=1)
    assert not (tmp_path / "out" / "metadata.json").exists()


def command_of(source, output, *more):
    return commands.command_of("prepare", f"--input={source}", f"--output={output}", *more)


@pytest.mark.slow
def test_ten_kills_do_not_change_a_byte(prepared, corpus, tmp_path):
    rng = np.random.default_rng(0)
    command = command_of(corpus, tmp_path, "--augmentations=2", "--workers=2")
    for _ in range(10):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        while not any(tmp_path.iterdir()) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for path in list(tmp_path.iterdir())[:: rng.integers(2, 5)]:
            path.unlink()  # so that there is work left for the next one
    subprocess.run(command, check=True, capture_output=True)
    assert contents(tmp_path) == contents(prepared[0])


@pytest.mark.slow
def test_two_machines_and_a_closing_step_write_the_same_bytes(prepared, corpus, tmp_path, monkeypatch):
    def run(*more):
        inputs = f"--input={corpus}", f"--output={tmp_path}"
        return commands.sdpn("prepare", *inputs, "--augmentations=2", "--workers=1", *more)

    array = {"SLURM_ARRAY_TASK_ID": "6", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "2"}
    with monkeypatch.context() as patched:
        for name, value in array.items():
            patched.setenv(name, value)
        second = run()
    assert second.returncode == 0, second.stderr
    assert "task 1 of 2: its shards are complete" in second.stdout
    early = run("--finish")
    assert early.returncode == 2
    assert "8 of 16 shards" in early.stderr
    assert not (tmp_path / "metadata.json").exists()
    assert run("--task_index=0", "--task_count=2").returncode == 0
    assert run("--finish").returncode == 0
    assert contents(tmp_path) == contents(prepared[0])
    assert "--task_index=2 must be from 0" in run("--task_index=2", "--task_count=2").stderr


def slurm(number, first, last, count, step=1):
    told = {"ID": number, "MIN": first, "MAX": last, "COUNT": count, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in told.items()}


def test_tasks_of_kubernetes_and_of_nobody():
    assert prepare.task_from_environment({"JOB_COMPLETION_INDEX": "3", "TASK_COUNT": "8"}) == (3, 8)
    assert prepare.task_from_environment({}) == (0, 1)
    assert prepare.task_from_environment({}, 4) == (0, 4)


@pytest.mark.parametrize("first, last, step", [(0, 15, 1), (1, 8, 1), (0, 14, 2), (5, 5, 1), (3, 12, 3)])
def test_every_task_of_a_slurm_array_has_a_share_of_its_own(first, last, step):
    numbers = range(first, last + 1, step)
    shares = [prepare.task_from_environment(slurm(n, first, last, len(numbers), step)) for n in numbers]
    assert shares == [(index, len(numbers)) for index in range(len(numbers))]


def test_a_slurm_array_that_repeats_some_tasks():
    """sbatch --array=3,7 after two of 16 tasks failed."""
    for number in (3, 7):
        environment = slurm(number, 3, 7, 2)
        with pytest.raises(UserError, match="not evenly spaced: .*--task_count"):
            prepare.task_from_environment(environment)
        assert prepare.task_from_environment(environment, 16) == (number, 16)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds worker processes in /proc")
@pytest.mark.parametrize("by, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_no_worker_outlives_the_command(tmp_path, by, code):
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for i in range(40):
        soundfile.write(tmp_path / "in" / f"{i}.wav", rng.normal(0, 0.1, 600_000), 16000)
    command = command_of(tmp_path / "in", tmp_path, "--workers=2", "--augmentations=8")
    default = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 # a script's & has it ignored
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=default)
    while len(list(tmp_path.glob(".*.tmp"))) < 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(by)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in said
    deadline = time.time() + 20
    while workers := [pid for pid in os.listdir("/proc") if pid.isdigit() and in_session(int(pid), process.pid)]:
        assert time.time() < deadline, workers
        time.sleep(0.1)


def in_session(pid: int, leader: int) -> bool:
    try:
        return os.getsid(pid) == leader
    except ProcessLookupError:
        return False


def test_the_estimate_writes_nothing(corpus, monkeypatch):
    monkeypatch.setattr(estimate, "ESTIMATE_SECONDS", 0.1)
    said = estimate.estimate(recordings.find_utterances(corpus), prepare.make_recipe(None, None, 1, 0), workers=2)
    assert "20 files" in said
    assert "2 unreadable" in said
    assert "2 versions of each" in said


@pytest.mark.slow
def test_a_shard_cut_in_half_is_made_again(prepared, corpus, tmp_path):
    for name, data in contents(prepared[0]).items():
        (tmp_path / name).write_bytes(data)
    shard = sorted(tmp_path.glob("*.array_record"))[2]
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(UserError, match="damaged"):
        open_shards(tmp_path)
    prepare.prepare(corpus, tmp_path, augmentations=2, workers=1)
    assert contents(tmp_path) == contents(prepared[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits the size of files of a child process")
def test_a_full_disk_gets_one_line(tmp_path):
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).normal(0, 0.1, 160_000), 16000)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # noqa: E731
    command = command_of(tmp_path, tmp_path / "out", "--workers=1")
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 2
    assert "is the disk full?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_damaged_files_are_kept_or_listed(tmp_path):
    counts = fuzz_preparation.fuzz(tmp_path, 400, seed=0, workers=1)
    assert sum(counts.values()) == 400
    assert counts["kept"] > 80
    assert counts["unreadable"] > 80


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the worker process in /proc")
def test_a_killed_worker_ends_the_command(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(20):
        (tmp_path / "in").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "in" / f"{i}.wav", rng.normal(0, 0.1, 300_000), 16000)
    command = command_of(tmp_path / "in", tmp_path, "--workers=1")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob(".*.tmp")):
        assert process.poll() is None, "it ended before its worker was killed"
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (worker,) = (pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(int(worker), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "error: a worker process was killed" in said
    assert ".wav" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_command_line(corpus, tmp_path):
    def run(*arguments):
        return commands.sdpn("prepare", *arguments)

    done = run(f"--input={corpus}", f"--output={tmp_path}", "--augmentations=0", "--workers=1")
    assert done.returncode == 0, done.stderr
    assert "18 utterances" in done.stdout
    assert "skipped.txt" in done.stdout
    assert json.loads((tmp_path / "metadata.json").read_text())["augmentations"] == 0
    missing = run("--input=nowhere", f"--output={tmp_path}")
    assert missing.returncode == 2
    assert missing.stderr.count("error: ") == 1
    assert "Traceback" not in missing.stderr
    shown = run("--help").stdout
    assert all(f"--{flag}" in shown for flag in ("input", "output", "noise", "rirs", "augmentations", "seed"))


def test_what_may_spoil_embeddings_is_counted(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number, seconds in enumerate((0.5, 1.5)):
        soundfile.write(tmp_path / "in" / f"{number}.wav", 0.1 * rng.normal(size=int(16000 * seconds)), 16000)
    metadata = prepare.prepare(tmp_path / "in", tmp_path / "out", augmentations=0, workers=1)
    assert metadata["hints"] == {"under one second": 1}
    assert "under one second: 1 of them" in prepare.describe(metadata, tmp_path)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"null", b"\xff", b"[" * 10**5, b'{"bytes": 1}', b'{"utterances": "2"', "skipped", "seconds"]
)
def test_a_damaged_summary_makes_its_shard_anew(prepared, corpus, tmp_path, text):
    shards = prepare.plan(recordings.find_utterances(corpus), tmp_path)
    recipe = prepare.make_recipe(None, None, 0, 0)
    summary = prepare.write_shard(shards[0], recipe)
    if isinstance(text, str):
        text = json.dumps(summary | {text: [["a"]]}).encode()
    shards[0].summary_path.write_bytes(text)
    assert shards[0].summary(recipe) is None
    assert prepare.write_shard(shards[0], recipe) == summary == shards[0].summary(recipe)


def test_labels_in_the_output_stay(corpus, tmp_path):
    listed = recordings.find_utterances(corpus)
    text = "".join(f"{cut.id} x\n" for cut in listed if "\n" not in cut.id)
    (tmp_path / "labels.txt").write_text(text)
    prepare.prepare(corpus, tmp_path, augmentations=0, workers=1)
    assert (tmp_path / "labels.txt").read_text() == text
    (tmp_path / "other" / "metadata.json").mkdir(parents=True)
    with pytest.raises(UserError, match="metadata.json is a folder"):
        prepare.prepare(corpus, tmp_path / "other", augmentations=0, workers=1)
    with pytest.raises(UserError, match="shards need a folder whose name is UTF-8"):
        prepare.prepare(corpus, f"{tmp_path}/caf\udce9", augmentations=0, workers=1)


def test_a_shard_of_zeros_is_named(corpus, tmp_path):
    recipe = prepare.make_recipe(None, None, 0, 0)
    shards = prepare.plan(recordings.find_utterances(corpus), tmp_path)
    for shard in shards:
        prepare.write_shard(shard, recipe)
    shards[1].path.write_bytes(bytes(shards[1].path.stat().st_size))
    with pytest.raises(UserError, match=f"{shards[1].path.name} does not hold its .* delete it, prepare again"):
        prepare.finish(shards, recipe, corpus, None, None)
