"""SDPN on VoxCeleb2-dev with positives from neighbours in the last ten epochs (SSPS, arXiv 2505.14561).

Half of the utterances then get their target from another one of the nearest of 25,000 clusters, found anew each epoch.
"""

from ml_collections import ConfigDict

from sdpn_jax.config import load


def get_config() -> ConfigDict:
    """vox2.py, but for its end."""
    config = load("vox2")
    config.workdir = "runs/vox2_ssps"
    config.ssps.from_epoch = 141
    config.ssps.clusters = 25_000
    return config
