"""Boxes and classes drawn on images, and a confusion matrix as an image."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from detector.reports.fonts import draw_letters, has_letters
from detector.reports.pages import shortened

Color = tuple[int, int, int]

COVER = 0.6  # of the colour of a pixel's class; the rest shows the image
NAMED = 8  # classes of a mask that are named
LEGEND = 8  # classes in a legend, at most
LARGEST_JPEG = 65_500  # long side that JPEG libraries write
SMALLEST = 480  # long side of a drawing; smaller images are enlarged, so that text on them can be read


def save_jpeg(image: Image.Image, file: Path | IO[bytes], quality: int) -> None:
    """Save an image, shrunk to what a JPEG file can hold."""
    image.thumbnail((LARGEST_JPEG, LARGEST_JPEG))
    image.save(file, "JPEG", quality=quality)


def class_color(label: int) -> Color:
    """RGB of a class: hues a golden angle apart, so that neighbours do not look alike; gray for a label below 0."""
    if label < 0:
        return 128, 128, 128
    red, green, blue = colorsys.hsv_to_rgb((label * 0.61803398875 + 0.05) % 1, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def score_texts(names: Sequence[str], scores: Sequence[float] | np.ndarray) -> list[str]:
    """Name and score of each: ``"circle 0.93"``."""
    return [f"{name} {score:.2f}" for name, score in zip(names, scores, strict=True)]


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int],
    texts: Sequence[str],
    colors: Sequence[Color] | None = None,
) -> Image.Image:
    """``image`` [H, W, C] with boxes [D, 4] xyxy and their texts, best first; lines and text scale with its size.

    ``colors`` default to those of the classes; a box without a text gets a thin line. Words that no installed font can
    draw are replaced by the number of the label, which a legend below explains.
    """
    canvas, factor = _canvas(image)
    draw = ImageDraw.Draw(canvas)
    line, size = max(2, round(max(canvas.size) / 350)), max(11, round(max(canvas.size) / 55))
    colors = colors if colors is not None else [class_color(label) for label in labels]
    texts, legend = _legible(texts, labels)
    # The best last, so that it is on top.
    for box, color, text in reversed(list(zip(boxes * factor, colors, texts, strict=True))):
        left, top, right, bottom = (round(float(side)) for side in box)
        width = line if text else max(1, line // 2)
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=color, width=width)
        if text:
            _draw_label(draw, text, left, top, color, size)
    return _with_legend(canvas, legend, size)


def draw_targets(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int],
    texts: Sequence[str],
    anchors: np.ndarray,
    anchor_labels: Sequence[int],
) -> Image.Image:
    """``image`` [H, W, C] with boxes [T, 4] in thick lines, and anchors [P, 4] in thin ones of their objects' colours.

    A label below 0 is an ignore region, in gray.
    """
    canvas, factor = _canvas(image)
    draw = ImageDraw.Draw(canvas, "RGBA")  # so that lines can be translucent
    line, size = max(2, round(max(canvas.size) / 200)), max(11, round(max(canvas.size) / 40))
    texts, legend = _legible(texts, labels)
    for anchor, label in zip(anchors * factor, anchor_labels, strict=True):
        draw.rectangle(anchor.round().tolist(), outline=(*class_color(label), 190), width=max(1, line // 2))
    for box, label, text in zip(boxes * factor, labels, texts, strict=True):
        left, top, right, bottom = (round(float(side)) for side in box)
        draw.rectangle((left, top, right, bottom), outline=class_color(label), width=line)
        _draw_label(draw, text, left, top, class_color(label), size)
    return _with_legend(canvas, legend, size)


def draw_lines(image: np.ndarray, labels: Sequence[int], texts: Sequence[str]) -> Image.Image:
    """``image`` [H, W, C] with one text per class in its top left corner, one below the other."""
    canvas, _ = _canvas(image)
    draw = ImageDraw.Draw(canvas)
    size, top = max(11, round(max(canvas.size) / 30)), 0
    texts, legend = _legible(texts, labels)
    for label, text in zip(labels, texts, strict=True):
        top = _draw_plate(draw, draw_letters(text, size), 0, top, class_color(label))
    return _with_legend(canvas, legend, size)


def draw_mask(image: np.ndarray, mask: np.ndarray, names: Sequence[str]) -> Image.Image:
    """``image`` [H, W, C] under the colours of its pixels' classes, ``mask`` [H, W], with the names of the largest.

    Pixels of no class, such as ignored ones, are darkened.
    """
    height, width = mask.shape  # of a batch, the image may be padded
    counts = np.bincount(mask.ravel(), minlength=256)
    colors = np.zeros((256, 3), dtype=np.uint8)
    colors[: len(names)] = [class_color(label) for label in range(len(names))]
    gray = as_rgb(image[:height, :width]).mean(axis=2, dtype=np.float32, keepdims=True)  # so that colours are classes
    blended = (1 - COVER) * gray + COVER * colors[mask]
    present = [label for label in np.argsort(-counts, kind="stable").tolist() if counts[label] and label < len(names)]
    return draw_lines(blended.astype(np.uint8), present[:NAMED], [names[label] for label in present[:NAMED]])


def draw_confusion(confusion: np.ndarray, names: Sequence[str]) -> Image.Image:
    """``confusion`` [K, K], true by predicted class: the darker a cell, the larger its fraction of the true class."""
    num_classes = len(names)
    side = max(6, min(72, 1200 // num_classes))  # of a cell, in pixels
    size = max(9, min(18, side // 3))
    has_names, has_counts = side >= 12, side >= 30
    names, legend = _legible([shortened(name, 24) for name in names], range(num_classes))
    plates = [_dark(name, size) for name in names] if has_names else []
    wide = max((plate.width for plate in plates), default=0) + 12
    margin = wide + 28  # left and on top: the axis's title, then the names
    fraction = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    cells = np.rint(255 + (np.array([8, 69, 148]) - 255) * fraction[:, :, None]).astype(np.uint8)
    cells = cells.repeat(side, axis=0).repeat(side, axis=1)
    cells[::side], cells[:, ::side] = 225, 225  # a line between cells
    canvas = Image.new("RGB", (margin + num_classes * side + 16,) * 2, "white")
    canvas.paste(Image.fromarray(cells), (margin, margin))
    draw = ImageDraw.Draw(canvas)
    for row, column in np.argwhere(confusion) if has_counts else []:
        ink = "white" if fraction[row, column] > 0.5 else "black"
        center = (margin + (column + 0.5) * side, margin + (row + 0.5) * side)
        count = draw_letters(str(confusion[row, column]), size)
        draw.bitmap((round(center[0] - count.width / 2), round(center[1] - count.height / 2)), count, fill=ink)
    middle = margin + num_classes * side // 2
    for title, is_upright in ((_dark("predicted", 15), False), (_dark("true", 15), True)):
        title = title.rotate(90, expand=True) if is_upright else title
        center = (14, middle) if is_upright else (middle, 14)
        canvas.paste(title, (center[0] - title.width // 2, center[1] - title.height // 2))
    for label, plate in enumerate(plates):
        center = margin + label * side + side // 2
        canvas.paste(plate, (margin - 6 - plate.width, center - plate.height // 2))
        upright = plate.rotate(90, expand=True)
        canvas.paste(upright, (center - upright.width // 2, margin - 6 - upright.height))
    return _with_legend(canvas, legend, max(size, 13))


def contact_sheet(images: Sequence[Image.Image], columns: int, gap: int = 0) -> Image.Image:
    """Images in rows of ``columns``, each fitted to the size of the first, with ``gap`` white pixels between."""
    width, height = (side + gap for side in images[0].size)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width - gap, rows * height - gap), "white" if gap else "black")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(ImageOps.pad(image, images[0].size, color="white"), (column * width, row * height))
    return sheet


def as_rgb(image: np.ndarray) -> np.ndarray:
    """``image`` [H, W, C] for display, [H, W, 3] uint8: the first three channels, or the first one as gray."""
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    image = image[:, :, :3] if image.shape[2] >= 3 else image[:, :, :1].repeat(3, axis=2)
    return np.ascontiguousarray(image)


def _canvas(image: np.ndarray) -> tuple[Image.Image, float]:
    """``image`` [H, W, C] in 8-bit RGB, enlarged if it is small, and the factor."""
    canvas = Image.fromarray(as_rgb(image))
    factor = max(1.0, SMALLEST / max(canvas.size))
    if factor > 1:
        canvas = canvas.resize([round(side * factor) for side in canvas.size], Image.Resampling.BICUBIC)
    return canvas, factor


def _dark(text: str, size: int) -> Image.Image:
    """``text`` in black on white, with the height of a line of this size."""
    return ImageOps.invert(draw_letters(text, size, is_tight=False)).convert("RGB")


def _legible(texts: Sequence[str], labels: Sequence[int]) -> tuple[list[str], dict[int, str]]:
    """The texts with words that no installed font can draw replaced by the label's number, and these words by label."""
    shown, legend = [], {}
    for text, label in zip(texts, labels, strict=True):
        if not has_letters(text):
            words = text.split()
            lost = [word for word in words if not has_letters(word)]
            legend[label] = " ".join(lost)
            text = " ".join([f"#{label}", *(word for word in words if word not in lost)])
        shown.append(text)
    return shown, legend


def _with_legend(canvas: Image.Image, legend: dict[int, str], size: int) -> Image.Image:
    """``canvas`` above a strip that names the class of each number, in JSON's escapes."""
    if not legend:
        return canvas
    texts = [f"#{label} = {json.dumps(word)[1:-1]}" for label, word in sorted(legend.items())]
    texts = [*texts[:LEGEND], *(["…"] if len(texts) > LEGEND else []), "No font here has these letters; install one."]
    lines = [_dark(text, size) for text in texts]
    strip = Image.new("RGB", (canvas.width, canvas.height + sum(line.height for line in lines) + size), "white")
    strip.paste(canvas, (0, 0))
    top = canvas.height + size // 2
    for line in lines:
        strip.paste(line, (size // 2, top))
        top += line.height
    return strip


def _draw_label(draw: ImageDraw.ImageDraw, text: str, left: int, top: int, color: Color, size: int) -> None:
    """Draw ``text`` on a plate of ``color`` above the point, or below it if there is no room."""
    letters = draw_letters(text, size)
    width, height, _ = _plate_size(letters)
    left = max(0, min(left, draw.im.size[0] - width))
    _draw_plate(draw, letters, left, top - height if top >= height else top, color)


def _plate_size(letters: Image.Image) -> tuple[int, int, int]:
    """Width, height and margin of a plate around ``letters``."""
    margin = max(1, letters.height // 5)
    return letters.width + 2 * margin, letters.height + 2 * margin, margin


def _draw_plate(draw: ImageDraw.ImageDraw, letters: Image.Image, left: int, top: int, color: Color) -> int:
    """Draw ``letters`` on a plate of ``color`` with this corner; returns the bottom of the plate."""
    width, height, margin = _plate_size(letters)
    draw.rectangle((left, top, left + width, top + height), fill=color)
    is_dark = np.dot(color, (0.299, 0.587, 0.114)) < 140
    draw.bitmap((left + margin, top + margin), letters, fill="white" if is_dark else "black")
    return top + height
