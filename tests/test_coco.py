"""COCO files: what is read, and how it is said; what is refused is in test_coco_refused.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_files import Tree, error_of, make_tree, write
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask
from pycocotools.coco import COCO

from detector.data.formats.reading import read_annotations
from detector.structures import Category


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
