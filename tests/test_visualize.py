"""Drawings: boxes where they belong, in their class's colour, the best on top, and labels inside the picture."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
from PIL import Image

from detector.visualize import SMALLEST, class_color, draw_boxes

GRAY = 100


def plain(height: int = 500, width: int = 600) -> np.ndarray:
    return np.full((height, width, 3), GRAY, np.uint8)


def draw(image: np.ndarray, boxes: list[list[float]], labels: list[int], texts: list[str]) -> np.ndarray:
    drawing = draw_boxes(image, np.array(boxes, np.float32).reshape(-1, 4), labels, texts)
    assert isinstance(drawing, Image.Image)
    assert drawing.mode == "RGB"
    return np.asarray(drawing)


def is_color(pixels: np.ndarray, label: int) -> np.ndarray:
    return (pixels == class_color(label)).all(axis=-1)


def test_colors_of_neighbours_do_not_look_alike() -> None:
    hues = [colorsys.rgb_to_hsv(*(channel / 255 for channel in class_color(label)))[0] for label in range(100)]
    for step in (1, 2):  # a golden angle, 0.38 of a turn, and twice it
        gaps = [abs(one - other) for one, other in zip(hues, hues[step:], strict=False)]
        assert min(min(gap, 1 - gap) for gap in gaps) > 0.2
    assert len({class_color(label) for label in range(100)}) == 100
    assert all(0 <= channel <= 255 and isinstance(channel, int) for channel in class_color(3))


def test_a_box_stands_where_it_belongs() -> None:
    pixels = draw(plain(), [[100, 200, 300, 400]], [2], ["x"])
    assert pixels.shape == (500, 600, 3)
    for row, column in ((200, 250), (400, 200), (300, 100), (300, 300)):  # top, bottom, left, right
        assert is_color(pixels[row, column], 2)
    rows, columns = np.nonzero(is_color(pixels, 2))
    assert (columns.min(), columns.max(), rows.max()) == (100, 300, 400)
    assert 150 < rows.min() < 200  # the label stands above
    # All else is untouched: what lies in the box, and around it.
    assert (pixels[210:390, 110:290] == GRAY).all()
    assert (pixels[405:] == GRAY).all()
    assert (pixels[:, 305:] == GRAY).all()


def test_without_boxes_the_picture_stays_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (500, 600, 3), dtype=np.uint8)
    before = image.copy()
    assert np.array_equal(draw(image, [], [], []), image)
    draw(image, [[10, 100, 200, 300]], [0], ["x"])
    assert np.array_equal(image, before)


def test_small_pictures_are_enlarged_and_their_boxes_with_them() -> None:
    # 120×80 by 480 / 120 = 4.
    image = plain(80, 120)
    image[40:50, 60:80] = 255
    pixels = draw(image, [[60, 40, 80, 50]], [1], ["x"])
    assert pixels.shape == (320, SMALLEST, 3)
    rows, columns = np.nonzero(is_color(pixels, 1)[160:])  # below the label
    assert (columns.min(), columns.max(), rows.min() + 160, rows.max() + 160) == (240, 320, 160, 200)
    assert (pixels[170:190, 250:310] == 255).all()


def test_lines_grow_with_the_picture() -> None:
    widths = []
    for side in (500, 2100):
        pixels = draw(plain(side, side), [[100, 200, 400, 400]], [0], ["x"])
        widths.append(int(is_color(pixels[300, :250], 0).sum()))
    assert widths == [2, 6]  # 2100 / 350


def test_the_best_lies_on_top() -> None:
    box = [100, 200, 300, 400]
    pixels = draw(plain(), [box, box, box], [5, 6, 7], ["first", "second", "third"])
    assert is_color(pixels, 5).sum() > 1000
    assert not is_color(pixels[:, :120], 6).any()
    assert not is_color(pixels[250:], 7).any()


def label_of(text: str, label: int, row: int = 250, column: int = 300) -> tuple[int, int, np.ndarray]:
    """Height and width of a label's plate, and the brightness of its letters' pixels.

    A box of one point leaves nothing else to be seen.
    """
    pixels = draw(plain(), [[column, row, column, row]], [label], [text])
    rows, columns = np.nonzero(is_color(pixels, label))
    own = pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    letters = own[~is_color(own, label) & (own != GRAY).any(axis=2)]
    return *own.shape[:2], letters @ (0.299, 0.587, 0.114)


@pytest.mark.parametrize("text", ["cat 0.93", "猫 ü 1.00"])
def test_labels_stay_in_the_picture(text: str) -> None:
    height, width, letters = label_of(text, 4)
    assert height > 10
    assert width > 30
    assert len(letters) > 50
    for row, column in ((0, 0), (0, 599), (499, 0), (499, 599)):
        other_height, other_width, other_letters = label_of(text, 4, row, column)
        # The point itself may stand out of the plate by its line.
        assert abs(other_height - height) <= 4
        assert abs(other_width - width) <= 4
        assert len(other_letters) == len(letters)


def test_letters_stand_out_from_their_plate() -> None:
    darker = 0
    for label in range(30):
        plate = np.dot(class_color(label), (0.299, 0.587, 0.114))
        _, _, letters = label_of("cat 0.93", label)
        assert (letters < plate).all() or (letters > plate).all()
        assert max(abs(letters - plate)) > 90
        darker += int(letters[0] < plate)
    assert 5 < darker < 25


@pytest.mark.parametrize("box", [[300, 400, 100, 200], [-50, -50, 900, 900], [700, 700, 800, 800], [5, 5, 5, 5]])
def test_odd_boxes_are_drawn_as_far_as_they_can(box: list[float]) -> None:
    assert draw(plain(), [box], [0], ["x"]).shape == (500, 600, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (3, 700), (700, 2)])
def test_odd_pictures(size: tuple[int, int]) -> None:
    pixels = draw(plain(*size), [[0, 0, *size[::-1]]], [0], ["x"])
    assert max(pixels.shape) >= SMALLEST
    assert is_color(pixels, 0).any()


def test_every_box_needs_its_label_and_text() -> None:
    with pytest.raises(ValueError, match="zip"):
        draw(plain(), [[1, 2, 3, 4]], [0, 1], ["x"])
