"""Crops for classification, and mixing: by hand, exactly, and as a function of (seed, epoch, index)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detector.config.schema import AugmentConfig, Config, CropConfig
from detector.data.classification import ClassDataset, ClassSample, open_classes
from detector.data.loading.collate import load_batches
from detector.data.loading.sampler import TrainBatches
from detector.data.transforms.classes import ClassTransform, TrainClassTransform, mix
from detector.data.transforms.resize import resize
from detector.structures import Batch, ClassTargets

STILL = AugmentConfig(horizontal_flip=0)
FLIPS = AugmentConfig(horizontal_flip=0.5, vertical_flip=0.5)
# A listed crop is smaller than what it must become again.
LISTED = [{"name": "Rotate", "p": 0.5}, {"name": "RandomSizedCrop", "min_max_height": [9, 20], "size": [20, 30]}]
EVERYTHING = AugmentConfig(horizontal_flip=0.5, vertical_flip=0.5, photometric=0.5, transforms=LISTED)


def numbered(height: int, width: int) -> np.ndarray:
    """An image whose pixels tell their column and row."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.arange(width)
    image[..., 1] = np.arange(height)[:, None]
    return image


# --- evaluation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "fraction", "height", "width", "top", "left"),
    [
        (8, 0.8, 10, 14, 1, 3),  # short side 8 / 0.8 = 10: (10 - 8) / 2 rows and (14 - 8) / 2 columns are cut off
        (8, 0.8, 15, 10, 3, 1),  # 7 rows too many: 3 above, 4 below
        (8, 1.0, 8, 8, 0, 0),
        (8, 1.0, 8, 100, 0, 46),
        (224, 0.875, 256, 256, 16, 16),  # 224 / 0.875 = 256
        (7, 0.5, 14, 15, 3, 4),
    ],
)
def test_the_square_in_the_middle_by_hand(
    size: int, fraction: float, height: int, width: int, top: int, left: int
) -> None:
    image = numbered(height, width)
    found = ClassTransform(CropConfig(size=size, eval_share=fraction))(image, 3, 5)
    assert np.array_equal(found, image[top : top + size, left : left + size])


@pytest.mark.parametrize(
    ("height", "width", "side", "top", "left"),
    [
        (20, 30, 16, 2, 7),  # 0.8 · 20, in the middle
        (50, 20, 16, 17, 2),
        (5, 4, 3, 1, 0),  # 0.8 · 4 = 3.2
        (10, 11, 8, 1, 1),
    ],
)
def test_the_square_in_the_middle_is_a_fraction_of_the_short_side(
    height: int, width: int, side: int, top: int, left: int
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = ClassTransform(CropConfig(size=8, eval_share=0.8))(image, 0, 0)
    assert np.array_equal(found, resize(image[top : top + side, left : left + side], 8, 8))


@pytest.mark.parametrize("transform", [ClassTransform, lambda crop: TrainClassTransform(crop, EVERYTHING, 0)])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (3, 500), (64, 64), (200, 65)], ids=str)
def test_every_image_becomes_a_square(transform: Any, size: tuple[int, int]) -> None:
    found = transform(CropConfig(size=64))(np.full((*size, 3), 9, np.uint8), 0, 0)
    assert (found.shape, found.dtype) == ((64, 64, 3), np.uint8)


# --- training ---------------------------------------------------------------------------------------------------------


def test_windows_have_the_area_and_the_shape_that_the_config_says() -> None:
    crop = CropConfig(size=50, scale=[0.1, 0.6], ratio=[0.5, 2.0])
    transform, image = TrainClassTransform(crop, STILL, seed=0), numbered(200, 200)
    areas, ratios, centers = [], [], []
    for index in range(150):
        found = transform(image, 0, index).astype(float)
        assert found.shape == (50, 50, 3)
        # A window of w columns on 50 pixels: neighbours are w / 50 columns apart.
        width, height = (found[0, 40, 0] - found[0, 10, 0]) * 50 / 30, (found[40, 0, 1] - found[10, 0, 1]) * 50 / 30
        areas.append(width * height / 200**2)
        ratios.append(width / height)
        centers.append((found[..., 0].mean(), found[..., 1].mean()))
    assert 0.09 < min(areas) < 0.15
    assert 0.5 < max(areas) < 0.62
    assert 0.48 < min(ratios) < 0.6
    assert 1.7 < max(ratios) < 2.1
    assert np.ptp(centers, axis=0).min() > 80


def test_a_window_of_the_whole_image_is_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    crop = CropConfig(size=60, scale=[1, 1], ratio=[1, 1])
    assert np.array_equal(TrainClassTransform(crop, STILL, 0)(image, 0, 0), image)
    third = CropConfig(size=20, scale=[1, 1], ratio=[1, 1])
    found = TrainClassTransform(third, STILL, 0)(image, 0, 0)
    assert np.array_equal(found, resize(image, 20, 20))  # by area, as evaluation shrinks it


def test_all_four_flips_occur() -> None:
    corners = np.zeros((8, 8, 3), np.uint8)
    corners[0, 0] = 255
    transform = TrainClassTransform(CropConfig(size=8, scale=[1, 1], ratio=[1, 1]), FLIPS, seed=0)
    places = [tuple(np.argwhere(transform(corners, 0, index)[..., 0])[0]) for index in range(200)]
    counts = [places.count(corner) for corner in ((0, 0), (0, 7), (7, 0), (7, 7))]
    assert sum(counts) == 200
    assert min(counts) > 25  # 50 each are expected, with a standard deviation of 6


def distinct(channels: int, dtype: type) -> np.ndarray:
    """16 × 16 with a value of its own for each pixel in channel 0, and noise in the others."""
    rng, limit = np.random.default_rng(0), np.iinfo(dtype).max + 1
    image = rng.integers(0, limit, (16, 16, channels)).astype(dtype)
    image[..., 0] = rng.permutation(limit)[:256].reshape(16, 16)
    return image


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4, 5])
def test_values_are_those_of_the_image(channels: int, dtype: type) -> None:
    image = distinct(channels, dtype)
    place_of = {value: divmod(place, 16) for place, value in enumerate(image[..., 0].ravel().tolist())}
    # A quarter of the area of 16 × 16 is 8 × 8: nothing is resized.
    transform = TrainClassTransform(CropConfig(size=8, scale=[0.25, 0.25], ratio=[1, 1]), FLIPS, 0, channels)
    corners = set()
    for index in range(30):
        found = transform(image, 0, index)
        assert (found.shape, found.dtype) == ((8, 8, channels), dtype)
        rows, columns = np.moveaxis(np.array([place_of[value] for value in found[..., 0].ravel().tolist()]), 1, 0)
        assert np.array_equal(found.reshape(64, channels), image[rows, columns])
        rows, columns = rows.reshape(8, 8), columns.reshape(8, 8)
        assert (np.abs(np.diff(rows[:, 0])) == 1).all()
        assert (np.abs(np.diff(columns[0])) == 1).all()
        assert (rows == rows[:, :1]).all()
        assert (columns == columns[:1]).all()
        corners.add((int(rows.min()), int(columns.min())))
    assert len(corners) > 15


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 4, 5])
def test_evaluation_takes_any_depth_and_channels(channels: int, dtype: type) -> None:
    image = distinct(channels, dtype)
    found = ClassTransform(CropConfig(size=8, eval_share=0.5))(image, 0, 0)
    assert found.dtype == dtype
    assert np.array_equal(found, image[4:12, 4:12])


def test_every_one_of_16_bits_goes_through() -> None:
    image = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    crop = CropConfig(size=256, scale=[1, 1], ratio=[1, 1])
    assert np.array_equal(TrainClassTransform(crop, STILL, 0, channels=1)(image, 0, 0), image)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colors_change_alike_in_8_and_16_bits(channels: int) -> None:
    image = np.random.default_rng(0).integers(40, 216, (32, 32, channels)).astype(np.uint8)
    crop = CropConfig(size=32, scale=[1, 1], ratio=[1, 1])
    transform = TrainClassTransform(crop, AugmentConfig(horizontal_flip=0, photometric=1), 0, channels)
    changes = []
    for index in range(10):
        low, high = transform(image, 0, index), transform(image.astype(np.uint16) * 257, 0, index)
        assert (low.dtype, high.dtype) == (np.uint8, np.uint16)
        # 8 bits are rounded (or cut) after each of four changes, and hold a hue to two degrees.
        assert np.abs(high / 257 - low).max() < 14
        assert np.abs(high / 257 - low).mean() < 2.5
        changes.append(low.mean() - image.mean())
    assert np.std(changes) > 5


def draw(seed: int, epoch: int, index: int, transform: TrainClassTransform | None = None) -> bytes:
    transform = transform or TrainClassTransform(CropConfig(size=24), EVERYTHING, seed)
    return transform(numbered(40, 60), epoch, index).tobytes()


def test_the_same_draw_whatever_came_before() -> None:
    used = TrainClassTransform(CropConfig(size=24), EVERYTHING, 5)
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


def test_the_input_is_left_as_it_was() -> None:
    image = distinct(3, np.uint16)
    TrainClassTransform(CropConfig(size=8), EVERYTHING, 0)(image, 0, 0)
    ClassTransform(CropConfig(size=8))(image, 0, 0)
    assert np.array_equal(image, distinct(3, np.uint16))


# --- two in one -------------------------------------------------------------------------------------------------------


class Dictated:
    """A generator that draws what it is told."""

    def __init__(self, fraction: float, center: Sequence[float] = (), coin: float = 0.0) -> None:
        self.fraction, self.center, self.coin = fraction, center, coin
        self.alphas: tuple[float, ...] = ()

    def beta(self, *alphas: float) -> float:
        self.alphas = alphas
        return self.fraction

    def uniform(self, low: object, high: object) -> np.ndarray:
        return np.array(self.center)

    def random(self) -> float:
        return self.coin


@pytest.mark.parametrize(
    ("dtype", "first", "second", "fraction", "expected"),
    [
        (np.uint8, 100, 200, 0.25, 175),  # 25 + 150
        (np.uint8, 255, 255, 0.3, 255),
        (np.uint8, 3, 0, 0.9, 3),  # 2.7: rounded, not cut
        (np.uint16, 65535, 1, 0.5, 32768),
        (np.uint16, 60000, 65535, 0.2, 64428),  # 12000 + 52428
    ],
)
def test_blending_by_hand(dtype: type, first: int, second: int, fraction: float, expected: int) -> None:
    one, other = (np.full((4, 6, 5), value, dtype) for value in (first, second))
    rng = Dictated(fraction)
    mixed, found = mix(one, other, AugmentConfig(mixup=0.4), rng)
    assert (mixed.dtype, mixed.shape, found) == (dtype, (4, 6, 5), fraction)
    assert (mixed == expected).all()
    assert rng.alphas == (0.4, 0.4)
    assert (one == first).all()


@pytest.mark.parametrize(
    ("fraction", "center", "window", "found"),
    [
        # √(1 - 0.75) = 1/2 of 8 × 8 is 4 × 4, of 64 pixels.
        (0.75, (3, 4), (1, 5, 2, 6), 48 / 64),
        (0.75, (3.3, 4.6), (1, 5, 3, 7), 48 / 64),  # 1.3, 5.3, 2.6 and 6.6 to the nearest
        (0.75, (0, 8), (0, 2, 6, 8), 60 / 64),  # 2 × 2 of it lie in the image
        (0.75, (1, 4), (0, 3, 2, 6), 52 / 64),
        (0.0, (4, 4), (0, 8, 0, 8), 0.0),
        (1.0, (4, 4), (4, 4, 4, 4), 1.0),
    ],
)
def test_a_window_of_the_other_by_hand(
    fraction: float, center: tuple[float, float], window: tuple[int, int, int, int], found: float
) -> None:
    one, other = distinct(5, np.uint16)[:8, :8], distinct(5, np.uint16)[8:, 8:]
    before = one.copy()
    rng = Dictated(fraction, center)
    mixed, own_fraction = mix(one, other, AugmentConfig(cutmix=1.0), rng)
    top, bottom, left, right = window
    expected = one.copy()
    expected[top:bottom, left:right] = other[top:bottom, left:right]
    assert np.array_equal(mixed, expected)
    assert own_fraction == found
    assert rng.alphas == (1.0, 1.0)
    assert np.array_equal(one, before)


@pytest.mark.parametrize(("coin", "alpha", "is_blended"), [(0.49, 0.2, True), (0.51, 1.0, False)])
def test_with_both_each_takes_half(coin: float, alpha: float, is_blended: bool) -> None:
    one, other = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 200, np.uint8)
    rng = Dictated(0.5, (4, 4), coin)
    mixed, _ = mix(one, other, AugmentConfig(mixup=0.2, cutmix=1.0), rng)
    assert rng.alphas == (alpha, alpha)
    assert np.unique(mixed).tolist() == ([100] if is_blended else [0, 200])


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_fractions_are_drawn_from_beta(alpha: float) -> None:
    rng, pixel = np.random.default_rng(0), np.zeros((1, 1, 1), np.uint8)
    probabilities = [mix(pixel, pixel, AugmentConfig(mixup=alpha), rng)[1] for _ in range(4000)]
    assert np.mean(probabilities) == pytest.approx(0.5, abs=0.02)
    assert np.var(probabilities) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)  # of Beta(α, α)


# --- mixed samples of a data set --------------------------------------------------------------------------------------

# Each class has one gray, so that pixels tell what they are of.
GRAYS = {"a": 30, "b": 90, "c": 250}


@pytest.fixture(scope="module")
def grays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of each class, of one gray; those of b have 16 bits."""
    folder = tmp_path_factory.mktemp("grays")
    for name, gray in GRAYS.items():
        (folder / name).mkdir()
        for number in range(4):
            pixels = np.full((24, 24 + 4 * number), gray, np.uint8)
            Image.fromarray(pixels if name != "b" else pixels.astype(np.uint16) * 257).save(
                folder / name / f"{number}.png"
            )
    return folder


def open_grays(folder: Path, seed: int = 0, name: str = "train", **augment: float) -> ClassDataset:
    split = {"images": str(folder)}
    data = {"train": split, "val": split, "crop": {"size": 16}, "augment": {"horizontal_flip": 0, **augment}}
    data["class_weights"] = {"b": 2.0}
    tree = {"task": "classification", "seed": seed, "data": data, "model": {"head": {"name": "pooled"}}}
    return open_classes(Config.model_validate(tree), name)


def in_8_bits(sample: ClassSample) -> np.ndarray:
    pixels = sample.image.to(torch.float64).numpy()
    return pixels / 257 if sample.image.dtype == torch.uint16 else pixels


@pytest.mark.parametrize("augment", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}], ids=str)
def test_pixels_and_probabilities_agree(grays: Path, augment: dict[str, float]) -> None:
    dataset = open_grays(grays, **augment)
    values = np.array(list(GRAYS.values()))
    kinds, partners = set(), set()
    for epoch in range(5):
        for index in range(len(dataset)):
            sample = dataset[epoch, index]
            assert sample.probabilities.dtype == torch.float32
            assert sample.probabilities.sum().item() == pytest.approx(1, abs=1e-6)
            assert sample.weights.tolist() == [1, 2, 1]
            assert sample.id == index
            pixels = in_8_bits(sample)
            # Blended, every pixel is the mean of the grays by fraction; of a window, as many are of the other's.
            assert pixels.mean() == pytest.approx(float(sample.probabilities.numpy() @ values), abs=0.51)
            of_two = (sample.probabilities > 0).sum() == 2
            if of_two:
                kinds.add("blended" if np.ptp(pixels) == 0 else "window")
            if len(augment) == 1 and "cutmix" in augment:
                counts = [(np.abs(pixels - value) < 0.01).mean() for value in values]
                assert counts == pytest.approx(sample.probabilities.tolist(), abs=1e-6)
            partners |= {(index // 4, label) for label in sample.probabilities.nonzero().ravel().tolist()}
    assert kinds == {"blended" if name == "mixup" else "window" for name in augment}
    assert len(partners) == 9  # every class with every class


def bytes_of(sample: ClassSample) -> bytes:
    return sample.image.numpy().tobytes() + sample.probabilities.numpy().tobytes()


def test_a_mix_is_a_function_of_seed_epoch_and_index(grays: Path) -> None:
    both = {"mixup": 0.8, "cutmix": 1.0}
    keys = [(epoch, index) for epoch in range(3) for index in range(12)]
    dataset = open_grays(grays, **both)
    first = {key: bytes_of(dataset[key]) for key in keys}
    np.random.seed(3)
    again = open_grays(grays, **both)
    assert {key: bytes_of(again[key]) for key in reversed(keys)} == first
    others = [{key: bytes_of(open_grays(grays, seed, **both)[key]) for key in keys} for seed in (1, 2)]
    for other in others:
        assert sum(other[key] != first[key] for key in keys) > 20  # a mix within a class shows nothing
    by_epoch = [[first[epoch, index] for index in range(12)] for epoch in range(3)]
    assert all(
        sum(one != other for one, other in zip(*by_epoch[place : place + 2], strict=True)) > 5 for place in (0, 1)
    )


@pytest.mark.parametrize("name", ["train", "val"])
def test_nothing_is_mixed_unasked(grays: Path, name: str) -> None:
    # Evaluation is never mixed, whatever training has.
    dataset = open_grays(grays, name=name, **({"mixup": 0.8, "cutmix": 1.0} if name == "val" else {}))
    for index in range(12):
        sample = dataset[0, index]
        assert sample.probabilities.tolist() == np.eye(3)[index // 4].tolist()
        assert np.allclose(in_8_bits(sample), list(GRAYS.values())[index // 4])


def test_several_labels_are_mixed_by_fraction(grays: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("path,label\na/0.png,x;y\nc/0.png,\n")
    split = {"images": str(grays), "annotations": str(tmp_path / "labels.csv")}
    data = {"train": split, "crop": {"size": 16}, "augment": {"mixup": 1.0}}
    model = {"head": {"name": "pooled"}, "multi_label": True}
    tree = {"task": "classification", "data": data, "model": model}
    dataset = open_classes(Config.model_validate(tree), "train")
    probabilities = set()
    for epoch in range(20):
        sample = dataset[epoch, 0]
        x, y = sample.probabilities.tolist()
        assert x == y
        # Gray 30 has both labels, gray 250 none.
        assert sample.image.float().mean().item() == pytest.approx(30 * x + 250 * (1 - x), abs=0.51)
        probabilities.add(x)
    assert len(probabilities) > 5


def batches_of(grays: Path, workers: int) -> list[Batch]:
    dataset = open_grays(grays, seed=3, mixup=0.4, cutmix=1.0, photometric=0.5, horizontal_flip=0.5)
    sampler = TrainBatches(len(dataset), batch_size=4, seed=3, start_step=0, steps=5)  # 3 steps an epoch
    return list(load_batches(dataset, sampler, workers))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # 3 on a machine of 2 cores
@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_the_same_with_any_number_of_workers(workers: int, grays: Path) -> None:
    expected, found = batches_of(grays, 0), batches_of(grays, workers)
    assert len(expected) == len(found) == 5
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.images, other.images)
        assert isinstance(other.targets, ClassTargets)
        assert torch.equal(one.targets.probabilities, other.targets.probabilities)
        assert torch.equal(one.targets.weights, other.targets.weights)
        assert torch.equal(one.ids, other.ids)
    assert len({batch.images.float().mean().item() for batch in found}) == 5  # no batch comes twice
