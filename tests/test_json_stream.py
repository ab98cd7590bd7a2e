"""JSON read element by element: the same values, faults and positions as the standard library's for the whole."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.errors import DataError
from detector.system import json_stream
from detector.system.json_stream import open_json, show, show_text

TEXT = """ [
    {"id": -1.5e-07, "名": "é 猫 \\ud83d\\ude00 \\" ] }", "box": [1, 2.25, 1E+3, -0]},
    [], {}, [[[{}]]], true, false, null, NaN, -Infinity, 123456789012345678901234567890,\t"", "\\u00e9"
  ,{"a": {"b": [{"c": "d"}, 0.1]}}]
"""
# Replacements for a piece of the text: JSON's own characters, and ones like them.
PIECES = [
    "",
    " ",
    "\n",
    ",",
    ":",
    "[",
    "]",
    "{",
    "}",
    '"',
    "\\",
    "\\u12",
    "0",
    "-",
    "1e",
    "tru",
    "NaN",
    "\x01",
    "é",
    "]]",
]


def walk(path: Path) -> list[Any]:
    with open_json(path) as stream:
        values = list(stream.elements())
        stream.finish()
    return values


def same(text: str, path: Path) -> None:
    """Both ways give the same values, or the same message with the same place."""
    path.write_text(text, encoding="utf-8", newline="")
    try:
        expected = json.loads(text)
    except json.JSONDecodeError as error:
        with pytest.raises(DataError) as caught:
            walk(path)
        expected = f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno}); correct it, or restore"
        assert str(caught.value).startswith(expected if text else f"{path}: is empty; restore the file")
    else:
        assert repr(walk(path)) == repr(expected)  # as text: a NaN is unequal to itself


@pytest.mark.parametrize("block", [1, 2, 7, 64, 1 << 20])
def test_any_block_gives_the_same(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "BLOCK", block)
    same(TEXT, tmp_path / "x.json")
    same("[]", tmp_path / "x.json")
    same("[" + "9" * 100 + ",1]", tmp_path / "x.json")


@settings(max_examples=500)
@given(data=st.data(), block=st.sampled_from([3, 40, 1 << 20]))
def test_mistakes_are_told_as_the_standard_library_does(
    data: st.DataObject, block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = TEXT.strip()
    for _ in range(data.draw(st.integers(1, 2))):
        start = data.draw(st.integers(1, len(text)))  # it stays a list
        end = data.draw(st.integers(start, min(start + 3, len(text))))
        text = text[:start] + data.draw(st.sampled_from(PIECES)) + text[end:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "BLOCK", block)
        same(text, tmp_path_factory.getbasetemp() / "x.json")


def test_every_truncation_is_told(tmp_path: Path) -> None:
    for end in range(2, len(TEXT.strip())):
        same(TEXT.strip()[:end], tmp_path / "x.json")


def test_lines_and_columns_count_over_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "BLOCK", 4)
    path = tmp_path / "x.json"
    path.write_text('[{"line": 1},\n\n {"line": 3}, {"line": 3},\n{"line":\n 4}]')
    with open_json(path) as stream:
        assert [(value["line"], stream.line) for value in stream.elements()] == [(1, 1), (3, 3), (3, 3), (4, 4)]


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[1]", encoding="utf-8-sig")
    assert walk(path) == [1]


def test_an_element_without_end_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "LONGEST", 1 << 20)
    path = tmp_path / "x.json"
    for element in ('"' + "x" * (4 << 20), "[" + "0," * (2 << 20), "9" * (4 << 20)):
        path.write_text("[1,\n" + element)
        with pytest.raises(DataError, match=r"x\.json:2: .*(goes on for more than 1 million characters|4300 digits)"):
            walk(path)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    rows = ",".join(json.dumps({"id": row, "segmentation": [[float(row)] * 200]}) for row in range(2500))
    path.write_text(f'{{"else": [{rows}], "rows": [{rows}]}}')
    assert path.stat().st_size > 5 * json_stream.BLOCK
    tracemalloc.start()
    try:
        with open_json(path) as stream:
            for key in stream.members():
                if key == "rows":
                    assert sum(row["id"] for row in stream.elements()) == 2500 * 2499 // 2
                else:
                    stream.skip()
        # Held are a block's bytes, its text, and the text that it is joined with: 3 or 4 of 1 MiB.
        assert tracemalloc.get_traced_memory()[1] < 4.5 * json_stream.BLOCK
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ([1, 2.5, "a"], "[1, 2.5, 'a']"),
        ([0] * 1000, "[0, 0, 0, 0, 0, 0, 0, 0, ...]"),
        ("x" * 1000, re.compile("'x+\\.\\.\\.x+'")),
        (10**400, re.compile(r"10+\.\.\.0+")),
        ({"a\nb": None}, r"{'a\nb': null}"),
    ],
)
def test_values_are_shown_in_a_short_line(value: Any, shown: str | re.Pattern) -> None:
    text = show(value)
    assert shown.fullmatch(text) if isinstance(shown, re.Pattern) else text == shown
    assert len(text) <= 120


def test_names_are_shown_as_they_are_if_they_can_be() -> None:
    assert show_text("Ordner/ö 猫.png") == "Ordner/ö 猫.png"
    assert show_text("a\nb") == r"'a\nb'"
    assert len(show_text("x" * 5000)) <= 120
