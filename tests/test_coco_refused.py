"""COCO files: what is refused, and how it is said."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from coco_files import Tree, error_of, make_tree, write
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.data.formats.reading import read_annotations
from detector.errors import DataError
from detector.structures import Category


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
