"""The doctor's findings: each fault planted once in a clean set, and known faults of real sets."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from detector.analysis.doctor import files
from detector.analysis.doctor.annotations import duplicate_boxes
from detector.analysis.doctor.duplicates import NEAR, find_nearest
from detector.analysis.doctor.examination import Report, Settings, examine
from detector.analysis.doctor.files import look_at
from detector.analysis.doctor.findings import CHECKS, SEVERITIES, Finding
from detector.analysis.doctor.reading import read_boxes, read_labelled
from detector.analysis.doctor.table import as_object, format_report
from detector.config.schema import DataConfig, ResizeConfig, SplitConfig
from detector.data.detection import apply_box_policy, open_dataset
from detector.data.formats.building import Source
from detector.data.formats.reading import read_annotations
from detector.data.transforms.boxes import Transform
from detector.errors import DataError


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at in this process: starting others takes longer; test_doctor_command.py starts them."""
    pool = SimpleNamespace(map=map, shutdown=lambda **_: None)
    monkeypatch.setattr(files, "ProcessPoolExecutor", lambda *_, **__: pool)


WIDTH, HEIGHT = 96, 64
BOXES = [[4, 4, 30, 20], [50, 6, 40, 24], [6, 34, 24, 26], [46, 36, 44, 22]]
Tree = dict[str, Any]


def texture(seed: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """Blotches of colour that a JPEG preserves, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six train and three val images with two objects of either class each; nothing is wrong with them."""
    folder = tmp_path_factory.mktemp("clean")
    for split, count, first in (("train", 6, 0), ("val", 3, 100)):
        (folder / split).mkdir()
        tree: Tree = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        }
        for number in range(count):
            name = f"{number}.jpg"
            texture(first + number).save(folder / split / name, quality=95)
            tree["images"].append({"id": 10 + number, "file_name": name, "width": WIDTH, "height": HEIGHT})
            for place, box in enumerate(BOXES):
                tree["annotations"].append(
                    {
                        "id": 4 * number + place + 1,
                        "image_id": 10 + number,
                        "category_id": 1 + place % 2,
                        "bbox": [float(side) for side in box],
                        "area": float(box[2] * box[3]),
                        "iscrowd": 0,
                    }
                )
        (folder / f"{split}.json").write_text(json.dumps(tree))
    return folder


@pytest.fixture
def data(clean: Path, tmp_path: Path) -> Path:
    """A copy of the clean set, to be spoilt."""
    return Path(shutil.copytree(clean, tmp_path / "data"))


def edit(path: Path, change: Callable[[Tree], object]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def examine_train(folder: Path, settings: Settings | None = None, is_quick: bool = False) -> Report:
    return examine(
        [read_boxes("train", Source(folder / "train.json", folder / "train"))], settings or Settings(), is_quick
    )


def examine_both(folder: Path, is_quick: bool = False) -> Report:
    splits = [read_boxes(name, Source(folder / f"{name}.json", folder / name)) for name in ("train", "val")]
    return examine(splits, Settings(), is_quick)


def counts(report: Report) -> dict[str, int]:
    return {finding.check: finding.count for finding in report.findings}


def finding(report: Report, check: str) -> Finding:
    return next(one for one in report.findings if one.check == check)


def save(image: Image.Image, path: Path, kind: str = "JPEG", orientation: int | None = None, quality: int = 95) -> None:
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    buffer = BytesIO()
    image.save(buffer, kind, exif=exif, quality=quality)
    path.write_bytes(buffer.getvalue())


def encode(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels.astype(np.uint16))[1].tobytes()


def cut(path: Path, fraction: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])


def set_boxes(*boxes: list[Any]) -> Callable[[Tree], None]:
    """The first boxes of the file become these."""

    def change(tree: Tree) -> None:
        for row, box in zip(tree["annotations"], boxes, strict=False):
            row["bbox"] = box
            if len(box) == 4 and all(type(side) in (int, float) and 0 < side < 1e9 for side in box[2:]):
                row["area"] = box[2] * box[3]

    return change


def set_first(**values: object) -> Callable[[Tree], None]:
    return lambda tree: tree["annotations"][0].update(values)


def add(key: str, row: object) -> Callable[[Tree], None]:
    return lambda tree: tree[key].append(row)


def renumber_dogs(tree: Tree) -> None:
    tree["categories"][1]["id"] = 5
    for row in tree["annotations"]:
        row["category_id"] = {1: 1, 2: 5}[row["category_id"]]


def list_twice(tree: Tree) -> None:
    tree["images"].append({**tree["images"][0], "id": 99})
    tree["annotations"][0]["image_id"] = 99


def three_more_cats(tree: Tree) -> None:
    for row in [row for row in tree["annotations"] if row["category_id"] == 2][:3]:
        row["category_id"] = 1


# What is done to the images' folder, or to the tree of the file; and all that must be found.
IN_FILES: dict[str, tuple[Callable[[Path], object], dict[str, int]]] = {
    "gone": (lambda folder: (folder / "0.jpg").unlink(), {"file-missing": 1}),
    "text": (lambda folder: (folder / "0.jpg").write_text("no image"), {"file-unreadable": 1}),
    "empty": (lambda folder: (folder / "0.jpg").write_bytes(b""), {"file-unreadable": 1}),
    "a folder": (lambda folder: ((folder / "0.jpg").unlink(), (folder / "0.jpg").mkdir()), {"file-unreadable": 1}),
    "cut off": (lambda folder: cut(folder / "0.jpg", 0.6), {"file-damaged": 1}),
    "end missing": (lambda folder: cut(folder / "0.jpg", 0.995), {"file-damaged": 1}),
    "PNG": (lambda folder: save(texture(0), folder / "0.jpg", "PNG"), {"file-extension": 1}),
    "gray": (lambda folder: save(texture(0).convert("L"), folder / "0.jpg"), {"file-mode": 1}),
    "smaller": (lambda folder: save(texture(0, (48, 32)), folder / "0.jpg"), {"size-differs": 1}),
    "upside down": (lambda folder: save(texture(0), folder / "0.jpg", orientation=3), {"exif-ambiguous": 1}),
    "quarter turn": (lambda folder: save(texture(0), folder / "0.jpg", orientation=6), {"exif-turned": 1}),
    "12 bits": (
        lambda folder: (folder / "0.jpg").write_bytes(encode(np.asarray(texture(0)).astype(np.uint16) * 16)),
        {"file-extension": 1, "depth-range": 1},
    ),
    "12 bits with alpha": (
        lambda folder: (folder / "0.jpg").write_bytes(
            encode(np.dstack([np.asarray(texture(0)).astype(np.uint16) * 16, np.full((HEIGHT, WIDTH), 65535)]))
        ),
        {"file-extension": 1, "file-mode": 1, "depth-range": 1},
    ),
    "16 bits": (
        lambda folder: (folder / "0.jpg").write_bytes(encode(np.asarray(texture(0)).astype(np.uint16) * 257)),
        {"file-extension": 1},
    ),
    "upright": (lambda folder: save(texture(0), folder / "0.jpg", orientation=1), {}),
    "dangling": (
        lambda folder: ((folder / "0.jpg").unlink(), (folder / "0.jpg").symlink_to("nowhere.jpg")),
        {"file-missing": 1},
    ),
    "linked": (
        lambda folder: (folder / "0.jpg").rename(folder.parent / "0.jpg") and (folder / "0.jpg").symlink_to("../0.jpg"),
        {},
    ),
    "of fractions": (
        lambda folder: Image.new("F", (WIDTH, HEIGHT)).save(folder / "0.jpg", "TIFF"),
        {"file-damaged": 1, "file-extension": 1, "file-mode": 1},
    ),
    "extra": (lambda folder: save(texture(77), folder / "extra.jpg"), {"file-unlisted": 1}),
    "copied": (lambda folder: shutil.copy(folder / "0.jpg", folder / "1.jpg"), {"images-identical": 1}),
    "encoded again": (lambda folder: save(texture(0), folder / "1.jpg", quality=60), {"images-near": 1}),
    "halved": (
        lambda folder: save(texture(0).resize((48, 32)), folder / "1.jpg"),
        {"images-near": 1, "size-differs": 1},
    ),
}
IN_TREE: dict[str, tuple[Callable[[Tree], object], dict[str, int]]] = {
    "no categories": (
        lambda tree: tree.pop("categories"),
        {"list-missing": 1, "category-dangling": 24, "images-empty": 6, "objects-none": 1},
    ),
    "image without a name": (add("images", {"id": 99}), {"image-malformed": 1}),
    "image is a number": (add("images", 7), {"image-malformed": 1}),
    "image id is duplicated": (
        lambda tree: tree["images"][1].update(id=10),
        # The second file loses its annotations: their id leads nowhere now.
        {"image-id-duplicate": 1, "image-dangling": 4, "images-empty": 1},
    ),
    "file listed twice": (list_twice, {"image-listed-twice": 1}),
    "no width": (lambda tree: tree["images"][0].pop("width"), {"size-missing": 1}),
    "width is text": (lambda tree: tree["images"][0].update(width="96"), {"read-otherwise": 1}),
    "width is a word": (lambda tree: tree["images"][0].update(width="wide"), {"size-malformed": 1}),
    "id is text": (set_first(id="1"), {"read-otherwise": 1}),
    "category is text": (set_first(category_id="1"), {"read-otherwise": 1}),
    "category is a list": (set_first(category_id=[1], image_id={}), {"annotation-malformed": 1}),
    "crowd of 2": (set_first(iscrowd=2), {"annotation-malformed": 1}),
    "no area": (set_first(area=None), {"read-otherwise": 1}),
    "area of 0": (set_first(area=0), {"area-odd": 1}),
    "area of the image": (set_first(area=WIDTH * HEIGHT), {"area-odd": 1}),
    "area of the touched pixels": (set_first(area=31 * 21), {}),
    "annotation is null": (add("annotations", None), {"annotation-malformed": 1}),
    "annotation without anything": (add("annotations", {}), {"annotation-malformed": 1}),
    "annotation id is duplicated": (set_first(id=2), {"annotation-id-duplicate": 1}),
    "unknown image": (set_first(image_id=999), {"image-dangling": 1}),
    "unknown category": (set_first(category_id=999), {"category-dangling": 1}),
    "category without a name": (add("categories", {"id": 9}), {"category-malformed": 1}),
    "category id is duplicated": (
        add("categories", {"id": 2, "name": "cow"}),
        {"category-id-duplicate": 1, "class-empty": 1},
    ),
    "same name": (add("categories", {"id": 3, "name": "Cat "}), {"category-name-similar": 1, "class-empty": 1}),
    "the same name": (lambda tree: tree["categories"][0].update(name="dog"), {"category-name-duplicate": 1}),
    "the same name, unused": (add("categories", {"id": 3, "name": "cat"}), {}),
    "gap": (renumber_dogs, {"category-id-gap": 1}),
    "NaN": (set_boxes([float("nan"), 4, 30, 20], [50, 6, float("inf"), 24]), {"box-not-finite": 2}),
    "three numbers": (set_boxes([4, 4, 30]), {"box-not-finite": 1}),
    "text in a box": (set_first(bbox=["4", 4, "30.0", 20]), {"read-otherwise": 1}),
    "no box": (lambda tree: tree["annotations"][0].pop("bbox"), {"box-not-finite": 1}),
    "box in the polygon": (
        lambda tree: (tree["annotations"][0].pop("bbox"), set_first(segmentation=[[1, 1, 9, 1, 9, 9]], area=32)(tree)),
        {"read-otherwise": 1},
    ),
    "no extent": (set_boxes([4, 4, 0, 20], [50, 6, 40, -3]), {"box-no-area": 2}),
    # 96 wide: 93.2 + 4 reaches 1.2 px outside, 93 + 4 one pixel, which is rounding.
    "outside": (set_boxes([93.2, 4, 4, 20], [93, 6, 4, 24], [-1, 34, 24, 26], [46, -1.5, 44, 22]), {"box-outside": 2}),
    "twice": (lambda tree: add("annotations", {**tree["annotations"][0], "id": 99})(tree), {"box-duplicate": 1}),
    "nearly twice": (
        # 30 × 20 moved by 0.5: IoU = 29.5 · 20 / (600 + 600 - 590) = 0.967.
        lambda tree: add("annotations", {**tree["annotations"][0], "id": 99, "bbox": [4.5, 4, 30, 20]})(tree),
        {"box-duplicate": 1},
    ),
    # Moved by 1: 29 · 20 / (1200 - 580) = 0.935.
    "beside": (lambda tree: add("annotations", {**tree["annotations"][0], "id": 99, "bbox": [5, 4, 30, 20]})(tree), {}),
    "of another class": (
        lambda tree: add("annotations", {**tree["annotations"][0], "id": 99, "category_id": 2})(tree),
        {},
    ),
    "points": (set_boxes([5, 5, 1, 1], [50, 6, 40, 1.9]), {"box-tiny": 2}),
    "whole image": (set_boxes([0, 0, WIDTH, HEIGHT]), {"box-whole-image": 1}),
    "long": (set_boxes([0, 5, 41, 4], [50, 6, 40, 4]), {"box-extreme-ratio": 1}),  # 10.25 : 1, and 10 : 1
    "crowd": (set_first(iscrowd=1), {"crowd": 1}),
    "ignore": (set_first(ignore=1), {"crowd": 1}),
    "no images": (
        lambda tree: tree.update(images=[], annotations=[]),
        {"list-missing": 1, "class-empty": 2, "file-unlisted": 6, "objects-none": 1},
    ),
    "unused class": (add("categories", {"id": 3, "name": "cow"}), {"class-empty": 1}),
    "rare class": (three_more_cats, {"class-rare": 1}),
    "no objects": (
        lambda tree: tree.update(annotations=[{**tree["annotations"][0], "iscrowd": 1}]),
        {"objects-none": 1, "images-empty": 5, "images-ignored": 1, "class-empty": 2, "crowd": 1},
    ),
    "backslash": (lambda tree: tree["images"][0].update(file_name=".\\0.JPG"), {"file-missing": 1}),
    "leads out": (lambda tree: tree["images"][0].update(file_name="../0.jpg"), {"file-outside": 1}),
    "empty image": (lambda tree: tree.update(annotations=tree["annotations"][4:]), {"images-empty": 1}),
    "strange extras": (lambda tree: tree.update(info=None, licenses=[{"bbox": 1, "image_id": 1}], x=[[1]]), {}),
}


@pytest.mark.parametrize("is_quick", [False, True])
def test_a_clean_set_has_no_findings(clean: Path, is_quick: bool) -> None:
    report = examine_both(clean, is_quick)
    assert report.findings == []
    assert report.verdict == "nothing found"
    assert [(own.images, own.empty, own.objects) for own in report.sets] == [(6, 0, 24), (3, 0, 12)]
    assert report.sets[0].classes == [("cat", 12, 6), ("dog", 12, 6)]


@pytest.mark.parametrize("fault", IN_FILES)
def test_a_fault_of_the_files_is_found_once(data: Path, fault: str) -> None:
    plant, expected = IN_FILES[fault]
    plant(data / "train")
    assert counts(examine_train(data)) == expected
    of_pixels = {"images-identical", "images-near", "file-damaged", "depth-range"}
    assert counts(examine_train(data, is_quick=True)) == {key: expected[key] for key in expected.keys() - of_pixels}


@pytest.mark.parametrize("fault", IN_TREE)
def test_a_fault_of_the_annotations_is_found_once(data: Path, fault: str) -> None:
    plant, expected = IN_TREE[fault]
    edit(data / "train.json", plant)
    report = examine_train(data, is_quick=True)
    assert counts(report) == expected
    json.loads(json.dumps(as_object(report), allow_nan=False))
    assert format_report(report)


@pytest.mark.parametrize("fault", IN_TREE)
def test_training_refuses_what_the_doctor_calls_an_error(data: Path, fault: str) -> None:
    plant, _ = IN_TREE[fault]
    edit(data / "train.json", plant)
    is_wrong = examine_train(data, is_quick=True).count("error") > 0
    split = SplitConfig(annotations=str(data / "train.json"), images=str(data / "train"))
    with pytest.raises(DataError) if is_wrong else nullcontext():
        open_dataset(DataConfig(train=split), "train", Transform(ResizeConfig()))


def test_a_missing_size_is_the_files_own_unless_exif_turns_it(data: Path) -> None:
    edit(data / "train.json", lambda tree: tree["images"][0].pop("width"))
    split = SplitConfig(annotations=str(data / "train.json"), images=str(data / "train"))
    dataset = open_dataset(DataConfig(train=split), "train", Transform(ResizeConfig()))
    assert (int(dataset.annotations.heights[0]), int(dataset.annotations.widths[0])) == (HEIGHT, WIDTH)
    assert "read 1 image without width and height" in dataset.summary()
    # A box that does not fit that size is as wrong as in any other image.
    edit(data / "train.json", set_boxes([90, 4, 30, 20]))
    assert counts(examine_train(data)) == {"size-missing": 1, "box-outside": 1}
    with pytest.raises(DataError, match="reaches outside"):
        open_dataset(DataConfig(train=split), "train", Transform(ResizeConfig()))
    save(texture(0), data / "train" / "0.jpg", orientation=6)
    assert counts(examine_train(data))["size-unclear"] == 1
    with pytest.raises(DataError, match="EXIF turns the image by a quarter, so 96×64 may not be the frame"):
        open_dataset(DataConfig(train=split), "train", Transform(ResizeConfig()))


def test_a_value_is_shown_as_it_is(data: Path) -> None:
    edit(data / "train.json", set_boxes([5, 5, "x", 40], [5, 5, float("nan"), 40], []))
    report = examine_train(data, is_quick=True)
    assert [example.detail.split(" must")[0] for example in finding(report, "box-not-finite").examples] == [
        "bbox [5, 5, 'x', 40]",
        "bbox [5, 5, nan, 40]",
        "has no bbox, and no segmentation to take it from",
    ]
    said = format_report(report) + json.dumps(as_object(report))
    assert "0.jpg annotation 1: bbox [5, 5, 'x', 40] must be four finite numbers" in said
    assert "nan, nan" not in said


def test_every_check_is_planted_somewhere() -> None:
    planted = {check for _, expected in [*IN_FILES.values(), *IN_TREE.values()] for check in expected}
    elsewhere = {"leak-identical", "leak-near", "label-conflict", "classes-differ", "class-imbalance", "objects-small"}
    elsewhere |= {"images-crowded", "split-impossible", "csv-row", "file-stray", "folder-empty", "class-unlearnt"}
    elsewhere |= {"file-channels", "size-unclear", "class-unknown"}  # the tests below
    elsewhere |= {"row-malformed"}  # of the other formats
    elsewhere |= {"class-small", *(f"mask-{kind}" for kind in ("missing", "unreadable", "size", "index", "colors"))}
    assert planted | elsewhere == set(CHECKS)
    assert {check.severity for check in CHECKS.values()} == set(SEVERITIES)


def test_an_example_says_where(data: Path) -> None:
    edit(data / "train.json", set_boxes([4, 4, 30, 20], [93.5, 6, 4, 24]))
    example = finding(examine_train(data), "box-outside").examples[0]
    assert (example.file, example.annotation, example.box) == ("0.jpg", 2, (93.5, 6.0, 4.0, 24.0))
    assert example.detail == "in an image of 96×64"


@pytest.mark.parametrize("orientation", [6, 8])
def test_a_quarter_turned_image_may_be_annotated_upright(data: Path, orientation: int) -> None:
    save(texture(0), data / "train" / "0.jpg", orientation=orientation)
    edit(data / "train.json", lambda tree: tree["images"][0].update(width=HEIGHT, height=WIDTH))
    found = counts(examine_train(data))
    assert "size-differs" not in found
    assert found["exif-turned"] == 1


def test_a_frame_and_a_depth_given_by_the_config_are_not_in_doubt(data: Path) -> None:
    save(texture(0), data / "train" / "0.jpg", orientation=3)
    save(texture(1), data / "train" / "1.jpg", orientation=6)
    (data / "train" / "2.jpg").write_bytes(encode(np.asarray(texture(2)).astype(np.uint16) * 16))
    split = read_boxes("train", Source(data / "train.json", data / "train"))
    found = {
        exif: counts(examine([split], Settings(exif=exif, max_value=4095), False))
        for exif in ("auto", "stored", "upright")
    }
    assert found["stored"] == {"file-extension": 1}
    assert found["upright"] == {"file-extension": 1, "size-differs": 1}  # the quarter turn, annotated as stored
    assert found["auto"] == {"file-extension": 1, "exif-ambiguous": 1, "exif-turned": 1}


def test_small_objects_and_crowded_images_depend_on_the_config(data: Path) -> None:
    assert counts(examine_train(data, Settings(max_detections=4))) == {}
    assert counts(examine_train(data, Settings(max_detections=3))) == {"images-crowded": 6}
    # 96 × 64 at 32/48 is half: 30 · 20 → sqrt(600) / 2 = 12.2 px; 15.5, 12.5, 15.6: all under 16.
    report = examine_train(data, Settings(ResizeConfig(short=[800, 32], long=1333)))
    assert counts(report) == {"objects-small": 1}
    assert np.sort(report.sets[0].sizes)[[0, 6, 12, 18]] == pytest.approx(np.sqrt([150, 156, 240, 242]), abs=1e-3)
    assert report.sets[0].fraction_under(13) == 0.5


def test_classes_with_under_a_hundredth_are_imbalanced(data: Path) -> None:
    def add_many(tree: Tree) -> None:
        # 12 dogs to 1,212 cats, each of another width so that none is a duplicate.
        for number in range(1200):
            side = 2 + number * 0.05
            tree["annotations"].append(
                {"id": 100 + number, "image_id": 10, "category_id": 1, "bbox": [1, 1, side, 1 + side / 2]}
            )

    edit(data / "train.json", add_many)
    assert counts(examine_train(data, is_quick=True))["class-imbalance"] == 1


# --- two splits -------------------------------------------------------------------------------------------------------


def test_images_of_train_in_val_are_leaks(data: Path) -> None:
    shutil.copy(data / "train/2.jpg", data / "val/0.jpg")
    save(texture(3), data / "val/1.jpg", quality=50)
    report = examine_both(data)
    assert counts(report) == {"leak-identical": 1, "leak-near": 1}
    example = finding(report, "leak-near").examples[0]
    assert (example.split, example.file, example.other_split, example.other) == ("val", "1.jpg", "train", "3.jpg")
    assert report.count("error") == 2


@pytest.mark.parametrize("is_quick", [False, True])
def test_the_same_file_in_both_splits_is_a_leak(data: Path, is_quick: bool) -> None:
    splits = [read_boxes(name, Source(data / "train.json", data / "train")) for name in ("train", "val")]
    assert counts(examine(splits, Settings(), is_quick)) == {"leak-identical": 6}


def test_classes_must_be_the_same_in_both_splits(data: Path) -> None:
    edit(data / "val.json", lambda tree: tree["categories"][1].update(name="hound"))
    report = examine_both(data)
    assert counts(report) == {"classes-differ": 1}
    assert finding(report, "classes-differ").examples[0].detail == "2 'hound' of val is 2 'dog' in train"


def test_val_may_list_fewer_classes_in_any_order(data: Path) -> None:
    edit(data / "train.json", add("categories", {"id": 3, "name": "cow"}))
    edit(data / "val.json", lambda tree: tree["categories"].reverse())
    assert counts(examine_both(data)) == {"class-empty": 1}
    # One that only val lists matters once something is annotated as it.
    edit(data / "val.json", add("categories", {"id": 4, "name": "owl"}))
    assert counts(examine_both(data)) == {"class-empty": 1, "category-id-gap": 1}
    edit(data / "val.json", set_first(category_id=4))
    assert counts(examine_both(data))["classes-differ"] == 1


# --- labelled images ------------------------------------------------------------------------------------------------


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two folders of ten images each."""
    for number in range(20):
        folder = tmp_path / "classes" / ("cat" if number < 10 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        texture(number).save(folder / f"{number}.jpg", quality=95)
    return tmp_path / "classes"


def test_folders_of_classes_are_examined(classes: Path) -> None:
    assert counts(examine([read_labelled("train", None, classes, None, multi_label=False)], Settings(), False)) == {}
    (classes / "cow").mkdir()
    texture(50).save(classes / "stray.jpg")
    shutil.copy(classes / "cat/3.jpg", classes / "dog/13.jpg")
    cut(classes / "dog/14.jpg", 0.5)
    report = examine([read_labelled("train", None, classes, None, multi_label=False)], Settings(), False)
    expected = {"folder-empty": 1, "class-unlearnt": 1, "file-stray": 1}
    expected |= {"label-conflict": 1, "images-identical": 1, "file-damaged": 1}
    assert counts(report) == expected
    assert finding(report, "label-conflict").examples[0].detail == "dog and cat"


def test_a_folder_that_is_not_a_class_of_the_config(classes: Path) -> None:
    report = examine([read_labelled("train", None, classes, ["cat", "hound"], multi_label=False)], Settings(), True)
    assert counts(report) == {"class-unknown": 1, "class-unlearnt": 1}
    with pytest.raises(DataError, match="no class folders"):
        read_labelled("train", None, classes / "cat", None, multi_label=False)


def test_csv_files_are_examined(classes: Path) -> None:
    path = classes.parent / "labels.csv"
    lines = [f"{'cat' if n < 10 else 'dog'}/{n}.jpg,{'cat' if n < 10 else 'dog'}" for n in range(20)]
    path.write_text("path,label\n" + "\n".join([*lines, "cat/0.jpg,dog", ",cat", "cat/99.jpg,cat", "cat/98.jpg,a;b"]))
    report = examine([read_labelled("train", path, classes, None, multi_label=False)], Settings(), True)
    # "a;b" is one label here: a class of one image.
    assert counts(report) == {"csv-row": 2, "file-missing": 2, "class-rare": 1}
    assert [example.detail for example in finding(report, "csv-row").examples] == [
        "line 22: cat/0.jpg is listed twice, first in line 2; keep one row per image",
        "line 23: has no path",
    ]
    assert report.splits[0].notice == f"{path}: the first row is a header: path,label"
    several = read_labelled("train", path, classes, None, multi_label=True)
    assert [category.name for category in several.categories] == ["a", "b", "cat", "dog"]


# --- the parts --------------------------------------------------------------------------------------------------------


def test_reading_agrees_with_the_strict_reader(shapes: Path) -> None:
    path = shapes / "annotations/train.json"
    strict, own = read_annotations(path), read_boxes("train", Source(path, shapes / "images"))
    assert own.files == [strict.file_name(index) for index in range(len(strict))]
    assert own.sizes.tolist() == list(map(list, zip(strict.widths.tolist(), strict.heights.tolist(), strict=True)))
    order = np.argsort(own.image, kind="stable")
    assert own.annotation_ids.select(order).tolist() == strict.annotation_ids.tolist()
    assert own.boxes[order].tolist() == strict.boxes_xywh.tolist()
    assert own.label[order].tolist() == strict.labels.tolist()
    assert own.is_crowd[order].tolist() == strict.is_crowd.tolist()
    assert apply_box_policy(strict, "error").dropped == 0


def test_duplicates_are_those_of_a_comparison_of_all_pairs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    count = 400
    boxes = np.concatenate([rng.integers(0, 6, (count, 2)), rng.integers(38, 42, (count, 2))], axis=1).astype(float)
    boxes += rng.uniform(0, 0.4, boxes.shape)
    rows = [
        {"id": row, "image_id": int(rng.integers(3)), "category_id": int(rng.integers(2)), "bbox": box}
        for row, box in enumerate(boxes.tolist())
    ]
    path = tmp_path / "a.json"
    images = [{"id": number, "file_name": f"{number}.jpg", "width": 100, "height": 100} for number in range(3)]
    categories = [{"id": number, "name": f"c{number}"} for number in range(2)]
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
    split = read_boxes("train", Source(path, tmp_path))
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    shared = (np.minimum(high[:, None], high) - np.maximum(low[:, None], low)).clip(min=0).prod(axis=2)
    area = boxes[:, 2:].prod(axis=1)
    is_same = shared / (area[:, None] + area - shared) > 0.95
    is_same &= (split.image[:, None] == split.image) & (split.label[:, None] == split.label)
    expected = {(a, b) for a, b in np.argwhere(is_same).tolist() if a < b}
    assert len(expected) > 20
    assert {tuple(pair) for pair in duplicate_boxes(split).tolist()} == expected


def test_the_nearest_is_that_of_a_comparison_of_all() -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 256, (300, 16), dtype=np.uint8)
    queries = np.unpackbits(keys[rng.permutation(300)[:120]], axis=1)
    for row, flips in enumerate(rng.integers(0, 30, 120)):
        queries[row, rng.permutation(128)[:flips]] ^= 1
    distance = (queries[:, None] != np.unpackbits(keys, axis=1)).sum(axis=2)
    nearest, own = find_nearest(np.packbits(queries, axis=1), keys)
    is_near = distance.min(axis=1) <= NEAR
    assert 40 < is_near.sum() < 80
    assert own[is_near].tolist() == distance.min(axis=1)[is_near].tolist()
    assert nearest[is_near].tolist() == distance.argmin(axis=1)[is_near].tolist()
    assert (own[~is_near] > NEAR).all()
    twins = np.concatenate([keys[:3], keys[:3]])
    assert find_nearest(twins, twins, earlier_only=True)[1].tolist()[3:] == [0, 0, 0]
    assert find_nearest(twins, twins, earlier_only=True)[0].tolist()[3:] == [0, 1, 2]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tif", ".gif", ".ppm", ".jp2"])
def test_every_format_is_read_and_its_end_missed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    texture(0).save(path)
    for is_quick in (True, False):
        facts = look_at([path], is_quick)[0]
        assert (facts.fault, facts.width, facts.height) == ("", WIDTH, HEIGHT)
        assert bool(facts.perceptual_hash) != is_quick
    cut(path, 0.5)
    assert look_at([path], is_quick=False)[0].fault in ("file-damaged", "file-unreadable")


def test_arrays_and_16_bits_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((5, 7, 4), dtype=np.uint8))
    facts = look_at([tmp_path / "x.npy"], is_quick=True)[0]
    assert (facts.fault, facts.width, facts.height, facts.mode) == ("", 7, 5, "uint8, 4 channels")
    Image.fromarray(np.arange(63, dtype=np.uint16).reshape(7, 9)).save(tmp_path / "x.png")
    facts = look_at([tmp_path / "x.png"], is_quick=False)[0]
    assert (facts.fault, facts.width, facts.height, facts.mode) == ("", 9, 7, "I;16")


@pytest.mark.parametrize("is_quick", [False, True])
def test_what_training_refuses_before_decoding_is_not_decoded(tmp_path: Path, is_quick: bool) -> None:
    path = tmp_path / "x.jpg"
    texture(0).save(path)
    data = path.read_bytes()
    size = data.index(b"\xff\xc0") + 5  # height and width, in a JPEG's frame header
    path.write_bytes(data[:size] + b"\x7f\xff\x7f\xff" + data[size + 4 :])
    facts = look_at([path], is_quick)[0]
    assert facts.fault == "file-unreadable"
    assert facts.reason.startswith("has 32,767×32,767 pixels, more than the 268,435,456")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert look_at([tmp_path / "pipe.jpg"], is_quick)[0].reason == "cannot be read: it is not a file"


def test_a_jpeg_whose_end_was_never_written_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    texture(0).save(path)
    data = path.read_bytes()
    for end in range(len(data) // 2, len(data) - 2, 7):
        path.write_bytes(data[:end] + bytes(len(data) - end))
        assert look_at([path], is_quick=False)[0].fault == "file-damaged", end


def test_the_hash_is_of_the_cosine_transform(tmp_path: Path) -> None:
    small = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    path = tmp_path / "x.png"
    Image.fromarray(small).save(path)
    bits = np.unpackbits(np.frombuffer(look_at([path], is_quick=False)[0].perceptual_hash, dtype=np.uint8)).astype(bool)
    transform = cv2.dct(small.astype(np.float32))
    # The 14 frequencies whose indices sum up to 1 to 4 come first.
    first = [(i, total - i) for total in range(1, 5) for i in range(total + 1)]
    assert bits[: len(first)].tolist() == [bool(transform[at] > 0) for at in first]


def test_images_of_one_tone_are_not_duplicates(data: Path) -> None:
    for number, tone in enumerate([(0, 0, 0), (0, 0, 0), (255, 255, 255), (9, 90, 200)]):
        save(Image.new("RGB", (WIDTH, HEIGHT), tone), data / "train" / f"{number}.jpg", quality=90 - number)
    assert counts(examine_train(data)) == {}


# --- what is known to be wrong in real sets ---------------------------------------------------------------------------


def examine_shared(folder: Path) -> Report:
    splits = [
        read_boxes(name, Source(folder / f"annotations/{name}.json", folder / "images")) for name in ("train", "val")
    ]
    return examine(splits, Settings(), is_quick=True)


def test_boxes_without_extent_in_bccd(shared: Path) -> None:
    folder = shared / "data/bccd"
    report = examine_shared(folder)
    rows = json.loads((folder / "annotations/train.json").read_text())["annotations"]
    marked = [row["id"] for row in rows if "raw_voc_box" in row]
    assert len(marked) == 2
    assert [example.annotation for example in finding(report, "box-tiny").examples] == marked
    assert counts(report) == {"box-tiny": 2}


def test_empty_images_and_crowds_in_coco(shared: Path) -> None:
    report = examine_shared(shared / "data/coco")
    total: dict[str, int] = {}
    for one in report.findings:
        total[one.check] = total.get(one.check, 0) + one.count
    assert total["images-empty"] == 3
    assert total["crowd"] == 40
    assert report.count("error") == 0


def test_duplicates_across_the_splits_of_trashnet(shared: Path) -> None:
    splits = [
        read_labelled(name, None, shared / "data/trashnet" / name, None, multi_label=False) for name in ("train", "val")
    ]
    report = examine(splits, Settings(), is_quick=False)
    identical = finding(report, "leak-identical").examples[0]
    assert (identical.file, identical.other) == ("glass/glass115.jpg", "metal/metal91.jpg")
    pairs = {(example.file, example.other) for example in finding(report, "leak-near").examples}
    # A magazine, a flyer and an advertisement, each photographed twice.
    assert pairs >= {
        ("paper/paper451.jpg", "paper/paper345.jpg"),
        ("paper/paper305.jpg", "paper/paper308.jpg"),
        ("paper/paper101.jpg", "paper/paper108.jpg"),
    }
    assert finding(report, "label-conflict").count == 3
