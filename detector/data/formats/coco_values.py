"""Values of COCO JSON in all the ways that tools write them: ids, numbers, boxes, segmentations."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from detector.data.formats.recognition import SIDES
from detector.system.json_stream import has_surrogates, is_integer, is_number

# OpenCV's limits: it decodes no larger image.
MAX_SIDE, MAX_AREA = 1 << 20, 1 << 30


def is_id(value: Any) -> bool:
    """Whether a JSON value can be an id: text or an integer."""
    if type(value) is str:
        return value != "" and not has_surrogates(value)
    return type(value) is int


def is_box(value: Any) -> bool:
    """Whether a JSON value is a list of four finite numbers."""
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def number_of_text(value: Any) -> int | float | None:
    """The finite number that a text spells; None for anything else."""
    if type(value) is not str or len(value) > 40 or not re.fullmatch(r"\s*[-+]?[0-9.]+([eE][-+]?[0-9]+)?\s*", value):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    if not is_number(number):
        return None
    return int(number) if value.strip().lstrip("+-").isdigit() else number


def read_box(value: Any) -> list[float] | None:
    """Left, top, width, height, as a list, one text ("1 2 3 4", "[1, 2, 3, 4]") or an object; None for anything else.

    The numbers may be written as text.
    """
    if isinstance(value, str) and len(value) <= 200:
        value = re.split(r"\s*[,;\s]\s*", value.strip().removeprefix("[").removesuffix("]").strip())
    elif isinstance(value, dict):
        value = next(([value[side] for side in sides] for sides in SIDES if value.keys() == {*sides}), None)
    if not isinstance(value, list) or len(value) != 4:
        return None
    numbers = [one if is_number(one) else number_of_text(one) for one in value]
    return numbers if is_box(numbers) else None  # type: ignore[return-value]


def _encoded(segmentation: Any) -> Any:
    """A run-length mask as pycocotools takes it; raises ValueError, TypeError or KeyError for anything else."""
    from pycocotools import mask

    # pycocotools divides by the height unchecked: zero would end the process.
    height, width = segmentation["size"]
    if not all(is_integer(side) and 0 < side <= MAX_SIDE for side in (height, width)):
        raise ValueError
    return mask.frPyObjects(segmentation, height, width) if isinstance(segmentation["counts"], list) else segmentation


def _polygons(segmentation: list[Any]) -> list[np.ndarray]:
    """The corners of each polygon, [N, 2]; a single one may be a flat list."""
    polygons = segmentation if any(isinstance(polygon, list) for polygon in segmentation) else [segmentation]
    return [np.asarray(polygon, dtype=float).reshape(-1, 2) for polygon in polygons]


def plain_polygons(segmentation: list[Any]) -> list[Any]:
    """Polygons as lists of numbers, without empty ones; what cannot be read stays."""
    polygons = segmentation if any(isinstance(polygon, list) for polygon in segmentation) else [segmentation]
    plain = []
    for polygon in polygons:
        numbers = [number_of_text(one) for one in polygon if isinstance(one, str)] if isinstance(polygon, list) else []
        if numbers and None not in numbers:
            texts = iter(numbers)
            polygon = [next(texts) if isinstance(one, str) else one for one in polygon]
        if polygon != []:
            plain.append(polygon)
    return plain


def mask_of_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray | None:
    """The pixels of polygons or a run-length mask, [H, W] bool; None where there are none, or of another size."""
    from pycocotools import mask

    try:
        if isinstance(segmentation, list):
            polygons = [own.ravel().tolist() for own in _polygons(plain_polygons(segmentation)) if len(own) > 2]
            encoded = mask.merge(mask.frPyObjects(polygons, height, width))
        else:
            encoded = _encoded(segmentation)
        drawn = mask.decode(encoded).astype(bool)
    except (TypeError, KeyError, ValueError, OverflowError, IndexError):
        return None
    return drawn if drawn.shape == (height, width) else None


def box_of_segmentation(segmentation: Any) -> list[float] | None:
    """The box around polygons or a run-length mask; None where there is none."""
    from pycocotools import mask

    try:
        if isinstance(segmentation, list):
            corners = np.concatenate(_polygons(segmentation))
            (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
            box = [float(left), float(top), float(right - left), float(bottom - top)]
        else:
            box = [float(number) for number in mask.toBbox(_encoded(segmentation))]
    except (TypeError, KeyError, ValueError, OverflowError):
        return None
    return box if is_box(box) else None


def area_of_segmentation(segmentation: Any) -> float | None:
    """The area of polygons (their sum) or of a run-length mask; None where there is none."""
    from pycocotools import mask

    try:
        if isinstance(segmentation, list):
            area = 0.0
            for corners in _polygons(segmentation):
                x, y = corners.T
                area += abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
        else:
            area = float(mask.area(_encoded(segmentation)))
    except (TypeError, KeyError, ValueError, OverflowError):
        return None
    return area if is_number(area) and area > 0 else None


def odd_areas(boxes: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Which areas [M] are impossible for their ``boxes`` [M, 4] xywh: not positive, or larger than the box.

    One more pixel along each side is accepted: tools count the pixels that a box touches.
    """
    with np.errstate(invalid="ignore"):
        has_area = (boxes[:, 2:] > 0).all(axis=1)
        return has_area & ((areas <= 0) | (areas > 1.01 * (boxes[:, 2:] + 1).prod(axis=1)))
