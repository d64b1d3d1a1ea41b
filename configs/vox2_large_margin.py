"""Fine-tuning after vox2_classify.py: views of 6 s and a margin of 0.5, few epochs, a small learning rate.

    sdpn train --config=vox2_large_margin --config.init_from=runs/vox2_classify

Large-margin fine-tuning (Thienpondt, Desplanques and Demuynck, arXiv 2010.11255).
"""

from ml_collections import ConfigDict

from sdpn_jax.config import load


def get_config() -> ConfigDict:
    """vox2_classify.py with long views, without rise of the margin, inter-top-k or corrections."""
    config = load("vox2_classify")
    config.workdir = "runs/vox2_large_margin"
    config.batch_size = 256
    config.num_epochs = 5
    config.warmup_epochs = 0
    config.warmup_steps = 100
    config.learning_rate = 1e-4
    config.views.global_count = 0
    config.views.local_frames = 600
    config.classify.margin = 0.5
    config.classify.margin_from = 0.0
    config.classify.margin_until = 0.0
    config.classify.top_k = 0
    config.classify.gate_epoch = 1
    config.classify.correct_epoch = 0
    return config
