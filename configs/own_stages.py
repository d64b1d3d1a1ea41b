"""Your own recordings, without labels: own.py, then two rounds of clusters and classification, then a larger margin.

    sdpn stages --config=own_stages

For recordings of which each speaker made several; where each made one, own.py alone is better (docs/stages.md).
"""

from ml_collections import ConfigDict

from sdpn_jax.config import load


def get_config() -> ConfigDict:
    """own.py and what follows it."""
    config = load("own")
    config.workdir = "runs/own_stages"
    config.held_out_frames = 150  # more crops, also of short utterances
    config.stages.classify = "own_classify"
    config.stages.large_margin = "own_large_margin"
    return config
