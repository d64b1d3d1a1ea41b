"""Stages in one command: what they leave behind, how they go on where they were stopped; positives of neighbours."""

import json
import shutil

import numpy as np
import pytest
from commands import ran, refused
from small_run import arguments_of, losses_of, make_workplace, rows_of, train

CLASSIFY = """
from sdpn_jax.config import load

def get_config():
    config = load("FIRST")
    config.task = "classify"
    config.num_steps = 10
    config.checkpoint_every = 5
    config.views.global_count = 0
    config.views.local_count = 1
    config.views.local_frames = FRAMES
    return config
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = make_workplace(tmp_path_factory.mktemp("workplace"))
    for name, frames in (("classify", 40), ("tune", 60)):
        text = CLASSIFY.replace("FIRST", str(folder / "config.py")).replace("FRAMES", str(frames))
        (folder / f"{name}.py").write_text(text)
    (folder / "speakers.txt").write_text("".join(f"s{s}/{i}.wav s{s}\n" for s in range(4) for i in range(5)))
    ran("stages", *staged(folder, folder / "whole"))
    return folder


def staged(folder, workdir):
    return [
        *arguments_of(folder, workdir),
        f"--config.stages.classify={folder / 'classify.py'}",
        f"--config.stages.large_margin={folder / 'tune.py'}",
        "--config.stages.clusters=4",
        f"--config.true_labels={folder / 'speakers.txt'}",
        f"--config.eval.input={folder / 'audio'}",
        f"--config.eval.trials=('{folder / 'trials.txt'}',)",
    ]


def results_of(workdir):
    return json.loads((workdir / "stages.json").read_text())


@pytest.mark.slow
def test_stages_leave_everything_behind(workplace):
    results = results_of(workplace / "whole")
    names = list(results["stages"])
    assert names[:2] == ["1-sdpn", "2-classify"]
    first, second = (results["stages"][name] for name in names[:2])
    assert second["begun_from"] == "1-sdpn" and second["steps"] == 10 and first["steps"] == 20
    assert second["clusters"] <= 4 and 0 <= second["nmi"] <= 1
    for name, row in results["stages"].items():
        last = [found for found in rows_of(workplace / "whole" / name) if "crop_eer_percent" in found][-1]
        assert row["crop_eer_percent"] == last["crop_eer_percent"]
        assert row["eer_percent/trials"] == last["eer_percent/trials"]
    best = min(results["stages"], key=lambda name: results["stages"][name]["crop_eer_percent"])
    assert results["best"] == best
    stopped = results["stages"]["2-classify"]["crop_eer_percent"] >= first["crop_eer_percent"]
    assert ("3-classify" in names) != stopped, "rounds go on while held-out crops gain"
    assert any(name.endswith("large-margin") for name in names) == best_before_tuning(results).endswith("-classify")
    labels = (workplace / "whole" / "2-clusters" / "pseudo_labels.txt").read_text().splitlines()
    assert 2 <= len({line.split()[1] for line in labels}) <= 4


def best_before_tuning(results):
    rounds = [name for name in results["stages"] if not name.endswith("large-margin")]
    return min(rounds, key=lambda name: results["stages"][name]["crop_eer_percent"])


@pytest.mark.slow
def test_stages_go_on_at_every_arrow(workplace):
    """Without the last checkpoint of the second stage, its clusters' note and its results, they come out the same."""
    again = workplace / "again"
    shutil.copytree(workplace / "whole", again)
    labels = (again / "2-clusters" / "pseudo_labels.txt").read_bytes()
    before, embedded = results_of(again), (again / "1-sdpn.npz").stat().st_mtime_ns
    (again / "2-clusters" / "clusters.json.made_of.json").unlink()
    (again / "stages.json").unlink()
    shutil.rmtree(again / "2-classify" / "checkpoints" / "10")
    arguments = [word.replace(str(workplace / "whole"), str(again)) for word in staged(workplace, again)]
    said = ran("stages", *arguments)
    assert "resumed from the checkpoint of step 5" in said.stderr
    assert (again / "1-sdpn.npz").stat().st_mtime_ns == embedded, "they are there, of the same model"
    assert results_of(again)["stages"] == before["stages"]
    assert f"--model={again / before['best']}" in said.stdout
    assert "choose another --workdir" in refused("stages", *arguments, "--config.stages.clusters=3")
    assert (again / "2-clusters" / "pseudo_labels.txt").read_bytes() == labels, "a run has learnt from them"


@pytest.mark.slow
def test_stages_that_cannot_be_compared(workplace):
    arguments = staged(workplace, workplace / "none")
    assert "held_out=0: stages are compared" in refused("stages", *arguments, "--config.held_out=0")
    assert "stages.classify is empty" in refused("stages", *arguments, "--config.stages.classify=")
    assert "no such file" in refused("stages", *arguments, "--config.stages.large_margin=nothing")
    assert "it must be classify" in refused("stages", *arguments, f"--config.stages.classify={workplace / 'config.py'}")
    assert "must be more" in refused("stages", *arguments, "--config.stages.centroids=3")
    held = (workplace / "tune.py").read_text().replace("return", 'config.freeze = ("encoder/mistyped/*",)\n    return')
    (workplace / "held.py").write_text(held)
    told = refused("stages", *arguments, f"--config.stages.large_margin={workplace / 'held.py'}")
    assert "'encoder/mistyped/*' names no parameter" in told
    (workplace / "few.txt").write_text("s0/0.wav s0\ns0/1.wav s0\n")
    assert "is unclear" in refused("stages", *arguments, f"--config.true_labels={workplace / 'few.txt'}")
    assert not (workplace / "none" / "1-sdpn").exists()


@pytest.mark.slow
def test_positives_of_neighbours_resume_without_a_seam(workplace):
    """Two steps an epoch; stopped in the midst of one, and where one begins."""
    more = ["--config.ssps.from_epoch=3", "--config.ssps.share=1.0", "--config.ssps.clusters=4",
            f"--config.true_labels={workplace / 'speakers.txt'}"]  # fmt: skip
    train(workplace, workplace / "ssps", *more)
    rows = [row for row in rows_of(workplace / "ssps") if "loss" in row]
    assert all(row["exchanged"] == 0 for row in rows[:4]) and all(row["exchanged"] > 0.5 for row in rows[4:])
    assert all(0 <= row["exchanged_right"] <= 1 for row in rows)
    plain = workplace / "plain"
    train(workplace, plain)
    ours, theirs = (list(losses_of(path).values()) for path in (workplace / "ssps", plain))
    np.testing.assert_array_equal(ours[:4], theirs[:4])
    assert ours[4] != theirs[4]
    for gone in ([20], [20, 15]):
        stopped = workplace / f"ssps-{len(gone)}"
        shutil.copytree(workplace / "ssps", stopped)
        for step in gone:
            shutil.rmtree(stopped / "checkpoints" / str(step))
        train(workplace, stopped, *more)
        assert rows_of(stopped) == rows_of(workplace / "ssps")
    assert "choose at most half as many" in refused(
        "train", *arguments_of(workplace, workplace / "many"), "--config.ssps.from_epoch=3", "--config.ssps.clusters=9"
    )
