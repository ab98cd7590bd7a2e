"""Classification as a person runs it: train, evaluate, infer, resume, two ranks, and one clear line for a mistake."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from faults.test_ranks import Ranks
from PIL import Image
from test_training import steps_of
from torchvision.models.resnet import BasicBlock, ResNet

from detector.__main__ import run_command
from detector.checkpoints.checkpoint import read_checkpoint
from detector.config.loader import load_config
from detector.data.classification import open_classes
from detector.inference.predictor import Predictor
from detector.training.fitting import fit
from detector.training.run_folder import RunFolder

CONFIG = "classify_quickstart.yaml"
CPU = torch.device("cpu")
NAMES = ["blue", "green", "red"]
TINY = [
    "model.backbone={name: resnet10}",
    "model.fpn={levels: [3, 4, 5], channels: 16, norm: bn}",
    "data.crop={size: 32, scale: [0.5, 1.0], eval_share: 1.0}",
    "data.workers=0",
    "train.batch_size=6",
    "train.epochs=2",
    "train.schedule.warmup_steps=2",
    "eval.every_epochs=1",
]
LIVELY = [
    "data.augment={photometric: 0.5, mixup: 0.4, cutmix: 1.0}",
    "model.head={name: pooled, dropout: 0.3}",
    "model.loss.label_smoothing=0.1",
    "train.ema=0.9",
]
FAST_LEARNING = ["train.epochs=8", "eval.every_epochs=8", "train.optimizer={name: adamw, lr: 5.0e-4, lr_batch_size: 6}"]
KINDS = {
    "pooled": LIVELY,
    # What the config says of a pyramid is for pyramids.
    "classic": [
        "model.head.name=classic",
        "model.fpn={levels: [3, 4, 5, 6, 7], channels: 256, norm: none, activation: none}",
    ],
    "branches": [
        "model.backbone=null",
        "model.pyramid={branches: [resnet10, {name: resnet10}], fuse: concat}",
        "model.head={name: pooled, pool: gem, fuse: learned, hidden: [8]}",
    ],
    "several labels": ["model.multi_label=true", "data.augment.mixup=0.4"],
}


def images_of(colors: Path) -> list[str]:
    return [f"data.{split}.images={colors}/{split}" for split in ("train", "val")]


@pytest.fixture(scope="module")
def tables(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CSV files for the images: red ones are warm too, green ones have no label."""
    folder = tmp_path_factory.mktemp("tables")
    labels = {"red": "red;warm", "green": "", "blue": "blue"}
    for split in ("train", "val"):
        files = sorted((colors / split).rglob("*.png"))
        rows = [f"{file.parent.name}/{file.name},{labels[file.parent.name]}\n" for file in files]
        (folder / f"{split}.csv").write_text("".join(["path,label\n", *rows]))
    return folder


@pytest.fixture(scope="module")
def overrides_of(colors: Path, tables: Path) -> Callable[[str], list[str]]:
    def overrides(kind: str) -> list[str]:
        own = [*TINY, *images_of(colors), *KINDS[kind]]
        if kind == "several labels":
            own += [f"data.{split}.annotations={tables}/{split}.csv" for split in ("train", "val")]
        return own

    return overrides


@pytest.fixture(scope="module", params=KINDS)
def run(
    request: pytest.FixtureRequest, overrides_of: Callable[[str], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A kind, and its run of two epochs."""
    path = tmp_path_factory.mktemp("runs") / "run"
    assert fit(load_config(CONFIG, overrides_of(request.param)), RunFolder(path), CPU)
    return request.param, path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def errors_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a mistake is worth."""
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


# --- every kind of classifier -----------------------------------------------------------------------------------------


def test_what_a_run_leaves_behind(run: tuple[str, Path], overrides_of: Callable[[str], list[str]]) -> None:
    kind, path = run
    names = {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "results.json",
        "last.pt",
        "best.pt",
        "first_batch.jpg",
    }
    several = kind == "several labels"
    assert {file.name for file in path.iterdir()} == names | (set() if several else {"confusion.csv", "confusion.png"})
    assert load_config(path / "config.yaml") == load_config(CONFIG, overrides_of(kind))
    assert [row["step"] for row in steps_of(path)] == [1, 2, 3, 4, 5, 6]  # 18 images in batches of 6, twice
    results = json.loads((path / "results.json").read_text())
    metric = "mAP" if several else "top1"
    assert results["best"] >= results[metric]
    best = read_checkpoint(path / "best.pt")
    assert best["metrics"][metric] == results["best"]
    names = ["blue", "red", "warm"] if several else NAMES
    assert [category["name"] for category in best["categories"]] == names
    assert [(row["name"], row["images"]) for row in results["per_class"]] == [(name, 2) for name in names]
    if several:
        return
    with (path / "confusion.csv").open() as file:
        header, *table = csv.reader(file)
    assert header[1:] == [row[0] for row in table] == NAMES
    assert [[int(count) for count in row[1:]] for row in table] == results["confusion"]
    assert np.sum(results["confusion"], axis=1).tolist() == [2, 2, 2]


def test_evaluate_finds_what_training_found(
    run: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, path = run
    given = ["--checkpoint", str(path / "last.pt"), "--output", str(tmp_path / "scores"), "--device", "cpu"]
    assert run_command("evaluate", [*given, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert len(printed.pop("per_class")) == 3
    results = json.loads((path / "results.json").read_text())
    numbers = ["mAP", "macro_f1"] if kind == "several labels" else ["top1", "top5", "mean_class_accuracy", "macro_f1"]
    assert list(printed) == numbers
    for name in numbers:
        assert printed[name] == pytest.approx(results[name], abs=1e-9)
    written = json.loads((tmp_path / "scores/results.json").read_text())
    assert written["per_class"] == results["per_class"]
    confusions = [folder / "confusion.csv" for folder in (path, tmp_path / "scores")]
    if kind != "several labels":
        assert confusions[0].read_text() == confusions[1].read_text()
        assert (tmp_path / "scores/confusion.png").stat().st_size > 1000
    assert run_command("evaluate", [*given, "eval.batch_size=1"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith(f"{numbers[0]} {results[numbers[0]]:.3f}  ")


def test_infer_writes_what_predict_finds(
    run: tuple[str, Path], colors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, path = run
    output = tmp_path / "found"
    given = ["--checkpoint", str(path / "best.pt"), "--input", str(colors / "val"), "--output", str(output)]
    given += ["--workers", "0", "--device", "cpu", "model.predict.classes=2"]
    assert run_command("infer", given) == 0
    rows = rows_of(output / "predictions.csv")
    files = sorted((colors / "val").rglob("*.png"))
    assert [row["path"] for row in rows] == [file.relative_to(colors / "val").as_posix() for file in files]
    assert list(rows[0]) == ["path", "label", "score", "label_2", "score_2"]

    predictor = Predictor.from_checkpoint(path / "best.pt", "cpu", ["model.predict.classes=2"])
    array = np.asarray(Image.open(files[0]))
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    found = predictor.predict([*files, Image.open(files[0]), array, tensor], batch_size=4)
    for row, one in zip(rows, found, strict=False):
        assert [row["label"], row["label_2"]] == one.names
        assert [float(row["score"]), float(row["score_2"])] == pytest.approx(one.scores.tolist(), abs=2e-5)
        assert one.scores[0] >= one.scores[1]
        assert kind == "several labels" or one.scores.sum() <= 1
    for other in found[6:]:
        assert other.scores == pytest.approx(found[0].scores, abs=1e-5)
    drawn = sorted(file.relative_to(output / "images").as_posix() for file in (output / "images").rglob("*.jpg"))
    assert drawn == [f"{row['path']}.jpg" for row in rows]
    assert f"in 6 images: {output / 'predictions.csv'}" in capsys.readouterr().out

    assert run_command("infer", given) == 2  # nothing done is written over
    assert "choose another --output" in errors_of(capsys)


# --- what training does -----------------------------------------------------------------------------------------------


def test_two_ranks_follow_one_process(colors: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(ResNet(BasicBlock, [1, 1, 1, 1]).state_dict(), tmp_path / "resnet10.pt")
    overrides = [
        *TINY,
        *images_of(colors),
        f"model.backbone={{name: resnet10, norm: frozen_bn, weights: {tmp_path}/resnet10.pt}}",
        "model.fpn.norm=none",  # each rank would have its own statistics
        "data.augment={mixup: 0.4, cutmix: 1.0}",
        "data.class_weights={red: 3.0, blue: 0.5}",  # ranks have images of other weights
        "train.batch_size=8",
        "train.steps=5",
        "eval.every_epochs=99",
    ]
    ranks = Ranks(tmp_path, "two", 2, *overrides, config=(CONFIG,))
    runs = [RunFolder(tmp_path / name) for name in ("one", "two", "parts")]
    assert fit(load_config(CONFIG, overrides), runs[0], CPU)
    assert fit(load_config(CONFIG, [*overrides, "train.accumulate=4"]), runs[2], CPU)
    assert ranks.codes() == [0, 0], ranks.said()
    one, two, parts = ([row["loss"] for row in steps_of(run.path)] for run in runs)
    assert len(one) == 5
    assert one[0] != pytest.approx(one[-1], rel=0.01)  # it does train
    assert two == pytest.approx(one, abs=1e-4)
    assert parts == pytest.approx(one, abs=1e-4)
    results = [json.loads(run.results.read_text()) for run in runs[:2]]
    assert [np.sum(result["confusion"]) for result in results] == [6, 6]  # all images, each once
    assert results[1]["confusion"] == results[0]["confusion"]


def test_a_part_held_back_is_what_is_evaluated(
    colors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path / "run")
    overrides = [*TINY, f"data.train.images={colors}/train", "data.val.images=null", "data.val_share=0.34"]
    config = load_config(CONFIG, [*overrides, "train.epochs=1"])
    assert fit(config, run, CPU)
    results = json.loads(run.results.read_text())
    held_back = sum(row["images"] for row in results["per_class"])
    assert 3 <= held_back <= 12
    assert read_checkpoint(run.last)["num_images"] == 18 - held_back
    given = ["--checkpoint", str(run.best), "--json", "--device", "cpu"]
    assert run_command("evaluate", given) == 0
    held = capsys.readouterr()
    assert f"{colors}/train: {held_back} images of 3 classes" in held.err
    assert json.loads(held.out)["top5"] == 1

    # Other data are not a part held back: all of a folder, or of a CSV file in another order of its own.
    assert run_command("evaluate", [*given, "--images", f"{colors}/train"]) == 0
    by_folder = capsys.readouterr()
    assert f"{colors}/train: 18 images of 3 classes (blue, green, red), 6 to 6 each" in by_folder.err
    files = sorted((colors / "train").rglob("*.png"), key=lambda file: file.name[::-1])
    (tmp_path / "x.csv").write_text(
        "path,label\n" + "".join(f"{file.relative_to(colors)},{file.parent.name}\n" for file in files)
    )
    assert run_command("evaluate", [*given, "--images", str(colors), "--annotations", str(tmp_path / "x.csv")]) == 0
    by_csv = capsys.readouterr()
    assert f"{tmp_path / 'x.csv'}: 18 images" in by_csv.err
    assert json.loads(by_csv.out) == json.loads(by_folder.out)


def test_it_learns_and_evaluation_keeps_its_classes(colors: Path, tmp_path: Path) -> None:
    # Colours in noise: right every time after some seconds. The images to evaluate have two of the three classes,
    # which must not become 0 and 1.
    val = tmp_path / "val"
    for name in ("red", "green"):
        shutil.copytree(colors / "val" / name, val / name)
    run = RunFolder(tmp_path / "run")
    overrides = [*TINY, *images_of(colors), *FAST_LEARNING, f"data.val.images={val}"]
    assert fit(load_config(CONFIG, overrides), run, CPU)
    results = json.loads(run.results.read_text())
    assert results["confusion"] == [[0, 0, 0], [0, 2, 0], [0, 0, 2]]
    assert [row["recall"] for row in results["per_class"]] == [-1, 1, 1]
    assert results["mean_class_accuracy"] == 1


# --- depth and channels -----------------------------------------------------------------------------------------------

IMAGES: dict[str, tuple[int, str, type]] = {
    "gray": (1, "png", np.uint8),
    "RGBA, 16 bits": (4, "tiff", np.uint16),
    "five channels, 16 bits": (5, "npy", np.uint16),
}


def write_image(path: Path, pixels: np.ndarray) -> None:
    if path.suffix == ".npy":
        np.save(path, pixels)
    else:
        order = {1: [0], 4: [2, 1, 0, 3]}[pixels.shape[2]]
        assert cv2.imwrite(str(path), pixels[:, :, order])


@pytest.mark.parametrize("kind", IMAGES)
def test_a_classifier_of_any_images(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    channels, suffix, dtype = IMAGES[kind]
    rng, limit = np.random.default_rng(0), np.iinfo(dtype).max
    files = []
    for label, name in enumerate(["dark", "light"]):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, limit // 2, (32, 32, channels)) + label * (limit // 2)
            files.append(tmp_path / "data" / name / f"{number}.{suffix}")
            write_image(files[-1], pixels.astype(dtype))
    overrides = [*TINY, *[f"data.{split}.images={tmp_path}/data" for split in ("train", "val")], "train.batch_size=4"]
    overrides += [f"model.in_channels={channels}", "data.augment={photometric: 0.5, mixup: 0.4}", "train.steps=1"]
    run = RunFolder(tmp_path / "run")
    config = load_config(CONFIG, overrides)
    assert fit(config, run, CPU)
    weights = read_checkpoint(run.last)["model"]
    assert weights["pyramid.backbone.body.conv1.weight"].shape == (64, channels, 7, 7)
    sample = open_classes(config, "val")[0, 0]
    assert (sample.image.shape, sample.image.numpy().dtype) == ((channels, 32, 32), dtype)

    given = ["--checkpoint", str(run.best), "--input", f"{tmp_path}/data", "--output", f"{tmp_path}/found"]
    assert run_command("infer", [*given, "--workers", "0", "--device", "cpu"]) == 0
    scores = [float(row["score"]) for row in rows_of(tmp_path / "found/predictions.csv")]
    assert len(list((tmp_path / "found/images").rglob("*.jpg"))) == 8
    arrays = [read_array(file, channels) for file in files]
    found = Predictor.from_checkpoint(run.best, "cpu").predict(arrays)
    assert [one.scores[0] for one in found] == pytest.approx(scores, abs=2e-5)
    if dtype == np.uint16:  # the same image in 8 bits has nearly the same scores
        low = Predictor.from_checkpoint(run.best, "cpu").predict([(array >> 8).astype(np.uint8) for array in arrays])
        assert [one.scores[0] for one in low] == pytest.approx(scores, abs=0.02)


def read_array(file: Path, channels: int) -> np.ndarray:
    if file.suffix == ".npy":
        return np.load(file)
    pixels = cv2.imread(str(file), cv2.IMREAD_UNCHANGED).reshape(32, 32, -1)
    return pixels[:, :, {1: [0], 4: [2, 1, 0, 3]}[channels]]


def test_a_detector_of_other_images(shapes: Path, tmp_path: Path) -> None:
    channels, suffix, dtype = IMAGES["RGBA, 16 bits"]
    (tmp_path / "images").mkdir()
    for split in ("train", "val"):
        tree = json.loads((shapes / f"annotations/{split}.json").read_text())
        for image in tree["images"]:
            pixels = np.asarray(Image.open(shapes / "images" / image["file_name"]).convert("RGBA"))[:, :, :channels]
            image["file_name"] = f"{image['id']}.{suffix}"
            write_image(tmp_path / "images" / image["file_name"], pixels.astype(dtype) * 257)
        (tmp_path / f"{split}.json").write_text(json.dumps(tree))
    overrides = [f"data.{split}.annotations={tmp_path}/{split}.json" for split in ("train", "val")]
    overrides += [f"data.{split}.images={tmp_path}/images" for split in ("train", "val")]
    overrides += ["model.backbone={name: resnet10}", "model.fpn={levels: [3, 4, 5], channels: 16}"]
    overrides += [f"model.in_channels={channels}", "data.resize={short: [64], long: 64}", "data.workers=0"]
    overrides += ["data.augment={photometric: 0.5, scale_jitter: [0.7, 1.4]}", "train.batch_size=4", "train.steps=1"]
    run = RunFolder(tmp_path / "run")
    assert fit(load_config("quickstart.yaml", overrides), run, CPU)
    assert read_checkpoint(run.last)["model"]["pyramid.backbone.body.conv1.weight"].shape == (64, channels, 7, 7)
    predictor = Predictor.from_checkpoint(run.best, "cpu")
    files = sorted((tmp_path / "images").iterdir())[:2]
    assert len(predictor.predict(files, score_threshold=0.0)[0].boxes) > 0


# --- from one task to the other ---------------------------------------------------------------------------------------


def test_weights_go_from_detector_to_classifier_and_back(
    colors: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = [f"data.{split}.annotations={shapes}/annotations/{split}.json" for split in ("train", "val")]
    splits += [f"data.{split}.images={shapes}/images" for split in ("train", "val")]
    small = ["model.backbone={name: resnet10}", "model.fpn={levels: [3, 4, 5], channels: 16}", "data.workers=0"]
    small += ["data.resize={short: [64], long: 64}", "train.batch_size=4", "train.steps=1"]
    detect = ["--config", "quickstart.yaml", *small, *splits]
    classify = ["--config", CONFIG, *TINY, *images_of(colors), "model.fpn.norm=none", "train.steps=1"]
    common = ["--runs", str(tmp_path), "--device", "cpu"]
    assert run_command("train", [*detect, *common, "--name", "first"]) == 0
    started = [*classify, *common, "--name", "second", "--init-from", f"{tmp_path}/first/best.pt"]
    assert run_command("train", started) == 0
    assert f"from {tmp_path}/first/best.pt (detection): " in capsys.readouterr().err
    third = [*detect, *common, "--name", "third", "--init-from", f"{tmp_path}/second/best.pt"]
    assert run_command("train", third) == 0
    assert f"from {tmp_path}/second/best.pt (classification): " in capsys.readouterr().err
    for name in ("second", "third"):
        report = (tmp_path / name / "transfer.txt").read_text()
        assert "loaded     pyramid.backbone.body.layer4.0.conv2.weight\n" in report
        random = [line for line in report.splitlines() if line.startswith("random ")]
        assert random
        assert not any("pyramid" in line for line in random)

    # The other task's run is not continued.
    assert run_command("train", [*classify, *common, "--name", "first", "--resume"]) == 2
    error = errors_of(capsys)
    assert "task was detection, is classification" in error
    assert "--init-from" in error


# --- infer ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def best(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one step."""
    run = RunFolder(tmp_path_factory.mktemp("best") / "run")
    assert fit(load_config(CONFIG, [*TINY, *images_of(colors), "train.steps=1"]), run, CPU)
    return run.best


def test_images_that_cannot_be_read_are_listed(
    best: Path, colors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, output = tmp_path / "images", tmp_path / "found"
    (images / "deep").mkdir(parents=True)
    names = ["red_0", "red_1"]
    for name in names:
        shutil.copy(colors / f"val/red/{name}.png", images)
    Image.fromarray(np.zeros((30, 200), np.uint8)).save(images / "deep" / "größe.png")
    data = (images / "red_0.png").read_bytes()
    (images / "red_0.png").write_bytes(data[: len(data) // 2])
    (images / "empty.jpg").touch()
    (images / "notes.txt").write_text("no image")
    given = ["--checkpoint", str(best), "--input", str(images), "--output", str(output), "--device", "cpu"]
    assert run_command("infer", [*given, "--workers", "1", "--no-images"]) == 1
    failed = [json.loads(line)["file"] for line in (output / "errors.jsonl").read_text().splitlines()]
    assert sorted(failed) == sorted([str(images / "red_0.png"), str(images / "empty.jpg")])
    rows = rows_of(output / "predictions.csv")
    assert [row["path"] for row in rows] == ["deep/größe.png", "red_1.png"]
    # Of three classes, the five best are three.
    assert list(rows[0]) == ["path", "label", "score", "label_2", "score_2", "label_3", "score_3"]
    assert {rows[0][f"label{place}"] for place in ("", "_2", "_3")} == set(NAMES)
    assert not (output / "images").exists()
    out = capsys.readouterr().out
    assert "in 2 images" in out
    assert "2 of 4 images could not be read" in out


def test_nothing_readable_leaves_an_empty_table(best: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no image")
    given = ["--checkpoint", str(best), "--input", str(tmp_path / "x.png"), "--output", str(tmp_path / "found")]
    assert run_command("infer", [*given, "--workers", "0", "--device", "cpu"]) == 1
    assert rows_of(tmp_path / "found/predictions.csv") == []


def test_what_needs_boxes_is_refused(
    best: Path, colors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--checkpoint", str(best), "--input", f"{colors}/val", "--output", str(tmp_path / "found")]
    assert run_command("infer", [*given, "--score", "0.5", "--device", "cpu"]) == 2
    assert "score: a lowest score is for detection" in errors_of(capsys)
    assert run_command("infer", [*given, "--counts", "--device", "cpu"]) == 2
    assert "--format, --crops and --counts are of boxes" in errors_of(capsys)
    assert not (tmp_path / "found").exists()


# --- mistakes ---------------------------------------------------------------------------------------------------------


def spoil(file: str, content: bytes) -> Callable[[Path], object]:
    return lambda data: (data / file).write_bytes(content)


def table(text: str) -> Callable[[Path], object]:
    return lambda data: (data / "train.csv").write_text(text)


CSV = ["data.train.annotations={data}/train.csv"]

# What is done to the data, the overrides given, and what the one line must say.
MISTAKES: dict[str, tuple[Callable[[Path], object], list[str], list[str]]] = {
    "no data named": (lambda data: None, ["data.train.images=null"], ["data.train.images is not set", "DIR"]),
    "nothing to evaluate on": (lambda data: None, ["data.val.images=null"], ["data.val.images", "data.val_share=0.2"]),
    "no such folder": (
        lambda data: None,
        ["data.train.images=nowhere"],
        ["data.train.images: nowhere is not a folder"],
    ),
    "images without folders": (lambda data: None, ["data.train.images={data}/train/red"], ["no class folders"]),
    "empty class": (lambda data: (data / "train/wood").mkdir(), [], ["train/wood", "has no images", "remove it"]),
    "unknown class to evaluate": (
        lambda data: (data / "val/red").rename(data / "val/read"),
        [],
        ["val/read", "'read' is not among the 3 classes", "did you mean 'red'?"],
    ),
    "class without images": (
        lambda data: None,
        ["data.classes=[red, green, blue, wood]"],
        ["has no image of class 'wood'", "data.classes"],
    ),
    "class not named": (lambda data: None, ["data.classes=[red, green]"], ["'blue' is not among the 2 classes"]),
    "held back and given": (lambda data: None, ["data.val_share=0.5"], ["data.val_share", "data.val.images is given"]),
    "weight of no class": (
        lambda data: None,
        ["data.class_weights={{rad: 2}}"],
        ["data.class_weights", "'rad'", "'red'?"],
    ),
    "CSV missing": (lambda data: None, CSV, ["train.csv", "No such file"]),
    "CSV without paths": (table("red,red/red_0.png\n"), CSV, ["train.csv:1: ", "/red is not a file", "a header would"]),
    "CSV of boxes": (table("red/red_0.png,1,2,9,9,red\n"), CSV, ["train.csv: looks like a CSV file of boxes"]),
    "CSV of a missing file": (
        table("path,label\nred/red_0.png,red\nred/red_9.png,red\n"),
        CSV,
        ["train.csv:3", "red/red_9.png", "does not exist"],
    ),
    "CSV with several labels": (
        table("path,label\nred/red_0.png,red,warm\n"),
        CSV,
        ["train.csv:2", "2 labels", "model.multi_label=true"],
    ),
    "image cut off": (spoil("train/red/red_3.png", b"\x89PNG\r\n"), [], ["train/red/red_3.png", "is not an image"]),
    "other channels": (lambda data: None, ["model.in_channels=4"], [".png: has 3 channels", "model.in_channels"]),
    "array that is not an image": (spoil("train/red/x.npy", b"no array"), [], ["train/red/x.npy", "is not an array"]),
    "head of detection": (lambda data: None, ["model.head={{name: retina}}"], ["'retina'", "use pooled or classic"]),
    "classic head of branches": (
        lambda data: None,
        ["model.head={{name: classic}}", "model.pyramid.branches=[resnet10, vgg11]", "model.backbone=null"],
        ["head.name: classic is one network's own", "use pooled"],
    ),
    "key of detection": (
        lambda data: None,
        ["data.resize.short=[64]"],
        ["data.resize", "has no effect here", "task detection"],
    ),
    "frozen at random": (lambda data: None, ["model.backbone.freeze_at=2"], ["freezes random weights", "--init-from"]),
    "no checkpoint": (lambda data: None, ["--init-from", "{data}/train/red/red_0.png"], ["red_0.png"]),
    "checkpoint missing": (lambda data: None, ["--init-from", "{data}/nothing.pt"], ["nothing.pt"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_training_on_a_mistake(mistake: str, colors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, overrides, said = MISTAKES[mistake]
    data = Path(shutil.copytree(colors, tmp_path / "data"))
    change(data)
    given = [*TINY, *images_of(data), *[text.format(data=data) for text in overrides], "train.epochs=1"]
    assert run_command("train", ["--config", CONFIG, "--runs", str(tmp_path / "runs"), "--device", "cpu", *given]) == 2
    error = errors_of(capsys)
    for words in said:
        assert words.format(data=data) in error


EVALUATE: dict[str, tuple[list[str], list[str]]] = {
    "other classes": (["--images", "{tmp}/images"], ["'wood' is not among the 3 classes", "blue, green or red"]),
    "no such folder": (["--images", "nowhere"], ["data.val.images: nowhere is not a folder"]),
    "no such table": (["--annotations", "nothing.csv"], ["nothing.csv: cannot be read"]),
    "results of boxes": (["--results", "x.json"], ["either --checkpoint or --results"]),
}


@pytest.mark.parametrize("mistake", EVALUATE)
def test_evaluating_a_mistake(mistake: str, best: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, said = EVALUATE[mistake]
    (tmp_path / "images/wood").mkdir(parents=True)
    (tmp_path / "images/wood/x.png").touch()
    arguments = [text.format(tmp=tmp_path) for text in given]
    assert run_command("evaluate", ["--checkpoint", str(best), "--device", "cpu", *arguments]) == 2
    error = errors_of(capsys)
    for words in said:
        assert words in error


def test_resuming_with_another_split_is_refused(
    colors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--config", CONFIG, "--runs", str(tmp_path), "--name", "run", "--device", "cpu", *TINY, *images_of(colors)]
    assert run_command("train", [*given, "train.steps=1"]) == 0
    changes = {
        "data.crop.size=48": "data.crop.size was 32, is 48",
        "data.augment.mixup=0.5": "data.augment.mixup was",
        "data.class_weights=balanced": "data.class_weights was None, is balanced",
        "model.head.dropout=0.5": "model.head.dropout was 0.0, is 0.5",
        "data.classes=[red, green, blue]": "3 classes",
        f"data.train.images={colors}/val": "was trained on 18 images",
    }
    for change, said in changes.items():
        capsys.readouterr()
        assert run_command("train", [*given, change, "--resume"]) == 2
        assert said in errors_of(capsys)
