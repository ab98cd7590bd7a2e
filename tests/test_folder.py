"""Images with classes: what folders and CSV files say, which images are held back, and what a class weighs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detector.config.schema import Config
from detector.data import listing
from detector.data.classification import ClassSample, open_classes
from detector.data.formats.class_folders import Fault, Labelled, read_csv, read_folders
from detector.data.transforms.classes import ClassTransform, TrainClassTransform
from detector.errors import ConfigError, DataError
from detector.structures import Category


def touch(root: Path, *names: str) -> Path:
    """Empty files: to list images, none is opened."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def labels_by_file(labelled: Labelled) -> dict[str, list[str]]:
    """Names of the classes of each image, in order."""
    found = {}
    for index in range(len(labelled)):
        file = labelled.file(index).relative_to(labelled.root).as_posix()
        found[file] = [labelled.categories[label].name for label in labelled.labels_of(index)]
    return found


def error_of(read: Callable[[], Any]) -> str:
    with pytest.raises(DataError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- one folder per class ---------------------------------------------------------------------------------------------


def test_folders_are_the_classes(tmp_path: Path) -> None:
    images = ["glass/2.png", "glass/deep/er/1.JPG", "glass/10.png", "Metall/ü.webp", "paper/a.npy", "paper/b.tiff"]
    touch(tmp_path, *images, "glass/notes.txt", "paper/deep/list.csv", ".loose.png", ".hidden/x.png")
    found = read_folders(tmp_path, None)
    assert found.categories == [Category(0, "Metall"), Category(1, "glass"), Category(2, "paper")]
    assert labels_by_file(found) == {name: [name.partition("/")[0]] for name in images}
    assert list(labels_by_file(found)) == [  # by class, then by path
        "Metall/ü.webp",
        "glass/10.png",
        "glass/2.png",
        "glass/deep/er/1.JPG",
        "paper/a.npy",
        "paper/b.tiff",
    ]
    assert found.counts().tolist() == [1, 3, 2]
    assert found.labels.tolist() == [0, 1, 1, 1, 2, 2]
    assert (found.source, found.root, len(found)) == (tmp_path, tmp_path, 6)


def test_given_classes_decide_the_ids(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/1.png", "b/2.png")
    found = read_folders(tmp_path, ["b", "none here", "a"])
    assert found.categories == [Category(0, "b"), Category(1, "none here"), Category(2, "a")]
    assert labels_by_file(found) == {"a/1.png": ["a"], "b/1.png": ["b"], "b/2.png": ["b"]}
    assert found.counts().tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("files", "classes", "said"),
    [
        (["loose.png", ".hidden/x.png"], None, "{root}: has no class folders; put the images of each class"),
        (
            ["a/1.png", "loose.png", "x.jpg"],
            None,
            "{root}/loose.png: lies outside the class folders (2 images in all)",
        ),
        (["a/1.png", "b/notes.txt", "b/deep/more.txt"], None, "{root}/b: the class folder has no images; fill it or"),
        (
            ["plastic/1.png"],
            ["paper", "plastics"],
            "{root}/plastic: the folder's name 'plastic' is not among the 2 classes; did you mean 'plastics'?",
        ),
        (["x/1.png"], ["paper", "glass"], "'x' is not among the 2 classes; they are paper or glass"),
        (
            ["x/1.png"],
            [f"class {place}" for place in range(30)],
            "'x' is not among the 30 classes; they are class 0, class 1, ",
        ),
        (["x/1.png"], [f"class {place}" for place in range(30)], "class 8 or class 9, …"),
    ],
)
def test_faults_of_folders(files: list[str], classes: list[str] | None, said: str, tmp_path: Path) -> None:
    touch(tmp_path, *files)
    message = error_of(lambda: read_folders(tmp_path, classes))
    assert said.format(root=tmp_path) in message
    assert first_fault(lambda faults: read_folders(tmp_path, classes, faults)) == message


def first_fault(read: Callable[[list[Fault]], Labelled]) -> str:
    """The first of the faults that the doctor's reading collects, or what it raises all the same."""
    faults: list[Fault] = []
    try:
        read(faults)
    except DataError as error:
        return str(error)
    return str(faults[0]) if faults else ""


def test_all_faults_are_collected(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "plastic/2.png", "b/notes.txt", "loose.png", "x.jpg")
    faults: list[Fault] = []
    found = read_folders(tmp_path, ["a", "b"], faults)
    assert labels_by_file(found) == {"a/1.png": ["a"], "plastic/2.png": ["plastic"]}
    assert [(fault.check, fault.path.name) for fault in faults] == [
        *[("file-stray", name) for name in ("loose.png", "x.jpg")],
        *[("folder-empty", "b"), ("class-unknown", "plastic")],
    ]
    path, faults = tmp_path / "x.csv", []
    path.write_text("path,label\n1.png,a\n1.png,b\n,a\n2.png\n3.png,c\n4.png,c\nnowhere.png,b\n")
    found = read_csv(path, tmp_path, ["a", "b"], multi_label=False, faults=faults)
    assert labels_by_file(found) == {"1.png": ["a"], "3.png": ["c"], "4.png": ["c"], "nowhere.png": ["b"]}
    assert [(fault.check, fault.line) for fault in faults] == [
        *[("csv-row", 3), ("csv-row", 4), ("csv-row", 5)],
        ("class-unknown", 6),  # once per class
    ]


def test_the_order_that_the_disk_lists_files_in_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, *[f"{name}/{number}.png" for name in "cab" for number in range(5)])
    expected = read_folders(tmp_path, None)
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda *given: reversed(list(listed(*given))))
    walked = listing.walk
    monkeypatch.setattr(listing, "walk", lambda *given: reversed(list(walked(*given))))
    found = read_folders(tmp_path, None)
    assert found.files.tolist() == expected.files.tolist()
    assert found.categories == expected.categories


# --- CSV --------------------------------------------------------------------------------------------------------------


def write_csv(folder: Path, text: str | bytes, *images: str) -> Path:
    touch(folder, *(images or ("1.png", "2.png", "deep/3, new.png")))
    path = folder / "labels.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


ROWS = '1.png,dog\n./1.png, cat \n\n"deep/3, new.png","Dog, big"\n2.png,dog,\n'


@pytest.mark.parametrize("header", ["path,label", "file_name,class,note", " Image ,x", "FILE,y", "filename,z", ""])
@pytest.mark.parametrize("change", [str.encode, lambda text: text.replace("\n", "\r\n").encode("utf-8-sig")])
def test_a_csv_by_hand(header: str, change: Callable[[str], bytes], tmp_path: Path) -> None:
    path = write_csv(tmp_path, change(f"{header}\n{ROWS}" if header else ROWS))
    found = read_csv(path, tmp_path, None, multi_label=False)
    assert found.categories == [Category(0, "Dog, big"), Category(1, "cat"), Category(2, "dog")]
    assert [file.decode() for file in found.files] == ["1.png", "./1.png", "deep/3, new.png", "2.png"]
    assert found.labels.tolist() == [2, 1, 0, 2]
    assert found.first.tolist() == [0, 1, 2, 3, 4]
    assert found.source == path
    # Only what begins with a known column is a header.
    assert found.note == (f"the first row is a header: {header}" if header else "without a header")


def test_a_csv_beside_its_images_or_not(tmp_path: Path) -> None:
    touch(tmp_path / "images", "1.png")
    path = write_csv(tmp_path, f"path,label\n1.png,x\n{tmp_path}/2.png,x\n", "2.png")
    found = read_csv(path, tmp_path / "images", ["y", "x"], multi_label=False, allow_outside=True)
    assert [found.file(index) for index in range(2)] == [tmp_path / "images/1.png", tmp_path / "2.png"]
    assert found.labels.tolist() == [1, 1]
    assert found.counts().tolist() == [0, 2]


@pytest.mark.parametrize("classes", [None, ["cat", "dog", "Dog", "owl", "bat"]])
def test_several_labels_and_none(classes: list[str] | None, tmp_path: Path) -> None:
    text = "path,label\n1.png,dog;cat\n2.png,\ndeep/3,owl\n4.png,owl ; dog,cat;;owl\n5.png,Dog\n"
    path = write_csv(tmp_path, text, "1.png", "2.png", "deep/3", "4.png", "5.png")
    found = read_csv(path, tmp_path, classes, multi_label=True)
    names = classes or ["Dog", "cat", "dog", "owl"]
    assert [category.name for category in found.categories] == names
    own = [[names[label] for label in found.labels_of(index)] for index in range(5)]
    assert [set(row) for row in own] == [{"dog", "cat"}, set(), {"owl"}, {"owl", "dog", "cat"}, {"Dog"}]
    assert [len(row) for row in own] == [2, 0, 1, 3, 1]  # a label that is duplicated counts once
    assert found.counts().tolist() == [{"Dog": 1, "cat": 2, "dog": 2, "owl": 2, "bat": 0}[name] for name in names]


CLASSES = ["glass", "metal", "paper"]

# The file, the classes, multi_label, and what the one line must say.
FAULTS: dict[str, tuple[str | bytes, list[str] | None, bool, list[str]]] = {
    "an image twice": (
        "path,label\n1.png,x\n1.png,y\n",
        None,
        False,
        ["{csv}:3: 1.png is listed twice, first in line 2; keep one row per image"],
    ),
    "empty file": ("", None, False, ["{csv}: has no rows"]),
    "other header": ("photo,kind\n1.png,glass\n", None, False, ["{csv}:1: {folder}/photo does", "header would"]),
    "one column": ("path\n1.png\n", None, False, ["{csv}:2: 1.png has no label"]),
    "other separator": ("path;label\n1.png;glass\n", None, False, ["{csv}:1: 'path;label' has no comma", "not by ';'"]),
    "another system": ("C:\\x\\deep\\2.PNG,a\n", None, False, ["2.PNG does not exist; did you mean 2.png?"]),
    "boxes": (
        "1.png,5,5,45,45,red\n2.png,,,,,\n",
        None,
        True,
        ["{csv}: looks like a CSV file of boxes; a classifier reads a CSV file of paths and labels"],
    ),
    "named boxes": ("image_path,xmin,ymin,xmax,ymax,label\n", None, True, ["{csv}: looks like a CSV file of boxes"]),
    "JSON": ('{"images": [],\n"a": 1}', None, False, ["{csv}: looks like JSON; a classifier reads a CSV file of"]),
    "header alone": ("path,label\n\n", None, False, ["{csv}: has no rows below its header"]),
    "missing file": (
        "path,label\n1.png,glass\n\n9.png,glass\n",
        None,
        False,
        ["{csv}:4: {folder}/9.png does not exist", "relative to {folder}"],
    ),
    "a folder": ("path,label\ndeep,glass\n", None, False, ["{csv}:2: {folder}/deep is not a file"]),
    "no label": ("path,label\n1.png,a\n2.png, \n", None, False, ["{csv}:3: 2.png has no label", "model.multi_label"]),
    "no cell for it": ("path,label\n1.png\n", None, False, ["{csv}:2: 1.png has no label"]),
    "two labels": ("path,label\n1.png,a,b\n", None, False, ["{csv}:2: 1.png has 2 labels (a, b)", "multi_label=true"]),
    "near": ("path,label\n1.png,Glass\n", CLASSES, False, ["{csv}:2: label 'Glass' is not among the 3", "'glass'?"]),
    "far": ("path,label\n1.png,a;b\n", CLASSES, False, ["{csv}:2: label 'a;b'", "glass, metal or paper"]),
    "one of several": ("path,label\n1.png,glass;metl\n", CLASSES, True, ["{csv}:2: label 'metl'", "mean 'metal'?"]),
    "never a label": ("path,label\n1.png,\n2.png,;\n", None, True, ["{csv}: has no label in any row"]),
    "not UTF-8": (
        "path,label\n1.png,ä\n".encode("latin-1"),
        None,
        False,
        ["{csv}: is not UTF-8 text", "save it as UTF-8"],
    ),
    "UTF-16": ("path,label\n1.png,a\n".encode("utf-16"), None, False, ["{csv}: is not UTF-8 text", "save it as UTF-8"]),
    "open quote": (
        'path,label\n"1.png,a\n',
        None,
        False,
        ["{csv}: is not a CSV file: unexpected end of data after line 1; is a quote"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_csv(fault: str, tmp_path: Path) -> None:
    text, classes, multi_label, said = FAULTS[fault]
    path = write_csv(tmp_path, text)
    message = error_of(lambda: read_csv(path, tmp_path, classes, multi_label))
    for words in said:
        assert words.format(csv=path, folder=tmp_path) in message
    # Whether the files exist is looked at apart: the doctor looks into each.
    collected = first_fault(lambda faults: read_csv(path, tmp_path, classes, multi_label, faults=faults))
    assert collected == ("" if fault in ("other header", "another system", "missing file", "a folder") else message)


def test_a_csv_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    message = error_of(lambda: read_csv(path, tmp_path, None, multi_label=False))
    assert message == f"{path}: cannot be read: No such file or directory"
    for name, reason in (("x" * 300, "File name too long"), ("\0.csv", "embedded null byte")):
        message = error_of(lambda name=name: read_csv(tmp_path / name, tmp_path, None, multi_label=False))
        assert message.endswith(f": cannot be read: {reason}")


# --- the data set of a config -----------------------------------------------------------------------------------------


def make_config(data: dict[str, Any], multi_label: bool = False, in_channels: int = 3, seed: int = 0) -> Config:
    model = {"head": {"name": "pooled"}, "multi_label": multi_label, "in_channels": in_channels}
    return Config.model_validate({"task": "classification", "seed": seed, "data": data, "model": model})


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """6 images of paper, 3 of glass, 1 of metal; to evaluate, 1 of metal and 1 of paper. None is a real image."""
    counts = {"paper": 6, "glass": 3, "metal": 1}
    touch(tmp_path, *[f"train/{name}/{number}.png" for name, count in counts.items() for number in range(count)])
    return touch(tmp_path, "val/metal/x.png", "val/paper/y.png")


def splits(folders: Path) -> dict[str, Any]:
    return {"train": {"images": f"{folders}/train"}, "val": {"images": f"{folders}/val"}}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (None, [1, 1, 1]),
        # 10 images, 3 classes: 10 / (3 · 3), 10 / (3 · 1), 10 / (3 · 6).
        ("balanced", [10 / 9, 10 / 3, 10 / 18]),
        ({"metal": 4.0, "paper": 0.5}, [1, 4, 0.5]),
    ],
)
def test_what_a_class_weighs(weights: Any, expected: list[float], folders: Path) -> None:
    config = make_config({**splits(folders), "class_weights": weights})
    train = open_classes(config, "train")
    assert [category.name for category in train.categories] == ["glass", "metal", "paper"]
    assert train.weights.dtype == torch.float32
    assert train.weights.tolist() == pytest.approx(expected)
    assert open_classes(config, "val", train.categories).weights.tolist() == [1, 1, 1]


def test_balanced_classes_weigh_as_much_as_equal_ones(folders: Path) -> None:
    # Over all images, the weights of their labels have the mean 1.
    train = open_classes(make_config({**splits(folders), "class_weights": "balanced"}), "train")
    assert train.weights[train.labelled.labels].mean().item() == pytest.approx(1)


def test_weights_of_an_unknown_class(folders: Path) -> None:
    config = make_config({**splits(folders), "class_weights": {"papper": 2.0}})
    said = "data.class_weights: 'papper' is not among the 3 classes; did you mean 'paper'?"
    assert error_of(lambda: open_classes(config, "train")) == said


def test_evaluation_has_the_classes_of_training(folders: Path) -> None:
    config = make_config(splits(folders))
    train = open_classes(config, "train")
    val = open_classes(config, "val", train.categories)
    assert val.categories == train.categories
    assert labels_by_file(val.labelled) == {"metal/x.png": ["metal"], "paper/y.png": ["paper"]}
    assert val.labelled.labels.tolist() == [1, 2]  # not 0 and 1, as it has no glass
    assert val.summary() == "2 images of 3 classes (glass, metal, paper), 0 to 1 each"
    assert train.summary() == "10 images of 3 classes (glass, metal, paper), 1 to 6 each"
    assert type(train.transform) is TrainClassTransform
    assert type(val.transform) is ClassTransform
    assert val.augment is None
    assert train.is_wide is None

    touch(folders, "val/plastic/z.png")
    assert "'plastic' is not among the 3 classes" in error_of(lambda: open_classes(config, "val", train.categories))


def test_classes_in_an_order_of_their_own(folders: Path) -> None:
    config = make_config({**splits(folders), "classes": ["paper", "metal", "glass"]})
    train = open_classes(config, "train")
    assert train.categories == [Category(0, "paper"), Category(1, "metal"), Category(2, "glass")]
    assert train.labelled.counts().tolist() == [6, 1, 3]


def test_a_class_that_nothing_is_learnt_of_is_refused(folders: Path) -> None:
    config = make_config({**splits(folders), "classes": ["paper", "metal", "wood", "glass"]})
    said = f"{folders}/train: has no image of class 'wood' to train on; add some, or remove it from data.classes"
    assert error_of(lambda: open_classes(config, "train")) == said


def test_a_part_of_training_held_back(folders: Path) -> None:
    touch(folders, *[f"train/metal/{number}.png" for number in (1, 2, 3)])
    data = {"train": {"images": f"{folders}/train"}, "val_share": 0.34, "class_weights": "balanced"}
    config = make_config(data)
    train, val = open_classes(config, "train"), open_classes(config, "val")
    counts = train.labelled.counts()
    assert (counts + val.labelled.counts()).tolist() == [3, 4, 6]  # glass, metal, paper
    assert min(*counts, *val.labelled.counts()) > 0
    assert train.weights.tolist() == pytest.approx(counts.sum() / (3 * counts))  # of what is trained on
    every = labels_by_file(open_classes(make_config(splits(folders)), "train").labelled)
    assert labels_by_file(train.labelled) | labels_by_file(val.labelled) == every
    assert not set(labels_by_file(train.labelled)) & set(labels_by_file(val.labelled))


@pytest.mark.parametrize("key", ["images", "annotations"])
def test_a_part_held_back_besides_another_set_is_refused(key: str, folders: Path) -> None:
    data = {"train": {"images": f"{folders}/train"}, "val": {key: f"{folders}/val"}, "val_share": 0.5}
    for name in ("train", "val"):
        with pytest.raises(ConfigError, match=rf"data\.val_share: holds back a part.*data\.val\.{key} is given too"):
            open_classes(make_config(data), name)


@pytest.mark.parametrize(
    ("data", "name", "said"),
    [
        ({}, "train", "data.train.images is not set; give it in the config or as data.train.images=DIR"),
        ({}, "val", "data.val.images is not set; give it in the config or as data.val.images=DIR; or data.val_share="),
        ({"train": {"images": "nowhere"}}, "train", "data.train.images: nowhere is not a folder"),
    ],
)
def test_splits_that_are_not_there(data: dict[str, Any], name: str, said: str) -> None:
    assert error_of(lambda: open_classes(make_config(data), name)).startswith(said)


def test_a_csv_of_a_config(folders: Path) -> None:
    path = folders / "train.csv"
    path.write_text("path,label\npaper/1.png,x;y\nglass/0.png,\n")
    data = {"train": {"images": f"{folders}/train", "annotations": str(path)}}
    dataset = open_classes(make_config(data, multi_label=True), "train")
    assert labels_by_file(dataset.labelled) == {"paper/1.png": ["x", "y"], "glass/0.png": []}
    note = "the first row is a header: path,label"
    assert dataset.summary() == f"2 images of 2 classes (x, y), 1 to 1 each; 1 without a label; {note}"
    assert dataset.source == path
    assert "has no label" in error_of(lambda: open_classes(make_config(data), "train"))


# --- samples ----------------------------------------------------------------------------------------------------------


def test_a_sample_by_hand(folders: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folders / "val/paper/y.png")
    config = make_config({**splits(folders), "crop": {"size": 8, "eval_share": 1.0}})
    dataset = open_classes(config, "val", open_classes(config, "train").categories)
    sample = dataset[3, 1]
    assert isinstance(sample, ClassSample)
    assert sample.probabilities.tolist() == [0, 0, 1]
    assert sample.weights.tolist() == [1, 1, 1]
    assert (sample.size_original, sample.id) == ((20, 12), 1)
    expected = dataset.transform(pixels, 0, 0)
    assert sample.image.shape == (3, 8, 8)
    assert np.array_equal(sample.image.permute(1, 2, 0).numpy(), expected)


def test_a_broken_image_comes_back_as_its_error(folders: Path) -> None:
    config = make_config(splits(folders))
    error = open_classes(config, "train")[0, 3]
    assert isinstance(error, DataError)
    assert str(error) == f"{folders}/train/metal/0.png: the file is empty"


def test_other_channels_than_an_image_has(folders: Path) -> None:
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folders / "val/metal/x.png")
    config = make_config(splits(folders), in_channels=4)
    error = open_classes(config, "val")[0, 0]
    assert str(error) == f"{folders}/val/metal/x.png: has 3 channels, model.in_channels asks for 4"


@pytest.mark.parametrize("way", ["..", "absolute"])
def test_a_path_that_leads_out_of_the_folder(way: str, colors: Path, tmp_path: Path) -> None:
    root, outside = tmp_path / "images", colors / "train" / "red" / "red_0.png"
    root.mkdir()
    name = {"..": os.path.relpath(outside, root), "absolute": str(outside)}[way]
    path = tmp_path / "labels.csv"
    path.write_text(f"path,label\n{name},red\n", encoding="utf-8")
    message = error_of(lambda: read_csv(path, root, None, multi_label=False))
    assert message.startswith(f"{path}:2: {name} leads out of {root}; ")
    assert "data.allow_outside=true" in message
    assert len(read_csv(path, root, None, multi_label=False, allow_outside=True)) == 1
