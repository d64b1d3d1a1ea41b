"""Whole runs of the commands: training, resuming, embeddings and scores, other people's weights, bad input."""

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch_files
from commands import command_of, line_of_refusal, process, ran, refused
from small_run import ECAPA, arguments_of, evaluated, losses_of, make_workplace, rows_of, train

from sdpn_jax.data import shards
from sdpn_jax.training import optim
from sdpn_jax.weights import run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A prepared folder, and one uninterrupted training run in it, with its log."""
    folder = make_workplace(tmp_path_factory.mktemp("workplace"))
    (folder / "whole.log").write_text(train(folder, folder / "whole", *evaluated(folder)).stderr)
    return folder


@pytest.mark.slow
def test_a_run_leaves_everything_behind(workplace):
    workdir = workplace / "whole"
    rows = rows_of(workdir)
    assert sorted(losses_of(workdir)) == list(range(1, 21))
    assert [row["step"] for row in rows if "eer_percent/trials" in row] == [0, 10, 20]
    assert all("crop_eer_percent" in row for row in rows if "eer_percent/trials" in row)
    wanted = (
        "prototypes_in_use targets_told_apart embedding_std effective_rank learning_rate teacher_momentum gradient_norm"
    )
    assert all(set(wanted.split()) <= set(row) for row in rows if "loss" in row)
    assert (workdir / "training.png").stat().st_size > 10_000
    assert list(workdir.glob("events.out.tfevents.*"))
    assert json.loads((workdir / "config.json").read_text())["batch_size"] == 8
    assert (workplace / "shards" / "skipped.txt").read_text().count("\n") == 1


@pytest.mark.slow
def test_waveforms_augmented_on_the_device(workplace):
    """The same commands with --store=waveform; shards of another kind than the config says are refused."""
    shards = workplace / "waveforms"
    ran("prepare", f"--input={workplace / 'audio'}", f"--output={shards}", "--store=waveform", "--workers=1")
    arguments = f"--config={workplace / 'config.py'}", f"--config.data_dir={shards}", f"--workdir={workplace / 'on'}"
    assert "store=waveform" in refused("train", *arguments)
    ran("train", *arguments, "--config.store=waveform", "--config.num_steps=5", "--config.warmup_steps=2")
    losses = list(losses_of(workplace / "on").values())
    assert len(losses) == 5
    assert np.all(np.isfinite(losses))
    ran("inspect", f"--input={shards}", f"--config={workplace / 'config.py'}")
    ran("inspect", f"--input={workplace / 'shards'}", f"--config={workplace / 'config.py'}", "--step=3")
    assert (workplace / "shards" / "inspection" / "views-3.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_collapse_warning(workplace):
    """Without the terms that keep utterances apart the same run collapses, and says so."""
    nothing = "--config.objective.me_max_weight=0 --config.objective.koleo_weight=0 --config.objective.targets=softmax"
    steps = "--config.objective.sharpening=1 --config.num_steps=100 --config.checkpoint_every=100"
    said = train(workplace, workplace / "collapsed", *nothing.split(), *steps.split()).stderr
    assert "the run looks collapsed" in said
    assert "the run looks collapsed" not in (workplace / "whole.log").read_text()


@pytest.mark.slow
def test_export_and_score(workplace):
    output = workplace / "e.npz"
    common = f"--model={workplace / 'whole'}", f"--output={output}"
    said = ran("embed", workplace / "audio", *common).stdout
    assert str(output) in said
    from_audio = dict(np.load(output))
    assert from_audio["embeddings"].shape == (20, 16)
    assert from_audio["embeddings"].dtype == np.float32
    assert "broken.wav" in (workplace / "e.skipped.txt").read_text()

    ran("embed", workplace / "shards", *common, "--format=npy")
    ids = (workplace / "e" / "ids.txt").read_text().split()
    from_shards = np.load(workplace / "e" / "embeddings.npy")
    rows = [ids.index(name) for name in from_audio["ids"]]
    a, b = from_audio["embeddings"], from_shards[rows]
    cosine = np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > 0.9999  # the shards hold float16

    scores = workplace / "scores"
    ran("score", f"--embeddings={output}", f"--trials={workplace / 'trials.txt'}", f"--output={scores}")
    results = json.loads((scores / "results.json").read_text())
    assert results["trials"] == 190
    assert results["targets"] == 40
    last = [row for row in rows_of(workplace / "whole") if "eer_percent/trials" in row][-1]
    assert results["eer_percent"] == pytest.approx(last["eer_percent/trials"])


@pytest.mark.slow
def test_released_weights_are_exported_and_trained_on(workplace):
    """A run's weights leave under the released names, come back as a released checkpoint, and training goes on."""
    train(workplace, workplace / "ecapa", *ECAPA)
    contents = {"prototypes": np.random.default_rng(0).random((16, 8), np.float32), "epoch": 3}
    for part in ("student", "teacher"):
        file = workplace / f"{part}.safetensors"
        said = ran("convert", f"--input={workplace / 'ecapa'}", f"--output={file}", f"--encoder={part}").stdout
        assert f"the {part} of step 20 written to {file}" in said
        contents[part] = {f"module.{name}": array for name, array in safetensors.numpy.load_file(file).items()}
    torch_files.write(workplace / "released.pth", contents)
    converted = workplace / "converted"
    arguments = f"--input={workplace / 'released.pth'}", f"--output={converted}"
    assert "--config.model.channels=(16, 16, 16, 16, 24)" in ran("convert", *arguments, "--step=10").stdout
    assert "holds a run already" in refused("convert", *arguments)

    embeddings = []
    for workdir in ("ecapa", "converted"):
        output = workplace / f"of_{workdir}.npz"
        ran("embed", workplace / "shards", f"--model={workplace / workdir}", f"--output={output}")
        embeddings.append(np.load(output)["embeddings"])
    np.testing.assert_array_equal(*embeddings)

    wrong = *arguments_of(workplace, converted), *ECAPA, "--config.num_prototypes=17"
    assert "holds a run with num_prototypes=16" in refused("train", *wrong)
    train(workplace, converted, *ECAPA)
    assert sorted(losses_of(converted)) == list(range(11, 21))
    assert np.all(np.isfinite(list(losses_of(converted).values())))
    assert "converted_from" not in json.loads((converted / "config.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_resumes_without_a_seam(workplace, by):
    """Asked to stop it first saves; killed it goes on from its last checkpoint."""
    workdir = workplace / f"killed-{by.name}"
    command = command_of("train", *arguments_of(workplace, workdir), *evaluated(workplace))
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    wait_for(workdir / "checkpoints" / "5", process)
    process.send_signal(by)
    said = process.communicate()[1].decode()
    assert process.returncode == (-by if by == signal.SIGKILL else 143)
    assert max(losses_of(workdir)) < 20, "the run was over before it was killed"

    resumed = train(workplace, workdir, *evaluated(workplace)).stderr
    step = re.search(r"resumed from the checkpoint of step (\d+)", resumed)[1]
    if by == signal.SIGTERM:
        assert f"stopped by SIGTERM; saved at step {step} of 20" in said
    resumed, whole = rows_of(workdir), rows_of(workplace / "whole")
    assert [row["step"] for row in resumed] == [row["step"] for row in whole]
    for actual, expected in zip(resumed, whole, strict=True):
        assert actual == expected


@pytest.mark.slow
def test_an_extended_run_is_the_new_schedule_from_the_step_reached(workplace, monkeypatch):
    """Against one run of 20 steps whose schedules are, by hand, the old ones for 10 steps and then the new ones."""
    train(workplace, workplace / "extended", "--config.num_steps=10")
    longer = *arguments_of(workplace, workplace / "extended"), "--config.learning_rate=0.4"
    assert "--extend" in refused("train", *longer)
    assert "from step 10 on the schedule is another: num_steps 10 -> 20" in ran("train", *longer, "--extend").stderr
    assert "beyond the 15 steps" in refused("train", *longer, "--extend", "--config.num_steps=15")

    rate, momentum = optim.warmup_cosine, optim.ema_momentum
    old_rate, new_rate = rate(0.8 / 32, 1e-5, 5, 10), rate(0.4 / 32, 1e-5, 5, 20)
    old_momentum, new_momentum = momentum(0.99, 1.0, 10), momentum(0.99, 1.0, 20)
    both = lambda old, new: lambda *_: lambda step: jnp.where(step < 10, old(step), new(step))  # noqa: E731
    monkeypatch.setattr(optim, "warmup_cosine", both(old_rate, new_rate))
    monkeypatch.setattr(optim, "ema_momentum", both(old_momentum, new_momentum))
    train(workplace, workplace / "piecewise", "--config.learning_rate=0.4")
    assert losses_of(workplace / "extended") == losses_of(workplace / "piecewise")


@pytest.mark.slow
def test_a_run_that_moves_and_one_that_begins_from_it(workplace, tmp_path):
    shutil.copytree(workplace / "whole", tmp_path / "run")
    shutil.copytree(workplace / "shards", tmp_path / "moved")
    moved = f"--config.data_dir={tmp_path / 'moved'}"
    assert "resumed from the checkpoint of step 20" in train(workplace, tmp_path / "run", moved).stderr

    begin = *arguments_of(workplace, tmp_path / "new"), f"--config.init_from={tmp_path / 'run'}"
    other = "--config.model.width=3", "--config.model.embedding_size=24"
    assert "nothing of its encoder fits" in refused("train", *begin, *other)
    assert "freeze='nothing/*' names no parameter" in refused("train", *begin, "--config.freeze=('nothing/*',)")
    said = ran("train", *begin, "--config.freeze=('encoder/*',)", "--config.model.hidden_size=24").stderr
    assert "arrays are drawn anew" in said
    encoders = [run.read_network(tmp_path / name)[1]["params"]["encoder"] for name in ("run", "new")]
    jax.tree.map(np.testing.assert_array_equal, *encoders)
    ran("export", f"--model={tmp_path / 'new'}", f"--output={tmp_path / 'model'}")
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"begun from: the teacher of step 20 of {tmp_path / 'run'}" in card


@pytest.mark.slow
def test_the_first_interrupt_saves(workplace):
    workdir = workplace / "interrupted"
    arguments = *arguments_of(workplace, workdir), "--config.num_steps=20000"
    command = command_of("train", *arguments)
    default = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 # a script's & has it ignored
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=default) as process:
        try:
            wait_for(workdir / "checkpoints" / "5", process)
            assert "is in use by process" in refused("train", *arguments)
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=100)[1]
        finally:
            process.kill()
    assert process.returncode == 130
    step = re.search(r"stopped by Ctrl-C; saved at step (\d+) of 20000", said)[1]
    assert (workdir / "checkpoints" / step).exists()
    assert "Traceback" not in said
    assert not (workdir / "run.lock").exists()


@pytest.mark.slow
def test_an_evaluation_that_a_stop_cut_off_is_made_up_for(workplace):
    workdir = workplace / "cut"
    shutil.copytree(workplace / "whole", workdir)
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(lines[:-1]))
    assert "eer_percent/trials" in lines[-1], "the last evaluation, of step 20"
    train(workplace, workdir, *evaluated(workplace))
    assert rows_of(workdir) == rows_of(workplace / "whole")


@pytest.mark.slow
def test_bad_input_gets_one_line(workplace):
    arguments = arguments_of(workplace, workplace / "none")
    on_three = process("train", *arguments, devices=3)
    assert "cannot be divided over 3 devices" in line_of_refusal(on_three)
    assert "no_such_field" in refused("train", *arguments, "--config.no_such_field=1")
    assert "no_such_config.py" in refused("train", "--config=no_such_config.py")
    assert "metadata.json is missing" in refused("train", *arguments, f"--config.data_dir={workplace / 'audio'}")
    assert "batch_size=64 is more than the 16" in refused("train", *arguments, "--config.batch_size=64")
    assert "objective.targets='magic'" in refused("train", *arguments, "--config.objective.targets=magic")
    assert "num_prototypes=16" in refused(
        "train", *arguments_of(workplace, workplace / "whole"), "--config.num_prototypes=17"
    )
    unknown = workplace / "unknown.txt"
    unknown.write_text("1 s0/0.wav s9/9.wav\n")
    trials = f"--config.eval.input={workplace / 'audio'}", f"--config.eval.trials=('{unknown}',)"
    assert "s9/9.wav" in refused("train", *arguments, *trials)

    metadata = json.loads((workplace / "shards" / "metadata.json").read_text())
    other = workplace / "other"
    other.mkdir()
    metadata["features"]["hop"] = 200
    (other / "metadata.json").write_text(json.dumps(metadata))
    assert "hop=200" in refused("train", *arguments, f"--config.data_dir={other}")

    output = f"--output={workplace / 'x.npz'}"
    assert "nowhere" in refused("embed", "nowhere", output, f"--model={workplace / 'whole'}")
    embed = "embed", workplace / "audio", output
    assert "config.json is missing" in refused(*embed, f"--model={workplace / 'audio'}")
    assert "no checkpoint of step 7" in refused(*embed, f"--model={workplace / 'whole'}", "--step=7")
    assert "nowhere" in refused("prepare", "--input=nowhere", f"--output={workplace / 'x'}")

    assert "is not a PyTorch checkpoint" in refused("convert", f"--input={unknown}", f"--output={workplace / 'x'}")
    run_of = f"--input={workplace / 'whole'}"
    assert "end in .safetensors" in refused("convert", run_of, f"--output={workplace / 'x'}")
    file = f"--output={workplace / 'x.safetensors'}"
    assert "no checkpoint of step 7" in refused("convert", run_of, file, "--step=7")


@pytest.mark.slow
def test_a_folder_of_shards_is_opened_once_and_steps_can_be_profiled(workplace, monkeypatch):
    opened, read = [], shards.read_metadata
    monkeypatch.setattr(shards, "read_metadata", lambda folder: opened.append(folder) or read(folder))
    said = train(workplace, workplace / "profiled", "--config.profile=True").stderr
    assert len(opened) == 1
    assert "steps 10 to 20 recorded in" in said
    assert list((workplace / "profiled" / "plugins" / "profile").rglob("*.xplane.pb"))


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.time() + 300
    while not path.exists():
        assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.time() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_checkpoints_by_the_clock_end_with_a_row(workplace):
    """So that a run that goes on there writes the rows of one that was never stopped."""
    often = "--config.log_every=5", "--config.checkpoint_every=20", "--config.checkpoint_minutes=1e-6"
    train(workplace, workplace / "clock", *often)
    steps = sorted(int(path.name) for path in (workplace / "clock" / "checkpoints").glob("[0-9]*"))
    assert len(steps) > 1 and all(step % 5 == 0 for step in steps)
