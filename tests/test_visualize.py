"""Drawings: boxes where they belong, the best on top, labels inside the image; classes in a corner; a confusion."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image

import detector.reports.fonts
from detector.reports.drawing import (
    SMALLEST,
    class_color,
    draw_boxes,
    draw_confusion,
    draw_lines,
    draw_targets,
    save_jpeg,
)
from detector.reports.fonts import draw_letters, find_font, has_letters

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


def test_what_is_longer_than_a_jpeg_can_be_is_shrunk(tmp_path: Path) -> None:
    save_jpeg(Image.new("RGB", (70_000, 140)), tmp_path / "x.jpg", quality=90)
    assert Image.open(tmp_path / "x.jpg").size == (65_500, 131)


def test_a_box_is_drawn_where_it_belongs() -> None:
    pixels = draw(plain(), [[100, 200, 300, 400]], [2], ["x"])
    assert pixels.shape == (500, 600, 3)
    for row, column in ((200, 250), (400, 200), (300, 100), (300, 300)):  # top, bottom, left, right
        assert is_color(pixels[row, column], 2)
    rows, columns = np.nonzero(is_color(pixels, 2))
    assert (columns.min(), columns.max(), rows.max()) == (100, 300, 400)
    assert 150 < rows.min() < 200  # the label is above
    # All else is untouched: what lies in the box, and around it.
    assert (pixels[210:390, 110:290] == GRAY).all()
    assert (pixels[405:] == GRAY).all()
    assert (pixels[:, 305:] == GRAY).all()


def test_without_boxes_the_image_stays_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (500, 600, 3), dtype=np.uint8)
    before = image.copy()
    assert np.array_equal(draw(image, [], [], []), image)
    draw(image, [[10, 100, 200, 300]], [0], ["x"])
    assert np.array_equal(image, before)


def test_small_images_are_enlarged_and_their_boxes_with_them() -> None:
    # 120×80 by 480 / 120 = 4.
    image = plain(80, 120)
    image[40:50, 60:80] = 255
    pixels = draw(image, [[60, 40, 80, 50]], [1], ["x"])
    assert pixels.shape == (320, SMALLEST, 3)
    rows, columns = np.nonzero(is_color(pixels, 1)[160:])  # below the label
    assert (columns.min(), columns.max(), rows.min() + 160, rows.max() + 160) == (240, 320, 160, 200)
    assert (pixels[170:190, 250:310] == 255).all()


def test_lines_grow_with_the_image() -> None:
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

    A box of one point draws nothing else.
    """
    pixels = draw(plain(), [[column, row, column, row]], [label], [text])
    rows, columns = np.nonzero(is_color(pixels, label))
    own = pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    letters = own[~is_color(own, label) & (own != GRAY).any(axis=2)]
    return *own.shape[:2], letters @ (0.299, 0.587, 0.114)


@pytest.mark.parametrize("text", ["cat 0.93", "猫 ü 1.00"])
def test_labels_stay_in_the_image(text: str) -> None:
    height, width, letters = label_of(text, 4)
    assert height > 10
    assert width > 30
    assert len(letters) > 50
    for row, column in ((0, 0), (0, 599), (499, 0), (499, 599)):
        other_height, other_width, other_letters = label_of(text, 4, row, column)
        # The point itself may extend beyond the plate by its line.
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
def test_odd_images(size: tuple[int, int]) -> None:
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
def test_images_of_any_depth_and_channels_are_shown(channels: int, shown: list[int], dtype: type) -> None:
    image = np.random.default_rng(0).integers(0, 256, (500, 600, channels)).astype(dtype)
    if dtype == np.uint16:
        image = image * 256 + 77  # the upper byte is what is seen
    expected = (image if dtype == np.uint8 else image // 256)[:, :, shown].astype(np.uint8)
    assert np.array_equal(draw(image, [], [], []), expected)
    assert np.array_equal(np.asarray(draw_lines(image, [], [])), expected)


# --- classes ----------------------------------------------------------------------------------------------------------


def test_classes_are_listed_in_the_corner() -> None:
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
def test_classes_on_odd_images(size: tuple[int, int]) -> None:
    pixels = np.asarray(draw_lines(plain(*size), list(range(9)), ["a long name of a class 0.99"] * 9))
    assert max(pixels.shape) >= SMALLEST
    assert is_color(pixels, 0).any()


# --- a confusion ------------------------------------------------------------------------------------------------------


def cells_of(confusion: list[list[int]], names: list[str], side: int) -> tuple[np.ndarray, int]:
    """The image's pixels and where the first cell begins; 16 pixels lie below and right of the cells."""
    image = draw_confusion(np.array(confusion), names)
    assert image.mode == "RGB"
    assert image.width == image.height
    return np.asarray(image), image.width - 16 - len(names) * side


def test_a_confusion_by_hand() -> None:
    pixels, margin = cells_of([[3, 1, 0], [0, 5, 5], [0, 0, 0]], ["cat", "größer", "owl"], side=72)
    # From white to (8, 69, 148) by the fraction of the row: 3/4 is 255 - 0.75 · 247 = 69.75, 255 - 0.75 · 186 = 115.5
    # (to the even one) and 255 - 0.75 · 107 = 174.75; a class without images has none.
    colors = {0: (255, 255, 255), 0.25: (193, 208, 228), 0.5: (132, 162, 202), 0.75: (70, 116, 175)}
    fractions = [[0.75, 0.25, 0], [0, 0.5, 0.5], [0, 0, 0]]
    for row in range(3):
        for column in range(3):
            cell = pixels[margin + 72 * row :, margin + 72 * column :][:72, :72]
            assert np.abs(cell[5, 5].astype(int) - colors[fractions[row][column]]).max() <= 1
            # A count is in the middle, if there is one.
            assert (np.ptp(cell[20:52, 20:52], axis=(0, 1)).max() > 50) == (fractions[row][column] > 0)


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


# --- letters of any script --------------------------------------------------------------------------------------------


@pytest.fixture
def fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of fonts, empty, that is the only one there is; without fontconfig."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(detector.reports.fonts, "_font_folders", lambda: [tmp_path])
    find_font.cache_clear()
    yield tmp_path
    find_font.cache_clear()


def make_font(path: Path, characters: str) -> None:
    """A font in which each of ``characters`` is a filled square, and what it lacks a tall bar."""
    builder = FontBuilder(1000, isTTF=True)
    names = {ord(character): f"glyph{ord(character)}" for character in characters}
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    glyphs = {}
    for name in (".notdef", *names.values()):
        pen, height = TTGlyphPen(None), 2000 if name == ".notdef" else 700
        pen.moveTo((0, 0))
        for corner in ((0, height), (700, height), (700, 0)):
            pen.lineTo(corner)
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (800, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


BOX = np.array([[100, 200, 300, 400]], np.float32)


def letters(text: str, size: int = 40) -> np.ndarray:
    return np.asarray(draw_letters(text, size))


SCRIPTS = ["红细胞", "적혈구 cell", "कुत्ता", "หมา", "日本語 ネコ", "👨‍👩‍👧", "x 猫"]


def test_common_scripts_need_no_font_of_the_system(fonts: Path) -> None:
    for text in ("café", "кошка", "γάτα", "قطة", "חתול", "Đặng", "e\u0301", "a\u200db", "two\nlines", ""):
        assert has_letters(text)
        assert letters(text).shape[0] < 80
    assert np.array_equal(letters("a\u200db\ufe0f"), letters("ab"))  # nothing is drawn for what is not seen


@pytest.mark.parametrize("name", SCRIPTS)
def test_letters_without_a_font_become_a_number_with_a_legend(name: str, fonts: Path) -> None:
    (fonts / "broken.ttf").write_bytes(b"no font")
    make_font(fonts / "other.ttf", "ж")
    assert not has_letters(name)
    text = f"{name} 0.93"
    kept = " ".join(word for word in text.split() if word.isascii())
    pixels, plain_pixels = (draw(plain(), [[100, 200, 300, 400]], [3], [shown]) for shown in (text, f"#3 {kept}"))
    assert np.array_equal(pixels[:500], plain_pixels)
    lost = " ".join(word for word in name.split() if not word.isascii())
    expected = [f"#3 = {json.dumps(lost)[1:-1]}", "No font here has these letters; install one."]
    strip = pixels[500:]
    size = max(11, round(600 / 55))
    top = size // 2
    for line in expected:
        own = 255 - np.asarray(draw_letters(line, size, is_tight=False))
        part = strip[top : top + own.shape[0], size // 2 :][:, : own.shape[1], 0]
        assert np.array_equal(part, own[:, : part.shape[1]])
        top += own.shape[0]
    for drawing in (draw_lines(plain(), [3], [text]), draw_targets(plain(), BOX, [3], [text], BOX[:0], [])):
        assert drawing.height > 500


def test_a_long_legend_is_cut(fonts: Path) -> None:
    names = [chr(0x4E00 + label) for label in range(30)]
    confusion = np.eye(30, dtype=np.int64)
    less, more = draw_confusion(confusion[:9, :9], names[:9]), draw_confusion(confusion[:8, :8], names[:8])
    heights = [drawing.height - draw_confusion(np.eye(k), ["#1"] * k).height for drawing, k in ((less, 9), (more, 8))]
    assert heights[0] > heights[1] > 100
    whole = draw_confusion(confusion, names)
    assert whole.height - draw_confusion(confusion, [f"#{label}" for label in range(30)]).height < 250


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_font_that_has_the_letters_is_found(name: str, fonts: Path) -> None:
    for word in name.split():  # two scripts may need two fonts
        make_font(fonts / f"{ord(word[0])}.ttf", "".join(set(word) - {"\u200d"}))
    assert has_letters(f"{name} 0.93")
    square = letters(next(character for character in name if not character.isascii()))
    assert square.shape == (28, 28)  # 0.7 of 40
    assert square.min() > 200
    assert draw_boxes(plain(), BOX, [3], [f"{name} 0.93"]).height == 500
    # Latin letters and digits beside it are those of the usual font.
    text = f"{name} 0.93"
    end = letters(text[max(place for place, one in enumerate(text) if not one.isascii()) + 1 :])
    both = letters(text)[:, -end.shape[1] :]
    top = int(np.flatnonzero(both.any(axis=1))[0])
    assert np.array_equal(both[top : top + len(end)], end)


def test_the_plain_font_comes_first(fonts: Path) -> None:
    for style in ("A-Bold", "B-Serif", "C-Regular", "D-Italic"):
        make_font(fonts / f"{style}.ttf", "猫")
    assert find_font(frozenset("猫")) == (str(fonts / "C-Regular.ttf"), 0)


def test_fontconfig_is_asked_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_font(tmp_path / "x.ttf", "猫")
    program = tmp_path / "fc-list"
    program.write_text(
        f'#!/bin/sh\nprintf "%s\\t0\\n" "{tmp_path}/gone.ttf" "{tmp_path}/x.ttf"; echo "$@" > {tmp_path}/asked\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(detector.reports.fonts, "_font_folders", lambda: [])
    find_font.cache_clear()
    assert find_font(frozenset("猫")) == (f"{tmp_path}/x.ttf", 0)
    assert "charset=732b" in (tmp_path / "asked").read_text()
    program.write_text("#!/bin/sh\nexit 1\n")
    find_font.cache_clear()
    assert find_font(frozenset("猫")) is None
    find_font.cache_clear()
