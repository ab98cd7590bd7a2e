"""The page of a segmentation report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from detector.config.schema import Config
from detector.data.images import read_annotated_image
from detector.data.segmentation import Masked
from detector.evaluation.pixel_figures import PixelReport, pixel_report
from detector.evaluation.segmentation import SIZES
from detector.evaluation.tally import Kept
from detector.reports import Report, Scored, confusion_blocks, difference, known, tone_of
from detector.reports.drawing import as_rgb, contact_sheet, draw_mask
from detector.reports.pages import Block, Gallery, Numbers, PageImage, Section, Table, Text, page_image, within_budget
from detector.structures import IGNORED_PIXEL

LISTED = 300  # images in the page's table; images.csv has all
COLUMNS = ("iou", "accuracy", "boundary_iou")  # figures of a class, if the metrics have them
WRONG, RIGHT = (214, 40, 57), (230, 230, 230)  # colours of a difference; ignored pixels are black


def segmentation_report(
    scored: Scored, truth: Masked, config: Config, images: Path | None, against: Scored | None = None
) -> Report:
    """The report of predictions on ``truth``; the worst images are drawn if their folder ``images`` is given."""
    report = pixel_report(scored.rows, truth, scored.metrics)
    other = pixel_report(against.rows, truth, against.metrics) if against else None
    sections = [Section("Score", _score(report)), Section("Classes", [_class_table(report)])]
    figures = report.figures()
    if against and other:
        sections.insert(1, Section("Compared", _comparison(scored.name, report, against.name, other, truth)))
        figures["against"] = {"name": against.name, **other.figures()}
    sections.append(Section("Object sizes", [_size_table(report)]))
    names = [row["name"] for row in report.metrics["per_class"]]
    sections.append(Section("Confusion in pixels", confusion_blocks(np.array(report.metrics["confusion"]), names)))
    sections.append(Section("Worst images", _worst(report, scored.worst, truth, config, images)))
    lead = f"{len(truth):,} images with masks of {len(truth.categories)} classes in {truth.source}."
    lead += f" Against {against.name}." if against else ""
    return Report(lead, sections, figures, {"classes": report.metrics["per_class"], "images": report.images})


def _score(report: PixelReport) -> list[Block]:
    numbers = [(name.replace("_", " "), known(value)) for name, value in _numbers(report).items()]
    return [Numbers([*numbers, ("images", len(report.images))])]


def _numbers(report: PixelReport) -> dict[str, float]:
    return {name: value for name, value in report.metrics.items() if isinstance(value, float)}


def _columns(report: PixelReport) -> list[str]:
    return [name for name in COLUMNS if name in report.metrics["per_class"][0]]


def _class_table(report: PixelReport) -> Table:
    columns, per_class = _columns(report), report.metrics["per_class"]
    total = max(1, sum(row["pixels"] for row in per_class))
    rows = [
        [row["name"], row["pixels"], row["pixels"] / total, *(known(row[name]) for name in columns)]
        for row in per_class
    ]
    return Table(["class", "pixels", "fraction", *columns], rows, "Click a column head to sort.")


def _size_table(report: PixelReport) -> Table:
    rows = [[row["name"], *(known(row[f"iou_{size}"]) for size in SIZES)] for row in report.metrics["per_class"]]
    text = (
        "IoU by the size of regions, which are connected pixels of one class: under 32² pixels, 32² to 96², and more. A"
        " true pixel counts for the size of its region of truth, a wrong prediction for that of its predicted region."
    )
    return Table(["class", "small", "medium", "large"], rows, text)


def _worst(
    report: PixelReport, worst: tuple[Kept, ...], truth: Masked, config: Config, images: Path | None
) -> list[Block]:
    drawn = within_budget(_draw(worst, truth, config, images)) if images else []
    text = "Each image, its truth, what was predicted, and where they differ (red; ignored pixels are black)."
    rows = [[row[name] for name in ("file", "mIoU", "pixel_accuracy", "most_wrong")] for row in report.images[:LISTED]]
    caption = f"The first {LISTED}; images.csv has all {len(report.images):,}." if len(rows) == LISTED else ""
    table = Table(["file", "mIoU", "pixel accuracy", "most wrong"], rows, caption)
    return [Text(text), Gallery(drawn, column=560), table] if drawn else [table]


def _draw(worst: tuple[Kept, ...], truth: Masked, config: Config, images: Path) -> Iterator[PageImage]:
    names = [category.name for category in truth.categories]
    for kept in worst:
        file, data = truth.file(kept.image).relative_to(truth.root), config.data
        given = config.model.in_channels, data.exif, data.max_value
        image = as_rgb(read_annotated_image(images / file, *kept.prediction.shape, *given))
        mask = truth.mask(kept.image)
        shown = [Image.fromarray(image), *(draw_mask(image, own, names) for own in (mask, kept.prediction))]
        shown.append(Image.fromarray(_difference(mask, kept.prediction)))
        yield page_image(contact_sheet(shown, columns=2, gap=6), f"{file}: mIoU {kept.score:.3f}", long_side=1000)


def _difference(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8."""
    shown = np.where((truth == predicted)[..., None], RIGHT, WRONG).astype(np.uint8)
    shown[truth == IGNORED_PIXEL] = 0
    return shown


def _comparison(name: str, report: PixelReport, other_name: str, other: PixelReport, truth: Masked) -> list[Block]:
    numbers = [
        [key.replace("_", " "), known(value), known(there), difference(value, there)]
        for key, value in _numbers(report).items()
        if (there := _numbers(other).get(key)) is not None
    ]
    columns = [name for name in _columns(report) if name in _columns(other)]
    classes = []
    for row, against in zip(report.metrics["per_class"], other.metrics["per_class"], strict=True):
        values = [value for key in columns for value in (known(row[key]), difference(row[key], against[key]))]
        classes.append([row["name"], row["pixels"], *values])
    gain = report.image_ious - other.image_ious
    better, worse = int((gain > 0).sum()), int((gain < 0).sum())
    order = np.argsort(-np.abs(gain), kind="stable")[:LISTED]
    images = [
        [str(truth.file(index).relative_to(truth.root)), *map(float, (report.image_ious[index], gain[index]))]
        for index in order.tolist()
        if gain[index]
    ]
    text = f"This is {name}; the other is {other_name}. {better:,} images are better here, {worse:,} there."
    blocks: list[Block] = [
        Text(text),
        Table(["figure", "this", "other", "difference"], numbers, tones=[tone_of(row[3]) for row in numbers]),
        Table(
            ["class", "pixels", *(head for key in columns for head in (key, f"± {key}"))],
            classes,
            "By class; ± is the difference to the other.",
        ),
    ]
    if images:
        blocks.append(Table(["file", "mIoU", "± mIoU"], images, f"The images that differ most, at most {LISTED}."))
    return blocks
