"""The commands as a user types them: results, and one clear line for every mistake."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import MAX_IOU
from PIL import Image

import detector
from detector.__main__ import main, run_command
from detector.checkpoints.checkpoint import read_checkpoint, save_checkpoint
from detector.config.loader import load_config
from detector.data.synthetic import SIDE
from detector.evaluation.coco import METRICS
from detector.models import build_model
from detector.structures import Category
from detector.training import fitting
from detector.training.run_folder import RunFolder

REPORT_BEST = fitting.report_best  # before ``short_runs`` replaces it
FAST = [
    "model.backbone.name=resnet10",
    "model.fpn={levels: [3, 4, 5], channels: 16}",
    "data.resize={short: [64], long: 64}",
    "data.workers=0",
    "train.batch_size=4",
    "train.steps=1",
    "model.predict.score_threshold=0.0",
]


def data_overrides(folder: Path) -> list[str]:
    splits = [f"data.{split}.annotations={folder}/annotations/{split}.json" for split in ("train", "val")]
    return [*splits, f"data.train.images={folder}/images", f"data.val.images={folder}/images"]


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step: useless weights, real files."""
    path = tmp_path_factory.mktemp("runs") / "run"
    config = load_config(MAX_IOU, [*FAST, *data_overrides(shapes)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "report_best", REPORT_BEST)
        assert fitting.fit(config, RunFolder(path), torch.device("cpu"))
    return path


@pytest.fixture
def data(shapes: Path, tmp_path: Path) -> Path:
    """A copy of the generated data set, to be damaged."""
    return Path(shutil.copytree(shapes, tmp_path / "data"))


def edit(path: Path, change: Callable[[dict], object]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def add_class(tree: dict, number: int, name: str) -> None:
    """A class that has an annotation: one without is allowed."""
    tree["categories"].append({"id": number, "name": name})
    tree["annotations"][0]["category_id"] = number


def cut(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def first_image(data: Path) -> Path:
    return data / "images" / json.loads((data / "annotations/train.json").read_text())["images"][0]["file_name"]


TRAIN_JSON = "annotations/train.json"

# What is done to the data, the overrides given, and what the one line must say.
MISTAKES: dict[str, tuple[Callable[[Path], object], list[str], list[str]]] = {
    "unknown key": (
        lambda data: None,
        ["model.backbone.nmae=resnet18"],
        ["model.backbone.nmae", "did you mean 'name'?"],
    ),
    "wrong type": (lambda data: None, ["train.batch_size=many"], ["train.batch_size", "whole number", "'many'"]),
    "unknown backbone": (lambda data: None, ["model.backbone.name=resnet19"], ["'resnet19'", "resnet18", "resnet152"]),
    "no weights": (lambda data: None, ["model.backbone={name: resnet18, weights: w.pt}"], ["w.pt", "IMAGENET1K_V1"]),
    "annotation file missing": (lambda data: (data / TRAIN_JSON).unlink(), [], [TRAIN_JSON, "No such file"]),
    "annotation file cut off": (lambda data: cut(data / TRAIN_JSON, 0.5), [], [f"{TRAIN_JSON}:1:", "not valid JSON"]),
    "image folder missing": (lambda data: None, ["data.train.images=nowhere"], ["data.train.images", "nowhere"]),
    "no such device": (lambda data: None, ["--device", "cuda:77"], ["--device cuda:77", "use cpu"]),
    "no data named": (lambda data: None, ["data.train.images=null"], ["data.train.images", "not set"]),
    "image missing": (lambda data: first_image(data).unlink(), [], ["train_00000.jpg", "does not exist", TRAIN_JSON]),
    "JPEG cut off": (lambda data: cut(first_image(data), 0.6), [], ["train_00000.jpg", "cut off"]),
    "unknown image": (
        lambda data: edit(data / TRAIN_JSON, lambda tree: tree["annotations"][0].update(image_id=999)),
        [],
        [TRAIN_JSON, "annotation 1", "999"],
    ),
    "box without area": (
        lambda data: edit(data / TRAIN_JSON, lambda tree: tree["annotations"][0].update(bbox=[5, 5, 0, 9])),
        [],
        [TRAIN_JSON, "train_00000.jpg", "annotation 1", "no area", "data.invalid_boxes"],
    ),
    "other size": (
        lambda data: edit(data / TRAIN_JSON, lambda tree: tree["images"][0].update(width=500)),
        [],
        ["train_00000.jpg", "500"],
    ),
    "val of other classes": (
        lambda data: edit(data / "annotations/val.json", lambda tree: add_class(tree, 9, "x")),
        [],
        ["val.json", "9 x, which is no"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_training_on_a_mistake(mistake: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, overrides, said = MISTAKES[mistake]
    spoil(data)
    arguments = [
        "--config",
        MAX_IOU,
        "--runs",
        str(tmp_path / "runs"),
        *FAST,
        *data_overrides(data),
        *overrides,
    ]
    device = [] if "--device" in overrides else ["--device", "cpu"]
    assert run_command("train", [*device, *arguments, "train.steps=3"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    for words in said:
        assert words in errors[0]


def test_several_config_errors_are_reported_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("train:\n  epochs: none\n  batch: 4\nsed: 1\n")
    assert main(["train", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}:2: train.epochs: ")
    assert error.count("error: ") == 1
    assert error.splitlines()[1:] == [
        f"       {path}:3: train.batch: unknown key; did you mean 'batch_size'?",
        f"       {path}:4: sed: unknown key; did you mean 'seed'?",
    ]


def test_evaluate_prints_the_twelve_numbers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("evaluate", ["--checkpoint", str(run / "best.pt"), "--json", "--device", "cpu"]) == 0
    printed = json.loads(capsys.readouterr().out)
    saved = json.loads((run / "results.json").read_text())
    for name in METRICS:
        assert printed[name] == pytest.approx(saved[name], abs=1e-9)


def test_both_backends_agree_on_a_models_detections(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for backend in ("hotcoco", "pycocotools"):
        arguments = ["--checkpoint", str(run / "best.pt"), "--json", "--device", "cpu", f"eval.backend={backend}"]
        assert run_command("evaluate", [*arguments, "model.predict.max_detections=300"]) == 0
        printed.append(json.loads(capsys.readouterr().out))
    for one, other in zip(*(scores.pop("per_class") for scores in printed), strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    assert printed[0]["AR100"] > 0  # among hundreds of random detections some are right
    assert printed[0] == pytest.approx(printed[1], abs=1e-6)
    assert printed[0]["max_detections"] == 300


def test_evaluate_refuses_another_class_count(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(data / "annotations/val.json", lambda tree: add_class(tree, 7, "seven"))
    given = ["--annotations", str(data / "annotations/val.json"), "--images", str(data / "images")]
    assert run_command("evaluate", ["--checkpoint", str(run / "best.pt"), *given, "--device", "cpu"]) == 2
    error = capsys.readouterr().err.strip()
    assert "7 seven, which is no" in error
    assert "\n" not in error


@pytest.mark.parametrize("content", [b"", b"no checkpoint", "half"])
def test_evaluate_refuses_what_is_not_a_checkpoint(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | str
) -> None:
    path = tmp_path / "bad.pt"
    whole = (run / "best.pt").read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    assert run_command("evaluate", ["--checkpoint", str(path)]) == 2
    error = capsys.readouterr().err.strip()
    assert str(path) in error
    assert "\n" not in error


def test_infer_writes_results_drawings_and_errors(
    run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, output = tmp_path / "images", tmp_path / "found"
    (images / "deep").mkdir(parents=True)
    names = sorted(path.name for path in (shapes / "images").glob("val_*.jpg"))
    for name in names[:3]:
        shutil.copy(shapes / "images" / name, images)
    Image.fromarray(np.zeros((30, 500), dtype=np.uint8)).save(images / "deep" / "größe.png")
    cut(images / names[0], 0.5)
    (images / "empty.jpg").touch()
    (images / "notes.txt").write_text("no image")
    arguments = ["--checkpoint", str(run / "best.pt"), "--input", str(images), "--output", str(output)]
    assert run_command("infer", [*arguments, "--draw-score", "0", "--workers", "0", "--device", "cpu"]) == 1

    out = capsys.readouterr().out
    failed = [json.loads(line)["file"] for line in (output / "errors.jsonl").read_text().splitlines()]
    assert sorted(failed) == sorted([str(images / names[0]), str(images / "empty.jpg")])
    assert all(name in out for name in (names[0], "empty.jpg"))
    results = json.loads((output / "predictions.json").read_text())
    assert {row["file_name"] for row in results} == {names[1], names[2], "deep/größe.png"}
    for row in results:
        assert row.keys() == {"image_id", "file_name", "category_id", "category_name", "bbox", "score"}
        assert row["category_id"] in (1, 2, 3, 4)
        left, top, width, height = row["bbox"]
        assert left >= 0
        assert top >= 0
        wide, high = (500, 30) if row["file_name"] == "deep/größe.png" else (SIDE, SIDE)
        assert left + width <= wide + 0.02
        assert top + height <= high + 0.02
    drawn = {path.relative_to(output / "images").as_posix() for path in (output / "images").rglob("*.jpg")}
    assert drawn == {names[1], names[2], "deep/größe.png.jpg"}

    assert run_command("infer", [*arguments, "--device", "cpu"]) == 2  # results are not overwritten
    assert "choose another --output" in capsys.readouterr().err


def test_predictions_of_infer_score_as_evaluate_does(
    run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern, truth = str(shapes / "images" / "val_*.jpg"), str(shapes / "annotations/val.json")
    arguments = ["--checkpoint", str(run / "best.pt"), "--input", pattern, "--output", str(tmp_path / "found")]
    assert run_command("infer", [*arguments, "--no-images", "--workers", "0", "--device", "cpu"]) == 0
    assert not (tmp_path / "found/images").exists()
    capsys.readouterr()
    results = str(tmp_path / "found/predictions.json")
    assert run_command("evaluate", ["--annotations", truth, "--results", results, "--json"]) == 0
    by_file = json.loads(capsys.readouterr().out)
    assert run_command("evaluate", ["--checkpoint", str(run / "best.pt"), "--json", "--device", "cpu"]) == 0
    by_model = json.loads(capsys.readouterr().out)
    # Boxes in the file are rounded to hundredths of a pixel.
    assert by_file["AR100"] == pytest.approx(by_model["AR100"], abs=0.02)


def test_infer_uses_the_ids_of_a_data_set(
    run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = json.loads((shapes / "annotations/val.json").read_text())
    skipped = tree["images"].pop()
    ids = {image["file_name"]: f"frame {image['id']}" for image in tree["images"]}
    for image in tree["images"]:
        image["id"] = ids[image["file_name"]]
    truth, output = tmp_path / "truth.json", tmp_path / "found"
    truth.write_text(json.dumps(tree | {"annotations": []}))
    arguments = ["--checkpoint", str(run / "best.pt"), "--input", str(shapes / "images" / "val_*.jpg")]
    arguments += ["--output", str(output), "--annotations", str(truth), "--no-images", "--workers", "0"]
    assert run_command("infer", [*arguments, "--device", "cpu"]) == 0
    assert f"skipped 1 image that {truth} does not list: {skipped['file_name']}" in capsys.readouterr().err
    rows = json.loads((output / "predictions.json").read_text())
    assert rows and all(row["image_id"] == ids[row["file_name"]] for row in rows)
    truth.write_text(json.dumps(tree | {"images": [{**tree["images"][0], "file_name": "x.jpg"}], "annotations": []}))
    assert run_command("infer", [*arguments, "--output", str(tmp_path / "other")]) == 2
    assert "lists no image of" in capsys.readouterr().err


def test_infer_writes_a_page_of_its_drawings(
    run: Path, shapes: Path, tmp_path: Path, open_page: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    pattern, output = str(shapes / "images" / "val_*.jpg"), tmp_path / "found"
    arguments = ["--checkpoint", str(run / "best.pt"), "--input", pattern, "--output", str(output), "--html"]
    assert run_command("infer", [*arguments, "--no-images"]) == 2
    assert "--no-images" in capsys.readouterr().err
    assert run_command("infer", [*arguments, "--workers", "0", "--device", "cpu"]) == 0
    assert str(output / "gallery.html") in capsys.readouterr().out
    page = open_page(output / "gallery.html", 400)
    names = sorted(path.name for path in (output / "images").iterdir())
    assert page.locator(".gallery figcaption").all_inner_texts() == names
    page.locator(".enlarge").nth(1).click()
    assert page.locator("dialog p").inner_text() == names[1]


def test_a_run_ends_with_a_report_of_its_best_checkpoint(run: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(run / "report.html")
    assert page.locator("h1").inner_text() == "Evaluation of run"
    results = json.loads((run / "results.json").read_text())
    shown = page.locator(".numbers").first.locator("dd").all_inner_texts()
    assert [text.split("\n")[0] for text in shown] == [
        f"{results[name]:.3f}" if results[name] >= 0 else "–" for name in METRICS
    ]


def test_a_report_against_another_model(
    run: Path, colors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["task=classification", f"data.train.images={colors}/train", f"data.val.images={colors}/val"]
    given = ["model.backbone={name: resnet10}", "model.fpn={levels: [3], channels: 8}", "model.head.name=pooled"]
    other = load_config("classify_quickstart.yaml", [*config, *given])
    model = build_model(other.model, 3)
    path = tmp_path / "classes.pt"
    save_checkpoint(path, other, [Category(0, "a"), Category(1, "b"), Category(2, "c")], {"model": model.state_dict()})
    arguments = ["--checkpoint", str(run / "best.pt"), "--report", str(tmp_path / "r"), "--device", "cpu"]
    assert run_command("evaluate", [*arguments, "--against", str(path)]) == 2
    assert f"error: --against {path}: is of classification, not of detection" in capsys.readouterr().err


def test_a_report_against_the_same_classes_in_another_order(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = read_checkpoint(run / "best.pt")
    classes, order = content["categories"], [2, 0, 3, 1]
    content["categories"] = [{"id": f"of_{classes[label]['id']}", "name": classes[label]["name"]} for label in order]
    for name in ("head.cls_output.weight", "head.cls_output.bias"):
        rows = content["model"][name].unflatten(0, (-1, 4))  # [anchors, classes, ...]
        content["model"][name] = rows[:, order].flatten(0, 1)
    torch.save(content, tmp_path / "other.pt")
    given = ["--checkpoint", str(run / "best.pt"), "--report", str(tmp_path), "--device", "cpu"]
    given += ["--against", str(tmp_path / "other.pt")]
    assert run_command("evaluate", given) == 0
    assert "0 images have fewer here, 0 more" in (tmp_path / "report.html").read_text()
    figures = json.loads((tmp_path / "report.json").read_text())
    against = figures.pop("against")
    assert against.pop("name") == str(tmp_path / "other.pt")
    assert against == {key: figures[key] for key in against}
    assert len({row["AP"] for row in figures["metrics"]["per_class"]}) > 1

    content["categories"][1]["name"] = "another"
    torch.save(content, tmp_path / "other.pt")
    assert run_command("evaluate", given) == 2
    assert f"{tmp_path / 'other.pt'}: has other classes than {run / 'best.pt'}" in capsys.readouterr().err


@pytest.mark.parametrize(("typed", "unbuffered"), [("--help", ""), ("train --help", ""), ("env", "1")])
def test_a_command_ends_quietly_when_its_output_pipe_closes(typed: str, unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "detector", *typed.split()]
    with open(writer, "wb") as closed:  # noqa: PTH123 (of a descriptor)
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, env=environment)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize(("typed", "unbuffered"), [("--version", ""), ("train --help", ""), ("env", ""), ("env", "1")])
def test_a_command_whose_output_is_full_says_so(typed: str, unbuffered: str) -> None:
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "detector", *typed.split()]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment, text=True)
    said = "error: the output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (74, said)


# What is typed in a folder with a run "x", a run "half" that has only its last.pt, and a folder "sub"; what is said.
SLIPS = {
    "trian": "trian: no such command; did you mean train?",
    "xyz": "xyz: no such command; the commands are quickstart, train",
    "train --config retinanet_r50.yaml": "no such config file; did you mean retinanet_r50_fpn.yaml?",
    "train --config sub/mime.yaml": "sub/mime.yaml: no such config file; did you mean sub/mine.yaml?",
    "train --config runs/x": "runs/x: is a folder; give a file, as runs/x/config.yaml",
    "train --config runs/x/best.pt": "best.pt: is a checkpoint, not a config; use the config.yaml in its run's folder",
    "train --config quickstart.yaml --name ../x": "--name '../x': is not the name of a folder in runs/",
    "train --config quickstart.yaml --name a/b": "--name 'a/b': is not the name of a folder in runs/",
    "train --config quickstart.yaml --name ..": "--name '..': is not the name of a folder in runs/",
    "train --config quickstart.yaml --overfit 2 --name ../x": "--name '../x': is not the name of a folder",
    "quickstart --name ../x": "--name '../x': is not the name of a folder in runs/",
    "train --config quickstart.yaml train.epochs 12": "train.epochs: is not KEY=VALUE, as in train.epochs=12",
    "doctor --annotations sub --images sub": "sub: is a folder; give a file, as sub/truth.json",
    "infer --checkpoint runs/x --output y --input sub/a.jpg sub/b.jpg": "sub/b.jpg: is one file too many; quote a",
    "evaluate --checkpoint runs/x runs/half": "runs/half: is one file too many; quote a pattern",
    "evaluate --checkpoint sub/mine.yaml": "sub/mine.yaml: is a config, not a checkpoint; give one, as runs/NAME/",
    "evaluate --checkpoint sub": "sub: is a folder without best.pt and last.pt; give a run's folder or a checkpoint",
    "evaluate --checkpoint runs/x/bset.pt": "a name of torchvision's weights; did you mean runs/x/best.pt?",
    "evaluate --checkpoint runs/x/best.pt --report r --against sub": "sub: is a folder without best.pt and last.pt",
    "evaluate --checkpoint runs/x/best.pt data.val.annotations=sub": "sub: is a folder; give a file, as sub/truth.json",
    "evaluate --annotations sub/truth.json --results sub": "sub: is a folder; give a file, as sub/truth.json",
    "infer --checkpoint sub/truth.json --input sub --output y": "sub/truth.json: is a JSON file, not a checkpoint",
    "import_weights sub y.pt": "sub: is a folder without best.pt and last.pt",
}


@pytest.mark.parametrize("typed", SLIPS)
def test_a_slip_gets_a_hint(
    typed: str, run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/half").mkdir(parents=True)
    (tmp_path / "runs/x").symlink_to(run)
    (tmp_path / "sub").mkdir()
    shutil.copy(shapes / "annotations/val.json", tmp_path / "sub/truth.json")
    for name in ("mine.yaml", "a.jpg", "b.jpg"):
        (tmp_path / "sub" / name).touch()
    before = sorted(tmp_path.rglob("*"))
    assert main(typed.split()) == 2
    printed = capsys.readouterr()
    assert [line.startswith("error: ") for line in printed.err.splitlines()] == [True], printed.err
    assert SLIPS[typed] in printed.err
    assert set(tmp_path.rglob("*")) - set(before) <= {tmp_path / "r"}


def test_a_runs_folder_is_accepted_wherever_a_checkpoint_is(
    run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(run / "last.pt", half)
    assert main(["evaluate", "--checkpoint", str(half), "--json", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["AP"] == pytest.approx(json.loads((run / "results.json").read_text())["AP"])
    assert f"{half}: is a folder; using last.pt" in printed.err
    start = load_config(MAX_IOU, [*FAST, *data_overrides(shapes), f"model.weights={run}"])
    assert fitting.fit(start, RunFolder(tmp_path / "next"), torch.device("cpu"))
    said = capsys.readouterr().err
    assert f"{run}: is a folder; using best.pt" in said
    assert "the class layer by name: 4 of 4 classes" in said
    image = next((shapes / "images").glob("val_*.jpg"))
    same = [detector.load(source, "cpu").predict([image])[0] for source in (run, run / "best.pt")]
    np.testing.assert_array_equal(same[0].boxes, same[1].boxes)
    assert main(["import_weights", str(run), str(tmp_path / "x.pth"), "--to", "torchvision"]) == 2
    assert "torchvision has detection on one of" in capsys.readouterr().err  # the folder was opened


def test_quiet_leaves_results_warnings_and_errors(
    shapes: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--runs", str(tmp_path), "--device", "cpu", *FAST, *data_overrides(shapes)]
    assert main(["--quiet", "train", "--config", "quickstart.yaml", *given]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert lines
    assert all(line.startswith("warning: ") for line in lines)
    assert main(["evaluate", "--checkpoint", str(run), "--device", "cpu", "--quiet"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("AP ")
    assert printed.err == ""
    assert main(["train", "--quiet", "--config", "quickstart.yaml", *given]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_version_and_environment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"detector {detector.__version__}\n"
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["torch"], found["numpy"]) == (str(torch.__version__), np.__version__)
    assert found["installed"] == str(Path(detector.__file__).parent)
    assert (found["python"], found["threads"]) == (platform.python_version(), torch.get_num_threads())
    assert {"platform", "cpus", "cuda", "gpus", "albumentations", "opencv-python-headless"} <= found.keys()
    assert main(["env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(found)
    assert all(len(line.split()) > 1 for line in lines)


def test_types_are_shipped() -> None:
    """hatchling ships everything in the package's folder, unless git ignores it."""
    package = Path(detector.__file__).parent
    assert (package / "py.typed").is_file()
    ignored = (package.parent / ".gitignore").read_text().split()
    assert not any(fnmatch("py.typed", pattern) for pattern in ignored)


def test_what_has_no_truth_is_a_dash(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label = json.loads((data / "annotations/val.json").read_text())["categories"][0]
    edit(
        data / "annotations/val.json",
        lambda tree: tree.update(annotations=[a for a in tree["annotations"] if a["category_id"] != label["id"]]),
    )
    given = ["--checkpoint", str(run / "best.pt"), "--annotations", f"{data}/annotations/val.json"]
    given += ["--images", f"{data}/images", "--device", "cpu"]
    assert main(["evaluate", *given]) == 0
    shown = capsys.readouterr().out
    assert "-1" not in shown
    row = next(line for line in shown.splitlines() if line.startswith(label["name"]))
    assert row.split()[1:] == ["0", "–", "–", "–"]
    assert main(["evaluate", *given, "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out)["APl"], float)  # numbers stay numbers


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input", "nowhere", "--output", "out"], "nowhere: no such file or folder"),
        (["--input", "*.nothing", "--output", "out"], "has no images"),
    ],
)
def test_infer_on_a_mistake(run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert run_command("infer", ["--checkpoint", str(run / "best.pt"), *arguments]) == 2
    assert words in capsys.readouterr().err
