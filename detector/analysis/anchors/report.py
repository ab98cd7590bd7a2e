"""What ``tools/anchors.py`` shows: figures as JSON, and as tables, charts and images of a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from detector.analysis.anchors.search import Option
from detector.analysis.anchors.study import Row, Study
from detector.analysis.small_objects import what_pays
from detector.analysis.summary import Summary, summarise
from detector.config.schema import AnchorConfig, Config, MatcherConfig
from detector.data.images import read_annotated_image
from detector.data.transforms.resize import resize
from detector.errors import DataError
from detector.evaluation.coverage import RECALL_WANTED, WHY_MISSED, anchor_shapes
from detector.ops.anchors import Anchors, level_sizes
from detector.ops.boxes import pairwise_iou
from detector.reports.drawing import draw_targets
from detector.reports.pages import (
    COLORS,
    FAINT,
    Block,
    Chart,
    Gallery,
    Numbers,
    PageImage,
    Section,
    Table,
    Text,
    Tone,
    chart,
    new_figure,
    page_image,
)
from detector.tasks import detection

SHOWN_OBJECTS = 12  # in the gallery
POINTS = 800  # in the chart of sides

GROUPS = {"size": "√ area", "ratio": "height:width"}  # heads of the columns with group names

# Column heads by the keys of JSON.
NAMES = {
    "group": "",
    "objects": "objects",
    "mean_iou": "mean best IoU",
    "recall": "recall",
    "class_recall": "class-mean recall",
    "low_quality": "only low-quality",
    "missed": "missed",
    "positives": "positives per object",
    "without_positive": "without positives",
    "split": "split",
    "anchors_are": "anchors",
    "level": "level",
    "stride": "stride",
    "sizes": "anchor sizes, px",
    "anchors": "anchors",
    "anchors_share": "of anchors",
    "macs_share": "of multiply-adds",
    "objects_share": "of objects",
    "positives_share": "of positives",
    "name": "change",
    "macs": "multiply-adds",
    "verdict": "verdict",
    "keys": "config",
}


@dataclass(frozen=True)
class Suggestion:
    """The coverage of each split by the config's anchors and by the suggested ones, and other options."""

    before: dict[str, Study]  # by split
    after: dict[str, Study]
    options: list[Option]
    yaml: str  # the suggested config; empty where no better anchors were found

    def rows(self) -> list[Row]:
        kept = ("objects", "mean_iou", "recall", "class_recall", "low_quality", "missed", "positives")
        return [
            {"split": split, "anchors_are": name, **{key: own[split].overall()[key] for key in kept}}
            for split in self.before
            for name, own in (("config", self.before), ("suggested", self.after))
        ]


def cost(config: Config, num_classes: int) -> Summary:
    """The cost of the model for the largest image."""
    return summarise(config.model, num_classes, detection.largest_input(config))


def as_json(name: str, study: Study, summary: Summary, suggestion: Suggestion | None) -> Row:
    """All figures, as ``--json`` prints them."""
    matcher = study.config.model.matcher
    content: Row = {
        "config": name,
        "annotations": str(study.split.annotations.path),
        "anchors": study.config.model.anchors.model_dump(mode="json"),
        "assigner": matcher.name,
        "positive_threshold": matcher.positive if matcher.has_thresholds else None,
        "overall": study.overall(),
        "levels": study.levels(summary),
        **{f"by_{kind}": rows for kind, rows in study.groups()},
        "worst": [study.describe_object(index) for index in study.worst(SHOWN_OBJECTS)],
    }
    if suggestion:
        options = [option._asdict() | option.coverage._asdict() for option in suggestion.options]
        for option in options:
            del option["coverage"]
        content["suggestion"] = {"rows": suggestion.rows(), "options": options, "yaml": suggestion.yaml}
    return content


def sections(
    study: Study, summary: Summary, suggestion: Suggestion | None, drawings: Sequence[PageImage] = ()
) -> list[Section]:
    """All figures for a page or a terminal; ``drawings`` are those of :func:`gallery`."""
    overall = study.overall()
    after = suggestion.after["train"] if suggestion and suggestion.yaml else None
    remarks = [Text(text, tone) for text, tone in _remarks(study, overall)]
    numbers = _numbers(overall, summary, study.config.model.matcher)
    parts = [Section("All objects", [numbers, *remarks, *_charts(study, after)])]
    if suggestion:
        parts.append(Section("Suggestion", list(_suggestion(suggestion))))
    for kind, rows in study.groups():
        parts.append(Section(f"By {kind}", [_table(rows, NAMES | {"group": GROUPS.get(kind, kind)})]))
    levels = study.levels(summary)
    note = "Anchors and multiply-adds (the head's) are for the largest image; an object is on its best anchor's level."
    parts.append(Section("By level", [_table(levels), Text(note)]))
    worst = [study.describe_object(index) for index in study.worst(SHOWN_OBJECTS)]
    title = "Objects that no anchor covers well"
    if drawings:
        note = Text("The object in thick lines, its best anchor in thin ones, at the input size.")
        parts.append(Section(title, [note, Gallery(drawings)]))
    elif worst:
        columns = [key.replace("_", " ") for key in worst[0]]
        rows = [list((row | {"annotation_id": str(row["annotation_id"])}).values()) for row in worst]  # no 1,234
        parts.append(Section(title, [Table(columns, rows)]))
    return parts


def as_text(parts: Sequence[Section]) -> str:
    """Sections as text for a terminal, without charts and images."""
    lines = []
    for part in parts:
        lines.append(f"\n{part.title}")
        for block in part.blocks:
            if isinstance(block, Numbers):
                lines += [_number_line(*item) for item in block.items]
            elif isinstance(block, Text):
                lines.append(block.text)
            elif isinstance(block, Table):
                lines.append(block.as_text())
    return "\n".join(lines).strip()


def _number_line(label: str, value: Any, note: str = "") -> str:
    shown = f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    return f"  {label:<24}{shown}" + (f"  ({note})" if note else "")


def _numbers(overall: Row, summary: Summary, matcher: MatcherConfig) -> Numbers:
    images, matched = overall["images"], overall["matched_images"]
    sample = "" if matched == images else f"of {matched:,} sampled images"
    if matcher.has_thresholds:
        recall = [
            ("recall", overall["recall"], "fraction at or above the positive threshold"),
            ("class-mean recall", overall["class_recall"], "what --suggest maximises"),
            ("only low-quality", overall["low_quality"], "fraction below it that low-quality matching gives anchors"),
        ]
    else:
        recall = [
            ("recall", overall["recall"], f"fraction that {matcher.name} assigns anchors to"),
            ("class-mean recall", overall["class_recall"]),
        ]
    return Numbers(
        [
            ("objects", overall["objects"], f"{overall['objects_per_image']:.1f} per image, {images:,} images"),
            ("mean best IoU", overall["mean_iou"]),
            *recall,
            ("missed", overall["missed"], "fraction that no anchor is assigned to"),
            ("positives per object", overall["positives"], sample),
            ("positives per image", overall["positives_per_image"], sample),
            ("anchors", summary.anchors, f"for an image of {summary.size[0]} × {summary.size[1]}"),
        ]
    )


def _remarks(study: Study, overall: Row) -> Iterator[tuple[str, Tone]]:
    config = study.config
    matcher = config.model.matcher
    if matcher.name == "task_aligned":
        yield (
            "This is what atss assigns, until the model's own predictions decide (model.matcher.warmup).",
            "",
        )
    if overall["recall"] < RECALL_WANTED:
        missed = f"{1 - overall['recall']:.1%} of the objects get no anchor"
        if matcher.has_thresholds:
            yield f"{missed} at IoU {matcher.positive:g}: --suggest searches for anchors that fit them.", "warning"
        else:
            yield (
                f"{missed}: {WHY_MISSED}.",
                "warning",
            )
    boxes, stored = study.objects.boxes, study.split.checked.boxes[study.objects.rows]
    sides = ((own[:, 2:] - own[:, :2]).prod(dim=1).sqrt().numpy() for own in (boxes, stored))
    if advice := what_pays(*sides, has_p2=config.model.fpn.levels[0] == 2):
        yield f"{advice}.", "warning"
    if size := config.data.tiles.size:
        yield f"Objects are counted in the tiles of {size} px, each in all that show enough of it (data.tiles).", ""
    if config.data.augment.scale_jitter:
        low, high = config.data.augment.scale_jitter
        yield f"data.augment.scale_jitter, {low:g} to {high:g} times these sizes, is not taken into account.", ""
    if len(config.data.resize.short) > 1 and not config.data.resize.fixed:
        yield "One of the several data.resize.short is drawn per image, as in training.", ""


def _table(rows: Sequence[Row], names: dict[str, str] = NAMES) -> Table:
    return Table([names[key] for key in rows[0]], [list(row.values()) for row in rows])


def _suggestion(suggestion: Suggestion) -> Iterator[Block]:
    if suggestion.yaml:
        yield _table(suggestion.rows())
        before, after = (own["train"].config.model.anchors for own in (suggestion.before, suggestion.after))
        rows = [[key, _values(before, key), _values(after, key)] for key in ("base_size", "scales", "ratios")]
        yield Table(["model.anchors", "config", "suggested"], rows)
    else:
        yield Text("No better anchors were found: the config's fit.", "good")
    base = suggestion.options[0]
    rows = [
        {
            "name": option.name,
            "recall": option.coverage.recall,
            "mean_iou": option.coverage.mean_iou,
            "anchors": option.anchors,
            "anchors_share": f"× {option.anchors / base.anchors:.2f}",
            "macs": f"× {option.macs / base.macs:.2f}",
            "verdict": option.verdict,
            "keys": option.keys,
        }
        for option in suggestion.options
    ]
    yield Text(
        "Other pyramids and input sizes, each with anchors searched for it. The verdict only counts the covered objects"
        " of the training data: finer features may help beyond that."
    )
    yield _table(rows, NAMES | {"anchors_share": "vs first"})


def _values(anchors: AnchorConfig, key: str) -> str:
    value = getattr(anchors, key)
    return ", ".join(f"{number:.3g}" for number in (value if isinstance(value, list) else [value]))


def _charts(study: Study, after: Study | None) -> list[Chart]:
    studies = [("config", study)] + ([("suggested", after)] if after else [])
    figure = new_figure()
    axes = figure.add_subplot()
    for label, own in studies:
        axes.hist(own.best.numpy(), bins=np.linspace(0, 1, 41), histtype="step", label=label, linewidth=1.5)
    matcher, title = study.config.model.matcher, "The best IoU of every object"
    if matcher.has_thresholds:
        title += "; the dashed line is the positive threshold"
        axes.axvline(matcher.positive, linestyle="--", linewidth=1, color=FAINT)
    axes.set_xlabel("best IoU")
    axes.set_ylabel("objects")
    axes.legend(loc="upper left")
    best = chart(figure, title)

    figure = new_figure()
    axes = figure.add_subplot()
    sides = (study.objects.boxes[:, 2:] - study.objects.boxes[:, :2]).numpy()
    drawn = np.random.default_rng(0).permutation(len(sides))[:POINTS]
    axes.scatter(*sides[drawn].T, s=4, alpha=0.4, linewidths=0, color=COLORS[5], label="objects")
    for (label, own), marker in zip(studies, "x+", strict=False):
        shapes = anchor_shapes(own.config.model.anchors, own.config.model.fpn.levels).reshape(-1, 2)
        axes.scatter(*shapes.numpy().T, s=22, marker=marker, linewidths=1, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.set_xlabel("width, px")
    axes.set_ylabel("height, px")
    axes.legend(loc="upper left")
    return [best, chart(figure, "Sides of objects (a sample) and of anchors at the input size")]


def gallery(study: Study, images: Path) -> list[PageImage]:
    """The worst objects with their best anchors, at the input size; images that cannot be read are skipped."""
    drawings = []
    for index in study.worst(SHOWN_OBJECTS):
        about = study.describe_object(index)
        text = f"{about['class']} {about['width']:g} × {about['height']:g} px, best IoU {about['best_iou']:.2f}"
        try:
            drawing = _draw_object(study, index, images, about["class"])
        except DataError:
            continue
        drawings.append(page_image(drawing, f"{text}: {about['file_name']}, annotation {about['annotation_id']}"))
    return drawings


def _draw_object(study: Study, index: int, images: Path, name: str) -> Image.Image:
    model, annotations, objects = study.config.model, study.split.annotations, study.objects
    image_index, box, label = int(objects.image[index]), objects.boxes[index], int(objects.labels[index])
    original = int(annotations.heights[image_index]), int(annotations.widths[image_index])
    data, file = study.config.data, images / annotations.file_name(image_index)
    image = read_annotated_image(file, *original, model.in_channels, data.exif, data.max_value)
    height, width = objects.sizes[image_index].tolist()
    image = resize(image, height, width, data.resize.interpolation)
    anchors, _ = Anchors(model.anchors, model.fpn.levels)(
        level_sizes(*objects.padded[image_index].tolist(), model.fpn.levels)
    )
    best = anchors[pairwise_iou(box[None], anchors)[0].argmax()]
    # A window around both, with a margin of half their longer side.
    low, high = torch.minimum(box[:2], best[:2]), torch.maximum(box[2:], best[2:])
    margin = (high - low).max() / 2
    left, top = (low - margin).clamp(min=0).floor().int().tolist()
    right, bottom = (high + margin).ceil().int().tolist()
    corner = torch.tensor([left, top, left, top])
    window = image[top:bottom, left:right]
    own, others = ((part - corner)[None].numpy() for part in (box, best))
    return draw_targets(window, own, [label], [name], others, [label])
