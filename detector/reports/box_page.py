"""The page of a detection report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from detector.config.schema import Config
from detector.data.detection import Annotations
from detector.data.images import read_annotated_image
from detector.evaluation.box_figures import STEPS, BoxReport, box_report, false_type
from detector.evaluation.coco import METRICS
from detector.reports import Report, Scored, confusion_blocks, difference, known, tone_of
from detector.reports.drawing import contact_sheet, draw_boxes
from detector.reports.pages import (
    COLORS,
    INK,
    Block,
    Chart,
    Gallery,
    Numbers,
    PageImage,
    Section,
    Table,
    Text,
    chart,
    new_figure,
    page_image,
    shortened,
    within_budget,
)

WORST = 24  # images drawn
LISTED = 300  # images in the page's table; images.csv has all
HIGHLIGHTED = len(COLORS)  # classes with a line in a colour of their own
LINES = 150  # classes with a line at all
GREEN, RED, ORANGE = (40, 190, 110), (235, 40, 50), (255, 150, 0)  # right, false, missed


def detection_report(
    scored: Scored, truth: Annotations, config: Config, images: Path | None, against: Scored | None = None
) -> Report:
    """The report of detections on ``truth``; the worst images are drawn if their folder ``images`` is given."""
    report = box_report(scored.rows, truth, scored.metrics)
    other = box_report(against.rows, truth, against.metrics) if against else None
    names = [truth.file_name(index) for index in range(len(truth))]
    image_rows = _image_rows(report, other, truth, names)
    sections = [
        Section("Score", _score(report)),
        Section("Classes", [_class_table(report)]),
        Section("Curves", _curves(report)),
        Section("Confusion", _confusion(report)),
        Section("Error types", _errors(report)),
        Section("Size and crowding", _sizes(report)),
        Section("Calibration", _calibration(report)),
        Section("Worst images", _worst(report, scored.rows, truth, config, images, image_rows)),
    ]
    figures = report.figures()
    if against and other:
        sections.insert(1, Section("Compared", _comparison(scored.name, report, against.name, other, image_rows)))
        figures["against"] = {"name": against.name, **other.figures()}
    lead = f"{len(scored.rows):,} detections in {len(truth):,} images of {truth.path}."
    lead += f" Against {against.name}." if against else ""
    tables = {
        "classes": report.classes,
        "images": image_rows,
        "errors": report.errors,
        "curves": _curve_rows(report),
    }
    return Report(lead, sections, figures, tables)


# --- sections ---------------------------------------------------------------------------------------------------------


def _score(report: BoxReport) -> list[Block]:
    metrics, images = report.metrics, report.images
    notes = {"AP": "IoU 0.50 to 0.95", "AP50": "IoU 0.50", "AP75": "IoU 0.75", "APs": "under 32²", "APm": "32² to 96²"}
    notes |= {"APl": "over 96²", "ARs": "under 32²", "ARm": "32² to 96²", "ARl": "over 96²"}
    notes |= {"AR1": "best 1 per image", "AR10": "best 10", "AR100": f"best {metrics['max_detections']}"}
    totals = {name: int(values.sum()) for name, values in images.items()}
    return [
        Numbers([(name, known(metrics[name]), notes[name]) for name in METRICS]),
        Numbers(
            [
                ("score threshold", report.threshold, "where mean F1 is best"),
                ("F1 there", known(report.f1), "mean of the classes"),
                ("objects", totals["objects"]),
                ("found", totals["found"], "at the threshold"),
                ("missed", totals["missed"], "at the threshold"),
                ("false positives", totals["false"], "at the threshold"),
            ]
        ),
    ]


def _class_table(report: BoxReport) -> Table:
    numbers = ("AP", "AP50", "AR", "best_f1", "best_threshold")
    counts = ("objects", "found", "missed", "false")
    rows = [
        [row["name"], *(known(row[name]) for name in numbers), *(row[name] for name in counts)]
        for row in report.classes
    ]
    columns = ["class", "AP", "AP50", "AR", "best F1", "best threshold", "objects", "found", "missed", "false"]
    caption = f"Found, missed and false at score {report.threshold:.3f} and IoU 0.5. Click a column head to sort."
    return Table(columns, rows, caption)


def _by_objects(report: BoxReport) -> list[int]:
    """The labels of classes with objects, the most frequent first."""
    objects = np.array([row["objects"] for row in report.classes])
    return [int(label) for label in np.argsort(-objects, kind="stable") if objects[label]]


def _curves(report: BoxReport) -> list[Block]:
    labels = _by_objects(report)
    if not labels:
        return [Text("There is no object to find.")]
    coloured = "the classes with the most objects in colour" if len(labels) > HIGHLIGHTED else "by class"
    recall = np.linspace(0, 1, report.precision.shape[1])
    blocks: list[Block] = []

    figure = new_figure()
    axes = figure.add_subplot(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    known_precision = report.precision[:, :, labels].clip(0)
    for name, values in (
        ("IoU 0.50", known_precision[0]),
        ("IoU 0.75", known_precision[5]),
        ("IoU 0.50 to 0.95", known_precision.mean(axis=0)),
    ):
        axes.plot(recall, values.mean(axis=1), label=name)
    axes.legend()
    blocks.append(chart(figure, "Precision by recall, averaged over the classes; the area under a line is its AP."))

    precision = {label: report.precision[0, :, label].clip(0) for label in labels}
    caption = f"Precision by recall at IoU 0.5, {coloured}."
    blocks.append(_class_chart(report, recall, precision, None, ("recall", "precision"), caption))

    thresholds = np.arange(0, STEPS + 1, 10) / STEPS
    f1 = {label: report.f1_curves[label, ::10] for label in labels}
    mean = np.mean(list(f1.values()), axis=0)
    caption = f"F1 by score threshold at IoU 0.5, {coloured}; the mean of all is best at {report.threshold:.3f}."
    blocks.append(_class_chart(report, thresholds, f1, mean, ("score threshold", "F1"), caption))
    return blocks


def _class_chart(
    report: BoxReport,
    x: np.ndarray,
    lines: dict[int, np.ndarray],
    mean: np.ndarray | None,
    axis_names: tuple[str, str],
    caption: str,
) -> Chart:
    figure = new_figure()
    axes = figure.add_subplot(xlabel=axis_names[0], ylabel=axis_names[1], xlim=(0, 1), ylim=(0, 1.02))
    labels = list(lines)
    for label in labels[HIGHLIGHTED:LINES]:
        axes.plot(x, lines[label], color=INK, alpha=0.12, linewidth=0.6)
    for label in labels[:HIGHLIGHTED]:
        axes.plot(x, lines[label], label=shortened(report.classes[label]["name"]))
    if mean is not None:
        axes.plot(x, mean, color=INK, linewidth=2, label="mean of all")
    axes.legend(fontsize=8)
    return chart(figure, caption)


def _confusion(report: BoxReport) -> list[Block]:
    names = [row["name"] for row in report.classes]
    text = (
        f"At score {report.threshold:.3f} and IoU 0.5: rows are true classes, columns predicted ones; the last row"
        " holds detections on no object, the last column objects that were not found. A detection takes the object that"
        " it overlaps best, whatever its class; those in crowd regions are not counted."
    )
    return [Text(text), *confusion_blocks(report.confusion, [*names, "background"])]


def _errors(report: BoxReport) -> list[Block]:
    figure = new_figure()
    axes = figure.add_subplot(xlabel="AP50 gained if fixed")
    types = [row["type"] for row in report.errors][::-1]
    axes.barh(types, [row["AP50_lost"] for row in report.errors][::-1])
    axes.locator_params(axis="x", nbins=5)
    axes.grid(False, axis="y")
    rows = [[row["type"], row["AP50_lost"], row["count"], row["what"]] for row in report.errors]
    return [
        Text(
            "After TIDE (Bolya et al. 2020): the AP50 gained if all errors of one type were fixed and no others."
            " Detections of any score count, as for AP."
        ),
        chart(figure, "What each type of error costs."),
        Table(["type", "AP50 lost", "detections", "meaning"], rows),
    ]


def _sizes(report: BoxReport) -> list[Block]:
    by_size = [[r["size"], r["objects"], known(r["AP"]), known(r["AP50"])] for r in report.sizes]
    by_crowd = [
        [r["objects_an_image"], r["images"], r["objects"], known(r["AP"]), known(r["AP50"]), r["missed"], r["false"]]
        for r in report.crowds
    ]
    return [
        _bars([row[0] for row in by_size], [row[2] for row in by_size], "object's area in pixels", "AP by size."),
        _bars([row[0] for row in by_crowd], [row[3] for row in by_crowd], "objects per image", "AP by crowding."),
        Table(["area", "objects", "AP", "AP50"], by_size, "Area as annotated, in the original image.", is_wide=False),
        Table(
            ["objects per image", "images", "objects", "AP", "AP50", "missed", "false"],
            by_crowd,
            f"Missed and false at score {report.threshold:.3f}. AP is that of the images in the row.",
        ),
    ]


def _bars(names: Sequence[str], values: Sequence[float | None], axis_name: str, caption: str) -> Chart:
    figure = new_figure()
    axes = figure.add_subplot(xlabel=axis_name, ylabel="AP", ylim=(0, 1))
    axes.bar(names, [value or 0.0 for value in values])
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(False, axis="x")
    return chart(figure, caption)


def _calibration(report: BoxReport) -> list[Block]:
    bins = [row for row in report.calibration["bins"] if row["detections"]]
    figure = new_figure()
    axes = figure.add_subplot(xlabel="score", ylabel="fraction right", xlim=(0, 1), ylim=(0, 1.02))
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--", label="perfect calibration")
    axes.plot([b["mean_score"] for b in bins], [b["share_right"] for b in bins], marker="o", color=COLORS[0])
    axes.legend(fontsize=8)
    rows = [
        [f"{b['from']:.1f}–{b['to']:.1f}", b["detections"], known(b["mean_score"]), known(b["share_right"])]
        for b in report.calibration["bins"]
    ]
    return [
        Numbers(
            [
                ("ECE", report.calibration["ece"], "mean gap over detections"),
                ("MCE", report.calibration["mce"], "largest gap"),
            ]
        ),
        chart(
            figure,
            "Fraction of detections that are right (IoU 0.5) by score; below the dashed line they are overconfident.",
        ),
        Table(["score", "detections", "mean score", "fraction right"], rows, is_wide=False),
    ]


# --- images -----------------------------------------------------------------------------------------------------------


def _image_rows(
    report: BoxReport, other: BoxReport | None, truth: Annotations, names: Sequence[str]
) -> list[dict[str, Any]]:
    """One row per image, those with the most errors first."""
    columns = {name: values.tolist() for name, values in report.images.items()}
    errors = report.images["missed"] + report.images["false"]
    other_errors = (other.images["missed"] + other.images["false"]).tolist() if other else None
    ids = truth.image_ids.tolist()
    rows = []
    for index in np.argsort(-errors, kind="stable").tolist():
        row = {"image_id": ids[index], "file_name": names[index], "errors": int(errors[index])}
        row |= {name: values[index] for name, values in columns.items()}
        if other_errors is not None:
            row |= {"errors_against": other_errors[index], "difference": int(errors[index]) - other_errors[index]}
        rows.append(row)
    return rows


def _worst(
    report: BoxReport,
    rows: np.ndarray,
    truth: Annotations,
    config: Config,
    images: Path | None,
    image_rows: Sequence[dict[str, Any]],
) -> list[Block]:
    listed = [row for row in image_rows if row["errors"]][:LISTED]
    if not listed:
        return [Text("Every object is found, and there is no false positive.", "good")]
    columns = ["file_name", "errors", "missed", "false", "found", "objects"]
    caption = f"At score {report.threshold:.3f} and IoU 0.5."
    if len(listed) < sum(row["errors"] > 0 for row in image_rows):
        caption += f" The {len(listed)} images with the most errors; images.csv has all."
    table = Table(["file", *columns[1:]], [[row[name] for name in columns] for row in listed], caption)
    if images is None:
        return [Text("No images: the folder of the images was not given (--images)."), table]
    drawn = within_budget(_draw_worst(report, rows, truth, config, images, islice(listed, WORST)))
    legend = (
        "Left the truth, right the detections. Thin green: found, or right. Orange: missed. Red: false positives with"
        " class, score and error type. Click to enlarge; the arrow keys go to the next."
    )
    return [Text(legend), Gallery(drawn, column=420), table]


def _draw_worst(
    report: BoxReport,
    rows: np.ndarray,
    truth: Annotations,
    config: Config,
    folder: Path,
    listed: Iterator[dict[str, Any]],
) -> Iterator[PageImage]:
    index_of = {image_id: index for index, image_id in enumerate(truth.image_ids.tolist())}
    for row in listed:
        index = index_of[row["image_id"]]
        size = int(truth.heights[index]), int(truth.widths[index])
        data, channels = config.data, config.model.in_channels
        image = read_annotated_image(folder / row["file_name"], *size, channels, data.exif, data.max_value)
        own = truth.rows(index)
        is_object = ~truth.is_crowd[own].numpy()
        boxes, labels = truth.boxes_xywh[own].numpy()[is_object], truth.labels[own].numpy()[is_object]
        is_missed = report.is_missed[own][is_object]
        texts = [
            truth.categories[label].name if missed else "" for label, missed in zip(labels, is_missed, strict=True)
        ]
        colors = [ORANGE if missed else GREEN for missed in is_missed]
        left = draw_boxes(image, _xyxy(boxes), labels.tolist(), texts, colors)

        shown = np.flatnonzero((rows[:, 0] == index) & report.is_shown)
        shown = shown[np.argsort(-rows[shown, 5], kind="stable")]
        is_false = report.is_false[shown]
        texts = []
        for detection, false in zip(rows[shown], is_false, strict=True):
            label = int(detection[6])
            kind = false_type(detection[1:5], label, boxes, labels) if false else ""
            texts.append(f"{truth.categories[label].name} {detection[5]:.2f} {kind}" if false else "")
        colors = [RED if false else GREEN for false in is_false]
        right = draw_boxes(image, _xyxy(rows[shown, 1:5]), rows[shown, 6].astype(int).tolist(), texts, colors)
        caption = f"{row['file_name']}: {row['missed']} of {row['objects']} missed, {row['false']} false"
        yield page_image(contact_sheet([left, right], 2, gap=8), caption, long_side=1200, quality=78)


def _xyxy(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


# --- two sets of detections -------------------------------------------------------------------------------------------


def _comparison(
    name: str, report: BoxReport, other_name: str, other: BoxReport, image_rows: Sequence[dict[str, Any]]
) -> list[Block]:
    pairs = [(key, report.metrics[key], other.metrics[key]) for key in METRICS]
    pairs += [("F1 at the threshold", report.f1, other.f1), ("threshold", report.threshold, other.threshold)]
    totals = [_total_errors(one) for one in (report, other)]
    numbers = [[key, known(own), known(against), difference(own, against)] for key, own, against in pairs]
    classes = []
    for row, against in zip(report.classes, other.classes, strict=True):
        values = [v for key in ("AP", "AP50", "best_f1") for v in (known(row[key]), difference(row[key], against[key]))]
        classes.append([row["name"], row["objects"], known(against["AP"]), *values])
    changed = sorted((row for row in image_rows if row["difference"]), key=lambda row: -abs(row["difference"]))
    better = sum(row["difference"] < 0 for row in changed)
    images = [[row["file_name"], row["errors"], row["errors_against"], row["difference"]] for row in changed[:LISTED]]
    text = (
        f"This is {name}; the other is {other_name}. Each at its own best threshold, this one makes {totals[0]:,}"
        f" errors and the other {totals[1]:,}; {better:,} images have fewer here, {len(changed) - better:,} more."
    )
    blocks: list[Block] = [
        Text(text),
        Table(
            ["figure", "this", "other", "difference"], numbers, tones=[tone_of(row[3]) for row in numbers[:13]] + [""]
        ),
        Table(
            ["class", "objects", "AP other", "AP", "± AP", "AP50", "± AP50", "best F1", "± best F1"],
            classes,
            "By class; ± is the difference to the other.",
            tones=[tone_of(row[4]) for row in classes],
        ),
    ]
    if images:
        caption = "Images whose errors (missed and false) differ"
        caption += f"; the {LISTED} that differ most." if len(changed) > LISTED else "."
        tones = [tone_of(-row[3]) for row in images]
        blocks.append(Table(["file", "errors", "errors other", "difference"], images, caption, tones=tones))
    return blocks


def _total_errors(report: BoxReport) -> int:
    return int(report.images["missed"].sum() + report.images["false"].sum())


# --- tables -----------------------------------------------------------------------------------------------------------


def _curve_rows(report: BoxReport) -> list[dict[str, Any]]:
    """F1 by threshold in hundredths, and precision by recall at IoU 0.5: 101 points each."""
    return [
        {
            "class": row["name"],
            "threshold_or_recall": point / 100,
            "f1_at_threshold": round(float(report.f1_curves[label, point * 10]), 5),
            "precision_at_recall": round(float(report.precision[0, point, label]), 5),
        }
        for label, row in enumerate(report.classes)
        if row["objects"]
        for point in range(101)
    ]
