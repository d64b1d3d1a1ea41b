"""Res2Nets, the last frame layer and the pooling of ECAPA in training on NVIDIA GPUs, with kernels of their own.

They compute what Res2Net, TDNN and AttentiveStatisticsPooling compute, from their variables. What a kernel adds up has
no gradient in JAX, so the backward passes are written out here; JAX differentiates the small functions between kernels.
"""

import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from sdpn_jax.models import layers, pooling_kernels, res2net_kernels
from sdpn_jax.models.frames import Frames, variance_of
from sdpn_jax.models.layers import Normed, OfChannels, moments, normed, rectify, wide
from sdpn_jax.models.pooling import statistics, with_context
from sdpn_jax.models.products import product

Moments: TypeAlias = tuple[OfChannels, OfChannels]  # of a batch: the mean less the running one, the biased variance


def pooled(x: Frames, params: dict, batch_stats: dict, mesh: Mesh) -> tuple[Float[Array, "B 2*C"], dict]:
    """Passes frames through the layer `mfa` and the pooling: their statistics over time, and new running statistics.

    params, batch_stats: of ECAPA.
    """
    conv = params["mfa"]["conv"]
    before = product(x, conv["kernel"][0], jax.lax.stop_gradient(conv["bias"]))
    weights = {"bias": conv["bias"], "norm": params["mfa"]["norm"], "pooling": params["pooling"]}
    running = {"mfa": batch_stats["mfa"]["norm"], "pooling": batch_stats["pooling"]["tdnn_norm"]}
    shifts = {name: of["mean"] for name, of in running.items()}
    done: Any = rectified_and_pooled(mesh, before, weights, shifts)
    result, found = done
    now = _moved(running, found, x)
    return result, {"mfa": {"norm": now["mfa"]}, "pooling": {"tdnn_norm": now["pooling"]}}


def _moved(running: dict[str, dict], found: dict[str, Moments], x: Frames) -> dict[str, dict]:
    """Moves running statistics towards the moments of a batch."""
    count = x.shape[0] * x.shape[1]
    moved = {name: layers.moved(of["mean"], of["var"], *found[name], count) for name, of in running.items()}
    return {name: {"mean": mean, "var": var} for name, (mean, var) in moved.items()}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def rectified_and_pooled(
    mesh: Mesh, before: Frames, weights: dict, shifts: dict
) -> tuple[Float[Array, "B 2*C"], dict[str, Moments]]:
    """Computes the statistics over time of frames before their ReLU, and the moments of both batch norms.

    The bias of the layer, weights["bias"], has been added already: here is only its gradient, which is a sum over what
    the last kernel writes. No gradient flows to moments and shifts.
    """
    return _forward(mesh, before, weights, shifts)[0]


def _forward(mesh: Mesh, before: Frames, weights: dict, shifts: dict) -> tuple[Any, tuple]:
    x, shift = jnp.maximum(before, 0), shifts["mfa"]
    centred = x.astype(wide(x.dtype)) - shift
    sums = centred.mean(1), jnp.square(centred).mean(1)

    def read(sums: tuple[Array, Array], weights: dict) -> tuple[tuple, tuple]:
        """What the attention's first product multiplies with and what it adds; the norm's gain and bias."""
        mean, square = sums
        off, variance = mean.mean(0), variance_of(mean, square)
        found = off, variance_of(off, square.mean(0))
        norm = normed(x, shift, weights["norm"]["scale"], weights["norm"]["bias"], *found)
        conv = weights["pooling"]["tdnn_conv"]
        context = statistics(norm, mean[:, None], variance[:, None])
        of_frames, constant = with_context(norm, context, conv["kernel"][0], conv["bias"], x.dtype)
        return (of_frames.astype(x.dtype), constant, norm.gain, norm.bias), found

    def hide(read: Frames, constant: Float[Array, "B 1 H"], weights: dict) -> tuple[Frames, Moments]:
        """The hidden activations of the attention."""
        raw = rectify(read + constant)
        found = moments(raw, shifts["pooling"])
        norm = weights["pooling"]["tdnn_norm"]
        return jnp.tanh(normed(raw, shifts["pooling"], norm["scale"], norm["bias"], *found).value()), found

    def collect(off: Array, variance: Array, gain: Array, bias: Array) -> Float[Array, "B 2*C"]:
        return statistics(Normed(x, shift, gain, bias), sums[0] + off, variance)

    (reader, constant, gain, bias), back_of_read, found = jax.vjp(read, sums, weights, has_aux=True)
    hidden, back_of_hide, found_hidden = jax.vjp(hide, x @ reader, constant, weights, has_aux=True)
    kernel = weights["pooling"]["conv"]["kernel"][0].astype(x.dtype)
    centre = shift + sums[0]
    attended = _on_each_device(mesh, pooling_kernels.attended, "bbwb", "bbb")
    off, variance, log_total = attended(x, hidden, kernel, centre)
    result, back_of_collect = jax.vjp(collect, off, variance, gain, bias)
    kept = x, hidden, kernel, reader, shift, (log_total, centre + off, variance)
    return (result, {"mfa": found, "pooling": found_hidden}), (kept, back_of_read, back_of_hide, back_of_collect)


def _backward(mesh: Mesh, saved: tuple, gradients: tuple) -> tuple[Frames, dict, dict]:
    (x, hidden, kernel, reader, shift, weighed), back_of_read, back_of_hide, back_of_collect = saved
    of_mean, of_variance, of_gain, of_norm_bias = back_of_collect(gradients[0])
    of_frame = *weighed, of_mean, of_variance
    of_hidden = _on_each_device(mesh, pooling_kernels.of_hidden, "bbwbbbbb", "b")(x, hidden, kernel, *of_frame)
    of_read, of_constant, of_weights = back_of_hide(of_hidden)
    of_reader = jnp.tensordot(x, of_read, ((0, 1), (0, 1)))
    (of_mean, of_square), more_of_weights = back_of_read((of_reader, of_constant, of_gain, of_norm_bias))
    # The means of x - shift and of its square over time: a line in x for every utterance and channel.
    slope = 2 * of_square / x.shape[1]
    line = of_mean / x.shape[1] - slope * shift, slope
    of_before, of_kernel, of_bias = _on_each_device(mesh, pooling_kernels.of_frames, "bbwbwbbbbbbb", "bbb")(
        x, hidden, kernel, of_read, reader, *of_frame, *line
    )
    of_weights = jax.tree.map(jnp.add, of_weights, more_of_weights)
    of_weights["bias"] += of_bias.sum(0)
    of_weights["pooling"]["conv"]["kernel"] += of_kernel.sum(0)[None]
    return of_before, of_weights, {"mfa": jnp.zeros_like(shift), "pooling": jnp.zeros(hidden.shape[-1])}


rectified_and_pooled.defvjp(_forward, _backward)


def res2net(x: Normed, params: dict, batch_stats: dict, mesh: Mesh, dilation: int) -> tuple[Normed, dict]:
    """Passes frames through a Res2Net, and returns its new running statistics too.

    params, batch_stats: of Res2Net, whose blocks are called block_0 and so on.
    """
    running = {name: of["norm"] for name, of in batch_stats.items()}
    shifts = {name: of["mean"] for name, of in running.items()}
    done: Any = convolved((mesh, dilation), x.raw, x.gain, x.bias - x.shift * x.gain, params, shifts)
    raw, gains, biases, found = done
    width = x.shift.size // (len(params) + 1)
    beside = lambda passed, of_groups: jnp.concatenate([passed[:width], *of_groups])  # noqa: E731
    joined = Normed(raw, beside(x.shift, _in_order(shifts)), beside(x.gain, gains), beside(x.bias, biases))
    return joined, {name: {"norm": values} for name, values in _moved(running, found, raw).items()}


def _in_order(of_blocks: dict[str, Any]) -> list[Any]:
    return [of_blocks[f"block_{i}"] for i in range(len(of_blocks))]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def convolved(
    where: tuple[Mesh, int], x: Frames, gain: Array, constant: Array, weights: dict, shifts: dict
) -> tuple[Frames, list[Array], list[Array], dict[str, Moments]]:
    """Convolves all groups but the first of x * gain + constant: outputs, gains and biases of their norms, moments.

    where: the devices, and the dilation. No gradient flows to moments and shifts.
    """
    return _convolved(where, x, gain, constant, weights, shifts, keep=False)[0]


def _convolved(
    where: tuple[Mesh, int], x: Frames, gain: Array, constant: Array, weights: dict, shifts: dict, keep: bool = True
) -> tuple[Any, tuple]:
    mesh, dilation = where
    all_shifts = _in_order(shifts)
    width = all_shifts[0].size
    of_x, of_constant = jnp.split(gain, gain.size // width), jnp.split(constant, gain.size // width)
    outputs, gains, biases, found, kept = [], [], [], {}, []
    of_before = constant_before = jnp.zeros(width)

    def normed_by(means: tuple[Array, Array], norm: dict, shift: Array) -> tuple[tuple[Array, Array], Moments]:
        mean, square = means
        found = mean, variance_of(mean, square)
        x = normed(jnp.zeros(0), shift, norm["scale"], norm["bias"], *found)
        return (x.gain, x.bias), found

    for i, (block, shift) in enumerate(zip(_in_order(weights), all_shifts, strict=True), 1):
        coefficients = jnp.stack([of_x[i], of_before, of_constant[i] + constant_before])
        kernel = block["conv"]["kernel"].astype(x.dtype)
        run = functools.partial(res2net_kernels.convolved, group=i, dilation=dilation, keep=keep)
        operands = (coefficients, kernel, block["conv"]["bias"], shift, *outputs)
        places = ("bwwww" + "b" * len(outputs), "bbb" if keep else "bb")
        array, means, *both = _on_each_device(mesh, run, *places)(x, *operands)
        means = means.mean(0)
        (of_before, bias), back, moments = jax.vjp(
            functools.partial(normed_by, shift=shift), (means[0], means[1]), block["norm"], has_aux=True
        )
        constant_before = bias - shift * of_before
        outputs, found[f"block_{i - 1}"] = [array], moments
        gains.append(of_before)
        biases.append(bias)
        kept.append((kernel, back, *both))
    return (outputs[0], gains, biases, found), (x, outputs[0], of_x, gains, all_shifts, kept)


def _convolved_gradient(where: tuple[Mesh, int], saved: tuple, gradients: tuple) -> tuple:
    (mesh, dilation), (x, outputs, of_x, gains, shifts, kept) = where, saved
    of_outputs, of_gains, of_biases, _ = gradients
    exact = lambda array: array.astype(wide(x.dtype))  # noqa: E731
    of_groups, groups = (jnp.split(array, len(of_x), axis=-1) for array in (of_outputs, outputs))
    of_weights, count = {}, x.shape[0] * x.shape[1]
    of_both, sums = jnp.zeros((), x.dtype), jnp.zeros((3, shifts[0].size))  # there is no group behind the last
    of_raw, of_gain, of_constant = [], [], []
    for i in range(len(kept), 0, -1):
        kernel, back, both = kept[i - 1]
        gain, shift, output = gains[i - 1], shifts[i - 1], groups[i]
        of_norm = of_gains[i - 1] + sums[2] - shift * sums[0], of_biases[i - 1] + sums[0]
        (of_mean, of_square), of_norm = back(of_norm)
        gradient = exact(of_groups[i]) + gain * exact(of_both)
        gradient += (of_mean + 2 * of_square * (exact(output) - shift)) / count
        gradient = jnp.where(output != 0, gradient, 0)
        of_bias, gradient = gradient.sum((0, 1)), gradient.astype(x.dtype)
        run = functools.partial(res2net_kernels.of_sum, group=i, dilation=dilation)
        of_both, sums = _on_each_device(mesh, run, "bbbw", "bb")(gradient, x, outputs, kernel)
        sums = sums.sum(0)
        run = functools.partial(res2net_kernels.of_kernel, dilation=dilation)
        of_kernel = _on_each_device(mesh, run, "bb", "b")(both, gradient).sum(0)
        of_weights[f"block_{i - 1}"] = {"conv": {"kernel": of_kernel, "bias": of_bias}, "norm": of_norm}
        of_raw.insert(0, (of_x[i] * exact(of_both)).astype(x.dtype))
        of_gain.insert(0, sums[1])
        of_constant.insert(0, sums[0])
    none = jnp.zeros_like(shifts[0])
    return (
        jnp.concatenate([of_groups[0], *of_raw], axis=-1),
        jnp.concatenate([none, *of_gain]),
        jnp.concatenate([none, *of_constant]),
        of_weights,
        {f"block_{i}": none for i in range(len(shifts))},
    )


convolved.defvjp(_convolved, _convolved_gradient)


def _on_each_device(mesh: Mesh, kernel: Any, arguments: str, results: str) -> Any:
    """Lets each device do its share of the batch: arguments and results are split along their first axis (b) or not.

    A CPU goes through a kernel as it is written, slowly: for tests.
    """
    places = {"b": PartitionSpec(mesh.axis_names), "w": PartitionSpec()}
    of = lambda names: tuple(places[name] for name in names)  # noqa: E731
    out = of(results) if len(results) > 1 else places[results]
    run = functools.partial(kernel, interpret=mesh.devices.flat[0].platform == "cpu")
    return jax.shard_map(run, mesh=mesh, in_specs=of(arguments), out_specs=out, check_vma=False)
