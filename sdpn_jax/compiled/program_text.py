"""Reading the text of a compiled program: its operations, what they move through main memory, what devices send."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

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
ON_CHIP = "S(1)"  # the memory space of a TPU's vector memory
MOVE_NOTHING = "parameter", "get-tuple-element", "tuple", "bitcast", "constant", "partition-id", "replica-id"
TAKE_A_PART = "slice", "dynamic-slice", "gather"
LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([\w-]+)\((.*)", re.M)
LIBRARIES = {"__cublas": "product", "__cudnn$conv": "convolution"}  # by how a call's target begins


@dataclass(frozen=True)
class Array:
    """One array of an operation's type: its items' type, its shape, its memory space or ""."""

    item: str
    shape: tuple[int, ...]
    space: str = ""

    @property
    def bytes(self) -> int:
        return ITEM_BYTES[self.item] * prod(self.shape)


@dataclass(frozen=True)
class Operation:
    """One operation of a program's entry: its kind, the bytes it moves through main memory, and what it multiplies.

    flops: floating point operations of products and convolutions that are calls of a library, and those that a
    hand-written kernel states, else 0.
    """

    kind: str
    bytes: int
    flops: int = 0


def collectives(hlo: str) -> dict[str, Counter]:
    """Finds the collectives in a compiled program: {kind: Counter of the bytes of each one's result on a device}.

    Collectives inside a loop count once. One that overlaps with computation shows in several places; its channel tells.
    """
    found, seen = {kind: Counter() for kind in KINDS}, set()
    for result, kind, start, channel in re.findall(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(.*?channel_id=(\d+)", hlo):
        if channel in seen:
            continue
        seen.add(channel)
        sizes = [array.bytes for array in _arrays(result)]
        # The start of an asynchronous gather or permutation yields its operand beside its result.
        twice = start and kind != "all-reduce"
        found[kind][max(sizes) if twice else sum(sizes)] += 1
    return {kind: sizes for kind, sizes in found.items() if sizes}


def main_memory_bytes(hlo: str) -> int:
    """Counts the bytes that a compiled program reads from and writes to main memory rather than on-chip memory."""
    return sum(operation.bytes for operation in operations(hlo))


def operations(hlo: str, on_chip: str = ON_CHIP) -> Iterator[Operation]:
    """Yields the operations of a program's entry that move or send anything, in their order.

    Their bytes are those of operands and results, each once, but of those in the memory space `on_chip`, and what is
    copied between the two. Of an operand that a fusion only takes a part of, that counts. What happens inside a loop
    counts once. Of a call of a library the first result counts: the others are its workspace. A hand-written kernel
    counts for what it states (models/kernels.py), if it does.
    """
    places: dict[str, list[Array]] = {}
    start, computations = hlo.index("\nENTRY"), _computations(hlo)
    for name, result, kind, rest in LINE.findall(hlo, start):
        arrays = _arrays(result)
        library = _library_of(kind, rest)
        if library:
            arrays = arrays[:1]
        places[name] = [array for array in arrays if not on_chip or array.space != on_chip]
        if kind in MOVE_NOTHING or kind.endswith("-start"):
            continue
        if kind.endswith("-done"):  # of a copy: one end of it is in main memory
            yield Operation(kind.removesuffix("-done"), sum(array.bytes for array in arrays))
            continue
        if moved_and_flops := _stated(rest):
            yield Operation("hand-written kernel", *moved_and_flops)
            continue
        operands = [places.get(operand, []) for operand in _operands(rest)]
        called = re.search(r"calls=%?([\w.-]+)", rest) if kind == "fusion" else None
        shares = _shares(computations.get(called[1], ())) if called else {}
        sizes = (sum(array.bytes for array in operand) for operand in operands)
        read = sum(round(size * shares.get(number, 1.0)) for number, size in enumerate(sizes))
        moved = sum(array.bytes for array in places[name]) + read
        flops = _flops(library, arrays, operands, rest) if library else 0
        yield Operation(library or _form(kind, rest), moved, flops)


def _computations(hlo: str) -> dict[str, list[tuple[str, str, str, str]]]:
    """The lines (name, result, kind, rest) of every computation before the entry, by its name."""
    found = {}
    for head, body in re.findall(r"^%?([\w.-]+)[^\n]*\{\n(.*?)^\}", hlo[: hlo.index("\nENTRY") + 1], re.M | re.S):
        found[head] = LINE.findall(body)
    return found


def _shares(lines: Sequence[tuple[str, str, str, str]]) -> dict[int, float]:
    """How much of each parameter a computation reads, by the parameter's number; its last line is its result.

    An operation needs of its operands what is needed of itself; one that takes a slice less, by the ratio of sizes.
    """
    items = {name: sum(prod(array.shape) for array in _arrays(result)) for name, result, _, _ in lines}
    share: dict[str, float] = defaultdict(float)
    share.update({lines[-1][0]: 1.0} if lines else {})
    for name, _, kind, rest in reversed(lines):
        for operand in _operands(rest) if kind != "parameter" else ():
            part = items[name] / max(items.get(operand, 1), 1) if kind in TAKE_A_PART else 1.0
            share[operand] = min(share[operand] + share[name] * part, 1.0)
    return {int(rest.partition(")")[0]): share[name] for name, _, kind, rest in lines if kind == "parameter"}


def _operands(rest: str) -> list[str]:
    return re.findall(r"%([\w.-]+)", rest.split("), ")[0])


def _library_of(kind: str, rest: str) -> str:
    target = re.search(r'custom_call_target="([^"]*)"', rest) if kind == "custom-call" else None
    return next((name for start, name in LIBRARIES.items() if target and target[1].startswith(start)), "")


def _stated(rest: str) -> tuple[int, int] | None:
    """What a kernel written in Pallas states that it moves, in bytes, and multiplies."""
    found = re.search(r'serialized_metadata = "([^"]*)"', rest)
    if not found:
        return None
    stated = json.loads(re.sub(r"\\([0-9A-F]{2})", lambda code: chr(int(code[1], 16)), found[1]))
    return int(stated["bytes"]), int(stated["flops"])


def _form(kind: str, rest: str) -> str:
    """Tells fusions that reduce from those that go over their arrays once."""
    found = re.search(r"kind=k(\w+)", rest) if kind == "fusion" else None
    return f"fusion ({found[1].lower()})" if found else kind


def _flops(library: str, results: list[Array], operands: list[list[Array]], rest: str) -> int:
    """Twice the multiplications of a product, or of a convolution whichever of its three arrays is the result."""
    first, second = (operand[0] for operand in operands[:2])
    if library == "product":
        contracted = re.search(r'"?lhs_contracting_dimensions"?[:=][\[{]([\d",]*)', rest)
        dimensions = [int(number) for number in re.findall(r"\d+", contracted[1] if contracted else "")]
        return 2 * prod(results[0].shape) * prod(first.shape[dimension] for dimension in dimensions)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest)
    target = re.search(r'custom_call_target="([^"]*)"', rest)
    assert labels and target, f"a convolution without dim_labels: {rest[:200]}"
    kernel, output = {
        "BackwardInput": (second, first), "BackwardFilter": (results[0], second)
    }.get(target[1].removeprefix("__cudnn$conv"), (second, results[0]))  # fmt: skip
    return 2 * prod(output.shape) * prod(kernel.shape) // kernel.shape[labels[2].index("o")]


def _arrays(types: str) -> list[Array]:
    found = re.findall(r"(\w+)\[([\d,]*)\](?:\{[^}]*?(S\(\d\))?\})?", types)
    return [
        Array(item, tuple(int(length) for length in shape.split(",") if length), space)
        for item, shape, space in found
        if item in ITEM_BYTES
    ]


def sent_bytes(found: dict[str, Counter], num_devices: int) -> float:
    """Estimates the bytes a device sends in a step if each collective runs around a ring, an all-reduce twice."""
    around = (num_devices - 1) / num_devices
    share = {"all-reduce": 2 * around, "reduce-scatter": num_devices * around, "collective-permute": 1.0}
    return sum(share.get(kind, around) * size * count for kind, sizes in found.items() for size, count in sizes.items())
