"""The convolutions of a Res2Net for NVIDIA GPUs, written in Pallas (Triton), with what stands before and behind them.

Group i of the frames x and the output of group i - 1 are added, each times a gain by channel; the sum, mirrored at both
ends, is convolved by three taps; bias and ReLU follow, and the means that the batch norm needs. The outputs of all
groups lie side by side in one array, in which each kernel writes its own. B utterances of T frames, W channels a group.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from sdpn_jax.models.kernels import dot, nbytes, rows, stated
from sdpn_jax.models.layers import wide

TAPS, FRAMES, CHANNELS = 3, 64, 32  # of the kernel; that are computed, and that are convolved, at a time
SPLITS = 64  # how many sums over utterances are written, to be added up


def _mirrored(time: Array, num_frames: int) -> Array:
    """Mirrors times beyond the first and the last frame; what is far behind the last becomes the first."""
    time = jnp.abs(time)
    return jnp.maximum(jnp.where(time < num_frames, time, 2 * (num_frames - 1) - time), 0)


def convolved(
    x: Float[Array, "B T C"],
    coefficients: Float[Array, "3 W"],
    kernel: Float[Array, "3 W W"],
    bias: Float[Array, " W"],
    shift: Float[Array, " W"],
    outputs: Float[Array, "B T C"] | None = None,
    *,
    group: int,
    dilation: int,
    keep: bool,
    interpret: bool = False,
) -> tuple[Array, ...]:
    """Computes a group into the outputs, which hold those before it; group 1 begins them, with group 0 of x as it is.

    coefficients: the gains of x and of the output before, and what is added. Returns (outputs [B T C], the means over
    time of what was computed - shift and of its squares [B 2 W]) and, to `keep`, what was convolved [B T W].
    """
    batch, num_frames, _ = x.shape
    exact = wide(x.dtype)
    width = kernel.shape[-1]
    first = outputs is None
    lead = width if first else 0  # the first sees two groups at once, and passes one on
    own = pl.ds(lead, width)
    depth = min(CHANNELS, width)
    parts = width // depth

    def body(x_ref, coefficients_ref, kernel_ref, bias_ref, shift_ref, *refs):
        before_ref, out_ref, means_ref, *kept_ref = (None, *refs) if first else refs

        def sum_at(time, start):
            columns = pl.ds(start, depth)
            both = (
                coefficients_ref[0, columns] * x_ref[time, pl.ds(lead + start, depth)].astype(exact)
                + coefficients_ref[2, columns]
            )
            if before_ref is not None:
                both += coefficients_ref[1, columns] * before_ref[time, columns].astype(exact)
            return both.astype(x.dtype)

        def add(block, sums):
            time = block * FRAMES + jnp.arange(FRAMES)
            there, here = (time < num_frames)[:, None], pl.ds(block * FRAMES, FRAMES)

            def add_part(i, out):
                k, start = jax.lax.div(i, parts), jax.lax.rem(i, parts) * depth
                both = sum_at(_mirrored(time + (k - 1) * dilation, num_frames), start)
                for ref in kept_ref:
                    triton.store(ref.at[here, pl.ds(start, depth)], both, mask=there & (k == 1))
                return out + dot(both, kernel_ref[k, pl.ds(start, depth), :])

            out = jax.lax.fori_loop(0, TAPS * parts, add_part, jnp.zeros((FRAMES, width), exact))
            out = jnp.maximum(out + bias_ref[...], 0).astype(x.dtype)
            triton.store(out_ref.at[here, own], out, mask=there)
            if first:
                passed, _ = rows(x_ref, block * FRAMES, FRAMES, pl.ds(0, width))
                triton.store(out_ref.at[here, pl.ds(0, width)], passed, mask=there)
            centred = jnp.where(there, out.astype(exact) - shift_ref[...], 0)
            return sums[0] + centred.sum(0), sums[1] + (centred * centred).sum(0)

        zero = jnp.zeros(width, exact)
        total, square = jax.lax.fori_loop(0, pl.cdiv(num_frames, FRAMES), add, (zero, zero))
        means_ref[0, :], means_ref[1, :] = total / num_frames, square / num_frames

    seen = pl.BlockSpec((None, num_frames, 2 * width if first else width), lambda b: (b, 0, 0 if first else group))
    one = pl.BlockSpec((None, num_frames, width), lambda b: (b, 0, 0))
    before = [] if first else [pl.BlockSpec((None, num_frames, width), lambda b: (b, 0, group - 1))]
    whole = [pl.BlockSpec(array.shape, _origin(array.ndim)) for array in (coefficients, kernel, bias, shift)]
    kept = [jax.ShapeDtypeStruct((batch, num_frames, width), x.dtype)] if keep else []
    means, product = jax.ShapeDtypeStruct((batch, 2, width), exact), 2 * batch * num_frames * kernel.size
    groups = (4 if first else 3) + keep
    return pl.pallas_call(
        body,
        (jax.ShapeDtypeStruct(x.shape, x.dtype), means, *kept),
        grid=(batch,),
        in_specs=[seen, *whole, *before],
        out_specs=(seen, pl.BlockSpec((None, 2, width), lambda b: (b, 0, 0)), *[one for _ in kept]),
        input_output_aliases={} if first else {5: 0},
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="res2net_convolved",
        metadata=stated(groups * batch * num_frames * width * x.dtype.itemsize + nbytes(kernel, means), product),
    )(x, coefficients, kernel, bias, shift, *([] if first else [outputs]))


def _origin(rank: int) -> Any:
    return lambda *_: (0,) * rank


def of_sum(
    gradient: Float[Array, "B T W"],
    x: Float[Array, "B T C"],
    outputs: Float[Array, "B T C"],
    kernel: Float[Array, "3 W W"],
    group: int,
    dilation: int,
    interpret: bool = False,
) -> tuple[Float[Array, "B T W"], Float[Array, "B 3 W"]]:
    """Computes the gradient of what was convolved, and its sums over time: alone, times x, times the output before."""
    batch, num_frames, width = gradient.shape
    exact = wide(x.dtype)

    def body(gradient_ref, x_ref, before_ref, kernel_ref, out_ref, sums_ref):
        last = num_frames - 1

        def at(time, there):
            there = there & (time >= 0) & (time <= last)
            return jnp.where(there[:, None], gradient_ref[jnp.where(there, time, 0), :], 0)

        def add(block, sums):
            time = block * FRAMES + jnp.arange(FRAMES)
            # The first and the last tap also saw frames 1 to dilation, mirrored in front, and the like behind the end.
            early = (time >= 1) & (time <= dilation)
            late = (time < last) & (time >= last - dilation)
            taps = (
                at(time + dilation, time >= 0) + at(dilation - time, early),
                at(time, time >= 0),
                at(time - dilation, time < num_frames) + at(2 * last - time - dilation, late),
            )
            of_sum: Any = sum(dot(tap, kernel_ref[k, :, :].T) for k, tap in enumerate(taps))
            x, there = rows(x_ref, block * FRAMES, FRAMES)
            before, _ = rows(before_ref, block * FRAMES, FRAMES)
            triton.store(out_ref.at[pl.ds(block * FRAMES, FRAMES), :], of_sum.astype(out_ref.dtype), mask=there)
            of_sum: Any = jnp.where(there, of_sum, 0)
            of_gain, of_gain_before = of_sum * x.astype(exact), of_sum * before.astype(exact)
            return sums[0] + of_sum.sum(0), sums[1] + of_gain.sum(0), sums[2] + of_gain_before.sum(0)

        zero = jnp.zeros(width, exact)
        sums = jax.lax.fori_loop(0, pl.cdiv(num_frames, FRAMES), add, (zero, zero, zero))
        for k in range(3):
            sums_ref[k, :] = sums[k]

    one = lambda i: pl.BlockSpec((None, num_frames, width), lambda b: (b, 0, i))  # noqa: E731
    sums, product = jax.ShapeDtypeStruct((batch, 3, width), exact), 2 * batch * num_frames * kernel.size
    return pl.pallas_call(
        body,
        (jax.ShapeDtypeStruct(gradient.shape, gradient.dtype), sums),
        grid=(batch,),
        in_specs=[one(0), one(group), one(group - 1), pl.BlockSpec(kernel.shape, _origin(3))],
        out_specs=(one(0), pl.BlockSpec((None, 3, width), lambda b: (b, 0, 0))),
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=1),
        interpret=interpret,
        name="res2net_of_sum",
        metadata=stated(4 * nbytes(gradient) + nbytes(kernel, sums), product),
    )(gradient, x, outputs, kernel)


def of_kernel(
    both: Float[Array, "B T W"], gradient: Float[Array, "B T W"], dilation: int, interpret: bool = False
) -> Float[Array, "S 3 W W"]:
    """Computes the gradient of the kernel from what was convolved, as sums over S shares of the utterances."""
    batch, num_frames, width = both.shape
    exact = wide(both.dtype)
    splits = math.gcd(batch, SPLITS)
    share, blocks = batch // splits, pl.cdiv(num_frames, FRAMES)

    def body(both_ref, gradient_ref, out_ref):
        off = (pl.program_id(0) - 1) * dilation

        def add(i, sums):
            b, block = jax.lax.div(i, blocks), jax.lax.rem(i, blocks)
            time = block * FRAMES + jnp.arange(FRAMES)
            tap = both_ref[b, _mirrored(time + off, num_frames), :]
            of_out, _ = rows(gradient_ref, block * FRAMES, FRAMES, of=(b,))
            return sums + dot(tap.T, of_out)

        out_ref[...] = jax.lax.fori_loop(0, share * blocks, add, jnp.zeros((width, width), exact))

    shares = pl.BlockSpec((share, num_frames, width), lambda k, s: (s, 0, 0))
    sums = jax.ShapeDtypeStruct((splits, TAPS, width, width), exact)
    return pl.pallas_call(
        body,
        sums,
        grid=(TAPS, splits),
        in_specs=[shares, shares],
        out_specs=pl.BlockSpec((None, None, width, width), lambda k, s: (s, k, 0, 0)),
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=3),
        interpret=interpret,
        name="res2net_of_kernel",
        metadata=stated(nbytes(both, gradient, sums), 2 * TAPS * both.size * width),
    )(both, gradient)
