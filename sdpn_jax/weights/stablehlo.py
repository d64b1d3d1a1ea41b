"""A trained encoder as one file of StableHLO, which runs with JAX alone, without this package.

It takes float32 samples [batch, samples] at 16 kHz in [-1, 1], of any batch size and any length from 0.1 s, computes
the features itself, and gives embeddings [batch, D], on CPU, CUDA, ROCm and TPU:

    import jax, soundfile
    encoder = jax.export.deserialize(open("vox2.stablehlo", "rb").read())
    samples, rate = soundfile.read("a.wav", dtype="float32")
    embedding = encoder.call(samples[None])[0]
"""

import os

import jax
import jax.numpy as jnp
from jax import export

from sdpn_jax import storage
from sdpn_jax.data import audio, device_front_ends
from sdpn_jax.models.network import Network

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def serialise(network: Network, variables: dict) -> bytes:
    """Exports samples [batch, samples] -> embeddings [batch, D] as StableHLO, both sizes symbolic, weights included."""

    def embed(samples):
        features = device_front_ends.FRONT_ENDS[network.front_end](samples)
        return network.apply(variables, features, method=network.embed)

    shortest = int(audio.MIN_SECONDS * audio.SAMPLE_RATE)
    shape = export.symbolic_shape("batch, samples", constraints=[f"samples >= {shortest}"])
    exported = export.export(jax.jit(embed), platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, jnp.float32))
    return bytes(exported.serialize())


def write(path: str | os.PathLike, network: Network, variables: dict) -> int:
    """Writes `serialise` of the network to a file; returns its size in bytes."""
    content = serialise(network, variables)
    storage.make_folder(storage.place(path).parent)
    storage.write_bytes(path, content)
    return len(content)
