"""Self-contained HTML pages: sections of numbers, tables, charts and images in one file that opens from disk.

A page makes no network requests (its own policy forbids them), embeds its images, follows the reader's light or dark
scheme, and fits a phone as well as a wide screen. Tables sort and images enlarge on a click.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from detector.system.atomic import atomic_write, make_folder

if TYPE_CHECKING:  # imported where a page is written; inference does not need them
    from jinja2 import Environment
    from markupsafe import Markup
    from matplotlib.figure import Figure

# Characters of all images of a page in base64, which keeps a page under 8 MB.
IMAGES_BUDGET = 6_000_000

Tone = Literal["", "good", "warning", "error"]
Value = str | int | float | None  # None is shown as a dash


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    tone: Tone = ""
    kind: str = field(default="text", init=False)


@dataclass(frozen=True)
class Numbers:
    """Headline figures: label, value, and optionally a note under it."""

    items: Sequence[tuple[str, Value] | tuple[str, Value, str]]
    kind: str = field(default="numbers", init=False)


@dataclass(frozen=True)
class Table:
    """Named columns and rows of values; a click sorts, numbers as numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]
    caption: str = ""
    digits: int = 3  # of floats
    tones: Sequence[Tone] = ()  # of the rows; all plain if empty
    is_wide: bool = True  # over the whole page, or beside other blocks
    kind: str = field(default="table", init=False)

    @cached_property
    def is_number(self) -> list[bool]:
        """Whether each column holds only numbers and None."""
        return [
            all(value is None or isinstance(value, int | float) for value in column)
            for column in zip(*self.rows, strict=True)
        ] or [False] * len(self.columns)

    def as_text(self) -> str:
        """The table for a terminal."""
        lines = [list(self.columns), *([_shown(value, self.digits) for value in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = [str.rjust if is_number else str.ljust for is_number in self.is_number]
        return "\n".join(
            "  ".join(align(cell, width) for align, cell, width in zip(aligned, line, widths, strict=True)).rstrip()
            for line in lines
        )


@dataclass(frozen=True)
class Chart:
    """A figure as SVG (:func:`chart`)."""

    svg: Markup
    caption: str
    is_wide: bool = False  # over the whole page
    kind: str = field(default="chart", init=False)


@dataclass(frozen=True)
class PageImage:
    """One image of a gallery; ``data`` is its ``data:`` URL (:func:`page_image`)."""

    data: str
    caption: str
    width: int
    height: int


@dataclass(frozen=True)
class Gallery:
    """Images side by side; a click enlarges one."""

    images: Sequence[PageImage]
    column: int = 240  # minimum width of an image on the page, in pixels
    kind: str = field(default="gallery", init=False)


Block = Text | Numbers | Table | Chart | Gallery


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


def write_page(path: Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write the page atomically; raises :class:`detector.errors.StorageError` where it cannot be written."""
    text = render("page.html", title=title, lead=lead, sections=sections)
    make_folder(path.parent)
    with atomic_write(path) as file:
        file.write(text)


def render(template: str, **values: Any) -> str:
    """A template of this folder as text."""
    return _environment().get_template(template).render(values)


def page_image(image: Image.Image, caption: str, long_side: int = 800, quality: int = 80) -> PageImage:
    """``image`` as an embedded JPEG with a long side of at most ``long_side`` pixels."""
    image = image.convert("RGB")
    image.thumbnail((long_side, long_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return PageImage(f"data:image/jpeg;base64,{data}", caption, *image.size)


def shortened(name: str, length: int = 18) -> str:
    """``name`` cut to ``length`` characters, for the labels of a chart."""
    return name if len(name) <= length else f"{name[: length - 1]}…"


def within_budget(images: Iterable[PageImage], budget: int = IMAGES_BUDGET) -> list[PageImage]:
    """The first images that fit the budget together; the iterator stops there."""
    kept: list[PageImage] = []
    for one in images:
        budget -= len(one.data)
        if budget < 0:
            break
        kept.append(one)
    return kept


# Colours of figures, and the style sheet's variables that replace them in either scheme.
INK, FAINT = "#010203", "#040506"
COLORS = ("#010101", "#020202", "#030303", "#040404", "#050505", "#060606")  # of a figure's lines and bars, in order
_VARIABLES = {INK: "var(--ink)", FAINT: "var(--line)"} | {
    color: f"var(--chart-{place})" for place, color in enumerate(COLORS, start=1)
}


def new_figure(width: float = 4.0, height: float = 3.0) -> Figure:
    """An empty matplotlib figure, in inches of 96 pixels, whose default colours follow the page's scheme."""
    import matplotlib
    from cycler import cycler
    from matplotlib.figure import Figure

    matplotlib.rcParams.update(
        {
            "svg.fonttype": "none",  # letters stay text, in the page's font
            "svg.hashsalt": "detector",  # the same page from the same data
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.prop_cycle": cycler(color=COLORS),
            "grid.color": FAINT,
            "legend.frameon": False,
            **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
            **dict.fromkeys(("axes.edgecolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
        }
    )
    return Figure(figsize=(width, height), layout="constrained")


def chart(figure: Figure, caption: str, is_wide: bool = False) -> Chart:
    """A figure of :func:`new_figure` as SVG; ``caption`` is also its label for screen readers."""
    from markupsafe import Markup

    buffer = io.StringIO()
    with warnings.catch_warnings():
        # Letters that matplotlib's font lacks stay text, and the browser has fonts for them.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    return Chart(Markup(svg), caption, is_wide)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("detector.reports.pages", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = _shown
    return environment


def _shown(value: Value, digits: int = 3) -> str:
    """A value as text."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else value
