"""Products and convolutions over time in the compute type, with gradients that are summed in float32."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Padded = Float[Array, "B T+dilation*(taps-1) C"]
Kernel = Float[Array, "taps C F"]


@jax.custom_vjp
def product(x: Float[Array, "*n K"], kernel: Float[Array, "K F"], bias: Float[Array, " F"]) -> Float[Array, "*n F"]:
    """Computes x @ kernel + bias in x's type.

    All gradients are summed in float32 or wider; that of the bias stays so, those of x and kernel are rounded to x's
    type, once: devices send each other half as much.
    """
    return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


def _product_gradient(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    x, kernel = saved
    axes = tuple(range(x.ndim - 1))
    of_kernel = jnp.tensordot(x, gradient, (axes, axes)).astype(kernel.dtype)
    return gradient @ kernel.astype(x.dtype).T, of_kernel, gradient.astype(kernel.dtype).sum(axes)


product.defvjp(lambda x, kernel, bias: (product(x, kernel, bias), (x, kernel)), _product_gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def convolution(x: Padded, kernel: Kernel, bias: Float[Array, " F"], dilation: int) -> Float[Array, "B T F"]:
    """Convolves padded frames with a kernel over time, in x's type; gradients are as those of `product`.

    The frames that the taps see are laid side by side, so that it is one product [B T, taps C] x [taps C, F]: on CPUs
    that is faster than XLA's dilated convolution and than a sum over taps. NVIDIA's library convolves without writing
    them.
    """
    return _forward(x, kernel, dilation) + bias.astype(x.dtype)


def _convolution(x: Padded, kernel: Kernel, bias: Array, dilation: int) -> tuple[Array, tuple[Padded, Kernel]]:
    # Padded frames are written once, for the convolution and for the gradient, rather than padded for each.
    x = on_nvidia(jax.lax.optimization_barrier, lambda x: x)(x)
    return convolution(x, kernel, bias, dilation), (x, kernel)


def _convolution_gradient(dilation: int, saved: tuple[Padded, Kernel], gradient: Array) -> tuple[Array, Array, Array]:
    x, kernel = saved
    of_kernel = _of_kernel(x, gradient, len(kernel), dilation).astype(kernel.dtype)
    return _backward(gradient, kernel, dilation), of_kernel, gradient.astype(kernel.dtype).sum((0, 1))


convolution.defvjp(_convolution, _convolution_gradient)


def on_nvidia(there: Callable[..., Array], elsewhere: Callable[..., Array]) -> Callable[..., Any]:
    """Chooses between two functions by what the program is compiled for."""
    return functools.partial(jax.lax.platform_dependent, cuda=there, default=elsewhere)


def side_by_side(x: Padded, taps: int, dilation: int) -> Float[Array, "B T taps*C"]:
    """Lays the frames that the taps of a convolution see side by side."""
    num_frames = x.shape[1] - dilation * (taps - 1)
    return jnp.concatenate([x[:, k * dilation : k * dilation + num_frames] for k in range(taps)], axis=-1)


def _forward(x: Padded, kernel: Kernel, dilation: int) -> Float[Array, "B T F"]:
    def as_product(x: Padded, kernel: Kernel) -> Array:
        return side_by_side(x, len(kernel), dilation) @ kernel.reshape(-1, kernel.shape[-1])

    def by_library(x: Padded, kernel: Kernel) -> Array:
        return _convolve(x, kernel, dilation)

    return on_nvidia(by_library, as_product)(x, kernel.astype(x.dtype))


def _backward(gradient: Float[Array, "B T F"], kernel: Kernel, dilation: int) -> Padded:
    """Computes the gradient of the padded frames."""
    around = dilation * (len(kernel) - 1)

    def as_product(gradient: Array, kernel: Kernel) -> Padded:
        shares = jnp.split(gradient @ kernel.reshape(-1, kernel.shape[-1]).T, len(kernel), axis=-1)
        places = [(k * dilation, around - k * dilation) for k in range(len(kernel))]
        padded = [jnp.pad(share, ((0, 0), place, (0, 0))) for share, place in zip(shares, places, strict=True)]
        return functools.reduce(jnp.add, padded)

    def by_library(gradient: Array, kernel: Kernel) -> Padded:
        return _convolve(gradient, kernel[::-1].swapaxes(1, 2), dilation, around)

    return on_nvidia(by_library, as_product)(gradient, kernel.astype(gradient.dtype))


def _of_kernel(x: Padded, gradient: Float[Array, "B T F"], taps: int, dilation: int) -> Kernel:
    """Computes the gradient of the kernel."""
    shape = taps, x.shape[-1], gradient.shape[-1]

    def as_product(x: Padded, gradient: Array) -> Kernel:
        taken = side_by_side(x, taps, dilation)
        return jnp.tensordot(taken, gradient, ((0, 1), (0, 1))).reshape(shape)

    def by_library(x: Padded, gradient: Array) -> Kernel:
        # XLA knows this convolution only without dilation: every dilation-th frame makes a row of its own.
        rows = lambda frames: frames.reshape(len(frames), -1, dilation, frames.shape[-1])  # noqa: E731
        more = ((0, 0), (0, -gradient.shape[1] % dilation), (0, 0))
        x, gradient = (rows(jnp.pad(frames, more)) for frames in (x, gradient))
        convolved = lambda kernel: jax.lax.conv_general_dilated(  # noqa: E731
            x, kernel[:, None], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.linear_transpose(convolved, jax.ShapeDtypeStruct(shape, x.dtype))(gradient)[0]

    return on_nvidia(by_library, as_product)(x, gradient)


def _convolve(x: Array, kernel: Kernel, dilation: int, pad: int = 0) -> Array:
    dimensions = ("NWC", "WIO", "NWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (1,), ((pad, pad),), rhs_dilation=(dilation,), dimension_numbers=dimensions
    )
