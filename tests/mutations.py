"""Bytes as a stranger may change them."""

import numpy as np


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Changes one to four places: other bytes, bits, a piece left out, or one repeated."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        place, length = int(rng.integers(len(changed))), int(rng.integers(1, 9))
        match rng.integers(4):
            case 0:
                changed[place : place + length] = rng.bytes(length)
            case 1:
                changed[place] ^= 1 << int(rng.integers(8))
            case 2:
                del changed[place : place + length]
            case 3:
                changed[place:place] = changed[place : place + length]
        if not changed:
            break
    return bytes(changed)
