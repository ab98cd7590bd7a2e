"""The doctor as a user calls it: exit codes, the cleaned copy, the page, and one clear line for every mistake."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import detector.analysis.doctor.files
from detector.__main__ import main, run_command
from detector.analysis.doctor.examination import Settings, examine
from detector.analysis.doctor.files import FileFacts
from detector.analysis.doctor.findings import CHECKS
from detector.analysis.doctor.fixing import fix_tree
from detector.analysis.doctor.reading import read_boxes
from detector.data.formats.building import Source
from detector.data.formats.reading import read_annotations

BOX = [4.0, 4.0, 30.0, 20.0]


@pytest.fixture
def data(shapes: Path, tmp_path: Path) -> Path:
    """A copy of the generated set, to be spoilt."""
    return Path(shutil.copytree(shapes, tmp_path / "data"))


def arguments(data: Path, *splits: str) -> list[str]:
    given = ["--annotations", f"{data}/annotations/train.json", "--images", f"{data}/images"]
    return [*given, "--val-annotations", f"{data}/annotations/val.json"] if "val" in splits else given


def edit(path: Path, change: Callable[[dict], object]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def spoil(tree: dict[str, Any]) -> None:
    """One fault of every kind that --fix fixes, on the first annotations of the file."""
    rows = tree["annotations"]
    rows[0]["bbox"] = [1, 1, float("nan"), 5]
    rows[1]["bbox"] = [1, 1, 0, 5]
    rows[2]["image_id"] = 9999
    rows[3]["category_id"] = 9999
    rows[4] |= {"bbox": [-10, 5, 30, 20], "area": 600}
    rows[5]["bbox"] = [-50, 5, 30, 20]
    rows[7]["id"] = rows[6]["id"]
    rows.append({**rows[8], "id": 5000})
    del tree["images"][-1]["width"]


def test_exit_codes_and_json(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("doctor", arguments(data, "val")) == 0
    out = capsys.readouterr().out
    assert "12 images" in out
    (data / "images" / "train_00000.jpg").unlink()
    assert run_command("doctor", [*arguments(data, "val"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    first = report["findings"][0]
    assert (first["check"], first["severity"], first["count"]) == ("file-missing", "error", 1)
    assert first["examples"] == [{"file": "train_00000.jpg"}]
    assert first["remedy"] == CHECKS["file-missing"].remedy
    assert [split["split"] for split in report["splits"]] == ["train", "val"]


def test_the_data_of_a_config(data: Path, colors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [f"data.{name}.annotations={data}/annotations/{name}.json" for name in ("train", "val")]
    overrides += [f"data.{name}.images={data}/images" for name in ("train", "val")]
    assert run_command("doctor", ["--config", "quickstart.yaml", *overrides]) == 0
    # The size at which quickstart.yaml sees the images.
    assert "size at 128/128" in capsys.readouterr().out
    overrides = [f"data.{name}={{annotations: null, images: {colors}/{name}}}" for name in ("train", "val")]
    assert run_command("doctor", ["--config", "classify_quickstart.yaml", *overrides, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"][0]["objects"] == 18


def test_fix_writes_a_clean_copy_and_every_change(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = data / "annotations/train.json"
    edit(path, spoil)
    before = path.read_bytes()
    out = tmp_path / "new" / "fixed.json"
    assert run_command("doctor", [*arguments(data), "--fix", str(out)]) == 1
    assert not out.parent.exists()
    said = capsys.readouterr().err
    assert re.search(r"NOTHING IS WRITTEN: .*, 5 of \d+ annotations would be removed, all of category_id 9999", said)
    assert run_command("doctor", [*arguments(data), "--fix", str(out), "--allow-loss"]) == 1
    assert path.read_bytes() == before
    changes = [json.loads(line) for line in (out.parent / "fixed.json.changes.jsonl").read_text().splitlines()]
    assert sorted((change["check"], change["change"]) for change in changes) == [
        ("annotation-id-duplicate", "renumbered"),
        ("box-duplicate", "removed"),
        ("box-no-area", "removed"),
        ("box-not-finite", "removed"),
        ("box-outside", "cut"),
        ("box-outside", "removed"),
        ("category-dangling", "removed"),
        ("image-dangling", "removed"),
        ("size-missing", "corrected"),
    ]
    by = {(change["check"], change["change"]): change for change in changes}
    cut = by["box-outside", "cut"]
    assert (cut["before"], cut["after"]) == ([-10, 5, 30, 20], [0.0, 5.0, 20.0, 20.0])  # 30 - 10 wide
    assert by["annotation-id-duplicate", "renumbered"]["after"] == 5001
    assert by["box-not-finite", "removed"]["before"]["bbox"] == [1, 1, "nan", 5]
    assert all(change.keys() >= {"before", "after"} for change in changes)

    written = (
        "written; 1 sizes taken from the file, 1 removed: image not listed, 1 removed: category not listed, 1 removed"
    )
    assert written in capsys.readouterr().out
    fixed = json.loads(out.read_text())
    original = json.loads(before)
    assert len(fixed["annotations"]) == len(original["annotations"]) - 6
    assert {row["id"]: row for row in fixed["annotations"]}[cut["annotation"]]["area"] == 400.0
    assert fixed.keys() == original.keys()
    read_annotations(out)  # the strict reader takes it
    assert run_command("doctor", ["--annotations", str(out), "--images", f"{data}/images"]) == 0


def test_fix_corrects_the_names_of_files(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = data / "images"
    (images / "a").mkdir()
    (images / "b").mkdir()
    (images / "train_00003.jpg").rename(images / "a" / "x.jpg")
    shutil.copy(images / "train_00004.jpg", images / "b" / "x.jpg")
    (images / "train_00005.jpg").rename(images / "b" / "y.jpg")
    names = ["images\\train_00000.jpg", "/home/me/images/train_00001.JPG", "../train%5F00002.jpg"]
    # What may be either of two files, what a folder speaks against, and what another image has.
    names += ["https://host/set/train_00006.jpg?sig=1", "x.jpg", "train_00004.jpg", "test/y.jpg", "train_00004.png"]

    def change(tree: dict[str, Any]) -> None:
        for image, name in zip(tree["images"], names, strict=False):
            image["file_name"] = name

    edit(data / "annotations/train.json", change)
    out = tmp_path / "fixed.json"
    assert run_command("doctor", [*arguments(data), "--fix", str(out)]) == 1
    printed = capsys.readouterr().out
    assert "x.jpg: it may be any of 2 files: a/x.jpg, b/x.jpg" in printed
    assert ": 5 (4 probably exist under another name; 1 may be any of several files)" in printed
    fixed = [image["file_name"] for image in json.loads(out.read_text())["images"]]
    meant = [f"train_0000{number}.jpg" for number in (0, 1, 2, 6)]
    assert fixed[:8] == [*meant, *names[4:]]
    changes = [json.loads(line) for line in out.with_name("fixed.json.changes.jsonl").read_text().splitlines()]
    assert [(change["change"], change["before"], change["after"]) for change in changes] == [
        ("renamed", before, after) for before, after in zip(names, meant, strict=False)
    ]


# The annotated size, the boxes, the file's size and EXIF orientation; and whether the file's size is taken.
SIZES: dict[str, tuple[tuple[object, object], list[list[float]], tuple[int, int], int, bool]] = {
    "missing": ((None, None), [BOX], (96, 64), 1, True),
    "missing, but a box does not fit": ((None, None), [[80, 4, 30, 20]], (96, 64), 1, False),
    "missing, and EXIF turns": ((None, None), [BOX], (96, 64), 6, False),
    "no boxes to misplace": ((500, 400), [], (96, 64), 1, True),
    "one side right": ((96, 100), [BOX], (96, 64), 1, True),
    "off by rounding": ((95, 63), [BOX], (96, 64), 1, True),
    "a box shows it": ((64, 96), [[60, 4, 30, 20]], (96, 64), 1, True),
    "halved after annotation": ((192, 128), [BOX], (96, 64), 1, False),
    "turned after annotation, perhaps": ((64, 96), [BOX], (96, 64), 1, False),
    "other image": ((500, 400), [[300, 4, 30, 20]], (96, 64), 1, False),
    "annotated upright": ((64, 96), [BOX], (96, 64), 6, True),  # nothing to correct
}


@pytest.mark.parametrize("case", SIZES)
def test_a_size_is_corrected_only_where_the_boxes_allow(case: str, tmp_path: Path) -> None:
    (width, height), boxes, size, orientation, is_right = SIZES[case]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.linear_gradient("L").resize(size).convert("RGB").save(tmp_path / "0.jpg", exif=exif)
    tree = {
        "images": [{"id": 1, "file_name": "0.jpg", "width": width, "height": height}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 1, "bbox": box} for number, box in enumerate(boxes, start=1)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(tree))
    split = read_boxes("train", Source(path, tmp_path))
    report = examine([split], Settings(), is_quick=True)
    fix_tree(tree, split, report.files[0])
    path.write_text(json.dumps(tree))
    again = examine([read_boxes("train", Source(path, tmp_path))], Settings(), is_quick=True)
    wrong = {"size-differs", "size-missing", "size-unclear", "box-outside"}
    is_clean = not {one.check for one in again.findings} & wrong
    assert is_clean == is_right
    assert [row["bbox"] for row in tree["annotations"]] == boxes  # none is moved by a size in doubt


def given_ids(images: list[Any], categories: list[Any], *annotations: tuple[Any, Any]) -> dict[str, Any]:
    """A tree of ids: of each annotation, that of its image and that of its class."""
    return {
        "images": [{"id": own, "file_name": f"{place}.png"} for place, own in enumerate(images)],
        "categories": [{"id": own, "name": f"class {place}"} for place, own in enumerate(categories)],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}
            for number, (image, category) in enumerate(annotations, start=1)
        ],
    }


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # All are off by one, and none is listed.
        (given_ids([1], [0], (1, 1)), given_ids([1], [0], (1, 0))),
        # One stray id beside right ones looks the same: no other annotation may move.
        (given_ids([5], [1, 2], (5, 1), (5, 0)), given_ids([5], [1, 2], (5, 1))),
        (given_ids([1, 2], [1], (1, 1), (0, 1)), given_ids([1, 2], [1], (1, 1))),
        # Written both ways: as integers, in the list and in annotations.
        (given_ids(["1", 2], ["7"], ("1", 7), (2, "7")), given_ids([1, 2], [7], (1, 7), (2, 7))),
        (given_ids(["1", " 2"], ["7"], ("1.0", "7")), given_ids([1, 2], ["7"], (1, "7"))),
        (given_ids(["a", "1"], [7], ("a", 7), ("1", 7)), given_ids(["a", "1"], [7], ("a", 7), ("1", 7))),
        # Two entries of one id, which only their type tells apart: nothing is joined, nothing is a copy.
        (given_ids([1, "1"], [7], (1, 7), ("1", 7)), given_ids([1, "1"], [7], (1, 7), ("1", 7))),
        (given_ids([1, 1], [7], (1, 7), (1, 7)), given_ids([1, 1], [7], (1, 7), (1, 7))),
        (given_ids([5], [1, "1"], (5, 1), (5, "1")), given_ids([5], [1, "1"], (5, 1), (5, "1"))),
    ],
)
def test_fix_joins_only_ids_that_have_no_other_reading(
    before: dict[str, Any], after: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(before))
    split = read_boxes("train", Source(path, tmp_path))
    assert fix_tree(before, split, [FileFacts()] * len(split.files)).tree == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"segmentation": [["5", 5, "9.5", 5, "9", "9"], []]}, {"segmentation": [[5, 5, 9.5, 5, 9, 9]]}),
        ({"segmentation": ["5", "5", "9", "5", "9", "9"]}, {"segmentation": [[5, 5, 9, 5, 9, 9]]}),
        ({"segmentation": [[], []]}, {}),
        ({"segmentation": []}, {"segmentation": []}),
        ({"segmentation": [["5", "x"]]}, {"segmentation": [["5", "x"]]}),
        ({"bbox": "1 1 5 5"}, {}),
        ({"bbox": {"x": 1, "y": "1", "width": 5, "height": 5.0}}, {}),
    ],
)
def test_fix_writes_boxes_and_polygons_as_numbers(
    before: dict[str, Any], after: dict[str, Any], tmp_path: Path
) -> None:
    tree, path = given_ids([1], [7], (1, 7)), tmp_path / "a.json"
    [row] = tree["annotations"]
    expected = row | after
    row |= before
    path.write_text(json.dumps(tree))
    fix = fix_tree(tree, read_boxes("train", Source(path, tmp_path)), [FileFacts()])
    assert fix.tree["annotations"] == [expected]
    assert bool(fix.changes) == (before != after)


def test_fix_of_both_splits(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "fixed.json"
    edit(data / "annotations/val.json", lambda tree: tree["annotations"][0].update(bbox=[1, 1, 0, 5]))
    command = [*arguments(data, "val"), "--fix", str(out), "--quick"]
    assert run_command("doctor", command) == 1
    assert not out.exists()  # neither is written where one would lose too much
    assert run_command("doctor", [*command, "--allow-loss"]) == 1
    assert json.loads(out.read_text()) == json.loads((data / "annotations/train.json").read_text())
    assert (tmp_path / "fixed.json.changes.jsonl").read_text() == ""
    assert len((tmp_path / "fixed.val.json.changes.jsonl").read_text().splitlines()) == 1


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with, exit code 2."""
    assert main(["doctor", *argv]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    return errors[0]


@pytest.mark.parametrize(
    "target", ["annotations/train.json", "images/../annotations/train.json", "annotations/val.json"]
)
def test_fix_overwrites_nothing(data: Path, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = (data / target).read_bytes()
    assert "exists already; choose another name" in refused([*arguments(data), "--fix", f"{data}/{target}"], capsys)
    assert (data / target).read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "give --config, --annotations, or --images"),
        (["--annotations", "a.json"], "a.json: cannot be read: No such file"),
        (["--images", ".", "--annotations", "a.json", "--val-images", "."], "give --val-annotations too"),
        (["--images", "nowhere"], "--images: nowhere is not a folder"),
        (["--annotations", "nowhere.json", "--images", "."], "nowhere.json: cannot be read: No such file"),
        (["--config", "quickstart.yml"], "did you mean quickstart.yaml?"),
        (["--config", "quickstart.yaml", "data.trian.images=x"], "did you mean 'train'?"),
        (["--config", "quickstart.yaml", "--images", "."], "either --config or"),
        (["--config", "retinanet_r18_fpn.yaml", "data.train.images=null"], "instances_train2017.json: cannot be read"),
        (["--images", ".", "--allow-loss"], "has no effect without --fix OUT"),
        (["--images", ".", "data.resize.long=5"], "need --config"),
        (["--config", "quickstart.yaml", "--one-based", "true"], "give these as KEY=VALUE"),
        (["--images", "docs", "--fix", "x.json"], "no class folders"),
    ],
)
def test_a_mistake_gets_one_line(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in refused(argv, capsys)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; restore the file"),
        (b'{"images": [', ":1: not valid JSON"),
        (b"[]", "holds a list; COCO annotations are an object"),
        (b'{"images": 5}', "has no list 'images'"),
        (b"\xff\xfe\x00", "is text in UTF-16; save the file as UTF-8"),
    ],
)
def test_a_file_that_is_not_coco_gets_one_line(
    data: Path, content: bytes, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "annotations/train.json").write_bytes(content)
    assert words in refused(arguments(data), capsys)


def test_a_page_that_cannot_be_written(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "file").touch()
    assert f"{data}/file: is a file" in refused([*arguments(data), "--quick", "--html", f"{data}/file/x.html"], capsys)


def test_labelled_images_have_nothing_to_fix(colors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--fix fixes annotations of boxes" in refused(["--images", f"{colors}/train", "--fix", "x.json"], capsys)


def test_an_interrupt_ends_it(data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(detector.analysis.doctor.files.tqdm, "update", interrupt)
    assert main(["doctor", *arguments(data)]) == 130
    assert capsys.readouterr().err.strip().endswith("stopped")


def kill_itself(*_: object, **options: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_ends_it(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(detector.analysis.doctor.files, "look_at", kill_itself)
    assert run_command("doctor", arguments(data)) == 2
    said = capsys.readouterr().err
    assert re.search(r"train_\d+\.jpg: a process that read this image, or one of the next \d+, was", said)


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def page_file(data: Path, tmp_path: Path) -> Path:
    edit(data / "annotations/train.json", spoil)
    leak = json.loads((data / "annotations/val.json").read_text())["images"][0]["file_name"]
    shutil.copy(data / "images/train_00003.jpg", data / "images" / leak)
    path = tmp_path / "doctor.html"
    assert run_command("doctor", [*arguments(data, "val"), "--html", str(path)]) == 1
    return path


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1600, "light")])
def test_the_page_in_a_browser(page_file: Path, open_page: Callable[..., Any], width: int, scheme: str) -> None:
    page = open_page(page_file, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("h2").all_inner_texts() == ["Findings", "Examples", "Classes", "Sizes"]
    found = page.locator("table").first.locator("tbody tr")
    assert "error" in found.first.inner_text()
    page.get_by_role("button", name="count", exact=True).click()
    column = found.locator("td:nth-child(3)").all_inner_texts()
    assert [int(text) for text in column] == sorted(map(int, column), reverse=True)
    leak = page.locator("figcaption", has_text="like train: train_00003.jpg")
    assert leak.count() == 1
    page.locator(".enlarge").first.click()
    assert page.locator("dialog img").bounding_box()["width"] >= min(0.8 * width, 560)
