"""Other packages take what is predicted and what is written; each test skips where its package is not installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from labelled import CATEGORIES, labels, table
from PIL import Image

from detector.data.formats.labels import LabelledImage, Labels
from detector.data.formats.writing import WRITERS
from detector.tasks.detection_results import Prediction


@pytest.fixture
def images(tmp_path: Path) -> list[LabelledImage]:
    """Images, which are in ``images``, with boxes of whole pixels and ids and names that every package takes."""
    made = [own for own in table(3, images=24) if max(own.width, own.height) < 900]
    made = [
        own._replace(id=number, name=f"{number}.jpg", boxes=np.round(own.boxes)) for number, own in enumerate(made, 1)
    ]
    (tmp_path / "images").mkdir()
    for own in made:
        Image.new("RGB", (own.width, own.height)).save(tmp_path / "images" / own.name)
    return made


def plain(images: list[LabelledImage]) -> Labels:
    categories = [own._replace(id=number) for number, own in enumerate(CATEGORIES)]
    return Labels(categories, lambda: iter(images))


def prediction() -> Prediction:
    boxes, scores = np.array([[10.0, 20, 110, 70], [0, 0, 20, 10]], dtype=np.float32), np.array([0.9, 0.4], np.float32)
    return Prediction(boxes, scores, np.array([2, 0]), np.array([7, 1]), ["dog", "cat"])


@pytest.mark.parametrize("name", ["coco", "yolo", "voc"])
def test_supervision_reads_what_is_written(name: str, images: list[LabelledImage], tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    out, folder = tmp_path / "out", tmp_path / "images"
    WRITERS[name].write(plain(images), out)
    if name == "coco":
        found = supervision.DetectionDataset.from_coco(folder, out)
    elif name == "yolo":
        found = supervision.DetectionDataset.from_yolo(folder, out / "labels", out / "data.yaml")
    else:
        found = supervision.DetectionDataset.from_pascal_voc(folder, out / "Annotations")
    by_name = {Path(path).name: own for path, _, own in found}
    assert by_name.keys() == {own.name for own in images}
    for own in images:
        detections = by_name[own.name]
        assert [found.classes[label] for label in detections.class_id] == [
            CATEGORIES[label].name for label in own.labels
        ]
        np.testing.assert_allclose(detections.xyxy, own.boxes, atol=0.01)


def test_supervision_takes_a_prediction() -> None:
    """As in the README."""
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    found = prediction()
    names = {"class_name": np.array(found.names)}
    detections = supervision.Detections(found.boxes, confidence=found.scores, class_id=found.labels, data=names)
    kept = detections[detections.confidence > 0.5]
    assert (kept["class_name"].tolist(), kept.xyxy.tolist()) == (["dog"], [[10, 20, 110, 70]])


def test_fiftyone_takes_a_prediction() -> None:
    """Boxes there are left, top, width and height as fractions of the image."""
    fiftyone = pytest.importorskip("fiftyone", reason="fiftyone is not installed: hundreds of MB, with a database")
    found, width, height = prediction(), 200, 100
    detections = fiftyone.Detections(
        detections=[
            fiftyone.Detection(
                label=name,
                bounding_box=[x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height],
                confidence=score,
            )
            for name, score, (x1, y1, x2, y2) in zip(
                found.names, found.scores.tolist(), found.boxes.tolist(), strict=True
            )
        ]
    )
    assert detections.detections[0].bounding_box == pytest.approx([0.05, 0.2, 0.5, 0.5])


def test_pandas_reads_predictions_csv(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    scored = table(0, is_scored=True)
    WRITERS["csv"].write(labels(scored), tmp_path / "predictions.csv")
    frame = pandas.read_csv(tmp_path / "predictions.csv")
    assert set(frame["image_path"]) == {own.name for own in scored}
    boxes = frame.dropna(subset=["score"])
    assert len(boxes) == sum(len(own.boxes) for own in scored)
    assert set(boxes["label"]) == {own.name for own in CATEGORIES[:3]}
    best = max(score for own in scored for score in own.scores)  # type: ignore[union-attr]
    assert boxes["score"].max() == best


def test_torchvision_takes_the_coco_file(images: list[LabelledImage], tmp_path: Path) -> None:
    """As a data set for its transforms v2."""
    from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
    from torchvision.transforms import v2

    WRITERS["coco"].write(plain(images), tmp_path / "coco.json")
    flip = v2.RandomHorizontalFlip(p=1)
    data = CocoDetection(tmp_path / "images", tmp_path / "coco.json", transforms=flip)
    for own, (_, target) in zip(images, wrap_dataset_for_transforms_v2(data, ["boxes", "labels"]), strict=True):
        if len(own.boxes):
            mirrored = own.boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [own.width, 0, own.width, 0]
            np.testing.assert_allclose(target["boxes"].numpy(), mirrored, atol=0.01)
            assert target["labels"].tolist() == own.labels.tolist()
