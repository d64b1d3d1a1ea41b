"""A run of 20 steps on made-up recordings: what it needs, and what it leaves behind."""

import json
from pathlib import Path

import numpy as np
import soundfile
from commands import process, ran

ECAPA_SIZES = dict(encoder="ecapa", channels=(16, 16, 16, 16, 24), se_bottleneck=8, attention=8)
TINY = """
from sdpn_jax.config import load

def get_config():
    config = load("librispeech")
    config.batch_size = 8
    config.num_steps = 20
    config.warmup_steps = 5
    config.num_prototypes = 16
    config.views.global_frames = 60
    config.views.local_count = 2
    config.views.local_frames = 40
    config.model.encoder = "resnet18"
    config.model.width = 4
    config.model.embedding_size = 16
    config.model.hidden_size = 16
    config.model.projection_size = 8
    config.held_out = 4
    config.log_every = 1
    config.checkpoint_every = 5
    return config
"""


def flags_of(sizes: dict) -> list[str]:
    """The flags that set these sizes of the network."""
    return [f"--config.model.{name}={value}" for name, value in sizes.items()]


ECAPA = flags_of(ECAPA_SIZES)  # in place of the encoder above, which compiles in half the time


def make_workplace(folder: Path) -> Path:
    """Fills a folder with recordings, trials, shards and a config."""
    rng = np.random.default_rng(0)
    for speaker in range(4):
        (folder / "audio" / f"s{speaker}").mkdir(parents=True)
        for i in range(5):
            time_s = np.arange(rng.integers(14000, 22000)) / 16000
            buzz = sum(np.sin(2 * np.pi * (100 + 40 * speaker) * k * time_s) / k for k in range(1, 20))
            noise = rng.normal(size=len(time_s))
            soundfile.write(folder / "audio" / f"s{speaker}" / f"{i}.wav", 0.05 * (buzz + noise), 16000)
    (folder / "audio" / "broken.wav").write_bytes(b"this is not audio")
    ids = [f"s{speaker}/{i}.wav" for speaker in range(4) for i in range(5)]
    pairs = [(a, b) for n, a in enumerate(ids) for b in ids[n + 1 :]]
    (folder / "trials.txt").write_text("".join(f"{int(a[:2] == b[:2])} {a} {b}\n" for a, b in pairs))
    (folder / "config.py").write_text(TINY)
    ran(
        "prepare",
        f"--input={folder / 'audio'}",
        f"--output={folder / 'shards'}",
        "--augmentations=2",
        "--workers=1",
    )
    return folder


def arguments_of(folder: Path, workdir: Path) -> list[str]:
    return [f"--config={folder / 'config.py'}", f"--config.data_dir={folder / 'shards'}", f"--workdir={workdir}"]


def evaluated(folder: Path) -> list[str]:
    trials = f"--config.eval.trials=('{folder / 'trials.txt'}',)"
    return [f"--config.eval.input={folder / 'audio'}", trials, "--config.eval.every_steps=10"]


def train(folder: Path, workdir: Path, *more):
    return ran("train", *arguments_of(folder, workdir), *more)


def train_on(devices: int, folder: Path, workdir: Path, *more):
    """In a process of its own, which is how it can have several devices."""
    done = process("train", *arguments_of(folder, workdir), *more, devices=devices)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def rows_of(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses_of(workdir: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in rows_of(workdir) if "loss" in row}
