"""Text in any script as small images, drawn with an installed font that has its letters; never as empty boxes."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
_Face = tuple[str, int]  # a file, and the number of the font in it


def has_letters(text: str) -> bool:
    """Whether ``text`` can be drawn: each word by the default font, and one of the system for what it lacks."""
    return all(not (missing := _missing(word)) or find_font(missing) for word in _in_one_line(text).split())


def draw_letters(text: str, size: int, is_tight: bool = True) -> Image.Image:
    """``text`` in white on black, mode L; cropped to its letters or, unless ``is_tight``, with the height of a line."""
    faces: list[tuple[str, _Face | None]] = []
    for word in re.split("( )", _in_one_line(text)):
        missing = _missing(word)
        other = find_font(missing) if missing else None
        faces += [(one, other if one in missing else None) for one in word if not _is_invisible(one)]
    # Neighbours in one font are drawn together, for scripts that join or stack their letters.
    runs = [
        ("".join(one for one, _ in group), _load(face, size)) for face, group in groupby(faces, lambda pair: pair[1])
    ]
    metrics = [font.getmetrics() for font in (_load(None, size), *(font for _, font in runs))]
    ascent, descent = (max(sides) for sides in zip(*metrics, strict=True))
    width = sum(round(font.getlength(part)) for part, font in runs)
    # Letters may extend beyond their metrics: a margin of half their size, cropped again.
    margin = size // 2 + 1
    canvas = Image.new("L", (width + 2 * margin, ascent + descent + 2 * margin))
    pen, left = ImageDraw.Draw(canvas), margin
    for part, font in runs:
        pen.text((left, margin + ascent), part, 255, font, anchor="ls")
        left += round(font.getlength(part))
    box = canvas.getbbox() or (margin, margin, margin + 1, margin + 1)
    return canvas.crop(box if is_tight else (box[0], margin, box[2], canvas.height - margin))


def _in_one_line(text: str) -> str:
    return "".join(" " if unicodedata.category(character) == "Cc" else character for character in text)


def _is_invisible(character: str) -> bool:
    """Joiners, direction marks and variant selectors for which the default font has no glyph."""
    is_format = unicodedata.category(character) == "Cf" or 0xFE00 <= ord(character) <= 0xFE0F
    return is_format and ord(character) not in _default_letters()


def _missing(text: str) -> frozenset[str]:
    """Characters that the default font lacks."""
    if text.isascii():
        return frozenset()
    known = _default_letters()
    return frozenset(one for one in text if ord(one) not in known and not _is_invisible(one))


@lru_cache(maxsize=1)
def _default_letters() -> frozenset[int]:
    font = _load(None, 12)
    return _letters_of(io.BytesIO(font.path.getvalue()) if isinstance(font.path, io.BytesIO) else font.path, 0)


@lru_cache(maxsize=64)
def _load(face: _Face | None, size: int) -> ImageFont.FreeTypeFont:
    """A font; None is the default, from matplotlib: Latin, Greek, Cyrillic, Arabic, Hebrew and more."""
    if face is not None:
        return ImageFont.truetype(face[0], size, face[1])
    package = importlib.util.find_spec("matplotlib")  # not imported, which is slow
    for folder in package.submodule_search_locations or [] if package else []:
        file = Path(folder) / "mpl-data/fonts/ttf/DejaVuSans.ttf"
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)  # type: ignore[return-value]


@lru_cache(maxsize=1024)
def find_font(characters: frozenset[str]) -> _Face | None:
    """A font of this system that has all of ``characters``; None if there is none."""
    for file, index in sorted(_candidates(characters), key=_rank):
        try:
            if {ord(character) for character in characters} <= _letters_of(file, index):
                ImageFont.truetype(file, 12, index)
                return file, index
        except Exception:  # damaged and odd fonts raise almost anything
            continue
    return None


def _rank(face: _Face) -> tuple[bool, bool, str, int]:
    """Plain fonts first, sans-serif before others."""
    name = Path(face[0]).stem.lower()
    is_styled = any(style in name for style in ("bold", "black", "italic", "oblique", "light", "thin", "condensed"))
    return is_styled, "serif" in name or "mono" in name, face[0], face[1]


def _candidates(characters: frozenset[str]) -> list[_Face]:
    """Fonts that may have ``characters``: those that fontconfig lists, if installed; else all fonts."""
    if program := shutil.which("fc-list"):
        codes = " ".join(f"{ord(character):x}" for character in sorted(characters))
        command = [program, "--format", "%{file}\t%{index}\n", f":scalable=true:color=false:charset={codes}"]
        try:
            lines = subprocess.run(command, capture_output=True, timeout=20, check=True).stdout
            rows = [line.split("\t") for line in os.fsdecode(lines).splitlines()]
            return [(file, int(index)) for file, index in rows if file.lower().endswith(_SUFFIXES)]
        except (OSError, ValueError, subprocess.SubprocessError):
            pass
    return [face for folder in _font_folders() for face in _faces_in(folder)]


def _font_folders() -> list[Path]:
    home = Path.home()
    if sys.platform == "win32":
        return [Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts", home / "AppData/Local/Microsoft/Windows/Fonts"]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    data_folders = [os.environ.get("XDG_DATA_HOME") or home / ".local/share"]
    data_folders += (os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share").split(":")
    return [*(Path(folder) / "fonts" for folder in data_folders), home / ".fonts"]


def _faces_in(folder: Path) -> Iterator[_Face]:
    from fontTools.ttLib import TTCollection

    for root, _, names in os.walk(folder):
        for name in names:
            file = os.path.join(root, name)  # noqa: PTH118 (a Path of each of thousands is slow)
            if not name.lower().endswith(_SUFFIXES):
                continue
            try:
                is_collection = name.lower().endswith((".ttc", ".otc"))
                count = len(TTCollection(file, lazy=True).fonts) if is_collection else 1
            except Exception:  # damaged files raise almost anything
                continue
            yield from ((file, index) for index in range(count))


@lru_cache(maxsize=256)
def _letters_of(file: str | io.BytesIO, index: int) -> frozenset[int]:
    """The characters that a font has glyphs for."""
    from fontTools.ttLib import TTFont  # late: rarely needed

    with TTFont(file, fontNumber=index & 0xFFFF, lazy=True) as font:  # the higher bits name a style of a variable font
        return frozenset(font.getBestCmap() or ())
