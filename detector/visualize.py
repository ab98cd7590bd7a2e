"""Boxes drawn on pictures."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SMALLEST = 480  # long side of a drawing; smaller pictures are enlarged, or no letter on them could be read


def class_color(label: int) -> tuple[int, int, int]:
    """RGB of a class: hues a golden angle apart, so that neighbours do not look alike."""
    red, green, blue = colorsys.hsv_to_rgb((label * 0.61803398875 + 0.05) % 1, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_boxes(image: np.ndarray, boxes: np.ndarray, labels: Sequence[int], texts: Sequence[str]) -> Image.Image:
    """``image`` [H, W, 3] RGB with boxes [D, 4] xyxy and their texts, best first; lines and letters grow with it."""
    canvas = Image.fromarray(image)
    factor = max(1.0, SMALLEST / max(canvas.size))
    if factor > 1:
        canvas = canvas.resize([round(side * factor) for side in canvas.size], Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    line = max(2, round(max(canvas.size) / 350))
    font = _font(max(11, round(max(canvas.size) / 55)))
    # The best last, so that it lies on top.
    for box, label, text in reversed(list(zip(boxes * factor, labels, texts, strict=True))):
        color = class_color(label)
        left, top, right, bottom = (round(float(side)) for side in box)
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=color, width=line)
        _draw_label(draw, text, left, top, color, font)
    return canvas


def contact_sheet(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size side by side, row by row."""
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height))
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        sheet.paste(picture, (column * width, row * height))
    return sheet


def _draw_label(
    draw: ImageDraw.ImageDraw, text: str, left: int, top: int, color: tuple[int, int, int], font: ImageFont.FreeTypeFont
) -> None:
    """``text`` on a plate of ``color`` above the point, or below it where the picture ends."""
    width, height = draw.textbbox((0, 0), text, font=font, anchor="lt")[2:]
    margin = max(1, height // 5)
    plate_width, plate_height = width + 2 * margin, height + 2 * margin
    left = max(0, min(left, draw.im.size[0] - plate_width))
    top = top - plate_height if top >= plate_height else top
    draw.rectangle((left, top, left + plate_width, top + plate_height), fill=color)
    is_dark = np.dot(color, (0.299, 0.587, 0.114)) < 140
    draw.text((left + margin, top + margin), text, fill="white" if is_dark else "black", font=font, anchor="lt")


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)  # type: ignore[return-value]
