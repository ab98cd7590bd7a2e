"""Labelled images written for other programs: truth (``detector convert``) or detections (``detector infer --format``).

Every writer takes the same table, :class:`Labels`, goes through it image by image, and returns what its format cannot
hold, in words with counts.

Dimension key: D boxes of one image.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import yaml

from detector.data.names import leads_out
from detector.errors import DataError
from detector.files.atomic import atomic_folder, atomic_write, write_json_list
from detector.files.json_stream import show_text
from detector.structures import Category, Id

if TYPE_CHECKING:
    from detector.data.formats.annotations import Annotations

IGNORED = "ignore region{s}"
SCORES = "score{s}"
AREAS = "area{s} other than the box's"
NO_BOXES = "class{es} without boxes"
OUTSIDE = "box{es} clipped to the image"
THIN = "box{es} under a pixel wide or high, widened to one"
EMPTY = "box{es} without area in the image"

Lost = Counter[str]  # what a format cannot hold, in words, and how often


class LabelledImage(NamedTuple):
    """An image and its boxes, which have scores if they are detections."""

    id: Id
    name: str  # relative to the folder of images, with slashes
    width: int
    height: int
    boxes: np.ndarray  # [D, 4] float64 xyxy in pixels; the first pixel reaches from 0 to 1
    labels: np.ndarray  # [D] int64 indices of categories
    scores: np.ndarray | None = None  # [D]
    is_ignored: np.ndarray | None = None  # [D] bool: crowds and other ignore regions; None: no box is
    areas: np.ndarray | None = None  # [D]; None: the boxes'


@dataclass(frozen=True)
class Labels:
    """Labelled images that can be gone through several times: they come from a file, not from memory."""

    categories: Sequence[Category]
    read: Callable[[], Iterator[LabelledImage]]
    source: str = "detector"  # what made them
    images: Path | None = None  # the folder of the images, which folders of labels then link to

    def __iter__(self) -> Iterator[LabelledImage]:
        return self.read()


def labels_of(annotations: Annotations) -> Labels:
    """The truth of a data set; every image must have its size."""

    def read() -> Iterator[LabelledImage]:
        for index in range(len(annotations)):
            rows = annotations.rows(index)
            xywh = annotations.boxes_xywh[rows].numpy()
            yield LabelledImage(
                annotations.image_ids[index],
                annotations.file_name(index),
                int(annotations.widths[index]),
                int(annotations.heights[index]),
                np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
                annotations.labels[rows].numpy(),
                is_ignored=annotations.is_crowd[rows].numpy(),
                areas=annotations.areas[rows].numpy(),
            )

    return Labels(annotations.categories, read, images=annotations.images)


def join_labels(parts: Sequence[tuple[str, Labels]]) -> Labels:
    """Several sets in one, the images of each in a folder of this name (none if it is empty).

    Classes are joined by name. Ids of classes and of images are kept where they fit together, or else numbered from 1.
    """
    sets = [own for _, own in parts]
    classes = list(dict.fromkeys(category for own in sets for category in own.categories))
    names = list(dict.fromkeys(category.name for category in classes))
    if len({str(category.id) for category in classes}) < len(classes) or len(names) < len(classes):
        classes = [Category(number, name) for number, name in enumerate(names, start=1)]
    ids = [str(image.id) for own in sets for image in own]
    is_numbered = len(set(ids)) < len(ids)

    def read() -> Iterator[LabelledImage]:
        numbers = itertools.count(1)
        for folder, own in parts:
            label_of = np.array([names.index(category.name) for category in own.categories], dtype=np.int64)
            for image in own:
                yield image._replace(
                    id=next(numbers) if is_numbered else image.id,
                    name=f"{folder}/{image.name}" if folder else image.name,
                    labels=label_of[image.labels],
                )

    return Labels(classes, read)


class Box(NamedTuple):
    """One box as plain numbers."""

    xyxy: tuple[float, float, float, float]
    label: int
    score: float | None
    is_ignored: bool
    area: float


def _boxes(image: LabelledImage, lost: Lost | None = None, cannot_hold: Sequence[str] = ()) -> Iterator[Box]:
    """The boxes of an image; those that the format ``cannot_hold`` are skipped, and all that is lost is counted."""
    lost = Counter() if lost is None else lost
    count = len(image.boxes)
    columns = [
        image.boxes.tolist(),
        image.labels.tolist(),
        [None] * count if image.scores is None else image.scores.tolist(),
        [False] * count if image.is_ignored is None else image.is_ignored.tolist(),
    ]
    areas = [None] * count if image.areas is None else image.areas.tolist()
    for (xyxy, label, score, is_ignored), area in zip(zip(*columns, strict=True), areas, strict=True):
        own = (xyxy[2] - xyxy[0]) * (xyxy[3] - xyxy[1])
        if is_ignored and IGNORED in cannot_hold:
            lost[IGNORED] += 1
            continue
        if AREAS in cannot_hold and area is not None and abs(area - own) > 1e-3 * own + 0.01:
            lost[AREAS] += 1
        if SCORES in cannot_hold and score is not None:
            lost[SCORES] += 1
        yield Box(tuple(xyxy), label, score, is_ignored, own if area is None else area)


def _count_unused(labels: Labels, used: set[int], lost: Lost) -> Lost:
    lost[NO_BOXES] += len(labels.categories) - len(used)
    return lost


def write_coco(labels: Labels, path: Path) -> Lost:
    """COCO JSON, a file; detections have a ``score``."""
    with atomic_write(path) as file:
        file.write('{"images": ')
        write_json_list(
            file,
            (
                {"id": image.id, "file_name": image.name, "width": image.width, "height": image.height}
                for image in labels
            ),
        )
        file.write(',\n"annotations": ')
        write_json_list(file, _coco_rows(labels))
        categories = [{"id": category.id, "name": category.name} for category in labels.categories]
        file.write(f',\n"categories": {json.dumps(categories, ensure_ascii=False)}}}\n')
    return Counter()


def _coco_rows(labels: Labels) -> Iterator[dict[str, Any]]:
    ids = itertools.count(1)
    for image in labels:
        for box in _boxes(image):
            left, top, right, bottom = box.xyxy
            row = {
                "id": next(ids),
                "image_id": image.id,
                "category_id": labels.categories[box.label].id,
                "bbox": [round(value, 6) for value in (left, top, right - left, bottom - top)],
                "area": round(box.area, 6),
                "iscrowd": int(box.is_ignored),
            }
            yield row if box.score is None else row | {"score": box.score}


def write_yolo(labels: Labels, path: Path) -> Lost:
    """YOLO, a folder: ``labels/NAME.txt`` for every image, links to the images, and ``data.yaml``.

    A row is class, centre and size as fractions of the image, and the score of a detection.
    """
    lost: Lost = Counter()
    folders: dict[str, str] = {}
    with atomic_folder(path) as folder:
        for image in labels:
            rows = [
                row
                for box in _boxes(image, lost, (IGNORED, AREAS))
                if (row := _yolo_row(box, image.width, image.height, lost))
            ]
            _write_text(folder / yolo_file(image.name), "".join(rows))
            own, below, _ = _yolo_folder(image.name)
            if folders.setdefault(own, below) != below and labels.images:
                raise DataError(
                    f"{labels.images}: has images both in its folder images and outside; YOLO's folders cannot hold"
                    " both: move them into one"
                )
        for own, below in folders.items() if labels.images else ():
            _link(folder / own, labels.images / below)
        train = sorted(folders)
        names = {label: category.name for label, category in enumerate(labels.categories)}
        content = {"train": train[0] if len(train) == 1 else train, "names": names}
        text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
        (folder / "data.yaml").write_text(text, encoding="utf-8")
    return lost


def _yolo_folder(name: str) -> tuple[str, str, str]:
    """The folder of an image in a YOLO data set, that folder below the folder of images, and the rest of its name.

    Labels are looked for where ``labels`` stands instead of the last ``images`` of a path: ``a/images/1.jpg`` stays as
    it is, ``1.jpg`` is in ``images``.
    """
    before, found, rest = f"/{name}".rpartition("/images/")
    own = f"{before}/images".lstrip("/")
    return (own, own, rest) if found else ("images", "", name)


def yolo_file(name: str) -> PurePosixPath:
    """The file of an image's labels."""
    folder, _, rest = _yolo_folder(name)
    return PurePosixPath(folder.removesuffix("images") + "labels", rest).with_suffix(".txt")


def _yolo_row(box: Box, width: int, height: int, lost: Lost) -> str:
    """A row of a box clipped to its image, as Ultralytics refuses all boxes of an image for one outside; or nothing."""
    x1, x2 = (min(max(value, 0.0), width) for value in box.xyxy[0::2])
    y1, y2 = (min(max(value, 0.0), height) for value in box.xyxy[1::2])
    if x1 >= x2 or y1 >= y2:
        lost[EMPTY] += 1
        return ""
    lost[OUTSIDE] += (x1, y1, x2, y2) != box.xyxy
    digits = max(6, len(str(max(width, height))) + 2)  # a corner is off by at most 0.01 px
    cells = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
    score = "" if box.score is None else f" {box.score:g}"
    return f"{box.label} " + " ".join(f"{cell:.{digits}f}" for cell in cells) + f"{score}\n"


def write_voc(labels: Labels, path: Path) -> Lost:
    """Pascal VOC, a folder: ``Annotations/NAME.xml`` for the images in ``JPEGImages/``, and a list of the images.

    Corners are those of the first and the last pixel inside, counted from 1, as the devkit's. Ignore regions are
    ``difficult``.
    """
    lost: Lost = Counter()
    used = set()
    with atomic_folder(path) as folder:
        names = folder / "ImageSets" / "Main" / "default.txt"
        _write_text(names, "")
        with names.open("w", encoding="utf-8", errors="surrogateescape") as listed:
            for image in labels:
                boxes = list(_boxes(image, lost, (SCORES, AREAS)))
                used |= {box.label for box in boxes}
                file = voc_file(image.name)
                _write_text(folder / file, _voc_xml(image, boxes, labels.categories, lost))
                listed.write(f"{file.relative_to('Annotations').with_suffix('')}\n")
        if labels.images:
            _link(folder / "JPEGImages", labels.images)
    return _count_unused(labels, used, lost)


def voc_file(name: str) -> PurePosixPath:
    """The file of an image's labels."""
    return PurePosixPath("Annotations", name).with_suffix(".xml")


def _voc_xml(image: LabelledImage, boxes: Iterable[Box], categories: Sequence[Category], lost: Lost) -> str:
    lines = [
        "<annotation>",
        f"  <filename>{_xml(image.name)}</filename>",
        f"  <size><width>{image.width}</width><height>{image.height}</height><depth>3</depth></size>",
        "  <segmented>0</segmented>",
    ]
    for box in boxes:
        x1, y1, x2, y2 = box.xyxy
        first = x1 + 1, y1 + 1
        last = max(x2, first[0]), max(y2, first[1])
        lost[THIN] += last != (x2, y2)
        left, top, right, bottom = map(_number, (*first, *last))
        lines += [
            "  <object>",
            f"    <name>{_xml(categories[box.label].name)}</name>",
            "    <pose>Unspecified</pose>",
            "    <truncated>0</truncated>",
            f"    <difficult>{int(box.is_ignored)}</difficult>",
            f"    <bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox>",
            "  </object>",
        ]
    return "\n".join([*lines, "</annotation>\n"])


def write_csv(labels: Labels, path: Path) -> Lost:
    """A CSV file with a row per box, in DeepForest's columns, the score of detections, and the image's size.

    Corners count from 0. An image without boxes is a row without a box, as in keras-retinanet's files.
    """
    lost: Lost = Counter()
    used = set()
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        is_scored = any(image.scores is not None for image in itertools.islice(labels, 1))
        score = ["score"] if is_scored else []
        writer.writerow(["image_path", "xmin", "ymin", "xmax", "ymax", "label", *score, "width", "height"])
        for image in labels:
            size = [image.width, image.height]
            boxes = list(_boxes(image, lost, (IGNORED, AREAS)))
            used |= {box.label for box in boxes}
            for box in boxes:
                cells = [image.name, *map(_number, box.xyxy), labels.categories[box.label].name]
                writer.writerow(cells + ([] if box.score is None else [box.score]) + size)
            if not boxes:
                writer.writerow([image.name] + [""] * (6 if is_scored else 5) + size)
    return _count_unused(labels, used, lost)


def write_cvat(labels: Labels, path: Path) -> Lost:
    """CVAT's XML 1.1 for images, a file; a score is the attribute ``score``, which CVAT keeps if the label has it."""
    lost: Lost = Counter()
    with atomic_write(path) as file:
        names = "".join(f"<label><name>{_xml(category.name)}</name></label>" for category in labels.categories)
        file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n')
        file.write(f"  <meta><task><labels>{names}</labels></task></meta>\n")
        for number, image in enumerate(labels):
            file.write(
                f'  <image id="{number}" name={_quoted(image.name)} width="{image.width}" height="{image.height}">\n'
            )
            source = "manual" if image.scores is None else "auto"
            for box in _boxes(image, lost, (IGNORED, AREAS)):
                left, top, right, bottom = map(_number, box.xyxy)
                score = "" if box.score is None else f'<attribute name="score">{box.score:g}</attribute>'
                file.write(
                    f'    <box label={_quoted(labels.categories[box.label].name)} source="{source}" occluded="0"'
                    f' xtl="{left}" ytl="{top}" xbr="{right}" ybr="{bottom}" z_order="0">{score}</box>\n'
                )
            file.write("  </image>\n")
        file.write("</annotations>\n")
    return lost


def write_labelstudio(labels: Labels, path: Path) -> Lost:
    """Label Studio's JSON tasks, a file; detections are predictions, truth is annotations.

    Images are named as local files below the folder of images (``LOCAL_FILES_DOCUMENT_ROOT``).
    """
    lost: Lost = Counter()
    with atomic_write(path) as file:
        write_json_list(file, (_task(image, labels, lost) for image in labels))
        file.write("\n")
    return lost


def _task(image: LabelledImage, labels: Labels, lost: Lost) -> dict[str, Any]:
    results = []
    for number, box in enumerate(_boxes(image, lost, (IGNORED, AREAS)), start=1):
        left, top, right, bottom = box.xyxy
        percent = {
            "x": 100 * left / image.width,
            "y": 100 * top / image.height,
            "width": 100 * (right - left) / image.width,
            "height": 100 * (bottom - top) / image.height,
        }
        value = {key: round(own, 5) for key, own in percent.items()}
        result = {
            "id": str(number),
            "type": "rectanglelabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": image.width,
            "original_height": image.height,
            "image_rotation": 0,
            "value": value | {"rotation": 0, "rectanglelabels": [labels.categories[box.label].name]},
        }
        results.append(result if box.score is None else result | {"score": box.score})
    task: dict[str, Any] = {"data": {"image": f"/data/local-files/?d={quote(image.name, errors='surrogateescape')}"}}
    if image.scores is None:
        return task | {"annotations": [{"result": results}]}
    mean = round(float(image.scores.mean()), 5) if len(image.scores) else 0.0
    return task | {"predictions": [{"model_version": labels.source, "score": mean, "result": results}]}


# --- names and numbers ------------------------------------------------------------------------------------------------


def check_names(writer: Writer, names: Iterable[str], source: object) -> None:
    """Raises :class:`detector.errors.DataError` where two images would share a file of labels, or one leads out."""
    if writer.label_file is None:
        return
    taken: dict[PurePosixPath, str] = {}
    for name in names:
        if leads_out(name):
            raise DataError(
                f"{source}: the image {show_text(name)} leads out of the folder of images, so its labels would be"
                " written elsewhere; move it into the folder, or choose a format of one file"
            )
        file = writer.label_file(name)
        if (other := taken.setdefault(file, name)) != name:
            raise DataError(
                f"{source}: {show_text(other)} and {show_text(name)} would share the labels {show_text(str(file))};"
                " rename one of them, or choose a format of one file"
            )


def describe_lost(lost: Lost) -> str:
    """What was lost in writing, as one text; empty if nothing was."""
    said = [
        f"{count:,} {what.format(s='' if count == 1 else 's', es='' if count == 1 else 'es')}"
        for what, count in lost.items()
        if count
    ]
    return ", ".join(said)


def _number(value: float) -> str:
    """A coordinate to a thousandth of a pixel, without needless digits: many readers expect integers."""
    return str(round(value, 3) + 0.0).removesuffix(".0")


_not_xml = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _xml(text: str) -> str:
    return escape(_not_xml.sub("�", text))


def _quoted(text: str) -> str:
    return quoteattr(_not_xml.sub("�", text))


def _link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target.resolve(), target_is_directory=True)


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(text)


class Writer(NamedTuple):
    """A format that labels are written in."""

    target: str  # the file or folder that ``infer`` writes
    write: Callable[[Labels, Path], Lost]
    label_file: Callable[[str], PurePosixPath] | None = None  # by the name of an image; None: all are in one file
    images: str | None = None  # the folder in the target where the images are expected


WRITERS = {
    "coco": Writer("coco.json", write_coco),
    "yolo": Writer("yolo", write_yolo, yolo_file, "images"),
    "voc": Writer("voc", write_voc, voc_file, "JPEGImages"),
    "csv": Writer("predictions.csv", write_csv),
    "cvat": Writer("cvat.xml", write_cvat),
    "labelstudio": Writer("labelstudio.json", write_labelstudio),
}
