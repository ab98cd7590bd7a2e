"""Drawings: boxes where they belong, the best on top, labels inside the picture; classes in a corner; a confusion."""

from __future__ import annotations

import colorsys
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from detector.visualize import SMALLEST, class_color, draw_boxes, draw_confusion, draw_lines

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


# --- other depths and channels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (4, [0, 1, 2]), (7, [0, 1, 2])]
)
def test_pictures_of_any_depth_and_channels_are_shown(channels: int, shown: list[int], dtype: type) -> None:
    image = np.random.default_rng(0).integers(0, 256, (500, 600, channels)).astype(dtype)
    if dtype == np.uint16:
        image = image * 256 + 77  # the upper byte is what is seen
    expected = (image if dtype == np.uint8 else image // 256)[:, :, shown].astype(np.uint8)
    assert np.array_equal(draw(image, [], [], []), expected)
    assert np.array_equal(np.asarray(draw_lines(image, [], [])), expected)


# --- classes ----------------------------------------------------------------------------------------------------------


def test_classes_stand_in_the_corner_one_under_the_other() -> None:
    image = np.random.default_rng(0).integers(0, 256, (500, 600, 3), dtype=np.uint8)
    before = image.copy()
    pixels = np.asarray(draw_lines(image, [4, 0, 9], ["cat 0.93", "dog", "an owl 0.01"]))
    ends = []
    for label in (4, 0, 9):
        rows, columns = np.nonzero(is_color(pixels, label))
        assert columns.min() == 0
        ends.append((rows.min(), rows.max()))
        letters = pixels[rows.min() : rows.max() + 1, : columns.max() + 1]
        assert (~is_color(letters, label)).sum() > 50
    assert ends[0][0] == 0
    assert all(low[0] - high[1] in (0, 1) for high, low in pairwise(ends))
    assert np.array_equal(pixels[ends[2][1] + 2 :], image[ends[2][1] + 2 :])
    assert np.array_equal(pixels[:, 300:], image[:, 300:])
    assert np.array_equal(image, before)


@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (30, 40), (700, 2)])
def test_classes_on_odd_pictures(size: tuple[int, int]) -> None:
    pixels = np.asarray(draw_lines(plain(*size), list(range(9)), ["a long name of a class 0.99"] * 9))
    assert max(pixels.shape) >= SMALLEST
    assert is_color(pixels, 0).any()


# --- a confusion ------------------------------------------------------------------------------------------------------


def cells_of(confusion: list[list[int]], names: list[str], side: int) -> tuple[np.ndarray, int]:
    """The picture's pixels and where the first cell begins; 16 pixels lie below and right of the cells."""
    picture = draw_confusion(np.array(confusion), names)
    assert picture.mode == "RGB"
    assert picture.width == picture.height
    return np.asarray(picture), picture.width - 16 - len(names) * side


def test_a_confusion_by_hand() -> None:
    pixels, margin = cells_of([[3, 1, 0], [0, 5, 5], [0, 0, 0]], ["cat", "größer", "owl"], side=72)
    # From white to (8, 69, 148) by the share of the row: 3/4 is 255 - 0.75 · 247 = 69.75, 255 - 0.75 · 186 = 115.5 (to
    # the even one) and 255 - 0.75 · 107 = 174.75; a class without pictures has no shares.
    colors = {0: (255, 255, 255), 0.25: (193, 208, 228), 0.5: (132, 162, 202), 0.75: (70, 116, 175)}
    shares = [[0.75, 0.25, 0], [0, 0.5, 0.5], [0, 0, 0]]
    for row in range(3):
        for column in range(3):
            cell = pixels[margin + 72 * row :, margin + 72 * column :][:72, :72]
            assert np.abs(cell[5, 5].astype(int) - colors[shares[row][column]]).max() <= 1
            # A count stands in the middle, where there is one.
            assert (np.ptp(cell[20:52, 20:52], axis=(0, 1)).max() > 50) == (shares[row][column] > 0)


def test_names_and_axes_of_a_confusion() -> None:
    pixels, margin = cells_of([[1, 0], [0, 1]], ["a", "a long name of a class"], side=72)
    ink = pixels.min(axis=2) < 100
    left, above = ink[margin : margin + 144, :margin], ink[:margin, margin : margin + 144]
    # The titles lie along the outer edges; every row and column has its name beside it, the longer one further.
    assert left[:, :28].any()
    assert above[:28].any()
    extents = []
    for axis, names in ((0, left[:, 28:]), (1, above[28:])):
        for place in range(2):
            own = np.take(names, range(72 * place + 1, 72 * place + 71), axis=axis)
            assert own.any()
            extents.append(int(np.ptp(np.nonzero(own)[1 - axis])))
    assert extents[1] > 5 * extents[0]
    assert extents[3] > 5 * extents[2]
    assert not ink[:28, :28].any()


@pytest.mark.parametrize(
    ("num_classes", "side", "has_names"),
    [(1, 72, True), (20, 60, True), (60, 20, True), (110, 10, False), (300, 6, False)],
)
def test_many_classes_have_small_cells(num_classes: int, side: int, has_names: bool) -> None:
    names = [f"class {label}" for label in range(num_classes)]
    pixels, margin = cells_of((9 * np.eye(num_classes, dtype=int)).tolist(), names, side)
    assert (margin > 50) == has_names
    starts = margin + side * np.arange(num_classes)
    assert (pixels[starts + 2, starts + 2] == (8, 69, 148)).all()
    if num_classes > 1:
        assert (pixels[starts[1:] + 2, starts[:-1] + 2] == 255).all()
