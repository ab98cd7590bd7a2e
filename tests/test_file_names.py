"""File names in annotations: which are refused, and which file is meant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from coco_files import make_tree, same_size, sample_of, write

from detector.config.schema import DataConfig, SplitConfig
from detector.data.detection import (
    CocoDataset,
    Sample,
    open_dataset,
)
from detector.data.names import Names, files_below, is_certain
from detector.errors import DataError


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
