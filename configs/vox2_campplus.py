"""SDPN on VoxCeleb2 with CAM++ (Wang et al., arXiv 2303.00332) in place of ECAPA-TDNN."""

from ml_collections import ConfigDict

from sdpn_jax.config import load


def get_config() -> ConfigDict:
    """vox2.py with densely connected time-delay layers: a third of the parameters."""
    config = load("vox2")
    config.workdir = "runs/vox2_campplus"
    config.model.encoder = "campplus"
    return config
