"""How much to compute at once, where that is ours to choose and changes nothing but time and memory."""

from __future__ import annotations

import torch


def rows_at_once(rows: int, width: int, device: torch.device) -> int:
    """How many of ``rows`` of ``width`` numbers to compute together.

    On a CPU, what the caches of its threads hold: there, only the first of a chain of operations waits for memory. On a
    GPU, enough to fill it. All where the code is being compiled: the compiler fuses the chain anyway.
    """
    if torch.compiler.is_compiling():
        return rows
    numbers = 2**17 * torch.get_num_threads() if device.type == "cpu" else 2**25
    return max(1, min(rows, numbers // width))
