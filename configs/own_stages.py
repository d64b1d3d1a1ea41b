"""Your own recordings, without labels: own.py, then two rounds of clusters and classification, then a larger margin.

    sdpn stages --config=own_stages

For recordings of which each speaker made several: see docs/stages.md.
"""

from ml_collections import ConfigDict

from sdpn_jax.config import load


def get_config() -> ConfigDict:
    """own.py and what follows it; for 2,000 utterances."""
    config = load("own")
    config.workdir = "runs/own_stages"
    config.held_out_frames = 150  # more crops, also of short utterances
    config.stages.classify = "own_classify"
    config.stages.large_margin = "own_large_margin"
    return config


def fit(config: ConfigDict) -> None:
    """Chooses by the number of utterances in data_dir, once they are prepared, as own.py does."""
    by_size = load("own", [f"--config.data_dir={config.data_dir}"])
    for name in ("batch_size", "num_steps", "warmup_steps", "held_out"):
        config[name] = by_size[name]
    config.eval.every_steps = by_size.eval.every_steps
