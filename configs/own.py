"""Your own recordings, from one hour to a hundred, without labels: steps, batch and held-out share follow their number.

    sdpn prepare --input=RECORDINGS --output=data/own --distortions=all
    sdpn train --config=own

A small encoder, which two CPU cores train in twenty minutes on three hours of speech. Microphone, room and line tell
short recordings apart as well as voices do: all views are of augmented and distorted versions (docs/ablation.md).
"""

import math

from ml_collections import ConfigDict

from sdpn_jax.config import load
from sdpn_jax.data.shards import is_shards, read_metadata


def get_config() -> ConfigDict:
    """librispeech.py, which has the small encoder, with other views; for 2,000 utterances."""
    config = load("librispeech")
    config.workdir = "runs/own"
    config.data_dir = "data/own"
    config.views.global_augmented = 1.0
    config.views.global_frames = 300  # shorter and fewer views: more steps in the same time
    config.views.local_count = 2
    choose(config, 2000)
    return config


def fit(config: ConfigDict) -> None:
    """Chooses by the number of utterances in data_dir, once they are prepared."""
    if is_shards(config.data_dir):
        choose(config, read_metadata(config.data_dir)["utterances"])


def choose(config: ConfigDict, utterances: int) -> None:
    """Sets batch, steps and held-out utterances: 700 steps for 250 utterances, ten times that for 25,000."""
    batch = 32 if utterances < 10_000 else 64 if utterances < 40_000 else 128
    config.batch_size = max(min(batch, utterances // 2), 2)
    config.num_steps = 100 * max(round(7 * math.sqrt(utterances / 250)), 1)
    config.warmup_steps = config.num_steps // 10
    config.held_out = min(utterances // 20, 500) if utterances >= 100 else 0
    config.eval.every_steps = max(config.num_steps // 700, 1) * 100
