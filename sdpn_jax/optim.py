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


def ema_momentum(base: float, total_steps: int) -> optax.Schedule:
    """Teacher momentum by step: a cosine from `base` to 1 over the run (BYOL, arXiv 2006.07733, section 3.2)."""

    def schedule(step):
        progress = jnp.clip(step / max(total_steps, 1), 0.0, 1.0)
        return 1 - (1 - base) * 0.5 * (1 + jnp.cos(jnp.pi * progress))

    return schedule


def ema(average, new, momentum):
    """momentum * average + (1 - momentum) * new, leaf by leaf."""
    return jax.tree.map(lambda a, n: momentum * a + (1 - momentum) * n, average, new)


def clip_per_tensor(max_norm: float) -> optax.GradientTransformation:
    """Scales every tensor's gradient on its own to at most `max_norm`: g min(1, max_norm / (|g| + 1e-6))."""

    def clip(gradient):
        norm = jnp.sqrt(jnp.sum(jnp.square(gradient)))
        return gradient * jnp.minimum(1.0, max_norm / (norm + 1e-6))

    return optax.stateless(lambda updates, params: jax.tree.map(clip, updates))


def sgd(
    learning_rate: optax.Schedule,
    momentum: float,
    weight_decay: float,
    clip_norm: float,
    prototype_multiplier: float = 1.0,
) -> optax.GradientTransformation:
    """The optimizer of {"network": ..., "prototypes": ...}.

    Network: clipping, then weight decay on tensors of two or more dimensions, then momentum. Prototypes: momentum
    alone, learning rate times `prototype_multiplier`. Both as PyTorch's SGD without Nesterov: v <- momentum v + g,
    w <- w - rate v. A `clip_norm` of 0 clips nothing.
    """
    network = optax.chain(
        clip_per_tensor(clip_norm) if clip_norm else optax.identity(),
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
