"""Boxes and classes drawn on pictures, and the picture of a confusion matrix."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

SMALLEST = 480  # long side of a drawing; smaller pictures are enlarged, or no letter on them could be read


def class_color(label: int) -> tuple[int, int, int]:
    """RGB of a class: hues a golden angle apart, so that neighbours do not look alike."""
    red, green, blue = colorsys.hsv_to_rgb((label * 0.61803398875 + 0.05) % 1, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def score_texts(names: Sequence[str], scores: Sequence[float] | np.ndarray) -> list[str]:
    """``"circle 0.93"`` of each."""
    return [f"{name} {score:.2f}" for name, score in zip(names, scores, strict=True)]


def draw_boxes(image: np.ndarray, boxes: np.ndarray, labels: Sequence[int], texts: Sequence[str]) -> Image.Image:
    """``image`` [H, W, C] with boxes [D, 4] xyxy and their texts, best first; lines and letters grow with it."""
    return draw_colored(image, boxes, [class_color(label) for label in labels], texts)


def draw_colored(
    image: np.ndarray, boxes: np.ndarray, colors: Sequence[tuple[int, int, int]], texts: Sequence[str]
) -> Image.Image:
    """As :func:`draw_boxes`, in colours of one's own; a box without a text is a thin line."""
    canvas, factor = _canvas(image)
    draw = ImageDraw.Draw(canvas)
    line = max(2, round(max(canvas.size) / 350))
    font = _font(max(11, round(max(canvas.size) / 55)))
    # The best last, so that it lies on top.
    for box, color, text in reversed(list(zip(boxes * factor, colors, texts, strict=True))):
        left, top, right, bottom = (round(float(side)) for side in box)
        width = line if text else max(1, line // 2)
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=color, width=width)
        if text:
            _draw_label(draw, text, left, top, color, font)
    return canvas


def draw_targets(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int],
    texts: Sequence[str],
    anchors: np.ndarray,
    anchor_labels: Sequence[int],
) -> Image.Image:
    """``image`` [H, W, C] with boxes [T, 4] in strong lines, and [P, 4] anchors in thin ones of their objects' colours.

    A label under 0 is no class: a region that is left out, in gray.
    """
    canvas, factor = _canvas(image)
    draw = ImageDraw.Draw(canvas, "RGBA")  # lines that let the picture through
    line = max(2, round(max(canvas.size) / 200))
    font = _font(max(11, round(max(canvas.size) / 40)))
    for anchor, label in zip(anchors * factor, anchor_labels, strict=True):
        draw.rectangle(anchor.round().tolist(), outline=(*class_color(label), 190), width=max(1, line // 2))
    for box, label, text in zip(boxes * factor, labels, texts, strict=True):
        color = class_color(label) if label >= 0 else (128, 128, 128)
        left, top, right, bottom = (round(float(side)) for side in box)
        draw.rectangle((left, top, right, bottom), outline=color, width=line)
        _draw_label(draw, text, left, top, color, font)
    return canvas


def draw_lines(image: np.ndarray, labels: Sequence[int], texts: Sequence[str]) -> Image.Image:
    """``image`` [H, W, C] with a text a class in its corner, one under the other."""
    canvas, _ = _canvas(image)
    draw = ImageDraw.Draw(canvas)
    font = _font(max(11, round(max(canvas.size) / 30)))
    top = 0
    for label, text in zip(labels, texts, strict=True):
        top = _draw_plate(draw, text, 0, top, class_color(label), font)
    return canvas


def draw_confusion(confusion: np.ndarray, names: Sequence[str]) -> Image.Image:
    """``confusion`` [K, K], true by predicted class: the darker a cell, the larger its share of the true class."""
    num_classes = len(names)
    names = [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
    side = max(6, min(72, 1200 // num_classes))  # of a cell, in pixels
    font = _font(max(9, min(18, side // 3)))
    has_names, has_counts = side >= 12, side >= 30
    wide = max(round(font.getlength(name)) for name in names) + 12 if has_names else 12
    margin = wide + 28  # left and on top: the axis's title, then the names
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    cells = np.rint(255 + (np.array([8, 69, 148]) - 255) * share[:, :, None]).astype(np.uint8)
    cells = cells.repeat(side, axis=0).repeat(side, axis=1)
    cells[::side], cells[:, ::side] = 225, 225  # a line between cells
    canvas = Image.new("RGB", (margin + num_classes * side + 16,) * 2, "white")
    canvas.paste(Image.fromarray(cells), (margin, margin))
    draw = ImageDraw.Draw(canvas)
    for row, column in np.argwhere(confusion) if has_counts else []:
        ink = "white" if share[row, column] > 0.5 else "black"
        center = (margin + (column + 0.5) * side, margin + (row + 0.5) * side)
        draw.text(center, str(confusion[row, column]), ink, font, anchor="mm")
    middle = margin + num_classes * side / 2
    title = _font(15)
    draw.text((middle, 14), "predicted", "black", title, anchor="mm")
    _draw_upright(canvas, "true", 14, round(middle), title)
    for place, name in enumerate(names if has_names else []):
        center = margin + place * side + side // 2
        draw.text((margin - 6, center), name, "black", font, anchor="rm")
        _draw_upright(canvas, name, center, margin - 6, font, above=True)
    return canvas


def contact_sheet(pictures: Sequence[Image.Image], columns: int, gap: int = 0) -> Image.Image:
    """Pictures side by side, row by row, each fitted to the size of the first; ``gap`` pixels of white between."""
    width, height = (side + gap for side in pictures[0].size)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width - gap, rows * height - gap), "white" if gap else "black")
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        sheet.paste(ImageOps.pad(picture, pictures[0].size, color="white"), (column * width, row * height))
    return sheet


def as_rgb(image: np.ndarray) -> np.ndarray:
    """``image`` [H, W, C] as it is shown, [H, W, 3] uint8: the first three channels, or the first one in gray."""
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    image = image[:, :, :3] if image.shape[2] >= 3 else image[:, :, :1].repeat(3, axis=2)
    return np.ascontiguousarray(image)


def _canvas(image: np.ndarray) -> tuple[Image.Image, float]:
    """``image`` [H, W, C] in 8-bit RGB, enlarged where it is small, and the factor."""
    canvas = Image.fromarray(as_rgb(image))
    factor = max(1.0, SMALLEST / max(canvas.size))
    if factor > 1:
        canvas = canvas.resize([round(side * factor) for side in canvas.size], Image.Resampling.BICUBIC)
    return canvas, factor


def _draw_upright(
    canvas: Image.Image, text: str, center: int, bottom: int, font: ImageFont.FreeTypeFont, above: bool = False
) -> None:
    """``text`` read from below, its middle at x ``center``; its end or, not ``above``, its middle at y ``bottom``."""
    left, top, right, low = font.getbbox(text)
    plate = Image.new("RGB", (round(right - left) + 2, round(low - top) + 2), "white")
    ImageDraw.Draw(plate).text((1 - left, 1 - top), text, "black", font)
    turned = plate.rotate(90, expand=True)
    y = bottom - turned.height if above else bottom - turned.height // 2
    canvas.paste(turned, (center - turned.width // 2, y))


def _draw_label(
    draw: ImageDraw.ImageDraw, text: str, left: int, top: int, color: tuple[int, int, int], font: ImageFont.FreeTypeFont
) -> None:
    """``text`` on a plate of ``color`` above the point, or below it where the picture ends."""
    width, height, _ = _plate_size(draw, text, font)
    left = max(0, min(left, draw.im.size[0] - width))
    _draw_plate(draw, text, left, top - height if top >= height else top, color, font)


def _plate_size(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int, int]:
    """Width, height and margin of a plate around ``text``."""
    width, height = draw.textbbox((0, 0), text, font=font, anchor="lt")[2:]
    margin = max(1, height // 5)
    return width + 2 * margin, height + 2 * margin, margin


def _draw_plate(
    draw: ImageDraw.ImageDraw, text: str, left: int, top: int, color: tuple[int, int, int], font: ImageFont.FreeTypeFont
) -> int:
    """``text`` on a plate of ``color`` with this corner; returns where the plate ends."""
    width, height, margin = _plate_size(draw, text, font)
    draw.rectangle((left, top, left + width, top + height), fill=color)
    is_dark = np.dot(color, (0.299, 0.587, 0.114)) < 140
    draw.text((left + margin, top + margin), text, fill="white" if is_dark else "black", font=font, anchor="lt")
    return top + height


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """A font with accents and other scripts where the system has one; Pillow's own has Latin letters only."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size)  # type: ignore[return-value]
