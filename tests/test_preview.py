"""What a run reports before its first step, the drawing of its first batch, and overfitting a few images."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from networks import MAX_IOU
from PIL import Image

from detector.__main__ import main
from detector.config.loader import load_config
from detector.config.schema import Config
from detector.errors import ConfigError
from detector.models import Model
from detector.structures import IGNORE_REGION, Batch, Category, ClassTargets, Targets
from detector.tasks import classification, classification_views, detection, detection_views
from detector.training import fitting
from detector.training.fitting import fit
from detector.training.overfit import vanishing_losses
from detector.training.run_folder import RunFolder

TINY = ["model.backbone.name=resnet10", "model.fpn={levels: [3, 4, 5], channels: 16}", "model.head={num_convs: 1}"]
TINY += ["data.resize={short: [64], long: 64}", "data.workers=0", "train.batch_size=4"]
CLASSES = ["model.backbone.name=resnet10", "data.crop.size=32", "data.workers=0", "train.batch_size=6"]
CLASSES += ["train.optimizer.lr=1.0e-3", "model.fpn.channels=16"]


@pytest.fixture
def tiny(shapes: Path) -> list[str]:
    splits = [f"data.{split}.annotations={shapes}/annotations/{split}.json" for split in ("train", "val")]
    return [*TINY, *splits, f"data.train.images={shapes}/images", f"data.val.images={shapes}/images"]


def test_a_run_begins_with_figures_warnings_and_a_drawing(
    tmp_path: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(MAX_IOU, [*tiny, "train.steps=1", "model.anchors.base_size=16"])
    assert fit(config, RunFolder(tmp_path / "run"), torch.device("cpu"))
    said = capsys.readouterr().err
    before = said[: said.index("step 1/1")]
    assert "anchors: cover 0.0% of the objects at IoU 0.5" in before
    assert "warning: 100.0% of the objects get no anchor at IoU 0.5" in before
    assert "warning: 4 images in 1 step (from a set of 12) are few to train resnet10 from random weights" in before
    with Image.open(tmp_path / "run" / "first_batch.jpg") as image:
        assert image.size == (4 * 480, 480)  # four images of 64 px, enlarged so that their letters can be read

    # A resumed run has reported it already.
    (tmp_path / "run" / "first_batch.jpg").unlink()
    longer = load_config(MAX_IOU, [*tiny, "train.steps=2", "model.anchors.base_size=16"])
    assert fit(longer, RunFolder(tmp_path / "run"), torch.device("cpu"), resume=True)
    assert "anchors: cover" not in capsys.readouterr().err
    assert not (tmp_path / "run" / "first_batch.jpg").exists()


def test_good_anchors_raise_no_warning(tiny: list[str]) -> None:
    config = load_config(MAX_IOU, [*tiny, "data.resize={short: [128], long: 128}"])
    data = detection.open_split(config, "val")
    lines = detection_views.preview(data, config)
    objects = int(data.is_object.sum())
    assert f"{objects / len(data):.1f} objects per image" in lines[0]
    assert not any("no anchor" in line for line in lines[1:])


@pytest.mark.parametrize("name", ["atss", "task_aligned"])
def test_an_assigner_without_thresholds_is_asked(name: str, tiny: list[str]) -> None:
    """An object between the centres of the only level's cells gets nothing; the others do."""
    own = [f"model.matcher.name={name}", "model.anchors={base_size: 8.0, ratios: [1.0], scales: [1.0]}"]
    config = load_config(MAX_IOU, [*tiny, *own, "data.resize={short: [128], long: 128}"])
    data = detection.open_split(config, "val")
    objects, start = int(data.is_object.sum()), " at the start" if name == "task_aligned" else ""
    (line,) = detection_views.preview(data, config)[:1]
    pattern = rf"anchors: {name} gives (.*) to an object{start}, and none to (.*)%; (.*) objects per image"
    match = re.match(pattern, line)
    assert match
    assert float(match[1]) > 2
    assert float(match[3]) == round(objects / len(data), 1)
    small = ["model.fpn.levels=[5]", "data.resize={short: [32], long: 32}"]
    lines = detection_views.preview(data, load_config(MAX_IOU, [*tiny, *own, *small]))
    assert any("of the objects get no anchor: none has its centre in them" in line for line in lines)


def test_rare_classes_are_warned_of(colors: Path) -> None:
    config = load_config(
        "classify_quickstart.yaml", [f"data.{split}.images={colors}/{split}" for split in ("train", "val")]
    )
    (line,) = classification_views.preview(classification.open_split(config, "val"), config)
    assert line == "warning: 3 of 3 classes have under 10 images to learn from (blue 2, green 2, red 2)"


def test_the_anchors_of_the_first_batch_are_those_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    # An object that equals an anchor matches it and its four neighbours. The crowd's anchors are not drawn.
    drawn = []
    monkeypatch.setattr(detection_views, "draw_targets", lambda *arguments: drawn.append(arguments))
    anchors = {"base_size": 4.0, "ratios": [1.0], "scales": [1.0]}
    model = Config(model={"anchors": anchors, "fpn": {"levels": [3]}}).model
    boxes = torch.tensor([[[16.0, 16.0, 48.0, 48.0], [0.0, 0.0, 0.0, 0.0]]])
    regions = torch.tensor([[[64.0, 64.0, 96.0, 96.0], [0.0, 0.0, 0.0, 0.0]]])
    size = torch.tensor([[96, 96]])
    targets = Targets(boxes, torch.tensor([[1, -1]]), regions)
    batch = Batch(torch.zeros(1, 3, 96, 96, dtype=torch.uint8), size, size, targets, torch.tensor([1]))
    detection_views.draw_batch(batch, [Category(1, "cat"), Category(2, "dog")], model)
    ((image, own, labels, texts, shown, shown_labels),) = drawn
    assert image.shape == (96, 96, 3)
    assert (own.tolist(), labels, texts) == (
        [[16, 16, 48, 48], [64, 64, 96, 96]],
        [1, IGNORE_REGION],
        ["dog", "ignored"],
    )
    centers = (shown[:, :2] + shown[:, 2:]) / 2
    assert sorted(centers.tolist()) == [[24, 32], [32, 24], [32, 32], [32, 40], [40, 32]]
    assert shown_labels == [1] * 5


def test_a_mixed_image_is_drawn_under_both_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(classification_views, "draw_lines", lambda *arguments: drawn.append(arguments[1:]))
    probabilities = torch.tensor([[0.0, 1.0], [0.25, 0.75]])
    size = torch.tensor([[8, 8]] * 2)
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    batch = Batch(images, size, size, ClassTargets(probabilities, torch.ones(2, 2)), torch.tensor([1, 2]))
    classification_views.draw_batch(batch, [Category(1, "cat"), Category(2, "dog")], Config().model)
    assert drawn == [([1], ["dog"]), ([1, 0], ["dog 0.75", "cat 0.25"])]


def test_a_run_with_a_misspelt_transform_does_not_begin(
    tmp_path: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    listed = "data.augment.transforms=[{name: RandomBrightnesContrast, p: 0.3, brightness_limit: 0.2}]"
    assert main(["train", "--config", "quickstart.yaml", "--runs", str(tmp_path), *tiny, listed]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: data.augment.transforms: RandomBrightnesContrast: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# --- overfitting ------------------------------------------------------------------------------------------------------


def test_a_detector_overfits_two_images(tmp_path: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--overfit", "2", "--runs", str(tmp_path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detector.training.overfit.NEAR_ZERO", 0.7)
        patch.setattr("detector.training.overfit.ROUND_STEPS", 20)
        assert main(["train", "--config", "quickstart.yaml", *flags, *tiny]) == 0
    said = capsys.readouterr().out
    assert "passed: the loss went from " in said
    run = tmp_path / "quickstart_overfit"
    assert (run / "first_batch.jpg").exists()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert sum(losses[-10:]) <= 0.7 * sum(losses[:10])
    assert sum(row["objects"] for row in json.loads((run / "results.json").read_text())["per_class"]) < 40


def test_what_a_perfect_fit_leaves_is_no_failure(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    steps = [
        {"step": 1, "loss": 3.0, "loss_cls": 0.8, "loss_box": 1.2, "loss_dfl": 0.7, "loss_quality": 0.3},
        {"step": 2, "loss": 0.25, "loss_cls": 0.01, "loss_box": 0.05, "loss_dfl": 0.14, "loss_quality": 0.05},
        {"step": 2, "AP": 1.0},
    ]
    run.metrics.write_text("".join(f"{json.dumps(row)}\n" for row in steps))
    assert vanishing_losses(run) == pytest.approx([2.0, 0.06])  # 3 %, where 0.25 of 3.0 are 8 %


def test_a_classifier_overfits(tmp_path: Path, colors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--overfit", "6", "--runs", str(tmp_path), "--name", "own", f"data.train.images={colors}/train"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detector.training.overfit.NEAR_ZERO", 0.3)
        patch.setattr("detector.training.overfit.ROUND_STEPS", 20)
        assert main(["train", "--config", "classify_quickstart.yaml", *flags, *CLASSES]) == 0
    assert "top1 1.000 on the same images" in capsys.readouterr().out
    assert (tmp_path / "own" / "last.pt").exists()


@pytest.mark.parametrize(
    ("steps", "limit"), [(7, "at most 7 steps:"), (300, "at most 10 steps (train.steps 300 is for training):")]
)
def test_what_cannot_be_learned_fails(
    steps: int,
    limit: str,
    tmp_path: Path,
    tiny: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("detector.training.overfit.ROUND_STEPS", 5)
    monkeypatch.setattr("detector.training.overfit.MAX_ROUNDS", 2)
    recomputing: list[Model] = []
    monkeypatch.setattr(Model, "recompute_activations", lambda model: recomputing.append(model))
    flags = ["--overfit", "1", "--runs", str(tmp_path), "train.optimizer.lr=1.0e-9"]
    flags += ["train.activation_checkpointing=true"]
    assert main(["train", "--config", "quickstart.yaml", *flags, *tiny, f"train.steps={steps}"]) == 1
    said = capsys.readouterr()
    assert f"overfitting in {limit}" in said.err
    assert "FAILED: the loss went from " in said.out
    assert f"in {min(steps, 10)} steps" in said.out
    assert len(recomputing) == 1  # as training does


def refuse_halves(precision: str, device: torch.device, key: str) -> None:
    """As on a device without half precision."""
    if precision != "fp32":
        raise ConfigError(f"{key}: {precision} is not for here")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--overfit", "0"], "--overfit: '0' is not a whole number of at least 1; see detector train --help"),
        (["--overfit", "2", "--resume"], "--overfit starts afresh each time; remove --resume"),
        (["--overfit", "13"], "train.json has 12 images to learn from"),
        (["--overfit", "2", "train.compile=true"], "train.compile: there is no C++ compiler here"),
        (["--overfit", "2", "train.precision=bf16"], "train.precision: bf16 is not for here"),
        (["--overfit", "2", "model.predict.precision=fp16"], "model.predict.precision: fp16 is not for here"),
    ],
)
def test_mistakes_get_one_line(
    tmp_path: Path,
    tiny: list[str],
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(fitting, "check_precision", refuse_halves)
    assert main(["train", "--config", "quickstart.yaml", "--runs", str(tmp_path), *flags, *tiny]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "quickstart_overfit").exists()
