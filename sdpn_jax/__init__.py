"""Self-supervised speaker verification with Self-Distillation Prototypes Networks, in JAX and Flax.

from sdpn_jax import SpeakerEncoder
encoder = SpeakerEncoder.load()
print(encoder.verify("a.wav", "b.wav"))
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdpn_jax.speaker.encoder import SpeakerEncoder

__all__ = ["PRETRAINED", "SpeakerEncoder"]

PRETRAINED = Path(__file__).parent / "pretrained"  # the folder of the model that comes with the package


def __getattr__(name: str):
    if name == "SpeakerEncoder":  # on demand: most modules of this package do without JAX's start
        from sdpn_jax.speaker.encoder import SpeakerEncoder

        return SpeakerEncoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
