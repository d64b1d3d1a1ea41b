"""Your own recordings, from one hour to a hundred, without labels: steps, batch and held-out share follow their number.

    sdpn prepare --input=RECORDINGS --output=data/own --distortions=all
    sdpn train --config=own

A small encoder, which two CPU cores train in an hour or so on three hours of speech. Microphone, room and line tell
short recordings apart as well as voices do: all views are of augmented and distorted versions (docs/ablation.md).
"""

import math

from ml_collections import ConfigDict

from sdpn_jax.config import load
from sdpn_jax.data.shards import is_shards, read_metadata


def get_config() -> ConfigDict:
    """vox2.py with a small encoder and augmented global views, for 2,000 utterances."""
    config = load("vox2")
    config.workdir = "runs/own"
    config.data_dir = "data/own"
    config.num_epochs = 0
    config.warmup_epochs = 0
    config.learning_rate = 0.8  # 0.1 at a batch of 32
    config.ema_momentum = 0.99
    config.views.global_augmented = 1.0
    config.views.global_frames = 300  # shorter and fewer views: more steps in the same time
    config.views.local_count = 2

    config.model.channels = (128, 128, 128, 128, 384)
    config.model.dtype = "float32"

    config.log_every = 20
    config.checkpoint_every = 100
    choose(config, 2000)
    return config


def fit(config: ConfigDict) -> None:
    """Chooses by the number of utterances in data_dir, once they are prepared."""
    if is_shards(config.data_dir):
        choose(config, read_metadata(config.data_dir)["utterances"])


def choose(config: ConfigDict, utterances: int) -> None:
    """Sets batch, steps and held-out utterances: 700 steps for 250 utterances, ten times that for 25,000."""
    config.batch_size = 32 if utterances < 10_000 else 64 if utterances < 40_000 else 128
    config.batch_size = max(min(config.batch_size, utterances // 2), 2)
    config.num_steps = 100 * max(round(7 * math.sqrt(utterances / 250)), 1)
    config.warmup_steps = config.num_steps // 10
    config.held_out = min(utterances // 20, 500) if utterances >= 100 else 0
    config.eval.every_steps = max(config.num_steps // 700, 1) * 100
