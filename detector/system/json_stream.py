"""JSON files of any size and origin, read element by element.

The standard library's scanner parses each element; only the text around it is held, so memory does not grow with the
file. Any fault in a file ends in a :class:`detector.errors.DataError` that names the line.
"""

from __future__ import annotations

import codecs
import json
import re
import reprlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from detector.errors import DataError, unreadable

BLOCK = 1 << 20  # bytes read at a time
LONGEST = 1 << 24  # characters of one element: far more than any annotation, and an element without end stops there
# Text that is cut off can be misread up to this many characters before the cut: "-Infinit", "1.5e-", "\ud83d\ude0".
MARGIN = 32

COMPRESSED = {b"\x1f\x8b": "gzip", b"PK": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}

_white = re.compile(r"[ \t\n\r]*").match


class _DuplicateKeyError(Exception):
    pass


@contextmanager
def open_json(path: Path) -> Iterator[JsonStream]:
    """The file as a :class:`JsonStream` at its beginning; raises if it is compressed or not UTF-8."""
    try:
        file = path.open("rb")
        head = file.peek(8)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        raise _unreadable(path, error) from None
    with file:
        if not head:
            raise DataError(f"{path}: is empty; restore the file")
        for magic, name in COMPRESSED.items():
            if head.startswith(magic):
                raise DataError(f"{path}: is a {name} file, not JSON; unpack it")
        if (encoding := json.detect_encoding(head[:4])) not in ("utf-8", "utf-8-sig"):
            raise DataError(f"{path}: is text in {encoding.upper()}; save the file as UTF-8")
        yield JsonStream(path, file)


class JsonStream:
    """A JSON file and the position in it that was read to.

    ``members`` walks an object and ``elements`` a list; the value of each key must be read, or passed by ``skip``.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.text, self.place = "", 0  # the part of the file in memory, and how far it was read
        self.start = 0  # where in the text the last value began
        self.lines = self.columns = 0  # before the text: line breaks, and characters since the last one
        self.at_end = False
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.scan = json.JSONDecoder(object_pairs_hook=_unique).scan_once  # type: ignore[attr-defined]

    def peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            character = self.text[self.place : self.place + 1]
            if character and character not in " \t\n\r":
                return character
            self.place = _white(self.text, self.place).end()  # type: ignore[union-attr]
            if self.place == len(self.text):
                if self.at_end:
                    return ""
                self._read()

    def value(self) -> Any:
        """The next value, whole."""
        if not self.peek():
            raise self.error("Expecting value")
        while True:
            try:
                value, end = self.scan(self.text, self.place)
            except StopIteration as stop:
                fault, at, is_cut = "Expecting value", stop.value, True
            except json.JSONDecodeError as error:
                fault, at, is_cut = error.msg, error.pos, error.msg.startswith("Unterminated string")
            except _DuplicateKeyError as error:
                raise self.error(f"key {error} is duplicated in an object") from None
            except RecursionError:
                raise self.error("lists and objects are nested too deeply") from None
            except ValueError as error:  # thousands of digits
                raise self.error(f"{error}".split(";")[0]) from None
            else:
                # A number may continue beyond the text.
                if self.at_end or not isinstance(value, int | float) or end + MARGIN < len(self.text):
                    self.start, self.place = self.place, end
                    return value
                fault, at, is_cut = "", end, True
            if self.at_end or not (is_cut or at + MARGIN >= len(self.text)):
                raise self.error(fault, at)
            if len(self.text) - self.place > LONGEST:
                raise self.error(f"one element goes on for more than {LONGEST >> 20} million characters")
            self._read()

    def elements(self) -> Iterator[Any]:
        """The elements of the list that follows."""
        self._expect("[")
        if self._passes("]"):
            return
        while True:
            yield self.value()
            if self._ends("]"):
                return

    def members(self) -> Iterator[str]:
        """The keys of the object that follows."""
        self._expect("{")
        if self._passes("}"):
            return
        while True:
            if self.peek() != '"':
                raise self.error("Expecting property name enclosed in double quotes")
            key = self.value()
            self._expect(":", "Expecting ':' delimiter")
            yield key
            if self._ends("}"):
                return

    def skip(self) -> None:
        """Pass the next value."""
        opening = self.peek()
        if opening == "[":
            for _ in self.elements():
                pass
        elif opening == "{":
            for _ in self.members():
                self.value()
        else:
            self.value()

    def finish(self) -> None:
        """Raises if anything follows what was read."""
        if self.peek():
            raise self.error("Extra data")

    @property
    def line(self) -> int:
        """The line in which the last value began; valid until anything else is read."""
        return self.lines + self.text.count("\n", 0, self.start) + 1

    def error(self, fault: str, at: int | None = None) -> DataError:
        """The error of invalid JSON at a position in the text, by default where it was read to."""
        at = self.place if at is None else at
        line = self.lines + self.text.count("\n", 0, at) + 1
        column = at - self.text.rfind("\n", 0, at) + (self.columns if line == self.lines + 1 else 0)
        remedy = "" if ";" in fault else "; correct it, or restore the file"
        return DataError(f"{self.path}:{line}: not valid JSON: {fault} (column {column}){remedy}")

    def _passes(self, character: str) -> bool:
        if is_next := self.peek() == character:
            self.place += 1
        return is_next

    def _ends(self, closing: str) -> bool:
        """Pass what follows an element: ``closing``, or a comma. Whether it was ``closing``."""
        mark = self.peek()
        if mark not in (closing, ","):
            raise self.error("Expecting ',' delimiter")
        self.place += 1
        return mark == closing

    def _expect(self, character: str, fault: str = "Expecting value") -> None:
        if not self._passes(character):
            raise self.error(fault)

    def _read(self) -> None:
        """Read more text, and drop the part that was parsed."""
        dropped, self.text = self.text[: self.place], self.text[self.place :]
        breaks = dropped.count("\n")
        self.lines += breaks
        self.columns = len(dropped) - dropped.rfind("\n") - 1 + (0 if breaks else self.columns)
        self.place = 0
        try:
            # More at a time where one element is long, or the time to join its parts would be quadratic in its length.
            data = self.file.read(max(BLOCK, len(self.text)))
        except OSError as error:
            raise _unreadable(self.path, error) from None
        self.at_end = not data
        try:
            self.text += self.decoder.decode(data, final=self.at_end)
        except UnicodeDecodeError as error:
            self.text += error.object[: error.start].decode("utf-8")
            byte = error.object[error.start]
            raise self.error(f"byte 0x{byte:02x} is not UTF-8; save the file as UTF-8", len(self.text)) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise _DuplicateKeyError(show(key))
    return members


def _unreadable(path: Path, error: OSError | ValueError) -> DataError:
    return DataError(f"{show_text(str(path))}: {unreadable(path, error, '*.json')}")


# --- values -----------------------------------------------------------------------------------------------------------


def has_surrogates(text: str) -> bool:
    """Whether a text has halves of surrogate pairs, which UTF-8 does not have."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def is_integer(value: Any) -> bool:
    """Whether a JSON value is an integer that a tensor can hold."""
    return type(value) is int and -(2**63) <= value < 2**63  # a bool is an int to isinstance


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number, with room to calculate."""
    return (type(value) is float or type(value) is int) and -1e300 < value < 1e300


_short = reprlib.Repr()
_short.maxlist = _short.maxdict = 8
_short.maxstring = _short.maxlong = _short.maxother = 120
# As JSON and YAML write them.
_short.repr_NoneType = lambda value, level: "null"  # type: ignore[attr-defined]
_short.repr_bool = lambda value, level: str(value).lower()  # type: ignore[attr-defined]


def show(value: Any) -> str:
    """A value as Python writes it, in one short line."""
    return _short.repr(value)


def show_text(text: str) -> str:
    """A name as it is, if it fits into one line of a message."""
    return text if text.isprintable() and len(text) <= 200 else show(text)
