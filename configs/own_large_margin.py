"""Fine-tuning after own_classify.py: longer views, a margin of 0.4, a quarter of the steps, a small learning rate."""

from ml_collections import ConfigDict

from sdpn_jax.config import load
from sdpn_jax.data.shards import is_shards


def get_config() -> ConfigDict:
    """own_classify.py without rise of the margin."""
    config = load("own_classify")
    config.workdir = "runs/own_large_margin"
    config.learning_rate = 0.02
    config.views.local_frames = 400
    config.classify.margin = 0.4
    config.classify.margin_from = 0.0
    config.classify.margin_until = 0.0
    choose(config)
    return config


def fit(config: ConfigDict) -> None:
    """Chooses by the number of utterances in data_dir, once they are prepared."""
    if is_shards(config.data_dir):
        by_size = load("own_classify", [f"--config.data_dir={config.data_dir}"])
        config.batch_size, config.held_out, config.num_steps = by_size.batch_size, by_size.held_out, by_size.num_steps
        choose(config)


def choose(config: ConfigDict) -> None:
    """Sets the steps, from those of own_classify.py."""
    config.num_steps = max(config.num_steps // 400, 1) * 100
    config.warmup_steps = config.num_steps // 10
    config.eval.every_steps = config.num_steps
