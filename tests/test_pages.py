"""HTML pages: what they hold, and how they behave in a real browser."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detector.errors import ConfigError
from detector.reports.pages import (
    COLORS,
    Gallery,
    Numbers,
    Section,
    Table,
    Text,
    chart,
    new_figure,
    page_image,
    write_page,
)

SECTIONS = ("Numbers", "Classes", "Images")


@pytest.fixture
def page_file(tmp_path: Path) -> Path:
    figure = new_figure()
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], label="one")
    axes.plot([0, 1], [1, 0], label="two")
    rows = [["cat", 0.25, 1200], ["dog <b>", None, 7], ["aardvark", 0.75, 30]]
    noise = np.random.default_rng(0).integers(0, 256, (2, 60, 90, 3), dtype=np.uint8)
    images = [page_image(Image.fromarray(pixels), f"image {place}") for place, pixels in enumerate(noise)]
    path = tmp_path / "page.html"
    blocks = [
        [Numbers([("AP", 0.5), ("images", 5000, "of val")]), Text("<script>alert(1)</script>"), chart(figure, "lines")],
        [Table(["class", "AP", "objects"], rows, tones=["", "error", ""])],
        [Gallery(images)],
    ]
    write_page(path, "A & B", "lead", [Section(*section) for section in zip(SECTIONS, blocks, strict=True)])
    return path


def test_a_page_holds_all_it_needs(page_file: Path) -> None:
    text = page_file.read_text(encoding="utf-8")
    links = re.findall(r"""(?:src|href)=["']([^"']*)""", text)
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_text_is_escaped_and_numbers_are_formatted(page_file: Path) -> None:
    text = page_file.read_text(encoding="utf-8")
    assert "<title>A &amp; B</title>" in text
    assert "&lt;script&gt;alert(1)" in text
    assert "dog &lt;b&gt;" in text
    assert "<dd>5,000<small>of val</small></dd>" in text
    assert 'data-value="1200">1,200</td>' in text
    assert '<td class="number">–</td>' in text


def test_a_large_table_is_scanned_once(tmp_path: Path) -> None:
    class Rows(list):
        scans = 0

        def __iter__(self) -> Iterator[Any]:
            Rows.scans += 1
            return super().__iter__()

    table = Table(["class", "AP"], Rows([[f"class {label}", 0.5] for label in range(50)]))
    write_page(tmp_path / "page.html", "", "", [Section("Classes", [table])])
    assert Rows.scans == 2  # for the columns with numbers, and to write the rows; once per cell is quadratic


def test_a_chart_takes_its_colors_from_the_page(page_file: Path) -> None:
    text = page_file.read_text(encoding="utf-8")
    assert "var(--chart-1)" in text
    assert "var(--chart-2)" in text
    assert not any(color in text for color in COLORS)


def test_the_same_content_is_the_same_page() -> None:
    def draw() -> str:
        figure = new_figure()
        figure.add_subplot().plot([0, 1], [0, 1])
        return chart(figure, "line").svg

    assert draw() == draw()


def test_a_page_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file: is a file; choose another name"):
        write_page(tmp_path / "file" / "page.html", "", "", [])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_a_page_fits_its_window_and_follows_the_scheme(
    page_file: Path, open_page: Callable[..., Any], width: int, scheme: str
) -> None:
    page = open_page(page_file, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")
    assert page.locator("h2").all_inner_texts() == list(SECTIONS)


def test_a_click_sorts_a_table(page_file: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(page_file)

    def classes() -> list[str]:
        return page.locator("tbody td:first-child").all_inner_texts()

    assert classes() == ["cat", "dog <b>", "aardvark"]
    page.get_by_role("button", name="class").click()
    assert classes() == ["aardvark", "cat", "dog <b>"]
    page.get_by_role("button", name="objects").click()
    assert classes() == ["cat", "aardvark", "dog <b>"]  # 1,200, 30, 7: as numbers, not as text
    page.get_by_role("button", name="AP").click()
    assert classes() == ["aardvark", "cat", "dog <b>"]
    page.get_by_role("button", name="AP").click()
    assert classes() == ["cat", "aardvark", "dog <b>"]  # rows without a number stay last
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"


def test_a_click_enlarges_an_image(page_file: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(page_file)
    dialog = page.locator("dialog")
    assert not dialog.is_visible()
    page.locator(".enlarge").nth(1).click()
    assert dialog.locator("p").inner_text() == "image 1"
    assert dialog.locator("img").bounding_box()["width"] >= 600
    page.keyboard.press("ArrowRight")
    assert dialog.locator("p").inner_text() == "image 0"
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_letters_of_any_script_stay_text_for_the_browser() -> None:
    """Letters that matplotlib's font lacks give no warning: the browser has fonts for them."""
    figure = new_figure()
    figure.add_subplot().barh(["红细胞", "cat"], [1, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = chart(figure, "x").svg
    assert ">红细胞</text>" in svg
    assert "sans-serif; text-anchor" in svg
