"""vox2.py on one card of 16 GB or more: the same batch of 384 and the same numbers in half the memory.

A smaller batch with a lower learning rate is another recipe, and batch norm over parts of the batch (`microbatches`)
another network. Here each block's inside is computed again in the backward pass instead of being kept, for a
third more work, so that all 384 utterances pass at once and every statistic is theirs. Two cards share the batch, too.
"""

from ml_collections import ConfigDict

from sdpn_jax.config import load


def get_config() -> ConfigDict:
    """vox2.py, rematerialised."""
    config = load("vox2")
    config.workdir = "runs/vox2_1gpu"
    config.model.remat = True
    return config
