"""What evaluation keeps of predictions, and how that of batches and ranks becomes one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Tally(NamedTuple):
    """Of some images: rows that follow one another, and counts that add up."""

    rows: np.ndarray  # [R, C] float64: of images or detections, the index of the image first
    sums: np.ndarray | None = None  # int64 of any one shape; None for a task that counts from its rows


def merge(tallies: Iterable[Tally]) -> Tally:
    """One tally of all. Sums are added as they come: of many batches, no two are held at once."""
    rows, sums = [], None
    for tally in tallies:
        if tally.rows.shape[1]:  # a rank without images has no columns
            rows.append(tally.rows)
        if tally.sums is not None:
            sums = tally.sums.copy() if sums is None else np.add(sums, tally.sums, out=sums)
    return Tally(np.concatenate(rows) if rows else np.empty((0, 0)), sums)
