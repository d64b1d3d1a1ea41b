"""The pure training step of SDPN and its state: `state, batch -> state, metrics`, and nothing hidden anywhere."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypedDict

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from sdpn_jax.models.network import Network, initial_variables
from sdpn_jax.training import losses, optim
from sdpn_jax.training.health import health

# Log-mel views of B utterances; Tg and Tl frames; and which utterances they are of.
Batch = TypedDict(
    "Batch", {"global": Float[Array, "B G Tg F"], "local": Float[Array, "B V Tl F"], "number": Int[Array, " B"]}
)
Metrics = dict[str, Float[Array, "..."]]
WEIGHTED = "me_max", "koleo", "off_diagonal", "frobenius"  # terms beside the cross-entropy


@dataclass(frozen=True)
class Objective:
    """The terms of the loss and their weights; see losses.py and sdpn_jax/config.py."""

    student_temperature: float = 0.1
    sharpening: float = 0.25
    centre_projections: bool = False
    targets: str = "balanced"  # or "centred", "softmax", "sinkhorn"
    offset_rate: float = 0.5
    sinkhorn_iterations: int = 3
    me_max_weight: float = 1.0
    koleo_weight: float = 0.1
    koleo_group: int = 0
    off_diagonal_weight: float = 0.0
    frobenius_weight: float = 0.0
    dimension_normalisation: str = "l2"  # or "standardise"


class Labelled(flax.struct.PyTreeNode):
    """What learning from labels adds to the state; see classify.py."""

    centres: Float[Array, "R S D"]  # of the classes, beyond which come rows that stay as they were drawn
    losses: Float[Array, " N"]  # of the label of every utterance when it was last in a batch; negative: it never was
    gate: Float[Array, ""]  # the log loss up to which labels are trusted


class Positives(flax.struct.PyTreeNode):
    """What positives from neighbours add to the state; see positives.py. R rows, K clusters."""

    embeddings: Float[Array, "R D"]  # of the teacher's clean view of every utterance when it was last heard; 0: never
    projections: Float[Array, "R P"]
    cluster: Int[Array, " R"]
    order: Int[Array, " R"]  # the rows by cluster
    first: Int[Array, " K+1"]  # where a cluster's rows begin in `order`
    nearest: Int[Array, " K"]  # the nearest other cluster


class TrainState(flax.struct.PyTreeNode):
    """Everything that a checkpoint must hold. Networks are {"params": ..., "batch_stats": ...}, all float32."""

    step: Int[Array, ""]
    student: dict
    teacher: dict
    prototypes: Float[Array, "K P"]
    offset: Float[Array, " K"]  # what balanced and centred targets subtract from the prototypes' logits or cosines
    opt_state: optax.OptState
    labelled: Labelled | None = None
    positives: Positives | None = None


def init_state(network: Network, num_prototypes: int, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """Begins a run: the teacher is a copy of the student, prototypes are drawn."""
    student = initial_variables(network, seed)
    prototypes = drawn_prototypes(num_prototypes, network.head.projection_size, seed)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        student=student,
        teacher=jax.tree.map(jnp.copy, student),
        prototypes=prototypes,
        offset=jnp.zeros(num_prototypes),
        opt_state=optimizer.init({"network": student["params"], "prototypes": prototypes}),
    )


def drawn_prototypes(count: int, size: int, seed: int) -> Float[Array, "{count} {size}"]:
    """Draws prototypes, uniform in +-1/sqrt(size) (1/16 at the paper's 256)."""
    key, bound = jax.random.fold_in(jax.random.key(seed), 1), size**-0.5
    return jax.random.uniform(key, (count, size), minval=-bound, maxval=bound)


def forward(
    network: Network, variables: dict, views: Float[Array, "B V T F"], microbatches: int = 1
) -> tuple[Float[Array, "B V D"], Float[Array, "B V P"], Mapping]:
    """Passes views through the network in training mode: embedding, projection, new batch statistics.

    With `microbatches` the network sees B / microbatches utterances at a time, and computes what happened inside it
    again in the backward pass: memory for one microbatch. Only batch norm then normalises over less than the batch; its
    running statistics move by the microbatches' mean.
    """
    batch, num_views, *frame_shape = views.shape
    if microbatches > 1:  # utterances i, i + microbatches, ...: each stays on its device
        shares = views.reshape(batch // microbatches, microbatches, *views.shape[1:]).swapaxes(0, 1)
        passes = jax.lax.map(jax.checkpoint(lambda share: forward(network, variables, share)), shares)
        whole = lambda x: x.swapaxes(0, 1).reshape(batch, num_views, -1)  # noqa: E731
        return whole(passes[0]), whole(passes[1]), jax.tree.map(lambda x: x.mean(0), passes[2])
    flat = views.reshape(batch * num_views, *frame_shape)
    (embedding, projection), updated = network.apply(variables, flat, True, mutable=["batch_stats"])
    split = lambda x: x.reshape(batch, num_views, -1)  # noqa: E731
    return split(embedding), split(projection), updated["batch_stats"]


def teacher_targets(
    projection: Float[Array, "B G P"], prototypes: Float[Array, "K P"], offset: Float[Array, " K"], objective: Objective
) -> tuple[Float[Array, "B G K"], Float[Array, " K"]]:
    """Computes what the student must predict from the projections of the global views, without gradient.

    Also returns the offset of the next step. Balanced targets subtract what makes all prototypes equally used over
    time; centred targets a running mean of the cosines, as DINO does (Caron et al., arXiv 2104.14294, Eq. 4). Without
    either, or Sinkhorn, one prototype wins for every utterance. `centre_projections` first takes from the projections
    what those of the batch have in common: targets then tell utterances apart from the first step on, also those of an
    encoder that hardly does so untrained, and would collapse before it has learnt to.
    """
    if objective.centre_projections:
        projection = projection - projection.mean((0, 1))
    cosines = jax.lax.stop_gradient(losses.cosine_logits(projection, prototypes))
    flat = cosines.reshape(-1, cosines.shape[-1])
    temperature, sharpening, rate = objective.student_temperature, objective.sharpening, objective.offset_rate
    if objective.targets == "balanced":
        targets, offset = losses.balanced_targets(flat, offset, temperature, sharpening, rate)
    elif objective.targets == "centred":
        targets = losses.softmax_targets(flat - offset, temperature, sharpening)
        offset = (1 - rate) * offset + rate * flat.mean(0)
    elif objective.targets == "sinkhorn":
        targets = losses.sinkhorn_targets(flat, temperature, sharpening, objective.sinkhorn_iterations)
    else:
        targets = losses.softmax_targets(flat, temperature, sharpening)
    return targets.reshape(cosines.shape), offset


def predicted(
    projection: Float[Array, "B V P"], prototypes: Float[Array, "K P"], objective: Objective
) -> Float[Array, "B V K"]:
    """Computes the log probabilities that the student gives the prototypes for its views."""
    cosines = losses.cosine_logits(projection, prototypes)
    return losses.student_log_probability(cosines, objective.student_temperature)


def loss_terms(
    log_probability: Float[Array, "B V K"],
    targets: Float[Array, "B G K"],
    embedding: Float[Array, "B V D"],
    objective: Objective,
) -> dict[str, losses.Scalar]:
    """Computes the terms of the loss, unweighted."""

    def matrix_term(term: Callable[[Float[Array, "D D"]], losses.Scalar]) -> losses.Scalar:
        of_group = lambda group: term(losses.correlation(group, objective.dimension_normalisation))  # noqa: E731
        return losses.over_view_groups(of_group, embedding)

    return {
        "cross_entropy": losses.cross_entropy(log_probability, targets),
        "me_max": losses.me_max(log_probability),
        "koleo": losses.over_view_groups(lambda group: losses.koleo(group, objective.koleo_group), embedding),
        "off_diagonal": matrix_term(losses.off_diagonal),
        "frobenius": matrix_term(losses.frobenius),
    }


def weighted(terms: Mapping[str, losses.Scalar], objective: Objective) -> losses.Scalar:
    """Adds the terms of SDPN's loss by the weights of the objective."""
    weights = {name: getattr(objective, f"{name}_weight") for name in WEIGHTED}
    return terms["cross_entropy"] + sum(weight * terms[name] for name, weight in weights.items())


def movement(gradients: Any, updates: Any, student: Any, teacher: Any) -> Metrics:
    """Measures the step and how far apart student and teacher are, relative to the student's norm."""
    return {
        "gradient_norm": optim.norm(gradients),
        "update_norm": optim.norm(updates),
        "ema_distance": optim.norm(optax.tree.sub(student, teacher)) / optim.norm(student),
    }


def make_train_step(
    network: Network,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    learning_rate: optax.Schedule,
    teacher_momentum: optax.Schedule,
    microbatches: int = 1,
    freeze: Sequence[str] = (),
    exchange: Callable[..., tuple[Float[Array, "B G P"], Metrics]] | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Makes the step, a pure function of state and views.

    `learning_rate` is the optimizer's own schedule, for the metrics alone; `microbatches` see `forward`; `freeze` see
    `optim.optimizer`, which must know it too; `exchange` see positives.py, and so for the third argument of the step.
    """

    def loss_fn(
        params: dict, state: TrainState, local_views: Float[Array, "B V T F"], targets: Float[Array, "B G K"]
    ) -> tuple[losses.Scalar, tuple]:
        params = optim.hold(params, freeze)
        variables = {"params": params["network"], "batch_stats": state.student["batch_stats"]}
        embedding, projection, batch_stats = forward(network, variables, local_views, microbatches)
        log_p = predicted(projection, params["prototypes"], objective)
        terms = loss_terms(log_p, targets, embedding, objective)
        return weighted(terms, objective), (terms, embedding, log_p, batch_stats)

    def train_step(
        state: TrainState, batch: Batch, known: Mapping[str, Array] = MappingProxyType({})
    ) -> tuple[TrainState, Metrics]:
        _, projection, teacher_stats = forward(network, state.teacher, batch["global"], microbatches)
        exchanges = {}
        if exchange:
            projection, exchanges = exchange(state, batch["number"], projection, known)
        targets, offset = teacher_targets(projection, state.prototypes, state.offset, objective)

        params = {"network": state.student["params"], "prototypes": state.prototypes}
        gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (terms, embedding, log_p, student_stats)), gradients = gradient_fn(
            params, state, batch["local"], targets
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, params)
        params: Any = optax.apply_updates(params, updates)

        momentum = teacher_momentum(state.step)
        teacher_params = optim.follow(state.teacher["params"], params["network"], momentum)
        metrics = {"loss": loss, **terms, "learning_rate": learning_rate(state.step), "teacher_momentum": momentum}
        metrics |= health(embedding, targets, log_p)
        metrics |= movement(gradients, updates, params["network"], teacher_params) | exchanges
        return TrainState(
            step=state.step + 1,
            student={"params": params["network"], "batch_stats": student_stats},
            teacher={"params": teacher_params, "batch_stats": teacher_stats},
            prototypes=params["prototypes"],
            offset=offset,
            opt_state=opt_state,
            positives=state.positives,
        ), metrics

    return train_step
