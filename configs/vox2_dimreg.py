"""SDPN with dimension regularisation, after the follow-up (arXiv 2505.13826); formulas and sources in losses.py."""

from ml_collections import ConfigDict

from configs import vox2


def get_config() -> ConfigDict:
    """vox2.py with the Frobenius norm of the embeddings' correlation matrix in place of KoLeo."""
    config = vox2.get_config()
    config.workdir = "runs/vox2_dimreg"
    config.objective.koleo_weight = 0.0
    config.objective.frobenius_weight = 1.0
    return config
