"""The pure training step of SDPN and its state: `state, batch -> state, metrics`, and nothing hidden anywhere."""

from collections.abc import Callable
from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
import optax

from sdpn_jax.models.network import Network, initial_variables
from sdpn_jax.training import losses, optim


@dataclass(frozen=True)
class Objective:
    """Which terms the loss has, and how strong; see losses.py and the comments in configs/vox2.py."""

    student_temperature: float = 0.1
    sharpening: float = 0.25
    targets: str = "balanced"  # or "centred", "softmax", "sinkhorn"
    offset_rate: float = 0.5
    sinkhorn_iterations: int = 3
    me_max_weight: float = 1.0
    koleo_weight: float = 0.1
    koleo_group: int = 0
    off_diagonal_weight: float = 0.0
    frobenius_weight: float = 0.0
    dimension_normalisation: str = "l2"  # or "standardise"


class TrainState(flax.struct.PyTreeNode):
    """Everything that a checkpoint must hold. Networks are {"params": ..., "batch_stats": ...}, all float32."""

    step: jax.Array
    student: dict
    teacher: dict
    prototypes: jax.Array
    offset: jax.Array  # [K] what balanced and centred targets subtract from the prototypes' logits or cosines
    opt_state: optax.OptState


def init_state(network: Network, num_prototypes: int, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """A new run: the teacher starts as a copy of the student, prototypes uniform in +-1/sqrt(P) (1/16 at P = 256)."""
    student = initial_variables(network, seed)
    bound = network.projection_size**-0.5
    shape = (num_prototypes, network.projection_size)
    prototypes = jax.random.uniform(jax.random.fold_in(jax.random.key(seed), 1), shape, minval=-bound, maxval=bound)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        student=student,
        teacher=jax.tree.map(jnp.copy, student),
        prototypes=prototypes,
        offset=jnp.zeros(num_prototypes),
        opt_state=optimizer.init({"network": student["params"], "prototypes": prototypes}),
    )


def forward(network: Network, variables: dict, views, microbatches: int = 1):
    """Training-mode pass over views [B, V, T, F]: embedding [B, V, D], projection [B, V, P], new batch statistics.

    With `microbatches` the network sees B / microbatches utterances at a time, and computes what happened inside it
    again in the backward pass: memory for one microbatch. Only batch norm then normalises over less than the batch; its
    running statistics move by the microbatches' mean.
    """
    batch, num_views, *frame_shape = views.shape
    if microbatches > 1:  # every so-manieth utterance, which leaves them on their device
        shares = views.reshape(batch // microbatches, microbatches, *views.shape[1:]).swapaxes(0, 1)
        *outputs, batch_stats = jax.lax.map(jax.checkpoint(lambda share: forward(network, variables, share)), shares)
        whole = lambda x: x.swapaxes(0, 1).reshape(batch, num_views, -1)  # noqa: E731
        return *map(whole, outputs), jax.tree.map(lambda x: x.mean(0), batch_stats)
    flat = views.reshape(batch * num_views, *frame_shape)
    (embedding, projection), updated = network.apply(variables, flat, True, mutable=["batch_stats"])
    split = lambda x: x.reshape(batch, num_views, -1)  # noqa: E731
    return split(embedding), split(projection), updated["batch_stats"]


def teacher_targets(projection, prototypes, offset, objective: Objective):
    """What the student must predict: projection [B, G, P] of the global views -> targets [B, G, K], no gradient.

    Also returns the offset [K] of the next step. Balanced targets subtract what makes all prototypes equally used over
    time; centred targets a running mean of the cosines, as DINO does (Caron et al., arXiv 2104.14294, Eq. 4). Without
    either, or Sinkhorn, one prototype wins for every utterance.
    """
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


def loss_terms(log_probability, targets, embedding, objective: Objective) -> dict:
    """The terms of the loss, unweighted: log_probability [B, V, K], targets [B, G, K], embedding [B, V, D]."""

    def matrix_term(term):
        of_group = lambda group: term(losses.correlation(group, objective.dimension_normalisation))  # noqa: E731
        return losses.over_view_groups(of_group, embedding)

    return {
        "cross_entropy": losses.cross_entropy(log_probability, targets),
        "me_max": losses.me_max(log_probability),
        "koleo": losses.over_view_groups(lambda group: losses.koleo(group, objective.koleo_group), embedding),
        "off_diagonal": matrix_term(losses.off_diagonal),
        "frobenius": matrix_term(losses.frobenius),
    }


def make_train_step(
    network: Network,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    learning_rate: optax.Schedule,
    teacher_momentum: optax.Schedule,
    microbatches: int = 1,
) -> Callable:
    """The step as a pure function of (state, {"global": [B, G, Tg, F], "local": [B, V, Tl, F]} log-mel views).

    `learning_rate` is the optimizer's own schedule, for the metrics alone; `microbatches` see `forward`.
    """

    def loss_fn(params, state: TrainState, local_views, targets):
        variables = {"params": params["network"], "batch_stats": state.student["batch_stats"]}
        embedding, projection, batch_stats = forward(network, variables, local_views, microbatches)
        log_p = losses.student_log_probability(
            losses.cosine_logits(projection, params["prototypes"]), objective.student_temperature
        )
        terms = loss_terms(log_p, targets, embedding, objective)
        loss = terms["cross_entropy"] + sum(
            getattr(objective, f"{name}_weight") * value for name, value in terms.items() if name != "cross_entropy"
        )
        return loss, (terms, embedding, log_p, batch_stats)

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        _, projection, teacher_stats = forward(network, state.teacher, batch["global"], microbatches)
        targets, offset = teacher_targets(projection, state.prototypes, state.offset, objective)

        params = {"network": state.student["params"], "prototypes": state.prototypes}
        gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (terms, embedding, log_p, student_stats)), gradients = gradient_fn(
            params, state, batch["local"], targets
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, params)
        params = optax.apply_updates(params, updates)

        momentum = teacher_momentum(state.step)
        teacher_params = optim.ema(state.teacher["params"], params["network"], momentum)
        metrics = {"loss": loss, **terms, "learning_rate": learning_rate(state.step), "teacher_momentum": momentum}
        metrics |= health(embedding, targets, log_p)
        metrics |= {"gradient_norm": optax.tree.norm(gradients), "update_norm": optax.tree.norm(updates)}
        metrics["ema_distance"] = optax.tree.norm(optax.tree.sub(params["network"], teacher_params)) / optax.tree.norm(
            params["network"]
        )
        return TrainState(
            step=state.step + 1,
            student={"params": params["network"], "batch_stats": student_stats},
            teacher={"params": teacher_params, "batch_stats": teacher_stats},
            prototypes=params["prototypes"],
            offset=offset,
            opt_state=opt_state,
        ), metrics

    return train_step


def health(embedding, targets, log_probability) -> dict:
    """Signs of life or collapse of one batch: embedding [B, V, D], targets [B, G, K], log_probability [B, V, K].

    All scalars but `mean_target` [K], from which the prototypes used by many batches together can be counted.
    `prototypes_in_use` is the perplexity of the mean target, between 1 and K. `targets_told_apart` is exp(entropy of
    the mean target - mean entropy of a target), the perplexity of the information that a target holds about its
    utterance: 1 when all utterances have the same target, be it one prototype or all of them equally, at most B.
    `embedding_std` is the mean over dimensions of the standard deviation of L2-normalised embeddings times sqrt(D) (1:
    spread evenly over the sphere, 0: all equal). `effective_rank` is the participation ratio tr(C)^2 / |C|_F^2 of their
    covariance C, between 1 and min(B V - 1, D). `embedding_cosine` and `embedding_cosine_max` are of pairs of the same
    view group, mean and mean over embeddings of the nearest other one; `agreement` is the share of local views whose
    likeliest prototype is the teacher's.
    """
    entropy = lambda p: -jnp.sum(jax.scipy.special.xlogy(p, p), axis=-1)  # noqa: E731
    mean_target = targets.mean((0, 1))
    in_use, of_each = entropy(mean_target), jnp.mean(entropy(targets))
    agree = jnp.argmax(targets.mean(1), -1)[:, None] == jnp.argmax(log_probability, -1)

    normalised = losses.l2_normalise(embedding)
    flat = normalised.reshape(-1, normalised.shape[-1])
    centred = flat - flat.mean(0)
    gram = centred.T @ centred if flat.shape[0] > flat.shape[1] else centred @ centred.T
    batch = normalised.shape[0]
    cosines = jnp.einsum("ivd,jvd->vij", normalised, normalised)
    others = ~jnp.eye(batch, dtype=bool)
    return {
        "mean_target": mean_target,
        "prototypes_in_use": jnp.exp(in_use),
        "targets_told_apart": jnp.exp(in_use - of_each),
        "target_entropy": of_each,
        "target_max": jnp.mean(targets.max(-1)),
        "agreement": jnp.mean(agree.astype(flat.dtype)),
        "embedding_std": jnp.mean(jnp.std(flat, axis=0)) * flat.shape[1] ** 0.5,
        "embedding_cosine": jnp.mean(cosines, where=others),
        "embedding_cosine_max": jnp.mean(jnp.max(cosines, axis=-1, where=others, initial=-1.0)),
        "effective_rank": jnp.square(jnp.trace(gram)) / jnp.maximum(jnp.sum(jnp.square(gram)), 1e-30),
    }


def looks_collapsed(metrics: dict) -> str | None:
    """Why these metrics are those of a collapsed run, None for a healthy one.

    Collapsed: all utterances have (nearly) one target, fewer than 1.5 of them told apart; or the embeddings have all
    but one direction, mean cosine above 0.95 or effective rank below 1.5. At initialisation every network looks so
    (mean cosine 0.99), hence a judgement only after the warm-up of the learning rate.
    """
    if metrics["targets_told_apart"] < 1.5:
        return f"all utterances have the same target ({metrics['targets_told_apart']:.2f} told apart)"
    if metrics["embedding_cosine"] > 0.95:
        return f"all embeddings point the same way (mean cosine {metrics['embedding_cosine']:.3f})"
    if metrics["effective_rank"] < 1.5:
        return f"all embeddings lie on one line (effective rank {metrics['effective_rank']:.2f})"
    return None
