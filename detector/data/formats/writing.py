"""Labelled images written for other programs: truth (``detector convert``) or detections (``detector infer --format``).

Every writer takes the same table, :class:`detector.data.formats.labels.Labels`, goes through it image by image, and
returns what its format cannot hold, in words with counts.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

from detector.data.formats.labels import (
    AREAS,
    EMPTY,
    IGNORED,
    NO_BOXES,
    OUTSIDE,
    SCORES,
    THIN,
    Box,
    LabelledImage,
    Labels,
    Lost,
    boxes_of,
)
from detector.data.names import leads_out
from detector.errors import DataError
from detector.structures import Category
from detector.system.atomic import atomic_folder, atomic_write, write_json_list
from detector.system.json_stream import show_text


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
        for box in boxes_of(image):
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
    """YOLO, a folder: ``labels/NAME.txt`` for every image, their list, ``data.yaml``, and links to the images.

    A row is class, centre and size as fractions of the image, and the score of a detection.
    """
    lost: Lost = Counter()
    folders: dict[str, str] = {}
    with atomic_folder(path) as folder:
        with _open(folder / "train.txt") as listed:  # the folder may have images that are not in the table
            for image in labels:
                boxes = _clipped(boxes_of(image, lost, (IGNORED, AREAS)), image, lost)
                rows = [_yolo_row(box, image.width, image.height) for box in boxes]
                _write_text(folder / yolo_file(image.name), "".join(rows))
                own, below, rest = _yolo_folder(image.name)
                listed.write(f"./{own}/{rest}\n")
                if folders.setdefault(own, below) != below and labels.images:
                    raise DataError(
                        f"{labels.images}: has images both in its folder images and outside; YOLO's folders cannot hold"
                        " both: move them into one"
                    )
        for own, below in folders.items() if labels.images else ():
            _link(folder / own, labels.images / below)
        names = {label: category.name for label, category in enumerate(labels.categories)}
        import yaml  # only here: the package without torch has none

        content = yaml.safe_dump({"train": "train.txt", "names": names}, allow_unicode=True, sort_keys=False)
        _write_text(folder / "data.yaml", content)
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


def _clipped(boxes: Iterable[Box], image: LabelledImage, lost: Lost) -> Iterator[Box]:
    """Boxes clipped to their image, without those that have no area in it.

    Ultralytics refuses all boxes of an image for one outside; a corner of VOC under 1 says that all count from 0.
    """
    for box in boxes:
        x1, x2 = (min(max(value, 0.0), float(image.width)) for value in box.xyxy[0::2])
        y1, y2 = (min(max(value, 0.0), float(image.height)) for value in box.xyxy[1::2])
        xyxy = (x1, y1, x2, y2)
        if x1 >= x2 or y1 >= y2:
            lost[EMPTY] += 1
            continue
        # Less than 0.01 px is the rounding of what was read.
        lost[OUTSIDE] += any(abs(own - old) > 0.01 for own, old in zip(xyxy, box.xyxy, strict=True))
        yield box._replace(xyxy=xyxy)


def _yolo_row(box: Box, width: int, height: int) -> str:
    x1, y1, x2, y2 = box.xyxy
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
        with _open(folder / "ImageSets" / "Main" / "default.txt") as listed:
            for image in labels:
                boxes = list(_clipped(boxes_of(image, lost, (SCORES, AREAS)), image, lost))
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
            boxes = list(boxes_of(image, lost, (IGNORED, AREAS)))
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
            for box in boxes_of(image, lost, (IGNORED, AREAS)):
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
    for number, box in enumerate(boxes_of(image, lost, (IGNORED, AREAS)), start=1):
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


def _open(path: Path) -> IO[str]:
    """A text file to write, in which names of files may be any bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w", encoding="utf-8", errors="surrogateescape", newline="")


def _write_text(path: Path, text: str) -> None:
    with _open(path) as file:
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
