"""Chunk sizes for computations in which the size changes only time and memory, not the result."""

from __future__ import annotations

import torch


def rows_at_once(rows: int, width: int, device: torch.device) -> int:
    """How many of ``rows`` of ``width`` numbers to compute together.

    On a CPU, as many as fit the threads' caches, so that only the first of a chain of operations waits for memory. On a
    GPU, enough to occupy it. While compiling, all of them: the compiler fuses the chain anyway.
    """
    if torch.compiler.is_compiling():
        return rows
    numbers = 2**17 * torch.get_num_threads() if device.type == "cpu" else 2**25
    return max(1, min(rows, numbers // width))
