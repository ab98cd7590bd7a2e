"""Labels for other programs: what is written is read back here by hand, by globox, and by the standard library."""

from __future__ import annotations

import csv
import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from labelled import CATEGORIES, Boxes, assert_equal, labels, table
from PIL import Image

from detector.data.formats.labels import LabelledImage, Labels, describe_lost
from detector.data.formats.writing import WRITERS, check_names
from detector.errors import DataError, StorageError
from detector.structures import Category

# --- readers of each format, without any of the package's code --------------------------------------------------------


def read_coco(path: Path, images: list[LabelledImage]) -> Boxes:
    tree = json.loads(path.read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in tree["categories"]}
    found: dict[object, list[tuple[str, list[float]]]] = {image["id"]: [] for image in tree["images"]}
    for row in tree["annotations"]:
        x, y, w, h = row["bbox"]
        found[row["image_id"]].append((names[row["category_id"]], [x, y, x + w, y + h]))
        assert row["area"] == pytest.approx(w * h, rel=1e-4)
    assert [row["id"] for row in tree["annotations"]] == list(range(1, len(tree["annotations"]) + 1))
    assert [(row["width"], row["height"]) for row in tree["images"]] == [(own.width, own.height) for own in images]
    return {image["file_name"]: found[image["id"]] for image in tree["images"]}


def read_yolo(path: Path, images: list[LabelledImage]) -> Boxes:
    names = yaml.safe_load((path / "data.yaml").read_text(encoding="utf-8"))["names"]
    found = {}
    for image in images:
        rows = [
            line.split() for line in (path / "labels" / image.name.replace(".jpg", ".txt")).read_text().splitlines()
        ]
        found[image.name] = []
        for label, *numbers in rows:
            cx, cy, w, h = (
                float(number) * side for number, side in zip(numbers[:4], [image.width, image.height] * 2, strict=True)
            )
            found[image.name].append((names[int(label)], [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]))
            assert all(0 <= float(number) <= 1 for number in numbers)
        if image.scores is not None:
            assert [float(row[5]) for row in rows] == image.scores.tolist()
    return found


def read_voc(path: Path, images: list[LabelledImage]) -> Boxes:
    listed = (path / "ImageSets/Main/default.txt").read_text(encoding="utf-8").splitlines()
    assert listed == [image.name.removesuffix(".jpg") for image in images]
    found = {}
    for name in listed:
        root = ET.parse(path / "Annotations" / f"{name}.xml").getroot()
        corners = [
            (one.findtext("name") or "", [float(side.text or "") for side in one.iterfind("bndbox/*")])
            for one in root.iterfind("object")
        ]
        assert all(min(box) >= 1 for _, box in corners)  # so that a reader sees that they count from 1
        found[root.findtext("filename") or ""] = [(own, [x1 - 1, y1 - 1, x2, y2]) for own, (x1, y1, x2, y2) in corners]
    return found


def read_csv(path: Path, images: list[LabelledImage]) -> Boxes:
    found: Boxes = {}
    sizes = {own.name: (str(own.width), str(own.height)) for own in images}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            assert (row["width"], row["height"]) == sizes[row["image_path"]]
            own = found.setdefault(row["image_path"], [])
            if row["label"]:
                own.append((row["label"], [float(row[key]) for key in ("xmin", "ymin", "xmax", "ymax")]))
    return found


def read_cvat(path: Path, images: list[LabelledImage]) -> Boxes:
    root = ET.parse(path).getroot()
    assert [name.text for name in root.iterfind("meta/task/labels/label/name")] == [own.name for own in CATEGORIES]
    sizes = [(int(image.attrib["width"]), int(image.attrib["height"])) for image in root.iterfind("image")]
    assert sizes == [(own.width, own.height) for own in images]
    boxes = list(root.iterfind("image/box"))
    is_scored = images[0].scores is not None
    assert {box.attrib["source"] for box in boxes} == {"auto" if is_scored else "manual"}
    if is_scored:
        scores = [float(box.findtext("attribute[@name='score']") or "") for box in boxes]
        assert scores == [score for image in images for score in image.scores.tolist()]  # type: ignore[union-attr]
    keys = ("xtl", "ytl", "xbr", "ybr")
    return {
        image.attrib["name"]: [(box.attrib["label"], [float(box.attrib[key]) for key in keys]) for box in image]
        for image in root.iterfind("image")
    }


def read_labelstudio(path: Path, images: list[LabelledImage]) -> Boxes:
    found: Boxes = {}
    for task, image in zip(json.loads(path.read_text(encoding="utf-8")), images, strict=True):
        name = unquote(task["data"]["image"].removeprefix("/data/local-files/?d="))
        (own,) = task["annotations" if image.scores is None else "predictions"]
        if image.scores is not None:
            assert [result["score"] for result in own["result"]] == image.scores.tolist()
            assert own["model_version"] == "detector 1a2b"
            assert math.isfinite(own["score"])
        found[name] = []
        for result in own["result"]:
            assert (result["type"], result["value"]["rotation"]) == ("rectanglelabels", 0)
            assert (result["original_width"], result["original_height"]) == (image.width, image.height)
            x, y, w, h = (result["value"][key] / 100 for key in ("x", "y", "width", "height"))
            sides = [x * image.width, y * image.height, (x + w) * image.width, (y + h) * image.height]
            found[name].append((result["value"]["rectanglelabels"][0], sides))
    return found


READERS: dict[str, Callable[[Path, list[LabelledImage]], Boxes]] = {
    "coco": read_coco,
    "yolo": read_yolo,
    "voc": read_voc,
    "csv": read_csv,
    "cvat": read_cvat,
    "labelstudio": read_labelstudio,
}


@pytest.mark.parametrize("is_scored", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_is_what_was_given(name: str, is_scored: bool, tmp_path: Path) -> None:
    for seed in range(4):
        images = table(seed, is_scored)
        lost = WRITERS[name].write(labels(images), tmp_path / str(seed))
        assert_equal(READERS[name](tmp_path / str(seed), images), images)
        boxes = sum(len(image.boxes) for image in images)
        held = {"voc": f"{boxes} scores, 1 class without boxes" if is_scored else "1 class without boxes"}
        assert describe_lost(lost) == (held | {"csv": "1 class without boxes"}).get(name, "")


@pytest.mark.parametrize("name", ["coco", "yolo", "voc", "cvat"])
def test_another_package_reads_the_same(name: str, tmp_path: Path) -> None:
    """globox, whose VOC corners are as in the file and whose YOLO sizes come from the images."""
    globox = pytest.importorskip("globox", reason="globox, an independent reader of these formats, is not installed")
    plain = [
        own._replace(id=number, name=f"{number}.png") for number, own in enumerate(table(5, largest=2000), start=1)
    ]
    out = tmp_path / ("out.json" if name == "coco" else "out.xml" if name == "cvat" else "out")
    categories = [own._replace(id=number) for number, own in enumerate(CATEGORIES)]  # globox has integers only
    WRITERS[name].write(Labels(categories, lambda: iter(plain)), out)
    if name == "yolo":
        (tmp_path / "images").mkdir()
        for own in plain:
            Image.new("1", (own.width, own.height)).save(tmp_path / "images" / own.name)
        found = globox.AnnotationSet.from_yolo_v5(
            out / "labels", image_folder=tmp_path / "images", image_extension=".png"
        )
    elif name == "voc":
        found = globox.AnnotationSet.from_pascal_voc(out / "Annotations")
    else:
        found = {"coco": globox.AnnotationSet.from_coco, "cvat": globox.AnnotationSet.from_cvat}[name](out)
    names = {str(label): category.name for label, category in enumerate(CATEGORIES)} if name == "yolo" else {}
    first = 1 if name == "voc" else 0
    boxes = {
        own.image_id: [
            (names.get(box.label, box.label), [box.xmin - first, box.ymin - first, box.xmax, box.ymax])
            for box in own.boxes
        ]
        for own in found
    }
    assert_equal({own.name: boxes[own.name] for own in plain}, plain)


# --- what a format cannot hold ----------------------------------------------------------------------------------------


def test_what_a_format_cannot_hold_is_counted(tmp_path: Path) -> None:
    image = LabelledImage(
        id=1,
        name="a.jpg",
        width=100,
        height=50,
        boxes=np.array([[10.0, 10, 20, 20], [-5, 0, 50, 50], [100, 0, 101, 9], [30, 30, 40, 40]]),
        labels=np.array([0, 1, 2, 3]),
        is_ignored=np.array([False, False, False, True]),
        areas=np.array([60.0, 55 * 50, 9, 100]),
    )
    lost = {name: describe_lost(writer.write(labels([image]), tmp_path / name)) for name, writer in WRITERS.items()}
    area, crowd = "1 area other than the box's", "1 ignore region"
    assert lost == {
        "coco": "",
        "yolo": f"{area}, 1 box clipped to the image, 1 box without area in the image, {crowd}",
        "voc": f"{area}, 1 box clipped to the image, 1 box without area in the image, 1 class without boxes",
        "csv": f"{area}, {crowd}, 1 class without boxes",
        "cvat": f"{area}, {crowd}",
        "labelstudio": f"{area}, {crowd}",
    }
    # The box from -5 to 50 begins at 0: its centre is 25 / 100, its width 50 / 100.
    assert (tmp_path / "yolo/labels/a.txt").read_text().splitlines() == [
        "0 0.150000 0.300000 0.100000 0.200000",
        "1 0.250000 0.500000 0.500000 1.000000",
    ]
    assert [own["area"] for own in json.loads((tmp_path / "coco").read_text())["annotations"]] == [60, 2750, 9, 100]
    assert [own["iscrowd"] for own in json.loads((tmp_path / "coco").read_text())["annotations"]] == [0, 0, 0, 1]
    difficult = ET.parse(tmp_path / "voc/Annotations/a.xml").iterfind("object/difficult")
    assert [own.text for own in difficult] == ["0", "0", "1"]
    # A corner under 1, as from -5, would say that all count from 0.
    assert [own.text for own in ET.parse(tmp_path / "voc/Annotations/a.xml").iterfind("object/bndbox/xmin")][1] == "1"


def test_a_box_that_is_off_by_rounding_is_not_counted_as_clipped(tmp_path: Path) -> None:
    """YOLO's six digits put the corner of a box at the image's edge up to 0.001 px outside."""
    boxes = np.array([[90.0, 40, 100.0002, 50.0001], [90, 40, 100.02, 50]])
    nobody = np.zeros(2, dtype=bool)
    image = LabelledImage(1, "a.jpg", 100, 50, boxes=boxes, labels=np.array([0, 0]), is_ignored=nobody)
    lost = WRITERS["yolo"].write(labels([image]), tmp_path / "yolo")
    assert describe_lost(lost) == "1 box clipped to the image"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["a/1.jpg", "b/1.jpg", "a/1.png"],
            r"source: a/1\.jpg and a/1\.png would share the labels .*a/1\.(txt|xml); rename",
        ),
        (["../1.jpg"], r"source: the image \.\./1\.jpg leads out of the folder"),
        (["/etc/1.jpg"], r"source: the image /etc/1\.jpg leads out of the folder"),
    ],
)
def test_names_that_files_of_labels_cannot_have(names: list[str], said: str) -> None:
    for writer in WRITERS.values():
        if writer.label_file is None:
            check_names(writer, names, "source")
        else:
            with pytest.raises(DataError, match=said):
                check_names(writer, names, "source")


@pytest.mark.parametrize("name", WRITERS)
def test_what_cannot_be_written_whole_is_not_there(name: str, tmp_path: Path) -> None:
    """The disk is full after ten images: what was there before stays."""
    images = table(0)

    def read():  # type: ignore[no-untyped-def]
        yield from images[:10]
        raise OSError(28, "No space left on device")

    WRITERS[name].write(labels(images), tmp_path / "out")
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    with pytest.raises(StorageError, match="No space left"):
        WRITERS[name].write(Labels(CATEGORIES, read), tmp_path / "out")
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_names_of_any_kind_are_written(tmp_path: Path) -> None:
    """Bytes that are not UTF-8, and characters that XML cannot have."""
    name = "caf\udce9 \x01\n.jpg"
    image = LabelledImage(1, name, 20, 20, np.array([[1.0, 2, 3, 4]]), np.array([0]), np.array([0.5]))
    odd = [Category(1, 'a\x02\n,"b')]
    for key, writer in WRITERS.items():
        writer.write(Labels(odd, lambda: iter([image])), tmp_path / key)
    assert json.loads((tmp_path / "coco").read_text(encoding="utf-8"))["images"][0]["file_name"] == name
    for path in (tmp_path / "cvat", next((tmp_path / "voc/Annotations").iterdir())):
        assert "a�" in ET.tostring(ET.parse(path).getroot(), encoding="unicode")
    assert list((tmp_path / "yolo/labels").iterdir()) == [tmp_path / "yolo/labels" / name.replace(".jpg", ".txt")]
    assert yaml.safe_load((tmp_path / "yolo/data.yaml").read_text(encoding="utf-8"))["names"] == {0: odd[0].name}
    with (tmp_path / "csv").open(newline="", encoding="utf-8") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [odd[0].name]


@pytest.mark.parametrize(
    "names",
    [
        ["1.jpg", "a/2.jpg"],
        ["images/1.jpg", "images/a/2.jpg"],
        ["my_images/1.jpg"],
        ["train/images/1.jpg", "valid/images/images/1.jpg"],
    ],
)
def test_yolo_finds_the_labels_of_each_image(names: list[str], tmp_path: Path) -> None:
    """By its rule: the last ``images`` of a path becomes ``labels``; images are linked to, and only those listed."""
    made = [table(0)[0]._replace(name=name, labels=table(0)[0].labels * 0 + index) for index, name in enumerate(names)]
    for name in (*names, "images/other.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
    WRITERS["yolo"].write(Labels(CATEGORIES, lambda: iter(made), images=tmp_path / "in"), tmp_path / "out")
    content = yaml.safe_load((tmp_path / "out/data.yaml").read_text(encoding="utf-8"))
    listed = (tmp_path / "out" / content["train"]).read_text().splitlines()
    assert [(tmp_path / "out" / file).read_text() for file in listed] == names
    for index, file in enumerate(listed):
        before, after = str(tmp_path / "out" / file).rsplit("/images/", 1)
        assert Path(f"{before}/labels/{after}").with_suffix(".txt").read_text().startswith(f"{index} ")


def test_yolo_cannot_link_images_in_both_places(tmp_path: Path) -> None:
    made = [table(0)[0]._replace(name=name) for name in ("1.jpg", "images/2.jpg")]
    with pytest.raises(DataError, match="has images both in its folder images and outside"):
        WRITERS["yolo"].write(Labels(CATEGORIES, lambda: iter(made), images=tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()
