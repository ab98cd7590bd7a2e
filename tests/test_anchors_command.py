"""``tools/anchors.py`` as a user types it, and its page in a browser."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from networks import MAX_IOU

from detector.__main__ import main
from detector.config.loader import load_config

MODEL = ["model.backbone.name=resnet10", "model.fpn={levels: [3, 4, 5], channels: 16}", "model.anchors.base_size=6"]


@pytest.fixture(scope="module")
def data(shapes: Path) -> list[str]:
    splits = [f"data.{split}.annotations={shapes}/annotations/{split}.json" for split in ("train", "val")]
    return [*MODEL, *splits, f"data.train.images={shapes}/images", f"data.val.images={shapes}/images"]


@pytest.fixture(scope="module")
def outputs(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that one call wrote: page.html, mine.yaml and printed.json."""
    folder = tmp_path_factory.mktemp("anchors")
    with pytest.MonkeyPatch.context() as patch, (folder / "printed.json").open("w") as printed:
        patch.setattr("sys.stdout", printed)
        patch.setattr("detector.analysis.anchors.search.FEWER_GENERATIONS", 1)
        flags = ["--suggest", "--json", "--html", str(folder / "page.html"), "--write", str(folder / "mine.yaml")]
        assert main(["anchors", "--config", MAX_IOU, *flags, *data]) == 0
    return folder


def test_what_it_counts(outputs: Path, shapes: Path) -> None:
    content = json.loads((outputs / "printed.json").read_text())
    objects = len(json.loads((shapes / "annotations" / "train.json").read_text())["annotations"])
    overall = content["overall"]
    assert (overall["objects"], overall["images"], overall["matched_images"]) == (objects, 12, 12)
    assert overall["recall"] + overall["low_quality"] + overall["missed"] == pytest.approx(1)
    for kind in ("by_size", "by_ratio", "by_class", "levels"):
        assert sum(row["objects"] for row in content[kind]) == objects
    # Positives of all objects, by object, by image and by level.
    total = overall["positives"] * objects
    assert total == pytest.approx(overall["positives_per_image"] * 12)
    assert sum(row["positives_share"] for row in content["levels"]) == pytest.approx(1)
    assert sum(row["anchors_share"] for row in content["levels"]) == pytest.approx(1)
    assert [row["anchors"] for row in content["levels"]] == [16 * 16 * 9, 8 * 8 * 9, 4 * 4 * 9]
    assert content["worst"] == sorted(content["worst"], key=lambda row: row["best_iou"])


def test_a_suggestion_is_written_and_read_back(outputs: Path) -> None:
    content = json.loads((outputs / "printed.json").read_text())
    rows = content["suggestion"]["rows"]
    assert [(row["split"], row["anchors_are"]) for row in rows] == [
        ("train", "config"),
        ("train", "suggested"),
        ("val", "config"),
        ("val", "suggested"),
    ]
    assert rows[1]["recall"] > rows[0]["recall"]
    config = load_config(outputs / "mine.yaml")
    assert config.model.anchors.base_size != 6
    assert config.model.fpn.channels == 16  # what the command line said, too
    assert (outputs / "mine.yaml").read_text() == content["suggestion"]["yaml"]
    assert content["suggestion"]["options"][0]["name"] == "as configured"


def test_tables_on_a_terminal(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["anchors", "--config", MAX_IOU, *data]) == 0
    printed = capsys.readouterr().out
    for title in ("All objects", "By size", "By ratio", "By class", "By level", "Objects that no anchor covers well"):
        assert f"{title}" in printed
    assert "Suggestion" not in printed
    assert max(map(len, printed.splitlines())) <= 120


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "classify_quickstart.yaml"], "task classification has no anchors; give the config of a detector"),
        (
            ["--config", "quickstart.yaml", "data.train.annotations=null", "data.train.images=null"],
            "data.train.annotations is not set; give it in the config",
        ),
        (["--config", MAX_IOU, "--write", "x.yaml"], "--write has no effect without --suggest"),
        (["--config", MAX_IOU, "data.train.annotations=no.json"], "no.json: cannot be read: No such file"),
        (["--config", "quickstart.yaml", "model.anchors.bas_size=2"], "unknown key; did you mean 'base_size'?"),
    ],
)
def test_mistakes_get_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["anchors", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["atss", "task_aligned"])
def test_an_assigner_without_thresholds(
    name: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it assigns is reported, not IoUs at a threshold that it does not have; anchors that fit are no matter."""
    own = [*data, f"model.matcher.name={name}", "model.anchors={base_size: 8.0, ratios: [1.0], scales: [1.0]}"]
    page = tmp_path / "page.html"
    assert main(["anchors", "--config", MAX_IOU, "--html", str(page), *own]) == 0
    printed = capsys.readouterr().out
    assert f"(fraction that {name} assigns anchors to)" in printed
    assert ("This is what atss assigns, until" in printed) == (name == "task_aligned")
    assert "low-quality" not in printed + page.read_text()
    assert "threshold" not in printed + page.read_text()
    assert main(["anchors", "--config", MAX_IOU, "--json", *own]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["assigner"], content["positive_threshold"]) == (name, None)
    assert content["overall"]["recall"] == pytest.approx(1 - content["overall"]["without_positive"])
    assert [row["anchors"] for row in content["levels"]] == [16 * 16, 8 * 8, 4 * 4]
    assert main(["anchors", "--config", MAX_IOU, "--suggest", *own]) == 2
    assert f"model.matcher.name {name} does not need anchors that fit the objects" in capsys.readouterr().err


def test_nothing_is_written_over(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 1\n")
    assert main(["anchors", "--config", MAX_IOU, "--suggest", "--write", str(path), *data]) == 2
    assert capsys.readouterr().err == f"error: {path}: exists already; choose another name, or remove it\n"
    assert path.read_text() == "seed: 1\n"


def test_a_set_without_objects(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = json.loads((shapes / "annotations" / "train.json").read_text())
    (tmp_path / "empty.json").write_text(json.dumps(tree | {"annotations": []}))
    overrides = [f"data.train.annotations={tmp_path}/empty.json", *MODEL]
    assert main(["anchors", "--config", MAX_IOU, *overrides]) == 2
    assert "has no objects, so there is nothing for anchors to cover" in capsys.readouterr().err


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1600, "light")])
def test_the_page_in_a_browser(outputs: Path, open_page: Callable[..., Any], width: int, scheme: str) -> None:
    page = open_page(outputs / "page.html", width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert "Suggestion" in page.locator("h2").all_inner_texts()
    assert page.locator("svg").count() == 2
    levels = page.locator("section", has_text="By level").last.locator("table")
    levels.get_by_role("button", name="stride").click()
    assert levels.locator("tbody td:first-child").all_inner_texts() == ["P5", "P4", "P3"]
    page.locator(".enlarge").first.click()
    assert "best IoU" in page.locator("dialog p").inner_text()
