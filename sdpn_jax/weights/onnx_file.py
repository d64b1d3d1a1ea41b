"""A trained encoder as one file of ONNX, for onnxruntime and what is built on it: phones, browsers, many languages.

It takes samples [B, S] at 16 kHz in [-1, 1], of any batch size and any length from 0.1 s, and computes the features
itself; or it takes features [B, T, 80] of Kaldi with their mean over time subtracted, which sherpa-onnx and WeSpeaker's
runtime compute. It gives embeddings [B, D].
"""

import importlib.util
import os
from collections.abc import Mapping
from typing import Literal, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import export

from sdpn_jax import storage
from sdpn_jax.data import audio, device_front_ends
from sdpn_jax.errors import UserError
from sdpn_jax.models.network import MEL_BINS, Network

Takes: TypeAlias = Literal["features", "samples"]
Weights: TypeAlias = Literal["float32", "float16", "int8"]
SHORTEST, FEWEST_FRAMES = int(audio.MIN_SECONDS * audio.SAMPLE_RATE), 8  # of a recording
DESCRIPTION = {"language": "unknown", "url": "unknown", "comment": "written by sdpn_jax"}
OF_KALDI = {  # front end: input and output as its toolkit names them; what sherpa-onnx must know of the features
    "kaldi80": ("x", "embedding", {"framework": "3d-speaker", "normalize_samples": "1"}),
    "wespeaker": ("feats", "embs", {"framework": "wespeaker", "normalize_samples": "0"}),
}


def serialise(
    network: Network,
    variables: dict,
    takes: Takes = "samples",
    weights: Weights = "float32",
    about: Mapping[str, str] | None = None,
) -> bytes:
    """Returns the ONNX file of samples, or of features, -> embeddings [B, D], both sizes of the input free.

    weights: how matrices and kernels are kept, "float16" in half the bytes, "int8" in a quarter with a step for each
    output channel; they become float32 again when it runs, though newer onnxruntimes also round what they multiply
    with int8. about: metadata beside what sherpa-onnx reads; it shows `language`, `url` and `comment`.
    Raises UserError where the package onnx is missing, where no other program computes the network's features, and for
    operations that onnx_graph.py does not know.
    """
    if importlib.util.find_spec("onnx") is None:
        raise UserError("ONNX is written by the package onnx: pip install 'sdpn_jax[onnx]'")
    from sdpn_jax.weights.onnx_graph import Graph

    graph, facts = Graph(), DESCRIPTION | dict(about or {})
    batch, frames = export.symbolic_shape("B, T", constraints=[f"T >= {FEWEST_FRAMES}"])
    if takes == "samples":
        given, features, result, facts["framework"] = "samples", "features", "embedding", "sdpn_jax"
        sizes = export.symbolic_shape("B, S", constraints=[f"S >= {SHORTEST}"])
        graph.inline(device_front_ends.FRONT_ENDS[network.front_end], given, sizes, features)
    elif network.front_end in OF_KALDI:
        given, result, of_features = OF_KALDI[network.front_end]
        features, sizes = given, (batch, frames, MEL_BINS)
        facts |= of_features | {"feature_normalize_type": "global-mean"}
    else:
        raise UserError(f"no other program computes the features of {network.front_end}: let the file take samples")
    exact = set(graph.constants)  # those that make the features

    def embed(features):
        in_float32 = network.clone(encoder=network.encoder.clone(dtype=jnp.float32))
        return in_float32.apply(variables, features, method=in_float32.embed)

    _, size = graph.inline(embed, features, (batch, frames, MEL_BINS), result)
    facts |= {"sample_rate": str(audio.SAMPLE_RATE), "output_dim": str(size), "front_end": network.front_end}
    matrices = [name for name, value in graph.constants.items() if name not in exact and is_matrix(value)]
    narrowed = dict.fromkeys(matrices, weights) if weights != "float32" else {}
    return graph.model({given: sizes}, {result: (batch, size)}, facts, narrowed)


def is_matrix(value: np.ndarray) -> bool:
    """Whether a constant is a matrix or a kernel: such hold nearly all numbers of a network, and bear rounding."""
    return value.dtype == np.float32 and sum(size > 1 for size in value.shape) > 1


def write(
    path: str | os.PathLike,
    network: Network,
    variables: dict,
    takes: Takes = "samples",
    weights: Weights = "float32",
    about: Mapping[str, str] | None = None,
) -> int:
    """Writes `serialise` of the network to a file; returns its size in bytes."""
    content = serialise(network, variables, takes, weights, about)
    storage.make_folder(storage.place(path).parent)
    storage.write_bytes(path, content)
    return len(content)
