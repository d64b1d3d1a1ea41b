"""The config of a training run: every field with its meaning, unit and bounds, and the checks before a run begins.

A config file is Python with a function get_config() that returns an ml_collections.ConfigDict, made by `default()` or
`load("vox2")` and changed field by field. On the command line `--config.FIELD=VALUE` changes it further. Where the file
has a function fit(config), it may then choose what depends on the data that data_dir names (see configs/own.py); what
the command line says stays.
"""

import difflib
import importlib.util
import json
import math
import operator
import os
import re
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from absl import flags
from ml_collections import ConfigDict, config_flags

from sdpn_jax import storage
from sdpn_jax.errors import UserError

# An ml_collections.ConfigDict with all FIELDS, whose attributes no type checker can know.
Config: TypeAlias = Any


# Names of models/network.py, which loads JAX; a test compares them.
ENCODERS = (
    "ecapa", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet221", "resnet293", "campplus",
    "ecapa_wespeaker",
    "eres2netv2", "eres2netv2_w24s4ep4",
)  # fmt: skip
# What a change of a field means to a run that has begun: another run, another schedule from the step reached on, or
# nothing, as no step computes anything else.
IDENTITY, SCHEDULE, FREE = "identity", "schedule", "free"


@dataclass(frozen=True)
class Field:
    """Describes a field: its default, which fixes its type, its meaning, and the values that make sense."""

    default: Any
    meaning: str
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    change: str = IDENTITY  # what a run with checkpoints makes of a change: one of the three words above


FIELDS: dict[str, Field] = {
    "workdir": Field("runs/vox2", "folder of checkpoints, logs and plots; --workdir overrides it", change=FREE),
    "data_dir": Field("data/vox2", "folder of shards made by `sdpn prepare`; a run knows them by content", change=FREE),
    "store": Field(
        "log_mel", "what the shards hold: features, or waveforms augmented on the accelerator",
        choices=("log_mel", "waveform"),
    ),
    "task": Field(
        "sdpn", "what is learnt: without labels, or from labels by classification, with SDPN beside it if wanted",
        choices=("sdpn", "classify"),
    ),
    "labels": Field(
        "", "list of `utterance label` lines for task=classify, known by content; empty: the one beside the shards",
        change=FREE,
    ),
    "true_labels": Field(
        "", "list of `utterance speaker` lines to judge the labels by in the logs; nothing learns from it", change=FREE
    ),
    "seed": Field(0, "of initialisation, shuffling and crops", at_least=0, at_most=2**63 - 1),
    "init_from": Field(
        "", "weights that a new run begins with: what --model of `sdpn embed` takes; empty: drawn at random",
        change=FREE,
    ),
    "init_networks": Field(
        "teacher", "which of a workdir's networks: its teacher for both of ours, or both, each for its own",
        choices=("teacher", "both"), change=FREE,
    ),
    "workers": Field(
        -1, "processes that read ahead; -1: chosen from the number of cores; 0: threads of this process",
        at_least=-1, change=FREE,
    ),
    "batch_size": Field(384, "utterances over all devices", at_least=2),
    "kernels": Field(
        True,
        "ECAPA in bfloat16 on NVIDIA GPUs trains with kernels written for them, which compute the same; False: by XLA",
        change=FREE,
    ),
    "microbatches": Field(
        1, "parts of the batch that pass in turn, to save memory; batch norm sees each alone", at_least=1
    ),
    "mesh.fsdp": Field(
        1, "neighbouring devices that share parameters, teacher and momentum, to save memory", at_least=1, change=FREE
    ),
    "num_epochs": Field(150, "passes over the data", at_least=0, at_most=10**6, change=SCHEDULE),
    "num_steps": Field(
        0, "optimizer steps; unless 0 they replace num_epochs", at_least=0, at_most=2**31 - 1, change=SCHEDULE
    ),
    "warmup_epochs": Field(10, "passes during which the learning rate rises", at_least=0, change=SCHEDULE),
    "warmup_steps": Field(0, "steps of the warm-up; unless 0 they replace warmup_epochs", at_least=0, change=SCHEDULE),
    "learning_rate": Field(0.4, "peak at a batch of 256; it is scaled with batch_size", at_least=0.0, change=SCHEDULE),
    "final_learning_rate": Field(1e-5, "at the last step, not scaled", at_least=0.0, change=SCHEDULE),
    "optimizer": Field(
        "sgd", "of network and prototypes; adamw and muon want a learning_rate a hundred times less",
        choices=("sgd", "lars", "adamw", "muon"),
    ),
    "momentum": Field(0.9, "of the gradients; the first of Adam's two", at_least=0.0, at_most=0.9999),
    "weight_decay": Field(5e-5, "on tensors of two or more dimensions, not on prototypes", at_least=0.0),
    "clip_norm": Field(3.0, "largest norm of a gradient; prototypes are not clipped", above=0.0),
    "clip_scope": Field(
        "tensor", "whose norm is bounded: each tensor's, that of all together, or none",
        choices=("tensor", "global", "off"),
    ),
    "prototype_multiplier": Field(
        1.0, "of the learning rate of prototypes and classes; 0: they stay as they were drawn", at_least=0.0,
        change=SCHEDULE,
    ),
    "encoder_multiplier": Field(1.0, "of the encoder's learning rate", at_least=0.0, change=SCHEDULE),
    "freeze": Field(
        (), "parameters that stay as they are, by patterns of names such as encoder/block_1/*", change=SCHEDULE
    ),
    "ema_momentum": Field(0.996, "of the teacher at step 0", at_least=0.0, at_most=1.0, change=SCHEDULE),
    "final_ema_momentum": Field(
        1.0, "of the teacher at the last step; a cosine in between", at_least=0.0, at_most=1.0, change=SCHEDULE
    ),
    "num_prototypes": Field(1024, "K", at_least=2),
    "objective.centre_projections": Field(
        False, "take the batch's mean from the teacher's projections before targets are made of them; not in the paper"
    ),
    "objective.targets": Field(
        "balanced", "of the teacher; centred is DINO's way, softmax the paper's, sinkhorn the released code's",
        choices=("balanced", "centred", "softmax", "sinkhorn"),
    ),
    "objective.student_temperature": Field(0.1, "tau of the student's softmax", at_least=1e-3),
    "objective.sharpening": Field(0.25, "T: targets are the softmax at student_temperature * T", above=0.0),
    "objective.offset_rate": Field(
        0.5, "share of the present batch in the offset of balanced and centred targets", at_least=0.0, at_most=1.0
    ),
    "objective.sinkhorn_iterations": Field(3, "of sinkhorn targets", at_least=1),
    "objective.me_max_weight": Field(1.0, "of mean-entropy maximisation of the student's probabilities", at_least=0.0),
    "objective.koleo_weight": Field(
        0.1, "of diversity: nearest-neighbour entropy of the embeddings of each view group", at_least=0.0
    ),
    "objective.koleo_group": Field(
        0, "utterances among which KoLeo looks for neighbours; 0: the whole batch", at_least=0
    ),
    "objective.off_diagonal_weight": Field(
        0.0, "of dimension regularisation: squared correlations of the embedding's dimensions", at_least=0.0
    ),
    "objective.frobenius_weight": Field(
        0.0, "of dimension regularisation: Frobenius norm of their correlation matrix", at_least=0.0
    ),
    "objective.dimension_normalisation": Field(
        "l2", "of the embeddings before dimension regularisation", choices=("l2", "standardise")
    ),
    "classify.head": Field(
        "aam", "softmax with a margin of the angle (ArcFace) or of the cosine (CosFace)", choices=("aam", "am")
    ),
    "classify.scale": Field(30.0, "of the cosines before the softmax", above=0.0),
    "classify.margin": Field(
        0.2, "of the label's class, in radians with aam", at_least=0.0, at_most=1.5, change=SCHEDULE
    ),
    "classify.margin_from": Field(
        0.1, "share of the run after which the margin rises from 0", at_least=0.0, at_most=1.0, change=SCHEDULE
    ),
    "classify.margin_until": Field(
        0.4, "share of the run after which it is whole", at_least=0.0, at_most=1.0, change=SCHEDULE
    ),
    "classify.sub_centres": Field(1, "of a class, of which the nearest counts", at_least=1),
    "classify.top_k": Field(0, "nearest wrong classes of a view that gain a margin (inter-top-k)", at_least=0),
    "classify.top_k_margin": Field(
        0.06, "that they gain, in radians with aam; negative: they are spared, as clusters that may be of one speaker",
        at_least=-1.5, at_most=1.5,
    ),
    "classify.gate_epoch": Field(
        0, "epoch, counted from 1, from which labels are distrusted where their loss is that of wrong ones; 0: never",
        at_least=0, change=SCHEDULE,
    ),
    "classify.correct_epoch": Field(
        0, "epoch from which distrusted labels give way to what the teacher finds in the clean view; 0: never",
        at_least=0, change=SCHEDULE,
    ),
    "classify.correct_temperature": Field(0.1, "of the softmax of cosines by which it finds it", above=0.0),
    "classify.correct_above": Field(
        0.5, "probability above which what it finds is believed", at_least=0.0, at_most=1.0
    ),
    "classify.sdpn_weight": Field(
        0.0, "of SDPN's loss beside that of the labels, on all utterances, also those without one", at_least=0.0
    ),
    "ssps.from_epoch": Field(
        0, "epoch, counted from 1, from which targets may be of another utterance (SSPS); 0: never", at_least=0
    ),
    "ssps.share": Field(0.5, "of the utterances that get their target from another one", at_least=0.0, at_most=1.0),
    "ssps.clusters": Field(
        25_000, "of clean utterances' embeddings; the other one is of the nearest cluster beside its own", at_least=2
    ),
    "views.global_count": Field(
        1, "clean views of an utterance, for the teacher; 0 where labels alone are learnt from", at_least=0
    ),
    "views.global_frames": Field(400, "their length in frames of 10 ms", at_least=5),
    "views.global_augmented": Field(
        0.0, "share of the global views that are augmented as the local ones are; the paper's are clean",
        at_least=0.0, at_most=1.0,
    ),
    "views.local_count": Field(4, "augmented views of an utterance, for the student", at_least=1),
    "views.local_frames": Field(200, "their length in frames of 10 ms", at_least=5),
    "views.mask_probability": Field(0.2, "of masking a local view", at_least=0.0, at_most=1.0),
    "views.mask_max_frames": Field(9, "frames masked at most", at_least=0),
    "views.mask_max_bins": Field(5, "mel bins masked at most", at_least=0),
    "views.apart": Field(False, "local views share as few frames with the first global one as the utterance allows"),
    "views.mask_value": Field(
        "mean", "what masked values become: the bin's mean, or silence (log of zero power, as in the released code)",
        choices=("mean", "silence"),
    ),
    "model.encoder": Field(
        "ecapa", "architecture of the encoder; the paper's is ECAPA-TDNN",
        choices=ENCODERS,
    ),
    "model.channels": Field((1024, 1024, 1024, 1024, 3072), "of the five frame layers of ecapa", at_least=1),
    "model.se_bottleneck": Field(128, "channels inside the squeeze-excitation of ecapa, ecapa_wespeaker", at_least=1),
    "model.attention": Field(128, "channels of the attention in the pooling of ecapa, ecapa_wespeaker", at_least=1),
    "model.width": Field(
        0, "channels of the first layer of other encoders, from which the others follow; 0: as published", at_least=0
    ),
    "model.embedding_size": Field(512, "D", at_least=1),
    "model.hidden_size": Field(2048, "of the projection head", at_least=1),
    "model.projection_size": Field(256, "P", at_least=1),
    "model.dtype": Field(
        "bfloat16", "of convolutions and products; parameters, norms, losses and EMA are float32",
        choices=("bfloat16", "float16", "float32", "float64"),
    ),
    "model.remat": Field(False, "compute the inside of the blocks again in the backward pass, to save memory"),
    "held_out": Field(
        0, "utterances kept from training, on whose crops the teacher is watched without labels", at_least=0
    ),
    "held_out_frames": Field(
        0, "length of these crops in frames of 10 ms; 0: views.local_frames", at_least=0, change=FREE
    ),
    "log_every": Field(100, "steps between rows of metrics", at_least=1, change=FREE),
    "checkpoint_every": Field(1000, "steps between checkpoints, a multiple of log_every", at_least=1, change=FREE),
    "checkpoint_minutes": Field(30.0, "most minutes between checkpoints; 0: no bound", at_least=0.0, change=FREE),
    "keep_checkpoints": Field(3, "how many of the newest checkpoints are kept", at_least=1, change=FREE),
    "keep_every": Field(0, "unless 0, checkpoints of its multiples are never deleted (steps)", at_least=0, change=FREE),
    "profile": Field(False, "record steps 10 to 20 of this start for TensorBoard's profile plug-in", change=FREE),
    "eval.input": Field("", "folder of audio, list or shards that the trial lists speak of", change=FREE),
    "eval.trials": Field((), "trial lists; none: no evaluation on trials while training", change=FREE),
    "eval.every_steps": Field(10000, "steps between evaluations on trials and held-out crops", at_least=1, change=FREE),
    "stages.classify": Field(
        "", "config of the second stage's rounds, a shipped name or a file, for `sdpn stages`", change=FREE
    ),
    "stages.rounds": Field(2, "of clusters and classification after SDPN, at most", at_least=1, change=FREE),
    "stages.large_margin": Field("", "config of the fine-tuning after the rounds; empty: none", change=FREE),
    "stages.method": Field(
        "", "of clustering; empty: agglomerative, beyond 100,000 utterances kmeans+agglomerative",
        choices=("", "agglomerative", "kmeans", "kmeans+agglomerative"), change=FREE,
    ),
    "stages.centroids": Field(0, "of k-means, before its clusters are merged; 0: chosen", at_least=0, change=FREE),
    "stages.clusters": Field(0, "that stand for speakers; 0: chosen, rather too many", at_least=0, change=FREE),
    "stages.smallest": Field(2, "utterances of a cluster below which it is left out", at_least=1, change=FREE),
    "demo.train_speakers": Field(0, "synthetic speakers that a demo trains on; 0: no demo", at_least=0, change=FREE),
    "demo.train_utterances": Field(3, "of each of them", at_least=1, change=FREE),
    "demo.test_speakers": Field(20, "other synthetic speakers, to test with", at_least=2, change=FREE),
    "demo.test_utterances": Field(6, "of each of them", at_least=2, change=FREE),
}  # fmt: skip

# What must hold between fields: (fields, whether it does, what to say).
RULES: tuple[tuple[str, Callable[[Config], object], str], ...] = (
    ("num_steps, num_epochs", lambda c: c.num_steps or c.num_epochs, "one of them must be above 0"),
    (
        "checkpoint_every, log_every",
        lambda c: c.checkpoint_every % c.log_every == 0,
        "the first must be a multiple of the second, so that the logged means of a resumed run have no seam",
    ),
    (
        "objective.koleo_group, batch_size",
        lambda c: not c.objective.koleo_group or c.batch_size % c.objective.koleo_group == 0,
        "the first must divide the second",
    ),
    (
        "objective.koleo_group",
        lambda c: c.objective.koleo_group != 1,
        "an utterance alone has no neighbour: choose 2 or more, or 0 for the whole batch",
    ),
    (
        "batch_size, microbatches",
        lambda c: c.batch_size % c.microbatches == 0,
        "the second must divide the first",
    ),
    (
        "warmup_steps, num_steps",
        lambda c: not (c.warmup_steps and c.num_steps) or c.warmup_steps < c.num_steps,
        "the warm-up must be shorter than the run",
    ),
    (
        "warmup_epochs, num_epochs",
        lambda c: c.warmup_steps or c.num_steps or c.warmup_epochs < c.num_epochs,
        "the warm-up must be shorter than the run",
    ),
    (
        "model.width",
        lambda c: c.model.width not in (1, 2) or not c.model.encoder.startswith("eres2netv2"),
        "eres2netv2 splits its channels into groups and needs 3 or more",
    ),
    ("model.channels", lambda c: len(c.model.channels) == 5, "ecapa has five frame layers"),
    (
        "model.channels",
        lambda c: all(channels % 8 == 0 for channels in c.model.channels[1:-1]),
        "all but the first and the last must be multiples of 8",
    ),
    (
        "model.width, model.encoder",
        lambda c: c.model.encoder != "ecapa_wespeaker" or c.model.width % 8 == 0,
        "the width of ecapa_wespeaker must be a multiple of 8",
    ),
    (
        "views.global_count, task, classify.sdpn_weight, classify.correct_epoch",
        lambda c: c.views.global_count or not _teacher_sees(c),
        "the teacher of SDPN, and that which corrects labels, needs a global view",
    ),
    (
        "classify.correct_epoch, classify.gate_epoch",
        lambda c: not c.classify.correct_epoch or 0 < c.classify.gate_epoch <= c.classify.correct_epoch,
        "labels are corrected where they are distrusted: the gate must come first",
    ),
    ("stages.clusters", lambda c: c.stages.clusters != 1, "all utterances in one cluster teach nothing"),
    (
        "stages.clusters, stages.centroids",
        lambda c: not c.stages.centroids or c.stages.clusters <= c.stages.centroids,
        "clusters are merged from centroids, of which there must be more",
    ),
    (
        "stages.centroids, stages.method",
        lambda c: not c.stages.centroids or c.stages.method == "kmeans+agglomerative",
        "centroids are of kmeans+agglomerative: set --config.stages.method, or leave them out",
    ),
    ("labels, task", lambda c: not c.labels or c.task == "classify", "labels are learnt by task=classify alone"),
    (
        "ssps.from_epoch, task",
        lambda c: not c.ssps.from_epoch or (c.ssps.from_epoch > 1 and c.task == "sdpn"),
        "neighbours are known from the second epoch on, and are positives of SDPN alone",
    ),
    (
        "classify.margin_from, classify.margin_until",
        lambda c: c.classify.margin_from <= c.classify.margin_until,
        "the margin must be whole after it begins to rise",
    ),
    (
        "eval.trials, eval.input",
        lambda c: not c.eval.trials or c.eval.input,
        "eval.input must name the recordings that the trial lists speak of",
    ),
    (
        "eval.trials",
        lambda c: max(Counter(Path(path).stem for path in c.eval.trials).values(), default=1) == 1,
        "two lists have the same file name, under which their results are logged: rename one",
    ),
)


def _teacher_sees(config: Config) -> bool:
    """Whether the teacher hears views of its own."""
    return config.task == "sdpn" or config.classify.sdpn_weight > 0 or config.classify.correct_epoch > 0


def default() -> Config:
    """Makes a config of all fields, locked, with the values of SDPN on VoxCeleb2 (arXiv 2308.02774)."""
    nested: dict[str, Any] = {}
    for name, field in FIELDS.items():
        group, _, last = name.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[last] = field.default
    return ConfigDict(nested).lock()


def get(config: Config, field: str) -> Any:
    """Returns a field's value by its full name, such as "model.dtype"."""
    return operator.attrgetter(field)(config)


def check(config: Config) -> None:
    """Checks all values; raises UserError naming every field that is out of bounds, its value and the bound."""
    faults = [_no_field(name) for name in _flat(config.to_dict()) if name not in FIELDS]
    for name, field in FIELDS.items():
        value = get(config, name)
        if fault := _of_another_type(field.default, value) or _out_of_bounds(field, value):
            faults.append(f"{name}={_shown(value)} {fault}")
    for names, holds, message in () if faults else RULES:
        if not holds(config):
            values = ", ".join(f"{name}={_shown(get(config, name))}" for name in names.split(", "))
            faults.append(f"{values}: {message}")
    if faults:
        raise UserError("; ".join(faults))


def check_data(config: Config, utterances: int, store: str, labelled: int | None = None) -> None:
    """Checks the config against its data: the number of prepared utterances and what the shards store.

    labelled: how many utterances can be learnt from where that takes a label.
    """
    if store != config.store:
        raise UserError(
            f"{config.data_dir} holds shards of {store}, the config says store={config.store!r}: set "
            f"--config.store={store}, or prepare with --store={config.store}"
        )
    if config.held_out >= utterances:
        raise UserError(f"held_out={config.held_out} must be less than the {utterances} prepared utterances")
    left = utterances - config.held_out if labelled is None else labelled
    if config.batch_size > left:
        of = f" left of {utterances}" if left < utterances else ""
        of += f", of which held_out={config.held_out} are kept from training" if config.held_out else ""
        of += "" if labelled is None else ", that have a label"
        raise UserError(f"batch_size={config.batch_size} is more than the {left} prepared utterances{of}: lower it")
    if config.ssps.from_epoch and 2 * config.ssps.clusters > left:
        raise UserError(f"ssps.clusters={config.ssps.clusters} of {left} utterances: choose at most half as many")
    steps, warmup = run_length(config, left // config.batch_size)
    if warmup >= steps:
        raise UserError(
            f"the warm-up of {warmup} steps (warmup_steps={config.warmup_steps}, warmup_epochs={config.warmup_epochs}) "
            f"must be shorter than the run of {steps} steps: set --config.warmup_steps below {steps}"
        )


def check_same_run(config: Config, theirs: dict, workdir: str | os.PathLike, extend: bool = False) -> None:
    """Checks that a run with checkpoints goes on as it began; raises UserError naming the fields that differ.

    theirs: that run's config as `as_json` keeps it; a field that it does not know yet has its default. Converted
    weights fix their sizes and the optimizer, whose state is beside them: once training goes on from them, their config
    is that of any run. extend: whether the schedule may differ.
    """
    ours, known = _flat(as_json(config)), _flat(theirs)
    defaults = _flat(as_json(default()))
    unknown = ours | {"optimizer": defaults["optimizer"]} if "converted_from" in theirs else defaults
    before = {name: known.get(name, unknown[name]) for name in FIELDS}
    for kind, remedy in (
        (IDENTITY, "choose another --workdir, or delete that one to start anew"),
        (SCHEDULE, "give --extend to go on from the newest checkpoint with the new schedule, or another --workdir"),
    ):
        differ = [name for name, field in FIELDS.items() if field.change == kind and before[name] != ours[name]]
        if differ and not (extend and kind == SCHEDULE):
            run = ", ".join(f"{name}={_shown(before[name])}" for name in differ)
            this = ", ".join(f"{_shown(ours[name])}" for name in differ)
            raise UserError(f"{workdir} holds a run with {run}, this config has {this}: {remedy}")


def schedule_of(config: dict) -> dict[str, Any]:
    """Returns the fields of a config, as `as_json` keeps it, that `--extend` may change: {name: value}."""
    flat = _flat(config)
    return {name: flat[name] for name, field in FIELDS.items() if field.change == SCHEDULE and name in flat}


def as_json(config: Config) -> dict[str, Any]:
    """Turns the config into what is kept in the workdir: plain dictionaries, lists, numbers and strings."""
    return json.loads(config.to_json())


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model.dtype": value} of {"model": {"dtype": value}}."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def run_length(config: Config, steps_per_epoch: int) -> tuple[int, int]:
    """Returns (steps of the run, steps of its warm-up)."""
    return (
        config.num_steps or config.num_epochs * steps_per_epoch,
        config.warmup_steps or config.warmup_epochs * steps_per_epoch,
    )


def load(source: str | os.PathLike, overrides: Sequence[str] = ()) -> Config:
    """Loads the config of a Python file, or a shipped one by name ("vox2"), and applies `--config.FIELD=VALUE` flags.

    Raises UserError for what is wrong in it, with file and line, and for overrides that name no field or do not fit
    its type. Values are not checked yet; see `check`.
    """
    path = find(str(source))
    module = _run(path, lambda: _module(path))
    config = _overridden(_get_config(path, module), overrides)
    if not hasattr(module, "fit"):
        return config
    _run(path, lambda: module.fit(config))
    return _overridden(config, overrides)


def find(source: str) -> Path:
    """Finds the file of a config: the path itself or else the shipped config of that name."""
    if storage.is_bucket(source):
        return storage.local(source)
    if Path(source).is_file():
        return Path(source)
    shipped = {path.stem: path for folder in _shipped_folders() for path in sorted(folder.glob("*.py"))}
    name = source.removeprefix("configs/").removesuffix(".py")
    if name in shipped:
        return shipped[name]
    raise UserError(f"--config={source}: no such file, and no shipped config; shipped are {', '.join(shipped)}")


def describe(config: Config) -> str:
    """Lists all fields, one per line: name, value, meaning, and choices or bounds."""
    width = max(map(len, FIELDS)) + len("--config.=")
    lines = []
    for name, field in FIELDS.items():
        flag = f"--config.{name}={_shown(get(config, name))}"
        lines.append(f"  {flag:<{width + 8}}  {field.meaning}{_bounds(field)}")
    return "\n".join(lines)


def _bounds(field: Field) -> str:
    """The choices or bounds of a field in brackets."""
    limits = {"at least": field.at_least, "at most": field.at_most, "above": field.above}
    told = [", ".join(field.choices)] if field.choices else []
    told += [f"{word} {limit:g}" for word, limit in limits.items() if limit is not None]
    return f" ({', '.join(told)})" if told else ""


def _of_another_type(default: Any, value: Any) -> str:
    """What is wrong with a value's type, or nothing: a config file may put anything in a field's place."""
    if isinstance(default, tuple):
        if not isinstance(value, (tuple, list)):
            return "must be a tuple"
        faults = (_of_another_type(default[0] if default else "", part) for part in value)
        return next((f"is wrong: each part {fault}" for fault in faults if fault), "")
    wanted = (float, int) if type(default) is float else (type(default),)
    if type(value) not in wanted:
        return f"must be of type {type(default).__name__}"
    return ""


def _no_field(name: str) -> str:
    """Says that there is no such field, and which one may have been meant."""
    near = difflib.get_close_matches(name.rpartition(".")[2], [each.rpartition(".")[2] for each in FIELDS], 1)
    return f"the config has no field {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _out_of_bounds(field: Field, value: Any) -> str:
    """What is wrong with a value, or nothing."""
    if field.choices:
        return "" if value in field.choices else f"is unknown: choose one of {', '.join(map(repr, field.choices))}"
    numbers = value if isinstance(value, (tuple, list)) else [value]
    if field.at_least is not None and not all(number >= field.at_least for number in numbers):
        return f"must be at least {field.at_least:g}"
    if field.at_most is not None and not all(number <= field.at_most for number in numbers):
        return f"must be at most {field.at_most:g}"
    if field.above is not None and not all(number > field.above for number in numbers):
        return f"must be above {field.above:g}"
    return "" if all(math.isfinite(number) for number in numbers if isinstance(number, float)) else "must be finite"


def _shown(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return repr(tuple(value))
    return repr(value) if isinstance(value, str) else f"{value}"


def _shipped_folders() -> list[Path]:
    """Where configs lie: inside an installed package, beside the package in a clone."""
    package = Path(__file__).parent
    return [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]


def _run(path: Path, function: Callable[[], Any]) -> Any:
    """Runs what a config file holds; UserError with file and line for whatever goes wrong in it."""
    try:
        return function()
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a config is a program of the user's: anything may happen in it
        raise UserError(f"{_place(path, error)}: {_one_line(error)}") from error


def _get_config(path: Path, module: ModuleType) -> Config:
    """What get_config() of the file returns, checked for being a whole config."""
    config = _run(path, lambda: module.get_config())
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() returns {type(config).__name__}, not a ConfigDict: begin with default()")
    missing = [name for name in FIELDS if not _has(config, name)]
    if missing:
        raise UserError(f"{path}: the config has no {missing[0]}: begin with sdpn_jax.config.default() or load('vox2')")
    return config


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    if spec is None or spec.loader is None:
        raise UserError(f"--config={path}: a config is a Python file, whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _place(path: Path, error: BaseException) -> str:
    """`file, line N` of an error in a config file: the last of its own lines that led there."""
    file = str(path.resolve())
    if isinstance(error, SyntaxError) and error.filename == file:
        return f"{path}, line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{path}, line {lines[-1]}" if lines else str(path)


def _one_line(error: BaseException) -> str:
    """The message of an exception in one line; of an unknown field its name and what may have been meant."""
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    field = re.match(r"\W*(?:Key \W*)?(\w+)\W", text)
    if isinstance(error, (AttributeError, KeyError)) and field and "has no attribute" not in text:
        return _no_field(field[1])
    return f"{type(error).__name__}: {text[:300]}"


def _wanted_type(text: str) -> str:
    """absl's words about a value, `flag --config.FIELD=VALUE: ...`, with the type that the field wants."""
    found = re.match(r"flag --config\.([\w.]+)=(.*?): ", text)
    if found is None or found[1] not in FIELDS:
        return text
    return f"{found[1]}={found[2]} is no {type(FIELDS[found[1]].default).__name__}"


def _has(config: Config, field: str) -> bool:
    try:
        get(config, field)
    except AttributeError:
        return False
    return True


def _overridden(config: Config, overrides: Sequence[str]) -> Config:
    """The config after flags such as `--config.batch_size=64`, parsed by ml_collections to the fields' types."""
    values, arguments = flags.FlagValues(), ["sdpn", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
        rest = values(arguments)[1:]
    except (AttributeError, KeyError) as error:
        raise UserError(_one_line(error)) from error
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(_wanted_type(" ".join(str(error).split()))) from error
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: fields are set by --config.FIELD=VALUE")
    return values["config"].value
