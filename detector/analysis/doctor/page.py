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
    write_page,
)

_IMAGES = 4  # of each finding
_LONG_SIDE = 560
_BARS = 30  # classes in a chart; the table has all
_SMALLEST_SHARE = 12  # a box with a longer side under this part of the image's is shown on a part cut out
_LEAST_CUT = 96  # pixels of the image around a tiny box
_TONES: dict[str, Tone] = {"error": "error", "warning": "warning", "note": ""}


def write_report(report: Report, path: Path) -> None:
    """Write the page; raises :class:`~detector.errors.DataError` where it cannot be written."""
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
    things = _things(report)
    items: list[tuple[str, Value] | tuple[str, Value, str]] = []
    for own in report.sets:
        items.append((f"{own.name} images", own.images, f"{own.empty:,} without {things}"))
        items.append((f"{own.name} {things}", own.objects, f"{len(own.classes):,} classes"))
    items += [("errors", report.count("error")), ("warnings", report.count("warning")), ("notes", report.count("note"))]
    return Numbers(items)


def _things(report: Report) -> str:
    return "objects" if report.splits[0].has_boxes else "labels"


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
    """Each finding with images where there are any, else its examples as text."""
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
    """The example drawn; None where it has no image that can be read."""
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
    """At most as large as it is shown, for speed."""
    step = max(1, max(image.shape[:2]) // (2 * _LONG_SIDE))
    return image[::step, ::step]


def _draw_one(split: Split, example: Example, settings: Settings) -> Image.Image:
    """The image with the box of the example, or with all that it has."""
    path, frame = split.root / example.file, (settings.exif, settings.max_value)
    index = split.files.index(example.file) if example.file in split.files else None
    if index is None or not split.has_boxes:
        return draw_lines(_fitted(read_image(path, 3, *frame)), [], [])
    width, height = split.sizes[index].tolist()
    try:
        image = read_annotated_image(path, height, width, 3, *frame)
    except DataError:
        image = read_image(path, 3, *frame)  # of another size than annotated: shown as it is
    rows = np.array([example.row]) if example.row is not None else np.flatnonzero(split.image == index)
    rows = rows[np.isfinite(split.boxes[rows]).all(axis=1)]
    boxes = split.boxes[rows].copy()
    boxes[:, 2:] += boxes[:, :2]
    if example.row is not None and len(boxes):
        image, boxes = _cut_around(image, boxes)
    labels = split.label[rows].tolist()
    return draw_boxes(image, boxes, labels, [split.class_name(row) for row in rows])


def _cut_around(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part around a small box, in which it can be seen."""
    height, width = image.shape[:2]
    side = max(_LEAST_CUT, int(3 * (boxes[0, 2:] - boxes[0, :2]).max()))
    if side * _SMALLEST_SHARE > 3 * max(height, width):
        return image, boxes
    middle = (boxes[0, :2] + boxes[0, 2:]) / 2
    left, top = (
        int(np.clip(at - side / 2, 0, max(0, end - side))) for at, end in zip(middle, (width, height), strict=True)
    )
    return image[top : top + side, left : left + side], boxes - [left, top, left, top]


# --- what there is ----------------------------------------------------------------------------------------------------


def _classes(report: Report) -> Iterator[Block]:
    things = _things(report)
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
    places = np.arange(len(names))
    thickness = 0.8 / len(sets)
    for number, (own, counts) in enumerate(zip(sets, by_name, strict=True)):
        shares = [100 * counts.get(name, (0, 0))[0] / max(1, own.objects) for name in names]
        axes.barh(places + (number - (len(sets) - 1) / 2) * thickness, shares, thickness, label=own.name)
    axes.set_yticks(places, [name if len(name) <= 18 else f"{name[:17]}…" for name in names])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"% of the split's {things}")
    if len(sets) > 1:
        figure.legend(loc="outside upper right", ncols=len(sets))  # bars may fill the axes
    which = f"The {len(names)} most frequent of {total} classes" if len(names) < total else "All classes"
    return chart(figure, f"{which}: each one's fraction of the split's {things}")


def _sizes(report: Report) -> Iterator[Block]:
    with_sizes = [own for own in report.sets if len(own.sizes)]
    if with_sizes:
        at = f"{in_words(report.settings.resize)} px"
        yield Text(
            f"Sizes of objects are square roots of their areas once the image is resized to {at}; anchors of the"
            " usual pyramid begin at 32 px."
        )
        rows: list[list[Value]] = [
            [own.name, *(100 * own.share_under(side) for side in SMALL_SIDES), *_quantiles(own)] for own in with_sizes
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
        yield Table(["split", "image size", "images"], rows, caption="The commonest sizes of images")


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
    most = max((max(own.objects_an_image, default=0) for own in sets), default=0)
    edges = np.arange(0, most + 2) if most <= 40 else np.unique(np.linspace(0, most + 1, 40).astype(int))
    for own in sets:
        counts, _ = np.histogram(own.objects_an_image, edges)
        axes.stairs(100 * counts / max(1, own.images), edges, label=own.name, linewidth=1.8)
    axes.set_xlabel("objects per image")
    axes.set_ylabel("% of images")
    axes.legend()
    return chart(figure, "Objects an image")
