"""SDPN to the letter of its paper (arXiv 2308.02774): targets are a plain sharpened softmax, no mean-entropy term."""

from ml_collections import ConfigDict

from sdpn_jax.config import load


def get_config() -> ConfigDict:
    """vox2.py with the loss L = L_CE + 0.1 L_DR of the paper."""
    config = load("vox2")
    config.workdir = "runs/vox2_paper"
    config.objective.targets = "softmax"
    config.objective.me_max_weight = 0.0
    return config
