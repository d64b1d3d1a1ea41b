"""Schedules, and optimizers with per-tensor clipping, selective weight decay and rates by the names of parameters."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree
from optax import contrib

from sdpn_jax.models.products import on_nvidia

Tensor = Float[Array, "..."]

TRUST = 0.001  # of LARS: the norm of an update at a learning rate of 1, over that of the weights
MUON_RMS = 0.2  # of an element of a Muon update at a learning rate of 1, which is that of AdamW's


def warmup_cosine(peak: float, final: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Schedules the learning rate: linear from 0 to `peak` over the warm-up, then a cosine to `final` at the last step.

    Steps count from 0, so that the last one is total_steps - 1. The warm-up must be shorter than the run.
    """
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, max(total_steps - 1, warmup_steps + 1), final)


def ema_momentum(first: float, last: float, total_steps: int) -> optax.Schedule:
    """Schedules the teacher's momentum: a cosine from `first` to `last`, which the last step, total_steps - 1, has.

    BYOL, arXiv 2006.07733, section 3.2.
    """
    share_of_first = optax.cosine_decay_schedule(1.0, max(total_steps - 1, 1))
    return lambda step: last - (last - first) * share_of_first(step)


def follow(teacher: PyTree[Tensor], student: PyTree[Tensor], momentum: ArrayLike) -> PyTree[Tensor]:
    """Moves the teacher's weights a step towards the student's: t <- m t + (1 - m) s (arXiv 2006.07733, equation 1).

    Written t + (1 - m) (s - t), so that equal weights, as of a frozen encoder, stay what they are to the last bit.
    """
    return jax.tree.map(lambda t, s: t + (1 - momentum) * (s - t), teacher, student)


def norm(tree: PyTree[Tensor]) -> Float[Array, ""]:
    """Computes the norm of all numbers together."""

    def together(*tensors: Tensor) -> Array:
        return jax.lax.optimization_barrier(jnp.concatenate([_rows(x) for x in tensors])).sum()

    return jnp.sqrt(on_nvidia(together, lambda *tensors: _each(*tensors).sum())(*jax.tree.leaves(tree)))


def norms(tensors: Sequence[Tensor]) -> Float[Array, " N"]:
    """Computes the norm of each tensor."""

    def together(*tensors: Tensor) -> Array:
        rows = [_rows(x) for x in tensors]
        longest = max(map(len, rows))
        padded = jnp.stack([jnp.pad(of_tensor, (0, longest - len(of_tensor))) for of_tensor in rows])
        return jax.lax.optimization_barrier(padded).sum(1)

    return jnp.sqrt(on_nvidia(together, _each)(*tensors))


def _each(*tensors: Tensor) -> Float[Array, " N"]:
    """Sums the squares of each tensor."""
    return jnp.stack([jnp.sum(jnp.square(x)) for x in tensors])


def _rows(x: Tensor) -> Float[Array, " N"]:
    """Sums the squares of rows, or squares a vector.

    A GPU starts a kernel or two for every sum to one number: there, what is left of all tensors is summed together,
    behind a barrier, as XLA would sum each on its own again.
    """
    return jnp.square(x).sum(-1).ravel() if x.ndim >= 2 else jnp.square(x).ravel()


def clip(max_norm: float, scope: str) -> optax.GradientTransformation:
    """Scales gradients to a norm of at most `max_norm`: g min(1, max_norm / (|g| + 1e-6)).

    `scope` says whose norm: "tensor", every tensor's on its own; "global", that of all together; "off" clips nothing.
    """

    def clipped(gradient: Tensor, norm: Float[Array, ""]) -> Tensor:
        return gradient * jnp.minimum(1.0, max_norm / (norm + 1e-6))

    def per_tensor(updates: PyTree[Tensor], params: PyTree | None) -> PyTree[Tensor]:
        tensors, tree = jax.tree.flatten(updates)
        return jax.tree.unflatten(tree, [clipped(g, of_g) for g, of_g in zip(tensors, norms(tensors), strict=True)])

    def together(updates: PyTree[Tensor], params: PyTree | None) -> PyTree[Tensor]:
        of_all = norm(updates)
        return jax.tree.map(lambda g: clipped(g, of_all), updates)

    return {"tensor": optax.stateless(per_tensor), "global": optax.stateless(together), "off": optax.identity()}[scope]


def matrices(params: PyTree) -> PyTree[bool]:
    """Which tensors have two or more dimensions, so that weight decay and norms make sense for them."""
    return jax.tree.map(lambda p: p.ndim >= 2, params)


def rule(name: str, rate: optax.Schedule, momentum: float, decay: float) -> tuple[optax.GradientTransformation, ...]:
    """The steps of an optimizer after clipping; weight decay is of `matrices`.

    "sgd": PyTorch's without Nesterov, v <- momentum v + g, w <- w - rate v. "lars" (You et al., arXiv 1708.03888): the
    same after each matrix's gradient was scaled to TRUST of the weights' norm. "adamw" (Loshchilov and Hutter, arXiv
    1711.05101). "muon" (Jordan et al., 2024): momentum of matrices made nearly orthogonal, a convolution over taps and
    channels being one matrix; vectors by NAdam.
    """
    if name == "adamw":
        return (optax.adamw(rate, momentum, weight_decay=decay, mask=matrices),)
    if name == "muon":
        dimensions = lambda p: contrib.MuonDimensionNumbers(tuple(range(p.ndim - 1)), p.ndim - 1)  # noqa: E731
        numbers = lambda params: jax.tree.map(lambda p: dimensions(p) if p.ndim >= 2 else None, params)  # noqa: E731
        return (
            contrib.muon(
                rate,
                beta=momentum,
                weight_decay=decay,
                adam_b1=momentum,
                muon_weight_dimension_numbers=numbers,
                consistent_rms=MUON_RMS,
            ),
        )
    decayed = optax.add_decayed_weights(decay, mask=matrices)
    scaled = optax.masked(optax.scale_by_trust_ratio(trust_coefficient=TRUST), matrices)
    followed = optax.trace(momentum), optax.scale_by_learning_rate(rate)
    return (decayed, scaled, *followed) if name == "lars" else (decayed, *followed)


def optimizer(
    learning_rate: optax.Schedule,
    momentum: float,
    weight_decay: float,
    clip_norm: float,
    clip_scope: str = "tensor",
    prototype_multiplier: float = 1.0,
    encoder_multiplier: float = 1.0,
    freeze: Sequence[str] = (),
    name: str = "sgd",
) -> optax.GradientTransformation:
    """Makes the optimizer of {"network": ..., "prototypes": ...}, with labels {..., "classes": ...} as well.

    Network: clipping, then the `rule` of that name. Prototypes and centres of classes: neither clipping nor decay, SGD
    with "sgd" and "lars", else Adam, learning rate times `prototype_multiplier` (0: they stay as they were drawn). The
    encoder's learning rate is times `encoder_multiplier`; parameters that `freeze` names (see `frozen`) stay as they
    are.
    """
    network = optax.chain(clip(clip_norm, clip_scope), *rule(name, learning_rate, momentum, weight_decay))
    of_prototypes = lambda step: prototype_multiplier * learning_rate(step)  # noqa: E731
    prototypes = (
        optax.chain(optax.trace(momentum), optax.scale_by_learning_rate(of_prototypes))
        if name in ("sgd", "lars")
        else optax.adam(of_prototypes, momentum)
    )
    both = optax.partition(
        {"network": network, "prototypes": prototypes},
        lambda params: {name: "network" if name == "network" else "prototypes" for name in params},
    )
    if encoder_multiplier == 1 and not freeze:
        return both

    def factor(name: str) -> float:
        return 0.0 if frozen(name, freeze) else encoder_multiplier if name.startswith("encoder/") else 1.0

    def update(updates: Any, state: optax.OptState, params: Any = None) -> tuple[Any, optax.OptState]:
        updates, state = both.update(updates, state, params)
        return map_named(lambda name, tensor: factor(name) * tensor, updates), state

    return optax.GradientTransformation(both.init, update)  # its state has one form, whatever is frozen


def frozen(name: str, freeze: Sequence[str]) -> bool:
    """Tells whether a name, such as encoder/tdnn/conv/kernel, fits one of the patterns, as file names do."""
    return any(fnmatchcase(name, pattern) for pattern in freeze)


def hold(params: Any, freeze: Sequence[str]) -> Any:
    """Lets no gradient flow into the parameters that `freeze` names, so that none is computed."""
    held = lambda name, x: jax.lax.stop_gradient(x) if frozen(name, freeze) else x  # noqa: E731
    return map_named(held, params) if freeze else params


def map_named(function: Callable[[str, Any], Any], params: Any) -> Any:
    """Maps function(name, array) over {"network": ..., ...}; see `name_of` for the names."""
    return jax.tree_util.tree_map_with_path(lambda path, x: function(name_of(path), x), params)


def name_of(path: Sequence[Any]) -> str:
    """Names a parameter by its place in the tree: encoder/..., head/..., prototypes or classes."""
    return "/".join(str(key.key) for key in path).removeprefix("network/")
