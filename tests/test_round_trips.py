"""``convert``, ``merge`` and ``split`` through the readers: what both formats can hold comes back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from labelled import CATEGORIES, assert_equal, labels, table
from PIL import Image

from detector.__main__ import run_command
from detector.commands import READABLE
from detector.data.formats.building import Source
from detector.data.formats.labels import LabelledImage, Labels, join_labels, labels_of
from detector.data.formats.parts import PART_WRITERS
from detector.data.formats.reading import FORMATS, read_annotations
from detector.data.formats.writing import write_coco
from detector.structures import Category


def data_set(folder: Path, seed: int) -> list[LabelledImage]:
    """A COCO file ``coco.json`` and its ``images``."""
    images = table(seed, images=15, largest=2000)
    for image in images:
        path = folder / "images" / image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("1", (image.width, image.height)).save(path, format="png")
    Image.new("1", (9, 9)).save(folder / "images/of another split.png")
    write_coco(labels(images), folder / "coco.json")
    return images


def convert(*arguments: object) -> None:
    assert run_command("convert", [str(argument) for argument in arguments]) == 0


def boxes_of(path: Path, form: str = "coco", below: str = "") -> dict[str, list[tuple[str, list[float]]]]:
    """Class and xyxy of each box by image, whose name begins with ``below``."""
    read = labels_of(read_annotations(Source(path, format=form)))
    assert all(image.name.startswith(below) for image in read)
    return {
        image.name.removeprefix(below): [
            (read.categories[label].name, box)
            for label, box in zip(image.labels.tolist(), image.boxes.tolist(), strict=True)
        ]
        for image in read
    }


def test_the_commands_know_every_format() -> None:
    assert set(READABLE) == {"auto", *FORMATS}
    assert PART_WRITERS.keys() == FORMATS.keys()


@pytest.mark.parametrize("form", ["yolo", "voc", "csv"])
def test_coco_and_back(form: str, tmp_path: Path) -> None:
    for seed in range(2):
        folder = tmp_path / str(seed)
        images = data_set(folder, seed)
        between, back = folder / (f"out.{form}" if form == "csv" else form), folder / "back.json"
        convert(folder / "coco.json", between, "--images", folder / "images", "--to", form)
        convert(between, back, "--to", "coco")
        # YOLO's and CSV's names are relative to the data set, those of the others to the folder of images.
        assert_equal(boxes_of(back, below="images/" if form == "yolo" else ""), images)
        tree = json.loads(back.read_text(encoding="utf-8"))
        sizes = [(image["width"], image["height"]) for image in tree["images"]]
        assert sorted(sizes) == sorted((image.width, image.height) for image in images)
        found = [category["name"] for category in tree["categories"]]
        by_id = [CATEGORIES[index].name for index in (1, 0, 3, 2)]
        assert found == (by_id if form == "yolo" else sorted(own.name for own in CATEGORIES[:3]))


@pytest.mark.parametrize("form", ["coco", "yolo", "voc", "csv"])
def test_parts_of_every_format(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three parts, then folds: together they are the whole, and the images of a group stay together."""
    data_set(tmp_path, seed=1)
    whole = tmp_path / ("coco.json" if form == "coco" else f"whole.{form}")
    if form != "coco":
        convert(tmp_path / "coco.json", whole, "--images", tmp_path / "images", "--to", form)
    expected = boxes_of(whole, form)
    suffix = {"coco": "json", "csv": "csv"}.get(form, "txt")
    below = "ImageSets/Main/" if form == "voc" else ""
    capsys.readouterr()
    given = ["split", whole, "--group", r"(\d)(?=\.x|, a)", "--seed", "3"]
    assert run_command(*split_arguments([*given, "--val", "0.3", "--test", "0.3", "--output", tmp_path / "parts"])) == 0
    assert capsys.readouterr().out.startswith("10 groups of images\n")
    assert_parts([tmp_path / f"parts/{below}{name}.{suffix}" for name in ("train", "val", "test")], form, expected)

    assert run_command(*split_arguments([*given, "--folds", "3", "--output", tmp_path / "folds"])) == 0
    said = capsys.readouterr().out
    vals = [tmp_path / f"folds/fold{number}/{below}val.{suffix}" for number in (1, 2, 3)]
    assert all(str(val) in said for val in vals)
    assert_parts(vals, form, expected)
    for val in vals:
        assert_parts([val.with_stem("train"), val], form, expected)
    assert run_command(*split_arguments([*given, "--folds", "3", "--output", tmp_path / "folds"])) == 2  # it is there


def split_arguments(arguments: list[object]) -> tuple[str, list[str]]:
    name, *others = map(str, arguments)
    return name, others


def assert_parts(paths: list[Path], form: str, expected: dict[str, list[tuple[str, list[float]]]]) -> None:
    below = "data/" if form == "yolo" else ""
    parts = [boxes_of(path, "auto", below) for path in paths]
    assert all(parts)
    assert sum(map(len, parts)) == len(expected)
    assert {name: boxes for part in parts for name, boxes in part.items()} == expected
    groups = [{name.replace(".x", "").split(".jpg")[0].removesuffix(", a")[-1] for name in part} for part in parts]
    assert sum(map(len, groups)) == len(set().union(*groups))
    if form == "yolo":
        content = yaml.safe_load((paths[0].parent / "data.yaml").read_text(encoding="utf-8"))
        assert all(content[path.stem] == path.name for path in paths)


def test_merged_sets_have_the_images_and_boxes_of_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A set with itself, whose ids fit together, and with one of other classes and ids."""
    first = data_set(tmp_path, seed=0)
    second = [image._replace(labels=2 - image.labels) for image in table(seed=7, images=8)]
    others = [Category(2, "new"), CATEGORIES[1]._replace(id=5), CATEGORIES[0]]
    path = str(tmp_path / "coco.json")
    assert run_command("merge", [f"a={path}", path, str(tmp_path / "all.json"), "--to", "coco"]) == 0
    found = boxes_of(tmp_path / "all.json")
    assert_equal({name.removeprefix("a/"): own for name, own in found.items() if name.startswith("a/")}, first)
    assert_equal({name: own for name, own in found.items() if not name.startswith("a/")}, first)
    tree = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert len({image["id"] for image in tree["images"]}) == 2 * len(first)
    assert {(own["id"], own["name"]) for own in tree["categories"]} == set(CATEGORIES)  # the ids fit together

    joined = join_labels([("a", labels(first)), ("b", Labels(others, lambda: iter(second)))])
    names = [own.name for own in CATEGORIES] + ["new"]
    assert joined.categories == [Category(number, name) for number, name in enumerate(names, start=1)]
    for image, given_image in zip(joined, [*first, *second], strict=True):
        own = CATEGORIES if image.name.startswith("a/") else others
        assert [names[label] for label in image.labels] == [own[label].name for label in given_image.labels]

    capsys.readouterr()
    assert run_command("merge", [path, path, str(tmp_path / "x.json"), "--to", "coco"]) == 2
    assert "give NAME=IN to put each set's images into a folder of its own" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


def test_what_a_config_says_about_reading_the_commands_take_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``data.one_based``, ``exif`` and ``allow_outside``, each with what is read without it."""
    given = data_set(tmp_path, seed=2)
    convert(tmp_path / "coco.json", tmp_path / "voc", "--images", tmp_path / "images", "--to", "voc")
    for one_based, move in (("true", 0), ("false", 1)):
        convert(tmp_path / "voc", tmp_path / f"{one_based}.csv", "--to", "csv", "--one-based", one_based)
        lefts = [own[0] for boxes in boxes_of(tmp_path / f"{one_based}.csv", "csv").values() for _, own in boxes]
        expected = {image.name: image.boxes[:, 0] + move for image in given}
        assert sorted(lefts) == pytest.approx(sorted(np.concatenate([*expected.values()])), abs=0.01)

    folder = tmp_path / "yolo/images"
    folder.mkdir(parents=True)
    Image.new("RGB", (40, 20)).save(folder / "in.png")
    turned = Image.Exif()
    turned[274] = 6  # by a quarter
    Image.new("RGB", (40, 20)).save(tmp_path / "images/out.jpg", exif=turned)
    (tmp_path / "yolo/train.txt").write_text("images/in.png\n../images/out.jpg\n")
    (tmp_path / "yolo/data.yaml").write_text("train: train.txt\nnames: [a]\n")
    for labels_file in (tmp_path / "yolo/labels/in.txt", tmp_path / "labels/out.txt"):
        labels_file.parent.mkdir()
        labels_file.write_text("0 0.5 0.5 0.5 0.5\n")
    arguments = [str(tmp_path / "yolo/data.yaml"), str(tmp_path / "found.json"), "--to", "coco"]
    for option, words in (("--allow-outside", "leads out of"), ("--exif", "EXIF turns the image by a quarter")):
        assert run_command("convert", arguments) == 2
        assert words in (said := capsys.readouterr().err)
        assert option in said
        arguments += [option] if option == "--allow-outside" else [option, "upright"]
    assert run_command("convert", arguments) == 0
    found = [("in.png", [10, 5, 30, 15]), ("out.jpg", [5, 10, 15, 30])]
    assert [(Path(name).name, own) for name, [(_, own)] in boxes_of(tmp_path / "found.json").items()] == found

    reading = ["--allow-outside", "--exif", "upright"]
    parts = ["--folds", "2", "--output", str(tmp_path / "parts"), *reading]
    assert run_command("split", [str(tmp_path / "yolo/data.yaml"), *parts]) == 0
    vals = [Source(tmp_path / f"parts/fold{number}/val.txt", exif="upright", allow_outside=True) for number in (1, 2)]
    assert sorted(len(read_annotations(val).labels) for val in vals) == [1, 1]

    images = [{"id": 1, "file_name": "../images/out.jpg"}]  # without a size, so the file would be opened
    tree = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "coco.json").write_text(json.dumps(tree))
    arguments = [str(tmp_path / "coco.json"), str(tmp_path / "x.json"), "--to", "coco", "--images", str(folder)]
    assert run_command("convert", [*arguments, "--exif", "upright"]) == 2
    assert "../images/out.jpg leads out of" in capsys.readouterr().err
