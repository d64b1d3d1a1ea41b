"""The training loop, readable from top to bottom: data, state, steps, logs, checkpoints, evaluation."""

import dataclasses
import os
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from absl import logging
from clu import parameter_overview
from jax.sharding import Mesh

from sdpn_jax import config as configs
from sdpn_jax import storage
from sdpn_jax.config import Config
from sdpn_jax.data import device, pipeline
from sdpn_jax.data.shards import Shards, open_shards
from sdpn_jax.errors import UserError
from sdpn_jax.models.network import Network, network_of
from sdpn_jax.training import beginning, checkpoint, curves, history, hosts, lock, memory, sharding
from sdpn_jax.training.evaluation import Evaluator
from sdpn_jax.training.health import CollapseWatch, stop_if_not_finite
from sdpn_jax.training.labels import NONE, Labels, labels_of, no_labels
from sdpn_jax.training.logs import MetricsWriter, Timer, interval_means, log_progress
from sdpn_jax.training.profiler import Profiler
from sdpn_jax.training.program import Program, compiled, program_of, view_shapes
from sdpn_jax.training.step import TrainState
from sdpn_jax.weights import run


@dataclass
class Log:
    """The metrics of a run: fetched from the device, checked, averaged over intervals and written.

    Only the first process has a `writer`.
    """

    program: Program
    checkpoints: Any
    batch_size: int
    writer: MetricsWriter | None
    watch: CollapseWatch
    timer: Timer = field(default_factory=Timer)
    interval: list[dict[str, np.ndarray]] = field(default_factory=list)

    def take(self, done: int, packed: jax.Array, row_is_due: bool) -> None:
        """Fetches the metrics of step `done`, stops the run if they are not finite, and writes a row when it is due."""
        metrics = self.program.unpack(jax.device_get(packed))
        stop_if_not_finite(metrics, done, self.checkpoints)
        self.interval.append(metrics)
        if not row_is_due:
            return
        row, self.interval = interval_means(self.interval), []
        if self.writer:
            self.writer.write(done, row)
            self.watch.look(done, row)
            log_progress(done, self.program.num_steps, row, self.batch_size, self.timer)


def train_and_evaluate(
    config: Config, workdir: str | os.PathLike, extend: bool = False, skip_damaged: bool = False
) -> dict:
    """Trains as `config` says, resuming from the newest checkpoint in `workdir`; returns the last row of metrics.

    extend: a run that is there may go on with another schedule; skip_damaged: damaged records are left out. Raises
    UserError for a config that cannot work, before anything is written, for a workdir in use, and for numbers that are
    not finite; hosts.Stopped when SIGTERM or Ctrl-C came, after a checkpoint.
    """
    memory.keep_freed()
    workdir = storage.place(workdir)
    configs.check(config)
    if config.model.dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise UserError("model.dtype='float64' needs the variable JAX_ENABLE_X64=1")
    mesh = sharding.make_mesh(config.mesh.fsdp)
    sharding.check_batch_size(config.batch_size, config.microbatches, mesh)
    shards = open_shards(config.data_dir, skip_damaged)
    configs.check_data(config, shards.utterances, shards.store)
    labels, numbers = to_learn(config, shards)
    configs.check_data(config, shards.utterances, shards.store, len(numbers) if labels.names else None)
    network, views = network_of(config.model), pipeline.Views(**config.views)
    bank, make_views = device.views_of_step(shards, config.seed, views)
    make_clean = device.views_of_step(shards, config.seed, clean(views))[1] if config.ssps.from_epoch else None
    per_epoch = pipeline.steps_per_epoch(len(numbers), config.batch_size)
    shapes = view_shapes(config.batch_size, views)
    program = program_of(config, network, mesh, per_epoch, make_views, shapes, labels, make_clean)
    constants = {**bank, **labels.arrays()}
    data = data_of(shards, labels)
    weights = check_past(config, workdir, data, program, extend)
    is_first_process = jax.process_index() == 0
    evaluates = bool(config.eval.trials or config.held_out)
    evaluator = evaluator_of(config, network, shards) if evaluates and is_first_process else None

    with ExitStack() as ending:
        held = ending.enter_context(lock.of(workdir)) if is_first_process else None
        requests = ending.enter_context(hosts.Requests(config.checkpoint_minutes))
        checkpoints = checkpoint.manager(workdir, config.keep_checkpoints, config.keep_every)
        ending.callback(checkpoints.close)
        state, first_step = begin(config, workdir, program, data, labels, weights, checkpoints, mesh)
        tell_sizes(state, program, shards, len(numbers), per_epoch, mesh)
        writer = ending.enter_context(closing(MetricsWriter(workdir, first_step))) if is_first_process else None
        log = Log(program, checkpoints, config.batch_size, writer, CollapseWatch(program.warmup_steps))

        def evaluate(done: int, state: TrainState) -> None:
            teacher = sharding.gather(state.teacher, mesh)  # by all processes
            if evaluator and writer:
                writer.write(done, evaluator(teacher))

        if evaluates and evaluation_is_due(first_step, config, program, writer, mesh):
            evaluate(first_step, state)
        stopped_at = run_steps(
            config, state, first_step, shards, numbers, views, constants, mesh, log, requests, held,
            evaluate if evaluates else None,
        )  # fmt: skip
        checkpoint.wait(checkpoints)
        rows = writer.rows() if writer else []
        if stopped_at is not None:
            raise hosts.Stopped(stopped_at, program.num_steps, requests.signal)
        if rows:
            curves.plot_training(rows, workdir / "training.png")
    if rows:
        logging.info(
            "written in %s: checkpoints/, metrics.jsonl, training.png, and for TensorBoard event files (--logdir=%s)",
            workdir,
            workdir,
        )
    return rows[-1] if rows else {}


def to_learn(config: Config, shards: Shards) -> tuple[Labels, np.ndarray]:
    """Returns what is known of the utterances, and the numbers of those that the config learns from."""
    numbers = np.arange(max(shards.utterances - config.held_out, 0))
    if config.task != "classify":
        return no_labels(shards, config.true_labels), numbers
    labels = labels_of(shards, config.labels, config.true_labels, config.held_out)
    return labels, numbers if config.classify.sdpn_weight else np.flatnonzero(labels.of != NONE)


def data_of(shards: Shards, labels: Labels) -> str:
    """A digest of what a run learns from, wherever it lies."""
    return shards.fingerprint() + (f" {labels.fingerprint()}" if labels.names else "")


def check_past(config: Config, workdir: storage.Place, data: str, program: Program, extend: bool) -> Any:
    """Checks that a run in the workdir may go on with this config; reads the weights that a new one begins from.

    Returns what `beginning.read` does, or None. Raises UserError otherwise.
    """
    reached = max(run.steps_of(workdir), default=None)
    if reached is None:
        return beginning.read(config.init_from, config.init_networks) if config.init_from else None
    history.check(config, workdir, data, extend)
    history.check_end(reached, program.num_steps)
    return None


def begin(
    config: Config, workdir: storage.Place, program: Program, data: str, labels: Labels, weights: Any,
    checkpoints: Any, mesh: Mesh,
) -> tuple[TrainState, int]:  # fmt: skip
    """Returns the state from which a run goes on, or begins, and its step; writes down how it came to be."""
    state, first_step, origin = program.init(), 0, None
    if checkpoints.latest_step() is not None:
        parts, first_step = checkpoint.resume(checkpoints, checkpoint.parts_of(state))
        state = checkpoint.state_of(parts)
        logging.info("resumed from the checkpoint of step %d in %s", first_step, checkpoints.directory)
    elif weights:
        found, origin = weights
        state, left = beginning.put_in(state, found, config.init_from, labels.fingerprint())
        state = jax.device_put(state, sharding.state_sharding(mesh, state))
        origin["drawn_anew"] = left
        logging.info("begun from the weights of %s", config.init_from)
    if jax.process_index() == 0:
        history.record(configs.as_json(config), workdir, first_step, data, origin)
        if labels.names:
            beginning.write_classes(workdir, labels.names)
    return state, first_step


def clean(views: pipeline.Views) -> pipeline.Views:
    """Returns the views for what the teacher hears between epochs: one of each utterance, as it was recorded."""
    return dataclasses.replace(views, global_count=1, global_augmented=0.0, local_count=0)


def run_steps(
    config: Config, state: TrainState, first_step: int, shards: Shards, numbers: np.ndarray, views: pipeline.Views,
    constants: dict, mesh: Mesh, log: Log, requests: hosts.Requests, held: lock.Lock | None, evaluate,
) -> int | None:  # fmt: skip
    """Runs the steps from `first_step` to the last one, or until the run is asked to stop, and returns that step.

    The device always has a step to work on: the metrics of a step are fetched after the next one has been dispatched,
    but for steps after which a checkpoint or an evaluation needs the finished state.
    """
    num_steps, config_json = log.program.num_steps, configs.as_json(config)
    constants = jax.device_put(constants, sharding.replicated(mesh))

    def batches_from(step: int, views: pipeline.Views) -> Any:
        processes = jax.process_index(), jax.process_count()
        shares = pipeline.dataset(shards, config.batch_size, config.seed, views, *processes, numbers)
        return pipeline.batches(shares, step, config.workers)

    def regrouped(state: TrainState, step: int) -> TrainState:
        with closing(batches_from(step - log.program.steps_per_epoch, clean(views))) as past:
            for _ in range(log.program.steps_per_epoch):
                state = log.program.hear(state, sharding.put_batch(next(past), mesh), constants)
        logging.info("step %d: the teacher has heard the last epoch's utterances as they were recorded", step)
        return log.program.regroup(state)

    batches = batches_from(first_step, views)
    profiler = Profiler(log.writer.folder if log.writer else None, first_step, config.profile)
    step_function, pending, request, save_is_due = None, None, hosts.NOTHING, False
    with jax.transfer_guard("disallow"), closing(batches), closing(profiler):
        for step in range(first_step, num_steps):
            done = step + 1
            profiler.before(step)
            if log.program.regroups(step):
                with log.timer.paused(), jax.transfer_guard("allow"):
                    state = regrouped(state, step)
            with log.timer.waiting():
                batch = sharding.put_batch(next(batches), mesh)
            asked = requests.of_all(mesh)
            step_function = step_function or compiled(log.program.step, state, batch, constants)
            state, packed = step_function(state, batch, constants)
            if step == first_step:
                jax.block_until_ready(packed)
                log.timer = Timer()
            if pending:
                log.take(*pending)
            log.timer.steps += step > first_step
            profiler.after(done, packed)
            request = int(jax.device_get(asked))
            last = done == num_steps or request == hosts.STOP
            row_ends = done % config.log_every == 0
            pending = done, packed, row_ends or last
            # By the clock only where a row ends: one of a resumed run then averages the same steps.
            save_is_due = save_is_due or request == hosts.SAVE
            saves = done % config.checkpoint_every == 0 or last or (save_is_due and row_ends)
            evaluates = evaluate and (done % config.eval.every_steps == 0 or done == num_steps)
            if saves or evaluates:
                log.take(*pending)
                pending = None
            if saves:
                if held and log.writer:
                    held.check()
                    log.writer.send()
                checkpoint.save(log.checkpoints, done, checkpoint.parts_of(state), config_json)
                requests.saved()
                save_is_due = False
            if request == hosts.STOP:
                return done
            if evaluates:
                with log.timer.paused():
                    evaluate(done, state)
    return None


def evaluation_is_due(
    first_step: int, config: Config, program: Program, writer: MetricsWriter | None, mesh: Mesh
) -> bool:
    """Tells whether a run must evaluate before its first step: at its beginning, or where a stop cut that off."""
    if first_step % config.eval.every_steps and first_step != program.num_steps:
        return False
    return bool(int(sharding.largest(bool(writer and writer.lacks_evaluation(first_step)), mesh)))


def evaluator_of(config: Config, network: Network, shards: Shards) -> Evaluator:
    """Prepares what the config wants the teacher to be evaluated on."""
    crops = None
    if config.held_out:
        crops = pipeline.held_out_crops(shards, config.held_out, config.held_out_frames or config.views.local_frames)
    return Evaluator(network, config.eval.trials, config.eval.input, crops)


def tell_sizes(
    state: TrainState, program: Program, shards: Shards, utterances: int, steps_per_epoch: int, mesh: Mesh
) -> None:
    """Logs the size of the network, of the data and of the run."""
    parts: tuple[Any, ...] = (
        state.student["params"]["encoder"],
        state.student["params"]["head"],
        {"prototypes": state.prototypes},
        {"classes": state.labelled.centres} if state.labelled else {},
    )
    logging.info(
        "parameters: encoder %s, head %s, prototypes %s, classes %s",
        *(f"{parameter_overview.count_parameters(part):,}" for part in parts),
    )
    logging.info(
        "%d utterances, %d to learn from, %d steps an epoch, %d steps in all, %d devices (%s), learning rate up to %g",
        shards.utterances,
        utterances,
        steps_per_epoch,
        program.num_steps,
        mesh.size,
        jax.devices()[0].device_kind,
        program.peak_learning_rate,
    )
