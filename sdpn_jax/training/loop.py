"""The training loop, readable from top to bottom: data, state, steps, logs, checkpoints, evaluation."""

import datetime
import json
import math
import operator
import time
from collections.abc import Callable
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import scipy.special
from absl import logging
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from sdpn_jax import storage
from sdpn_jax.data import device, pipeline, records
from sdpn_jax.errors import UserError
from sdpn_jax.eval import plots, scoring
from sdpn_jax.eval.metrics import crop_retrieval
from sdpn_jax.eval.trials import read_trials, trial_rows
from sdpn_jax.models.network import Network, network_of
from sdpn_jax.speaker import corpus
from sdpn_jax.speaker.embedder import Embedder
from sdpn_jax.training import checkpoint, hosts, optim, sharding
from sdpn_jax.training.step import Objective, TrainState, init_state, looks_collapsed, make_train_step

# Fields that a resumed run may change: none of them changes what is computed at any step.
FREE_FIELDS = (
    "workdir log_every checkpoint_every checkpoint_minutes keep_checkpoints keep_every workers mesh eval demo".split()
)


@dataclass(frozen=True)
class Program:
    """What a config computes on a mesh: how a run begins, what a step does, and how many there are."""

    init: Callable  # () -> TrainState
    step: Callable  # (state, batch with the hosts' wishes, noise bank) -> (state, metrics), not compiled yet
    num_steps: int
    warmup_steps: int
    peak_learning_rate: float


def program_of(config: ConfigDict, network: Network, mesh: Mesh, steps_per_epoch: int, make_views) -> Program:
    """The program of a config for the devices of `mesh`; make_views(step, batch, bank) -> views [B, V, T, F]."""
    num_steps = config.num_steps or config.num_epochs * steps_per_epoch
    warmup_steps = config.warmup_steps or config.warmup_epochs * steps_per_epoch
    peak = config.learning_rate * config.batch_size / 256
    learning_rate = optim.warmup_cosine(peak, config.final_learning_rate, warmup_steps, num_steps)
    optimizer = optim.sgd(
        learning_rate,
        config.momentum,
        config.weight_decay,
        config.clip_norm,
        config.clip_scope,
        config.prototype_multiplier,
    )
    teacher_momentum = optim.ema_momentum(config.ema_momentum, config.final_ema_momentum, num_steps)
    objective = Objective(**config.objective)
    step_on_views = make_train_step(network, optimizer, objective, learning_rate, teacher_momentum, config.microbatches)

    def init() -> TrainState:
        return init_state(network, config.num_prototypes, optimizer, config.seed)

    def step(state: TrainState, batch: dict, bank: dict) -> tuple[TrainState, dict]:
        state, metrics = step_on_views(state, make_views(state.step, batch, bank))
        return state, metrics | {"wish": batch["wish"].max()}

    of_state, everywhere = sharding.state_sharding(mesh, jax.eval_shape(init)), sharding.replicated(mesh)
    return Program(
        init=jax.jit(init, out_shardings=of_state),
        step=jax.jit(
            step,
            in_shardings=(of_state, sharding.batch_sharding(mesh), everywhere),
            out_shardings=(of_state, everywhere),
            donate_argnums=0,
        ),
        num_steps=num_steps,
        warmup_steps=warmup_steps,
        peak_learning_rate=peak,
    )


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict:
    """Trains as `config` says, resuming from the newest checkpoint in `workdir`; returns the last row of metrics.

    After SIGTERM it saves a checkpoint and exits with hosts.STOPPED.
    """
    workdir = Path(workdir)
    mesh = sharding.make_mesh(config.mesh.fsdp)
    is_first_process = jax.process_index() == 0
    num_utterances = check_config(config, mesh)
    check_same_run(config, workdir)
    per_epoch = pipeline.steps_per_epoch(num_utterances - config.held_out, config.batch_size)
    network = network_of(config.model)
    evaluates = bool(config.eval.trials or config.held_out)
    evaluator = Evaluator(network, config) if is_first_process and evaluates else None
    if is_first_process:  # nothing is written before everything has been checked
        checkpoint.write_config(workdir, as_json(config))

    views = pipeline.Views(**config.views)
    bank, make_views = device.views_of_step(config.data_dir, config.seed, views)
    program = program_of(config, network, mesh, per_epoch, make_views)
    num_steps = program.num_steps
    state = program.init()
    logging.info(
        "parameters: encoder %s, head %s, prototypes %s",
        *(f"{parameter_overview.count_parameters(part):,}" for part in parameter_groups(state)),
    )
    logging.info(
        "%d utterances, %d steps an epoch, %d steps in all, %d devices (%s), learning rate up to %g",
        num_utterances,
        per_epoch,
        num_steps,
        mesh.size,
        jax.devices()[0].device_kind,
        program.peak_learning_rate,
    )

    checkpoints = checkpoint.manager(workdir, config.keep_checkpoints, config.keep_every)
    first_step = 0
    if checkpoints.latest_step() is not None:
        parts, first_step = checkpoint.resume(checkpoints, state_parts(state))
        state = state_of(parts)
        logging.info("resumed from the checkpoint of step %d in %s", first_step, checkpoints.directory)

    writer = MetricsWriter(workdir, first_step) if is_first_process else None

    def evaluate(done: int, state: TrainState) -> None:
        teacher = sharding.gather(state.teacher, mesh)  # by all processes
        if evaluator:
            writer.write(done, evaluator(teacher))

    if evaluates and first_step == 0:
        evaluate(0, state)
    collapse_warning = CollapseWarning(program.warmup_steps)
    bank = jax.device_put(bank, sharding.replicated(mesh))
    shares = pipeline.dataset(
        config.data_dir,
        config.batch_size,
        config.seed,
        views,
        jax.process_index(),
        jax.process_count(),
        config.held_out,
    )
    batches = pipeline.batches(shares, first_step, config.workers)
    interval, timer, train_step, metrics, wish = [], Timer(), None, None, hosts.NOTHING
    with jax.transfer_guard("disallow"), hosts.Wishes(config.checkpoint_minutes) as wishes, closing(batches):
        for step in range(first_step, num_steps):
            done, before = step + 1, metrics
            with timer.waiting():
                batch = next(batches)
                batch["wish"] = np.full(config.batch_size // jax.process_count(), wishes.now(), np.int32)
                batch = sharding.put_batch(batch, mesh)
            train_step = train_step or compiled(program.step, state, batch, bank)
            state, metrics = train_step(state, batch, bank)
            interval.append(metrics)
            if before:  # this step's metrics are still to come: the device always has a step to work on
                stop_if_not_finite(before, step, checkpoints)
                wish = int(jax.device_get(before["wish"]))
            else:
                jax.block_until_ready(metrics)
                timer = Timer()
            timer.steps += 1
            if done % config.log_every == 0 or done == num_steps or wish == hosts.STOP:
                stop_if_not_finite(metrics, done, checkpoints)
                row = interval_means(jax.device_get(interval))
                interval = []
                if is_first_process:
                    writer.write(done, row)
                    collapse_warning(done, row)
                    log_progress(done, num_steps, row, config.batch_size, timer)
            if done % config.checkpoint_every == 0 or done == num_steps or wish != hosts.NOTHING:
                checkpoint.save(checkpoints, done, state_parts(state), as_json(config))
                wishes.saved()
            if wish == hosts.STOP:
                break
            if evaluates and (done % config.eval.every_steps == 0 or done == num_steps):
                with timer.paused():
                    evaluate(done, state)
    checkpoints.wait_until_finished()
    checkpoints.close()
    rows = writer.close() if writer else []
    if wish == hosts.STOP:
        logging.warning("stopped by SIGTERM; saved at step %d of %d, the same command resumes there", done, num_steps)
        raise SystemExit(hosts.STOPPED)
    if rows:
        plots.plot_training(rows, workdir / "training.png")
        logging.info(
            "written in %s: checkpoints/, metrics.jsonl, training.png, and for TensorBoard event files (--logdir=%s)",
            workdir,
            workdir,
        )
    return rows[-1] if rows else {}


def compiled(step, state: TrainState, batch: dict, bank: dict):
    """The step compiled for these arguments; the log says what memory it needs on each device."""
    started = time.time()
    step = step.lower(state, batch, bank).compile()
    memory = step.memory_analysis()
    logging.info(
        "step compiled in %.0f s; each device needs %.2f GB for state and batch and %.2f GB more during a step",
        time.time() - started,
        memory.argument_size_in_bytes / 1e9,
        (memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes) / 1e9,
    )
    return step


def check_config(config: ConfigDict, mesh) -> int:
    """The number of prepared utterances; raises UserError for values that cannot work, before anything is computed."""
    sharding.check_batch_size(config.batch_size, config.microbatches, mesh)
    choices = {
        "objective.targets": ("balanced", "centred", "softmax", "sinkhorn"),
        "objective.dimension_normalisation": ("l2", "standardise"),
        "store": ("log_mel", "waveform"),
        "clip_scope": ("tensor", "global", "off"),
        "views.mask_value": ("mean", "silence"),
    }
    for field, values in choices.items():
        value = operator.attrgetter(field)(config)
        if value not in values:
            raise UserError(f"{field}={value!r} is unknown: choose one of {', '.join(map(repr, values))}")
    if config.objective.koleo_group and config.batch_size % config.objective.koleo_group:
        raise UserError(
            f"objective.koleo_group={config.objective.koleo_group} does not divide batch_size={config.batch_size}"
        )
    if any(channels % 8 for channels in config.model.channels[1:-1]):
        raise UserError(f"model.channels={tuple(config.model.channels)}: all but first and last must be multiples of 8")
    if config.checkpoint_every % config.log_every:
        raise UserError(
            f"checkpoint_every={config.checkpoint_every} must be a multiple of log_every={config.log_every}, "
            "so that the logged means of a resumed run have no seam"
        )
    if not config.num_steps and not config.num_epochs:
        raise UserError("num_steps and num_epochs are both 0: set one of them")
    if not config.data_dir:
        raise UserError(
            "data_dir is not set: prepare shards with python -m sdpn_jax.data.prepare and give --config.data_dir=FOLDER"
        )
    metadata = records.read_metadata(config.data_dir)
    if metadata["store"] != config.store:
        raise UserError(
            f"{config.data_dir} holds shards of {metadata['store']}, the config says store={config.store!r}: set "
            f"--config.store={metadata['store']}, or prepare with --store={config.store}"
        )
    return metadata["utterances"]


def as_json(config: ConfigDict) -> dict:
    """The config as it is kept in the workdir: plain dictionaries, lists, numbers and strings."""
    return json.loads(config.to_json())


def check_same_run(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError when a run with another config was started in the workdir.

    Converted weights fix their sizes alone; once training goes on from them, its config is that of any run.
    """
    ours, theirs = as_json(config), checkpoint.read_config(workdir)
    if theirs is None:
        return
    if "converted_from" in theirs:
        theirs = {**ours, "num_prototypes": theirs["num_prototypes"], "model": {**ours["model"], **theirs["model"]}}
    for field in sorted(set(ours) | set(theirs)):
        if field not in FREE_FIELDS and ours.get(field) != theirs.get(field):
            raise UserError(
                f"{workdir} holds a run with {field}={theirs.get(field)}, this config has {ours.get(field)}: "
                "choose another --workdir, or delete that one to start anew"
            )


def parameter_groups(state: TrainState) -> tuple:
    """What is learnt: the student's encoder, its head, the prototypes."""
    return state.student["params"]["encoder"], state.student["params"]["head"], {"prototypes": state.prototypes}


def state_parts(state: TrainState) -> dict:
    """The parts that a checkpoint keeps apart, so that a network can be read without the rest."""
    rest = {"step": state.step, "prototypes": state.prototypes, "offset": state.offset, "opt_state": state.opt_state}
    return {"student": state.student, "teacher": state.teacher, "rest": rest}


def state_of(parts: dict) -> TrainState:
    """The state that `state_parts` took apart."""
    return TrainState(student=parts["student"], teacher=parts["teacher"], **parts["rest"])


def interval_means(rows: list[dict]) -> dict[str, float]:
    """Means of the metrics of some steps, and `prototypes_in_interval`, the perplexity of all their targets' mean."""
    names = [name for name in rows[0] if name != "wish"]
    means = {name: np.mean([row[name] for row in rows], axis=0, dtype=np.float64) for name in names}
    mean_target = means.pop("mean_target")
    return {
        **{name: float(value) for name, value in means.items()},
        "prototypes_in_interval": float(np.exp(scipy.special.entr(mean_target).sum())),
    }


def stop_if_not_finite(metrics: dict, step: int, checkpoints) -> None:
    """Raises UserError, naming terms and newest checkpoint, when the loss of this finished step is not finite."""
    if math.isfinite(jax.device_get(metrics["loss"])):
        return
    values = {name: value for name, value in jax.device_get(metrics).items() if not np.isfinite(value).all()}
    culprits = ", ".join(f"{name} = {value}" for name, value in values.items() if name not in ("loss", "mean_target"))
    checkpoints.wait_until_finished()
    raise UserError(
        f"step {step}: the loss is not finite ({culprits or values['loss']}); nothing of it was saved, "
        f"the newest checkpoint is of step {checkpoints.latest_step()}. Lower learning_rate or look at the data"
    )


class Timer:
    """Speed since the first step, which compiles and does not count."""

    def __init__(self):
        self.started, self.waited, self.steps = time.time(), 0.0, 0

    def elapsed(self) -> float:
        """Seconds, pauses not counted."""
        return max(time.time() - self.started, 1e-9)

    @contextmanager
    def waiting(self):
        """Counts the time inside as waiting for data."""
        before = time.time()
        yield
        self.waited += time.time() - before

    @contextmanager
    def paused(self):
        """Does not count the time inside."""
        before = time.time()
        yield
        self.started += time.time() - before


def log_progress(done: int, num_steps: int, row: dict, batch_size: int, timer: Timer) -> None:
    """One line for people: where the run is, how fast, and whether it is healthy."""
    steps_per_second = timer.steps / timer.elapsed()
    left = datetime.timedelta(seconds=round((num_steps - done) / steps_per_second))
    logging.info(
        "step %d/%d  loss %.3f (cross-entropy %.3f, me-max %.3f, KoLeo %.3f)  prototypes in use %.1f  "
        "embedding std %.2f  effective rank %.1f  %.2f steps/s, %.0f utterances/s, waiting for data %.0f %%, ETA %s",
        done,
        num_steps,
        row["loss"],
        row["cross_entropy"],
        row["me_max"],
        row["koleo"],
        row["prototypes_in_use"],
        row["embedding_std"],
        row["effective_rank"],
        steps_per_second,
        steps_per_second * batch_size,
        100 * timer.waited / timer.elapsed(),
        left,
    )


class CollapseWarning:
    """Says once, when it first shows after the warm-up, that a run has collapsed, and once when it has recovered."""

    def __init__(self, warmup_steps: int):
        self._warmup_steps, self._collapsed = warmup_steps, False

    def __call__(self, step: int, row: dict) -> None:
        """Judges the mean metrics of one log interval that ended at `step`."""
        if step <= self._warmup_steps:
            return
        why = looks_collapsed(row)
        if why and not self._collapsed:
            logging.warning('step %d: the run looks collapsed, %s. See "Collapse" in docs/training.md', step, why)
        elif self._collapsed and not why:
            logging.info("step %d: the run does not look collapsed any more", step)
        self._collapsed = bool(why)


class Evaluator:
    """The teacher while it learns: EER on the trial lists that the config names, crop retrieval on held-out speech."""

    def __init__(self, network, config: ConfigDict):
        self._embed = Embedder(network)
        self._trials = {Path(path).stem: read_trials(path) for path in config.eval.trials}
        self._ids, self._log_mels, self._crops = [], [], None
        if self._trials:
            skipped = []
            for utterance_id, log_mel in corpus.read_features(config.eval.input, skipped):
                self._ids.append(utterance_id)
                self._log_mels.append(log_mel)
            for trials in self._trials.values():
                trials.known_labels()
                trial_rows(self._ids, trials)  # an unknown utterance must show now, not after hours
            logging.info("evaluation on %d utterances, %d files skipped", len(self._ids), len(skipped))
        if config.held_out:
            frames = config.views.local_frames
            self._crops = pipeline.held_out_crops(config.data_dir, config.held_out, frames, config.seed)
            logging.info("crop retrieval on %d crops of %d held-out utterances", len(self._crops[0]), config.held_out)

    def __call__(self, variables: dict) -> dict:
        """{"eer_percent/<list>": ..., "crop_retrieval_percent": ..., ...} of the teacher's variables."""
        row = {}
        if self._crops:
            row |= crop_retrieval(self._embed(variables, list(self._crops[0])), self._crops[1])
            logging.info(
                "of held-out crops %.1f %% find one of their utterance, EER %.2f %%",
                row["crop_retrieval_percent"],
                row["crop_eer_percent"],
            )
        embeddings = self._embed(variables, self._log_mels)
        for name, trials in self._trials.items():
            try:
                results = scoring.evaluate(embeddings, self._ids, trials)
            except UserError as error:
                logging.warning("no evaluation on %s: %s", name, error)
                continue
            row[f"eer_percent/{name}"] = results["eer_percent"]
            row[f"min_dcf_0.05/{name}"] = results["min_dcf_0.05"]
            logging.info(
                "EER on %s: %.2f %%, minDCF(0.05) %.3f", name, row[f"eer_percent/{name}"], results["min_dcf_0.05"]
            )
        return row


class MetricsWriter:
    """Scalars to <workdir>/metrics.jsonl and TensorBoard; a resumed run first drops what it will write again."""

    def __init__(self, workdir: Path, first_step: int):
        self._path = workdir / "metrics.jsonl"
        rows = [row for row in read_rows(self._path) if row["step"] <= first_step]
        storage.write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        self._board = SummaryWriter(str(workdir), purge_step=first_step + 1 if first_step else None)

    def write(self, step: int, row: dict) -> None:
        """Adds one row of scalars."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **row}) + "\n")
        for name, value in row.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> list[dict]:
        """All rows, also those of before a restart."""
        self._board.close()
        return read_rows(self._path)


def read_rows(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            logging.warning("%s: an incomplete line is left out", path)
    return rows
