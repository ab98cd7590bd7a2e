"""The pages of evaluation and of the data: their content, in a real browser, and the files beside them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.__main__ import run_command
from detector.config.schema import Config
from detector.data.formats.class_folders import read_folders
from detector.data.spot_check import spread
from detector.evaluation.classification import single_label_metrics, single_label_tally
from detector.evaluation.coco import METRICS
from detector.reports import Scored
from detector.reports.class_page import classification_report


def results_of(tree: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Most of the truth a little moved, some of it as another class, and some boxes of nothing."""
    rng = np.random.default_rng(seed)
    results = []
    for row in tree["annotations"]:
        if rng.random() < 0.8:
            left, top, width, height = row["bbox"]
            box = [left + rng.normal(0, 0.1) * width, top, width, height]
            category = row["category_id"] if rng.random() < 0.8 else rng.integers(1, 5)
            results.append((row["image_id"], box, rng.uniform(0.3, 1), category))
        results.append((row["image_id"], [*rng.uniform(0, 100, 2), 40, 40], rng.uniform(0, 0.5), rng.integers(1, 5)))
    keys = ("image_id", "bbox", "score", "category_id")
    return [dict(zip(keys, (i, list(map(float, box)), float(s), int(c)), strict=True)) for i, box, s, c in results]


@pytest.fixture(scope="module")
def files(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two results files for the val images."""
    folder = tmp_path_factory.mktemp("results")
    tree = json.loads((shapes / "annotations/val.json").read_text())
    for seed, name in enumerate(["one.json", "two.json"]):
        (folder / name).write_text(json.dumps(results_of(tree, seed)))
    return folder


@pytest.fixture(scope="module")
def report(shapes: Path, files: Path) -> Path:
    given = ["--annotations", str(shapes / "annotations/val.json"), "--images", str(shapes / "images")]
    given += ["--results", str(files / "one.json"), "--against", str(files / "two.json")]
    assert run_command("evaluate", [*given, "--report", str(files / "report"), "--json"]) == 0
    return files / "report"


def test_figures_are_written_beside_the_page(report: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = json.loads((report / "report.json").read_text())
    assert set(METRICS) <= figures["metrics"].keys()
    assert figures["against"]["metrics"]["AP"] != figures["metrics"]["AP"]
    with (report / "images.csv").open(encoding="utf-8") as file:
        images = [{key: int(value) for key, value in row.items() if key != "file_name"} for row in csv.DictReader(file)]
    assert len(images) == 6
    for row in images:
        assert row["objects"] == row["found"] + row["missed"]
        assert row["errors"] == row["missed"] + row["false"]
        assert row["difference"] == row["errors"] - row["errors_against"]
    assert [row["errors"] for row in images] == sorted((row["errors"] for row in images), reverse=True)
    totals = {name: sum(row[name] for row in images) for name in ("objects", "found", "missed", "false")}
    assert totals == {name: sum(row[name] for row in figures["classes"]) for name in totals}
    confusion = np.array(figures["confusion"])
    assert confusion[:-1].sum() == totals["objects"]  # every object is in its row once
    assert {path.name for path in report.iterdir()} >= {"classes.csv", "errors.csv", "curves.csv", "report.html"}


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1600, "light")])
def test_the_page_of_a_report(report: Path, open_page: Callable[..., Any], width: int, scheme: str) -> None:
    page = open_page(report / "report.html", width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    titles = ["Score", "Compared", "Classes", "Curves", "Confusion", "Error types", "Size and crowding", "Calibration"]
    assert page.locator("h2").all_inner_texts() == [*titles, "Worst images"]
    assert page.locator(".chart svg").count() == 8

    classes = page.locator("section", has=page.locator("h2", has_text="Classes")).locator("tbody tr")
    missed = [int(text) for text in classes.locator("td:nth-child(9)").all_inner_texts()]
    classes.locator("xpath=ancestor::table").get_by_role("button", name="missed").click()
    assert [int(text) for text in classes.locator("td:nth-child(9)").all_inner_texts()] == sorted(missed)[::-1]

    images = page.locator(".enlarge")
    assert 1 <= images.count() <= 6
    images.first.click()
    enlarged = page.locator("dialog img")
    assert enlarged.evaluate("image => image.naturalWidth") == 2 * 480 + 8  # truth and detections side by side
    page.keyboard.press("Escape")


def test_without_the_images_the_page_says_so(shapes: Path, tmp_path: Path) -> None:
    tree = json.loads((shapes / "annotations/val.json").read_text())
    row = tree["annotations"][0]
    others = [own for own in results_of(tree, 0) if own["image_id"] != row["image_id"]]
    (tmp_path / "r.json").write_text(json.dumps(others))
    given = ["--annotations", str(shapes / "annotations/val.json"), "--results", str(tmp_path / "r.json")]
    assert run_command("evaluate", [*given, "--report", str(tmp_path / "report")]) == 0
    text = (tmp_path / "report/report.html").read_text()
    assert "the folder of the images was not given" in text
    assert "<img src" not in text
    with (tmp_path / "report/images.csv").open(encoding="utf-8") as file:
        rows = {int(row["image_id"]): row for row in csv.DictReader(file)}
    assert rows[row["image_id"]]["missed"] == rows[row["image_id"]]["objects"] != "0"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--against", "nothing.json"], ["nothing.json", "does not exist"]),
        (["--against", "."], ["--images"]),
        (["--against", ".", "--images", "{images}"], ["without best.pt"]),
        (["--images", "nowhere"], ["nowhere is not a folder"]),
        (["--report", "{images}/val_00012.jpg"], ["val_00012.jpg", "is a file; choose another name"]),
        (["--against", "{other}"], ["other.json", "image_id 999", "val.json"]),
        (["--images", "{files}"], ["val_000", "does not exist"]),
    ],
)
def test_a_report_on_a_mistake(
    shapes: Path,
    files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: list[str],
) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps([{"image_id": 999, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]))
    arguments = [text.format(images=shapes / "images", files=files, other=other) for text in arguments]
    given = ["--annotations", str(shapes / "annotations/val.json"), "--results", str(files / "one.json")]
    assert run_command("evaluate", [*given, "--report", str(tmp_path / "report"), *arguments]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in error


def test_against_needs_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("evaluate", ["--checkpoint", "x.pt", "--against", "y.pt"]) == 2
    assert "--report" in capsys.readouterr().err


def test_the_page_of_a_classifier(colors: Path, tmp_path: Path, open_page: Callable[..., Any]) -> None:
    truth = read_folders(colors / "val", None)
    scored = []
    for seed, name in enumerate(["here", "there"]):
        scores = np.random.default_rng(seed).dirichlet(np.ones(3), len(truth))
        tally = single_label_tally(np.arange(len(truth)), scores, truth.labels)
        scored.append(Scored(name, tally.rows, single_label_metrics(tally, truth.categories)))
    report = classification_report(scored[0], truth, Config(), truth.root, scored[1])
    page = open_page(report.write(tmp_path, "Classes"), 400)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    titles = ["Score", "Compared", "Classes", "Confusion", "Most confident mistakes"]
    assert page.locator("h2").all_inner_texts() == titles
    with (tmp_path / "mistakes.csv").open(encoding="utf-8") as file:
        mistakes = list(csv.DictReader(file))
    captions = page.locator(".gallery figcaption").all_inner_texts()
    assert len(captions) == len(mistakes) > 0
    assert all(row["file"] in caption for row, caption in zip(mistakes, captions, strict=True))
    page.locator(".enlarge").first.click()
    assert page.locator("dialog p").inner_text() == captions[0]


# --- galleries --------------------------------------------------------------------------------------------------------


def test_images_are_spread_evenly() -> None:
    assert spread(100, 3) == [0, 50, 99]
    assert spread(2, 40) == [0, 1]
    assert spread(7, 1) == [0]


def test_browse_shows_the_data_as_stored_and_as_augmented(
    shapes: Path, tmp_path: Path, open_page: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"data.train.annotations={shapes}/annotations/train.json", f"data.train.images={shapes}/images"]
    output = tmp_path / "deep" / "data.html"
    arguments = ["--config", "quickstart.yaml", "--number", "4", "--output", str(output)]
    assert run_command("browse", [*arguments, *given, "data.augment.scale_jitter=[0.5,2.0]"]) == 0
    assert capsys.readouterr().out == f"4 images: {output}\n"
    page = open_page(output, 400)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    captions = page.locator(".gallery figcaption").all_inner_texts()
    assert len(captions) == 4
    assert captions[0].startswith("train_00000.jpg, 192×192 as stored; ")
    page.locator(".enlarge").nth(2).click()
    assert (
        page.locator("dialog img").evaluate("image => image.naturalWidth / image.naturalHeight") > 2.9
    )  # three of them
    assert page.locator("dialog p").inner_text() == captions[2]


def test_browse_shows_classes(colors: Path, tmp_path: Path) -> None:
    given = ["--config", "classify_quickstart.yaml", "--number", "3", "--output", str(tmp_path / "classes.html")]
    given += [f"data.train.images={colors}/train", "data.augment.mixup=1"]
    assert run_command("browse", given) == 0
    text = (tmp_path / "classes.html").read_text()
    assert text.count("as stored; 64×64, 64×64</figcaption>") == 3


def test_browse_on_a_mistake(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"data.train.annotations={shapes}/annotations/train.json", "data.train.images=nowhere"]
    assert run_command("browse", ["--config", "quickstart.yaml", "--output", str(tmp_path / "x.html"), *given]) == 2
    assert "data.train.images: nowhere is not a folder" in capsys.readouterr().err
    given[1] = f"data.train.images={shapes}/images"
    (tmp_path / "file").write_text("")
    output = str(tmp_path / "file" / "x.html")
    assert run_command("browse", ["--config", "quickstart.yaml", "--output", output, "--number", "1", *given]) == 2
    assert "is a file; choose another name" in capsys.readouterr().err
