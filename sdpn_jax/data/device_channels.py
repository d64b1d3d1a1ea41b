"""The distortions of channels.py on the accelerator, drawn fresh for every view from a key.

The same distributions, but for two: of codecs mu-law alone is there, and the loudest samples that clipping cuts off are
found among every 16th.
"""

from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from sdpn_jax.data import channels
from sdpn_jax.data.audio import SAMPLE_RATE

Samples: TypeAlias = Float[Array, " N"]

MU, STEPS = 255, 128  # of mu-law: the curve, and the steps of each sign (ITU-T G.711)
LOOKED_AT = 16  # of so many samples clipping looks at one
PEAK = 0.5  # of full scale, before coding


def distort(key: PRNGKeyArray, segment: Samples, audible: Bool[Array, " N"], names: Sequence[str]) -> Samples:
    """Distorts the `audible` samples of a segment [N] by those of `names` that the dice choose; the others become 0."""
    for number, (name, share) in enumerate(channels.SHARES.items()):
        if name in names:
            chosen, key_of_it = jax.random.split(jax.random.fold_in(key, number))
            distorted = DISTORTIONS[name](key_of_it, segment)
            segment = jnp.where(jax.random.uniform(chosen) < share, distorted, segment)
    return jnp.where(audible, segment, 0.0)


def equaliser(key: PRNGKeyArray, segment: Samples) -> Samples:
    """As channels.equaliser."""
    key_points, key_tilt = jax.random.split(key)
    low, high = np.log2(channels.EQUALISER_HZ)
    places = np.linspace(0, high - low, channels.EQUALISER_POINTS)
    decibels = channels.EQUALISER_DB * jax.random.normal(key_points, places.shape)
    decibels += jax.random.uniform(key_tilt, (), minval=-1, maxval=1) * channels.TILT_DB * (places - places[-1] / 2)
    return _filtered(segment, lambda pitch: jnp.interp(pitch - low, places, decibels))


def band(key: PRNGKeyArray, segment: Samples) -> Samples:
    """As channels.band."""
    keys = jax.random.split(key)
    low, high = (
        jnp.log2(jax.random.uniform(k, (), minval=least, maxval=most))
        for k, (least, most) in zip(keys, (channels.LOW_HZ, channels.HIGH_HZ), strict=True)
    )
    slope = channels.SLOPE_DB
    return _filtered(segment, lambda pitch: -slope * jnp.maximum(jnp.maximum(low - pitch, pitch - high), 0))


def _filtered(segment: Samples, decibels_of) -> Samples:
    size = len(segment) + SAMPLE_RATE // 10
    size += size % 2
    pitch = np.log2(np.maximum(np.arange(size // 2 + 1) * (SAMPLE_RATE / size), 1.0)).astype(np.float32)
    gains = 10 ** (decibels_of(pitch) / 20)
    filtered = jnp.fft.irfft(jnp.fft.rfft(segment, size) * gains, size)[: len(segment)]
    power = lambda x: jnp.mean(jnp.square(x))  # noqa: E731
    return filtered * jnp.sqrt(power(segment) / jnp.maximum(power(filtered), 1e-20))


def clipping(key: PRNGKeyArray, segment: Samples) -> Samples:
    """As channels.clipping, by every 16th sample."""
    low, high = np.log(channels.CLIPPED_SHARE)
    share = jnp.exp(jax.random.uniform(key, (), minval=low, maxval=high))
    level = jnp.quantile(jnp.abs(segment[::LOOKED_AT]), 1 - share)
    return jnp.clip(segment, -level, level)


def codec(key: PRNGKeyArray, segment: Samples) -> Samples:
    """Codes and decodes by mu-law of 8 bits (ITU-T G.711, its continuous curve)."""
    peak = jnp.maximum(jnp.max(jnp.abs(segment)), 1e-9)
    x = segment * (PEAK / peak)
    compressed = jnp.log1p(MU * jnp.abs(x)) / np.log1p(MU)
    rounded = (jnp.floor(compressed * STEPS) + 0.5) / STEPS
    return jnp.sign(x) * jnp.expm1(rounded * np.log1p(MU)) / MU * (peak / PEAK)


def loss(key: PRNGKeyArray, segment: Samples) -> Samples:
    """As channels.loss."""
    key_share, key_packets = jax.random.split(key)
    low, high = channels.LOST_PACKETS
    packets = -(-len(segment) // channels.PACKET)
    kept = jax.random.uniform(key_packets, (packets,)) >= jax.random.uniform(key_share, (), minval=low, maxval=high)
    return segment * jnp.repeat(kept, channels.PACKET)[: len(segment)]


def gain(key: PRNGKeyArray, segment: Samples) -> Samples:
    """As channels.gain."""
    low, high = channels.GAIN_DB
    return segment * 10 ** (jax.random.uniform(key, (), minval=low, maxval=high) / 20)


DISTORTIONS = {
    "equaliser": equaliser, "clipping": clipping, "band": band, "codec": codec, "loss": loss, "gain": gain,
}  # fmt: skip
