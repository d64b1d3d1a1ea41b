"""Schedules, SGD with per-tensor clipping and selective weight decay, and the exponential moving average."""

import jax
import jax.numpy as jnp
import optax


def warmup_cosine(peak: float, final: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Learning rate by step: linear from 0 to `peak` over the warm-up, then a cosine to `final` at the last step."""

    def schedule(step):
        warmup = peak * step / max(warmup_steps, 1)
        progress = jnp.clip((step - warmup_steps) / max(total_steps - warmup_steps, 1), 0.0, 1.0)
        cosine = final + 0.5 * (peak - final) * (1 + jnp.cos(jnp.pi * progress))
        return jnp.where(step < warmup_steps, warmup, cosine)

    return schedule


def ema_momentum(first: float, last: float, total_steps: int) -> optax.Schedule:
    """Teacher momentum by step: a cosine from `first` to `last` over the run (BYOL, arXiv 2006.07733, section 3.2)."""

    def schedule(step):
        progress = jnp.clip(step / max(total_steps, 1), 0.0, 1.0)
        return last - (last - first) * 0.5 * (1 + jnp.cos(jnp.pi * progress))

    return schedule


def ema(average, new, momentum):
    """momentum * average + (1 - momentum) * new, leaf by leaf."""
    return jax.tree.map(lambda a, n: momentum * a + (1 - momentum) * n, average, new)


def clip(max_norm: float, scope: str) -> optax.GradientTransformation:
    """Scales gradients to a norm of at most `max_norm`: g min(1, max_norm / (|g| + 1e-6)).

    `scope` says whose norm: "tensor", every tensor's on its own; "global", that of all together; "off" clips nothing.
    """

    def clipped(gradient, norm):
        return gradient * jnp.minimum(1.0, max_norm / (norm + 1e-6))

    def per_tensor(updates, params):
        return jax.tree.map(lambda g: clipped(g, jnp.sqrt(jnp.sum(jnp.square(g)))), updates)

    def together(updates, params):
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
    """The optimizer of {"network": ..., "prototypes": ...}.

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
