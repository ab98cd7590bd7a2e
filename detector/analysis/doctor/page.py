"""The report as a page: findings, images of them, classes and sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from detector.analysis.doctor.columns import Split
from detector.analysis.doctor.examination import Report, Settings
from detector.analysis.doctor.findings import Example, Finding
from detector.analysis.doctor.sets import SMALL_SIDES, SetFacts
from detector.analysis.doctor.table import NOT_LOOKED_FOR, describe_example
from detector.data.images import read_annotated_image, read_image
from detector.data.transforms.resize import in_words
from detector.errors import DataError
from detector.reports.drawing import contact_sheet, draw_boxes, draw_lines
from detector.reports.pages import (
    Block,
    Chart,
    Gallery,
    Numbers,
    PageImage,
    Section,
    Table,
    Text,
    Tone,
    Value,
    chart,
    new_figure,
    page_image,
    shortened,
    write_page,
)

_IMAGES = 4  # of each finding
_LONG_SIDE = 560
_BARS = 30  # classes in a chart; the table has all
_SMALLEST_PART = 12  # a box is cut out if its longer side is under a twelfth of the image's
_LEAST_CUT = 96  # pixels, the side of the smallest cut-out
_TONES: dict[str, Tone] = {"error": "error", "warning": "warning", "note": ""}


def write_report(report: Report, path: Path) -> None:
    """Write the page; raises :class:`detector.errors.DataError` where it cannot be written."""
    sources = ", ".join(f"{own.name}: {own.source}" for own in report.sets)
    lead = f"{report.verdict}. {sources}" + (f". {NOT_LOOKED_FOR}." if report.is_quick else "")
    sections = [
        Section("Findings", [_numbers(report), *_findings(report)]),
        Section("Examples", [*_examples(report)]),
        Section("Classes", [*_classes(report)]),
        Section("Sizes", [*_sizes(report)]),
    ]
    write_page(path, "Doctor's report on the data", lead, [section for section in sections if section.blocks])


def _numbers(report: Report) -> Numbers:
    items: list[tuple[str, Value] | tuple[str, Value, str]] = []
    for own in report.sets:
        items.append((f"{own.name} images", own.images, f"{own.empty:,} without {report.things}"))
        items.append((f"{own.name} {report.things}", own.objects, f"{len(own.classes):,} classes"))
    items += [("errors", report.count("error")), ("warnings", report.count("warning")), ("notes", report.count("note"))]
    return Numbers(items)


def _findings(report: Report) -> Iterator[Block]:
    if not report.findings:
        yield Text("Nothing was found.", "good")
        return
    rows = [
        [one.severity, one.split, one.count, one.what + (f" ({one.detail})" if one.detail else "")]
        for one in report.findings
    ]
    tones = [_TONES[one.severity] for one in report.findings]
    yield Table(["severity", "split", "count", "what was found"], rows, tones=tones)


# --- examples ---------------------------------------------------------------------------------------------------------


def _examples(report: Report) -> Iterator[Block]:
    """Each finding with images of its examples, or else with text."""
    for finding in report.findings:
        if not finding.examples:
            continue
        yield Text(f"{finding.split}: {finding.what}: {finding.count:,} → {finding.remedy}", _TONES[finding.severity])
        images = [one for one in (_image(report, finding, e) for e in finding.examples[:_IMAGES]) if one]
        if images:
            yield Gallery(images)
        else:
            yield Table(["for example"], [[describe_example(example)] for example in finding.examples])


def _image(report: Report, finding: Finding, example: Example) -> PageImage | None:
    """The example drawn; None without an image that can be read."""
    splits = {split.name: split for split in report.splits}
    split = splits[example.split or finding.split.split("/")[0]]
    try:
        if example.other:
            drawn = _draw_pair(split, example, splits[example.other_split], report.settings)
        elif example.file:
            drawn = _draw_one(split, example, report.settings)
        else:
            return None
    except (DataError, ValueError):  # ValueError: a name that no file can have
        return None
    return page_image(drawn, describe_example(example), _LONG_SIDE if not example.other else 2 * _LONG_SIDE)


def _draw_pair(split: Split, example: Example, other: Split, settings: Settings) -> Image.Image:
    sides = [(split, example.file), (other, example.other)]
    frame = settings.exif, settings.max_value
    drawn = [draw_lines(_fitted(read_image(own.root / file, 3, *frame)), [], []) for own, file in sides]
    return contact_sheet(drawn, columns=2)


def _fitted(image: np.ndarray) -> np.ndarray:
    """Subsampled to about twice the size that is shown, for speed."""
    step = max(1, max(image.shape[:2]) // (2 * _LONG_SIDE))
    return image[::step, ::step]


def _draw_one(split: Split, example: Example, settings: Settings) -> Image.Image:
    """The image with the box of the example, or else with all of its boxes."""
    path, frame = split.root / example.file, (settings.exif, settings.max_value)
    index = split.files.index(example.file) if example.file in split.files else None
    if index is None or not split.has_boxes:
        return draw_lines(_fitted(read_image(path, 3, *frame)), [], [])
    width, height = split.sizes[index].tolist()
    try:
        image = read_annotated_image(path, height, width, 3, *frame)
    except DataError:
        image = read_image(path, 3, *frame)  # not of the annotated size: shown as it is
    rows = np.array([example.row]) if example.row is not None else np.flatnonzero(split.image == index)
    rows = rows[np.isfinite(split.boxes[rows]).all(axis=1)]
    boxes = split.boxes[rows].copy()
    boxes[:, 2:] += boxes[:, :2]
    if example.row is not None and len(boxes):
        image, boxes = _cut_around(image, boxes)
    labels = split.label[rows].tolist()
    return draw_boxes(image, boxes, labels, [split.class_name(row) for row in rows])


def _cut_around(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The surroundings of a small box, so that it can be seen; another image as it is."""
    height, width = image.shape[:2]
    side = max(_LEAST_CUT, int(3 * (boxes[0, 2:] - boxes[0, :2]).max()))
    if side * _SMALLEST_PART > 3 * max(height, width):
        return image, boxes
    middle = (boxes[0, :2] + boxes[0, 2:]) / 2
    left, top = (
        int(np.clip(at - side / 2, 0, max(0, end - side))) for at, end in zip(middle, (width, height), strict=True)
    )
    return image[top : top + side, left : left + side], boxes - [left, top, left, top]


# --- classes and sizes ------------------------------------------------------------------------------------------------


def _classes(report: Report) -> Iterator[Block]:
    things = report.things
    names = list(dict.fromkeys(name for own in report.sets for name, _, _ in own.classes))
    by_name = [{name: (objects, images) for name, objects, images in own.classes} for own in report.sets]
    columns = ["class"]
    for own in report.sets:
        columns += [f"{own.name} {things}", f"{own.name} images"]
    rows: list[list[Value]] = [
        [name, *(value for counts in by_name for value in counts.get(name, (None, None)))] for name in names
    ]
    rows.sort(key=lambda row: -(row[1] or 0))  # type: ignore[operator]
    if rows:
        yield _class_chart(report.sets, [str(row[0]) for row in rows[:_BARS]], by_name, len(names), things)
        yield Table(columns, rows)


def _class_chart(
    sets: Sequence[SetFacts], names: Sequence[str], by_name: Sequence[dict], total: int, things: str
) -> Chart:
    figure = new_figure(4.6, max(1.8, 0.4 + 0.2 * len(names)))
    axes = figure.add_subplot()
    rows = np.arange(len(names))
    thickness = 0.8 / len(sets)
    for number, (own, counts) in enumerate(zip(sets, by_name, strict=True)):
        percentages = [100 * counts.get(name, (0, 0))[0] / max(1, own.objects) for name in names]
        axes.barh(rows + (number - (len(sets) - 1) / 2) * thickness, percentages, thickness, label=own.name)
    axes.set_yticks(rows, [shortened(name) for name in names])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"% of the split's {things}")
    if len(sets) > 1:
        figure.legend(loc="outside upper right", ncols=len(sets))  # bars may fill the axes
    which = f"The {len(names)} most frequent of {total} classes" if len(names) < total else "All classes"
    return chart(figure, f"{which}: each as a fraction of the split's {things}")


def _sizes(report: Report) -> Iterator[Block]:
    with_sizes = [own for own in report.sets if len(own.sizes)]
    if with_sizes:
        at = f"{in_words(report.settings.resize)} px"
        at += f" as a part of a tile of {report.settings.tile} px" if report.settings.tile else ""
        yield Text(
            f"The size of an object is the square root of its area once the image is resized to {at}; anchors of the"
            " usual pyramid begin at 32 px."
        )
        rows: list[list[Value]] = [
            [own.name, *(100 * own.fraction_under(side) for side in SMALL_SIDES), *_quantiles(own)]
            for own in with_sizes
        ]
        columns = [
            "split",
            *(f"% under {side} px" for side in SMALL_SIDES),
            "10 % are under",
            "median",
            "10 % are over",
        ]
        yield Table(columns, rows, digits=1)
        yield _size_chart(with_sizes, at)
        yield _count_chart(report.sets)
    rows = [[own.name, size, count] for own in report.sets for size, count in own.image_sizes]
    if rows:
        yield Table(["split", "image size", "images"], rows, caption="The most common image sizes")


def _quantiles(own: SetFacts) -> list[Value]:
    return [float(number) for number in np.quantile(own.sizes, [0.1, 0.5, 0.9])]


def _size_chart(sets: Sequence[SetFacts], at: str) -> Chart:
    figure = new_figure()
    axes = figure.add_subplot()
    edges = 2 ** np.arange(1, 11, 0.5)
    for own in sets:
        counts, _ = np.histogram(own.sizes.clip(edges[0], edges[-1]), edges)
        axes.stairs(100 * counts / len(own.sizes), edges, label=own.name, linewidth=1.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks([2**power for power in range(1, 11)], [str(2**power) for power in range(1, 11)])
    axes.set_xlabel(f"size at {at} (px)")
    axes.set_ylabel("% of objects")
    axes.legend()
    return chart(figure, "Sizes of objects at the input size")


def _count_chart(sets: Sequence[SetFacts]) -> Chart:
    figure = new_figure()
    axes = figure.add_subplot()
    most = max((max(own.objects_per_image, default=0) for own in sets), default=0)
    edges = np.arange(0, most + 2) if most <= 40 else np.unique(np.linspace(0, most + 1, 40).astype(int))
    for own in sets:
        counts, _ = np.histogram(own.objects_per_image, edges)
        axes.stairs(100 * counts / max(1, own.images), edges, label=own.name, linewidth=1.8)
    axes.set_xlabel("objects per image")
    axes.set_ylabel("% of images")
    axes.legend()
    return chart(figure, "Objects per image")
