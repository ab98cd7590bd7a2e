"""Batches on the device that takes them: a GPU computes with one while the next is copied to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from detector.structures import Batch


def feed(items: Iterator[tuple[Any, Any]], device: torch.device) -> Iterator[tuple[Any, Any]]:
    """``items`` in their order; the first of each pair is moved to ``device`` if it is a batch.

    For a GPU, one item is read ahead and copied on a stream of its own, without waiting where it is in pinned memory.
    On a CPU, items pass as they come.
    """
    if device.type != "cuda":
        yield from items
        return
    stream, ahead = torch.cuda.Stream(device), None
    for batch, note in items:
        copied = None
        if isinstance(batch, Batch):
            with torch.cuda.stream(stream):
                batch, copied = batch.to(device), stream.record_event()
        if ahead:
            yield _received(*ahead, device)
        ahead = batch, note, copied
    if ahead:
        yield _received(*ahead, device)


def _received(batch: Any, note: Any, copied: torch.cuda.Event | None, device: torch.device) -> tuple[Any, Any]:
    """The pair, for the current stream; it waits for this batch's copy, not for that of the next, which has begun."""
    if copied is not None:
        current = torch.cuda.current_stream(device)
        current.wait_event(copied)
        batch.record_stream(current)
    return batch, note
