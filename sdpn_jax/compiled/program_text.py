"""Reading the text of a compiled program: what it sends between devices, what it moves through main memory."""

import re
from collections import Counter

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


def collectives(hlo: str) -> dict[str, Counter]:
    """Finds the collectives in a compiled program: {kind: Counter of the bytes of each one's result on a device}.

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
    """Counts the bytes that a compiled program reads from and writes to main memory rather than on-chip memory.

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
    """Estimates the bytes a device sends in a step if each collective runs around a ring, an all-reduce twice."""
    around = (num_devices - 1) / num_devices
    share = {"all-reduce": 2 * around, "reduce-scatter": num_devices * around, "collective-permute": 1.0}
    return sum(share.get(kind, around) * size * count for kind, sizes in found.items() for size, count in sizes.items())
