"""Encoder and projection head together: what student and teacher both are."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Self, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from sdpn_jax.models.campplus import CAMPlus
from sdpn_jax.models.ecapa import ECAPA
from sdpn_jax.models.ecapa_wespeaker import WeSpeakerECAPA
from sdpn_jax.models.eres2net import ERes2NetV2
from sdpn_jax.models.frames import Lengths
from sdpn_jax.models.head import ProjectionHead, l2_normalise
from sdpn_jax.models.layers import instance_norm
from sdpn_jax.models.resnet import ResNet

Encoder: TypeAlias = ECAPA | ResNet | CAMPlus | WeSpeakerECAPA | ERes2NetV2

MEL_BINS = 80
FRONT_END, ENCODER = "sdpn", "ecapa"
NOT_SIZES = "parent", "name", "mesh"  # among the fields of modules
ADAPTATION = "adaptation"  # variables beside "params" and "batch_stats": mean [D] and transform [D, D]
# Published encoders: the module, and the sizes that tell them from others of it.
ENCODERS: dict[str, tuple[type[Encoder], dict[str, Any]]] = {
    "ecapa": (ECAPA, {}),
    "resnet18": (ResNet, {"blocks": (2, 2, 2, 2), "bottleneck": False}),
    "resnet34": (ResNet, {"blocks": (3, 4, 6, 3), "bottleneck": False}),
    "resnet50": (ResNet, {"blocks": (3, 4, 6, 3), "bottleneck": True}),
    "resnet101": (ResNet, {"blocks": (3, 4, 23, 3), "bottleneck": True}),
    "resnet152": (ResNet, {"blocks": (3, 8, 36, 3), "bottleneck": True}),
    "resnet221": (ResNet, {"blocks": (6, 16, 48, 3), "bottleneck": True}),
    "resnet293": (ResNet, {"blocks": (10, 20, 64, 3), "bottleneck": True}),
    "campplus": (CAMPlus, {}),
    "ecapa_wespeaker": (WeSpeakerECAPA, {}),
    "eres2netv2": (ERes2NetV2, {"base_width": 26, "scale": 2, "expansion": 2}),
    "eres2netv2_w24s4ep4": (ERes2NetV2, {"base_width": 24, "scale": 4, "expansion": 4}),
}


class Network(nn.Module):
    """Features -> (embedding, projection of unit length).

    encoder: module (features [B, T, F], train, lengths) -> embedding [B, D]; front_end: which features it hears, a
    name of data/front_ends.py. Those of "sdpn", log-mel, are normalised in here as the released code does it, those of
    other toolkits before.
    """

    encoder: Encoder = ECAPA()
    head: nn.Module = ProjectionHead()
    front_end: str = FRONT_END

    @property
    def embedding_size(self) -> int:
        """D."""
        return self.encoder.embedding_size

    def on(self, mesh: Mesh) -> Self:
        """Returns the network as it is trained on these devices; see ECAPA.on."""
        return self.clone(encoder=self.encoder.on(mesh)) if isinstance(self.encoder, ECAPA) else self

    def __call__(
        self, log_mel: Float[Array, "B T F"], train: bool
    ) -> tuple[Float[Array, "B {self.embedding_size}"], Float[Array, "B P"]]:
        embedding = self.encoder(self._normalised(log_mel), train)
        return embedding, self.head(embedding, train)

    def embed(self, log_mel: Float[Array, "B T F"], lengths: Lengths = None) -> Float[Array, "B {self.embedding_size}"]:
        """Embeds features with the running statistics; `lengths` in frames, for padded sequences.

        Where the variables hold an "adaptation", the embedding is of unit length, less its mean, times its transform.
        """
        embedding = self.encoder(self._normalised(log_mel, lengths), False, lengths)
        if not self.has_variable(ADAPTATION, "mean"):
            return embedding
        centred = l2_normalise(embedding) - self.get_variable(ADAPTATION, "mean")
        return jnp.matmul(centred, self.get_variable(ADAPTATION, "transform"), precision=jax.lax.Precision.HIGHEST)

    def _normalised(self, log_mel: Float[Array, "B T F"], lengths: Lengths = None) -> Float[Array, "B T F"]:
        return instance_norm(log_mel, lengths) if self.front_end == FRONT_END else log_mel


def network_of(sizes: Mapping[str, Any]) -> Network:
    """Builds the network that sizes such as {"encoder": "resnet34", "embedding_size": 256} describe.

    encoder: a name of ENCODERS (default "ecapa"); all else are fields of its module, of the head and of Network. A
    width of 0 is the published one; what only other encoders have is not looked at.
    """
    module, published = ENCODERS[sizes.get("encoder", ENCODER)]
    given = {name: tuple(value) if isinstance(value, list | tuple) else value for name, value in sizes.items()}
    given |= {"dtype": jnp.dtype(sizes.get("dtype", "float32"))}
    if not given.get("width"):
        given.pop("width", None)
    encoder, head = module(**published | _own(module, given)), ProjectionHead(**_own(ProjectionHead, given))
    return Network(encoder, head, sizes.get("front_end", FRONT_END))


def sizes_of(network: Network) -> dict[str, Any]:
    """Describes a network: network_of(sizes_of(network)) == network."""
    encoder = _sizes(network.encoder)
    names = [name for name, (module, _) in ENCODERS.items() if isinstance(network.encoder, module)]
    nearest = max(names, key=lambda name: sum(encoder[key] == value for key, value in ENCODERS[name][1].items()))
    return {"encoder": nearest, **encoder, **_sizes(network.head), "front_end": network.front_end}


def _sizes(module: nn.Module) -> dict[str, Any]:
    sizes = {name: getattr(module, name) for name in _fields(type(module))}
    return sizes | {"dtype": jnp.dtype(sizes["dtype"]).name}


def _own(module: type[nn.Module], sizes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: sizes[name] for name in _fields(module) if name in sizes}


def _fields(module: type[nn.Module]) -> list[str]:
    return [field.name for field in dataclasses.fields(module) if field.name not in NOT_SIZES]


def initial_variables(network: Network, seed: int) -> dict:
    """Initialises {"params", "batch_stats"} of a new network in float32, a function of the seed alone."""
    return _initialise(network, jax.random.key(seed))


@functools.partial(jax.jit, static_argnums=0)
def _initialise(network: Network, key: PRNGKeyArray) -> Any:
    shape = (2, 32, MEL_BINS)  # parameters depend on neither batch nor frames
    return network.init(key, jnp.zeros(shape), True)
