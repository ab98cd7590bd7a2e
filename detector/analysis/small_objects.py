"""Whether tiles, or the pyramid's level P2, pay for the small objects of a data set."""

from __future__ import annotations

import numpy as np

SMALL = 16  # px: two of P3's cells
FRACTION = 0.25  # of the objects, above which small ones matter
SHRUNK = 1.5  # times: how much smaller objects are seen than they are stored, above which tiles pay


def what_pays(at_input: np.ndarray, stored: np.ndarray, has_p2: bool = False) -> str:
    """One line on what helps, of sides (square roots of areas) at the input size and in the files; else empty."""
    if not len(at_input) or (at_input < SMALL).mean() <= FRACTION:
        return ""
    seen, there = np.median(at_input), np.median(stored)
    remedies = []
    if there >= SHRUNK * seen:
        remedies.append("tiles (data.tiles.size=512, and a data.resize that does not shrink them)")
    if not has_p2 and (there < SMALL or not remedies):
        remedies.append("level P2 (model.fpn.levels from 2)")
    said = f"an object has {seen:.0f} px at the input size and {there:.0f} px in its file (medians)"
    return f"{said}; {' and '.join(remedies)} would pay" if remedies else said
