"""Resizing and augmentation: boxes follow their image, and every draw is a function of (seed, epoch, index)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detector.config.schema import AugmentConfig, CropConfig, ResizeConfig, TrainConfig
from detector.data.detection import CocoDataset
from detector.data.formats.reading import read_annotations
from detector.data.loading.bad_images import Replacing
from detector.data.loading.collate import load_batches
from detector.data.loading.sampler import TrainBatches
from detector.data.transforms.boxes import TrainTransform, Transform, Transformed, crop_boxes
from detector.data.transforms.classes import TrainClassTransform
from detector.data.transforms.mixing import MixingTransform
from detector.data.transforms.resize import GRAY, input_size, resize
from detector.errors import ConfigError
from detector.structures import IGNORE_REGION, Batch

NO_BOXES, NO_LABELS = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
STILL = AugmentConfig(horizontal_flip=0)
LIVELY = AugmentConfig(horizontal_flip=0.5, vertical_flip=0.5, rotate90=0.5, scale_jitter=[0.5, 2.0])


def size_of(short: int, long: int | None = None) -> ResizeConfig:
    return ResizeConfig(short=[short], long=long or 10 * short)


def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A red, a green and a blue rectangle on black, 100×160, with their boxes and the labels 0, 1, 2."""
    image = np.zeros((100, 160, 3), np.uint8)
    boxes = np.array([[10, 15, 50, 45], [100, 5, 150, 40], [60, 60, 90, 95]], np.float32)
    for channel, (left, top, right, bottom) in enumerate(boxes.astype(int)):
        image[top:bottom, left:right, channel] = 255
    return image, boxes, np.arange(3)


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "short", "long", "expected"),
    [
        # 800 / 480 = 1.667; 640 · 1.667 = 1066.7 does not pass 1333.
        (480, 640, 800, 1333, (800, 1067)),
        (640, 480, 800, 1333, (1067, 800)),
        # 800 / 500 would make 3200 of 2000: 1333 / 2000 = 0.6665; 500 · 0.6665 = 333.25.
        (500, 2000, 800, 1333, (333, 1333)),
        (2000, 500, 800, 1333, (1333, 333)),
        (800, 1333, 800, 1333, (800, 1333)),
        (1600, 1600, 800, 1333, (800, 800)),
        # A long side under the short one is what limits a square.
        (100, 100, 800, 200, (200, 200)),
        # 1 · 100 / 1000 = 0.1: no side falls under one pixel.
        (1, 1000, 50, 100, (1, 100)),
    ],
)
def test_input_size_by_hand(height: int, width: int, short: int, long: int, expected: tuple[int, int]) -> None:
    assert input_size(height, width, size_of(short, long)) == expected


@pytest.mark.parametrize(
    ("height", "width", "short", "down", "nearest"),
    [
        (333, 504, 64, (64, 96), (64, 97)),  # 504 · 64 / 333 = 96.86
        (605, 1400, 800, (576, 1333), (576, 1333)),  # 605 · 1333 / 1400 = 576.05
        (616, 1400, 800, (586, 1333), (587, 1333)),  # 586.52
    ],
)
def test_the_two_roundings_by_hand(
    height: int, width: int, short: int, down: tuple[int, int], nearest: tuple[int, int]
) -> None:
    for rounding, expected in (("down", down), ("nearest", nearest)):
        config = ResizeConfig(short=[short], long=1333, rounding=rounding)
        assert input_size(height, width, config) == expected


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1500), st.integers(1, 2000))
def test_one_side_meets_its_limit_and_none_passes_it(height: int, width: int, short: int, long: int) -> None:
    new_height, new_width = input_size(height, width, size_of(short, long))
    new_short, new_long = sorted((new_height, new_width))
    assert new_short <= short
    assert new_long <= long
    assert new_short == short or new_long == long
    # The same scale on both sides, but for rounding half a pixel and for the smallest size of 1.
    scale = min(short / min(height, width), long / max(height, width))
    assert abs(new_height - height * scale) <= 0.5 or new_height == 1
    assert abs(new_width - width * scale) <= 0.5 or new_width == 1


def test_shrinking_averages() -> None:
    # Every new pixel covers 1 or 2 white columns of 3, so it is 85 or 170, never 0 or 255.
    stripes = np.zeros((30, 30, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.unique(resize(stripes, 10, 10)).tolist() == [85, 170]


def test_growing_interpolates() -> None:
    edge = np.zeros((4, 2, 3), np.uint8)
    edge[:, 1] = 200
    # Centres of the new pixels in the old image's frame: -0.25, 0.25, 0.75, 1.25.
    assert resize(edge, 8, 4)[0, :, 0].tolist() == [0, 50, 150, 200]


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_boxes_are_scaled_with_the_image_by_hand() -> None:
    image = np.zeros((480, 640, 3), np.uint8)
    boxes = np.array([[0, 0, 640, 480], [64, 48, 128, 96]], np.float32)
    found = Transform(ResizeConfig(short=[400, 800], long=1333))(image, boxes, np.array([4, -2]), epoch=3, index=5)
    assert found.image.shape == (800, 1067, 3)  # the last size
    # Factors: 1067 / 640 = 1.667188 across, 800 / 480 = 1.666667 down.
    expected = [[0, 0, 1067, 800], [106.7, 80, 213.4, 160]]
    assert np.allclose(found.boxes, expected, atol=1e-4)
    assert (found.boxes.dtype, found.labels.tolist()) == (np.float32, [4, -2])


def test_a_fixed_size_scales_each_axis_by_its_own_factor() -> None:
    image = np.zeros((480, 640, 3), np.uint8)
    boxes = np.array([[64, 48, 128, 96]], np.float32)
    config = ResizeConfig(short=[400], long=500, fixed=[240, 960])
    train = TrainTransform(config, STILL, seed=0)
    for transform in (Transform(config), train):
        found = transform(image, boxes, np.array([4]), epoch=0, index=0)
        assert found.image.shape == (240, 960, 3)
        assert np.allclose(found.boxes, [[96, 24, 192, 48]])  # 960 / 640 = 1.5 across, 240 / 480 = 0.5 down


def test_a_fixed_size_is_kept_where_a_window_is_zoomed_into() -> None:
    transform = TrainTransform(ResizeConfig(fixed=[64, 96]), AugmentConfig(scale_jitter=[1.0, 2.0]), seed=0)
    assert {transform(*scene(), 0, index).image.shape for index in range(10)} == {(64, 96, 3)}


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    image, boxes, labels = scene()
    found = Transform(size_of(100))(image, boxes, labels, 0, 0)
    assert np.array_equal(found.image, image)
    assert np.array_equal(found.boxes, boxes)


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_horizontal_flip_by_hand() -> None:
    image, boxes, labels = scene()
    found = TrainTransform(size_of(100), AugmentConfig(horizontal_flip=1), 0)(image, boxes, labels, 0, 0)
    assert np.array_equal(found.image, image[:, ::-1])
    # 160 wide: [10, 50] becomes [110, 150].
    assert np.allclose(found.boxes, [[110, 15, 150, 45], [10, 5, 60, 40], [70, 60, 100, 95]], atol=1e-3)
    assert found.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 4, 5])
def test_any_depth_and_channels_go_through_exactly(channels: int, dtype: type) -> None:
    noise = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (100, 160, channels)).astype(dtype)
    _, boxes, labels = scene()
    still, flipped = (
        TrainTransform(size_of(100), AugmentConfig(horizontal_flip=flip), 0, channels)(noise, boxes, labels, 0, 0)
        for flip in (0, 1)
    )
    assert still.image.dtype == flipped.image.dtype == dtype
    assert np.array_equal(still.image, noise)
    assert np.array_equal(flipped.image, noise[:, ::-1])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_depth_and_channels_stay_in_any_size_and_color(channels: int, dtype: type) -> None:
    noise = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (100, 160, channels)).astype(dtype)
    _, boxes, labels = scene()
    lively = EVERYTHING.model_copy(update={"photometric": 1.0})
    for index in range(10):
        found = TrainTransform(size_of(60), lively, 0, channels)(noise, boxes, labels, 0, index)
        assert (found.image.shape[2], found.image.dtype) == (channels, dtype)
    found = Transform(size_of(60))(noise, boxes, labels, 0, 0)
    assert (found.image.shape, found.image.dtype) == ((60, 96, channels), dtype)


def test_a_vertical_flip_by_hand() -> None:
    image, boxes, labels = scene()
    augment = AugmentConfig(horizontal_flip=0, vertical_flip=1)
    found = TrainTransform(size_of(100), augment, 0)(image, boxes, labels, 0, 0)
    assert np.array_equal(found.image, image[::-1])
    # 100 high: [15, 45] becomes [55, 85].
    assert np.allclose(found.boxes, [[10, 55, 50, 85], [100, 60, 150, 95], [60, 5, 90, 40]], atol=1e-3)


def test_without_augmentation_training_sees_what_evaluation_sees() -> None:
    expected = Transform(size_of(70))(*scene(), 0, 0)
    found = TrainTransform(size_of(70), STILL, 0)(*scene(), 4, 9)
    assert np.array_equal(found.image, expected.image)
    assert np.allclose(found.boxes, expected.boxes, atol=1e-3)
    assert (found.boxes.dtype, found.labels.dtype) == (np.float32, np.int64)


def assert_boxes_bound_their_colors(found: Transformed) -> None:
    """Label k is the rectangle of channel k: its box ends where its bright pixels do, to 1.5 px."""
    for channel in range(3):
        bright = found.image[:, :, channel] > 127
        rows, columns = np.nonzero(bright.any(axis=1))[0], np.nonzero(bright.any(axis=0))[0]
        own = found.boxes[found.labels == channel]
        if len(own) == 0:
            assert len(rows) == 0
        elif len(rows) == 0:
            assert (own[0, 2:] - own[0, :2]).min() < 1  # less than half a pixel is to be seen
        else:
            pixels = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert np.abs(own[0] - pixels).max() <= 1.5


@pytest.mark.parametrize("sizes", [[100], [60, 90, 150]])
def test_boxes_follow_their_image(sizes: list[int]) -> None:
    augment = LIVELY.model_copy(update={"min_visibility": 0.0})
    transform = TrainTransform(ResizeConfig(short=sizes, long=1000), augment, seed=1)
    shown = 0
    for index in range(80):
        found = transform(*scene(), 0, index)
        assert_boxes_bound_their_colors(found)
        assert (found.boxes >= 0).all()
        assert (found.boxes <= [*found.image.shape[1::-1]] * 2).all()
        shown += len(found.boxes)
    assert shown > 160  # of 240


def test_all_four_flips_occur() -> None:
    corners = np.zeros((8, 8, 3), np.uint8)
    corners[0, 0] = 255
    transform = TrainTransform(size_of(8), AugmentConfig(horizontal_flip=0.5, vertical_flip=0.5), seed=0)
    places = [np.argwhere(transform(corners, NO_BOXES, NO_LABELS, 0, index).image[..., 0])[0] for index in range(200)]
    counts = [sum(tuple(place) == corner for place in places) for corner in ((0, 0), (0, 7), (7, 0), (7, 7))]
    assert sum(counts) == 200
    assert min(counts) > 25  # 50 each are expected, with a standard deviation of 6


def test_turns_by_hand() -> None:
    # 160 wide and 100 high: a quarter counter-clockwise takes (x, y) to (y, 160 - x).
    image, boxes, labels = scene()
    transform = TrainTransform(size_of(100), AugmentConfig(horizontal_flip=0, rotate90=1), 0)
    seen = set()
    for index in range(20):
        found = transform(image, boxes, labels, 0, index)
        # A standing image is scaled to the short side of 100 as it is.
        quarters = next(n for n in (1, 2, 3) if np.array_equal(found.image, np.rot90(image, n)))
        first = {1: [15, 110, 45, 150], 2: [110, 55, 150, 85], 3: [55, 10, 85, 50]}[quarters]
        assert np.allclose(found.boxes[0], first, atol=1e-3)
        seen.add(quarters)
    assert seen == {1, 2, 3}


@pytest.mark.parametrize("jitter", [None, [0.1, 0.1], [2.0, 2.0], [0.1, 2.0]], ids=str)
def test_a_canvas_has_its_size_whatever_the_image(jitter: list[float] | None) -> None:
    augment = AugmentConfig(canvas=[90, 120], scale_jitter=jitter, min_visibility=0)
    transform = TrainTransform(size_of(100), augment, 0)
    widths = set()
    for index in range(30):
        found = transform(*scene(), 0, index)
        assert found.image.shape == (90, 120, 3)
        assert_boxes_bound_their_colors(found)
        is_image = (found.image != GRAY).any(axis=(0, 2))
        widths.add(int(is_image.sum()))
    # 160 × 100 fits as 120 × 75; a tenth of that is 12 wide, twice that is cut.
    expected = {"None": {120}, "[0.1, 0.1]": {12}, "[2.0, 2.0]": {120}}.get(str(jitter))
    assert widths == expected if expected else len(widths) > 10


def test_zooming_out_by_hand() -> None:
    augment = AugmentConfig(horizontal_flip=0, scale_jitter=[0.5, 0.5])
    found = TrainTransform(size_of(100), augment, 0)(*scene(), 0, 0)
    assert found.image.shape == (50, 80, 3)
    assert np.allclose(found.boxes, scene()[1] / 2, atol=1e-3)


def test_zooming_in_fills_the_size_with_a_window() -> None:
    augment = AugmentConfig(horizontal_flip=0, scale_jitter=[2, 2], min_visibility=0)
    transform = TrainTransform(size_of(100), augment, 0)
    image = np.zeros((100, 160, 3), np.uint8)
    image[..., 0] = np.arange(160)  # a pixel tells its column and row
    image[..., 1] = np.arange(100)[:, None]
    corners = set()
    for index in range(40):
        found = transform(image, np.array([[0, 0, 160, 100]], np.float32), np.array([7]), 0, index)
        assert found.image.shape == (100, 160, 3)
        assert np.allclose(found.boxes, [[0, 0, 160, 100]], atol=1e-3)
        columns, rows = found.image[..., 0], found.image[..., 1]
        assert columns.max() - columns.min() == 79  # half of 160
        assert rows.max() - rows.min() == 49
        corners.add((int(columns.min()), int(rows.min())))
    assert len(corners) > 30
    assert max(left for left, _ in corners) <= 80
    assert max(top for _, top in corners) <= 50


def test_jitter_stays_in_its_range_and_uses_all_of_it() -> None:
    augment = AugmentConfig(horizontal_flip=0, scale_jitter=[0.25, 1.0])
    transform = TrainTransform(size_of(100), augment, 0)
    heights = [transform(*scene(), 0, index).image.shape[0] for index in range(200)]
    assert min(heights) >= 25
    assert max(heights) <= 100
    assert min(heights) < 30
    assert max(heights) > 90
    # Uniform in the logarithm: half of them under 50, the geometric middle of 25 and 100.
    assert 70 < sum(height < 50 for height in heights) < 130


def test_every_size_is_drawn_and_evaluation_takes_the_last() -> None:
    config = ResizeConfig(short=[50, 100, 75], long=1000)
    transform = TrainTransform(config, STILL, 0)
    assert {transform(*scene(), 0, index).image.shape[0] for index in range(40)} == {50, 75, 100}
    assert Transform(config)(*scene(), 0, 0).image.shape[0] == 75


def test_colors_change_and_boxes_do_not() -> None:
    image, boxes, labels = scene()
    image = image // 2 + 60
    augment = AugmentConfig(horizontal_flip=0, photometric=1)
    transform = TrainTransform(size_of(100), augment, 0)
    means = []
    for index in range(20):
        found = transform(image, boxes, labels, 0, index)
        assert found.image.dtype == np.uint8
        assert np.allclose(found.boxes, boxes, atol=1e-3)
        means.append(found.image.mean())
    assert np.std(means) > 2
    still = TrainTransform(size_of(100), STILL, 0)(image, boxes, labels, 0, 0)
    assert np.array_equal(still.image, image)


def test_an_image_without_boxes() -> None:
    for index in range(10):
        found = TrainTransform(size_of(100), LIVELY, 0)(scene()[0], NO_BOXES, NO_LABELS, 0, index)
        assert (found.boxes.shape, found.boxes.dtype) == ((0, 4), np.float32)
        assert (found.labels.shape, found.labels.dtype) == ((0,), np.int64)


def test_the_input_is_left_as_it_was() -> None:
    image, boxes, labels = scene()
    for index in range(10):
        TrainTransform(size_of(100), LIVELY, 0)(image, boxes, labels, 0, index)
    for before, after in zip(scene(), (image, boxes, labels), strict=True):
        assert np.array_equal(before, after)


# --- what a crop leaves of a box --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "cut", "visible"),
    [
        # The window is 40 wide and 30 high, from (100, 200).
        ([110, 210, 120, 220], [10, 10, 20, 20], 1.0),
        ([90, 210, 110, 220], [0, 10, 10, 20], 0.5),
        ([135, 225, 155, 245], [35, 25, 40, 30], 25 / 400),  # 5 × 5 of 20 × 20
        ([60, 200, 101, 210], [0, 0, 1, 10], 10 / 410),
        ([0, 0, 1000, 1000], [0, 0, 40, 30], 1200 / 1_000_000),
        ([60, 200, 100, 210], None, 0.0),  # ends where the window begins
        ([300, 300, 310, 310], None, 0.0),
    ],
)
def test_a_crop_by_hand(box: list[float], cut: list[float] | None, visible: float) -> None:
    for min_visibility in (0.0, 0.0005, 0.02, 0.05, 0.3, 0.75, 1.0):
        for label in (3, IGNORE_REGION):
            found, labels = crop_boxes(
                np.array([box], np.float32), np.array([label]), (200, 100, 30, 40), min_visibility
            )
            assert found.tolist() == ([cut] if cut else [])
            assert labels.tolist() == ([IGNORE_REGION if visible < min_visibility else label] if cut else [])


def test_a_crop_keeps_rows_together() -> None:
    boxes = np.array([[0, 0, 5, 5], [12, 12, 18, 18], [15, 15, 100, 100], [90, 0, 95, 5]], np.float32)
    found, labels = crop_boxes(boxes, np.array([1, 2, 3, 4]), (10, 10, 10, 10), 0.5)
    # The third shows 5 × 5 of 85 × 85.
    assert found.tolist() == [[2, 2, 8, 8], [5, 5, 10, 10]]
    assert labels.tolist() == [2, IGNORE_REGION]


def test_a_window_that_shows_little_of_a_box_makes_it_an_ignore_region() -> None:
    # Zoomed by 4, the window is 40 × 25 of 160 × 100: never a quarter of the box.
    box, label = np.array([[0, 0, 160, 100]], np.float32), np.array([3])
    for min_visibility, expected in ((0.25, IGNORE_REGION), (0.05, 3)):
        augment = AugmentConfig(horizontal_flip=0, scale_jitter=[4, 4], min_visibility=min_visibility)
        found = TrainTransform(size_of(100), augment, 0)(scene()[0], box, label, 0, 0)
        assert found.labels.tolist() == [expected]
        assert np.allclose(found.boxes, [[0, 0, 160, 100]], atol=1e-3)


# --- albumentations' transforms by name -------------------------------------------------------------------------------


def listing(*transforms: dict[str, Any], **augment: Any) -> AugmentConfig:
    return AugmentConfig(horizontal_flip=0, transforms=[{"p": 1.0, **transform} for transform in transforms], **augment)


def test_listed_transforms_by_hand() -> None:
    image, boxes, _ = scene()
    crop = {"name": "Crop", "x_min": 20, "y_min": 10, "x_max": 120, "y_max": 90}
    augment = listing({"name": "HorizontalFlip"}, crop, min_visibility=0.6)
    labels = np.array([2**40, 7, IGNORE_REGION])  # any number comes through
    found = TrainTransform(size_of(100), augment, 0)(image, boxes, labels, 0, 0)
    assert np.array_equal(found.image, image[10:90, ::-1][:, 20:120])
    # Of 160, [10, 50] becomes [110, 150] and shows 10 of 40 in the window, [100, 150] becomes [10, 60] and shows 40 of
    # 50 and 30 of its 35 rows, [60, 90] becomes [70, 100] and shows 30 of 35 rows.
    assert np.allclose(found.boxes, [[90, 5, 100, 35], [0, 0, 40, 30], [50, 50, 80, 80]], atol=1e-3)
    assert found.labels.tolist() == [IGNORE_REGION, 7, IGNORE_REGION]
    assert (found.boxes.dtype, found.labels.dtype) == (np.float32, np.int64)

    rest = {"name": "Crop", "x_max": 60, "y_max": 60}  # touches the second and the third box, and shows nothing of them
    found = TrainTransform(size_of(100), listing(rest), 0)(image, boxes, labels, 0, 0)
    assert np.allclose(found.boxes, [[10, 15, 50, 45]], atol=1e-3)
    assert found.labels.tolist() == [2**40]


@pytest.mark.parametrize(
    "transforms",
    [
        [{"name": "D4"}],
        [{"name": "Affine", "scale": [0.5, 1.5], "translate_percent": [-0.3, 0.3]}, {"name": "Transpose"}],
        [{"name": "RandomSizedCrop", "min_max_height": [50, 90], "size": [80, 120]}, {"name": "MedianBlur"}],
    ],
    ids=lambda transforms: transforms[0]["name"],
)
def test_boxes_follow_listed_transforms(transforms: list[dict[str, Any]]) -> None:
    transform = TrainTransform(size_of(100), listing(*transforms, min_visibility=0), seed=1)
    found = [transform(*scene(), 0, index) for index in range(30)]
    for one in found:
        assert_boxes_bound_their_colors(one)
    assert len({one.image.tobytes() for one in found}) >= 8  # a square has eight symmetries


def test_a_fixed_size_is_kept_whatever_is_listed() -> None:
    config = ResizeConfig(fixed=[64, 96])
    transform = TrainTransform(config, listing({"name": "RandomCrop", "height": 32, "width": 32}), seed=0)
    found = transform(np.zeros((64, 96, 3), np.uint8), np.array([[0, 0, 96, 64]], np.float32), np.array([5]), 0, 0)
    assert (found.image.shape, found.boxes.tolist()) == ((64, 96, 3), [[0, 0, 96, 64]])


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({"name": "RandomBrightnesContrast"}, "no such transform of images; did you mean RandomBrightnessContrast"),
        ({"name": "os.system"}, "no such transform"),
        ({"name": "Lambda", "image": "print"}, "no such transform"),
        ({"name": "BasicTransform"}, "no such transform"),
        ({"name": "Compose", "transforms": []}, "no such transform"),
        ({"name": "ToTensorV2"}, "no such transform"),
        ({"name": "GaussNoise", "std_rang": [0, 1]}, "has no argument 'std_rang'; did you mean std_range?"),
        ({"name": "GaussNoise", "p": 1.5}, "p: must be less than or equal to 1; it is 1.5"),
        (
            {"name": "Resize", "height": 32, "width": 32},
            "Resize: changes the input's size; use data.resize",
        ),
        ({"name": "RandomCrop"}, "height: Field required; width: Field required"),
        (
            {"name": "RandomCrop", "height": 300, "width": 20},
            "(300, 20)",
        ),  # larger than any image: found when it is tried
        (
            {"name": "Normalize"},
            "turns uint8 with 3 channels into float32 with 3; it must keep both (the model normalises)",
        ),
        ({"name": "MaskDropout"}, "needs mask; only images and boxes can be given"),
        ({"name": "FDA"}, "needs fda_metadata; only"),
        ({"name": "CenterCrop3D", "size": [1, 2, 3]}, "needs a volume; only"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_what_cannot_be_listed_is_one_line(transform: dict[str, Any], message: str) -> None:
    augment = AugmentConfig(transforms=[{"name": "NoOp"}, transform])
    for build in (
        lambda: TrainTransform(size_of(100), augment, 0),
        lambda: TrainClassTransform(CropConfig(size=100), augment, 0),
    ):
        with pytest.raises(ConfigError) as caught:
            build()
        assert str(caught.value).startswith(f"data.augment.transforms: {transform['name']}: ")
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_transform_that_an_image_does_not_suit_ends_training(shapes: Path) -> None:
    """Not when it is tried, and no image is skipped for it."""
    notes = read_annotations(shapes / "annotations" / "train.json")
    crop = listing({"name": "RandomCrop", "height": 97, "width": 97})
    transform = TrainTransform(ResizeConfig(short=[96], long=100), crop, seed=0)
    sample = Replacing(CocoDataset(notes, shapes / "images", transform, "error"), seed=0)[0, 0]
    assert isinstance(sample, ConfigError)
    assert str(sample).startswith("data.augment.transforms: RandomCrop: ")


# --- randomness is a function of (seed, epoch, index) -----------------------------------------------------------------

LISTED = [
    {"name": "Affine", "rotate": [-20, 20], "p": 0.5},
    {"name": "GaussNoise", "p": 0.5},
    {"name": "CoarseDropout"},
]
EVERYTHING = LIVELY.model_copy(update={"photometric": 0.5, "transforms": LISTED})


def draw(seed: int, epoch: int, index: int, transform: TrainTransform | None = None) -> bytes:
    transform = transform or TrainTransform(ResizeConfig(short=[60, 90], long=1000), EVERYTHING, seed)
    found = transform(*scene(), epoch, index)
    return b"".join([repr(found.image.shape).encode(), *(part.tobytes() for part in found)])


def test_the_same_draw_whatever_came_before() -> None:
    used = TrainTransform(ResizeConfig(short=[60, 90], long=1000), EVERYTHING, 5)
    expected = draw(5, 1, 2)
    np.random.seed(0)
    for index in range(7):
        draw(5, 3, index, used)
    np.random.seed(99)
    torch.manual_seed(99)
    assert draw(5, 1, 2, used) == expected == draw(5, 1, 2)


def test_other_draws_for_another_seed_epoch_or_index() -> None:
    draws = [draw(seed, epoch, index) for seed in (0, 1) for epoch in (0, 1) for index in (0, 1, 2)]
    assert len(set(draws)) == 12


def batches_of(folder: Path, workers: int) -> list[Batch]:
    notes = read_annotations(folder / "annotations" / "train.json")
    mixing = {"mosaic": 0.5, "copy_paste": 0.5, "mixup": 8.0, "mix_share": 0.5}
    augment, resize = EVERYTHING.model_copy(update=mixing), ResizeConfig(short=[96, 128], long=256)
    transform = MixingTransform(resize, augment, TrainConfig(), seed=3)
    data = CocoDataset(notes, folder / "images", transform, "error")
    sampler = TrainBatches(len(data), batch_size=4, seed=3, start_step=0, steps=5)  # 3 steps an epoch
    return list(load_batches(data, sampler, workers))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # 4 on a machine of 2 cores
@pytest.mark.parametrize("workers", [2, 4])
def test_batches_are_the_same_with_any_number_of_workers(workers: int, shapes: Path) -> None:
    expected, found = batches_of(shapes, 0), batches_of(shapes, workers)
    assert len(expected) == len(found) == 5
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets.boxes, other.targets.boxes)
        assert torch.equal(one.targets.labels, other.targets.labels)
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.sizes, other.sizes)
    assert len({batch.images.float().mean().item() for batch in found}) == 5  # no batch comes twice


def test_nothing_is_asked_of_the_internet() -> None:
    # albumentations looks up its newest version when it is imported, unless it is told not to.
    code = """
import os, socket, sys
os.environ.pop("NO_ALBUMENTATIONS_UPDATE", None)
asked = []
def refuse(*arguments, **options):
    asked.append(arguments)
    raise OSError("no network in this test")
socket.getaddrinfo = socket.create_connection = refuse
import numpy as np
from detector.config.schema import AugmentConfig, CropConfig, ResizeConfig
from detector.data.transforms.boxes import TrainTransform
from detector.data.transforms.classes import ClassTransform, TrainClassTransform
TrainTransform(ResizeConfig(), AugmentConfig(), 0)
ClassTransform(CropConfig())(np.zeros((9, 9, 3), np.uint8), 0, 0)
print("albumentations" in sys.modules)
TrainTransform(ResizeConfig(), AugmentConfig(photometric=0.5), 0)
TrainClassTransform(CropConfig(), AugmentConfig(photometric=1), 0)(np.zeros((9, 9, 3), np.uint8), 0, 0)
print("albumentations" in sys.modules, asked)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["False", "True []", ""]  # it is slow, and only colours need it
