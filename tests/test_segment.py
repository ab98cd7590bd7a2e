"""Segmentation as a person runs it: train, evaluate, infer, export, resume after a kill, two ranks, other weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults.test_ranks import Ranks
from networks import TINY, TINY_BACKBONE, Tiny
from PIL import Image
from test_training import steps_of
from torch.testing import assert_close

import detector
from detector.__main__ import run_command
from detector.checkpoints.checkpoint import read_checkpoint, save_checkpoint
from detector.config.loader import load_config
from detector.data.synthetic import POLYGONS, write_mask_shapes
from detector.dev import stress
from detector.dev.stress import differences
from detector.errors import DataError
from detector.models import build_model
from detector.models.backbones import BACKBONES
from detector.structures import Category
from detector.tasks import segmentation, segmentation_results
from detector.tasks.segmentation_results import SegmentPrediction
from detector.training.fitting import fit
from detector.training.overfit import overfit
from detector.training.run_folder import RunFolder

CONFIG = "segment_quickstart.yaml"
CPU = torch.device("cpu")
SMALL = [
    TINY_BACKBONE,
    "model.fpn={levels: [2, 3, 4, 5], channels: 8, norm: none}",
    "model.head.channels=8",
    "data.resize={short: [64], long: 64}",
    "data.augment={photometric: 0.5, scale_jitter: [0.7, 1.4], rotate90: 0.5, max_class_share: 0.9}",
    "data.workers=0",
    "train.batch_size=4",
    "train.epochs=2",
    "train.optimizer.lr=2.0e-3",  # six steps at more find one class only
    "train.schedule.warmup_steps=2",
    "eval={every_epochs: 1, batch_size: 4}",
]


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 images with masks to train on and 5 to evaluate on, one of these smaller."""
    folder = tmp_path_factory.mktemp("masks")
    write_mask_shapes(folder, train=12, val=5)
    for kind in ("images", "masks"):
        path = folder / kind / "val" / "00012.png"
        Image.open(path).crop((0, 0, 150, 101)).save(path)
    return folder


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", TINY)
        yield


def of(masks: Path) -> list[str]:
    data = [f"data.{split}={{annotations: {masks}/masks/{split}, images: {masks}/images/{split}}}" for split in SPLITS]
    return [*SMALL, *data]


SPLITS = ("train", "val")


@pytest.fixture(scope="module")
def run(masks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    assert fit(load_config(CONFIG, [*of(masks), "model.loss.dice_weight=1", "train.ema=0.5"]), RunFolder(path), CPU)
    return path


def test_evaluate_finds_what_training_found(
    run: Path, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [row["step"] for row in steps_of(run)] == [1, 2, 3, 4, 5, 6]
    assert all(row["loss"] == pytest.approx(row["loss_cls"] + row["loss_dice"]) for row in steps_of(run))
    results = json.loads((run / "results.json").read_text())
    assert np.sum(results["confusion"]) == 4 * 192 * 192 + 150 * 101  # at the size of the files
    assert {"first_batch.jpg", "confusion.csv", "confusion.png", "best.pt"} <= {path.name for path in run.iterdir()}
    best = read_checkpoint(run / "best.pt")
    assert best["metrics"]["mIoU"] == results["best"]
    given = ["--checkpoint", str(run / "last.pt"), "--output", str(tmp_path / "scores"), "--device", "cpu"]
    given += ["--report", str(tmp_path / "report"), "--against", str(run), "eval.boundary_iou=true"]
    assert run_command("evaluate", [*given, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    for name in ("mIoU", "pixel_accuracy", "mean_accuracy"):
        assert printed[name] == pytest.approx(results[name], abs=1e-6)
    assert [row["name"] for row in printed["per_class"]] == ["background", "circle", "square", "triangle", "cross"]
    assert 0 <= printed["boundary_mIoU"] <= 1
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("data:image/jpeg") == 5
    assert "Compared" in page and "Confusion in pixels" in page
    assert len((tmp_path / "report" / "images.csv").read_text().splitlines()) == 1 + 5
    # Of the other, too, the pixels that the command says are ignored do not count.
    assert (
        run_command("evaluate", [*given[:-1], "--output", str(tmp_path / "less"), "data.masks.label_map={1: 1}"]) == 0
    )
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    sums = [np.sum(own["metrics"]["confusion"], axis=1) for own in (report, report["against"])]
    assert np.array_equal(*sums) and np.flatnonzero(sums[0]).tolist() == [1]
    # Given as other data, with test-time augmentation, one by one.
    other = ["--annotations", f"{masks}/masks/val", "--images", f"{masks}/images/val", "model.predict.flip=true"]
    assert run_command("evaluate", [*given[:2], *other, "model.predict.scales=[1.0, 1.5]", "eval.batch_size=1"]) == 0


def test_infer_writes_masks_of_the_upright_images(run: Path, masks: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "images", tmp_path / "found"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(masks / "images/val/00012.png", folder / "deep/a.png")
    image = Image.open(masks / "images/val/00012.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "b.jpg", exif=exif, quality=95)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    given = ["--checkpoint", str(run), "--input", str(folder), "--output", str(output), "--device", "cpu"]
    assert run_command("infer", [*given, "--workers", "0"]) == 1
    rows = json.loads((output / "predictions.json").read_text())
    found = {}
    for name, mask_name in (("b.jpg", "b.jpg.png"), ("deep/a.png", "deep/a.png")):
        with Image.open(output / "masks" / mask_name) as mask:
            assert (mask.mode, mask.size) == ("P", (150, 101))
            found[name] = np.asarray(mask)
        own = [row for row in rows if row["file_name"] == name]
        areas = np.bincount(found[name].ravel(), minlength=5)
        assert {row["category_id"]: row["area"] for row in own} == {i: n for i, n in enumerate(areas.tolist()) if n}
        assert sum(row["fraction"] for row in own) == pytest.approx(1, abs=1e-4)
    assert (found["b.jpg"] == found["deep/a.png"]).mean() > 0.9  # but for JPEG
    assert len(list((output / "images").rglob("*.jpg"))) == 2
    assert len((output / "errors.jsonl").read_text().splitlines()) == 1
    predictor = detector.load(run, "cpu")
    (own,) = predictor.predict([folder / "deep/a.png"])
    assert isinstance(own, SegmentPrediction)
    assert np.array_equal(own.mask, found["deep/a.png"])  # ids are labels here
    # What was predicted can be trained on.
    again = ["data.val=null", f"data.train={{annotations: {output}/masks, images: {folder}}}", "train.steps=1"]
    (folder / "broken.jpg").unlink()
    assert fit(load_config(CONFIG, [*SMALL, *again, "train.batch_size=2"]), RunFolder(tmp_path / "run"), CPU)


def test_masks_that_were_being_written_are_written_again(
    run: Path, masks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at each image in turn with half of its mask written: the same files as without, byte for byte."""
    given = ["--checkpoint", str(run), "--input", str(masks / "images/val"), "--device", "cpu", "--workers", "0"]
    given += ["--batch-size", "2", "--output"]
    assert run_command("infer", [*given, str(tmp_path / "whole")]) == 0
    save = segmentation_results.save
    for place, half in enumerate(("00012", "00013", "00016")):  # first and second of a batch, alone in the last

        def stop(prediction: SegmentPrediction, name: str, output: Path, half: str = half) -> None:
            save(prediction, name, output)
            if half in name:
                path = output / "masks" / name
                path.write_bytes(path.read_bytes()[:100])
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(segmentation_results, "save", stop)
            assert run_command("infer", [*given, str(tmp_path / "stopped"), *["--resume"] * (place > 0)]) == 75
        with pytest.raises(OSError):
            Image.open(tmp_path / f"stopped/masks/{half}.png").load()
        assert not (tmp_path / "stopped/predictions.json").exists()
    assert run_command("infer", [*given, str(tmp_path / "stopped"), "--resume"]) == 0
    files = [
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("whole", "stopped")
    ]
    assert len(files[0]) == 5 + 5 + 1  # masks, drawings, predictions
    assert files[0] == files[1]


def test_an_exported_model_predicts_the_same(run: Path, masks: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    path = tmp_path / "model.onnx"
    images = sorted((masks / "images/val").iterdir())
    given = ["--checkpoint", str(run), "--output", str(path), "--images", str(masks / "images/val")]
    assert run_command("export", given) == 0
    own, other = detector.load(run, "cpu").predict(images), detector.load(path).predict(images)
    assert len(set().union(*(np.unique(one.mask).tolist() for one in own))) > 1  # not all of one class
    for one, two in zip(own, other, strict=True):
        assert (one.mask != two.mask).mean() < 1e-3
    scores = [detector.evaluate(source, ["data.workers=0"])["mIoU"] for source in (run, path)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)


def test_killed_runs_continue_bit_for_bit(masks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout and pasted classes, as ``stress kill --task segmentation``."""
    monkeypatch.setattr(stress, "COMMON", (*stress.COMMON, TINY_BACKBONE))
    report = stress.kill_and_resume(masks, tmp_path / "runs", kills=2, task="segmentation")
    assert report.differences == [] and report.kills.total() == 2


def test_two_ranks_and_parts_follow_one_process(masks: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pt")
    given = [
        *of(masks),
        f"model.backbone={{name: tiny, norm: frozen_bn, weights: {tmp_path}/tiny.pt}}",
        "model.loss={dice_weight: 0.5, label_smoothing: 0.1}",
        "data.class_weights={circle: 3.0, cross: 0.5}",
        "train.steps=5",
        "eval.every_epochs=99",
    ]
    ranks = Ranks(tmp_path, "two", 2, *given, config=(CONFIG,))
    runs = [RunFolder(tmp_path / name) for name in ("one", "two", "parts")]
    assert fit(load_config(CONFIG, given), runs[0], CPU)
    assert fit(load_config(CONFIG, [*given, "train.accumulate=4"]), runs[2], CPU)
    assert ranks.codes() == [0, 0], ranks.said()
    one, two, parts = ([row["loss"] for row in steps_of(run.path)] for run in runs)
    assert one[0] != pytest.approx(one[-1], rel=0.01)  # it does train
    assert two == pytest.approx(one, abs=1e-4)
    assert parts == pytest.approx(one, abs=1e-4)
    results = [json.loads(run.results.read_text()) for run in runs[:2]]
    assert np.sum(results[1]["confusion"]) == np.sum(results[0]["confusion"])
    assert results[1]["mIoU"] == pytest.approx(results[0]["mIoU"], abs=1e-3)


def test_weights_of_a_detector_and_overfitting(masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = tmp_path / "detector"
    config = load_config("quickstart.yaml", [TINY_BACKBONE, "model.fpn={levels: [3, 4, 5], channels: 8}"])
    shapes.mkdir()
    content = {"model": build_model(config.model, 1).state_dict(), "epoch": 1, "metrics": {}}
    save_checkpoint(shapes / "best.pt", config, [Category(1, "circle")], content)
    given = [*of(masks), f"model.weights={shapes}/best.pt", "train.steps=60", "data.resize={short: [96], long: 96}"]
    given += ["train.optimizer={name: adamw, lr: 3.0e-3, lr_batch_size: 1}"]
    outcome = overfit(load_config(CONFIG, given), 1, RunFolder(tmp_path / "run"), CPU)
    assert "(detection): " in capsys.readouterr().err
    assert outcome.last_loss < 0.8 * outcome.first_loss


class Own:
    """Images with masks in memory, as ``detector.train`` takes them."""

    categories = tuple(Category(label, name) for label, name in enumerate(["background", *POLYGONS]))

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def in_memory(masks: Path, split: str) -> Own:
    paths = sorted((masks / "masks" / split).iterdir())
    return Own(*[(masks / "images" / split / path.name, np.asarray(Image.open(path))) for path in paths])


def test_data_given_from_python_is_as_that_of_files(masks: Path, tmp_path: Path) -> None:
    given = [*of(masks), "data.augment.copy_paste=0.5", "data.class_weights=balanced"]
    config, own = load_config(CONFIG, given), {split: in_memory(masks, split) for split in SPLITS}
    for split in SPLITS:
        files, memory = segmentation.open_split(config, split), segmentation.open_own(config, split, own[split])
        for one, two in ((files, memory), (files.select([3, 1]), memory.select([3, 1]))):
            assert one.summary() == two.summary() and np.array_equal(one.shapes, two.shapes)
            for key in ((epoch, index) for epoch in range(2) for index in range(len(one))):
                assert_close(list(one[key]), list(two[key]), rtol=0, atol=0)
    whole = detector.train(CONFIG, given, "files", tmp_path, device="cpu")
    steps = [*given, "train.checkpoint_steps=1"]
    train = Own(*own["train"].items)
    train.items = (*train.items[:-1], (train.items[-1][0], train.items[-1][1][:-7]))
    with pytest.raises(DataError, match=r"data given for train: image 11: is 192×192, its mask 192×185"):
        detector.train(CONFIG, steps, "own", tmp_path, device="cpu", data=(train, own["val"]))
    run = detector.train(CONFIG, steps, "own", tmp_path, device="cpu", data=(own["train"], own["val"]))
    assert list(differences(whole, run)) == []


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (np.zeros((4, 4, 3), dtype=np.uint8), r"image 1: is ndarray; give \(image, mask\)"),
        (("nowhere.png", np.zeros((4, 4), dtype=np.uint8)), r"image 1: the image: nowhere.png: does not exist"),
        ((np.zeros((4, 4, 3), dtype=np.uint8), np.zeros((4, 4))), r"has a mask \[4, 4\] of float64; give integers"),
        ((np.zeros((1, 3, 3), dtype=np.uint8), [[0, -1, 5]]), r"has the value -1 in its mask; give indices .*, 0 to 4"),
    ],
)
def test_faults_of_data_given_from_python(item: Any, message: str) -> None:
    own = Own((np.zeros((2, 1, 3), dtype=np.uint8), [[4], [255]]), item)
    with pytest.raises(DataError, match=message):
        segmentation.open_own(load_config(CONFIG), "train", own)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.classes=null", "data.classes is not set"),
        ("model.head.name=retina", "model.head.name: 'retina' is not known to task segmentation; use semantic"),
        ("data.val.annotations=nowhere", "data.val.annotations: nowhere is neither a folder of masks nor a file"),
        ("data.masks.label_map={0: 9}", "data.masks.label_map: 0: 9 is no class"),
        ("data.resize.long=auto", "data.resize.long: auto is derived from boxes, and "),
        ("data.augment.mixup=1", "data.augment.mixup: has no effect here"),
    ],
)
def test_mistakes_are_one_line(
    change: str, message: str, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--config", CONFIG, "--runs", str(tmp_path), "--name", "run", "--device", "cpu", *of(masks), change]
    assert run_command("train", given) == 2
    printed = capsys.readouterr().err
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert "Traceback" not in printed


def test_the_doctor_examines_masks(masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(masks, bad)
    files = [bad / f"masks/train/{number:05}.png" for number in range(5)]
    files[0].unlink()
    files[1].write_bytes(b"abc")
    Image.open(files[2]).resize((50, 50), Image.Resampling.NEAREST).save(files[2])
    pixels = np.asarray(Image.open(files[3])).copy()
    pixels[0, :2] = 9
    Image.fromarray(pixels).save(files[3])
    Image.fromarray(np.stack([pixels, pixels * 20, pixels], axis=2)).save(files[4])
    shutil.copy(bad / "images/train/00009.png", bad / "images/val/00013.png")
    data = [f"data.{split}={{annotations: {bad}/masks/{split}, images: {bad}/images/{split}}}" for split in SPLITS]
    assert run_command("doctor", ["--config", CONFIG, "--json", *data]) == 1
    report = json.loads(capsys.readouterr().out)
    found = {row["check"]: row for row in report["findings"] if row["severity"] == "error"}
    kinds = ("missing", "unreadable", "size", "index", "colors")
    assert found.keys() == {*(f"mask-{kind}" for kind in kinds), "leak-identical", "label-conflict"}
    files_found = [found[f"mask-{kind}"]["examples"][0]["file"] for kind in kinds]
    assert files_found == [path.name for path in files]
    assert run_command("doctor", ["--config", CONFIG, *of(masks)[-2:]]) == 0
    assert "pixels: background " in capsys.readouterr().err
