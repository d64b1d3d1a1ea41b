"""SDPN on VoxCeleb2-dev (arXiv 2308.02774): 1,092,009 utterances of 5,994 speakers, unlabelled.

The paper's run in all but two points: targets are balanced, without which all of them fall on one prototype (see
docs/ablation.md), and the student's mean entropy is maximised, as in its authors' code. vox2_paper.py is the letter of
the paper, vox2_released.py what that code does, vox2_dimreg.py the follow-up.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The whole run; every other config changes fields of this one."""
    config = ConfigDict()
    config.workdir = "runs/vox2"  # checkpoints, logs and plots; --workdir overrides it
    config.data_dir = "data/vox2"  # shards made by sdpn_jax.data.prepare
    config.store = "log_mel"  # what the shards hold: features augmented on the host, or "waveform"s for the accelerator
    config.seed = 0  # of initialisation, shuffling and crops
    config.demo = ConfigDict()  # empty: no demo
    config.workers = -1  # processes that read ahead; -1: chosen from the number of cores; 0: threads of this process

    config.batch_size = 384  # utterances over all devices
    config.microbatches = 1  # parts of the batch that pass in turn, to save memory; batch norm sees each alone
    config.mesh = ConfigDict()
    config.mesh.fsdp = 1  # neighbouring devices that share parameters, teacher and momentum, to save memory
    config.num_epochs = 150  # passes over the data
    config.num_steps = 0  # if not 0, replaces num_epochs
    config.warmup_epochs = 10
    config.warmup_steps = 0  # if not 0, replaces warmup_epochs

    config.learning_rate = 0.4  # at a batch of 256, scaled with the batch size
    config.final_learning_rate = 1e-5  # at the last step, not scaled
    config.momentum = 0.9
    config.weight_decay = 5e-5  # on tensors of two or more dimensions, not on prototypes
    config.clip_norm = 3.0  # largest norm of a gradient; prototypes are not clipped
    config.clip_scope = "tensor"  # whose norm: of every "tensor" alone, "global" of all together; or "off"
    config.prototype_multiplier = 1.0  # of the learning rate; 0: prototypes stay as they were drawn
    config.ema_momentum = 0.996  # of the teacher at step 0
    config.final_ema_momentum = 1.0  # at the last step, a cosine in between

    config.num_prototypes = 1024
    config.objective = objective = ConfigDict()
    objective.targets = "balanced"  # of the teacher; or "centred" (DINO), "softmax" (paper), "sinkhorn" (released code)
    objective.student_temperature = 0.1
    objective.sharpening = 0.25  # T: targets are the softmax at student_temperature * T
    objective.offset_rate = 0.5  # share of the present batch in the offset that "balanced" and "centred" keep
    objective.sinkhorn_iterations = 3  # of "sinkhorn"
    objective.me_max_weight = 1.0  # mean-entropy maximisation of the student's probabilities
    objective.koleo_weight = 0.1  # diversity: nearest-neighbour entropy of the embeddings of each view group
    objective.koleo_group = 0  # utterances among which KoLeo looks for neighbours; 0: the whole batch
    objective.off_diagonal_weight = 0.0  # dimension regularisation: squared correlations of the embedding's dimensions
    objective.frobenius_weight = 0.0  # dimension regularisation: Frobenius norm of their correlation matrix
    objective.dimension_normalisation = "l2"  # of the embeddings before it: "l2" or "standardise"

    config.views = views = ConfigDict()
    views.global_count = 1
    views.global_frames = 400  # of 10 ms
    views.local_count = 4
    views.local_frames = 200
    views.mask_probability = 0.2  # of masking a local view
    views.mask_max_frames = 9
    views.mask_max_bins = 5
    views.mask_value = "mean"  # "mean" of the mel bin, or "silence" (log of zero power, as the released code)

    config.model = model = ConfigDict()
    model.channels = (1024, 1024, 1024, 1024, 3072)
    model.se_bottleneck = 128
    model.attention = 128
    model.embedding_size = 512
    model.hidden_size = 2048  # of the projection head
    model.projection_size = 256
    model.dtype = "bfloat16"  # of convolutions and products; parameters, norms, losses and EMA are float32
    model.remat = False  # computes the inside of the blocks again in the backward pass, to save memory

    config.held_out = 0  # utterances kept from training, on whose crops the teacher is watched without labels
    config.log_every = 100  # steps
    config.checkpoint_every = 1000  # steps, a multiple of log_every
    config.checkpoint_minutes = 30.0  # the longest time between checkpoints; 0: steps alone count
    config.keep_checkpoints = 3  # the newest ones
    config.keep_every = 0  # if not 0, checkpoints of steps that are multiples of it are never deleted

    config.eval = evaluation = ConfigDict()
    evaluation.input = ""  # audio folder or shards that the trial lists speak of
    evaluation.trials = ()  # trial lists; none: no evaluation while training
    evaluation.every_steps = 10000  # between evaluations on trials and held-out crops
    return config
