"""COCO-format annotations: what is read, what is refused (and how it is said), and that it is held in flat arrays."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import pickle
import re
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask
from pycocotools.coco import COCO

from detector.config.loader import load_config
from detector.config.schema import DataConfig, ResizeConfig, SplitConfig
from detector.data.detection import (
    CocoDataset,
    Sample,
    apply_box_policy,
    open_dataset,
)
from detector.data.formats.reading import read_annotations
from detector.data.names import Names, files_below, is_certain
from detector.data.transforms.boxes import Transform
from detector.errors import DataError
from detector.inference.predictor import Predictor
from detector.models import build_model
from detector.structures import IGNORE_REGION, Category
from detector.tasks import get_task, get_views

Tree = dict[str, Any]


def make_tree() -> Tree:
    """Two images with boxes, one without; the annotations of the first (id 7) are not next to each other."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "height": 50, "width": 100},
            {"id": 3, "file_name": "Ordner/ö 猫.png", "height": 60, "width": 80},
            {"id": 900000000000, "file_name": "c.png", "height": 20, "width": 30},
        ],
        "annotations": [
            {"id": 11, "image_id": 7, "category_id": 90, "bbox": [1, 2, 10, 20], "area": 150, "iscrowd": 0},
            {"id": 12, "image_id": 3, "category_id": 2, "bbox": [3.5, 4.25, 5, 6]},
            {"id": 13, "image_id": 7, "category_id": 5, "bbox": [0, 0, 100, 50], "iscrowd": 1},
        ],
        "categories": [{"id": 90, "name": "猫"}, {"id": 2, "name": "b"}, {"id": 5, "name": "a"}],
    }


def write(folder: Path, tree: Any, **options: Any) -> Path:
    path = folder / "x.json"
    path.write_text(json.dumps(tree, **options), encoding="utf-8")
    return path


def error_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_annotations(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert len(message.splitlines()) == 1
    return message.removeprefix(str(path))


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_file_by_hand(ascii_only: bool, tmp_path: Path) -> None:
    notes = read_annotations(write(tmp_path, make_tree(), ensure_ascii=ascii_only))
    # Labels are indices into the list of categories sorted by id: 2 → 0, 5 → 1, 90 → 2.
    assert notes.categories == [Category(2, "b"), Category(5, "a"), Category(90, "猫")]
    assert len(notes) == 3
    assert notes.image_ids.tolist() == [7, 3, 900000000000]
    assert notes.heights.tolist() == [50, 60, 20]
    assert notes.widths.tolist() == [100, 80, 30]
    assert [notes.file_name(index) for index in range(3)] == ["a.png", "Ordner/ö 猫.png", "c.png"]
    # Sorted by image, in the file's order within one.
    assert [notes.rows(index) for index in range(3)] == [slice(0, 2), slice(2, 3), slice(3, 3)]
    assert notes.image_index().tolist() == [0, 0, 1]
    assert notes.annotation_ids.tolist() == [11, 13, 12]
    assert notes.labels.tolist() == [2, 1, 0]
    assert notes.is_crowd.tolist() == [False, True, False]
    assert notes.boxes_xywh.tolist() == [[1, 2, 10, 20], [0, 0, 100, 50], [3.5, 4.25, 5, 6]]
    assert notes.areas.tolist() == [150, 5000, 30]  # as annotated, else width · height


def test_a_file_without_annotations(tmp_path: Path) -> None:
    notes = read_annotations(write(tmp_path, make_tree() | {"annotations": []}))
    assert [notes.rows(index) for index in range(3)] == [slice(0, 0)] * 3
    assert notes.boxes_xywh.shape == (0, 4)
    assert notes.image_index().tolist() == []


# What is done to the file of make_tree, what is the same then, and what is said.
READ: dict[str, tuple[Callable[[Tree], object], str]] = {
    "box as text": (
        lambda tree: tree["annotations"][1].update(bbox=["3.5", 4.25, " 5 ", "6.0e0"], area="30"),
        "4 numbers written as text",
    ),
    "boxes as one text": (
        lambda tree: [
            row.update(bbox=text)
            for row, text in zip(tree["annotations"], ["1 2 10 20", "[3.5, 4.25,5,6]", "0;0,100 , 50.0"], strict=True)
        ],
        "3 boxes written as text",
    ),
    "boxes as objects": (
        lambda tree: (
            tree["annotations"][0].update(bbox={"x": 1, "y": 2, "width": 10, "height": 20}),
            tree["annotations"][1].update(bbox={"h": "6", "w": 5, "y": 4.25, "x": 3.5}),
        ),
        "2 boxes written as an object",
    ),
    "whole numbers with a point": (
        lambda tree: (tree["annotations"][1].update(image_id=3.0, id=12.0), tree["images"][0].update(width=100.0)),
        "3 whole numbers written with a point",
    ),
    "size as text": (lambda tree: tree["images"][0].update(height="50", width="100"), "2 numbers written as text"),
    "category ids as text": (
        lambda tree: [row.update(category_id=str(row["category_id"])) for row in tree["annotations"]],
        "3 ids written as text",
    ),
    "ids as text with a point or spaces": (
        lambda tree: [row.update(image_id=f" {row['image_id']}.0") for row in tree["annotations"]],
        "3 ids written as text",
    ),
    "image ids of both kinds": (
        lambda tree: [row.update(image_id=str(row["image_id"])) for row in tree["annotations"][:2]],
        "2 ids written as text",
    ),
    "null in every optional field": (
        lambda tree: tree["annotations"][1].update(area=None, iscrowd=None, ignore=None, segmentation=None),
        "",
    ),
    "flags as booleans and text": (
        lambda tree: (tree["annotations"][2].update(iscrowd=True), tree["annotations"][0].update(iscrowd="0")),
        "1 number written as text",
    ),
    "ignore for iscrowd": (lambda tree: tree["annotations"][2].update(iscrowd=0, ignore=1), ""),
    "an empty box": (
        lambda tree: tree["annotations"][1].update(bbox=[], segmentation=[[3.5, 4.25, 8.5, 4.25, 8.5, "10.25"]]),
        "1 box taken from the segmentation",
    ),
    "a flat polygon": (
        lambda tree: tree["annotations"][1].update(bbox=None, segmentation=[3.5, 4.25, 8.5, 4.25, 8.5, 10.25]),
        "1 box taken from the segmentation",
    ),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_unambiguous_is_read_and_said(name: str, tmp_path: Path) -> None:
    change, said = READ[name]
    plain = read_annotations(write(tmp_path, make_tree()))
    tree = make_tree()
    change(tree)
    path = write(tmp_path, tree)
    notes = read_annotations(path)
    for field in ("boxes_xywh", "labels", "areas", "is_crowd", "heights", "widths", "first"):
        assert torch.equal(getattr(notes, field), getattr(plain, field)), field
    assert notes.image_ids.tolist() == plain.image_ids.tolist()
    assert notes.annotation_ids.tolist() == plain.annotation_ids.tolist()
    # The second box of the plain file has no area, which is said too.
    said = ", ".join(part for part in (said, "2 annotations without an area") if part)
    assert sorted(notes.notice.removeprefix(f"{path}: read ").split(", ")) == sorted(
        said.replace("2 annotations", "1 annotation" if '"30"' in path.read_text() else "2 annotations").split(", ")
    )


def test_ids_of_any_kind_are_given_back_as_they_were(tmp_path: Path) -> None:
    tree = make_tree()
    ids: list[Any] = ["frame_1", " 3.0", 2**70]
    for image, image_id in zip(tree["images"], ids, strict=True):
        image["id"] = image_id
    given = [("frame_1", "x"), (3, None), (str(2**70), "13 ")]
    for row, (image_id, own) in zip(tree["annotations"], given, strict=True):
        row |= {"image_id": image_id, "id": own}
    tree["categories"][1]["id"], tree["categories"][2]["id"] = "2", "dog"
    tree["annotations"][2]["category_id"] = "dog"
    notes = read_annotations(write(tmp_path, tree))
    assert notes.image_ids.tolist() == ids
    assert notes.annotation_ids.tolist() == ["x", None, "13 "]
    assert notes.image_index().tolist() == [0, 1, 2]
    assert notes.categories == [Category("2", "b"), Category(90, "猫"), Category("dog", "a")]  # numbers, then texts
    assert notes.labels.tolist() == [1, 0, 2]
    assert notes.select([2, 1]).image_ids.tolist() == [2**70, " 3.0"]
    assert notes.describe(1) == "annotation 1 of its image, which has no id"
    # Another way to write an id that is listed is the same one.
    tree["images"][2]["id"] = "3"
    assert ": image id ' 3.0' and '3' is duplicated: " in error_of(write(tmp_path, tree))


@given(value=st.integers(-(2**80), 2**80) | st.integers(-3, 3).map(lambda near: 2**62 + near))
def test_integers_of_any_size_are_ids(value: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    tree = make_tree()
    for row in (tree["images"][1], tree["annotations"][1]):
        row["id"] = value
    tree["annotations"][1]["image_id"] = f" {value}.00"
    notes = read_annotations(write(tmp_path_factory.getbasetemp(), tree))
    assert notes.image_ids[1] == notes.annotation_ids[2] == value
    assert notes.first.tolist() == [0, 2, 3, 3]


def rectangle_mask() -> np.ndarray:
    """Rows 4 to 9 and columns 20 to 39 of the first image: the box 20, 4, 20, 6."""
    pixels = np.zeros((50, 100), dtype=np.uint8, order="F")
    pixels[4:10, 20:40] = 1
    return pixels


def compressed() -> Tree:
    encoded = mask.encode(rectangle_mask())
    return encoded | {"counts": encoded["counts"].decode()}


# Column by column: 20 columns of 50 and 4 rows before the first run of 6, then 44 from one run to the next.
RUNS = [20 * 50 + 4, *[6, 44] * 19, 6, 60 * 50 + 40]

SEGMENTATIONS: dict[str, tuple[Any, list[float]]] = {
    "compressed run lengths": (compressed(), [20, 4, 20, 6]),
    "run lengths": ({"counts": RUNS, "size": [50, 100]}, [20, 4, 20, 6]),
    "a polygon": ([[20, 4, 40.5, 5, 30, 10]], [20, 4, 20.5, 6]),
    "two polygons": ([[20, 4, 40, 5, 30, 10], [1, 30, 2, 31, 3, 45]], [1, 4, 39, 41]),
}


@pytest.mark.parametrize("is_crowd", [0, 1])
@pytest.mark.parametrize("name", SEGMENTATIONS)
def test_the_box_of_a_segmentation(name: str, is_crowd: int, tmp_path: Path) -> None:
    segmentation, box = SEGMENTATIONS[name]
    tree = make_tree()
    tree["annotations"] = [
        {"id": 1, "image_id": 7, "category_id": 5, "segmentation": segmentation, "iscrowd": is_crowd}
    ]
    notes = read_annotations(write(tmp_path, tree))
    assert notes.boxes_xywh.tolist() == [box]
    assert notes.is_crowd.tolist() == [bool(is_crowd)]


def test_real_annotations_equal_those_of_pycocotools(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shared / "data" / "coco" / "annotations" / "val.json"
    notes, reference = read_annotations(path), COCO(str(path))
    capsys.readouterr()
    assert notes.image_ids.tolist() == [image["id"] for image in reference.dataset["images"]]
    assert notes.is_crowd.any()
    for index, image_id in enumerate(notes.image_ids.tolist()):
        rows, expected = notes.rows(index), reference.imgToAnns[image_id]
        assert notes.file_name(index) == reference.imgs[image_id]["file_name"]
        assert notes.annotation_ids.select(rows).tolist() == [row["id"] for row in expected]
        assert notes.boxes_xywh[rows].tolist() == [row["bbox"] for row in expected]
        assert notes.areas[rows].tolist() == [row["area"] for row in expected]
        assert notes.is_crowd[rows].tolist() == [bool(row["iscrowd"]) for row in expected]
        ids = [notes.categories[label].id for label in notes.labels[rows].tolist()]
        assert ids == [row["category_id"] for row in expected]


# --- what is refused --------------------------------------------------------------------------------------------------


def set_key(table: str, place: int, key: str, value: Any) -> Callable[[Tree], object]:
    return lambda tree: tree[table][place].update({key: value})


def drop_key(table: str, place: int, key: str) -> Callable[[Tree], object]:
    return lambda tree: tree[table][place].pop(key)


NAN, INF = float("nan"), float("inf")

REFUSED: dict[str, tuple[Callable[[Tree], object], str]] = {
    "image twice": (set_key("images", 1, "id", 7), "image id 7 is duplicated: a.png, Ordner/ö 猫.png"),
    "category twice": (set_key("categories", 1, "id", 90), "category id 90 is duplicated: 猫, b"),
    "annotation twice": (
        set_key("annotations", 1, "id", 11),
        "annotation id 11 is duplicated, for image 7 and for image 3; give each its own",
    ),
    "unknown image": (set_key("annotations", 1, "image_id", 8), "annotation 12: image_id 8 is not among the images"),
    "no image id": (drop_key("annotations", 1, "image_id"), "annotation 12: image_id null must be an integer"),
    "image id as a fraction": (set_key("annotations", 1, "image_id", 3.5), "annotation 12: image_id 3.5 must be an"),
    "images off by one": (
        lambda tree: tree.update(images=[{**row, "id": row["id"] + 1} for row in tree["images"][:2]]),
        "annotation 11: image_id 7 is not among the images; remove the annotation or add the image, or let detector"
        " doctor --fix correct them: all are off by one",
    ),
    "images off by one, perhaps": (
        lambda tree: (
            [image.update(id=place) or None for place, image in enumerate(tree["images"])]
            + [row.update(image_id=place + 1) for place, row in enumerate(tree["annotations"])]
        ),
        "annotation 13: image_id 3 is not among the images; remove the annotation or add the image; each id minus"
        " 1 is listed: if all are off by one, correct all of them",
    ),
    "two classes of one name": (
        set_key("categories", 1, "name", "猫"),
        "class name 猫 is duplicated: id 90 (1 annotations) and id 2 (1 annotations); rename one, or give",
    ),
    "unknown category": (
        set_key("annotations", 1, "category_id", 1),
        "annotation 12: category_id 1 is not among the categories (2 b, 5 a, 90 猫)",
    ),
    "category id as a boolean": (
        set_key("annotations", 1, "category_id", True),
        "annotation 12: category_id true must be an integer",
    ),
    "unknown image, and no annotation id": (
        lambda tree: (tree["annotations"][1].pop("id"), tree["annotations"][1].update(image_id="x")),
        "annotation 2 of the list: image_id x is not among the images",
    ),
    "all classes are off by one": (
        lambda tree: tree.update(
            categories=[{"id": 0, "name": "a"}, {"id": 2, "name": "b"}],
            annotations=[{**row, "category_id": 1 + place % 2 * 2} for place, row in enumerate(tree["annotations"])],
        ),
        "annotation 11: category_id 1 is not among the categories (0 a, 2 b); remove the annotation or add the"
        " category, or let detector doctor --fix correct them: all are off by one",
    ),
    "two ways to write one id": (
        lambda tree: tree["images"][1].update(id="7"),
        "image id 7 and '7' is duplicated: a.png, Ordner/ö 猫.png",
    ),
    "NaN": (set_key("annotations", 1, "bbox", [NAN, 0, 1, 1]), "annotation 12: bbox [nan, 0, 1, 1] must be four"),
    "infinite": (set_key("annotations", 1, "bbox", [0, 0, INF, 1]), "annotation 12: bbox [0, 0, inf, 1] must be four"),
    "past any float": (set_key("annotations", 1, "bbox", [0, 0, 10**400, 1]), "annotation 12: bbox [0, 0, 1000"),
    "three numbers": (set_key("annotations", 1, "bbox", [1, 2, 3]), "annotation 12: bbox [1, 2, 3] must be four"),
    "text in a box": (set_key("annotations", 1, "bbox", [1, 2, "x", 4]), "annotation 12: bbox [1, 2, 'x', 4] must be"),
    "text that is not a finite number": (
        set_key("annotations", 1, "bbox", [1, 2, "nan", 4]),
        "annotation 12: bbox [1, 2",
    ),
    "box null": (set_key("annotations", 1, "bbox", None), "annotation 12: has no bbox, and no segmentation"),
    "no box": (drop_key("annotations", 1, "bbox"), "annotation 12: has no bbox, and no segmentation"),
    "infinite area": (set_key("annotations", 0, "area", INF), "annotation 11: area inf must be a finite number"),
    "ignore of 2": (set_key("annotations", 0, "ignore", 2), "annotation 11: ignore 2 must be 0 or 1"),
    "height as a word": (
        set_key("images", 0, "height", "x"),
        "image 7 (a.png): height 'x', width 100 must be positive",
    ),
    "a wide claim": (
        set_key("images", 0, "width", 10**9),
        "image 7 (a.png): height 50, width 1000000000 is larger than any image (2^30 pixels)",
    ),
    # 2^15 · 2^16 = 2^31 pixels, though neither side is out of bounds.
    "a large claim": (
        lambda tree: tree["images"][0].update(height=2**15, width=2**16),
        "image 7 (a.png): height 32768, width 65536 is larger than any image (2^30 pixels)",
    ),
    "width 0": (set_key("images", 0, "width", 0), "image 7 (a.png): height 50, width 0 must be positive integers"),
    "image id as a boolean": (
        set_key("images", 0, "id", True),
        "image true (a.png): id true must be an integer or text",
    ),
    "empty image id": (set_key("images", 0, "id", ""), "image '' (a.png): id '' must be an integer or text"),
    "no file name": (drop_key("images", 0, "file_name"), "image 7: file_name is null"),
    "empty file name": (set_key("images", 0, "file_name", ""), "image 7: file_name is ''"),
    "no category name": (drop_key("categories", 0, "name"), "category 90: {'id': 90} needs an id, which is an"),
    "a file name of two lines": (
        lambda tree: tree["images"][0].update(file_name="a\nb.png", width=-1),
        "image 7 ('a\\nb.png'): height 50, width -1 must be positive integers",
    ),
    "NUL in a file name": (
        set_key("images", 0, "file_name", "a\0.png"),
        "image 7 ('a\\x00.png'): file_name is 'a\\x00.png'",
    ),
    "no images": (lambda tree: tree.pop("images"), "has no list 'images'"),
    "no annotations": (lambda tree: tree.pop("annotations"), "has no list 'annotations'"),
    "no categories": (lambda tree: tree.pop("categories"), "has no list 'categories'"),
    "an object for a list": (lambda tree: tree.update(images={}), "has no list 'images'"),
    "a list of numbers": (lambda tree: tree.update(images=[1]), "images: 1 is not an object"),
    "empty images": (lambda tree: tree.update(images=[]), "has no images"),
    "empty categories": (lambda tree: tree.update(categories=[]), "has no categories"),
    "half a character": (set_key("images", 0, "file_name", "\ud800.png"), "image 7 ('\\ud800.png'): file_name"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_mistake_is_named(mistake: str, tmp_path: Path) -> None:
    change, message = REFUSED[mistake]
    tree = make_tree()
    change(tree)
    # The whole file is one line; what is wrong only among rows has none.
    assert error_of(write(tmp_path, tree)).removeprefix(":1").startswith(f": {message}")


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        [[]],
        [[1, 2, 3]],
        "PPYo1",
        {"size": [50, 100]},
        {"counts": None, "size": [50, 100]},
        {"counts": [-5, 10], "size": [50, 100]},
        {"counts": "PPYo1", "size": [-50, 100]},
        {"counts": [2**40], "size": [50, 100]},
        {"counts": [1, 2, 3], "size": [0, 100]},  # pycocotools divides by it, which ends the process
        {"counts": [1, 2, 3], "size": [50, 2**40]},
        {"counts": [1, 2, 3], "size": [50]},
    ],
)
def test_what_is_not_a_segmentation(segmentation: Any, tmp_path: Path) -> None:
    tree = make_tree()
    del tree["annotations"][1]["bbox"]
    tree["annotations"][1]["segmentation"] = segmentation
    assert error_of(write(tmp_path, tree)).startswith(":1: annotation 12: has no bbox, and no segmentation")


def test_a_file_cut_short_names_the_line(tmp_path: Path) -> None:
    text = json.dumps(make_tree(), indent=1)
    end = text.index('"width": 80')
    path = tmp_path / "x.json"
    path.write_text(text[: end + 3])
    line = text[:end].count("\n") + 1
    assert line > 10
    assert error_of(path).startswith(f":{line}: not valid JSON: ")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", ": is empty; restore the file"),
        (b"\n\n{,}", ":3: not valid JSON: Expecting property name enclosed in double quotes (column 2)"),
        (b"[1]", ": holds a list; "),
        (b"null", ": holds null; "),
        (b"\x00\x00\xfe\xff", ": is text in UTF-32; save the file as UTF-8"),
        ("{}".encode("utf-16"), ": is text in UTF-16; save the file as UTF-8"),
        ("{}".encode("utf-16-be"), ": is text in UTF-16-BE; save the file as UTF-8"),
        ('{\n"info": "é"}'.encode("latin-1"), ":2: not valid JSON: byte 0xe9 is not UTF-8; save the file as UTF-8 (c"),
        (gzip.compress(b"{}", mtime=0), ": is a gzip file, not JSON; unpack it"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", ":1: not valid JSON: byte 0xff is not UTF-8; "),
        (b"GIF89a", ":1: not valid JSON: Expecting value (column 1)"),
        (b"[" * 100_000, ": holds a list; "),
        (b'{"images":' + b"[" * 100_000, ":1: not valid JSON: lists and objects are nested too deeply (column 12)"),
        (b'{"else":' + b'{"a":' * 100_000, ":1: not valid JSON: lists and objects are nested too deeply (column 14)"),
        # Python reads 4300 digits at most.
        (b'{"images": [' + b"9" * 5000 + b"]}", ":1: not valid JSON: Exceeds the limit (4300 digits) for integer"),
        (b'{"images": [\n{"id": 1, "id": 2}]}', ":2: not valid JSON: key 'id' is duplicated in an object (column 1)"),
        (b'{"images": [], "images": []}', ":1: not valid JSON: key 'images' is duplicated"),
        (b'{"info": {}} {}', ":1: not valid JSON: Extra data (column 14)"),
    ],
)
def test_a_file_that_is_not_annotations(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(data)
    assert error_of(path).startswith(message)


def test_a_missing_file(tmp_path: Path) -> None:
    assert error_of(tmp_path / "x.json") == ": cannot be read: No such file or directory"
    assert error_of(tmp_path).startswith(": holds no annotations of a known format; give a COCO JSON file")


def test_other_classes_than_the_models_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, make_tree())
    own = [Category(2, "b"), Category(5, "a"), Category(90, "猫")]
    assert read_annotations(path, own).categories == own
    for other, said in (
        (own[:2], "90 猫, which is not a class there"),
        ([*own[:2], Category(90, "cat")], "90 猫, which is 90 cat there"),
        ([Category(2, "a"), Category(5, "b"), Category(91, "cat")], "90 猫, which is not a class there"),
    ):
        with pytest.raises(DataError, match=f"classes that are not those of the model: .*{said}; give the same"):
            read_annotations(path, other)


def test_classes_of_the_same_names_have_the_models_ids_and_labels(tmp_path: Path) -> None:
    """The file has 90 猫, 5 a and 2 b, in this order of its annotations."""
    model = [Category("x", "b"), Category(2, "猫"), Category(5, "a")]
    read = read_annotations(write(tmp_path, make_tree()), model)
    assert (read.categories, read.labels.tolist()) == (model, [1, 2, 0])
    assert "2 classes by name, as the model has other ids" in read.notice


def test_unknown_classes_without_annotations_are_skipped(tmp_path: Path) -> None:
    tree = make_tree()
    own = read_annotations(write(tmp_path, tree)).categories
    # Roboflow lists the data set itself as a class, which may have a class's name.
    tree["categories"][:0] = [{"id": 0, "name": "b"}]
    assert read_annotations(write(tmp_path, tree)).categories == own
    tree["categories"][:0] = [{"id": 1, "name": "cow"}]
    notes = read_annotations(write(tmp_path, tree), own)
    assert (notes.categories, notes.labels.tolist()) == (own, [2, 1, 0])
    said = "skipped classes without annotations: 0 b, whose name is duplicated, 1 cow, which the model does not have"
    assert notes.notice.endswith(f"; {said}")
    tree["annotations"][0]["category_id"] = 1
    with pytest.raises(DataError, match="not those of the model: 1 cow, which is not a class there"):
        read_annotations(write(tmp_path, tree), own)


def test_fewer_classes_than_the_models_in_any_order_have_its_labels(tmp_path: Path) -> None:
    model = [Category(90, "猫"), Category(1, "new"), Category("5", "a"), Category(2, "b")]
    notes = read_annotations(write(tmp_path, make_tree()), model)
    assert notes.categories == model
    assert notes.labels.tolist() == [0, 2, 3]  # 90, 5 and 2


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["counts", "size", "id"]), inner, max_size=2)
    ),
    max_leaves=8,
)
places = st.sampled_from([(table, key) for table, rows in make_tree().items() for key in rows[0]])


@settings(max_examples=150)
@given(place=places, value=values, without_box=st.booleans())
def test_no_value_ends_in_anything_but_a_data_error(
    place: tuple[str, str], value: Any, without_box: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    table, key = place
    tree = make_tree()
    if without_box and table == "annotations":
        del tree["annotations"][0]["bbox"]
        key = "segmentation"
    tree[table][0][key] = value
    path = write(tmp_path_factory.getbasetemp(), tree)
    try:
        notes = read_annotations(path)
    except DataError as error:
        assert str(error).startswith(str(path))
    else:
        assert torch.isfinite(notes.boxes_xywh).all()
        assert torch.isfinite(notes.areas).all()


# --- boxes without area or outside ------------------------------------------------------------------------------------

# In an image 100 wide and 50 high: box, what clip makes of it (xyxy; None: dropped), whether it is at fault.
BOXES: dict[str, tuple[list[float], list[float] | None, bool]] = {
    "inside": ([10, 10, 20, 20], [10, 10, 30, 30], False),
    "the whole image": ([0, 0, 100, 50], [0, 0, 100, 50], False),
    "a pixel out": ([-1, -1, 102, 52], [0, 0, 100, 50], False),  # right 101, bottom 51: tolerated, and cut
    "left": ([-5, 10, 20, 20], [0, 10, 15, 30], True),
    "above": ([10, -1.5, 20, 20], [10, 0, 30, 18.5], True),
    "right and below": ([90, 40, 20, 20], [90, 40, 100, 50], True),
    "right by 1.5": ([10, 10, 91.5, 5], [10, 10, 100, 15], True),
    "no width": ([10, 10, 0, 5], None, True),
    "no height": ([10, 10, 5, 0], None, True),
    "negative width": ([10, 10, -3, 4], None, True),
    "beside it": ([120, 10, 10, 10], None, True),
    "beside it by less than a pixel": ([100, 10, 0.5, 10], None, True),
}


def tree_with(boxes: list[list[float]]) -> Tree:
    annotations = [
        {"id": 100 + row, "image_id": 7, "category_id": 5, "bbox": box, "iscrowd": row % 2}
        for row, box in enumerate(boxes)
    ]
    return make_tree() | {"annotations": annotations}


@pytest.mark.parametrize("name", BOXES)
def test_a_box_by_each_policy(name: str, tmp_path: Path) -> None:
    box, clipped, is_invalid = BOXES[name]
    notes = read_annotations(write(tmp_path, tree_with([box])))

    clip = apply_box_policy(notes, "clip")
    assert clip.boxes[clip.is_kept].tolist() == ([clipped] if clipped else [])
    assert (clip.clipped, clip.dropped) == (int(is_invalid and clipped is not None), int(clipped is None))

    drop = apply_box_policy(notes, "drop")
    assert drop.boxes[drop.is_kept].tolist() == ([] if is_invalid else [clipped])
    assert (drop.clipped, drop.dropped) == (0, int(is_invalid))

    if is_invalid:
        fault = "reaches outside its image" if clipped else "has no area"
        place = f"image 7 (a.png, 100×50), annotation 100: box {[float(side) for side in box]} (xywh) {fault}"
        assert clip.first_invalid == drop.first_invalid == place
        with pytest.raises(DataError, match=re.escape(f"{notes.path}: {place}; 1 invalid box in all")):
            apply_box_policy(notes, "error")
    else:
        assert clip.first_invalid is None
        refused = apply_box_policy(notes, "error")
        assert refused.boxes[refused.is_kept].tolist() == [clipped]


def test_faults_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    notes = read_annotations(write(tmp_path, tree_with([box for box, _, _ in BOXES.values()])))
    # 12 boxes: 3 right ones, 4 that can be cut, 5 that show nothing. The fourth (id 103) is the first at fault.
    clip, drop = apply_box_policy(notes, "clip"), apply_box_policy(notes, "drop")
    assert (int(clip.is_kept.sum()), clip.clipped, clip.dropped) == (7, 4, 5)
    assert (int(drop.is_kept.sum()), drop.clipped, drop.dropped) == (3, 0, 9)
    with pytest.raises(DataError, match=r"annotation 103: .* 9 invalid boxes in all"):
        apply_box_policy(notes, "error")


def test_a_sliver_that_float32_cannot_hold_has_no_area(tmp_path: Path) -> None:
    # 99 + 1e-6 is 99 in float32, the type that boxes are kept in.
    notes = read_annotations(write(tmp_path, tree_with([[99, 10, 1e-6, 10]])))
    assert not apply_box_policy(notes, "clip").is_kept.any()


sides = st.floats(-60, 160, width=32) | st.integers(-60, 160)


@settings(max_examples=60)
@given(boxes=st.lists(st.tuples(sides, sides, sides, sides), min_size=1, max_size=8))
def test_kept_boxes_lie_inside_and_have_an_area(
    boxes: list[tuple[float, ...]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    notes = read_annotations(write(tmp_path_factory.getbasetemp(), tree_with([list(box) for box in boxes])))
    for policy in ("clip", "drop"):
        result = apply_box_policy(notes, policy)
        kept = result.boxes[result.is_kept]
        assert (kept >= 0).all()
        assert (kept <= torch.tensor([100, 50, 100, 50])).all()
        assert (kept[:, 2:] > kept[:, :2]).all()
        assert result.dropped == len(boxes) - len(kept)


# --- the data set -----------------------------------------------------------------------------------------------------


def write_images(folder: Path, tree: Tree) -> None:
    """Images of the annotated sizes, each filled with its own gray: 40, 80, 120."""
    for place, image in enumerate(tree["images"]):
        path = folder / image["file_name"]
        path.parent.mkdir(exist_ok=True)
        pixels = np.full((image["height"], image["width"]), 40 * place + 40, np.uint8)
        path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def same_size() -> Transform:
    """An image of 50×100 stays as it is."""
    return Transform(ResizeConfig(short=[50], long=1000))


def make_dataset(folder: Path, tree: Tree, invalid_boxes: str = "error") -> CocoDataset:
    write_images(folder, tree)
    return CocoDataset(read_annotations(write(folder, tree)), folder, same_size(), invalid_boxes)


def sample_of(dataset: CocoDataset, index: int) -> Sample:
    sample = dataset[0, index]
    assert isinstance(sample, Sample)
    return sample


def test_samples_by_hand(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, make_tree())
    assert len(dataset) == 3

    first = sample_of(dataset, 0)
    assert (first.image.shape, first.image.dtype, first.image.unique().tolist()) == ((3, 50, 100), torch.uint8, [40])
    assert first.boxes.tolist() == [[1, 2, 11, 22], [0, 0, 100, 50]]
    assert first.labels.tolist() == [2, IGNORE_REGION]
    assert (first.id, first.size_original) == (0, (50, 100))

    # 60×80 is resized to a short side of 50, by 5/6: 50×67 (66.67).
    second = sample_of(dataset, 1)
    assert (second.image.shape, second.image.unique().tolist()) == ((3, 50, 67), [80])
    expected = torch.tensor([[3.5 * 67 / 80, 4.25 * 50 / 60, 8.5 * 67 / 80, 10.25 * 50 / 60]])
    assert torch.allclose(second.boxes, expected)
    assert (second.id, second.size_original, second.labels.tolist()) == (1, (60, 80), [0])

    empty = sample_of(dataset, 2)
    assert (empty.boxes.shape, empty.labels.shape, empty.id) == ((0, 4), (0,), 2)
    assert (empty.boxes.dtype, empty.labels.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("name", SEGMENTATIONS)
def test_a_crowd_is_an_ignore_region(name: str, tmp_path: Path) -> None:
    segmentation, (left, top, width, height) = SEGMENTATIONS[name]
    tree = make_tree()
    tree["annotations"] = [
        {"id": 1, "image_id": 7, "category_id": 5, "segmentation": segmentation, "iscrowd": 1},
        {"id": 2, "image_id": 7, "category_id": 5, "segmentation": segmentation, "iscrowd": 0},
    ]
    sample = sample_of(make_dataset(tmp_path, tree), 0)
    assert sample.labels.tolist() == [IGNORE_REGION, 1]
    assert sample.boxes.tolist() == [[left, top, left + width, top + height]] * 2


def test_the_policy_reaches_the_samples(tmp_path: Path) -> None:
    tree = tree_with([[-5, 10, 20, 20], [10, 10, 20, 20], [5, 5, 0, 5]])
    with pytest.raises(DataError, match="annotation 100"):
        make_dataset(tmp_path, tree)
    clip, drop = make_dataset(tmp_path, tree, "clip"), make_dataset(tmp_path, tree, "drop")
    assert sample_of(clip, 0).boxes.tolist() == [[0, 10, 15, 30], [10, 10, 30, 30]]
    assert sample_of(clip, 0).labels.tolist() == [1, IGNORE_REGION]
    assert sample_of(drop, 0).boxes.tolist() == [[10, 10, 30, 30]]
    assert sample_of(drop, 0).labels.tolist() == [IGNORE_REGION]


def test_the_summary_counts(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, make_tree())
    notice = f"{tmp_path / 'x.json'}: read 2 annotations without an area"
    assert dataset.summary() == f"3 images (1 without boxes), 2 boxes of 3 classes, 1 ignore region\n{notice}"
    boxes = [[-5, 10, 20, 20], [10, 10, 20, 20], [5, 5, 0, 5]]  # the second is a crowd
    text = make_dataset(tmp_path, tree_with(boxes), "clip").summary()
    expected = "3 images (2 without boxes), 1 box of 3 classes, 1 ignore region; 1 invalid box clipped, 1 dropped"
    assert text.startswith(f"{expected} (first: image 7 (a.png, 100×50), annotation 100: ")


def test_another_size_than_annotated_comes_back_as_an_error(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, make_tree())
    (tmp_path / "a.png").write_bytes((tmp_path / "c.png").read_bytes())
    error = dataset[0, 0]
    assert isinstance(error, DataError)
    assert str(error).startswith(f"{tmp_path / 'a.png'}: the image is 30×20, its annotation says 100×50; ")
    assert isinstance(dataset[0, 1], Sample)


def test_opening_checks_what_it_can_without_decoding(tmp_path: Path) -> None:
    tree = make_tree()
    write_images(tmp_path, tree)
    notes = str(write(tmp_path, tree))
    split = SplitConfig(annotations=notes, images=str(tmp_path))
    assert len(open_dataset(DataConfig(val=split), "val", same_size())) == 3

    def refusal(split: SplitConfig) -> str:
        with pytest.raises(DataError) as caught:
            open_dataset(DataConfig(val=split), "val", same_size())
        return str(caught.value)

    assert refusal(SplitConfig(images=str(tmp_path))).startswith("data.val.annotations is not set; ")
    assert refusal(SplitConfig(annotations=notes)).startswith("data.val.images is not set; ")
    nowhere = SplitConfig(annotations=notes, images=str(tmp_path / "nowhere"))
    assert refusal(nowhere) == f"data.val.images: {tmp_path / 'nowhere'} is not a folder"
    too_long = SplitConfig(annotations=notes, images="x" * 300)
    assert refusal(too_long) == f"data.val.images: {'x' * 300} is not a folder"
    too_long = SplitConfig(annotations="x" * 300, images=str(tmp_path))
    assert "cannot be read: File name too long" in refusal(too_long)
    missing = tmp_path / "Ordner" / "ö 猫.png"
    missing.unlink()
    assert refusal(split).startswith(f"{missing}: does not exist, but {notes} names it (image 3)")


def opened(folder: Path, name: str, **config: Any) -> CocoDataset:
    """The data set of one image by ``name`` in ``folder / "images"``."""
    tree = make_tree() | {"annotations": []}
    tree["images"] = [{"id": 7, "file_name": name, "height": 50, "width": 100}]
    (folder / "images").mkdir(exist_ok=True)
    split = SplitConfig(annotations=str(write(folder, tree)), images=str(folder / "images"))
    return open_dataset(DataConfig(val=split, **config), "val", same_size())


def lay_out(folder: Path) -> None:
    """An image in the folder of images and one beside it, with links of every kind to both."""
    images, pixels = folder / "images", cv2.imencode(".png", np.zeros((50, 100), np.uint8))[1].tobytes()
    for path in (images / "below" / "in.png", folder / "out" / "out.png"):
        path.parent.mkdir(parents=True)
        path.write_bytes(pixels)
    (images / "link_in.png").symlink_to("below/in.png")
    (images / "link_out.png").symlink_to(folder / "out" / "out.png")
    (images / "twice.png").symlink_to("link_out.png")
    (images / "folder_in").symlink_to("below")
    (images / "folder_out").symlink_to("../out")
    (images / "dangling.png").symlink_to("nowhere.png")


INSIDE = ["below/in.png", "link_in.png", "folder_in/in.png", "./below//in.png"]
INSIDE += ["link_out.png", "twice.png", "folder_out/out.png"]  # the links are the user's own: DVC's, git-annex's


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("images", ["images", "link"])
def test_an_image_inside_is_found(name: str, images: str, tmp_path: Path) -> None:
    lay_out(tmp_path)
    (tmp_path / "link").symlink_to("images")  # the folder itself may be one
    assert isinstance(sample_of(opened(tmp_path, name), 0), Sample)


@pytest.mark.parametrize("name", ["../out/out.png", "below/../below/in.png", "absolute"])
def test_an_image_outside_must_be_allowed(name: str, tmp_path: Path) -> None:
    lay_out(tmp_path)
    name = str(tmp_path / "out" / "out.png") if name == "absolute" else name
    (tmp_path / "images" / "folder_out").unlink()
    with pytest.raises(DataError) as caught:
        opened(tmp_path, name)
    assert str(caught.value).startswith(f"{tmp_path / 'images' / name}: leads out of data.val.images, but ")
    # Where the name ends as that of a file inside does, that one is meant.
    inside = "in.png" in name
    remedy = "did you mean below/in.png? detector doctor" if inside else "put the image into the folder, or set data."
    assert f"(image 7); {remedy}" in str(caught.value)
    assert isinstance(sample_of(opened(tmp_path, name, allow_outside=True), 0), Sample)


CHECK = "check data.val.images, or remove the image"


@pytest.mark.parametrize("allow_outside", [False, True])
@pytest.mark.parametrize(
    ("name", "fault", "remedy"),
    [
        ("none.png", "does not exist", CHECK),
        ("none/none.png", "does not exist", CHECK),
        ("below/in.png/none.png", "does not exist", CHECK),
        ("x" * 5000 + ".png", "does not exist", CHECK),
        ("dangling.png", "is a link to .*/nowhere.png, which does not exist", CHECK),
        ("below", "is not a file", CHECK),
        ("below\\\\in.png", "does not exist", "did you mean below/in.png"),
        ("Below/IN.png", "does not exist", "did you mean below/in.png"),
        ("images/below/in.png", "does not exist", "did you mean below/in.png"),
        ("in.jpg", "does not exist", "did you mean below/in.png"),
    ],
)
def test_a_name_without_an_image_is_refused(
    name: str, fault: str, remedy: str, allow_outside: bool, tmp_path: Path
) -> None:
    lay_out(tmp_path)
    (tmp_path / "images" / "folder_in").unlink()
    with pytest.raises(DataError, match=f"{fault}, but .* names it .image 7.; {remedy}") as caught:
        opened(tmp_path, name.replace("\\\\", "\\"), allow_outside=allow_outside)
    assert len(str(caught.value)) < 1000


def name_files(folder: Path, *names: str) -> Names:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return Names(files_below(folder))


FILES = ["images/a.png", "b c.JPG", "train/x.png", "val/x.png", "val/deep/y.png", "q/z.png", "z.png", "o\u0308.png"]
# A name, the files that it may mean, and whether nothing speaks against it.
MEANT: dict[str, tuple[list[str], bool]] = {
    "images\\a.png": (["images/a.png"], True),
    "C:\\data\\Images\\A.png": (["images/a.png"], True),
    "a.png": (["images/a.png"], True),
    "file:///home/me/images/a.png": (["images/a.png"], True),
    "https://host/images/a.png?width=3": (["images/a.png"], True),
    "/data/local-files/?d=images/a.png": (["images/a.png"], True),
    "b%20c.jpg": (["b c.JPG"], True),
    "b c": (["b c.JPG"], True),
    "/home/me/val/x.png": (["val/x.png"], True),
    "x.png": (["train/x.png", "val/x.png"], False),
    "test/x.png": (["train/x.png", "val/x.png"], False),
    "other/y.png": (["val/deep/y.png"], False),  # the only one, but of another folder
    "../set/z.png": (["z.png"], True),  # no folder of which is another one's
    "\u00f6.png": (["o\u0308.png"], True),
    "val/x.jpeg": (["val/x.png"], True),
    "train/y.png": (["val/deep/y.png"], False),
    "none.png": ([], False),
    "..": ([], False),
}


@pytest.mark.parametrize("name", MEANT)
def test_the_file_that_a_name_means(name: str, tmp_path: Path) -> None:
    files, certain = MEANT[name]
    found = name_files(tmp_path, *FILES).meant(name)
    assert sorted(found) == files
    assert (len(found) == 1 and is_certain(name, found[0])) == certain


def test_many_names_list_the_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = name_files(tmp_path, *(f"{folder}/{number}.png" for folder in "abcde" for number in range(40)))
    listed: list[Any] = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(path), real(path))[1])
    assert names.meant("b\\7.png") == ["b/7.png"]
    assert all(len(names.meant(f"x/{number}.jpg")) == 5 for number in range(40))
    assert len(listed) == 6


def test_the_file_system_is_asked_once_per_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = make_tree() | {"annotations": []}
    names = [f"{folder}/{number}.png" for folder in "ab" for number in range(50)]
    tree["images"] = [{"id": row, "file_name": name, "height": 5, "width": 5} for row, name in enumerate(names)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    asked: list[tuple[Any, ...]] = []
    for function in ("scandir", "stat", "lstat"):
        real = getattr(os, function)
        monkeypatch.setattr(
            os, function, lambda *args, real=real, **named: (asked.append(args), real(*args, **named))[1]
        )
    split = SplitConfig(annotations=str(write(tmp_path, tree)), images=str(tmp_path))
    assert len(open_dataset(DataConfig(val=split), "val", same_size())) == 100
    assert len(asked) < 60  # the folders, and each part of their paths, which may be links


def test_opening_applies_the_configs_policy(tmp_path: Path) -> None:
    tree = tree_with([[-5, 10, 20, 20]])
    write_images(tmp_path, tree)
    split = SplitConfig(annotations=str(write(tmp_path, tree)), images=str(tmp_path))
    assert open_dataset(DataConfig(train=split, invalid_boxes="clip"), "train", same_size()).checked.clipped == 1
    with pytest.raises(DataError):
        open_dataset(DataConfig(train=split), "train", same_size())


# --- flat arrays ------------------------------------------------------------------------------------------------------


class _WithoutTensors(pickle.Pickler):
    """Pickles everything but tensors: what a forked worker would copy by touching it."""

    def persistent_id(self, value: object) -> str | None:
        return "tensor" if isinstance(value, torch.Tensor) else None


def large_dataset(folder: Path, num_images: int) -> CocoDataset:
    images = [{"id": row, "file_name": f"{row}.png", "height": 50, "width": 100} for row in range(num_images)]
    boxes = [
        {"id": 3 * row + place, "image_id": row, "category_id": 5, "bbox": [1, 2, 3 + place, 4], "area": 9}
        for row in range(num_images)
        for place in range(3)
    ]
    tree = make_tree() | {"images": images, "annotations": boxes}
    return CocoDataset(read_annotations(write(folder, tree)), folder, same_size(), "clip")


def test_nothing_but_tensors_grows_with_the_data(tmp_path: Path) -> None:
    lengths = []
    for num_images in (2, 2000):
        buffer = io.BytesIO()
        _WithoutTensors(buffer).dump(large_dataset(tmp_path, num_images))
        lengths.append(buffer.tell())
    assert lengths[0] == lengths[1]


def tensors_of(dataset: CocoDataset) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    parts = list(vars(dataset).values())
    while parts:
        part = parts.pop()
        if isinstance(part, torch.Tensor):
            found.append(part)
        elif dataclasses.is_dataclass(part):
            parts += [getattr(part, field.name) for field in dataclasses.fields(part)]
    return found


def test_spawned_workers_share_the_arrays(tmp_path: Path) -> None:
    dataset = large_dataset(tmp_path, 2000)
    tensors = tensors_of(dataset)
    # 7 columns, codes, kind and texts of two sorts of ids, the names; the boxes by the policy, and two masks of them.
    assert len(tensors) >= 7 + 2 * 4 + 2 + 3
    payload = bytes(ForkingPickler.dumps(dataset))
    assert len(payload) < 20_000  # the boxes alone are 2000 · 3 · 4 · 8 bytes
    assert all(tensor.is_shared() for tensor in tensors if len(tensor))
    copy = pickle.loads(payload)
    copy.checked.boxes[5] = 77
    assert dataset.checked.boxes[5].tolist() == [77] * 4
    assert copy.annotations.file_name(1999) == "1999.png"


# --- the frame and the depth that the config says ---------------------------------------------------------------------


def test_boxes_lie_right_on_images_that_exif_turns(shared: Path) -> None:
    """Boxes drawn upright on images that EXIF turns by 180°, or by 90° where they are square: only the config knows."""
    case = shared / "cases/exif_180"
    split = SplitConfig(annotations=str(case / "a.json"), images=str(case / "img"))
    for exif, is_right in (("auto", False), ("stored", False), ("upright", True)):
        data = open_dataset(DataConfig(train=split, exif=exif), "train", same_size())  # type: ignore[arg-type]
        for index in range(len(data)):
            sample = data[0, index]
            assert isinstance(sample, Sample)
            left, top, right, bottom = sample.boxes[0].int().tolist()
            red, green, _ = (
                sample.image[:, top + 2 : bottom - 2, left + 2 : right - 2].float().mean(dim=(1, 2)).tolist()
            )
            assert (red > 200 and green < 60) == is_right
        warnings = data.warnings()
        assert len(warnings) == (exif == "auto")
        assert all("EXIF turns or mirrors 2 of 2 images" in line for line in warnings)
        assert len(data.select([1]).warnings()) == (exif == "auto")


def test_what_a_run_reads_its_predictor_reads(tmp_path: Path) -> None:
    """``data.exif`` and ``data.max_value`` are in the checkpoint's config: files, arrays, both tasks."""
    pixels = np.random.default_rng(0).integers(0, 4096, (20, 30, 3), dtype=np.uint16)
    folder = tmp_path / "data" / "a"
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "deep.png"), pixels[:, :, ::-1])
    eight, exif = Image.fromarray((pixels >> 4).astype(np.uint8)), Image.Exif()
    exif[0x0112] = 3
    eight.save(folder / "turned.png", exif=exif)
    tree = {
        "images": [
            {"id": number, "file_name": name, "width": 30, "height": 20}
            for number, name in enumerate(["deep.png", "turned.png"])
        ],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 9, 9]}],
        "categories": [{"id": 1, "name": "a"}],
    }
    overrides = ["data.exif=stored", "data.max_value=4095", f"data.train.images={tmp_path}/data"]
    expected = [np.rint(pixels * (65535 / 4095)).astype(np.uint16), np.asarray(eight)]
    for name, more in (
        ("quickstart.yaml", [f"data.train.images={folder}", f"data.train.annotations={write(tmp_path, tree)}"]),
        ("classify_quickstart.yaml", []),
    ):
        config = load_config(name, [*overrides, *more, "model.backbone.name=resnet10"])
        task = get_task(config)
        data = get_views(config.task).untransformed(task.open_split(config, "train"))
        assert data.warnings() == []
        for index, image in enumerate(expected):
            sample = data[0, index]
            assert np.array_equal(sample.image.permute(1, 2, 0).numpy(), image)
            predictor = Predictor(build_model(config.model, 1), config, data.categories, torch.device("cpu"))
            seen = []
            predictor.predict_samples = lambda samples, score=None, seen=seen: seen.extend(samples) or []  # type: ignore
            path = data.file(index)
            predictor.predict([path, Image.open(path) if index else pixels])
            for found in seen:
                assert torch.equal(found.image, predictor.sample(image).image)
