"""Warnings at the start of a run from a sample of the files, of faults that no single file shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL.ImageFile import ImageFile

from detector.data.headers import is_ambiguous, may_be_deep, open_header, orientation_of
from detector.data.images import ARRAY_SUFFIX, depth_fault, open_file, read_peak
from detector.errors import DataError

HEADERS = 256  # files whose header is read
DECODED = 8  # 16-bit images that are decoded
FEW = 10  # examples of a class; with fewer it is hardly learned


def spot_check(
    file: Callable[[int], Path], indices: np.ndarray, channels: int, max_value: int | None, looks_for_turns: bool
) -> list[str]:
    """Warnings of EXIF orientations that leave the frame of the boxes open, and of 16-bit values out of range."""
    chosen = [file(int(index)) for index in indices[spread(len(indices), HEADERS)]]
    headers = [(path, header) for path in chosen if (header := _open(path)) is not None]
    lines = []
    turned = [path for path, header in headers if is_ambiguous(orientation_of(header), *header.size)]
    if turned and looks_for_turns:
        of_all = f"{len(turned):,} of {len(chosen):,} {'sampled ' * (len(chosen) < len(indices))}images"
        lines.append(
            f"warning: EXIF turns or mirrors {of_all} without a change of size (first: {turned[0]}), so their boxes may"
            " be drawn on either frame: training and evaluation read the stored one, inference the upright one. Set"
            " data.exif=upright if they were drawn on what viewers show, else data.exif=stored"
        )
    deep = [path for path in chosen if path.suffix.lower() == ARRAY_SUFFIX]
    deep += [path for path, header in headers if may_be_deep(header)]
    if fault := depth_fault(max(_peaks(deep, channels), default=0), max_value):
        lines.append(f"warning: {fault}")
    return lines


def spread(count: int, number: int) -> list[int]:
    """At most ``number`` indices of ``count``, evenly spread: sorted images of one kind are neighbours."""
    return np.unique(np.linspace(0, count - 1, min(count, number)).round().astype(int)).tolist()


def _open(path: Path) -> ImageFile | None:
    """The header; None for an array, and for a file that cannot be read."""
    try:
        with open_file(path) as file:
            header = open_header(path, file) if path.suffix.lower() != ARRAY_SUFFIX else None
            if header is not None:
                orientation_of(header)  # reads EXIF while the file is open; Pillow keeps it
            return header
    except (OSError, ValueError, DataError):
        return None


def _peaks(files: Sequence[Path], channels: int) -> list[int]:
    peaks = []
    for index in spread(len(files), DECODED):
        try:
            peaks.append(read_peak(files[index], channels))
        except DataError:
            continue
    return peaks
