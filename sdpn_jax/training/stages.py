"""SDPN and the stages after it: embeddings, clusters, classification by them, again, and fine-tuning; without labels.

A workdir holds one folder a stage, in their order. Every arrow between them starts again where it was cut off: runs
resume, what is complete is known by what it was made of and not made again.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from absl import logging

from sdpn_jax import config as configs
from sdpn_jax import storage
from sdpn_jax.config import Config
from sdpn_jax.data.shards import open_shards
from sdpn_jax.errors import UserError
from sdpn_jax.eval import cluster
from sdpn_jax.models.network import initial_variables, network_of
from sdpn_jax.speaker import corpus
from sdpn_jax.training import loop, memory, sharding
from sdpn_jax.training.logs import METRICS, read_rows
from sdpn_jax.training.program import check_patterns
from sdpn_jax.weights import run

# What all stages share with the first: the data, the encoder, and by what they are compared.
SHARED = (
    "data_dir", "store", "seed", "workers", "mesh.fsdp", "checkpoint_minutes", "held_out", "eval.input", "eval.trials",
    "true_labels",
)  # fmt: skip
RESULTS, LABELS, JUDGED_BY = "stages.json", "pseudo_labels.txt", "crop_eer_percent"
QUICKLY_LINKED = 100_000  # utterances, whose average linkage takes minutes
OF_CLUSTERS = ("clusters", "left_out", "nmi", "purity", "b_cubed_f")


@dataclass
class Stages:
    """The stages of one workdir: the first one's config, what has come out of each, and the minutes spent on it.

    skip_damaged: records that cannot be read are left out, see data.shards.Records.
    """

    config: Config
    workdir: storage.Place
    skip_damaged: bool = False
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    minutes: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        """Begins with the minutes that earlier starts of the command spent."""
        try:
            minutes = storage.read_json(self.workdir / RESULTS)["minutes"]
            self.minutes = {str(name): float(value) for name, value in minutes.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self.minutes = {}

    @property
    def best(self) -> str:
        """The stage whose held-out crops are told apart best, of equal ones the earliest."""
        return min(self.results, key=lambda name: self.results[name][JUDGED_BY])

    @contextlib.contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Adds the time inside to the minutes of a stage, whatever ends it."""
        started = time.time()
        try:
            yield
        finally:
            self.minutes[name] = self.minutes.get(name, 0.0) + (time.time() - started) / 60
            self.write()

    def write(self) -> None:
        """Writes stages.json: the stages that this start of the command has reached, the minutes of all."""
        if jax.process_index() == 0:
            best = self.best if self.results else ""
            told = {"best": best, "stages": self.results, "minutes": self.minutes}
            storage.write_text(storage.make_folder(self.workdir) / RESULTS, json.dumps(told, indent=2) + "\n")


def check(config: Config, stages: Stages) -> None:
    """Checks all stages before the first one, which may take days; raises UserError."""
    configs.check(config)
    if not config.held_out:
        raise UserError("held_out=0: stages are compared by crops of held-out utterances, set --config.held_out=100")
    if not config.stages.classify:
        raise UserError("stages.classify is empty: name the config of the second stage, such as own_classify")
    if config.task != "sdpn":
        raise UserError(f"task={config.task!r}: the first stage is SDPN, without labels")
    shards, mesh = open_shards(config.data_dir), sharding.make_mesh(config.mesh.fsdp)
    for name in ("clusters", "centroids"):
        if config.stages[name] > shards.utterances:
            raise UserError(f"stages.{name}={config.stages[name]} is more than the {shards.utterances} utterances")
    if config.true_labels:
        cluster.read_speakers(config.true_labels, shards.ids)
    network = network_of(config.model)  # of all stages
    shapes = jax.eval_shape(lambda: initial_variables(network, 0))["params"]
    for name in ("classify", "large_margin"):
        if not config.stages[name]:
            continue
        settings = stage_config(stages, name)
        if settings.task != "classify":
            raise UserError(f"stages.{name}={config.stages[name]} has task={settings.task!r}: it must be classify")
        configs.check(settings)
        check_patterns(settings.freeze, {"network": shapes, "prototypes": 0, "classes": 0})
        configs.check_data(settings, shards.utterances, shards.store)
        sharding.check_batch_size(settings.batch_size, settings.microbatches, mesh)


def train_in_stages(config: Config, workdir: str | os.PathLike, skip_damaged: bool = False) -> Stages:
    """Runs SDPN, then rounds of clusters and classification while held-out crops gain, then fine-tuning.

    skip_damaged: as in loop.train_and_evaluate. Raises what that does, and UserError for a config whose stages cannot
    be compared.
    """
    memory.keep_freed()  # before the checks ask for the devices
    stages = Stages(config, storage.place(workdir), skip_damaged)
    check(config, stages)

    train(stages, "1-sdpn", config.copy_and_resolve_references())
    for number in range(2, config.stages.rounds + 2):
        begin, name = stages.best, f"{number}-classify"
        settings = stage_config(stages, "classify")
        settings.labels, found = clusters_of(stages, begin, f"{number}-clusters")
        train(stages, name, settings, begin, found)
        if stages.best != name:
            logging.info("%s does not tell held-out crops apart better than %s: no more rounds", name, stages.best)
            break
    begin = stages.best
    if config.stages.large_margin and begin.endswith("-classify"):
        settings = stage_config(stages, "large_margin")
        settings.labels = str(stages.workdir / begin.replace("classify", "clusters") / LABELS)
        train(stages, f"{len(stages.results) + 1}-large-margin", settings, begin)
    return stages


def stage_config(stages: Stages, name: str) -> Config:
    """Loads the config of a later stage, with what it shares with the first one."""
    first = stages.config
    settings = configs.load(first.stages[name], [f"--config.data_dir={first.data_dir}"])
    for shared in SHARED:
        group, _, last = shared.rpartition(".")
        (settings[group] if group else settings)[last] = configs.get(first, shared)
    settings.model.update(first.model)
    settings.held_out_frames = first.held_out_frames or first.views.local_frames
    return settings


def train(
    stages: Stages, name: str, settings: Config, begin: str = "", clusters: Mapping[str, Any] | None = None
) -> None:
    """Trains one stage, from the teacher of stage `begin` where there is one, and notes its figures."""
    logging.info("---- stage %s", name)
    folder = stages.workdir / name
    settings.workdir = str(folder)
    if begin:
        settings.init_from = str(stages.workdir / begin)
    with stages.clock(name):
        loop.train_and_evaluate(settings, folder, skip_damaged=stages.skip_damaged)
    sharding.all_agree(True)  # that the first process has written its last row
    rows = [row for row in read_rows(storage.local(folder / METRICS)) if JUDGED_BY in row]
    last = {key: value for key, value in rows[-1].items() if key.startswith(("crop_", "eer_percent/"))}
    about = {key: value for key, value in (clusters or {}).items() if key in OF_CLUSTERS}
    stages.results[name] = {"begun_from": begin, "steps": rows[-1]["step"], **about, **last}
    stages.write()


def clusters_of(stages: Stages, begin: str, name: str) -> tuple[str, dict[str, Any]]:
    """Embeds the training data with the teacher of a stage and clusters it; returns (list of labels, figures).

    All processes embed their share, into a folder that all see, and the first one clusters.
    """
    config, folder = stages.config, stages.workdir / name
    embeddings, shards = stages.workdir / f"{begin}.npz", open_shards(config.data_dir)
    model = corpus.load_model(stages.workdir / begin)
    made_of = {"model": model.digest, "data": shards.fingerprint()}
    settings = {key: config.stages[key] for key in ("method", "clusters", "centroids", "smallest")}

    def embed_share(index: int, count: int) -> None:
        parts = corpus.plan([config.data_dir])
        corpus.embed_parts(model, parts, embeddings, task_index=index, task_count=count)

    def embed_all() -> None:
        if jax.process_count() > 1:
            embed_share(jax.process_index(), jax.process_count())
            sharding.all_agree(True)
        if jax.process_index() == 0:  # finds what the others have done, and joins it
            embed_share(0, 1)

    def find_clusters() -> None:
        if jax.process_index() == 0:
            method = settings["method"] or default_method(shards.utterances)
            cluster.cluster_file(
                embeddings, folder, settings["clusters"] or None, method, config.true_labels or None, seed=config.seed,
                centroids=settings["centroids"] or None, smallest=settings["smallest"],
            )  # fmt: skip

    with stages.clock(name):
        unless_made(embeddings, made_of, embed_all)
        learnt = run.steps_of(stages.workdir / name.replace("clusters", "classify"))
        unless_made(folder / "clusters.json", {**made_of, **settings, "seed": config.seed}, find_clusters, bool(learnt))
    return str(folder / LABELS), storage.read_json(folder / "clusters.json")


def default_method(utterances: int) -> str:
    """Chooses average linkage, whose small pure clusters teach most; of utterances themselves while that is quick."""
    return "agglomerative" if utterances <= QUICKLY_LINKED else "kmeans+agglomerative"


def unless_made(path: storage.Place, made_of: Mapping[str, Any], make: Callable[[], None], used: bool = False) -> None:
    """Calls `make`, which writes `path`, unless a note says that it was made of the same; all processes ask.

    used: something was learnt from it, so that it must not become another; UserError if it would.
    """
    note = path.with_name(f"{path.name}.made_of.json")
    try:
        before = storage.read_json(note) if storage.exists(path) else None
    except (OSError, ValueError):
        before = None
    if used and before is not None and before != made_of:
        raise UserError(
            f"{path.parent} was made of other settings, data or weights, and a run has learnt from it: choose another "
            "--workdir, or delete that run and those after it"
        )
    if sharding.all_agree(before == made_of):
        return
    if jax.process_index() == 0:
        storage.remove(note)
    make()
    if jax.process_index() == 0:
        storage.write_text(note, json.dumps(made_of) + "\n")
    sharding.all_agree(True)


def table(results: Mapping[str, Mapping[str, Any]], minutes: Mapping[str, float]) -> str:
    """Tabulates the stages in Markdown: what each cost, the clusters it learnt from, and its error rates."""
    lists = [key for key in next(iter(results.values())) if key.startswith("eer_percent/")]
    columns = {
        "steps": "steps", "minutes": "minutes", "clusters": "clusters", "nmi": "NMI",
        JUDGED_BY: "EER of held-out crops, %", **{key: f"EER {key.partition('/')[2]}, %" for key in lists},
    }  # fmt: skip
    lines = ["| stage | " + " | ".join(columns.values()) + " |", "|---|" + "---:|" * len(columns)]
    for name, row in results.items():
        found = {**row, "minutes": minutes.get(name)}
        cells = (_shown(found.get(key)) for key in columns)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
