"""Damage for files: mutations of real ones, drawn from a seed that a failure prints.

``FUZZ_SEED=7 FUZZ_TIMES=20 pytest tests/test_fuzz_*.py`` draws others, and twenty times as many.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

import numpy as np

from detector.errors import DetectorError

SEED = int(os.environ.get("FUZZ_SEED", "0"))
TIMES = int(os.environ.get("FUZZ_TIMES", "1"))

SLOWEST = 20.0  # seconds that one damaged file may take on a machine that does much else; usually milliseconds
NUMBERS = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4), b"\0\1\0\0", b"\0\0\1\0")


def mutate(data: bytes, rng: random.Random) -> bytes:
    """``data`` with a bit, a byte, a number, or a piece of it changed, lost, doubled or cut off, up to 16 times."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        # Half of the time in the header, where lengths and sizes stand.
        place = rng.randrange(len(content)) if rng.random() < 0.5 else rng.randrange(min(len(content), 80))
        piece = slice(place, place + rng.randrange(1, 20))
        kind = rng.randrange(8)
        if kind == 0:
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[place] = rng.choice((0, 255, 127, 128, 1))
        elif kind == 2:
            content[place : place + 4] = rng.choice(NUMBERS)
        elif kind == 3:
            del content[piece]
        elif kind == 4:
            content[place:place] = content[piece]
        elif kind == 5:
            content[place:place] = rng.randbytes(rng.randrange(1, 8))
        elif kind == 6:
            del content[rng.randrange(len(content)) :]
        else:
            content[piece] = bytes(len(content[piece]))
        content = content or bytearray(b"\0")
    return bytes(content)


def survive(name: str, data: bytes, count: int, read: Callable[[bytes], object]) -> tuple[int, int]:
    """Feed ``read`` mutations of ``data``: it may take one or refuse it in one line; how many of each.

    Whatever else it does fails, with the seed of the mutation, which alone makes it again.
    """
    taken = refused = 0
    for number in range(count * TIMES):
        seed = f"{name}/{SEED}/{number}"
        damaged = mutate(data, random.Random(seed))
        started = time.monotonic()
        try:
            read(damaged)
            taken += 1
        except DetectorError as error:
            assert "\n" not in str(error).rstrip("\n") or name.startswith("yaml"), f"mutation {seed}: {error}"
            assert len(str(error)) < 5000, f"mutation {seed}: a message of {len(str(error)):,} characters"
            refused += 1
        except BaseException as error:
            raise AssertionError(f"mutation {seed}: {type(error).__name__}: {error}") from error
        assert time.monotonic() - started < SLOWEST, f"mutation {seed}: took {time.monotonic() - started:.0f} s"
    return taken, refused


def photo(height: int = 25, width: int = 33) -> np.ndarray:
    """A smooth image [H, W, 3] uint8 with something everywhere."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / 5), np.cos(columns / 7), np.sin((rows + columns) / 9)]
    return np.stack([127 + 100 * wave for wave in waves], axis=2).astype(np.uint8)
