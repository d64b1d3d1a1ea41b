"""SDPN on VoxCeleb2-dev, then rounds of clusters and classification, then large-margin fine-tuning; no labels.

    sdpn stages --config=vox2_stages

k-means to 50,000 centroids, average linkage from there to 7,500 clusters, more than the 5,994 speakers.
"""

from ml_collections import ConfigDict

from sdpn_jax.config import load


def get_config() -> ConfigDict:
    """vox2.py, with held-out utterances by which the stages are compared, and what follows it."""
    config = load("vox2")
    config.workdir = "runs/vox2_stages"
    config.held_out = 1000
    config.stages.classify = "vox2_classify"
    config.stages.large_margin = "vox2_large_margin"
    config.stages.rounds = 2
    config.stages.method = "kmeans+agglomerative"
    config.stages.centroids = 50_000
    config.stages.clusters = 7500
    return config
