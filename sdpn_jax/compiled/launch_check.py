"""Compiles the training step of a config for a TPU slice, with no TPU present: does it fit, how fast, what is sent.

python -m sdpn_jax.compiled.launch_check --config=configs/vox2.py --topology=v5e:4x8 [--config.batch_size=4096]

Needs libtpu (pip install "sdpn_jax[tpu]"), whose compiler runs on any Linux machine. Times follow from the chip's peak
rates and are lower bounds of a step; measure before you trust them.
"""

import os
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags
from jax.experimental import topologies
from ml_collections import config_flags

from sdpn_jax import errors
from sdpn_jax.data import pipeline
from sdpn_jax.errors import UserError
from sdpn_jax.models.network import MEL_BINS, network_of
from sdpn_jax.training import loop, sharding

VOX2_UTTERANCES = 1_092_009
ITEM_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "f64": 8,
    "s64": 8,
    "u64": 8,
}
KINDS = "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"


@dataclass(frozen=True)
class Chip:
    """Peak rates of one chip: Google Cloud's pages on TPU system architecture; link: all its links, one direction."""

    memory_gb: float
    teraflops: float  # bfloat16
    memory_gb_s: float
    link_gb_s: float


CHIPS = {
    "v4": Chip(32, 275, 1228, 300),
    "v5e": Chip(16, 197, 819, 200),
    "v5p": Chip(95, 459, 2765, 600),
    "v6e": Chip(32, 918, 1640, 448),
}


def compile_step(config, devices, num_utterances: int):
    """(compiled step, Program) of `config` for these devices, from abstract arguments: nothing is allocated."""
    mesh = sharding.make_mesh(config.mesh.fsdp, devices)
    sharding.check_batch_size(config.batch_size, config.microbatches, mesh)
    per_epoch = pipeline.steps_per_epoch(num_utterances - config.held_out, config.batch_size)
    network = network_of(config.model)
    program = loop.program_of(config, network, mesh, per_epoch, lambda step, batch, bank: batch)

    def on(places, tree):
        return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places)

    state = jax.eval_shape(program.init)
    state = on(sharding.state_sharding(mesh, state), state)
    views, split = config.views, sharding.batch_sharding(mesh)
    shapes = {
        "global": (config.batch_size, views.global_count, views.global_frames, MEL_BINS),
        "local": (config.batch_size, views.local_count, views.local_frames, MEL_BINS),
    }
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.float16, sharding=split) for name, shape in shapes.items()}
    batch["wish"] = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32, sharding=split)
    return program.step.lower(state, batch, {}).compile(), program


def collectives(hlo: str) -> dict[str, Counter]:
    """{kind: Counter of the bytes of each collective's result on one device} in the text of a compiled program.

    Collectives inside a loop count once. One that overlaps with computation shows in several places; its channel tells.
    """
    found, seen = {kind: Counter() for kind in KINDS}, set()
    for result, kind, start, channel in re.findall(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(.*?channel_id=(\d+)", hlo):
        if channel in seen:
            continue
        seen.add(channel)
        sizes = [size for size, _ in _arrays(result)]
        # The start of an asynchronous gather or permutation yields its operand beside its result.
        twice = start and kind != "all-reduce"
        found[kind][max(sizes) if twice else sum(sizes)] += 1
    return {kind: sizes for kind, sizes in found.items() if sizes}


def main_memory_bytes(hlo: str) -> int:
    """Bytes that a compiled program moves from or to the chip's main memory, the rest staying in its on-chip memory.

    Counted are operands and results of the operations of the program's entry, each once, but those in memory space 1
    (a TPU's vector memory), and what is copied between the two. What happens inside a loop counts once.
    """
    places, total = {}, 0
    for line in hlo[hlo.index("\nENTRY") :].splitlines():
        found = re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([\w-]+)\((.*)", line)
        if not found:
            continue
        name, result, kind, rest = found.groups()
        places[name] = sum(size for size, space in _arrays(result) if space != "S(1)")
        if kind in ("parameter", "get-tuple-element", "tuple", "bitcast", "constant") or kind.endswith("-start"):
            continue
        if kind.endswith("-done"):  # of a copy: one end of it is in main memory
            total += sum(size for size, _ in _arrays(result))
        else:
            operands = re.findall(r"%([\w.-]+)", rest.split("), ")[0])
            total += places[name] + sum(places.get(operand, 0) for operand in operands)
    return total


def _arrays(types: str) -> list[tuple[int, str]]:
    """(bytes, memory space or "") of each array of an operation's type."""
    found = re.findall(r"(\w+)\[([\d,]*)\](?:\{[^}]*?(S\(\d\))?\})?", types)
    return [(_bytes_of(item, shape), space) for item, shape, space in found if item in ITEM_BYTES]


def _bytes_of(item: str, shape: str) -> int:
    size = ITEM_BYTES[item]
    for length in filter(None, shape.split(",")):
        size *= int(length)
    return size


def sent_bytes(found: dict[str, Counter], num_devices: int) -> float:
    """What a device sends in a step when each collective goes around a ring: an all-reduce goes around twice."""
    around = (num_devices - 1) / num_devices
    share = {"all-reduce": 2 * around, "reduce-scatter": num_devices * around, "collective-permute": 1.0}
    return sum(share.get(kind, around) * size * count for kind, sizes in found.items() for size, count in sizes.items())


def report(compiled, program: loop.Program, chip: Chip, num_devices: int) -> str:
    """A Markdown table of memory, work, communication and the times that follow from the chip's peak rates."""
    hlo = compiled.as_text()
    memory, cost, found = compiled.memory_analysis(), compiled.cost_analysis(), collectives(hlo)
    state = memory.argument_size_in_bytes
    during = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    fits = "fits" if (state + during) / 1e9 < chip.memory_gb else "DOES NOT FIT"
    compute = cost["flops"] / (chip.teraflops * 1e12)
    moved = main_memory_bytes(hlo)
    traffic = moved / (chip.memory_gb_s * 1e9)
    sent = sent_bytes(found, num_devices)
    network = sent / (chip.link_gb_s * 1e9)
    step = max(compute, traffic) + network
    rows = {
        "state and batch a device": f"{state / 1e9:.2f} GB",
        "more during a step": f"{during / 1e9:.2f} GB",
        "together": f"{(state + during) / 1e9:.2f} of {chip.memory_gb} GB: {fits}",
        "work of a device": f"{cost['flops'] / 1e12:.2f} TFLOP, {1e3 * compute:.1f} ms at peak",
        "main memory's traffic of a device": f"{moved / 1e9:.1f} GB, {1e3 * traffic:.1f} ms at peak",
        "on-chip memory's as well, all": f"{cost['bytes accessed'] / 1e9:.1f} GB",
        "sent by a device": f"{sent / 1e6:.1f} MB, {1e3 * network:.2f} ms at peak",
        "step, at least": f"{1e3 * step:.1f} ms, bound by {'arithmetic' if compute > traffic else 'memory'}",
        "run, at least": f"{program.num_steps * step / 3600:.1f} h for {program.num_steps:,} steps",
    }
    for kind, sizes in found.items():
        largest = ", ".join(f"{count} x {size / 1e6:.3f}" for size, count in sorted(sizes.items(), reverse=True)[:6])
        rows[f"{kind}: {sizes.total()}"] = f"{sum(k * v for k, v in sizes.items()) / 1e6:.2f} MB; largest: {largest} MB"
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def devices_of(topology: str) -> list:
    """The absent devices of a slice such as "v5e:4x8"; raises UserError when libtpu or the slice is unknown."""
    if topology.split(":")[0] not in CHIPS:
        raise UserError(f"--topology={topology}: name a slice such as v5e:4x8; known chips: {', '.join(CHIPS)}")
    # The compiler alone is wanted: no chip is locked against other processes, no metadata server asked for its kind.
    os.environ |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1"}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # whatever libtpu throws: it is either not there or does not know the slice
        first_line = str(error).strip().splitlines()[0]
        raise UserError(
            f'--topology={topology}: {first_line}. Is libtpu installed (pip install "sdpn_jax[tpu]")?'
        ) from error


def main(_) -> None:
    config = FLAGS.config
    devices = devices_of(FLAGS.topology)
    started = time.time()
    compiled, program = compile_step(config, devices, FLAGS.utterances)
    print(
        f"{FLAGS.topology}: {len(devices)} chips, batch {config.batch_size}, fsdp {config.mesh.fsdp}, "
        f"{config.microbatches} microbatches, compiled in {time.time() - started:.0f} s\n"
    )
    print(report(compiled, program, CHIPS[FLAGS.topology.split(":")[0]], len(devices)))
    if config.microbatches > 1:
        print("\nMicrobatches pass in a loop, of whose collectives each is counted once.")
    if FLAGS.hlo:
        Path(FLAGS.hlo).write_text(compiled.as_text())
        print(f"\nwritten: {FLAGS.hlo}, the compiled program")


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    FLAGS = flags.FLAGS
    config_flags.DEFINE_config_file("config", "configs/vox2.py", "The run; --config.FIELD=VALUE overrides.")
    flags.DEFINE_string("topology", "v5e:4x8", "Slice: v4, v5e, v5p or v6e, a colon and its shape in chips.")
    flags.DEFINE_integer("utterances", VOX2_UTTERANCES, "Prepared utterances, for the length of the run.")
    flags.DEFINE_string("hlo", None, "Also write the compiled program's text to this file.")
    errors.run(main)
