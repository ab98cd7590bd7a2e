"""What ``infer`` writes besides the predictions: the same objects in every format, crops and counts."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detector.__main__ import run_command
from detector.checkpoints.checkpoint import save_checkpoint
from detector.checkpoints.opening import open_model
from detector.dev.stress import tiny_checkpoint
from detector.inference.exports import class_folders
from detector.structures import Category

LOWEST = 0.64
NAMES = ["a/1.png", "a/2.x.png", "ö & <b>.png", "wide.png"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector whose weights are so large that scores differ: half of the best ones are above ``LOWEST``."""
    path = tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny.pt")
    model, config, categories = open_model(path)
    torch.manual_seed(0)
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_checkpoint(path, config, categories, {"model": model.state_dict()})
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        size = (40, 120, 1) if name == "wide.png" else (64, 48, 1)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8).repeat(3, axis=2)).save(folder / name)
    return folder


def infer(checkpoint: Path, images: Path, output: Path, *more: str) -> int:
    given = ["--checkpoint", str(checkpoint), "--input", str(images), "--output", str(output), "--workers", "0"]
    given += ["--device", "cpu", "model.predict.score_threshold=0.0", "model.predict.max_detections=6"]
    return run_command("infer", [*given, *more])


@pytest.fixture(scope="module")
def found(checkpoint: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("out") / "found"
    (images / "bad.png").write_bytes(b"no image")
    more = ["--format", "coco,csv", "--format", "labelstudio", "--crops", "--counts", "--no-images"]
    assert infer(checkpoint, images, output, *more, "--draw-score", str(LOWEST)) == 1
    return output


@pytest.fixture(scope="module")
def results(found: Path) -> list[dict[str, Any]]:
    return json.loads((found / "predictions.json").read_text(encoding="utf-8"))


def test_every_format_has_the_same_objects(found: Path, results: list[dict[str, Any]]) -> None:
    """Of images that were read, those without objects too; the image that is broken is in none."""
    assert len(results) == 6 * len(NAMES)
    tree = json.loads((found / "coco.json").read_text(encoding="utf-8"))
    assert {image["file_name"] for image in tree["images"]} == set(NAMES)
    sizes = {image["file_name"]: (image["width"], image["height"]) for image in tree["images"]}
    assert sizes == dict.fromkeys(NAMES, (48, 64)) | {"wide.png": (120, 40)}
    keys = ("image_id", "category_id", "bbox", "score")
    assert [[row[key] for key in keys] for row in tree["annotations"]] == [
        [row[key] for key in keys] for row in results
    ]
    assert {row["image_id"]: row["file_name"] for row in results} == {
        image["id"]: image["file_name"] for image in tree["images"]
    }
    with (found / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image_path"], row["label"], float(row["score"])) for row in rows] == [
        (row["file_name"], row["category_name"], row["score"]) for row in results
    ]
    tasks = json.loads((found / "labelstudio.json").read_text(encoding="utf-8"))
    assert [len(task["predictions"][0]["result"]) for task in tasks] == [6] * len(NAMES)


def test_crops_and_counts_have_what_is_drawn(found: Path, images: Path, results: list[dict[str, Any]]) -> None:
    wanted, counts, number = set(), defaultdict(Counter), Counter()  # type: ignore[var-annotated]
    for row in results:
        number[row["file_name"]] += 1
        if row["score"] >= LOWEST:
            counts[row["file_name"]][row["category_name"]] += 1
            wanted.add(f"{row['category_name']}/{row['file_name']}_{number[row['file_name']]}.jpg")
    assert 0 < len(wanted) < len(results)
    crops = {path.relative_to(found / "crops").as_posix() for path in (found / "crops").rglob("*.jpg")}
    assert crops == wanted
    assert not (found / "images").exists()
    with (found / "counts.csv").open(newline="", encoding="utf-8") as file:
        rows = {row.pop("image"): {name: int(count) for name, count in row.items()} for row in csv.DictReader(file)}
    assert rows == {name: {category: counts[name][category] for category in rows[name]} for name in NAMES}
    assert sum(sum(row.values()) for row in rows.values()) == len(wanted)

    row = results[0]  # a crop is the pixels that its box touches
    x, y, w, h = row["bbox"]
    path = found / "crops" / row["category_name"] / f"{row['file_name']}_1.jpg"
    with Image.open(path) as crop, Image.open(images / row["file_name"]) as whole:
        corners = (int(x), int(y), int(np.ceil(x + w)), int(np.ceil(y + h)))
        assert crop.size == (corners[2] - corners[0], corners[3] - corners[1])
        difference = np.asarray(crop, dtype=float) - np.asarray(whole.crop(corners), dtype=float)
        assert np.abs(difference).mean() < 10  # of gray noise as JPEG; other noise differs by 85


def test_folders_of_classes_with_any_name() -> None:
    names = ["a/b", "a\\b", "A_B", "..", "", "ü" * 200, "con:1 ", "a_b_2"]
    folders = class_folders([Category(number, name) for number, name in enumerate(names)])
    assert list(folders.values()) == ["a_b", "a_b_2", "A_B_3", "_", "__2", "ü" * 50, "con_1", "a_b_2_2"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--format", "yolo,vocc"], "--format: 'vocc' is not a format; use coco, yolo, voc, csv, cvat or labelstudio"),
        (["--format", ""], "--format: '' is not a format"),
        (["--format=voc"], "/taken/voc: exists already; choose another name, or remove it"),
        (["--format=yolo"], "twice.jpg and twice.png would share the labels labels/twice.txt; rename one of them"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_any_work(
    more: list[str], said: str, checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "taken"
    (output / "voc").mkdir(parents=True)
    for suffix in ("jpg", "png"):
        (tmp_path / f"twice.{suffix}").write_bytes((images / "wide.png").read_bytes())
    assert infer(checkpoint, tmp_path, output, *more) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert [path.name for path in output.iterdir()] == ["voc"]
