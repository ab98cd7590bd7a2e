"""Predictions of an image are the same alone, in any batch, on any rank, and after training in any precision."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from networks import MAX_IOU
from test_configs import on_resnet10

from detector.__main__ import run_command
from detector.checkpoints.checkpoint import save_checkpoint
from detector.config.loader import CONFIG_FOLDERS, apply_overrides, load_config
from detector.config.schema import Config
from detector.data.loading.collate import collate
from detector.errors import ConfigError
from detector.inference.predictor import Predictor
from detector.models import Model, build_model
from detector.models.precision import check_precision
from detector.structures import Category
from detector.tasks import detection
from detector.training import distributed
from detector.training.loop import predict_all

CPU = torch.device("cpu")
CATEGORIES = [Category(label, str(label)) for label in range(3)]
CONFIGS = sorted(path.name for path in CONFIG_FOLDERS[0].glob("*.yaml"))


def make_model(config: Config) -> Model:
    """With scores and boxes that differ from cell to cell; a new head gives every box the prior's score."""
    torch.manual_seed(0)
    model = build_model(config.model, len(CATEGORIES)).eval()
    with torch.inference_mode():
        output = model(torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8), torch.tensor([[64, 96]]))
    for layer, found, deviation in (
        (model.head.cls_output, output.cls_logits, 1.5),
        (model.head.box_output, output.box_channels, 3.0 if config.model.box_coder.name == "distribution" else 0.3),
    ):
        layer.weight.data *= deviation / found.std()
        layer.bias.data += deviation / found.std() * (layer.bias.data - found.mean())
    return model


def make_images(*shapes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


def is_same(one: detection.Prediction, other: detection.Prediction) -> bool:
    """To 1e-3 px and 1e-5 in score, in any order: scores that are closer may change places."""
    pairs = np.abs(one.boxes[:, None] - other.boxes).max(axis=2) < 1e-3
    pairs &= np.abs(one.scores[:, None] - other.scores) < 1e-5
    pairs &= one.labels[:, None] == other.labels
    return bool(pairs.any(axis=1).all() and pairs.any(axis=0).all())


@pytest.mark.parametrize("name", [name for name in CONFIGS if load_config(name).task == "detection"])
def test_predictions_of_an_image_do_not_depend_on_its_batch(name: str) -> None:
    """Classifiers' images have one size, so nothing pads them."""
    # Random weights put all boxes of a place into one another: NMS would leave few.
    config = load_config(name, ["data.resize={short: [64], long: 128}", "model.predict.nms_threshold=0.95"])
    if "convnext" not in name:
        config = on_resnet10(config)
    model = make_model(config)
    predictor = Predictor(model, config, CATEGORIES, CPU)
    samples = [predictor.sample(image) for image in make_images((64, 70), (100, 64), (64, 85))]
    alone = predictor.predict_samples(samples[:1])[0]
    assert len(alone.scores) > 10
    assert float(np.ptp(alone.scores)) > 0.05
    assert is_same(predictor.predict_samples(samples)[0], alone)

    # In a batch with the high one it is padded more, which changes these weights' predictions.
    batch = collate(samples[:2])
    with torch.inference_mode():
        detections = detection.predict(model(batch.images, batch.sizes), batch, config.model)
    assert not is_same(detection.to_predictions(detections, CATEGORIES, config.model)[0], alone)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Of a small model with group norms and five images of four sizes, three padded shapes."""
    folder = tmp_path_factory.mktemp("mixed")
    images, annotations = [], []
    for number, image in enumerate(make_images((64, 85), (100, 64), (64, 85), (64, 128), (64, 70)), start=1):
        cv2.imwrite(str(folder / f"{number}.png"), image)
        height, width = image.shape[:2]
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        box = {"bbox": [4, 4, 40, 40], "area": 1600, "iscrowd": 0}
        annotations.append({"id": number, "image_id": number, "category_id": number % 3} | box)
    categories = [category._asdict() for category in CATEGORIES]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "val.json").write_text(json.dumps(tree))
    overrides = ["data.resize={short: [64], long: 128}", "data.workers=0", "train.precision=fp16"]
    overrides += [f"data.{split}={{annotations: {folder}/val.json, images: {folder}}}" for split in ("train", "val")]
    overrides += ["model.backbone={name: resnet10, norm: bn}", "model.predict.max_detections=50"]
    return load_config(MAX_IOU, overrides)


def evaluated(config: Config, batch_size: int) -> np.ndarray:
    """Rows [R, 7] of all images, by image."""
    config = apply_overrides(config, [f"eval.batch_size={batch_size}"], "")
    data = detection.open_split(config, "val")
    rows = predict_all(make_model(config), detection, data, config, CPU).rows.reshape(-1, 7)
    return rows[np.argsort(rows[:, 0], kind="stable")]


def test_evaluation_finds_the_same_in_batches_of_any_size_and_on_any_rank(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, together = evaluated(config, 1), evaluated(config, 8)
    assert len(alone) == 5 * 50
    np.testing.assert_allclose(together[:, :5], alone[:, :5], rtol=0, atol=1e-3)
    np.testing.assert_allclose(together[:, 5:], alone[:, 5:], rtol=0, atol=1e-5)
    by_rank = []
    monkeypatch.setattr(distributed, "world_size", lambda: 6)  # one of them has no image
    for rank in range(6):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        by_rank.append(evaluated(config, 8))
    assert by_rank[-1].shape == (0, 7)
    shared = np.concatenate(by_rank)
    np.testing.assert_allclose(shared[np.argsort(shared[:, 0], kind="stable")], alone, rtol=0, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_and_inference_compute_in_the_precision_of_predict(config: Config, precision: str) -> None:
    """And not in that of training, which is fp16 here."""
    own = apply_overrides(config, [f"model.predict.precision={precision}"], "")
    rows, data = evaluated(own, 8), detection.open_split(config, "val")
    predictor = Predictor(make_model(config), own, CATEGORIES, CPU)
    found = predictor.predict([data.file(index) for index in range(len(data))])
    np.testing.assert_allclose(rows[:, 5], np.concatenate([each.scores for each in found]), rtol=0, atol=1e-5)
    # bf16 has 8 bits: its scores differ.
    assert (np.abs(rows[:, 5] - evaluated(config, 8)[:, 5]).max() > 1e-4) == (precision == "bf16")


def test_a_checkpoint_trained_in_half_precision_evaluates_on_a_cpu(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, truth = tmp_path / "half.pt", Path(config.data.val.annotations)
    save_checkpoint(path, config, CATEGORIES, {"model": make_model(config).state_dict()})
    # The truth is its own detections, moved by a pixel, so that AP is not 0.
    tree = json.loads(truth.read_text())
    images, classes = ([row["id"] for row in tree[table]] for table in ("images", "categories"))
    tree["annotations"] = [
        {"id": number, "image_id": images[int(row[0])], "category_id": classes[int(row[6])]}
        | {"bbox": [row[1] + 1, *row[2:5]]}
        | {"area": row[3] * row[4], "iscrowd": 0}
        for number, row in enumerate(evaluated(config, 1)[::3].tolist(), start=1)
        if row[1] + 1 + row[3] < 64
    ]
    (tmp_path / "truth.json").write_text(json.dumps(tree))
    arguments = ["--checkpoint", str(path), "--device", "cpu", "--json", "--images", str(truth.parent)]
    arguments += ["--annotations", str(tmp_path / "truth.json")]
    numbers = []
    for batch_size in (1, 8):
        assert run_command("evaluate", [*arguments, f"eval.batch_size={batch_size}"]) == 0
        numbers.append(json.loads(capsys.readouterr().out))
    for one, other in zip(*(scores.pop("per_class") for scores in numbers), strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-6)
    assert numbers[0]["AP"] > 0.1

    conv2d = torch.nn.functional.conv2d

    def refuse(*given: torch.Tensor, **options: object) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("could not create a primitive")
        return conv2d(*given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detector.models.precision.F.conv2d", refuse)
        assert run_command("evaluate", [*arguments, "model.predict.precision=fp16"]) == 2
    error = capsys.readouterr().err
    assert error.strip().splitlines()[-1].endswith("model.predict.precision: cpu cannot compute in fp16; use fp32")


def test_a_precision_that_the_device_lacks_is_refused() -> None:
    check_precision("bf16", CPU, "train.precision")
    with pytest.raises(ConfigError, match=r"train\.precision: meta cannot compute in bf16; use fp32"):
        check_precision("bf16", torch.device("meta"), "train.precision")
