"""The generated data set: deterministic, honest boxes, and a COCO file that reads like any other."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.config.schema import ResizeConfig
from detector.data import synthetic as generator
from detector.data.detection import CocoDataset, Sample, apply_box_policy
from detector.data.formats.reading import read_annotations
from detector.data.synthetic import CLASSES, SIDE, make_image, write_shapes
from detector.data.transforms.boxes import Transform

IMAGES = 60


def test_an_image_is_a_function_of_seed_and_index() -> None:
    first = make_image(3, 7)
    np.random.seed(0)
    make_image(1, 1)
    again = make_image(3, 7)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert first[2] == again[2]
    others = [make_image(seed, index)[0] for seed, index in ((3, 8), (4, 7), (7, 3))]
    assert not any(np.array_equal(first[0], other) for other in others)


def test_boxes_are_of_12_to_150_pixels_and_inside() -> None:
    counts, labels, sides = Counter(), Counter(), []
    for index in range(IMAGES):
        image, boxes, classes = make_image(0, index)
        assert (image.shape, image.dtype) == ((SIDE, SIDE, 3), np.uint8)
        assert boxes.shape == (len(classes), 4)
        assert boxes.min() >= 0
        assert boxes.max() <= SIDE
        own = boxes[:, 2:] - boxes[:, :2]
        assert own.min() >= 12
        assert own.max() <= 150
        sides += own.max(axis=1).tolist()
        counts[len(classes)] += 1
        labels.update(classes)
    assert set(labels) == set(range(len(CLASSES)))
    assert min(labels.values()) > 15
    assert len(counts) >= 4  # images of few shapes and of many
    assert min(sides) < 20
    assert max(sides) > 100


def test_no_shape_of_thousands_is_too_small_or_too_large() -> None:
    rng = np.random.default_rng(0)
    for polygon in generator.POLYGONS.values():
        for _ in range(2000):
            mask = generator._shape(rng, polygon)
            sides = mask.any(axis=0).sum(), mask.any(axis=1).sum()
            assert min(sides) >= 12
            assert max(sides) <= 150


def test_shapes_are_where_their_boxes_say_and_mostly_to_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[np.ndarray] = []
    paint = generator._paint

    def record(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray) -> None:
        masks.append(mask.copy())
        paint(rng, image, mask)

    monkeypatch.setattr(generator, "_paint", record)
    partly_hidden = 0
    for index in range(IMAGES):
        masks.clear()
        image, boxes, _ = make_image(0, index)
        assert len(masks) == len(boxes)
        # The last painted shape that covers a pixel is the one to be seen there.
        owner = np.full((SIDE, SIDE), -1)
        for number, mask in enumerate(masks):
            owner[mask] = number
        for number, (mask, (left, top, right, bottom)) in enumerate(zip(masks, boxes, strict=True)):
            inside = mask[top:bottom, left:right]
            assert mask.sum() == inside.sum()
            # A box ends where its shape does.
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            is_seen = owner == number
            assert is_seen.sum() >= 2 / 3 * mask.sum()
            partly_hidden += is_seen.sum() < mask.sum()
            assert len(np.unique(image[is_seen], axis=0)) <= 2  # a colour, and one of stripes
    assert partly_hidden > 10


def test_a_set_on_disk_is_an_ordinary_coco_set(shapes: Path) -> None:
    ids, names = [], []
    for split, first, count in (("train", 0, 12), ("val", 12, 6)):
        notes = read_annotations(shapes / "annotations" / f"{split}.json")
        assert [(category.id, category.name) for category in notes.categories] == list(enumerate(CLASSES, start=1))
        assert len(notes) == count
        assert apply_box_policy(notes, "error").is_kept.all()
        data = CocoDataset(notes, shapes / "images", Transform(ResizeConfig(short=[SIDE], long=SIDE)), "error")
        for index in range(count):
            sample = data[0, index]
            assert isinstance(sample, Sample)
            image, boxes, labels = make_image(0, first + index)
            assert sample.boxes.tolist() == boxes.tolist()
            assert sample.labels.tolist() == labels
            # JPEG changes it, but less than red for blue or the image of another index.
            stored = sample.image.permute(1, 2, 0).numpy().astype(int)
            others = [stored[:, :, ::-1], make_image(0, first + index + 1)[0]]
            assert np.abs(stored - image).mean() < min(np.abs(other.astype(int) - image).mean() for other in others)
        ids += notes.image_ids.tolist()
        names += [notes.file_name(index) for index in range(count)]
    # No image of val is one of train.
    assert len(set(ids)) == len(set(names)) == 18
    assert sorted(names) == sorted(path.name for path in (shapes / "images").iterdir())


def test_another_seed_is_another_set_and_the_same_seed_the_same(shapes: Path, tmp_path: Path) -> None:
    for seed, is_same in ((0, True), (1, False)):
        folder = tmp_path / str(seed)
        write_shapes(folder, train=2, val=1, seed=seed)
        trees = [json.loads((place / "annotations" / "train.json").read_text()) for place in (folder, shapes)]
        assert (trees[0]["annotations"] == trees[1]["annotations"][: len(trees[0]["annotations"])]) == is_same
        images = [cv2.imread(str(place / "images" / "train_00000.jpg")) for place in (folder, shapes)]
        assert np.array_equal(*images) == is_same
