"""Attentive pooling for NVIDIA GPUs: three kernels that go through the frames once each, written in Pallas (Triton).

The logits of the attention, h @ W for hidden activations h of few channels, are computed again wherever they are wanted
and never written. All sums are in float32. B utterances of T frames, H hidden channels, C channels of frames.

What is computed for frames x and weights w = softmax over time of h @ W is `attended` of ecapa.py, with its gradient,
and the same of the frames that other readers of them want.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from sdpn_jax.models.frames import variance_of
from sdpn_jax.models.kernels import dot, nbytes, rows, stated
from sdpn_jax.models.layers import wide

CHANNELS, FRAMES = 64, 64  # that a kernel holds at a time
SPLITS = 16  # how many sums over utterances are written, to be added up


def attended(
    x: Float[Array, "B T C"],
    hidden: Float[Array, "B T H"],
    kernel: Float[Array, "H C"],
    shift: Float[Array, "B C"],
    interpret: bool = False,
) -> list[Float[Array, "B C"]]:
    """Computes mean - shift, biased variance and log of the sum of exp(logits), over time."""
    batch, num_frames, channels = x.shape
    exact = wide(x.dtype)

    def body(x_ref, hidden_ref, kernel_ref, shift_ref, mean_ref, variance_ref, log_total_ref):
        shift, kernel = shift_ref[...], kernel_ref[...]

        def add(i, sums):
            top, total, mean, square = sums
            x, there = rows(x_ref, i * FRAMES, FRAMES)
            hidden, _ = rows(hidden_ref, i * FRAMES, FRAMES)
            logits = jnp.where(there, dot(hidden, kernel), -jnp.inf)
            higher = jnp.maximum(top, logits.max(0))
            weights, before = jnp.exp(logits - higher), jnp.exp(top - higher)
            centred = x.astype(exact) - shift
            weighted = weights * centred
            return (
                higher,
                before * total + weights.sum(0),
                before * mean + weighted.sum(0),
                before * square + (weighted * centred).sum(0),
            )

        zero = jnp.zeros(CHANNELS, exact)
        top, total, mean, square = jax.lax.fori_loop(
            0, pl.cdiv(num_frames, FRAMES), add, (jnp.full(CHANNELS, -jnp.inf, exact), zero, zero, zero)
        )
        mean /= total
        mean_ref[...] = mean
        variance_ref[...] = variance_of(mean, square / total)
        log_total_ref[...] = top + jnp.log(total)

    results = [jax.ShapeDtypeStruct((batch, channels), exact)] * 3
    of_utterance = pl.BlockSpec((None, CHANNELS), lambda c, b: (b, c))
    return pl.pallas_call(
        body,
        results,
        grid=(channels // CHANNELS, batch),
        in_specs=[
            pl.BlockSpec((None, num_frames, CHANNELS), lambda c, b: (b, 0, c)),
            pl.BlockSpec((None, num_frames, hidden.shape[-1]), lambda c, b: (b, 0, 0)),
            pl.BlockSpec((hidden.shape[-1], CHANNELS), lambda c, b: (0, c)),
            of_utterance,
        ],
        out_specs=[of_utterance] * 3,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="attended",
        metadata=stated(nbytes(x, hidden, kernel, shift, *results), 2 * x.size * hidden.shape[-1]),
    )(x, hidden, kernel, shift)


def of_hidden(
    x: Float[Array, "B T C"],
    hidden: Float[Array, "B T H"],
    kernel: Float[Array, "H C"],
    *of_frame: Float[Array, "B C"],
    interpret: bool = False,
) -> Float[Array, "B T H"]:
    """Computes the gradient of hidden.

    of_frame, by utterance: log of the sum of exp(logits), mean, variance, and the gradients of mean and variance.
    """
    batch, num_frames, channels = x.shape
    exact = wide(x.dtype)
    count = 2 * FRAMES

    def body(x_ref, hidden_ref, kernel_ref, *refs):
        *of_frame_refs, out_ref = refs
        start = pl.program_id(0) * count
        hidden, there = rows(hidden_ref, start, count)

        def add(i, gradient):
            columns = pl.ds(i * CHANNELS, CHANNELS)
            kernel = kernel_ref[:, columns]
            x, _ = rows(x_ref, start, count, columns)
            of = [ref[columns] for ref in of_frame_refs]
            weights, centred = _weighed(x, dot(hidden, kernel), of)
            of_logits = _of_logits(weights, centred, of)
            return gradient + dot(of_logits.astype(x.dtype), kernel.T)

        zero = jnp.zeros((count, hidden.shape[1]), exact)
        gradient = jax.lax.fori_loop(0, channels // CHANNELS, add, zero)
        triton.store(out_ref.at[pl.ds(start, count), :], gradient.astype(out_ref.dtype), mask=there)

    whole = lambda t, b: (b, 0, 0)  # noqa: E731
    return pl.pallas_call(
        body,
        jax.ShapeDtypeStruct(hidden.shape, hidden.dtype),
        grid=(pl.cdiv(num_frames, count), batch),
        in_specs=[
            pl.BlockSpec((None, *x.shape[1:]), whole),
            pl.BlockSpec((None, *hidden.shape[1:]), whole),
            pl.BlockSpec(kernel.shape, lambda t, b: (0, 0)),
            *[pl.BlockSpec((None, channels), lambda t, b: (b, 0)) for _ in of_frame],
        ],
        out_specs=pl.BlockSpec((None, *hidden.shape[1:]), whole),
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=2),
        interpret=interpret,
        name="attended_of_hidden",
        metadata=stated(nbytes(x, hidden, kernel, *of_frame, hidden), 4 * x.size * hidden.shape[-1]),
    )(x, hidden, kernel, *of_frame)


def of_frames(
    x: Float[Array, "B T C"],
    hidden: Float[Array, "B T H"],
    kernel: Float[Array, "H C"],
    of_read: Float[Array, "B T H"],
    reader: Float[Array, "C H"],
    *of_frame: Float[Array, "B C"],
    interpret: bool = False,
) -> tuple[Float[Array, "B T C"], Float[Array, "S H C"], Float[Array, "S C"]]:
    """Computes the gradients of what became x in a ReLU, of kernel, and of a bias that was added before the ReLU.

    of_read: the gradient of x @ reader, which reads x too; of_frame: as in of_hidden, and offset and slope of a line in
    x, the gradient of all else that is made of x. Kernel and bias come as sums over S shares of the utterances, which
    are still to be added up.
    """
    batch, num_frames, channels = x.shape
    exact = wide(x.dtype)
    splits = math.gcd(batch, SPLITS)
    share, blocks = batch // splits, pl.cdiv(num_frames, FRAMES)

    def body(x_ref, hidden_ref, kernel_ref, of_read_ref, reader_ref, *refs):
        *of_frame_refs, of_x_ref, of_kernel_ref, of_bias_ref = refs
        kernel, reader = kernel_ref[...], reader_ref[...]

        def add(i, sums):
            of_kernel, of_bias = sums
            b, start = jax.lax.div(i, blocks), jax.lax.rem(i, blocks) * FRAMES
            x, there = rows(x_ref, start, FRAMES, of=(b,))
            hidden, _ = rows(hidden_ref, start, FRAMES, of=(b,))
            of_read, _ = rows(of_read_ref, start, FRAMES, of=(b,))
            of = [ref[b, :] for ref in of_frame_refs]
            weights, centred = _weighed(x, dot(hidden, kernel), of)
            of_logits = _of_logits(weights, centred, of)
            of_x = weights * (of[3] + 2 * centred * of[4]) + dot(of_read, reader.T)
            of_x += of[5] + of[6] * x.astype(exact)
            of_x = jnp.where((x != 0) & there, of_x, 0).astype(x.dtype)
            triton.store(of_x_ref.at[b, pl.ds(start, FRAMES), :], of_x, mask=there)
            of_kernel += dot(hidden.T, of_logits.astype(x.dtype))
            return of_kernel, of_bias + of_x.astype(exact).sum(0)

        zero = jnp.zeros(kernel.shape, exact), jnp.zeros(CHANNELS, exact)
        of_kernel_ref[...], of_bias_ref[...] = jax.lax.fori_loop(0, share * blocks, add, zero)

    size = hidden.shape[-1]
    columns = lambda c, s: (s, 0, c)  # noqa: E731
    sums = jax.ShapeDtypeStruct((splits, size, channels), exact), jax.ShapeDtypeStruct((splits, channels), exact)
    return pl.pallas_call(
        body,
        (jax.ShapeDtypeStruct(x.shape, x.dtype), *sums),
        grid=(channels // CHANNELS, splits),
        in_specs=[
            pl.BlockSpec((share, num_frames, CHANNELS), columns),
            pl.BlockSpec((share, num_frames, size), lambda c, s: (s, 0, 0)),
            pl.BlockSpec((size, CHANNELS), lambda c, s: (0, c)),
            pl.BlockSpec((share, num_frames, size), lambda c, s: (s, 0, 0)),
            pl.BlockSpec((CHANNELS, size), lambda c, s: (c, 0)),
            *[pl.BlockSpec((share, CHANNELS), lambda c, s: (s, c)) for _ in of_frame],
        ],
        out_specs=(
            pl.BlockSpec((share, num_frames, CHANNELS), columns),
            pl.BlockSpec((None, size, CHANNELS), columns),
            pl.BlockSpec((None, CHANNELS), lambda c, s: (s, c)),
        ),
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=2),
        interpret=interpret,
        name="attended_of_frames",
        metadata=stated(nbytes(x, hidden, kernel, of_read, reader, *of_frame, x, *sums), 6 * x.size * size),
    )(x, hidden, kernel, of_read, reader, *of_frame)


def _weighed(x: Array, logits: Array, of: list[Array]) -> tuple[Array, Array]:
    """The softmax over time, from of[0], the log of its sum, and x less of[1], its mean."""
    return jnp.exp(logits - of[0]), x.astype(wide(x.dtype)) - of[1]


def _of_logits(weights: Array, centred: Array, of: list[Array]) -> Array:
    """The gradient of the logits, from of[2], the variance, and of[3] and of[4], the gradients of mean and variance."""
    return weights * (of[3] * centred + of[4] * (centred * centred - of[2]))
