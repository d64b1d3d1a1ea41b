"""Writes the compiled programs of this folder again: python save.py h100:4 (or v5e:2x2), which need its compiler.

A convolution of three taps, a product and what batch norm takes of its result, the batch split over four devices. The
sizes are such that no array fits another's place by chance.
"""

import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from sdpn_jax.compiled import gpu, launch_check
from sdpn_jax.training import sharding


def layer(x, taps, kernel):
    """Frames [B, T, 64], taps [3, 64, 128], kernel [128, 256] -> [B, T - 2, 256] about their mean over the batch."""
    x = jax.lax.conv_general_dilated(x, taps, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
    y = jnp.maximum(x @ kernel, 0)
    return (y - y.astype(jnp.float32).mean((0, 1))).astype(jnp.bfloat16)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # of the machine that compiles
    topology = sys.argv[1]
    name = topology.partition(":")[0]
    mesh = sharding.make_mesh(devices=launch_check.devices_of(topology))
    split, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    shapes = ((256, 202, 64), split), ((3, 64, 128), whole), ((128, 256), whole)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place) for shape, place in shapes]
    options = gpu.COMPILER_OPTIONS if name in gpu.GPUS else None
    text = jax.jit(layer, out_shardings=split).lower(*arrays).compile(compiler_options=options).as_text()
    text = re.sub(
        r", metadata=\{.*?\}|^(FileNames|FunctionNames|FileLocations|StackFrames)\n(\d.*\n)*\n", "", text, flags=re.M
    )
    Path(__file__).with_name(f"{name}.txt").write_text(text)
