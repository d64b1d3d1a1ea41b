"""The training loop, readable from top to bottom: data, state, steps, logs, checkpoints, evaluation."""

import contextlib
import datetime
import json
import math
import operator
import time
from pathlib import Path

import jax
import numpy as np
import scipy.special
from absl import logging
from clu import parameter_overview
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from sdpn_jax import checkpoint, files, optim, sharding
from sdpn_jax.data import device, pipeline, records
from sdpn_jax.errors import UserError
from sdpn_jax.eval import export, plots, scoring
from sdpn_jax.eval.metrics import crop_retrieval
from sdpn_jax.models.network import network_of
from sdpn_jax.step import Objective, TrainState, init_state, looks_collapsed, make_train_step

# Fields that a resumed run may change: none of them changes what is computed at any step.
FREE_FIELDS = ("workdir", "log_every", "checkpoint_every", "keep_checkpoints", "workers", "eval", "demo")


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict:
    """Trains as `config` says, resuming from the newest checkpoint in `workdir`; returns the last row of metrics."""
    workdir = Path(workdir)
    mesh = sharding.make_mesh()
    is_first_process = jax.process_index() == 0
    num_utterances = check_config(config, mesh)
    check_same_run(config, workdir)
    per_epoch = pipeline.steps_per_epoch(num_utterances - config.held_out, config.batch_size)
    network = network_of(config.model)
    evaluator = Evaluator(network, config) if is_first_process and (config.eval.trials or config.held_out) else None
    if is_first_process:  # nothing is written before everything has been checked
        checkpoint.write_config(workdir, as_json(config))

    num_steps = config.num_steps or config.num_epochs * per_epoch
    warmup_steps = config.warmup_steps or config.warmup_epochs * per_epoch
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
    views = pipeline.Views(**config.views)
    bank, make_views = device.views_of_step(config.data_dir, config.seed, views)
    step_on_views = make_train_step(network, optimizer, objective, learning_rate, teacher_momentum)
    train_step = jax.jit(
        lambda state, batch, bank: step_on_views(state, make_views(state.step, batch, bank)),
        in_shardings=(sharding.replicated(mesh), sharding.batch_sharding(mesh), sharding.replicated(mesh)),
        out_shardings=sharding.replicated(mesh),
        donate_argnums=0,
    )
    init = jax.jit(
        lambda: init_state(network, config.num_prototypes, optimizer, config.seed),
        out_shardings=sharding.replicated(mesh),
    )
    state = init()
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
        peak,
    )

    checkpoints = checkpoint.manager(workdir, config.keep_checkpoints)
    first_step = 0
    if checkpoints.latest_step() is not None:
        parts, first_step = checkpoint.restore(checkpoints, state_parts(state))
        state = state_of(parts)
        logging.info("resumed from the checkpoint of step %d in %s", first_step, checkpoints.directory)

    writer = MetricsWriter(workdir, first_step) if is_first_process else None
    batches = pipeline.batches(
        config.data_dir,
        config.batch_size,
        config.seed,
        views,
        first_step,
        config.workers,
        jax.process_index(),
        jax.process_count(),
        config.held_out,
    )

    if evaluator and first_step == 0:
        writer.write(0, evaluator(state.teacher))
    collapse_warning = CollapseWarning(warmup_steps)
    bank = jax.device_put(bank, sharding.replicated(mesh))
    interval, timer = [], Timer()
    with jax.transfer_guard("disallow"):
        for step in range(first_step, num_steps):
            with timer.waiting():
                batch = sharding.put_batch(next(batches), mesh)
            state, metrics = train_step(state, batch, bank)
            interval.append(metrics)
            done = step + 1
            if step == first_step:
                jax.block_until_ready(metrics)
                logging.info("compiled and first step done in %.0f s", timer.restart())
            timer.steps += 1
            stop_if_not_finite(interval, done, checkpoints)
            if done % config.log_every == 0 or done == num_steps:
                row = interval_means(jax.device_get(interval))
                stop_if_not_finite(interval, done, checkpoints, everything=True)
                interval = []
                if is_first_process:
                    writer.write(done, row)
                    collapse_warning(done, row)
                    log_progress(done, num_steps, row, config.batch_size, timer)
            if done % config.checkpoint_every == 0 or done == num_steps:
                checkpoint.save(checkpoints, done, state_parts(state))
            if evaluator and (done % config.eval.every_steps == 0 or done == num_steps):
                with timer.paused():
                    writer.write(done, evaluator(state.teacher))
    checkpoints.wait_until_finished()
    checkpoints.close()
    if not is_first_process:
        return {}
    rows = writer.close()
    if rows:
        plots.plot_training(rows, workdir / "training.png")
    logging.info(
        "written in %s: checkpoints/, metrics.jsonl, training.png, and for TensorBoard event files (--logdir=%s)",
        workdir,
        workdir,
    )
    return rows[-1] if rows else {}


def check_config(config: ConfigDict, mesh) -> int:
    """The number of prepared utterances; raises UserError for values that cannot work, before anything is computed."""
    sharding.check_batch_size(config.batch_size, mesh)
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
    """Raises UserError when a run with another config was started in the workdir."""
    ours, theirs = as_json(config), checkpoint.read_config(workdir)
    if theirs is None:
        return
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
    means = {name: np.mean([row[name] for row in rows], axis=0, dtype=np.float64) for name in rows[0]}
    mean_target = means.pop("mean_target")
    return {
        **{name: float(value) for name, value in means.items()},
        "prototypes_in_interval": float(np.exp(scipy.special.entr(mean_target).sum())),
    }


def stop_if_not_finite(interval: list[dict], done: int, checkpoints, everything: bool = False) -> None:
    """Raises UserError when a loss term of a finished step is not finite.

    Looks one step back, so that the device always has a step to work on; `everything` also looks at the newest.
    """
    for age in (2, 1) if everything else (2,):
        if len(interval) < age:
            continue
        metrics = interval[-age]
        loss = jax.device_get(metrics["loss"])
        if not math.isfinite(loss):
            values = {name: value for name, value in jax.device_get(metrics).items() if name != "loss"}
            culprits = ", ".join(f"{name} = {value}" for name, value in values.items() if not np.isfinite(value).all())
            checkpoints.wait_until_finished()
            raise UserError(
                f"step {done - age + 1}: the loss is not finite ({culprits or loss}); nothing of it was saved, "
                f"the newest checkpoint is of step {checkpoints.latest_step()}. Lower learning_rate or look at the data"
            )


class Timer:
    """Speed since the first step, which compiles and does not count."""

    def __init__(self):
        self.started, self.waited, self.steps = time.time(), 0.0, 0

    def restart(self) -> float:
        """Starts anew, returns the seconds until now."""
        elapsed = self.elapsed()
        self.__init__()
        return elapsed

    def elapsed(self) -> float:
        """Seconds, pauses not counted."""
        return max(time.time() - self.started, 1e-9)

    @contextlib.contextmanager
    def waiting(self):
        """Counts the time inside as waiting for data."""
        before = time.time()
        yield
        self.waited += time.time() - before

    @contextlib.contextmanager
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
        self._embed = export.Embedder(network)
        self._trials = {Path(path).stem: scoring.read_trials(path) for path in config.eval.trials}
        self._ids, self._log_mels, self._crops = [], [], None
        if self._trials:
            skipped = []
            for utterance_id, log_mel in export.read_features(config.eval.input, skipped):
                self._ids.append(utterance_id)
                self._log_mels.append(log_mel)
            for trials in self._trials.values():
                scoring.trial_rows(self._ids, trials)  # an unknown utterance must show now, not after hours
            logging.info("evaluation on %d utterances, %d files skipped", len(self._ids), len(skipped))
        if config.held_out:
            frames = config.views.local_frames
            self._crops = pipeline.held_out_crops(config.data_dir, config.held_out, frames, config.seed)
            logging.info("crop retrieval on %d crops of %d held-out utterances", len(self._crops[0]), config.held_out)

    def __call__(self, variables: dict) -> dict:
        """{"eer_percent/<list>": ..., "crop_retrieval_percent": ..., ...} of these variables."""
        variables = jax.tree.map(lambda x: x.addressable_data(0), variables)
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
        files.write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
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
