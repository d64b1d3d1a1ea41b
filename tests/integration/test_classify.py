"""Whole runs with labels: resumed without a seam, over devices, begun from each other, fine-tuned."""

import json
import shutil

import numpy as np
import pytest
from commands import ran, refused
from small_run import ECAPA, arguments_of, losses_of, make_workplace, rows_of, train, train_on

from sdpn_jax.training.beginning import classes_of
from sdpn_jax.weights import run

LABELLED = [
    "--config.task=classify",
    "--config.classify.gate_epoch=3",
    "--config.classify.correct_epoch=4",
    "--config.classify.sub_centres=2",
    "--config.classify.top_k=1",
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Shards with folders as labels, a list that gives two utterances the wrong one, a run with that list."""
    folder = make_workplace(tmp_path_factory.mktemp("workplace"))
    ran("prepare", f"--input={folder / 'audio'}", f"--output={folder / 'labelled'}", "--augmentations=2", "--workers=1",
        f"--labels={written(folder / 'truth.txt', 0)}")  # fmt: skip
    written(folder / "wrong.txt", 2)
    train(folder, folder / "whole", *labelled(folder))
    return folder


def written(path, wrong):
    ids = [f"s{speaker}/{i}.wav" for speaker in range(4) for i in range(5)]
    path.write_text("".join(f"{name} {'s0' if n < wrong + 5 and n >= 5 else name[:2]}\n" for n, name in enumerate(ids)))
    return path


def labelled(folder):
    return [*LABELLED, f"--config.labels={folder / 'wrong.txt'}", f"--config.true_labels={folder / 'truth.txt'}"]


@pytest.mark.slow
def test_a_run_with_labels_leaves_everything_behind(workplace):
    rows = [row for row in rows_of(workplace / "whole") if "loss" in row]
    wanted = "classification accuracy margin labels_distrusted labels_corrected labels_right effective_rank"
    assert all(set(wanted.split()) <= set(row) for row in rows)
    assert rows[0]["labels_distrusted"] == 0
    assert any(row["labels_distrusted"] > 0 for row in rows[4:])
    assert all(row["labels_corrected"] == 0 for row in rows[:6])
    assert (workplace / "whole" / "classes.txt").read_text().split() == ["s0", "s1", "s2", "s3"]
    assert (workplace / "whole" / "training.png").stat().st_size > 10_000
    ran("embed", f"{workplace / 'audio'}", f"--model={workplace / 'whole'}", "-o", f"{workplace / 'e.npz'}")


@pytest.mark.slow
def test_a_stopped_run_resumes_without_a_seam(workplace):
    """From a checkpoint in the midst of an epoch with a gate, with the losses seen so far."""
    shutil.copytree(workplace / "whole", workplace / "stopped")
    for step in (10, 20):
        shutil.rmtree(workplace / "stopped" / "checkpoints" / str(step))
    assert "step 15" in train(workplace, workplace / "stopped", *labelled(workplace)).stderr
    assert rows_of(workplace / "stopped") == rows_of(workplace / "whole")


@pytest.mark.slow
def test_other_labels_are_another_run(workplace):
    other = [*LABELLED, f"--config.labels={workplace / 'truth.txt'}"]
    assert "other data" in refused("train", *arguments_of(workplace, workplace / "whole"), *other)
    unlabelled = refused("train", *arguments_of(workplace, workplace / "new"), "--config.task=classify")
    assert "has none: name a list" in unlabelled
    short = written(workplace / "short.txt", 0)
    short.write_text("s0/0.wav a\ns1/0.wav b\n")
    few = refused("train", *arguments_of(workplace, workplace / "new"), *LABELLED, f"--config.labels={short}")
    assert "2 prepared utterances" in few and "that have a label" in few


@pytest.mark.slow
def test_fine_tuning_begins_with_the_classes(workplace):
    """From a run with the same labels; with other labels of the same names the centres are drawn anew."""
    begin = [
        *arguments_of(workplace, workplace / "tuned")[:1],
        f"--config.data_dir={workplace / 'labelled'}",
        f"--config.labels={workplace / 'wrong.txt'}",
        f"--config.init_from={workplace / 'whole'}",
        "--config.task=classify",
        "--config.classify.sub_centres=2",
        "--config.learning_rate=0.0",
        "--config.final_learning_rate=0.0",
        "--config.views.local_frames=60",
        "--config.views.global_count=0",
        "--config.held_out_frames=40",
    ]
    ran("train", *begin, f"--workdir={workplace / 'tuned'}")
    found = [
        classes_of(folder, json.loads((folder / "config.json").read_text()), step=20)
        for folder in (workplace / "whole", workplace / "tuned")
    ]
    assert found[0][0] == found[1][0] != ""
    np.testing.assert_array_equal(found[0][1], found[1][1])
    origin = run.read_history(workplace / "tuned")[0]["origin"]
    assert origin["drawn_anew"] == [], "prototypes and classes have their names and shapes"

    other = f"--config.labels={workplace / 'truth.txt'}"
    ran("train", *begin, f"--workdir={workplace / 'other'}", other)
    assert run.read_history(workplace / "other")[0]["origin"]["drawn_anew"] == ["classes"]
    card = (
        ran("export", f"--model={workplace / 'tuned'}", f"--output={workplace / 'model'}")
        and (workplace / "model" / "README.md").read_text()
    )
    assert f"labels of {workplace / 'wrong.txt'}" in card


@pytest.mark.slow
def test_four_devices_give_the_same_losses(workplace, monkeypatch):
    """In float64, with SDPN beside the labels, the state split in two, the classes in four."""
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    more = [*labelled(workplace), *ECAPA, "--config.model.dtype=float64", "--config.classify.sdpn_weight=0.5"]
    train_on(1, workplace, workplace / "1", *more)
    train_on(4, workplace, workplace / "4", *more, "--config.mesh.fsdp=2")
    one, four = losses_of(workplace / "1"), losses_of(workplace / "4")
    assert sorted(one) == list(range(1, 21))
    np.testing.assert_allclose(list(four.values()), list(one.values()), rtol=1e-8)


@pytest.mark.slow
def test_waveforms_and_bfloat16(workplace):
    shards = workplace / "waveforms"
    ran("prepare", f"--input={workplace / 'audio'}", f"--output={shards}", "--store=waveform", "--workers=1",
        f"--labels={workplace / 'truth.txt'}")  # fmt: skip
    arguments = f"--config={workplace / 'config.py'}", f"--config.data_dir={shards}", f"--workdir={workplace / 'on'}"
    ran("train", *arguments, "--config.store=waveform", "--config.num_steps=5", "--config.warmup_steps=2",
        "--config.task=classify", "--config.views.global_count=0", "--config.model.dtype=bfloat16")  # fmt: skip
    losses = list(losses_of(workplace / "on").values())
    assert len(losses) == 5 and np.all(np.isfinite(losses))
