"""Reports of an evaluation: figures first (``boxes``, ``classes``), then the page that shows them (``*_page``)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detector.files.atomic import atomic_write, make_folder, write_json
from detector.reports.pages import Block, Section, Table, Tone, chart, new_figure, write_page


class Scored(NamedTuple):
    """What was predicted on a data set, and how it scores."""

    name: str  # of the checkpoint or the results file
    rows: np.ndarray  # of the task's tally of all images
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Report:
    """What is written: a page, its figures as JSON, its tables as CSV."""

    lead: str
    sections: Sequence[Section]
    figures: dict[str, Any]
    tables: dict[str, Sequence[dict[str, Any]]] = field(default_factory=dict)  # name to rows with the same keys

    def write_page(self, folder: Path, title: str) -> Path:
        """``report.html`` alone; its path."""
        path = folder / "report.html"
        write_page(path, title, self.lead, self.sections)
        return path

    def write(self, folder: Path, title: str) -> Path:
        """``report.html``, ``report.json`` and ``NAME.csv`` in ``folder``; the page's path.

        Raises :class:`~detector.errors.StorageError` where they cannot be written.
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
    """-1 stands for nothing to score; a page shows a dash."""
    return value if value >= 0 else None


def figure(value: float) -> str:
    """Three decimals, or the dash of nothing to score."""
    return f"{value:.3f}" if value >= 0 else "–"


def difference(own: float, other: float) -> float | None:
    """How much more ``own`` is, None where either has nothing to score."""
    return own - other if own >= 0 and other >= 0 else None


def tone_of(difference: float | None) -> Tone:
    """Good for more, error for less, plain for what the page would show as 0.000."""
    if difference is None or abs(difference) < 0.0005:
        return ""
    return "good" if difference > 0 else "error"


def confusion_blocks(confusion: np.ndarray, names: Sequence[str]) -> list[Block]:
    """A heat map of counts [K, K], true by predicted class, and the pairs that are confused most."""
    num_classes = len(names)
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = 2.0 + min(9.0, 0.45 * num_classes)  # inches
    figure = new_figure(side + 0.6, side)
    axes = figure.add_subplot(xlabel="predicted", ylabel="true")
    # Shades are transparent, so that the paper shows in either scheme.
    shades = np.broadcast_to([0.16, 0.45, 0.85, 0.0], (*share.shape, 4)).copy()
    shades[..., 3] = share
    axes.imshow(shades, interpolation="nearest")
    axes.grid(False)
    size = min(9.0, 550 / num_classes)
    short = [name if len(name) <= 18 else f"{name[:17]}…" for name in names]
    named = range(num_classes) if num_classes <= 150 else range(0)
    axes.set_xticks(named, [short[place] for place in named], rotation=90, fontsize=size)
    axes.set_yticks(named, [short[place] for place in named], fontsize=size)
    is_small = num_classes <= 12
    if is_small:
        for row, column in np.argwhere(confusion):
            axes.text(column, row, f"{confusion[row, column]:,}", ha="center", va="center", fontsize=8)
    caption = "Counts; the shade is the fraction of the true class."
    blocks: list[Block] = [chart(figure, caption, is_wide=not is_small)]
    pairs = [(true, found) for true, found in np.argwhere(confusion).tolist() if true != found]
    pairs.sort(key=lambda pair: -confusion[pair])
    if pairs:
        rows = [
            [names[true], names[found], int(confusion[true, found]), float(share[true, found])]
            for true, found in pairs[:100]
        ]
        blocks.append(
            Table(["true", "predicted", "count", "fraction of the row"], rows, "What is confused most.", is_wide=False)
        )
    return blocks
