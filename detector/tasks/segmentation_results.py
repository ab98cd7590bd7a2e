"""Segmentation's predictions, and how they are written. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from detector.data.transforms.resize import resize_by_rule
from detector.errors import counted
from detector.ops.grids import interpolated, label_bands, points
from detector.ops.tiles import Grid
from detector.reports.drawing import draw_mask
from detector.reports.palette import palette_image
from detector.structures import SIZE_DIVISOR
from detector.system.atomic import atomic_write, storing, write_json_list
from detector.tasks import Difference
from detector.tasks.tiling import Part

if TYPE_CHECKING:
    from PIL import Image

    from detector.config.schema import DataConfig, PredictConfig
    from detector.data.inputs import ImageInput, Reading
    from detector.structures import Category, Id

INPUTS, AFTER = (), ()
OUTPUTS = {
    "scores": ("batch", "classes", "rows", "columns"),
    "extents": ("batch", "2"),
    "mask_sizes": ("batch", "2"),
}
SIZE_RULE, DIVISOR = "resize", SIZE_DIVISOR
FILE, MASKS = "predictions.json", "masks"
FIELDS: dict[str, dict[str, Any]] = {
    "image_id": {"type": ["integer", "string"], "description": "the data set's, or the number of the image, from 1"},
    "file_name": {"type": "string"},
    "category_id": {"type": ["integer", "string"], "description": "the training set's own id"},
    "category_name": {"type": "string"},
    "area": {"type": "integer", "description": "pixels of the upright image that are of this class"},
    "fraction": {"type": "number", "minimum": 0, "maximum": 1, "description": "of the image's pixels"},
}
HAS_IDS, HAS_BOXES = True, False
SHOWN = 5  # classes in a prediction's repr
MOST_DIFFERENT = 1e-3  # fraction of pixels whose class may differ by rounding alone


class SegmentPrediction(NamedTuple):
    """The class of each pixel of one image."""

    mask: np.ndarray  # [H, W] uint8, 0..K-1, in the original image's pixels
    categories: list[Category]  # [K]
    reading: Reading = (3, "auto", None)  # how its image was read, for draw

    @property
    def areas(self) -> np.ndarray:
        """The number of pixels of each class, [K] int64."""
        return np.bincount(self.mask.ravel(), minlength=len(self.categories))

    def __repr__(self) -> str:
        areas, height, width = self.areas, *self.mask.shape
        most = [label for label in np.argsort(-areas, kind="stable").tolist() if areas[label]]
        texts = [f"{self.categories[label].name} {areas[label] / areas.sum():.0%}" for label in most[:SHOWN]]
        return f"SegmentPrediction({width}×{height}: {', '.join(texts)}{', …' * (len(most) > SHOWN)})"

    def draw(self, image: ImageInput) -> Image.Image:
        """A PIL image of ``image`` with the classes in colours over it."""
        from detector.data.inputs import as_shown

        return draw(as_shown(image, *self.reading), self, 0.0)

    def to_image(self) -> Image.Image:
        """An image of indices with a palette: the data set's own ids, or the labels where ids do not fit 8 bits."""
        return palette_image(self.mask, self.categories)


def prepare(image: np.ndarray, data: DataConfig) -> np.ndarray:
    """An image [H, W, C] as the model takes it, without padding."""
    return resize_by_rule(image, data.resize)


def as_predictions(
    outputs: Sequence[np.ndarray], categories: Sequence[Category], predict: PredictConfig
) -> list[SegmentPrediction]:
    """The mask of each image, of ``PixelScores``."""
    predictions = []
    for scores, extent, size in zip(*outputs, strict=True):
        rows, columns = (
            points(np.arange(side, dtype=np.float64), side, cells) for side, cells in zip(size, extent, strict=True)
        )
        mask = np.concatenate([band.astype(np.uint8) for band in label_bands(scores, rows, columns)])
        predictions.append(SegmentPrediction(mask, list(categories)))
    return predictions


def join(
    parts: Iterator[Part], grid: Grid, merge: str, categories: Sequence[Category], predict: PredictConfig
) -> SegmentPrediction:
    """The mask of a whole image: where tiles overlap, the mean of their logarithms of probabilities.

    A tile counts most in its middle, as it does not see what lies beyond its border. Scores are kept for one row of
    tiles at a time.
    """
    mask = np.zeros((grid.height, grid.width), dtype=np.uint8)
    band, done = None, 0  # sums of weighted scores [K, rows, W] from row ``done`` on
    for tile, (scores, extent, _) in parts:
        top, left, height, width = grid[tile]
        if band is None:
            band = np.zeros((len(scores), height, grid.width), dtype=np.float32)
        if top > done:  # no further tile reaches the rows above
            mask[done:top] = band[:, : top - done].argmax(axis=0)
            band = np.concatenate([band[:, top - done :], np.zeros_like(band[:, : top - done])], axis=1)
            done = top
        rows, columns = (
            points(np.arange(side, dtype=np.float64), grid.size, cells)
            for side, cells in zip((height, width), extent, strict=True)
        )
        weight = np.minimum.outer(_slope(height), _slope(width))
        band[:, :, left : left + width] += interpolated(scores, rows, columns) * weight
    mask[done:] = band.argmax(axis=0)
    return SegmentPrediction(mask, list(categories))


def _slope(side: int) -> np.ndarray:
    """The distance of each pixel from the nearer end, [side] float32."""
    at = np.arange(side, dtype=np.float32)
    return np.minimum(at, side - 1 - at) + 0.5


def compare(
    own: list[SegmentPrediction],
    other: list[SegmentPrediction],
    score: float,
    pixels: float,
    predict: PredictConfig,
    candidates: Callable[[int], SegmentPrediction],
) -> Difference:
    """Whether the same pixels have the same class, but for some whose two best classes are equal up to rounding."""
    worst = max(float((one.mask != two.mask).mean()) for one, two in zip(own, other, strict=True))
    text = f"{counted(len(own), 'image')}, at most {worst:.2%} of the pixels of another class"
    return Difference(worst <= MOST_DIFFERENT, text, len(own))


def draw(image: np.ndarray, prediction: SegmentPrediction, draw_score: float) -> Image.Image:
    """The image with the classes in colours over it, and the names of the largest."""
    return draw_mask(image, prediction.mask, [category.name for category in prediction.categories])


def shrunk(prediction: SegmentPrediction, size: Sequence[int], to: Sequence[int]) -> SegmentPrediction:
    """Every so many pixels of the mask, for an image of the height and width ``to``, which was shrunk from ``size``."""
    rows, columns = (np.arange(new) * old // new for old, new in zip(size, to, strict=True))
    return prediction._replace(mask=prediction.mask[rows[:, None], columns])


def save(prediction: SegmentPrediction, name: str, output: Path) -> None:
    """``masks/NAME.png``: indices with a palette. There may be both x.png and x.jpg, so .jpg stays in the name."""
    path = output / MASKS / name
    path = path if path.suffix.lower() == ".png" else path.with_name(path.name + ".png")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        prediction.to_image().save(path)


def to_results(prediction: SegmentPrediction, image_id: Id, name: Path) -> list[dict[str, Any]]:
    """A row for each class in the image, the largest first."""
    areas = prediction.areas
    return [
        {
            "image_id": image_id,
            "file_name": name.as_posix(),
            "category_id": prediction.categories[label].id,
            "category_name": prediction.categories[label].name,
            "area": int(areas[label]),
            "fraction": round(float(areas[label] / areas.sum()), 5),
        }
        for label in np.argsort(-areas, kind="stable").tolist()
        if areas[label]
    ]


def write_results(results: Iterable[dict[str, Any]], path: Path) -> None:
    with atomic_write(path) as file:
        write_json_list(file, results)


def describe_results(results: Iterable[dict[str, Any]]) -> str:
    areas: Counter[str] = Counter()
    for row in results:
        areas[row["category_name"]] += row["area"]
    most, total = areas.most_common(), max(1, areas.total())
    shown = ", ".join(f"{name} {area / total:.1%}" for name, area in most[:10])
    return shown + (", …" if len(most) > 10 else "")
