"""Images made of several: boxes follow their pixels, and partners are a function of (seed, epoch, index)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detector.config.loader import load_config
from detector.config.schema import AugmentConfig, ResizeConfig, TrainConfig
from detector.data.loading.sampler import mixed_epochs
from detector.data.transforms.boxes import Transformed
from detector.data.transforms.mixing import MixingTransform, blend, mosaic, paste
from detector.data.transforms.resize import GRAY
from detector.structures import IGNORE_REGION
from detector.tasks import classification

RESIZE = ResizeConfig(short=[40], long=60)
STILL = AugmentConfig(horizontal_flip=0)


def plain(value: int, height: int = 40, width: int = 60, box: tuple[int, ...] = (10, 10, 30, 20)) -> Transformed:
    """One value everywhere but for a box of value + 1, whose label is the value."""
    left, top, right, bottom = box
    image = np.full((height, width, 3), value, np.uint8)
    image[top:bottom, left:right] += 1
    return Transformed(image, np.array([box], np.float32), np.array([value]))


def test_boxes_of_a_mosaic_are_where_their_pixels_are() -> None:
    parts = [plain(20, 40, 60), plain(60, 30, 70), plain(80, 50, 50), plain(100, 40, 60)]
    for part in parts:
        part.image[10:20, 10:30] = 255
    shown = ignored = gray = 0
    for seed in range(60):
        found = mosaic(parts, (40, 60), 0.25, np.random.default_rng(seed))
        assert found.image.shape == (40, 60, 3)
        bright = found.image[..., 0] > 200
        area = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(axis=1).sum()
        assert abs(bright.sum() - area) <= 0.1 * area + 60  # borders are blurred
        for (left, top, right, bottom), label in zip(found.boxes, found.labels, strict=True):
            inner = found.image[int(top) + 2 : max(0, int(bottom) - 1), int(left) + 2 : max(0, int(right) - 1), 0]
            assert (inner == 255).all()
            ignored += label == IGNORE_REGION
            assert label in (20, 60, 80, 100, IGNORE_REGION)
        shown += len(found.boxes)
        gray += (found.image == GRAY).any()
    assert shown > 100
    assert ignored
    assert gray


def test_a_mosaic_by_hand() -> None:
    class Draws:
        """The point of meeting (row, column), the zoom, the window's corner."""

        def __init__(self) -> None:
            self.numbers = iter([40, 60, 0, 0])

        def integers(self, *_: int) -> int:
            return next(self.numbers)

        def uniform(self, *_: float) -> float:
            return 1.0

    # They meet in the middle of 80 × 120, and all of it is shown at half the size: four images of 20 × 30.
    found = mosaic([plain(value) for value in (10, 50, 90, 130)], (40, 60), 0.25, Draws())  # type: ignore
    assert found.image[:20, :30].mean().round() == 10
    assert found.image[20:, 30:].mean().round() == 130
    assert found.boxes.tolist() == [[5, 5, 15, 10], [35, 5, 45, 10], [5, 25, 15, 30], [35, 25, 45, 30]]
    assert found.labels.tolist() == [10, 50, 90, 130]


def test_pasted_objects_bring_their_pixels_and_hide_what_is_below() -> None:
    own = plain(20, box=(0, 0, 60, 40))
    boxes = np.array([[10, 10, 30, 20], [0, 0, 70, 70], [40, 40, 50, 50]], np.float32)
    other = Transformed(plain(100, 80, 80).image, boxes, np.array([7, 8, IGNORE_REGION]))
    pasted = 0
    for seed in range(40):
        found = paste(own, other, 0.25, np.random.default_rng(seed))
        assert own.image.max() == 21  # the input stays as it was
        # Of the others, one is larger than the image, and one is a region: neither is pasted.
        assert found.labels.tolist() == [20, 7][: len(found.boxes)]
        for left, top, right, bottom in found.boxes[1:].astype(int):
            assert (right - left, bottom - top) == (20, 10)
            assert (found.image[top:bottom, left:right] == 101).all()
            pasted += 1
        assert (found.image[..., 0] > 100).sum() == 200 * (len(found.boxes) - 1)
    assert 10 < pasted < 30  # about half of 40
    # 20 × 10 on all of a box, and on 10 of its 14 rows, of which it then shows 0.29, and of 11 rows 0.09.
    for height, expected in ((10, []), (14, [20]), (11, [IGNORE_REGION])):
        small = plain(20, height, 20, box=(0, 0, 20, height))
        draws = [paste(small, other, 0.25, np.random.default_rng(seed)).labels.tolist() for seed in range(9)]
        assert [labels for labels in draws if 7 in labels] == [[*expected, 7]] * sum(7 in labels for labels in draws)
        assert any(7 in labels for labels in draws)


def test_a_blend_by_hand() -> None:
    # 0.75 · 20 + 0.25 · 100 = 40 where both are; the other is wider and lower, and of its box 10 of 20 columns show.
    other = plain(100, 30, 90, box=(50, 0, 70, 30))
    found = blend(plain(20), other, 0.75, min_visibility=0.4)
    assert found.image[25, 5].tolist() == [40] * 3
    assert found.image[35, 5].tolist() == [20] * 3
    assert found.boxes.tolist() == [[10, 10, 30, 20], [50, 0, 60, 30]]
    assert found.labels.tolist() == [20, 100]
    assert blend(plain(20), other, 0.75, 0.6).labels.tolist() == [20, IGNORE_REGION]
    deep = plain(100)._replace(image=plain(100).image.astype(np.uint16) * 257)
    assert blend(plain(100), deep, 0.5, 0).image[0, 0].tolist() == [25700] * 3


@pytest.mark.parametrize(
    ("changes", "partners"), [({"mosaic": 1.0}, 3), ({"copy_paste": 1.0}, 1), ({"mixup": 8.0}, 1), ({}, 0)], ids=str
)
def test_partners_depend_on_seed_epoch_and_index(changes: dict[str, float], partners: int) -> None:
    def draw(seed: int, epoch: int, index: int) -> tuple[list[int], bytes]:
        read: list[int] = []

        def sample(number: int) -> Transformed:
            read.append(number)
            return plain(number)

        transform = MixingTransform(RESIZE, STILL.model_copy(update=changes), TrainConfig(), seed)
        return read, transform.mixed(sample, epoch, index, 100).image.tobytes()

    keys = [(seed, epoch, index) for seed in (0, 1) for epoch in (0, 1) for index in (5, 6)]
    draws = [draw(*key) for key in keys]
    assert draws[::-1] == [draw(*key) for key in keys[::-1]]
    assert [len(read) for read, _ in draws] == [1 + partners] * 8
    assert [read[0] for read, _ in draws] == [5, 6] * 4
    assert not partners or len({tuple(read[1:]) for read, _ in draws}) >= 5


def test_mixing_ends_before_the_run_does() -> None:
    # 12 epochs; 25 steps of 4 of 20 images are 5 epochs, and the last 0.2 of them is 1.
    assert mixed_epochs(TrainConfig(epochs=12), 0.25, 100) == 9
    assert mixed_epochs(TrainConfig(steps=25, batch_size=4), 0.2, 20) == 4
    assert mixed_epochs(TrainConfig(epochs=10), 0.7, 1) == 3  # 10 · (1 - 0.7) is 3.0000000000000004
    augment = STILL.model_copy(update={"mosaic": 1.0, "close_out": 0.25})
    transform = MixingTransform(RESIZE, augment, TrainConfig(epochs=4), 0)
    is_plain = [np.array_equal(transform.mixed(plain, epoch, 5, 9).image, plain(5).image) for epoch in range(4)]
    assert is_plain == [False, False, False, True]


def test_classes_close_out_and_mix_a_share(colors: Path) -> None:
    def mixed(*overrides: str) -> list[int]:
        """How many of 18 samples are mixed in each of two epochs."""
        config = load_config("classify_quickstart.yaml", [f"data.train.images={colors}/train", *overrides])
        data = classification.open_split(config, "train")
        samples = [[data[epoch, index] for index in range(len(data))] for epoch in (0, 1)]
        return [sum(bool(sample.probabilities.max() < 1) for sample in of_epoch) for of_epoch in samples]

    on = ["data.augment.mixup=8", "train.epochs=2", "train.steps=null", "data.crop.size=32"]
    whole = mixed(*on)
    assert min(whole) > 6  # a third of the partners has the same class
    assert mixed(*on, "data.augment.close_out=0.5") == [whole[0], 0]
    assert 0 < sum(mixed(*on, "data.augment.mix_share=0.3")) < sum(whole) / 2
