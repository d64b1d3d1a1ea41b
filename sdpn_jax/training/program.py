"""What a config computes on a mesh: the jitted beginning and step of a run, and the form its metrics leave in."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Float

from sdpn_jax.config import Config, run_length
from sdpn_jax.errors import UserError
from sdpn_jax.models.network import MEL_BINS, Network
from sdpn_jax.training import classify, margins, optim, positives, sharding
from sdpn_jax.training.labels import Labels
from sdpn_jax.training.step import Objective, TrainState, forward, init_state, make_train_step


@dataclass(frozen=True)
class Program:
    """How a run begins, what a step does, and how many there are.

    init: () -> TrainState; step: (state, batch, constants: the noise bank and what is known of labels) -> (state,
    metrics as one array), not compiled yet; metrics: their names and shapes, in the order of that array; hear: (state,
    batch of clean views, constants) -> state, and regroup: state -> state, between epochs, see positives.py.
    """

    init: Callable[[], TrainState]
    step: Any
    metrics: dict[str, tuple[int, ...]]
    num_steps: int
    warmup_steps: int
    peak_learning_rate: float
    hear: Any
    regroup: Callable[[TrainState], TrainState]
    regroup_from: int
    steps_per_epoch: int

    def regroups(self, step: int) -> bool:
        """Tells whether neighbours are looked for anew before this step, where an epoch begins."""
        return step >= self.regroup_from and step % self.steps_per_epoch == 0

    def unpack(self, packed: Float[np.ndarray, " M"]) -> dict[str, np.ndarray]:
        """Unpacks what a step returned into {metric: value}."""
        sizes = [int(np.prod(shape)) for shape in self.metrics.values()]
        parts = np.split(np.asarray(packed), np.cumsum(sizes)[:-1])
        return {name: part.reshape(shape) for (name, shape), part in zip(self.metrics.items(), parts, strict=True)}


def program_of(
    config: Config,
    network: Network,
    mesh: Mesh,
    steps_per_epoch: int,
    make_views: Callable,
    views: dict,
    labels: Labels | None = None,
    make_clean: Callable | None = None,
) -> Program:
    """Builds the program of a config for the devices of `mesh`.

    make_views: (step, batch, bank) -> {"global": [B, G, Tg, F], "local": [B, V, Tl, F], "number": [B]}; views:
    jax.ShapeDtypeStructs of these; labels: what is known of the utterances; make_clean: as make_views, of the clean
    global view alone. Raises UserError for a pattern in `freeze` that names no parameter.
    """
    network = network.on(mesh) if config.kernels else network
    num_steps, warmup_steps = run_length(config, steps_per_epoch)
    peak = config.learning_rate * config.batch_size / 256
    learning_rate = optim.warmup_cosine(peak, config.final_learning_rate, warmup_steps, num_steps)
    teacher_momentum = optim.ema_momentum(config.ema_momentum, config.final_ema_momentum, num_steps)
    labelling = labelling_of(config, labels, num_steps, steps_per_epoch) if labels and labels.names else None
    if config.ssps.from_epoch > num_steps / steps_per_epoch:
        logging.warning("ssps.from_epoch=%d never comes: the run has %d steps", config.ssps.from_epoch, num_steps)
    freeze = (*config.freeze, *(labelling.held if labelling else ()))
    optimizer, everywhere = optimizer_of(config, learning_rate, freeze), sharding.replicated(mesh)
    replicate = lambda array: jax.lax.with_sharding_constraint(array, everywhere)  # noqa: E731
    settings = network, optimizer, Objective(**config.objective)
    schedules = learning_rate, teacher_momentum, config.microbatches, freeze
    with_positives = labels is not None and labelling is None and make_clean is not None

    def init() -> TrainState:
        state = init_state(network, config.num_prototypes, optimizer, config.seed)
        if labels and labelling:
            state = classify.begin(state, labelling, len(labels.of), network.embedding_size, optimizer, config.seed)
        if labels and with_positives:
            state = positives.begin(state, len(labels.of), network.embedding_size, config.ssps.clusters)
        return state

    if labelling:
        step_on_views = classify.make_classify_step(*settings, labelling, *schedules, replicate)
    else:
        exchange = positives.make_exchange(config.ssps.share, config.seed, replicate) if with_positives else None
        step_on_views = make_train_step(*settings, *schedules, exchange)
    step_on_views = jax.jit(step_on_views, inline=True)  # traced once, for the metrics' shapes and for the step
    known = labels.arrays() if labels else {}

    def step(state: TrainState, batch: dict, constants: dict) -> tuple[TrainState, Float[Array, " M"]]:
        of_labels = {name: constants[name] for name in known}
        state, metrics = step_on_views(state, make_views(state.step, batch, constants), of_labels)
        return state, jnp.concatenate([jnp.ravel(metrics[name]) for name in shapes])

    def hear(state: TrainState, batch: dict, constants: dict) -> TrainState:
        assert make_clean is not None and state.positives is not None
        clean = make_clean(state.step, batch, constants)
        embedding, projection, _ = forward(network, state.teacher, clean["global"], config.microbatches)
        heard = (replicate(array) for array in (clean["number"], embedding[:, 0], projection[:, 0]))
        return state.replace(positives=positives.keep(state.positives, *heard))

    def regroup(state: TrainState) -> TrainState:
        assert state.positives is not None
        embeddings = jax.device_get(sharding.gather(state.positives.embeddings, mesh))
        now = positives.regrouped(state.positives, embeddings, config.seed)
        return state.replace(positives=jax.device_put(now, of_state.positives))

    state = jax.eval_shape(init)
    params = {"network": state.student["params"], "prototypes": state.prototypes}
    check_patterns(config.freeze, params | ({"classes": state.labelled.centres} if state.labelled else {}))
    of_state = sharding.state_sharding(mesh, state)
    arguments = of_state, sharding.batch_sharding(mesh), everywhere
    described = sharding.described((state, views, known), arguments)
    shapes = {name: value.shape for name, value in jax.eval_shape(step_on_views, *described)[1].items()}
    return Program(
        init=jax.jit(init, out_shardings=of_state),
        step=jax.jit(step, in_shardings=arguments, out_shardings=(of_state, everywhere), donate_argnums=0),
        metrics=shapes,
        num_steps=num_steps,
        warmup_steps=warmup_steps,
        peak_learning_rate=peak,
        hear=jax.jit(hear, in_shardings=arguments, out_shardings=of_state, donate_argnums=0),
        regroup=regroup,
        regroup_from=(config.ssps.from_epoch - 1) * steps_per_epoch if with_positives else num_steps,
        steps_per_epoch=steps_per_epoch,
    )


def optimizer_of(config: Config, learning_rate: optax.Schedule, freeze: Sequence[str]) -> optax.GradientTransformation:
    """Makes the optimizer of a config."""
    return optim.optimizer(
        learning_rate,
        config.momentum,
        config.weight_decay,
        config.clip_norm,
        config.clip_scope,
        config.prototype_multiplier,
        config.encoder_multiplier,
        freeze,
        config.optimizer,
    )


def labelling_of(config: Config, labels: Labels, num_steps: int, steps_per_epoch: int) -> classify.Labelling:
    """What a config makes of labels, in steps."""
    c = config.classify
    for name in ("gate_epoch", "correct_epoch"):
        if c[name] > num_steps / steps_per_epoch:
            logging.warning("classify.%s=%d never comes: the run has %d steps", name, c[name], num_steps)
    of_epoch = lambda epoch: (epoch - 1) * steps_per_epoch if epoch else -1  # noqa: E731
    return classify.Labelling(
        classes=len(labels.names),
        head=margins.Head(c.head, c.scale, c.margin, c.top_k, c.top_k_margin),
        sub_centres=c.sub_centres,
        ramp=(round(c.margin_from * num_steps), round(c.margin_until * num_steps)),
        steps_per_epoch=steps_per_epoch,
        gate_from=of_epoch(c.gate_epoch),
        correct_from=of_epoch(c.correct_epoch),
        correct_temperature=c.correct_temperature,
        correct_above=c.correct_above,
        sdpn_weight=c.sdpn_weight,
    )


def check_patterns(freeze: Sequence[str], params: Any) -> None:
    """Raises UserError for a pattern that names none of the parameters."""
    names = [optim.name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in freeze:
        if not any(optim.frozen(name, [pattern]) for name in names):
            raise UserError(f"freeze={pattern!r} names no parameter: they are called {names[0]} ... {names[-1]}")


def view_shapes(batch_size: int, views: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Describes the float16 views [B, views, T, F] of a batch, and their numbers; views: as in pipeline."""
    shapes = {
        "global": (batch_size, views.global_count, views.global_frames, MEL_BINS),
        "local": (batch_size, views.local_count, views.local_frames, MEL_BINS),
    }
    of_views = {name: jax.ShapeDtypeStruct(shape, jnp.float16) for name, shape in shapes.items()}
    return {**of_views, "number": jax.ShapeDtypeStruct((batch_size,), jnp.int32)}


def compiled(step: Any, state: TrainState, batch: dict, bank: dict) -> Any:
    """Compiles the step for these arguments and logs the memory it needs on each device."""
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
