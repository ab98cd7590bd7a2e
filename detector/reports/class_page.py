"""The page of a classification report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detector.config.schema import Config
from detector.data.formats.class_folders import Labelled
from detector.data.images import read_image
from detector.evaluation.class_figures import ClassReport, class_report
from detector.reports import Report, Scored, confusion_blocks, difference, known, tone_of
from detector.reports.drawing import as_rgb
from detector.reports.pages import Block, Gallery, Numbers, PageImage, Section, Table, Text, page_image, within_budget

DRAWN = 60  # mistakes shown as images
LISTED = 300  # mistakes in the page's table; mistakes.csv has all
COLUMNS = ("precision", "recall", "f1", "AP")  # figures of a class, if the metrics have them


def classification_report(
    scored: Scored, truth: Labelled, config: Config, images: Path | None, against: Scored | None = None
) -> Report:
    """The report of scores on ``truth``, with the most confident mistakes; ``images`` defaults to its folder."""
    report = class_report(scored.rows, truth, scored.metrics)
    other = class_report(against.rows, truth, against.metrics) if against else None
    sections = [Section("Score", _score(report)), Section("Classes", [_class_table(report)])]
    figures = report.figures()
    if against and other:
        sections.insert(1, Section("Compared", _comparison(scored.name, report, against.name, other, truth)))
        figures["against"] = {"name": against.name, **other.figures()}
    if report.confusion is not None:
        names = [row["name"] for row in report.metrics["per_class"]]
        sections.append(Section("Confusion", confusion_blocks(report.confusion, names)))
    sections.append(Section("Most confident mistakes", _mistakes(report, config, images or truth.root)))
    lead = f"{len(truth):,} images of {len(truth.categories)} classes of {truth.source}."
    lead += f" Against {against.name}." if against else ""
    return Report(lead, sections, figures, {"classes": report.metrics["per_class"], "mistakes": report.mistakes})


def _score(report: ClassReport) -> list[Block]:
    numbers = [(_spaced(name), known(value)) for name, value in report.metrics.items() if isinstance(value, float)]
    right = int(report.is_right.sum())
    return [
        Numbers([*numbers, ("images", len(report.is_right)), ("right", right), ("wrong", len(report.is_right) - right)])
    ]


def _columns(report: ClassReport) -> list[str]:
    return [name for name in COLUMNS if name in report.metrics["per_class"][0]]


def _class_table(report: ClassReport) -> Table:
    columns = _columns(report)
    rows = [
        [row["name"], row["images"], *(known(row[name]) for name in columns)] for row in report.metrics["per_class"]
    ]
    return Table(["class", "images", *columns], rows, "Click a column head to sort.")


def _mistakes(report: ClassReport, config: Config, images: Path) -> list[Block]:
    if not report.mistakes:
        return [Text("There are no mistakes.", "good")]
    drawn = within_budget(_draw(islice(report.mistakes, DRAWN), config, images))
    rows = [[row[name] for name in ("file", "true", "predicted", "score")] for row in report.mistakes[:LISTED]]
    caption = f"The first {LISTED}; mistakes.csv has all {len(report.mistakes):,}." if len(rows) == LISTED else ""
    return [Gallery(drawn, column=180), Table(["file", "true", "predicted", "score"], rows, caption)]


def _draw(mistakes: Iterator[dict[str, Any]], config: Config, images: Path) -> Iterator[PageImage]:
    for row in mistakes:
        caption = f"{row['predicted']} {row['score']:.2f}, is {row['true'] or 'nothing'} ({row['file']})"
        data, channels = config.data, config.model.in_channels
        image = as_rgb(read_image(images / row["file"], channels, data.exif, data.max_value))
        yield page_image(Image.fromarray(image), caption, long_side=480)


def _comparison(name: str, report: ClassReport, other_name: str, other: ClassReport, truth: Labelled) -> list[Block]:
    numbers = [
        [_spaced(key), known(value), known(other.metrics[key]), difference(value, other.metrics[key])]
        for key, value in report.metrics.items()
        if isinstance(value, float)
    ]
    columns = _columns(report)
    classes = []
    for row, against in zip(report.metrics["per_class"], other.metrics["per_class"], strict=True):
        values = [value for key in columns for value in (known(row[key]), difference(row[key], against[key]))]
        classes.append([row["name"], row["images"], *values])
    only_here = np.flatnonzero(report.is_right & ~other.is_right)
    only_there = np.flatnonzero(other.is_right & ~report.is_right)
    text = (
        f"This is {name}; the other is {other_name}. {len(only_here):,} images are right only here,"
        f" {len(only_there):,} only there."
    )
    images = _changes(only_there, "only there", truth) + _changes(only_here, "only here", truth)
    blocks: list[Block] = [
        Text(text),
        Table(["figure", "this", "other", "difference"], numbers, tones=[tone_of(row[3]) for row in numbers]),
        Table(
            ["class", "images", *(head for key in columns for head in (key, f"± {key}"))],
            classes,
            "By class; ± is the difference to the other.",
        ),
    ]
    if images:
        blocks.append(Table(["file", "true", "right"], images, f"Images that differ, at most {LISTED} of each kind."))
    return blocks


def _changes(indices: np.ndarray, where: str, truth: Labelled) -> list[list[str]]:
    names: Sequence[str] = [category.name for category in truth.categories]
    return [
        [
            str(truth.file(index).relative_to(truth.root)),
            ", ".join(names[label] for label in truth.labels_of(index)),
            where,
        ]
        for index in indices[:LISTED].tolist()
    ]


def _spaced(name: str) -> str:
    return name.replace("_", " ")
