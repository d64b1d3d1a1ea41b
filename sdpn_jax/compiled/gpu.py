"""NVIDIA GPUs that are not there: their descriptions, and how long a program's kernels would take on them.

XLA compiles for a described GPU without a driver or a card. What its autotuner would choose on a card is not known, so
products go to cuBLAS, and times are estimates: each kernel takes as long as its arithmetic at 75 % of the peak, its
main memory's traffic at 85 % of the bandwidth, or 2 microseconds, whichever is most.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jax.experimental import topologies

from sdpn_jax.compiled.program_text import KINDS, Operation
from sdpn_jax.errors import UserError

# Products by Triton want its autotuner, which wants a card.
COMPILER_OPTIONS = {"xla_gpu_enable_triton_gemm": False}
ARITHMETIC_SHARE, BANDWIDTH_SHARE, LEAST_SECONDS = 0.75, 0.85, 2e-6


@dataclass(frozen=True)
class Gpu:
    """Peak rates of one GPU, from NVIDIA's data sheets of the SXM5 boards.

    teraflops: bfloat16 without sparsity; link: NVLink, one direction; network: of a host's devices, one port each.
    """

    memory_gb: float
    teraflops: float
    memory_gb_s: float
    link_gb_s: float = 450
    network_gb_s: float = 50


GPUS = {"h100": Gpu(80, 989, 3352), "h200": Gpu(141, 989, 4800)}


def shape_of(topology: str) -> tuple[int, int]:
    """Reads (hosts, devices of each) of "h100:8", which is one host, or "h100:2x8"; UserError for anything else."""
    name, _, shape = topology.partition(":")
    hosts, _, devices = shape.rpartition("x")
    if not devices.isdecimal() or not (hosts or "1").isdecimal() or not int(devices) * int(hosts or 1):
        raise UserError(f"--topology={topology}: after {name}: come hosts x devices, such as {name}:8 or {name}:2x8")
    return int(hosts or 1), int(devices)


def devices_of(topology: str) -> list:
    """Describes absent GPUs, see shape_of; UserError where the compiler is missing."""
    name, (hosts, devices) = topology.partition(":")[0], shape_of(topology)
    # The figures are those of XLA's public descriptions of targets (github.com/openxla/xla).
    description = (Path(__file__).parent / "gpus" / f"{name}.txtpb").read_text()
    try:
        return topologies.get_topology_desc(
            platform="cuda", topology=f"1x{hosts}x{devices}", target_config=description
        ).devices
    except Exception as error:  # whatever the plug-in throws: most often it is not there
        first_line = str(error).strip().splitlines()[0]
        raise UserError(
            f'--topology={topology}: {first_line}. Is the compiler installed (pip install "sdpn_jax[cuda12-aot]")?'
        ) from error


def seconds_of(operation: Operation, gpu: Gpu) -> float:
    """Estimates how long a kernel takes; see the head of this file."""
    return max(
        operation.flops / (ARITHMETIC_SHARE * gpu.teraflops * 1e12),
        operation.bytes / (BANDWIDTH_SHARE * gpu.memory_gb_s * 1e9),
        LEAST_SECONDS,
    )


def kernels(program: Iterable[Operation]) -> list[Operation]:
    """Leaves out what devices send to each other."""
    return [operation for operation in program if operation.kind not in KINDS]


def by_kind(program: Iterable[Operation], gpu: Gpu) -> dict[str, str]:
    """Tabulates kernels, traffic, arithmetic and time of each kind of operation, those with most traffic first."""
    count, moved, flops = Counter(), Counter(), Counter()
    seconds: dict[str, float] = defaultdict(float)
    for operation in program:
        count[operation.kind] += 1
        moved[operation.kind] += operation.bytes
        flops[operation.kind] += operation.flops
        seconds[operation.kind] += seconds_of(operation, gpu)
    return {
        f"{kind}: {count[kind]}": f"{moved[kind] / 1e9:.2f} GB, {flops[kind] / 1e12:.2f} TFLOP, "
        f"{1e3 * seconds[kind]:.2f} ms"
        for kind in sorted(count, key=lambda kind: -moved[kind])
    }
