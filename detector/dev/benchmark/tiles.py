"""Tiles: merging the boxes of all of them, and reading them from a file that is too large to decode whole.

The other sides are torchvision's class-wise NMS, and the same prediction by tiles of the same pixels in memory.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torchvision.ops import batched_nms

from detector.config.loader import load_config
from detector.dev.benchmark.generate import IMAGES, write_photos
from detector.dev.benchmark.measure import Case, Run, Settings
from detector.inference.predictor import Predictor
from detector.models import build_model
from detector.ops.tiles import merge_boxes
from detector.structures import Category

BOXES, CLASSES, IOU = 100_000, 5, 0.5
CONFIG, INPUT, FOUND = "scratch.yaml", 256, 20  # its input size, and detections in each tile
HEIGHT, WIDTH, TILE = 7168, 40_000, 1024  # of the file: more pixels than are decoded at once


class Boxes(NamedTuple):
    boxes: np.ndarray  # [N, 4]
    scores: np.ndarray  # [N]
    labels: np.ndarray  # [N]


def cases(settings: Settings) -> list[Case]:
    count, tile = settings.scaled(BOXES), settings.side(TILE)
    height, width, side = settings.side(HEIGHT), settings.side(WIDTH), settings.side(INPUT)
    merging = Case(
        name=f"merging {count:,} boxes of {CLASSES} classes",
        inputs=lambda _folder: make_boxes(count, width),
        ours=lambda inputs: lambda: merge_boxes(*inputs, IOU),
        theirs=theirs_merged,
        equal=lambda _inputs, own, other: np.array_equal(own, other.numpy()),
    )
    if importlib.util.find_spec("pyvips") is None:
        return [merging]
    reading = Case(
        name=f"tiles of {tile} px from a TIFF file of {height}×{width}, resnet18 at {side} px, against memory",
        files=lambda folder: write_file(folder, height, width, tile // 2),
        inputs=lambda folder: folder / "large.tif",
        ours=lambda path: partial(make_predictor(settings).predict, [path], tiles=tile),
        theirs=lambda path: partial(make_predictor(settings).predict, [decode(path)], tiles=tile),
        equal=lambda _path, own, other: same(own, other),
        runs=3,
    )
    return [merging, reading]


def make_boxes(count: int, side: int) -> Boxes:
    rng = np.random.default_rng(0)
    corners, sides = rng.uniform(0, side, (count, 2)), rng.uniform(8, 40, (count, 2))
    return Boxes(
        np.concatenate([corners, corners + sides], axis=1), rng.random(count), rng.integers(CLASSES, size=count)
    )


def theirs_merged(inputs: Boxes) -> Run:
    boxes, scores, labels = (torch.from_numpy(part) for part in inputs)
    return lambda: batched_nms(boxes, scores, labels, IOU)


def write_file(folder: Path, height: int, width: int, stored: int) -> None:
    """A TIFF file of one photo next to and below itself, in tiles of ``stored`` pixels with JPEG inside."""
    import pyvips

    write_photos(folder, 1)
    photo = pyvips.Image.new_from_file(str(next((folder / IMAGES).iterdir())))
    many = photo.replicate(width // photo.width + 1, height // photo.height + 1).crop(0, 0, width, height)
    tiles = {"tile": True, "tile_width": stored, "tile_height": stored}
    many.write_to_file(str(folder / "large.tif"), **tiles, compression="jpeg", bigtiff=True)


def decode(path: Path) -> np.ndarray:
    """The whole file [H, W, 3]."""
    import pyvips

    return pyvips.Image.new_from_file(str(path)).numpy()


def make_predictor(settings: Settings) -> Predictor:
    """Of random weights, which find something everywhere if the lowest score counts."""
    resize = f"data.resize={{long: {settings.side(INPUT)}}}"
    every = "model.predict.score_threshold=0", f"model.predict.max_detections={FOUND}"
    config = load_config(CONFIG, (resize, *every))
    categories = [Category(index, f"class {index}") for index in range(CLASSES)]
    torch.manual_seed(0)
    model = build_model(config.model, CLASSES)
    return Predictor(model.fold_norms(), config, categories, torch.device(settings.device))


def same(own: list[Any], other: list[Any]) -> bool:
    [one], [two] = own, other
    return len(one.boxes) > 0 and np.array_equal(one.boxes, two.boxes) and np.array_equal(one.scores, two.scores)
