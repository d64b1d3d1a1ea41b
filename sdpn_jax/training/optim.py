"""Schedules, and SGD with per-tensor clipping and selective weight decay."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

Tensor = Float[Array, "..."]


def warmup_cosine(peak: float, final: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Schedules the learning rate: linear from 0 to `peak` over the warm-up, then a cosine to `final` at the end.

    The warm-up must be shorter than the run.
    """
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, total_steps, final)


def ema_momentum(first: float, last: float, total_steps: int) -> optax.Schedule:
    """Schedules the teacher's momentum: a cosine from `first` to `last` (BYOL, arXiv 2006.07733, section 3.2)."""
    share_of_first = optax.cosine_decay_schedule(1.0, total_steps)
    return lambda step: last - (last - first) * share_of_first(step)


def clip(max_norm: float, scope: str) -> optax.GradientTransformation:
    """Scales gradients to a norm of at most `max_norm`: g min(1, max_norm / (|g| + 1e-6)).

    `scope` says whose norm: "tensor", every tensor's on its own; "global", that of all together; "off" clips nothing.
    """

    def clipped(gradient: Tensor, norm: Float[Array, ""]) -> Tensor:
        return gradient * jnp.minimum(1.0, max_norm / (norm + 1e-6))

    def per_tensor(updates: PyTree[Tensor], params: PyTree | None) -> PyTree[Tensor]:
        return jax.tree.map(lambda g: clipped(g, jnp.sqrt(jnp.sum(jnp.square(g)))), updates)

    def together(updates: PyTree[Tensor], params: PyTree | None) -> PyTree[Tensor]:
        norm = optax.tree.norm(updates)
        return jax.tree.map(lambda g: clipped(g, norm), updates)

    return {"tensor": optax.stateless(per_tensor), "global": optax.stateless(together), "off": optax.identity()}[scope]


def sgd(
    learning_rate: optax.Schedule,
    momentum: float,
    weight_decay: float,
    clip_norm: float,
    clip_scope: str = "tensor",
    prototype_multiplier: float = 1.0,
) -> optax.GradientTransformation:
    """Makes the optimizer of {"network": ..., "prototypes": ...}.

    Network: clipping, then weight decay on tensors of two or more dimensions, then momentum. Prototypes: momentum
    alone, learning rate times `prototype_multiplier` (0: they stay as they were drawn). Both as PyTorch's SGD without
    Nesterov: v <- momentum v + g, w <- w - rate v.
    """
    network = optax.chain(
        clip(clip_norm, clip_scope),
        optax.add_decayed_weights(weight_decay, mask=lambda params: jax.tree.map(lambda p: p.ndim >= 2, params)),
        optax.trace(momentum),
        optax.scale_by_learning_rate(learning_rate),
    )
    prototypes = optax.chain(
        optax.trace(momentum),
        optax.scale_by_learning_rate(lambda step: prototype_multiplier * learning_rate(step)),
    )
    return optax.partition(
        {"network": network, "prototypes": prototypes}, {"network": "network", "prototypes": "prototypes"}
    )
