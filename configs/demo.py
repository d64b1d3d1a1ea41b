"""The demo: synthetic speakers, a small encoder, all stages, a few minutes on a laptop, no data and no network."""

from ml_collections import ConfigDict

from sdpn_jax.config import load


def get_config() -> ConfigDict:
    """librispeech.py, still smaller, on a corpus that it speaks itself."""
    config = load("librispeech")
    config.workdir = "runs/demo"
    demo = config.demo
    demo.train_speakers = 200
    demo.train_utterances = 3
    demo.test_speakers = 20
    demo.test_utterances = 6

    config.num_steps = 200
    config.warmup_steps = 30
    config.num_prototypes = 256
    config.views.global_frames = 300
    config.views.local_frames = 150
    config.model.channels = (64, 64, 64, 64, 192)
    config.model.embedding_size = 192
    config.model.hidden_size = 512
    config.model.projection_size = 128
    config.log_every = 10
    config.checkpoint_every = 50
    config.eval.every_steps = 50
    return config
