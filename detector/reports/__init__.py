"""Reports of an evaluation: pages (``*_page``) that show the figures of ``detector.evaluation``."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detector.evaluation.tally import Kept
from detector.reports.pages import Block, Section, Table, Tone, chart, new_figure, shortened, write_page
from detector.system.atomic import atomic_write, make_folder, write_json


class Scored(NamedTuple):
    """The predictions on a data set, and their metrics."""

    name: str  # of the checkpoint or the results file
    rows: np.ndarray  # of the task's tally over all images
    metrics: dict[str, Any]
    worst: tuple[Kept, ...] = ()  # of the tally


@dataclass(frozen=True)
class Report:
    """A page, its figures as JSON and its tables as CSV."""

    lead: str
    sections: Sequence[Section]
    figures: dict[str, Any]
    tables: dict[str, Sequence[dict[str, Any]]] = field(default_factory=dict)  # by name, rows with the same keys

    def write_page(self, folder: Path, title: str) -> Path:
        """Write ``report.html`` alone; returns its path."""
        path = folder / "report.html"
        write_page(path, title, self.lead, self.sections)
        return path

    def write(self, folder: Path, title: str) -> Path:
        """Write ``report.html``, ``report.json`` and ``NAME.csv`` into ``folder``; returns the page's path.

        Raises :class:`detector.errors.StorageError` where they cannot be written.
        """
        make_folder(folder)
        for name, rows in self.tables.items():
            with atomic_write(folder / f"{name}.csv") as file:
                writer = csv.DictWriter(file, list(rows[0]) if rows else [])
                writer.writeheader()
                writer.writerows(rows)
        write_json(folder / "report.json", {"title": title, **self.figures})
        return self.write_page(folder, title)


def known(value: float) -> float | None:
    """The value, or None (a dash on the page) for -1, nothing to score."""
    return value if value >= 0 else None


def figure(value: float) -> str:
    """Three decimals, or a dash for nothing to score."""
    return f"{value:.3f}" if value >= 0 else "–"


def difference(own: float, other: float) -> float | None:
    """``own - other``, or None where either has nothing to score."""
    return own - other if own >= 0 and other >= 0 else None


def tone_of(difference: float | None) -> Tone:
    """Good for a gain, error for a loss, plain for what the page shows as 0.000."""
    if difference is None or abs(difference) < 0.0005:
        return ""
    return "good" if difference > 0 else "error"


def confusion_blocks(confusion: np.ndarray, names: Sequence[str]) -> list[Block]:
    """A heat map of counts [K, K], true by predicted class, and the most confused pairs."""
    num_classes = len(names)
    fraction = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = 2.0 + min(9.0, 0.45 * num_classes)  # inches
    figure = new_figure(side + 0.6, side)
    axes = figure.add_subplot(xlabel="predicted", ylabel="true")
    # Shades are transparent, so that the background shows in either scheme.
    shades = np.broadcast_to([0.16, 0.45, 0.85, 0.0], (*fraction.shape, 4)).copy()
    shades[..., 3] = fraction
    axes.imshow(shades, interpolation="nearest")
    axes.grid(False)
    size = min(9.0, 550 / num_classes)
    labels = [shortened(name) for name in names] if num_classes <= 150 else []
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=size)
    axes.set_yticks(range(len(labels)), labels, fontsize=size)
    is_small = num_classes <= 12
    if is_small:
        for row, column in np.argwhere(confusion):
            axes.text(column, row, f"{confusion[row, column]:,}", ha="center", va="center", fontsize=8)
    caption = "Counts; the shade is the fraction of the true class."
    blocks: list[Block] = [chart(figure, caption, is_wide=not is_small)]
    pairs = [(true, predicted) for true, predicted in np.argwhere(confusion).tolist() if true != predicted]
    pairs.sort(key=lambda pair: -confusion[pair])
    if pairs:
        rows = [
            [names[true], names[predicted], int(confusion[true, predicted]), float(fraction[true, predicted])]
            for true, predicted in pairs[:100]
        ]
        blocks.append(
            Table(
                ["true", "predicted", "count", "fraction of true class"],
                rows,
                "The most confused pairs.",
                is_wide=False,
            )
        )
    return blocks
