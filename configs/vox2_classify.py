"""Classification of VoxCeleb2-dev by labels, true ones or those of clusters: what most speaker toolkits train.

    sdpn prepare --input=voxceleb2/dev/aac --output=data/vox2 --labels=folders
    sdpn train --config=vox2_classify

AAM-softmax with two sub-centres a class and inter-top-k, one view of 2 s, batches of 512 utterances. With labels of
clusters (`--config.labels=FILE`, or `sdpn stages`) those that look wrong are distrusted and later corrected.
"""

from ml_collections import ConfigDict

from sdpn_jax.config import load


def get_config() -> ConfigDict:
    """vox2.py without SDPN, from labels."""
    config = load("vox2")
    config.task = "classify"
    config.workdir = "runs/vox2_classify"
    config.batch_size = 512
    config.num_epochs = 40
    config.warmup_epochs = 2
    config.learning_rate = 0.05  # 0.1 at a batch of 512
    config.weight_decay = 1e-4
    config.ema_momentum = 0.999
    config.views.local_count = 1
    config.classify.sub_centres = 2
    config.classify.top_k = 5
    config.classify.gate_epoch = 6
    config.classify.correct_epoch = 11
    return config
