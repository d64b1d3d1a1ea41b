"""The training step of a config compiled for accelerators that are not there: does it fit, how fast, what is sent.

libtpu (pip install "sdpn_jax[tpu]") compiles on any Linux machine, and so does XLA for NVIDIA's GPUs, see gpu.py. Times
of a TPU follow from the chip's peak rates and are lower bounds of a step.
"""

import os
from collections import Counter, defaultdict
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import topologies

from sdpn_jax import config as configs
from sdpn_jax import storage
from sdpn_jax.compiled import gpu
from sdpn_jax.compiled.program_text import collectives, main_memory_bytes, operations, sent_bytes
from sdpn_jax.config import Config
from sdpn_jax.data import pipeline
from sdpn_jax.errors import UserError
from sdpn_jax.models.network import network_of
from sdpn_jax.training import sharding
from sdpn_jax.training.labels import Labels
from sdpn_jax.training.program import Program, program_of, view_shapes

Figures = dict[str, float]  # named with their unit


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


def compile_step(config: Config, devices: list, num_utterances: int, num_classes: int = 0, options: dict | None = None):
    """Compiles the step of `config` for these devices from abstract arguments; returns (compiled step, Program).

    num_classes: of task=classify, whose labels are taken to be there for every utterance; options: of the compiler.
    """
    configs.check(config)
    mesh = sharding.make_mesh(config.mesh.fsdp, devices)
    sharding.check_batch_size(config.batch_size, config.microbatches, mesh)
    per_epoch = pipeline.steps_per_epoch(num_utterances - config.held_out, config.batch_size)
    network = network_of(config.model)
    views = view_shapes(config.batch_size, config.views)
    names = tuple(map(str, range(num_classes))) if config.task == "classify" else ()
    labels = Labels(np.zeros(num_utterances, np.int32), names)
    program = program_of(config, network, mesh, per_epoch, lambda step, batch, constants: batch, views, labels)
    lowered = program.step.lower(jax.eval_shape(program.init), views, labels.arrays())
    return lowered.compile(compiler_options=options), program


def report(compiled, program: Program, chip: Chip, num_devices: int) -> tuple[str, Figures]:
    """Tabulates memory, work and communication, and the times that follow from the chip's peak rates.

    Returns (table in Markdown, figures for `compared`).
    """
    hlo = compiled.as_text()
    held, cost, found = memory_figures(compiled.memory_analysis()), compiled.cost_analysis(), collectives(hlo)
    compute = cost["flops"] / (chip.teraflops * 1e12)
    moved = main_memory_bytes(hlo)
    traffic = moved / (chip.memory_gb_s * 1e9)
    sent = sent_bytes(found, num_devices)
    network = sent / (chip.link_gb_s * 1e9)
    step = max(compute, traffic) + network
    rows = memory_rows(held, chip.memory_gb) | {
        "work of a device": f"{cost['flops'] / 1e12:.2f} TFLOP, {1e3 * compute:.1f} ms at peak",
        "main memory's traffic of a device": f"{moved / 1e9:.1f} GB, {1e3 * traffic:.1f} ms at peak",
        "on-chip memory's as well, all": f"{cost['bytes accessed'] / 1e9:.1f} GB",
        "sent by a device": f"{sent / 1e6:.1f} MB, {1e3 * network:.2f} ms at peak",
        "step, at least": f"{1e3 * step:.1f} ms, bound by {'arithmetic' if compute > traffic else 'memory'}",
        "run, at least": f"{program.num_steps * step / 3600:.1f} h for {program.num_steps:,} steps",
    }
    figures = held | {
        "arithmetic, TFLOP": cost["flops"] / 1e12,
        "main memory, GB": moved / 1e9,
        **collective_figures(found, sent),
        "step, ms": 1e3 * step,
    }
    return table(rows | collective_rows(found)), figures


def report_of_gpu(
    compiled, program: Program, kind: gpu.Gpu, num_devices: int, hosts: int, batch_size: int
) -> tuple[str, Figures]:
    """Tabulates memory, traffic by kind of operation, kernels, communication and estimated time, as `report` does."""
    hlo = compiled.as_text()
    found, kernels = collectives(hlo), gpu.kernels(operations(hlo, on_chip=""))
    seconds = sum(gpu.seconds_of(operation, kind) for operation in kernels)
    moved, flops = (sum(getattr(operation, name) for operation in kernels) for name in ("bytes", "flops"))
    small = sum(gpu.seconds_of(operation, kind) <= gpu.LEAST_SECONDS for operation in kernels)
    sent = sent_bytes(found, num_devices)
    network = sent / 1e9 / (kind.network_gb_s if hosts > 1 else kind.link_gb_s)
    step = seconds + network
    held = memory_figures(compiled.memory_analysis())
    rows = memory_rows(held, kind.memory_gb) | {
        "products of a device": f"{flops / 1e12:.2f} TFLOP",
        "main memory's traffic of a device": f"{moved / 1e9:.1f} GB",
        "main memory's traffic an utterance": f"{num_devices * moved / batch_size / 1e9:.2f} GB",
        "kernels": f"{len(kernels):,}, of which {small:,} are too small to matter",
        "sent by a device": f"{sent / 1e6:.1f} MB, {1e3 * network:.2f} ms at peak",
        "step, estimated": f"{1e3 * step:.1f} ms, {batch_size / step:,.0f} utterances/s",
        "run, estimated": f"{program.num_steps * step / 3600:.1f} h for {program.num_steps:,} steps",
    }
    by_kind: Figures = defaultdict(float)
    for operation in kernels:
        by_kind[f"main memory of {operation.kind}, MB"] += operation.bytes / 1e6
    figures = held | {
        "arithmetic, TFLOP": flops / 1e12,
        "main memory, GB": moved / 1e9,
        **by_kind,
        "kernels": len(kernels),
        **collective_figures(found, sent),
        "step, ms": 1e3 * step,
    }
    return table(rows | gpu.by_kind(kernels, kind) | collective_rows(found)), figures


def memory_rows(held: Figures, memory_gb: float) -> dict[str, str]:
    """Says what a device must hold, of memory_figures, and whether it can."""
    state, during = held.values()
    fits = "fits" if state + during < memory_gb else "DOES NOT FIT"
    return {
        "state and batch a device": f"{state:.2f} GB",
        "more during a step": f"{during:.2f} GB",
        "together": f"{state + during:.2f} of {memory_gb} GB: {fits}",
    }


def memory_figures(memory) -> Figures:
    """What a device must hold."""
    during = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {"state and batch, GB": memory.argument_size_in_bytes / 1e9, "during a step, GB": during / 1e9}


def collective_figures(found: dict[str, Counter], sent: float) -> Figures:
    """How many collectives of each kind there are, and what a device sends."""
    return {**{kind: sizes.total() for kind, sizes in found.items()}, "sent, MB": sent / 1e6}


def compared(figures: Figures, before: Figures) -> str:
    """Tabulates the figures of two programs, and the change from the one before, in Markdown."""
    lines = ["| | before | now | change |", "|---|---:|---:|---:|"]
    for name in dict.fromkeys((*before, *figures)):
        old, new = (values.get(name, 0.0) for values in (before, figures))
        change = f"{100 * (new / old - 1):+.1f} %" if old else ""
        lines.append(f"| {name} | {old:,.6g} | {new:,.6g} | {change} |")
    return "\n".join(lines)


def read_figures(path: str | os.PathLike) -> Figures:
    """Reads what launch-check wrote to --output; UserError for anything else."""
    try:
        figures = storage.read_json(path)
        return {str(name): float(value) for name, value in figures.items()}
    except OSError as error:
        raise UserError(f"--compare={path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"--compare={path}: no figures; wanted is what launch-check wrote to --output") from None


def collective_rows(found: dict[str, Counter]) -> dict[str, str]:
    """Says how often what is sent, and how large."""
    rows = {}
    for kind, sizes in found.items():
        largest = ", ".join(f"{count} x {size / 1e6:.3f}" for size, count in sorted(sizes.items(), reverse=True)[:6])
        rows[f"{kind}: {sizes.total()}"] = f"{sum(k * v for k, v in sizes.items()) / 1e6:.2f} MB; largest: {largest} MB"
    return rows


def table(rows: dict[str, str]) -> str:
    """Writes rows of two columns in Markdown."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def devices_of(topology: str) -> list:
    """Describes absent devices, of a slice such as "v5e:4x8" or GPUs such as "h100:8"; UserError for unknown ones."""
    if topology.split(":")[0] in gpu.GPUS:
        return gpu.devices_of(topology)
    if topology.split(":")[0] not in CHIPS:
        known = ", ".join((*CHIPS, *gpu.GPUS))
        raise UserError(f"--topology={topology}: name a slice such as v5e:4x8 or GPUs such as h100:8; known: {known}")
    # The compiler alone is wanted: no chip is locked against other processes, no metadata server asked for its kind.
    os.environ |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1"}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # whatever libtpu throws: it is either not there or does not know the slice
        first_line = str(error).strip().splitlines()[0]
        raise UserError(
            f'--topology={topology}: {first_line}. Is libtpu installed (pip install "sdpn_jax[tpu]")?'
        ) from error
