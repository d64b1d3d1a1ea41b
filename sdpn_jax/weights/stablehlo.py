"""A trained encoder as one file of StableHLO, which runs with JAX alone, without this package.

    python -m sdpn_jax.weights.stablehlo --model=models/vox2 --output=vox2.stablehlo

takes float32 samples [batch, samples] at 16 kHz in [-1, 1], of any batch size and any length from 0.1 s, features
included, and gives embeddings [batch, D], on CPU, CUDA, ROCm and TPU:

    import jax, soundfile
    encoder = jax.export.deserialize(open("vox2.stablehlo", "rb").read())
    samples, rate = soundfile.read("a.wav", dtype="float32")
    embedding = encoder.call(samples[None])[0]
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags
from jax import export

from sdpn_jax import errors
from sdpn_jax.data import audio, device
from sdpn_jax.models.network import Network
from sdpn_jax.speaker.encoder import load_network

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def serialise(network: Network, variables: dict) -> bytes:
    """StableHLO of samples [batch, samples] -> embeddings [batch, D], both sizes symbolic, the weights within."""

    def embed(samples):
        padded = jnp.pad(samples, ((0, 0), (device.MARGIN, device.MARGIN)), mode="reflect")
        return network.apply(variables, device.log_mel_of_view(padded), method=network.embed)

    shortest = int(audio.MIN_SECONDS * audio.SAMPLE_RATE)
    shape = export.symbolic_shape("batch, samples", constraints=[f"samples >= {shortest}"])
    return export.export(jax.jit(embed), platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, jnp.float32)).serialize()


def main(_) -> None:
    network, variables, _ = load_network(FLAGS.model)
    content = serialise(network, variables)
    output = Path(FLAGS.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(content)
    print(f"wrote {output} ({len(content) / 1e6:.1f} MB) for {', '.join(PLATFORMS)}; how to load it: --help")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("model", None, "Model folder, training workdir, or PyTorch checkpoint.", required=True)
    flags.DEFINE_string("output", None, "The file to write.", required=True)
    errors.run(main)
