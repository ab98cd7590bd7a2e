"""What evaluation keeps of predictions, and how the tallies of batches and ranks are merged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

KEPT = 12  # images that are shown as the worst


class Kept(NamedTuple):
    """What was predicted for one image, to be shown if its score is among the lowest."""

    score: float
    image: int  # index
    prediction: np.ndarray


class Tally(NamedTuple):
    """The predictions on some images: rows to concatenate, counts to add, and those with the lowest scores."""

    rows: np.ndarray  # [R, C] float64, one per image or detection; column 0 is the image's index
    sums: np.ndarray | None = None  # int64, of one shape per task; None for a task that only has rows
    worst: tuple[Kept, ...] = ()  # of a task whose rows do not hold the whole prediction


def merge(tallies: Iterable[Tally]) -> Tally:
    """One tally of all. Sums are added one by one, so that those of many batches are never in memory together."""
    rows, sums, worst = [], None, ()
    for tally in tallies:
        if tally.rows.shape[1]:  # a rank without images has no columns
            rows.append(tally.rows)
        if tally.sums is not None:
            sums = tally.sums.copy() if sums is None else np.add(sums, tally.sums, out=sums)
        worst = tuple(sorted([*worst, *tally.worst], key=lambda kept: kept[:2])[:KEPT])
    return Tally(np.concatenate(rows) if rows else np.empty((0, 0)), sums, worst)
