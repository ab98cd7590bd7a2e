"""Tables of labelled images, drawn from a seed, and how to compare what was made of them."""

from __future__ import annotations

import numpy as np
import pytest

from detector.data.formats.labels import LabelledImage, Labels
from detector.structures import Category

CATEGORIES = [Category(7, "Katze <&>"), Category(2, '犬, "big"'), Category("x", "true"), Category(9, "unused")]
Boxes = dict[str, list[tuple[str, list[float]]]]  # name of the class and xyxy, by name of the image


def table(seed: int, is_scored: bool = False, images: int = 30, largest: int = 12_000) -> list[LabelledImage]:
    """Images of any size with 0 to 7 boxes of at least a pixel, without ignore regions."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(images):
        width, height = rng.integers(1, largest if number % 7 == 0 else 900, 2).tolist()
        corners = np.sort(rng.random((rng.integers(0, 8), 2, 2)), axis=1).reshape(-1, 4) * ([width, height] * 2)
        boxes = corners[((corners[:, 2:] - corners[:, :2]) > 1).all(axis=1)]
        boxes = np.round(boxes) if number % 3 == 0 else boxes
        made.append(
            LabelledImage(
                id=number + 5 if number % 2 else f"id {number}",
                name=f"ö & <{number}>/{number}.x.jpg" if number % 4 == 0 else f"{number}, a.jpg",
                width=width,
                height=height,
                boxes=boxes,
                labels=rng.integers(0, 3, len(boxes)),
                scores=rng.random(len(boxes)).round(5) if is_scored else None,
                is_ignored=None if is_scored else np.zeros(len(boxes), dtype=bool),
            )
        )
    return made


def labels(images: list[LabelledImage]) -> Labels:
    return Labels(CATEGORIES, lambda: iter(images), "detector 1a2b")


def expected(images: list[LabelledImage]) -> Boxes:
    return {
        image.name: [
            (CATEGORIES[label].name, box) for label, box in zip(image.labels, image.boxes.tolist(), strict=True)
        ]
        for image in images
    }


def assert_equal(found: Boxes, images: list[LabelledImage], tolerance: float = 0.01) -> None:
    wanted = expected(images)
    assert found.keys() == wanted.keys()
    for name, own in wanted.items():
        assert [category for category, _ in found[name]] == [category for category, _ in own]
        for (_, box), (_, other) in zip(found[name], own, strict=True):
            assert box == pytest.approx(other, abs=tolerance)
