"""A small corpus of real speech on a CPU: an encoder of 128 channels, about fifteen minutes on two cores.

    sdpn prepare --input=librispeech/train --output=data/librispeech --augmentations=12
    sdpn train --config=librispeech --config.eval.input=librispeech \
        --config.eval.trials="('librispeech/trials.txt',)"
"""

from ml_collections import ConfigDict

from sdpn_jax.config import load


def get_config() -> ConfigDict:
    """vox2.py with a small encoder, a small batch and few steps."""
    config = load("vox2")
    config.workdir = "runs/librispeech"
    config.data_dir = "data/librispeech"
    config.batch_size = 32
    config.num_epochs = 0
    config.num_steps = 700
    config.warmup_epochs = 0
    config.warmup_steps = 70
    config.learning_rate = 0.8  # 0.1 at a batch of 32
    config.ema_momentum = 0.99

    config.model.channels = (128, 128, 128, 128, 384)
    config.model.dtype = "float32"

    config.held_out = 27  # of 251, which leaves seven whole batches
    config.log_every = 20
    config.checkpoint_every = 100
    config.eval.every_steps = 100
    return config
