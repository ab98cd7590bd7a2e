"""Best IoUs against tables by hand and against all anchors; what the matcher assigns; input sizes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from detector.analysis.doctor.reading import read_boxes
from detector.analysis.doctor.sets import object_sizes
from detector.config.schema import AnchorConfig, AugmentConfig, Config, MatcherConfig, ResizeConfig
from detector.data.detection import apply_box_policy
from detector.data.formats.building import Source
from detector.data.formats.reading import read_annotations
from detector.data.loading.collate import pad_images
from detector.data.transforms.boxes import TrainTransform, Transform
from detector.evaluation.coverage import InputBoxes, assign, coverage_of, input_boxes, level_ious, rare_classes
from detector.ops.anchors import Anchors, level_sizes
from detector.ops.boxes import pairwise_iou
from detector.structures import IGNORE_REGION, Category

ONE_SHAPE = AnchorConfig(base_size=4.0, ratios=[1.0], scales=[1.0])  # on P3: 32 × 32 px, centred on 0, 8, 16, …


def boxes_in(height: int, width: int, boxes: list[list[float]], labels: list[int] | None = None) -> InputBoxes:
    """Boxes of one image."""
    count = len(boxes)
    size = torch.tensor([[height, width]])
    return InputBoxes(
        boxes=torch.tensor(boxes).reshape(-1, 4),
        labels=torch.tensor(labels or [0] * count),
        image=torch.zeros(count, dtype=torch.int64),
        rows=torch.arange(count),
        sizes=size,
        padded=size,
        first=torch.tensor([0, count]),
    )


@pytest.mark.parametrize(
    ("box", "iou"),
    [
        ([16.0, 16.0, 48.0, 48.0], 1.0),  # is an anchor
        ([8.0, 8.0, 24.0, 24.0], 256 / 1024),  # is inside one: 16 · 16 of 32 · 32
        ([12.0, 16.0, 44.0, 48.0], 896 / 1152),  # halfway between two: overlap 28 · 32 of 2 · 1024 - 896
        ([56.0, 0.0, 64.0, 16.0], 128 / 1024),  # beyond the last column, which is at 56: still lies in that anchor
        ([0.0, 0.0, 64.0, 64.0], 1024 / 4096),  # around one
    ],
)
def test_the_best_iou_of_a_box(box: list[float], iou: float) -> None:
    found = level_ious(boxes_in(64, 64, [box]), ONE_SHAPE, [3])
    assert_close(found, torch.tensor([[iou]], dtype=torch.float64))


@pytest.mark.parametrize(
    "config",
    [
        AnchorConfig(),
        AnchorConfig(base_size=1.5, ratios=[0.3, 1.0, 1.7], scales=[1.0, 2.5], offset=0.5),
        AnchorConfig(rounded=True, strides="from_size"),
        AnchorConfig(levels={4: {"base_size": 2.0}}),
    ],
    ids=["default", "offset", "torchvision", "levels"],
)
@pytest.mark.parametrize("levels", [[2, 3, 4], [3, 4, 5, 6, 7]])
def test_the_best_ious_are_those_of_all_anchors(config: AnchorConfig, levels: list[int]) -> None:
    height, width = 160, 224
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(60, 2, generator=generator) * torch.tensor([width, height])
    sides = torch.exp(torch.rand(60, 2, generator=generator) * 6)  # 1 to 400 px, beyond the image too
    objects = boxes_in(height, width, torch.cat([corners, corners + sides], dim=1).tolist())
    anchors, counts = Anchors(config, levels)(level_sizes(height, width, levels))
    every = pairwise_iou(objects.boxes.double(), anchors.double())
    expected = torch.stack([part.amax(dim=1) for part in every.split(counts, dim=1)], dim=1)
    assert_close(level_ious(objects, config, levels), expected, rtol=1e-5, atol=1e-7)


def test_no_objects_have_no_ious() -> None:
    assert level_ious(boxes_in(64, 64, []), ONE_SHAPE, [3, 4]).shape == (0, 2)


def test_coverage_by_hand() -> None:
    best = torch.tensor([0.6, 0.5, 0.3, 0.0])
    found = coverage_of(best, MatcherConfig())
    assert (found.objects, found.recall, found.low_quality, found.missed) == (4, 0.5, 0.25, 0.25)
    assert found.mean_iou == pytest.approx(0.35)
    without = coverage_of(best, MatcherConfig(low_quality=False))
    assert (without.recall, without.low_quality, without.missed) == (0.5, 0.0, 0.5)
    assert coverage_of(best[:0], MatcherConfig()).missed == 0.0


def test_without_thresholds_positives_decide() -> None:
    best, positives = torch.tensor([0.6, 0.5, 0.3, 0.0]), torch.tensor([0.0, 9, 4, torch.nan])
    found = coverage_of(best, MatcherConfig(name="atss"), positives)
    assert (found.objects, found.recall, found.low_quality) == (4, pytest.approx(2 / 3), 0.0)
    assert found.missed == pytest.approx(1 / 3)
    assert coverage_of(best, MatcherConfig(), positives) == coverage_of(best, MatcherConfig())


def test_positives_are_counted() -> None:
    # An object that is an anchor has that, and its four neighbours: 24 · 32 of 2 · 1024 - 768 is IoU 0.6. Those over
    # the corner overlap by 24 · 24, IoU 0.39, and those two cells away by 16 · 32, IoU 0.33. The second object is too
    # small for IoU 0.5 and keeps its best anchors: it lies in nine, equally. A crowd has none.
    config = Config(model={"anchors": ONE_SHAPE, "fpn": {"levels": [3]}}).model
    own = [[16.0, 16.0, 48.0, 48.0], [92.0, 92.0, 100.0, 100.0], [0.0, 96.0, 32.0, 128.0]]
    found = assign(boxes_in(128, 128, own, [0, 1, IGNORE_REGION]), config)
    assert found.positives.tolist() == [5, 9, 0]
    assert (found.level_positives, found.images) == ([14], 1)


@pytest.fixture
def annotations_file(tmp_path: Path) -> Path:
    images = [{"id": 7 + i, "file_name": f"{i}.jpg", "width": 100, "height": 50} for i in range(3)]
    boxes = [(7, [10, 20, 50, 25], 0), (7, [0, 0, 10, 10], 1), (9, [0, 0, 100, 50], 0)]
    rows = [
        {"id": row, "image_id": image, "category_id": 1, "bbox": box, "iscrowd": crowd}
        for row, (image, box, crowd) in enumerate(boxes)
    ]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cat"}]}))
    return path


def test_boxes_at_the_input_size(annotations_file: Path) -> None:
    annotations = read_annotations(annotations_file)
    resize = ResizeConfig(short=[64], long=96)
    boxes = input_boxes(annotations, apply_box_policy(annotations, "error"), resize, 0)
    # The short side to 64 would make the long one 128: 96 / 100 it is, so 48 × 96, padded to 64 × 96.
    assert boxes.sizes.tolist() == [[48, 96]] * 3
    assert boxes.padded.tolist() == [[64, 96]] * 3
    assert_close(boxes.boxes[0], torch.tensor([9.6, 19.2, 57.6, 43.2]))
    assert boxes.labels.tolist() == [0, IGNORE_REGION, 0]
    objects = boxes.objects()
    assert (objects.rows.tolist(), objects.image.tolist(), objects.first.tolist()) == ([0, 2], [0, 2], [0, 1, 1, 2])
    sampled = boxes.sample(1, seed=0)
    assert len(sampled.image.unique()) <= 1
    assert boxes.sample(3, seed=0) is boxes


@pytest.mark.parametrize(
    "resize",
    [
        ResizeConfig(short=[64], long=96),
        ResizeConfig(short=[31, 57], long=200, rounding="down"),
        ResizeConfig(short=[31, 57], long=200, fixed=[48, 200]),
    ],
    ids=["one short", "several, down", "fixed"],
)
def test_everything_that_computes_the_input_size_agrees(resize: ResizeConfig, tmp_path: Path) -> None:
    files = [(30, 100), (101, 55), (33, 34)]  # height, width
    box = [3, 5, 20, 11]  # x, y, width, height
    tree = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": w, "height": h} for i, (h, w) in enumerate(files)],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": box} for i in range(len(files))],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(tree))
    annotations = read_annotations(tmp_path / "a.json")
    evaluated = resize.model_copy(update={"short": resize.short[-1:]})
    boxes = input_boxes(annotations, apply_box_policy(annotations, "error"), evaluated, 0)
    trained = input_boxes(annotations, apply_box_policy(annotations, "error"), resize, 0)
    split = read_boxes("train", Source(tmp_path / "a.json", tmp_path))
    sides, _ = object_sizes(split, np.array(files)[:, ::-1], resize, tile=None)
    xyxy, label = np.array([[3, 5, 23, 16]], np.float32), np.array([0])
    for place, (height, width) in enumerate(files):
        pixels = np.zeros((height, width, 3), np.uint8)
        given = Transform(resize)(pixels, xyxy, label, 0, place)
        assert boxes.sizes[place].tolist() == list(given.image.shape[:2])
        assert_close(boxes.boxes[place].numpy(), given.boxes[0])
        assert boxes.padded[place].tolist() == list(
            pad_images([torch.from_numpy(given.image.transpose(2, 0, 1))]).shape[2:]
        )
        new_width, new_height = given.boxes[0, 2:] - given.boxes[0, :2]
        assert sides[place] == pytest.approx((new_width * new_height) ** 0.5, rel=1e-5)
        still = TrainTransform(resize, AugmentConfig(horizontal_flip=0), seed=0)
        drawn = {still(pixels, xyxy, label, 0, index).image.shape[:2] for index in range(20)}
        assert tuple(trained.sizes[place].tolist()) in drawn
        assert len(drawn) == (1 if resize.fixed else len(resize.short))


def test_selected_annotations(annotations_file: Path) -> None:
    annotations = read_annotations(annotations_file)
    some = annotations.select([2, 0, 2])
    assert [some.file_name(index) for index in range(3)] == ["2.jpg", "0.jpg", "2.jpg"]
    assert some.image_ids.tolist() == [9, 7, 9]
    assert some.annotation_ids.tolist() == [2, 0, 1, 2]
    assert some.first.tolist() == [0, 1, 3, 4]
    assert some.boxes_xywh[some.rows(2)].tolist() == [[0, 0, 100, 50]]
    assert len(annotations.select([1]).annotation_ids) == 0


def test_rare_classes_are_named() -> None:
    categories = [Category(place, name) for place, name in enumerate(["cat", "dog", "cow"])]
    assert rare_classes(categories, [10, 12, 99], "objects") == []
    (line,) = rare_classes(categories, [9, 12, 0], "objects")
    assert line == "warning: 2 of 3 classes have under 10 objects to learn from (cat 9, cow 0)"
