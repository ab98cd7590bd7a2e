"""Test-time augmentation: what mirror images and other sizes show is found where it is, whatever the neighbours."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from networks import MAX_IOU, TINY, TINY_BACKBONE
from torch import Tensor

from detector.__main__ import main
from detector.checkpoints.checkpoint import read_checkpoint, save_checkpoint
from detector.config.loader import load_config
from detector.config.schema import Config, ModelConfig, PredictConfig
from detector.data.formats.reading import read_annotations
from detector.data.loading.collate import collate
from detector.dev import stress
from detector.errors import ConfigError
from detector.inference import evaluate as evaluation
from detector.inference.predictor import Predictor
from detector.models import build_model
from detector.models.backbones import BACKBONES
from detector.structures import Batch, Category, Detections
from detector.tasks import classification, detection
from detector.tasks.predicting import mirrored, predict_merged, scaled


def batch_of(*sides: tuple[int, int], dtype: torch.dtype = torch.uint8) -> Batch:
    """Noise of these heights and widths."""
    rng = np.random.default_rng(0)
    images = [rng.integers(1, 255, (*side, 3)).astype(np.uint8) for side in sides]
    batch = collate([detection.make_sample(image, 0, Config(data=small(image.shape[:2]))) for image in images])
    return batch._replace(images=batch.images.to(dtype))


def small(side: tuple[int, int]) -> dict:
    return {"resize": {"short": [min(side)], "long": max(side)}}


class BrightSpot(torch.nn.Module):
    """Finds a 10 × 10 box on the brightest pixel of the red channel, at the input size that it is given."""

    def forward(self, images: Tensor, sizes: Tensor) -> list[tuple[int, int]]:
        return [divmod(int(image[0].argmax()), image.shape[2]) for image in images]


class FindsSpots:
    """A task whose predictions are such boxes, in pixels of the file."""

    mirror, merge = staticmethod(detection.mirror), staticmethod(detection.merge)

    def predict(self, output: list[tuple[int, int]], batch: Batch, config: ModelConfig) -> Detections:
        factors = (batch.sizes_original / batch.sizes)[:, [1, 0]]
        corner = torch.tensor([[column, row] for row, column in output]) * factors
        boxes = torch.cat([corner, corner + 10], dim=1)[:, None]
        return Detections(boxes, torch.full((len(boxes), 1), 0.9), torch.zeros(len(boxes), 1, dtype=torch.int64))


def test_merged_boxes_are_in_the_frame_of_the_file() -> None:
    batch = batch_of((64, 96))
    batch.images[:] = 0
    batch.images[0, 0, 20:24, 60:64] = 200
    config = ModelConfig(predict={"flip": True, "scales": [1.0, 2.0], "nms_threshold": 0.99})
    found = predict_merged(BrightSpot(), FindsSpots(), batch, config)  # type: ignore
    boxes = found.boxes[0, found.scores[0] > 0]
    # As it is: row 20, column 60. In the mirror image the first bright column is 96 - 64 = 32, so the box is 32 to 42
    # there and 54 to 64 here. At twice the size, bilinear: the maximum begins at (41, 121) of 128 × 192.
    assert [60, 20, 70, 30] in boxes.tolist()
    assert [54, 20, 64, 30] in boxes.tolist()
    assert (boxes[:, 1] - 20.5).abs().max() <= 0.5
    assert len(boxes) == 4
    # One NMS for all: at IoU 0.2, two boxes of 10 × 10 that overlap by 4 × 10 are one.
    config = ModelConfig(predict={"flip": True, "nms_threshold": 0.2})
    found = predict_merged(BrightSpot(), FindsSpots(), batch, config)  # type: ignore
    assert int((found.scores > 0).sum()) == 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_an_image_is_mirrored_and_scaled_within_its_own_size(dtype: torch.dtype) -> None:
    batch = batch_of((64, 90), (60, 96), dtype=dtype)
    flipped = mirrored(batch)
    assert torch.equal(flipped.images[0, :, :64, :90], batch.images[0, :, :64, :90].flip(-1))
    assert flipped.images[0, :, :, 90:].sum() == flipped.images[1, :, 60:].sum() == 0
    assert torch.equal(mirrored(flipped).images, batch.images)
    larger = scaled(batch, 1.5)
    assert larger.sizes.tolist() == [[96, 135], [90, 144]]
    assert larger.images.shape == (2, 3, 96, 160)
    assert (larger.images.dtype, larger.images.is_contiguous(memory_format=torch.channels_last)) == (dtype, True)
    for row in (0, 1):  # padded as it would be alone
        alone = scaled(Batch(*(None if part is None else part[row : row + 1] for part in batch[:3]), None, None), 1.5)
        assert torch.equal(alone.images[0], larger.images[row])


def test_without_either_nothing_changes_and_with_them_evaluation_uses_them() -> None:
    torch.manual_seed(0)
    config = load_config(MAX_IOU, ["model.predict.score_threshold=0"])
    model, batch = build_model(config.model, 2).eval(), batch_of((64, 96))
    plain = predict_merged(model, detection, batch, config.model)
    with torch.inference_mode():
        expected = detection.predict(model(batch.images, batch.sizes), batch, config.model)
    assert all(map(torch.equal, plain, expected))
    flipped = config.model.model_copy(update={"predict": config.model.predict.model_copy(update={"flip": True})})
    both = predict_merged(model, detection, batch, flipped)
    # The mirror image of the mirror image: the same boxes, mirrored.
    other = predict_merged(model, detection, mirrored(batch), flipped)
    assert not torch.equal(both.boxes, plain.boxes)
    assert torch.allclose(both.scores, other.scores, atol=1e-6)
    assert torch.allclose(both.boxes[:, :20], detection.mirror(other, batch).boxes[:, :20], atol=1e-3)


def test_scores_of_classes_are_averaged() -> None:
    config = ModelConfig(predict=PredictConfig(flip=True))
    scores = iter([torch.tensor([[0.2, 0.8]]).log(), torch.tensor([[0.6, 0.4]]).log()])
    found = predict_merged(lambda *_: next(scores), classification, batch_of((64, 64)), config)  # type: ignore
    assert torch.allclose(found, torch.tensor([[0.4, 0.6]]))


def test_each_class_has_its_own_lowest_score() -> None:
    boxes = torch.zeros(1, 4, 4)
    detections = Detections(boxes, torch.tensor([[0.9, 0.5, 0.5, 0.0]]), torch.tensor([[0, 0, 1, -1]]))
    categories = [Category(7, "cat"), Category(9, "dog")]
    config = ModelConfig(predict={"score_thresholds": {"cat": 0.6}})
    found = detection.to_predictions(detections, categories, config)[0]
    assert (found.names, found.scores.tolist()) == (["cat", "dog"], pytest.approx([0.9, 0.5]))
    # A threshold that is asked for takes their place.
    asked = detection.with_threshold(config, 0.1)
    assert len(detection.to_predictions(detections, categories, asked)[0].names) == 3


def test_thresholds_are_chosen_and_kept_in_the_checkpoint(
    tmp_path: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(BACKBONES, "tiny", TINY)
    config = load_config("quickstart.yaml", [*stress.TINY, *stress.data_overrides(shapes), TINY_BACKBONE])
    categories = read_annotations(shapes / "annotations" / "val.json").categories
    torch.manual_seed(0)
    checkpoint = tmp_path / "best.pt"
    save_checkpoint(checkpoint, config, categories, {"model": build_model(config.model, len(categories)).state_dict()})
    before = read_checkpoint(checkpoint)
    chosen = {category.name: 0.3 for category in categories}
    found = [{"name": name, "best_f1": 0.5, "best_threshold": value} for name, value in chosen.items()]
    missed = [{"name": categories[0].name, "best_f1": 0.0, "best_threshold": 0.5}]  # of no threshold is any found
    absent = [{"name": categories[1].name, "best_f1": -1.0, "best_threshold": -1.0}]
    command = ["evaluate", "--checkpoint", str(checkpoint), "--device", "cpu", "--keep-thresholds"]
    for classes in (found, missed + absent):
        monkeypatch.setattr(evaluation, "box_report", lambda *_, own=classes: SimpleNamespace(classes=own))
        assert main(command) == 0
    assert f"lowest score of {categories[0].name}: none is found, so it stays" in capsys.readouterr().err
    after = read_checkpoint(checkpoint)
    assert after["config"]["model"]["predict"].pop("score_thresholds") == chosen
    assert before["config"]["model"]["predict"].pop("score_thresholds") is None
    assert after["config"] == before["config"]
    assert all(torch.equal(tensor, before["model"][name]) for name, tensor in after["model"].items())
    # Random weights score 0.01 everywhere: nothing is left, unless it is asked for.
    image = next((shapes / "images").glob("val_*"))
    predictor = Predictor.from_checkpoint(checkpoint, "cpu", ["model.predict.score_threshold=0"])
    assert len(predictor.predict([image])[0].scores) == 0
    assert len(predictor.predict([image], score_threshold=0.0)[0].scores) > 0
    with pytest.raises(ConfigError, match=r"score_thresholds: 'zebra' is not one of"):
        Predictor.from_checkpoint(checkpoint, "cpu", ["model.predict.score_thresholds={zebra: 0.5}"])


def test_training_refuses_the_threshold_of_an_unknown_class(
    tmp_path: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(BACKBONES, "tiny", TINY)
    given = [*stress.TINY, *stress.data_overrides(shapes), TINY_BACKBONE, "model.predict.score_thresholds={zebra: 0.5}"]
    assert main(["train", "--config", "quickstart.yaml", "--runs", str(tmp_path), *given]) == 2
    assert "score_thresholds: 'zebra' is not one of" in capsys.readouterr().err
    assert list(tmp_path.glob("*/last.pt")) == []
