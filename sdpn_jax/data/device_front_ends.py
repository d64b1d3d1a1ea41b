"""The features of front_ends.py as JAX computes them, for programs that take samples: [B, N] -> [B, T, 80].

Everything up to the spectrum is linear in the samples of a frame: it is one convolution, whose kernel is made in
float64. There is neither an FFT nor indexing in it, so that the same function can be written for other runtimes.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdpn_jax.data import features, front_ends

Samples: TypeAlias = Float[Array, "B N"]
LogMels: TypeAlias = Float[Array, "B T F"]


def sdpn(samples: Samples) -> LogMels:
    """Computes log-mels as features.log_mel does: centred frames with reflect padding."""
    window, triangles = features.window_and_filterbank(features.DEFAULT)
    padded = jnp.pad(samples, ((0, 0), (len(window) // 2,) * 2), mode="reflect")
    return jnp.log(_mel_power(padded, np.diag(window), triangles) + features.DEFAULT.floor)


def kaldi80(samples: Samples) -> LogMels:
    """Computes what front_ends.kaldi80 does."""
    return _kaldi(samples, front_ends.povey())


def wespeaker(samples: Samples) -> LogMels:
    """Computes what front_ends.wespeaker does."""
    return _kaldi(samples * 32768, front_ends.hamming(front_ends.WIDTH - 1))


def speechbrain(samples: Samples) -> LogMels:
    """Computes what front_ends.speechbrain does."""
    padded = jnp.pad(samples, ((0, 0), (front_ends.WIDTH // 2,) * 2))
    window = front_ends.hamming(front_ends.WIDTH)
    power = _mel_power(padded, np.diag(window), front_ends.speechbrain_triangles())
    decibels = 10 / np.log(10) * jnp.log(jnp.maximum(power, front_ends.POWER_FLOOR))
    loudest = decibels.max((1, 2), keepdims=True)
    return _centred(jnp.maximum(decibels, loudest - front_ends.DECIBELS_KEPT))


FRONT_ENDS: dict[str, Callable[[Samples], LogMels]] = {
    "sdpn": sdpn, "kaldi80": kaldi80, "wespeaker": wespeaker, "speechbrain": speechbrain
}  # fmt: skip


def _kaldi(samples: Samples, window: np.ndarray) -> LogMels:
    prepared = front_ends.emphasised(np.eye(front_ends.WIDTH)) * window
    power = _mel_power(samples, prepared, front_ends.kaldi_triangles())
    return _centred(jnp.log(jnp.maximum(power, np.finfo(np.float32).eps)))


def _centred(x: LogMels) -> LogMels:
    return x - x.mean(1, keepdims=True)


def _mel_power(
    samples: Samples, prepared: Float[np.ndarray, "size size"], triangles: Float[np.ndarray, "points//2+1 F"]
) -> LogMels:
    """Computes the mel power of frames of `size` samples, one each hop, multiplied by the matrix `prepared` before."""
    spectrum = np.fft.rfft(prepared.astype(np.float64), 2 * (len(triangles) - 1))
    kernel = np.concatenate([spectrum.real, spectrum.imag], axis=1).astype(np.float32)
    parts = jax.lax.conv_general_dilated(
        samples[:, None],
        jnp.asarray(kernel[:, None]),
        (front_ends.HOP,),
        "VALID",
        dimension_numbers=("NCW", "WIO", "NWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    power = jnp.square(parts[..., : len(triangles)]) + jnp.square(parts[..., len(triangles) :])
    return jnp.matmul(power, triangles, precision=jax.lax.Precision.HIGHEST)
