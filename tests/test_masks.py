"""Masks as data: read from files and COCO, with each fault in one line; transformed; the same whatever reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detector.config.schema import AugmentConfig, Config, ResizeConfig
from detector.data.formats.mask_files import read_pixels
from detector.data.loading.collate import collate
from detector.data.segmentation import MaskDataset, MaskSample, open_masks
from detector.data.synthetic import write_mask_shapes
from detector.data.transforms.masks import (
    MaskTransform,
    TrainMaskTransform,
    Transformed,
    largest_fraction,
    paste,
    resize_mask,
)
from detector.errors import ConfigError, DataError, DetectorError
from detector.structures import IGNORED_PIXEL
from detector.tasks import segmentation_views

CLASSES = ["background", "circle", "square"]
MASK = np.array([[0, 1, 2, 255], [0, 1, 2, 255], [1, 1, 1, 1]], dtype=np.uint8)


def palette(mask: np.ndarray) -> Image.Image:
    """With a palette whose colours are no indices."""
    image = Image.fromarray(mask)
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    return image


def write(folder: Path, masks: dict[str, Any], suffix: str = ".jpg") -> Path:
    """Images and masks of these names."""
    for name, mask in masks.items():
        image = mask if isinstance(mask, Image.Image) else palette(mask)
        for kind in ("images", "masks"):
            (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(1).integers(0, 256, (*image.size[::-1], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "images" / f"{name}{suffix}")
        image.save(folder / "masks" / f"{name}.png")
    return folder


def make_config(folder: Path, classes: list[str] | None = CLASSES, **data: Any) -> Config:
    given = {"annotations": str(folder / "masks"), "images": str(folder / "images")}
    tree = {"train": given, "val": given, "classes": classes, "resize": {"short": [3], "long": 4}, **data}
    tree = {key: value for key, value in tree.items() if value is not None}
    return Config.model_validate({"task": "segmentation", "model": {"head": {"name": "semantic"}}, "data": tree})


def read(folder: Path, **data: Any) -> MaskDataset:
    return open_masks(make_config(folder, **data), "val")


def sample(data: MaskDataset, index: int = 0) -> MaskSample:
    own = data[0, index]
    if isinstance(own, DetectorError):
        raise own
    return own


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["P", "L", "I;16", "RGB"])
def test_indices_are_read_as_they_are_stored(mode: str, tmp_path: Path) -> None:
    """With a palette, in gray, in 16 bits, and in RGB with equal channels."""
    images = {"P": palette, "L": Image.fromarray, "RGB": lambda mask: Image.fromarray(mask).convert("RGB")}
    make = images.get(mode, lambda mask: Image.fromarray(mask.astype(np.uint16)))
    data = read(write(tmp_path, {"a": make(MASK), "deep/b": make(MASK)}))
    assert [data.file(index).name for index in range(2)] == ["a.jpg", "b.jpg"]
    assert data.categories == [(0, "background"), (1, "circle"), (2, "square")]
    for index in range(2):
        own = sample(data, index)
        assert own.original is not None and np.array_equal(own.original.numpy(), MASK)
        assert own.size_original == (3, 4)
    assert data.pixels.tolist() == [[2, 6, 2]] * 2


@pytest.mark.parametrize(
    ("masks", "stored", "expected", "ids"),
    [
        ({"ignore_index": 11}, [[0, 2, 11]], [[0, 2, 255]], [0, 1, 2]),
        ({"reduce_zero_label": True}, [[0, 1, 3, 255]], [[255, 0, 2, 255]], [1, 2, 3]),
        ({"label_map": {7: 0, 8: 1, 26: 1, 30: 2}}, [[7, 8, 26, 30, 9]], [[0, 1, 1, 2, 255]], [7, 8, 30]),
        ({"label_map": {0: 0, 255: 1, 128: 2}}, [[0, 255]], [[0, 1]], [0, 255, 128]),
        ({"ignore_index": None}, [[0, 2]], [[0, 2]], [0, 1, 2]),
    ],
)
def test_indices_become_classes(masks: Any, stored: Any, expected: Any, ids: list[int], tmp_path: Path) -> None:
    data = read(write(tmp_path, {"a": np.array(stored, dtype=np.uint8)}), masks=masks)
    assert data.masked.mask(0).tolist() == expected
    assert [category.id for category in data.categories] == ids


def test_colours_become_classes(tmp_path: Path) -> None:
    pixels = np.array([[[128, 64, 128], [0, 0, 142], [1, 2, 3]]], dtype=np.uint8)
    colors = {"circle": [0, 0, 142], "background": [128, 64, 128]}
    data = read(write(tmp_path, {"a": Image.fromarray(pixels)}), masks={"colors": colors})
    assert data.masked.mask(0).tolist() == [[0, 1, IGNORED_PIXEL]]


def test_names_with_endings_and_predicted_masks(tmp_path: Path) -> None:
    write(tmp_path, {"a_left": MASK})
    (tmp_path / "masks" / "a_left.png").rename(tmp_path / "masks" / "a_ids.png")
    palette(MASK).save(tmp_path / "masks" / "a_color.png")
    assert len(read(tmp_path, masks={"endings": ["_left", "_ids"]})) == 1
    # infer writes x.jpg.png for x.jpg.
    other = write(tmp_path / "other", {"x": MASK})
    (other / "masks" / "x.png").rename(other / "masks" / "x.jpg.png")
    assert len(read(other)) == 1


def test_pairs_in_a_csv_file(tmp_path: Path) -> None:
    write(tmp_path, {"a": MASK, "b": MASK[:2]})
    (tmp_path / "pairs.csv").write_text("image,mask\nimages/b.jpg,masks/b.png\nimages/a.jpg,masks/a.png\n")
    data = read(tmp_path, val={"annotations": str(tmp_path / "pairs.csv")})
    assert [data.file(index).name for index in range(2)] == ["b.jpg", "a.jpg"]
    assert data.masked.sizes.tolist() == [[2, 4], [3, 4]]


def test_lists_of_pascal_voc(tmp_path: Path) -> None:
    write(tmp_path, {"a": MASK, "b": MASK[:2], "c": MASK})
    (tmp_path / "images").rename(tmp_path / "JPEGImages")
    (tmp_path / "masks").rename(tmp_path / "SegmentationClass")
    (tmp_path / "SegmentationClass/c.png").unlink()  # most of VOC's images have no mask
    listed = tmp_path / "ImageSets/Segmentation/val.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("b\n\na\n")
    data = read(tmp_path, val=str(listed))
    assert [data.file(index) for index in range(2)] == [tmp_path / f"JPEGImages/{name}.jpg" for name in "ba"]
    assert np.array_equal(data.masked.mask(1), MASK)
    for text, message in (
        ("a\nc\n", r"val\.txt:2: .*/SegmentationClass has no image c; add it, or remove the line"),
        ("a\nb\na\n", r"val\.txt:3: a is listed twice; keep one line"),
        ("\n", r"val\.txt: has no lines"),
    ):
        listed.write_text(text)
        with pytest.raises(DataError, match=message):
            read(tmp_path, val=str(listed))
    with pytest.raises(DataError, match=r"is Pascal VOC's folder; name a list in it, such as .*/train\.txt"):
        read(tmp_path, val=str(tmp_path))
    (tmp_path / "SegmentationClass").rename(tmp_path / "masks")
    with pytest.raises(DataError, match=r"no folder above it has a folder SegmentationClass; give a folder of masks"):
        read(tmp_path, val=str(listed))


FAULTS: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "no mask": (
        lambda folder: (folder / "masks/a.png").unlink(),
        {},
        r"images/a\.jpg: has no mask .*masks/a\.png; add it, remove the image, or say how names end",
    ),
    "two masks": (
        lambda folder: palette(MASK).save(folder / "masks/a.bmp"),
        {},
        r"images/a\.jpg: has several masks in .*: a\.bmp, a\.png; keep one",
    ),
    "size": (
        lambda folder: palette(MASK[:2]).save(folder / "masks/a.png"),
        {},
        r"images/a\.jpg: the image is 4×3, its mask is 4×2; restore the one that was resized",
    ),
    "index": (
        lambda folder: palette(np.where(MASK == 2, 37, MASK).astype(np.uint8)).save(folder / "masks/a.png"),
        {},
        r"masks/a\.png: has index 37 \(2 pixels, first in row 0, column 2\), which is no class: data\.classes names 3,"
        r" 0 to 2; name it, ignore it \(data\.masks\.ignore_index\), or map it \(data\.masks\.label_map\)",
    ),
    "colours": (
        lambda folder: palette(MASK).convert("RGB").save(folder / "masks/a.png"),
        {},
        r"masks/a\.png: is in RGB, with 4 colours \(\[\d+, \d+, \d+\] 50%, .*\); a mask has an index per pixel: convert"
        r" it, or name each class's colour, as in data\.masks\.colors=\{background: \[128, 64, 128\], …\}",
    ),
    "damaged": (
        lambda folder: (folder / "masks/a.png").write_bytes((folder / "masks/a.png").read_bytes()[:60]),
        {},
        r"masks/a\.png: is cut off or damaged",
    ),
    "not an image": (
        lambda folder: (folder / "masks/a.png").write_text("index,mask\n"),
        {},
        r"masks/a\.png: is not an image",
    ),
    "no classes": (lambda folder: None, {"classes": None}, r"data\.classes is not set: the masks of .* no names"),
    "ignored class": (
        lambda folder: None,
        {"masks": {"ignore_index": 1}},
        r"data\.masks\.ignore_index: 1 is the index of class 'circle'; indices count from 0",
    ),
    "map": (
        lambda folder: None,
        {"masks": {"label_map": {3: 7}}},
        r"data\.masks\.label_map: 3: 7 is no class; data\.classes has 3, 0 to 2",
    ),
    "colour of no class": (
        lambda folder: None,
        {"masks": {"colors": {"sqare": [1, 2, 3]}}},
        r"data\.masks\.colors: 'sqare' is not among the 3 classes; did you mean 'square'\?",
    ),
    "weight of no class": (
        lambda folder: None,
        {"class_weights": {"sqare": 2}},
        r"data\.class_weights: 'sqare' is not among the 3 classes; did you mean 'square'\?",
    ),
    "no folder": (
        lambda folder: None,
        {"train": {"annotations": "maks", "images": "."}},
        r"data\.train\.annotations: maks is neither a folder of masks nor a file",
    ),
    "list": (lambda folder: None, {"train": ["a", "b"]}, r"data\.train: a list of sets is for task detection"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_one_line(name: str, tmp_path: Path) -> None:
    damage, data, message = FAULTS[name]
    write(tmp_path, {"a": MASK})
    damage(tmp_path)
    with pytest.raises((DataError, ConfigError)) as raised:
        sample(open_masks(make_config(tmp_path, **data), "train"))
    assert re.search(message, str(raised.value)), raised.value
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("seed", range(60))
def test_fuzzed_masks_are_masks_or_one_line(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    path = tmp_path / "a.png"
    palette(rng.integers(0, 3, (9, 11), dtype=np.uint8)).save(path)
    data = bytearray(path.read_bytes())
    for place in rng.integers(0, len(data), 1 + seed % 4):
        data[place] = rng.integers(256)
    path.write_bytes(data[: len(data) if seed % 3 else rng.integers(len(data))])
    try:
        pixels = read_pixels(path)
    except DataError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert pixels.dtype in (np.uint8, np.uint16) and pixels.ndim in (2, 3)


def test_white_that_is_ignored_is_doubted(tmp_path: Path) -> None:
    binary = np.where(MASK == 1, 255, 0).astype(np.uint8)
    data = read(write(tmp_path, {"a": binary}))
    assert [line for line in data.warnings() if "set data.masks.label_map={0: 0, 255: 1}" in line]
    assert not read(tmp_path, masks={"label_map": {0: 0, 255: 1}}).warnings()


# --- COCO -------------------------------------------------------------------------------------------------------------


def coco(folder: Path, annotations: list[dict[str, Any]], **data: Any) -> MaskDataset:
    (folder / "images").mkdir(exist_ok=True)
    for name, size in (("a.png", (8, 6)), ("b.png", (5, 5))):
        Image.new("RGB", size).save(folder / "images" / name)
    tree = {
        "images": [
            {"id": 10, "file_name": "a.png", "height": 6, "width": 8},
            {"id": 11, "file_name": "b.png"},
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}],
        "annotations": [{"id": number, "image_id": 10} | own for number, own in enumerate(annotations, start=1)],
    }
    (folder / "masks.json").write_text(json.dumps(tree))
    val = {"annotations": str(folder / "masks.json"), "images": str(folder / "images")}
    return read(folder, val=val, classes=data.pop("classes", None), **data)


SMALL = {"category_id": 3, "segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]]}  # columns 1 to 3, rows 1 and 2
LARGE = {"category_id": 90, "segmentation": {"size": [6, 8], "counts": [0, 30, 18]}}  # by columns: the first five


def test_polygons_and_runs_are_drawn_small_on_large(tmp_path: Path) -> None:
    expected = np.full((6, 8), IGNORED_PIXEL)
    expected[:, :5] = 1
    expected[1:3, 1:4] = 0
    for order in ([SMALL, LARGE], [LARGE, SMALL]):
        data = coco(tmp_path, order)
        assert data.categories == [(3, "cat"), (90, "dog")]
        assert np.array_equal(data.masked.mask(0), expected)
        assert np.array_equal(data.masked.mask(1), np.full((5, 5), IGNORED_PIXEL))
        assert data.masked.sizes.tolist() == [[6, 8], [5, 5]]
    # With a class for all else, and classes chosen by name.
    data = coco(tmp_path, [SMALL, LARGE], classes=["dog", "rest"], masks={"background": "rest"})
    assert data.categories == [(90, "dog"), (0, "rest")]
    assert np.array_equal(data.masked.mask(0), np.where(np.arange(8) < 5, 0, 1)[None].repeat(6, axis=0))


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (
            {"category_id": 3, "bbox": [0, 0, 4, 4]},
            r"annotation 1: has no segmentation with an area; boxes alone are no masks",
        ),
        (SMALL | {"category_id": 4}, r"annotation 1: category_id 4 is not among the categories \(3 cat, 90 dog\)"),
        (SMALL | {"category_id": [3]}, r"masks\.json:1: annotation 1: category_id \[3\] must be an integer or text"),
        (SMALL | {"image_id": "x"}, r"annotation 1: image_id x is not among the images"),
        (LARGE | {"segmentation": {"size": [8, 6], "counts": [0, 30, 18]}}, r"annotation 1: .* its image, 8×6"),
    ],
)
def test_faults_of_segmentations(annotation: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        sample(coco(tmp_path, [annotation]))


# --- samples and transforms -------------------------------------------------------------------------------------------


def test_a_batch_is_padded_with_what_is_ignored(tmp_path: Path) -> None:
    data = read(write(tmp_path, {"a": MASK, "b": MASK[:2, :2]}), resize={"short": [2], "long": 40})
    batch = collate([sample(data, index) for index in range(2)])
    targets = batch.targets
    assert targets.masks.shape == (2, 32, 32) and targets.originals.shape == (2, 3, 4)
    assert targets.originals[1].tolist() == [[0, 1, 255, 255]] * 2 + [[255] * 4]
    assert (targets.masks[1] != 255).sum() == 4
    assert batch.sizes.tolist() == [[2, 3], [2, 2]]
    assert data.shapes.tolist() == [[32, 32]] * 2


def test_balanced_weights_by_pixels(tmp_path: Path) -> None:
    data = open_masks(make_config(write(tmp_path, {"a": MASK}), class_weights="balanced"), "train")
    assert data.weights.tolist() == pytest.approx([10 / 6, 10 / 18, 10 / 6])  # 10 / (3 · 2), 10 / (3 · 6)
    with pytest.raises(DataError, match="has no pixel of class 'star'"):
        open_masks(make_config(tmp_path, [*CLASSES, "star"], class_weights="balanced"), "train")


def test_a_part_is_held_back_by_name(tmp_path: Path) -> None:
    write(tmp_path, {f"{number:02}": MASK for number in range(20)})
    config = make_config(tmp_path, val_share=0.3, val=None)
    train, val = (open_masks(config, name) for name in ("train", "val"))
    names = [{data.file(index).name for index in range(len(data))} for data in (train, val)]
    assert len(names[0] | names[1]) == 20 and not names[0] & names[1] and len(names[1]) > 2


def test_masks_are_resized_by_their_centres() -> None:
    mask = np.arange(36, dtype=np.uint8).reshape(6, 6)
    assert resize_mask(mask, 2, 2).tolist() == [[7, 10], [25, 28]]  # pixels 1 and 4 of each axis
    assert resize_mask(mask[:1, :2], 2, 4).tolist() == [[0, 0, 1, 1]] * 2


AUGMENT = AugmentConfig(
    horizontal_flip=0.5,
    vertical_flip=0.5,
    rotate90=0.5,
    scale_jitter=[0.5, 2.0],
    transforms=[{"name": "Affine", "rotate": [-30, 30], "p": 1.0}, {"name": "CoarseDropout", "p": 0.2}],
)


def coded(rng: np.random.Generator, height: int = 80, width: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of classes, and an image whose gray says each pixel's class."""
    mask = rng.integers(0, 5, (height // 20, width // 20)).astype(np.uint8).repeat(20, axis=0).repeat(20, axis=1)
    return (20 + 50 * mask)[..., None].repeat(3, axis=2), mask


@pytest.mark.parametrize("canvas", [None, [96, 64]])
def test_masks_follow_their_images(canvas: list[int] | None) -> None:
    """Inside of the blocks, where interpolation mixes nothing, an image says what its mask does."""
    augment = AUGMENT.model_copy(update={"canvas": canvas})
    transform = TrainMaskTransform(ResizeConfig(short=[80], long=160), augment, seed=5)
    image, mask = coded(np.random.default_rng(0))
    agree = seen = ignored = 0
    for index in range(20):
        own, moved, original = transform(image, mask, 1, index)
        assert own.shape[:2] == moved.shape and original is None
        assert canvas is None or list(moved.shape) == canvas
        is_class = moved != IGNORED_PIXEL
        assert set(np.unique(moved)) <= {0, 1, 2, 3, 4, IGNORED_PIXEL}
        said = np.rint((own[..., 0].astype(float) - 20) / 50)
        agree, seen, ignored = (
            agree + (said == moved)[is_class].sum(),
            seen + is_class.sum(),
            ignored + (~is_class).sum(),
        )
        again = transform(image, mask, 1, index)
        assert np.array_equal(again.image, own) and np.array_equal(again.mask, moved)
    assert agree / seen > 0.9  # but for pixels that are interpolated between classes
    assert ignored > 0  # beyond turned images
    other = transform(image, mask, 2, 0)
    assert not np.array_equal(other.image, transform(image, mask, 1, 0).image)


def test_a_crop_of_one_class_is_drawn_again() -> None:
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[:32, :32] = 1
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    fractions = []
    for limit in (1.0, 0.75):
        augment = AugmentConfig(scale_jitter=[4.0, 4.0], max_class_share=limit)
        transform = TrainMaskTransform(ResizeConfig(short=[32], long=32), augment, seed=0)
        fractions.append(np.array([largest_fraction(transform(image, mask, 0, index).mask) for index in range(60)]))
    assert (fractions[0] > 0.75).mean() > 0.6 > 0.3 > (fractions[1] > 0.75).mean()
    assert largest_fraction(np.full((2, 2), IGNORED_PIXEL)) == 1


@pytest.mark.parametrize("kind", [{"cutmix": 1.0, "mix_share": 0.8}, {"copy_paste": 0.8}, {"mosaic": 0.8}])
def test_parts_of_other_images_come_with_their_masks(kind: dict[str, float], tmp_path: Path) -> None:
    """Images whose gray says their class, in one of two sizes: in a mixed one, the mask still agrees with it."""
    folder = write(tmp_path, {f"{label}": np.full((20 + 8 * label, 30), label, dtype=np.uint8) for label in range(3)})
    for label in range(3):
        Image.new("RGB", (30, 20 + 8 * label), (90 * label,) * 3).save(folder / "images" / f"{label}.jpg", quality=100)
    given = {"resize": {"short": [20], "long": 90}, "augment": {"close_out": 0.5} | kind}
    data = open_masks(make_config(folder, **given), "train")
    mixed, outside = 0, []
    for epoch in range(6):  # of twelve
        for index in range(3):
            own = data[epoch, index]
            assert isinstance(own, MaskSample) and own.image.shape[1:] == own.mask.shape
            is_class = own.mask != IGNORED_PIXEL
            agrees = (np.rint(own.image[0] / 90.0) == own.mask)[is_class]
            assert agrees.numpy().mean() > (0.9 if "mosaic" in kind else 0.999)  # of which the seams are interpolated
            outside += own.image[0][~is_class].tolist()
            mixed += len(np.unique(own.mask[is_class])) > 1
            again = data[epoch, index]
            assert isinstance(again, MaskSample) and torch.equal(own.mask, again.mask)
    assert 5 <= mixed < 18
    assert np.median(outside) == 114 if "mosaic" in kind else not outside  # gray
    assert all(len(np.unique(data[epoch, index].mask)) == 1 for epoch in (6, 11) for index in range(3))  # type: ignore


def test_half_of_the_classes_are_pasted_in_their_places() -> None:
    """Of four columns with the classes 0, 1, 2 and nothing, two and never the last."""
    other = Transformed(np.full((2, 4, 3), 7, dtype=np.uint8), np.array([[0, 1, 2, 255]] * 2, dtype=np.uint8))
    own = Transformed(np.zeros((3, 5, 3), dtype=np.uint8), np.full((3, 5), 9, dtype=np.uint8))
    seen = set()
    for seed in range(20):
        image, mask, _ = paste(own, other, np.random.default_rng(seed))
        columns = np.flatnonzero(mask[0] != 9)
        assert np.array_equal(mask[:2, columns], other.mask[:, columns]) and (mask != 9).sum() == 4
        assert np.array_equal(image[..., 0] == 7, mask != 9)
        seen.add(tuple(columns.tolist()))
    assert seen == {(0, 1), (0, 2), (1, 2)}
    assert not own.image.any()


def test_evaluation_draws_nothing_and_keeps_the_original() -> None:
    image, mask = coded(np.random.default_rng(0))
    own = MaskTransform(ResizeConfig(short=[20], long=80))(image, mask, 0, 0)
    assert own.image.shape == (20, 30, 3) and own.mask.shape == (20, 30)
    assert own.original is mask


def test_masks_of_shapes_and_their_views(tmp_path: Path) -> None:
    write_mask_shapes(tmp_path, train=3, val=1)
    given = {"annotations": str(tmp_path / "masks/train"), "images": str(tmp_path / "images/train")}
    names = ["background", "circle", "square", "triangle", "cross"]
    config = make_config(tmp_path, names, train=given, resize={"short": [96], "long": 96})
    data = open_masks(config, "train")
    assert len(data) == 3 and data.pixels.sum() == 3 * 192**2
    (line, *_) = segmentation_views.preview(data, config)
    assert line.startswith("pixels: background ")
    stored = segmentation_views.untransformed(data)
    own = sample(stored)
    assert own.image.shape == (3, 192, 192)
    assert segmentation_views.draw_sample(own, data.categories).size == (480, 480)
    batch = collate([sample(data, index) for index in range(2)])
    assert isinstance(batch.targets.masks, torch.Tensor)
    assert len(segmentation_views.draw_batch(batch, data.categories, config.model)) == 2
