"""What evaluation keeps of predictions, and how the tallies of batches and ranks are merged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Tally(NamedTuple):
    """The predictions on some images: rows to concatenate, and counts to add."""

    rows: np.ndarray  # [R, C] float64, one per image or detection; column 0 is the image's index
    sums: np.ndarray | None = None  # int64, of one shape per task; None for a task that only has rows


def merge(tallies: Iterable[Tally]) -> Tally:
    """One tally of all. Sums are added one by one, so that those of many batches are never in memory together."""
    rows, sums = [], None
    for tally in tallies:
        if tally.rows.shape[1]:  # a rank without images has no columns
            rows.append(tally.rows)
        if tally.sums is not None:
            sums = tally.sums.copy() if sums is None else np.add(sums, tally.sums, out=sums)
    return Tally(np.concatenate(rows) if rows else np.empty((0, 0)), sums)
