"""SDPN with dimension regularisation, after the follow-up (arXiv 2505.13826); formulas and sources in losses.py."""

from ml_collections import ConfigDict

from sdpn_jax.config import load


def get_config() -> ConfigDict:
    """vox2.py with the Frobenius norm of the embeddings' correlation matrix in place of KoLeo."""
    config = load("vox2")
    config.workdir = "runs/vox2_dimreg"
    config.objective.koleo_weight = 0.0
    config.objective.frobenius_weight = 1.0
    return config
