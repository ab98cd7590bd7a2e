"""Training and the doctor refuse the same data: what passes one is not refused by the other."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fuzz import SEED, TIMES, mutate, photo
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_coco_fuzz import MUTATIONS, TREE

from detector.analysis.doctor.examination import Settings, examine
from detector.analysis.doctor.files import FileFacts, look_at
from detector.analysis.doctor.reading import read_boxes, read_labelled
from detector.config.schema import Config, DataConfig, SplitConfig
from detector.data.formats.building import Source
from detector.errors import DetectorError
from detector.tasks import get_task

# Errors of the doctor that training cannot see from one split, or does not look for.
ONLY_THE_DOCTOR = {
    "leak-identical",  # between two splits
    "leak-near",
    "label-conflict",  # between images that are duplicates
}


def training_refuses(task: str, annotations: Path | None, images: Path) -> str:
    """What training says when it opens the split and reads each image; empty if nothing."""
    split = SplitConfig(annotations=str(annotations) if annotations else None, images=str(images))
    head = {"name": "retina" if task == "detection" else "pooled"}
    config = Config(task=task, model={"head": head}, data=DataConfig(train=split))
    try:
        data = get_task(config).open_split(config, "train")
    except DetectorError as error:
        return str(error)
    samples = (data[0, index] for index in range(len(data)))
    return next((str(sample) for sample in samples if isinstance(sample, DetectorError)), "")


def doctor_refuses(task: str, annotations: Path | None, images: Path) -> str:
    """The errors that the doctor finds; empty if there are none."""
    try:
        if task == "detection":
            split = read_boxes("train", Source(annotations or Path(), images))
        else:
            split = read_labelled("train", annotations, images, None, multi_label=False)
    except DetectorError as error:
        return str(error)
    findings = examine([split], Settings(), is_quick=False).findings
    errors = [one for one in findings if one.severity == "error" and one.check not in ONLY_THE_DOCTOR]
    return "; ".join(f"{one.check}: {one.examples[0] if one.examples else ''}" for one in errors)


def agree(task: str, annotations: Path | None, images: Path, case: str = "") -> bool:
    """Whether both refuse; fails where only one does."""
    trained, examined = training_refuses(task, annotations, images), doctor_refuses(task, annotations, images)
    assert bool(trained) == bool(examined), (
        f"{case}: training: {trained or 'takes it'}; doctor: {examined or 'takes it'}"
    )
    return bool(trained)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting processes would take most of the time."""

    def look(paths: list[Path], is_quick: bool, title: str, in_channels: int = 3) -> list[FileFacts]:
        return look_at(paths, is_quick, in_channels) if paths else []

    monkeypatch.setattr("detector.analysis.doctor.examination.look_at_files", look)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The images of TREE."""
    for row in TREE["images"]:
        path = tmp_path / "images" / row["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(row["height"], row["width"])).save(path)
    return tmp_path / "images"


def write(folder: Path, tree: Any) -> Path:
    path = folder / "a.json"
    path.write_text(json.dumps(tree))
    return path


def case_files(shared: Path, tmp_path: Path) -> Iterator[tuple[str, str, Path, Path]]:
    """Every case that is annotations and a folder of images; links as its README has them made."""
    for source in sorted(path for path in (shared / "cases").iterdir() if path.is_dir()):
        folder = Path(shutil.copytree(source, tmp_path / source.name))
        for path in folder.rglob("*"):
            path.chmod(0o755)
        if source.name == "linked_pictures":
            (folder / "img/1.png").unlink()
            (folder / "img/1.png").symlink_to(folder / "store/1.png")
        for path in sorted([*folder.glob("*.json"), *folder.glob("*.csv")]):
            if (folder / "img").is_dir():
                task = "classification" if path.suffix == ".csv" else "detection"
                yield f"{source.name}/{path.name}", task, path, folder / "img"


def test_every_case(shared: Path, tmp_path: Path) -> None:
    if not (shared / "cases").is_dir():
        pytest.skip(f"{shared}/cases: no such folder; it holds the faulty data sets that are compared")
    refused = {case: agree(task, path, images, case) for case, task, path, images in case_files(shared, tmp_path)}
    assert len(refused) > 10
    assert not refused["linked_pictures/a.json"]
    assert refused["train_without_objects/a.json"] and refused["boxes_csv_read_as_classes/boxes.csv"]


def box(*xywh: float) -> Callable[[Any], object]:
    return lambda tree: tree["annotations"][0].update(bbox=list(xywh))


def name(file: str) -> Callable[[Any], object]:
    return lambda tree: tree["images"][0].update(file_name=file)


# What is done to the tree of an image of 100×50, and whether both refuse it.
TREES: dict[str, tuple[Callable[[Any], object], bool]] = {
    "as it is": (lambda tree: None, False),
    "a pixel outside": (box(-1, 5, 20, 20), False),
    "more than a pixel outside": (box(-1.01, 5, 20, 20), True),
    "half a pixel, outside": (box(-0.5, 5, 0.4, 20), True),
    "beside the image, within the tolerance": (box(100.2, 5, 0.5, 20), True),
    "a sliver that float32 cannot hold": (box(80, 5, 1e-9, 20), True),
    "no area": (box(1, 2, 0, 5), True),
    "a name with another case": (name("A.png"), True),
    "a name that leads out": (name("../images/a.png"), True),
    "a folder": (name("Ordner"), True),
    "crowds alone": (lambda tree: [row.update(iscrowd=1) for row in tree["annotations"]], True),
    "no annotations": (lambda tree: tree.update(annotations=[]), True),
    "another size": (lambda tree: tree["images"][0].update(width=99), True),
}


@pytest.mark.parametrize("case", TREES)
def test_rules_of_boxes_and_names(case: str, images: Path, tmp_path: Path) -> None:
    change, is_refused = TREES[case]
    tree = copy.deepcopy(TREE)
    change(tree)
    assert agree("detection", write(tmp_path, tree), images, case) == is_refused


@pytest.mark.parametrize("kind", MUTATIONS)
def test_mutations_of_annotations(kind: str, images: Path, tmp_path: Path) -> None:
    refused = []

    @settings(max_examples=100)
    @given(data=st.data())
    def case(data: st.DataObject) -> None:
        path = tmp_path / "x.json"
        path.write_bytes(MUTATIONS[kind](data, TREE))
        refused.append(agree("detection", path, images, path.read_text(errors="replace")))

    case()
    assert True in refused and False in refused


FILES: dict[str, Callable[[Path], object]] = {
    "jpg": lambda path: Image.fromarray(photo()).save(path, "JPEG"),
    "png": lambda path: Image.fromarray(photo()).save(path, "PNG"),
    "tif": lambda path: Image.fromarray(photo()).save(path, "TIFF"),
    "webp": lambda path: Image.fromarray(photo()).save(path, "WEBP", lossless=True),
    "bmp": lambda path: Image.fromarray(photo()).save(path, "BMP"),
    "gif": lambda path: Image.fromarray(photo()).save(path, "GIF"),
    "npy": lambda path: np.save(path, photo()),
    "16.png": lambda path: cv2.imwrite(str(path), photo().astype(np.uint16) * 257),
}


@pytest.mark.parametrize("suffix", FILES)
def test_mutations_of_images(suffix: str, tmp_path: Path) -> None:
    whole = tmp_path / f"x.{suffix}"
    FILES[suffix](whole)
    (tmp_path / "many").mkdir()
    rows = []
    for number in range(25 * TIMES):
        file = tmp_path / "many" / f"{number}.{suffix}"
        file.write_bytes(
            mutate(whole.read_bytes(), random.Random(f"agree/{suffix}/{SEED}/{number}"))
            if number
            else whole.read_bytes()
        )
        rows.append({"id": 1, "file_name": file.name, "width": 33, "height": 25})
    tree = {**TREE, "annotations": [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 1, 9, 9]}]}
    refused = [
        agree("detection", write(tmp_path, {**tree, "images": [row]}), tmp_path / "many", row["file_name"])
        for row in rows
    ]
    assert not refused[0] and any(refused)


# Everything that a file can be, whatever a decoder makes of it.
ODD: dict[str, Callable[[Path], object]] = {
    "fractions.tif": lambda path: Image.fromarray(photo()[:, :, 0].astype(np.float32)).save(path),
    "32 bits.tif": lambda path: Image.fromarray(photo()[:, :, 0].astype(np.int32)).save(path),
    "16 bits.tif": lambda path: cv2.imwrite(str(path), photo().astype(np.uint16)),
    "one bit.png": lambda path: Image.fromarray(photo()).convert("1").save(path),
    "palette.png": lambda path: Image.fromarray(photo()).convert("P").save(path),
    "alpha.png": lambda path: Image.fromarray(photo()).convert("LA").save(path),
    "print.jpg": lambda path: Image.fromarray(photo()).convert("CMYK").save(path),
    "print.tif": lambda path: Image.fromarray(photo()).convert("CMYK").save(path),
    "lab.tif": lambda path: Image.fromarray(photo()).convert("LAB").save(path),
    "two channels.npy": lambda path: np.save(path, photo()[:, :, :2]),
    "fractions.npy": lambda path: np.save(path, photo().astype(np.float32)),
    "swapped bytes.npy": lambda path: np.save(path, photo().astype(">u2")),
    "gray.npy": lambda path: np.save(path, photo()[:, :, 0]),
    "no image.png": lambda path: path.write_text("P5 of the parts"),
    "empty.png": lambda path: path.touch(),
    "dangling.png": lambda path: path.symlink_to("nowhere.png"),
    "folder.png": lambda path: path.mkdir(),
    "tall.jp2": lambda path: Image.fromarray(photo()).save(path),
    "deep.ppm": lambda path: Image.fromarray(photo()).save(path),
}


@pytest.mark.parametrize("file", ODD)
def test_odd_images(file: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    ODD[file](tmp_path / "images" / file)
    tree = {**TREE, "images": [{"id": 1, "file_name": file, "width": 33, "height": 25}]}
    tree["annotations"] = [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 1, 9, 9]}]
    agree("detection", write(tmp_path, tree), tmp_path / "images", file)


def test_mutations_of_a_csv_file(tmp_path: Path) -> None:
    for stem in "abcde":
        Image.fromarray(photo()).save(tmp_path / f"{stem}.png")
    content = "path,label\n" + "".join(f"{stem}.png,{'cat' if stem < 'c' else 'dog'}\n" for stem in "abcde")
    path, refused = tmp_path / "x.csv", []
    for number in range(60 * TIMES):
        data = mutate(content.encode(), random.Random(f"agree/csv/{SEED}/{number}"))
        path.write_bytes(data)
        refused.append(agree("classification", path, tmp_path, repr(data)))
    assert True in refused and False in refused


FOLDERS: dict[str, tuple[Callable[[Path], object], bool]] = {
    "as it is": (lambda root: None, False),
    "an empty folder": (lambda root: (root / "cow").mkdir(), True),
    "a folder of other files": (lambda root: (root / "dog/b.png").rename(root / "dog/b.txt") and None, False),
    "a stray image": (lambda root: shutil.copy(root / "cat/a.png", root / "a.png"), True),
    "a stray text": (lambda root: (root / "notes.txt").write_text("x"), False),
    "a link": (lambda root: (root / "cat/link.png").symlink_to(root / "dog/b.png"), False),
    "a linked folder": (lambda root: (root / "owl").symlink_to(root / "dog"), False),
    "a dangling link": (lambda root: (root / "cat/link.png").symlink_to("nowhere.png"), True),
    "a hidden image": (lambda root: (root / "cat/a.png").rename(root / "cat/.a.png"), True),
    "no suffix": (lambda root: (root / "cat/a.png").rename(root / "cat/a"), False),
    "no image": (lambda root: (root / "cat/a.png").write_text("x"), True),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_class_folders(case: str, tmp_path: Path) -> None:
    change, is_refused = FOLDERS[case]
    for label, file in (("cat", "a.png"), ("dog", "b.png")):
        (tmp_path / label).mkdir()
        Image.fromarray(photo()).save(tmp_path / label / file)
    change(tmp_path)
    assert agree("classification", None, tmp_path, case) == is_refused
