"""SDPN as its authors' released code runs it on 4 GPUs of 96 utterances."""

from ml_collections import ConfigDict

from sdpn_jax.config import load


def get_config() -> ConfigDict:
    """vox2.py with Sinkhorn targets, KoLeo within one GPU's share, the prototypes' gradient summed over the GPUs."""
    config = load("vox2")
    config.workdir = "runs/vox2_released"
    config.prototype_multiplier = 4.0
    config.objective.targets = "sinkhorn"
    config.objective.koleo_group = 96
    config.views.mask_value = "silence"
    return config
