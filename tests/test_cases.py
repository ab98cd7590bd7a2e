"""Small inputs as people's real tools write them (``cases/`` of the shared folder), through the commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detector.__main__ import run_command
from detector.data.synthetic import write_shapes

TINY = [
    "model.backbone.name=resnet10",
    "model.fpn={levels: [3, 4, 5], channels: 16}",
    "data.resize={short: [64], long: 64}",
    "train.steps=1",
    "train.batch_size=2",
    "data.workers=0",
]


class Case:
    """A copy of one folder of ``cases``, in which the commands run; each returns its exit code and all it printed."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys
        self.runs = 0

    def call(self, command: str, *arguments: str) -> tuple[int, str]:
        self.capsys.readouterr()
        code = run_command(command, list(arguments))
        out, err = self.capsys.readouterr()
        return code, err + out

    def train(self, *overrides: str, annotations: str = "a.json", val: str | None = None) -> tuple[int, str]:
        """One step, as the folder's README has it."""
        self.runs += 1
        data = [f"data.train.annotations={annotations}", f"data.val.annotations={val or annotations}"]
        data += ["data.train.images=img", "data.val.images=img"]
        name = ["--config", "quickstart.yaml", "--runs", "runs", "--name", f"run{self.runs}"]
        return self.call("train", *name, *TINY, *data, *overrides)

    def doctor(self, *arguments: str, annotations: str = "a.json") -> tuple[int, str]:
        return self.call("doctor", "--annotations", annotations, "--images", "img", *arguments)

    def fix(self, *arguments: str) -> dict[str, Any]:
        """The cleaned copy, which must train."""
        self.doctor("--quick", "--fix", "fixed.json", *arguments)
        assert self.train(annotations="fixed.json")[0] == 0
        return json.loads((self.folder / "fixed.json").read_text())

    def evaluate(self, results: str, *overrides: str) -> tuple[dict[str, float], str]:
        """The metrics of a results file."""
        code, text = self.call("evaluate", "--annotations", "a.json", "--results", results, "--output", "o", *overrides)
        assert code == 0, text
        return json.loads((self.folder / "o/results.json").read_text()), text


def says(outcome: tuple[int, str], code: int, *texts: str) -> None:
    assert outcome[0] == code, outcome[1]
    for text in texts:
        assert text in outcome[1], f"{text!r} is not in\n{outcome[1]}"


def annotation_without_id(case: Case) -> None:
    says(case.train(), 0, "without an id")
    says(case.doctor(), 0)


def area_not_of_the_box(case: Case) -> None:
    _, text = case.evaluate("r.json")
    assert "area" in text
    says(case.doctor(), 0, "area")
    # 20 × 20, 200 × 200
    assert [row["area"] for row in case.fix()["annotations"]] == [400, 40000]


def area_null(case: Case) -> None:
    says(case.train(), 0)
    says(case.doctor(), 0)


def backslash_file_name(case: Case) -> None:
    says(case.train(), 2, "images/a.png")
    says(case.doctor(), 1, "images/a.png")
    assert case.fix()["images"][0]["file_name"] == "images/a.png"


def bbox_empty_with_polygon(case: Case) -> None:
    says(case.train(), 0)
    assert [row["bbox"] for row in case.fix()["annotations"]] == [[5, 5, 40, 40]]


def bbox_number_strings(case: Case) -> None:
    says(case.train(), 0, "text")
    assert [row["bbox"] for row in case.fix()["annotations"]] == [[5, 5, 40, 40]]


def boxes_csv_read_as_classes(case: Case) -> None:
    says(case.doctor(annotations="boxes.csv"), 0, "blue: 1")
    data = ["data.train.images=img", "data.train.annotations=boxes.csv", "data.val=null"]
    says(case.call("train", "--config", "classify_quickstart.yaml", *data), 2, "boxes")


def cjk_labels(case: Case) -> None:
    says(case.train(), 0)
    assert (case.folder / "runs/run1/first_batch.jpg").exists()


def dropped_boxes_still_scored(case: Case) -> None:
    metrics, text = case.evaluate("perfect.json", "data.invalid_boxes=drop")
    assert metrics["AP"] == pytest.approx(1)  # the three valid boxes are found
    assert "2" in text and "dropped" in text


def exif_180(case: Case) -> None:
    says(case.train(), 0, "EXIF", "1.jpg")
    says(case.doctor(), 0, "EXIF")
    code, text = case.train("data.exif=upright")
    assert code == 0 and "EXIF" not in text


def file_name_leads_out(case: Case) -> None:
    says(case.train(), 2, "did you mean a.png?")
    says(case.doctor(), 1, "a.png")
    assert case.fix()["images"][0]["file_name"] == "a.png"


def fix_empties_dataset(case: Case) -> None:
    says(case.train(), 2, "category_id 1", "0 red")
    [row] = case.fix()["annotations"]
    assert row["category_id"] == 0


def ignore_flag(case: Case) -> None:
    says(case.train(), 0, "1 box ", "1 ignore region")
    (case.folder / "r.json").write_text(
        json.dumps(
            [
                {"image_id": 1, "category_id": 1, "bbox": [90, 60, 40, 40], "score": 0.9},  # excused
                {"image_id": 1, "category_id": 1, "bbox": [5, 5, 40, 40], "score": 0.8},
            ]
        )
    )
    for backend in ("hotcoco", "pycocotools"):
        assert case.evaluate("r.json", f"eval.backend={backend}")[0]["AP"] == pytest.approx(1)


def image_id_string_vs_int(case: Case) -> None:
    says(case.train(), 0, "text")
    (case.folder / "r.json").write_text('[{"image_id": "0", "category_id": 1, "bbox": [5, 5, 40, 40], "score": 0.9}]')
    assert case.evaluate("r.json")[0]["AP"] == pytest.approx(1)


def linked_pictures(case: Case) -> None:
    image = case.folder / "img/1.png"
    image.unlink(missing_ok=True)
    image.symlink_to(case.folder / "store/1.png")
    says(case.train(), 0)
    says(case.doctor(), 0)


def neighbours_change_predictions(case: Case) -> None:
    write_shapes(case.folder / "shapes", train=4, val=2)
    data = [f"data.{split}.annotations=shapes/annotations/{split}.json" for split in ("train", "val")]
    data += ["data.train.images=shapes/images", "data.val.images=shapes/images", "train.steps=4"]
    data += ["data.resize={short: [128], long: 128}"]  # a.png is padded to 96 × 128, b.png has 128 × 128
    says(case.train(*data), 0)
    found = {}
    for folder in ("alone", "beside"):
        checkpoint = ["--checkpoint", "runs/run1/best.pt", "--input", folder, "--output", f"found_{folder}"]
        says(case.call("infer", *checkpoint, "--no-images", "--score", "0", "--workers", "0"), 0)
        rows = json.loads((case.folder / f"found_{folder}/predictions.json").read_text())
        found[folder] = [{**row, "image_id": 0} for row in rows if row["file_name"] == "a.png"]
    assert len(found["alone"]) == len(found["beside"]) > 0
    for alone, beside in zip(found["alone"], found["beside"], strict=True):
        # Both are written rounded, to 0.01 pixels and to 1e-5.
        assert alone["bbox"] == pytest.approx(beside["bbox"], abs=0.011)
        assert alone["score"] == pytest.approx(beside["score"], abs=2e-5)


def no_val_split_for_detection(case: Case) -> None:
    rows = json.loads((case.folder / "a.json").read_text())
    for number in range(2, 11):
        shutil.copy(case.folder / "img/1.png", case.folder / f"img/{number}.png")
        rows["images"].append(rows["images"][0] | {"id": number, "file_name": f"{number}.png"})
        rows["annotations"].append(rows["annotations"][0] | {"id": number, "image_id": number})
    (case.folder / "a.json").write_text(json.dumps(rows))
    one_file = ["data.train.annotations=a.json", "data.train.images=img"]
    train = ["--config", "quickstart.yaml", *TINY, *one_file, "--name"]
    nothing = "data.val={annotations: null, images: null}"
    says(case.call("train", *train, "none", nothing), 2, "data.val_share", "data.val=null")
    says(case.call("train", *train, "held", "data.val=null", "data.val_share=0.3"), 0, "val: ")
    says(case.call("train", *train, "without", "data.val=null"), 0, "last.pt")
    assert (case.folder / "runs/without/last.pt").exists() and not (case.folder / "runs/without/best.pt").exists()


def string_image_ids(case: Case) -> None:
    says(case.train(), 0)
    says(case.doctor(), 0)
    (case.folder / "r.json").write_text(
        '[{"image_id": "frame_1", "category_id": 1, "bbox": [5, 5, 40, 40], "score": 1}]'
    )
    assert case.evaluate("r.json")[0]["AP"] == pytest.approx(1)


def train_without_objects(case: Case) -> None:
    says(case.train(), 2, "object")
    says(case.doctor(), 1, "object")


def val_lists_fewer_classes(case: Case) -> None:
    says(case.train(val="val.json"), 0)
    given = ["--checkpoint", "runs/run1/best.pt", "--annotations", "val.json", "--images", "img"]
    says(case.call("evaluate", *given), 0)


WALKS: list[Callable[[Case], None]] = [
    annotation_without_id,
    area_not_of_the_box,
    area_null,
    backslash_file_name,
    bbox_empty_with_polygon,
    bbox_number_strings,
    boxes_csv_read_as_classes,
    cjk_labels,
    dropped_boxes_still_scored,
    exif_180,
    file_name_leads_out,
    fix_empties_dataset,
    ignore_flag,
    image_id_string_vs_int,
    linked_pictures,
    neighbours_change_predictions,
    no_val_split_for_detection,
    string_image_ids,
    train_without_objects,
    val_lists_fewer_classes,
]


def test_every_case_is_walked(shared: Path) -> None:
    assert {path.name for path in (shared / "cases").iterdir() if path.is_dir()} == {walk.__name__ for walk in WALKS}


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk.__name__)
def test_case(
    walk: Callable[[Case], None],
    shared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(shared / "cases" / walk.__name__, tmp_path / "case", symlinks=True))
    for path in folder.rglob("*"):  # the shared folder may be read-only
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    monkeypatch.chdir(folder)
    walk(Case(folder, capsys))
