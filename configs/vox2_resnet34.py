"""SDPN on VoxCeleb2 with ResNet34 (He et al., arXiv 1512.03385; r-vector, arXiv 1910.12592) in place of ECAPA-TDNN."""

from ml_collections import ConfigDict

from sdpn_jax.config import load


def get_config() -> ConfigDict:
    """vox2.py with a residual network over time and frequency: fewer parameters, more arithmetic and memory."""
    config = load("vox2")
    config.workdir = "runs/vox2_resnet34"
    config.model.encoder = "resnet34"
    config.model.embedding_size = 256
    return config
