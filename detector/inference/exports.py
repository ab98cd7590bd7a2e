"""What a folder's detections are written as besides the predictions: label files, crops, and counts."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from detector.data.formats.labels import LabelledImage, Labels, describe_lost
from detector.data.formats.writing import WRITERS, check_names
from detector.data.large import LargeFile, read_anywhere
from detector.reports.drawing import as_rgb, save_jpeg
from detector.structures import Category, Id
from detector.system.atomic import atomic_write, make_folder, storing

if TYPE_CHECKING:
    from detector.tasks.detection_results import Prediction

CROPS, COUNTS = "crops", "counts.csv"


class Exports(NamedTuple):
    """What is asked for; ``crops`` and ``counts`` are the lowest scores of the objects in them."""

    formats: tuple[str, ...] = ()  # names in WRITERS
    crops: float | None = None
    counts: float | None = None

    def targets(self, output: Path) -> dict[str, Path]:
        """The files and folders to write, by what they are."""
        paths = {name: output / WRITERS[name].target for name in self.formats}
        paths |= {} if self.crops is None else {"crops": output / CROPS}
        return paths | ({} if self.counts is None else {"counts": output / COUNTS})

    def asked(self) -> dict[str, Any]:
        """What a run that is resumed must be asked again."""
        asked = {"formats": list(self.formats) or None, "crops": self.crops, "counts": self.counts}
        return {key: value for key, value in asked.items() if value is not None}


def check_labels(exports: Exports, names: Sequence[str], source: object) -> None:
    """Raises before any work is done for names of images that a format cannot hold."""
    for name in exports.formats:
        check_names(WRITERS[name], names, source)


NOTHING = Exports()
Rows = Callable[[], Iterator[dict[str, Any]]]  # a line of progress per image that was read, with its name


def write_exports(exports: Exports, rows: Rows, categories: Sequence[Category], source: str, output: Path) -> list[str]:
    """Write the label files and the counts; returns a line on each."""
    targets = exports.targets(output)
    label_of = {category.id: label for label, category in enumerate(categories)}
    labels = Labels(categories, lambda: (labelled_image(row, label_of) for row in rows()), source)
    said = []
    for name in exports.formats:
        lost = describe_lost(WRITERS[name].write(labels, targets[name]))
        said.append(f"{name}: {targets[name]}" + (f" (without what it cannot hold: {lost})" if lost else ""))
    if exports.crops is not None:
        make_folder(targets["crops"])  # there may be no object
        said.append(f"crops: {targets['crops']}")
    if exports.counts is not None:
        write_counts(rows(), categories, exports.counts, targets["counts"])
        said.append(f"counts: {targets['counts']}")
    return said


def labelled_image(row: Mapping[str, Any], label_of: Mapping[Id, int]) -> LabelledImage:
    """An image and what was found in it; ``label_of`` has labels by category id."""
    results, (height, width) = row["results"], row["size"]
    boxes = np.array([result["bbox"] for result in results], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return LabelledImage(
        row["id"],
        row["name"],
        width,
        height,
        boxes,
        np.array([label_of[result["category_id"]] for result in results], dtype=np.int64),
        np.array([result["score"] for result in results], dtype=np.float64),
    )


def write_counts(rows: Iterator[dict[str, Any]], categories: Sequence[Category], lowest: float, path: Path) -> None:
    """A CSV file with a row per image and a column per class: the number of objects that score at least ``lowest``."""
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", *(category.name for category in categories)])
        for row in rows:
            counts = Counter(result["category_id"] for result in row["results"] if result["score"] >= lowest)
            writer.writerow([row["name"], *(counts[category.id] for category in categories)])


def save_crops(
    image: np.ndarray | LargeFile, found: Prediction, lowest: float, folders: Mapping[Id, str], name: str, output: Path
) -> None:
    """Each object that scores at least ``lowest`` as ``CLASS/NAME_NUMBER.jpg``, numbered from the best one."""
    height, width = image.shape[:2]
    for number, (box, score, category_id) in enumerate(
        zip(found.boxes, found.scores, found.category_ids.tolist(), strict=True), start=1
    ):
        if score < lowest:
            continue
        left, top = np.clip(np.floor(box[:2]), 0, (width - 1, height - 1)).astype(int)
        right, bottom = np.maximum(np.ceil(box[2:]).astype(int), (left + 1, top + 1))
        crop = read_anywhere(image, (int(top), int(left), int(bottom - top), int(right - left)))
        path = output / CROPS / folders[category_id] / f"{name}_{number}.jpg"
        with storing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_jpeg(Image.fromarray(as_rgb(crop)), path, quality=95)


def class_folders(categories: Sequence[Category]) -> dict[Id, str]:
    """A folder's name for each class: its own, as far as every file system can hold it, and unlike all others."""
    folders: dict[Id, str] = {}
    taken: set[str] = set()
    for category in categories:
        plain = re.sub(r'[\x00-\x1f/\\:*?"<>|]', "_", category.name).strip(". ") or "_"
        name = plain = plain.encode(errors="replace")[:100].decode(errors="ignore")
        number = 2
        while name.casefold() in taken:
            name, number = f"{plain}_{number}", number + 1
        taken.add(name.casefold())
        folders[category.id] = name
    return folders
