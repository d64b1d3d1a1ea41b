"""The second stage on your own recordings: classification by labels, for one to a hundred hours.

    sdpn train --config=own_classify --config.labels=FILE --config.init_from=runs/own

With true labels add --config.classify.top_k=0: no two classes are of one speaker then.
"""

import math

from ml_collections import ConfigDict

from sdpn_jax.config import load
from sdpn_jax.data.shards import is_shards, read_metadata


def get_config() -> ConfigDict:
    """own.py's encoder and data, one view of 2 s, AAM-softmax that spares near classes; for 2,000 utterances."""
    config = load("own")
    config.task = "classify"
    config.workdir = "runs/own_classify"
    config.learning_rate = 0.4
    config.views.global_count = 0
    config.views.local_count = 1
    config.classify.top_k = 4  # clusters of one speaker, which must not be pushed apart (docs/stages.md)
    config.classify.top_k_margin = -0.3
    choose(config, 2000)
    return config


def fit(config: ConfigDict) -> None:
    """Chooses by the number of utterances in data_dir, once they are prepared."""
    if is_shards(config.data_dir):
        choose(config, read_metadata(config.data_dir)["utterances"])


def choose(config: ConfigDict, utterances: int) -> None:
    """Sets batch, steps and held-out utterances: a quarter of the steps of own.py, of twice its batch."""
    batch = 64 if utterances < 10_000 else 128 if utterances < 40_000 else 256
    config.batch_size = max(min(batch, utterances // 4), 2)
    config.num_steps = 100 * max(round(1.75 * math.sqrt(utterances / 250)), 1)
    config.warmup_steps = config.num_steps // 10
    config.held_out = min(utterances // 20, 500) if utterances >= 100 else 0
    config.eval.every_steps = max(config.num_steps // 700, 1) * 100
