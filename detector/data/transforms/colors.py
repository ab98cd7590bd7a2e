"""Colours, flips and ``data.augment.transforms`` for every task; the only module that uses albumentations."""

from __future__ import annotations

import difflib
import inspect
import os
import random
import warnings
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from pydantic import JsonValue, ValidationError

from detector.config.schema import AugmentConfig, ResizeConfig
from detector.errors import ConfigError, one_of
from detector.structures import IGNORED_PIXEL

# Transforms that do what data.resize does.
RESIZING = ("Resize", "SmallestMaxSize", "LongestMaxSize", "LetterBox", "RandomScale")


def load_albumentations() -> Any:
    """albumentations, which is slow to import and only needed for some transforms."""
    # Otherwise its import looks up the newest version on the internet.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    return albumentations


def color_transform(augment: AugmentConfig, channels: int) -> Any:
    library = load_albumentations()
    if channels == 3:
        limits = (0.7, 1.3)
        return library.ColorJitter(limits, limits, limits, hue=(-0.03, 0.03), p=augment.photometric)
    # Saturation and hue are of RGB.
    return library.RandomBrightnessContrast((-0.3, 0.3), (-0.3, 0.3), p=augment.photometric)


def augmentations(config: ResizeConfig, augment: AugmentConfig, channels: int) -> tuple[Any, Any]:
    """The change of colours and :func:`listed_transforms`, for images of the input size; None where there are none."""
    colors = load_albumentations().Compose([color_transform(augment, channels)]) if augment.photometric else None
    # On images that are longer, the listed ones are first tried in training.
    largest = min(config.long, 2 * max(config.short))
    return colors, listed_transforms(augment, channels, *(config.fixed or (largest, largest)))


def listed_transforms(augment: AugmentConfig, channels: int, height: int, width: int) -> Any:
    """``data.augment.transforms`` as one composition, each tried on noise of at most this size; None if there are none.

    Raises ConfigError for an unknown name or argument, and for a transform that needs more than images and boxes.
    """
    if not augment.transforms:
        return None
    library = load_albumentations()
    # Boxes are normalised, with their index as a fifth column; those that a transform hides are removed.
    boxes = library.BboxParams("albumentations", check_each_transform=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice: a more general transform, or boxes that nothing in the list moves
        compose = library.Compose([_build(library, given) for given in augment.transforms], bbox_params=boxes)
    for transform in seeded(compose, np.random.default_rng(0)):
        transform.p, probability = 1.0, transform.p
        try:  # on a small image, as a large one may take seconds
            apply_listed(transform, *_noise(min(height, 256), min(width, 256), channels))
        except ConfigError:  # a crop may need the large one
            apply_listed(transform, *_noise(height, width, channels))
        transform.p, transform.params = probability, {}
    return compose


def _noise(height: int, width: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """An image and a box in its middle."""
    image = np.random.default_rng(0).integers(256, size=(height, width, channels), dtype=np.uint8)
    return image, np.array([[width / 4, height / 4, width * 3 / 4, height * 3 / 4]])


def _build(library: Any, given: dict[str, JsonValue]) -> Any:
    """One of albumentations' own classes by its name; nothing else of a config is looked up or called."""
    name, arguments = str(given["name"]), {key: value for key, value in given.items() if key != "name"}
    bases = library.ImageOnlyTransform, library.DualTransform, library.Transform3D
    known = {
        key: kind
        for key, kind in vars(library).items()
        if isinstance(kind, type) and issubclass(kind, bases[:2]) and kind not in (*bases, library.Lambda)
    }
    if name not in known:
        raise _unfit(name, f"albumentations {library.__version__} has no such transform of images", name, known)
    if name in RESIZING:
        raise _unfit(name, "changes the input's size; use data.resize, and data.augment.scale_jitter for random scales")
    taken = [key for key in inspect.signature(known[name].__init__).parameters if key != "self"]
    for key in arguments:
        if key not in taken:
            raise _unfit(name, f"has no argument {key!r}", key, taken)
    # Without ``strict``, an argument that fails the library's own check gives a warning, and the default is used.
    strict = {"strict": True} if "InitSchema" in vars(known[name]) else {}
    try:
        transform = known[name](**arguments, **strict)
    except (ValueError, TypeError) as error:
        faults = error.__cause__.errors() if isinstance(error.__cause__, ValidationError) else []
        lines = [
            f"{fault['loc'][0]}: {fault['msg'].replace('Input should', 'must')}"
            + (f"; it is {fault['input']!r}" if fault["type"] != "missing" else "")
            for fault in faults
        ]
        raise _unfit(name, "; ".join(dict.fromkeys(lines)) or str(error)) from None
    if transform.targets_as_params or "image" not in transform.targets:
        wanted = ", ".join(transform.targets_as_params) or "a volume"
        raise _unfit(name, f"needs {wanted}; only images and boxes can be given")
    return transform


def _unfit(name: str, fault: str, unknown: str = "", known: Sequence[str] | dict[str, Any] = ()) -> ConfigError:
    near = difflib.get_close_matches(unknown, known, n=3)
    few = f"; it takes {', '.join(known)}" if 0 < len(known) < 30 else ""
    hint = f"; did you mean {one_of(near)}?" if near else few
    return ConfigError(f"data.augment.transforms: {name}: {' '.join(fault.split())}{hint}")


def seeded(compose: Any, rng: np.random.Generator) -> Sequence[Any]:
    """The transforms of a composition, made to draw from ``rng`` only; empty for None."""
    if compose is None:
        return ()
    compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))
    return compose.transforms


def apply(compose: Any, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An image transformed by albumentations with draws from ``rng``, in the same depth."""
    seeded(compose, rng)
    return _run(compose, image)[0]


def apply_listed(transform: Any, image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Apply one of :func:`listed_transforms`: the image, the boxes that are left, not clipped, and their indices."""
    height, width = image.shape[:2]
    rows = np.column_stack([boxes / [width, height, width, height], np.arange(len(boxes))])
    changed, rows = _run_listed(transform, image, "bboxes", rows)
    rows = rows.reshape(-1, 5)
    height, width = changed.shape[:2]
    moved = (rows[:, :4] * [width, height, width, height]).astype(np.float32)
    has_area = (moved[:, 2:] > moved[:, :2]).all(axis=1)
    return changed, moved[has_area], rows[has_area, 4].astype(np.int64)


def apply_listed_to_mask(transform: Any, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Apply one of :func:`listed_transforms`: the image, and the mask [H, W] uint8 by nearest.

    Transforms fill what comes from beyond a mask with 0, so it is given to them inverted: 255 is what is ignored.
    """
    image, inverted = _run_listed(transform, image, "mask", IGNORED_PIXEL - mask)
    return image, IGNORED_PIXEL - inverted


def _run_listed(transform: Any, image: np.ndarray, kind: str, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image and its target of this kind, changed by a transform of the config's list."""
    name = type(transform).__name__
    try:
        changed, moved = _run(transform, image, **{kind: target})
    except Exception as error:  # the library may raise anything for an unsuitable image
        raise _unfit(name, str(error)) from None
    if changed.dtype != image.dtype or changed.shape[2] != image.shape[2]:
        made = f"{image.dtype} with {image.shape[2]} channels into {changed.dtype} with {changed.shape[2]}"
        raise _unfit(name, f"turns {made}; it must keep both (the model normalises)")
    return changed, moved


def _run(transform: Any, image: np.ndarray, **targets: np.ndarray) -> tuple[np.ndarray, Any]:
    # Colours can be changed only in 8 bits or in floats; a float32 in [0, 1] holds 16 bits exactly.
    is_deep = image.dtype == np.uint16
    done = transform(image=image.astype(np.float32) / 65535 if is_deep else image, **targets)
    changed = done["image"]
    if is_deep:
        changed = np.rint(changed * 65535).clip(0, 65535).astype(np.uint16)
    return changed.reshape(*changed.shape[:2], -1), next((done[kind] for kind in targets), None)


def draw_flips(augment: AugmentConfig, rng: np.random.Generator) -> tuple[bool, bool]:
    """Whether to flip across (left and right) and down (top and bottom)."""
    across, down = rng.random(2)
    return bool(across < augment.horizontal_flip), bool(down < augment.vertical_flip)


def draw_turns(augment: AugmentConfig, rng: np.random.Generator) -> int:
    """How many quarters to turn by, 0 to 3."""
    # Without rotations nothing is drawn, so that the draws after it stay as they were before there were any.
    return int(rng.integers(1, 4)) if augment.rotate90 and rng.random() < augment.rotate90 else 0


def turn(image: np.ndarray, quarters: int) -> np.ndarray:
    """An image turned counter-clockwise."""
    return np.ascontiguousarray(np.rot90(image, quarters))


def same_depth(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Images of one depth: among 16-bit ones, 255 becomes 65535."""
    are_deep = any(image.dtype == np.uint16 for image in images)
    return [image.astype(np.uint16) * 257 if are_deep and image.dtype == np.uint8 else image for image in images]


def flip(image: np.ndarray, across: bool, down: bool) -> np.ndarray:
    if not (across or down):
        return image
    # Several times faster than copying a view of negative strides. Drops the axis of a single channel.
    return cv2.flip(image, -1 if across and down else int(across)).reshape(image.shape)
