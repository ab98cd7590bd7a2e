"""Annotations as columns, with the faults in them: what every reader of boxes returns.

A row is an object only until its numbers are in the columns, so unused keys and long segmentations cost no memory. For
training a reader raises at the first fault, for the doctor it collects them all, so both accept the same files.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detector.structures import Category, Id
from detector.system.json_stream import has_surrogates, show, show_text

# An id's code is the integer that it is or plainly spells. Other texts, and integers beyond 64 bits, have codes below
# all integers.
NO_ID, BAD_ID, FIRST_TEXT, FIRST_INTEGER = -(2**63), -(2**63) + 1, -(2**63) + 2, -(2**62)
_spells_integer = re.compile(r"\s*(0|-?[1-9][0-9]{0,99})(?:\.0+)?\s*").fullmatch
DANGLING, MALFORMED = -1, -2  # indices that lead nowhere: an id that is not listed, and a field that is not an id

WITHOUT_SIZE = "image{s} without width and height"  # a note that the doctor looks into

KEPT = 8  # faults of each check that are kept in words; of the others, only the row is


def show_id(value: Any) -> str:
    """An id in a message."""
    return show_text(value) if isinstance(value, str) and value else show(value)


def show_category(category: Category) -> str:
    return f"{show_id(category.id)} {show_text(category.name)}"


def id_key(value: Id) -> Id:
    """The same for all ways of writing one id: 1 for 1, "1", " 1" and "1.0"."""
    return int(spelled[1]) if isinstance(value, str) and (spelled := _spells_integer(value)) else value


def sort_key(value: Id) -> tuple[bool, Id]:
    """Orders ids: integers, then texts."""
    key = id_key(value)
    return isinstance(key, str), key


def class_differences(
    own: Sequence[Category], known: Sequence[Category], is_used: Sequence[bool] | np.ndarray
) -> list[tuple[Category, Category | None]]:
    """Each class whose name is not in ``known``, and the class there with its id.

    Ids, the order, further classes of ``known``, and unused classes unlike all of ``known`` make no difference.
    """
    by_key = {id_key(category.id): category for category in known}
    by_name = {category.name: category for category in known}
    pairs = [(category, by_name.get(category.name) or by_key.get(id_key(category.id))) for category in own]
    return [
        (category, other)
        for (category, other), used in zip(pairs, is_used, strict=True)
        if (used if other is None else other.name != category.name)
    ]


@dataclass(frozen=True)
class Texts:
    """Many strings in one array of bytes; NumPy arrays, or tensors that worker processes share."""

    data: Any  # uint8, all strings in a row
    ends: Any  # [N] int64

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        parts = [text.encode() for text in texts]
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        return cls(np.frombuffer(bytearray(b"".join(parts)), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = int(self.ends[index - 1]) if index else 0
        return bytes(memoryview(np.asarray(self.data[start : int(self.ends[index])]))).decode()

    def map(self, convert: Callable[[Any], Any]) -> Texts:
        return Texts(convert(self.data), convert(self.ends))


@dataclass(frozen=True)
class Ids:
    """A column of ids as they were given; NumPy arrays, or tensors that worker processes share."""

    codes: Any  # [N] int64
    is_text: Any  # [N] bool
    texts: Texts  # [T] of the codes below all integers
    text_keys: Any  # [T] int64, the code of the same id in its plainest spelling; most often its own

    @classmethod
    def counting(cls, count: int, first: int = 0) -> Ids:
        """``first`` and the integers after it."""
        return cls(
            np.arange(first, first + count), np.zeros(count, dtype=bool), Texts.of([]), np.empty(0, dtype=np.int64)
        )

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> Id | None:
        """The id; None where there is no valid one."""
        code = int(self.codes[index])
        if code < FIRST_TEXT:
            return None
        text = self.texts[code - FIRST_TEXT] if code < FIRST_INTEGER else str(code)
        return text if self.is_text[index] else int(text)

    @property
    def keys(self) -> np.ndarray:
        """Codes that are equal for all ways of writing one id, [N] int64."""
        return keys_of(np.asarray(self.codes), np.asarray(self.text_keys))

    def tolist(self) -> list[Id | None]:
        return [self[index] for index in range(len(self))]

    def __iter__(self) -> Any:
        return iter(self.tolist())

    def select(self, rows: Any) -> Ids:
        return Ids(self.codes[rows], self.is_text[rows], self.texts, self.text_keys)

    def map(self, convert: Callable[[Any], Any]) -> Ids:
        return Ids(convert(self.codes), convert(self.is_text), self.texts.map(convert), convert(self.text_keys))


def keys_of(codes: np.ndarray, text_keys: np.ndarray) -> np.ndarray:
    """The keys of codes; ``text_keys`` [T] are the keys of texts."""
    if not len(text_keys):
        return codes
    is_listed = (codes >= FIRST_TEXT) & (codes < FIRST_INTEGER)
    return np.where(is_listed, text_keys[np.where(is_listed, codes - FIRST_TEXT, 0)], codes)


@dataclass
class Faults:
    """All rows that fail one check."""

    rows: array[int] = field(default_factory=lambda: array("q"))
    words: list[str] = field(default_factory=list)  # of the first ones

    def add(self, row: int, words: str) -> None:
        if not self.rows or self.rows[-1] != row:
            self.rows.append(row)
            if len(self.rows) <= KEPT:
                self.words.append(words)
        elif len(self.rows) <= KEPT:
            self.words[-1] += f", {words}"


@dataclass
class Rows:
    """The content of a file, in its order: I images, M annotations. Rows at fault have values that no valid row has."""

    path: Path
    categories: list[Category]  # those with an id and a name
    image_ids: Ids  # [I]
    heights: np.ndarray  # [I] int64; 0: not given
    widths: np.ndarray  # [I] int64
    names: Texts  # [I] empty: invalid or missing
    annotation_ids: Ids  # [M]
    of_image: np.ndarray  # [M] keys of ids
    of_category: np.ndarray  # [M] keys of ids
    image: np.ndarray  # [M] int64 index, DANGLING or MALFORMED
    label: np.ndarray  # [M] int64 index of the category, DANGLING or MALFORMED
    boxes_xywh: np.ndarray  # [M, 4] float64; NaN: invalid or missing
    areas: np.ndarray  # [M] float64; the box's where it is missing
    is_crowd: np.ndarray  # [M] bool: iscrowd or ignore
    notes: Counter[str]  # deviations from COCO that were read (in words), and how often
    skipped: list[str]  # classes without annotations, in words
    faults: dict[str, Faults]  # by the doctor's name of the check
    text_codes: dict[str, int]
    root: Path | None = None  # the folder that names are relative to; None: not said by the file
    form: str = ""  # how the file was read, for the notice
    parents: set[str] = field(default_factory=set)  # names of supercategories
    has_ids: bool = True  # whether the categories' ids are the file's own; else only names tell classes apart

    @property
    def notice(self) -> str:
        """One line on what was read although it is not strict, and on skipped classes; empty if there is nothing."""
        parts = (("read", counts_in_words(self.notes)), ("skipped classes without annotations:", self.skipped))
        told = [self.form, *(f"{what} {', '.join(own)}" for what, own in parts if own)]
        return f"{self.path}: {'; '.join(filter(None, told))}" if any(told) else ""

    def key(self, value: Id) -> int:
        """The key of a valid id; NO_ID for one that the file does not have."""
        return key_of(value, self.text_codes)

    def id_of(self, key: int) -> Id | None:
        """The id of a key; None for a key without one."""
        return id_of_key(key, self.image_ids.texts)

    @property
    def is_used(self) -> np.ndarray:
        """Which categories have annotations, [K] bool."""
        return counts_of(self.label, len(self.categories)) > 0


def counts_of(label: np.ndarray, size: int) -> np.ndarray:
    """Annotations of each category, [K] int64."""
    return np.bincount(label[label >= 0], minlength=size)


def key_of(value: Id, text_codes: dict[str, int]) -> int:
    key = id_key(value)
    return key if is_code(key) else text_codes.get(str(key), NO_ID)  # type: ignore[return-value]


def is_code(value: Any) -> bool:
    return type(value) is int and FIRST_INTEGER <= value < 2**63


def id_of_key(key: int, texts: Texts) -> Id | None:
    return Ids(np.array([key]), np.array([key < FIRST_INTEGER]), texts, np.empty(0))[0]


def counts_in_words(notes: Counter[str]) -> list[str]:
    """Such as "2 boxes", where the note is "box{es}"."""
    return [
        f"{count:,} {what.format(s='' if count == 1 else 's', es='' if count == 1 else 'es')}"
        for what, count in notes.items()
        if count
    ]


def is_file_name(name: str) -> bool:
    """Whether a file can have this name: JSON can escape NUL and half of a surrogate pair, which no file name holds."""
    return "\0" not in name and not has_surrogates(name)


def duplicated(codes: np.ndarray) -> np.ndarray:
    """Indices of rows whose id an earlier row has, in order; rows without an id are not among them."""
    first = np.zeros(len(codes), dtype=bool)
    first[np.unique(codes, return_index=True)[1]] = True
    return np.flatnonzero(~first & (codes > BAD_ID))


def indices_of(known: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The first index in ``known`` of each of ``codes``; -1 where there is none."""
    if not len(known):
        return np.full(len(codes), -1, dtype=np.int64)
    order = np.argsort(known, kind="stable")
    indices = np.searchsorted(known[order], codes).clip(max=len(known) - 1)
    return np.where((known[order[indices]] == codes) & (codes > BAD_ID), order[indices], -1)


def joined(used: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The first index in ``known`` of each key of ``used`` [M]; DANGLING if it is not there, MALFORMED if not an id."""
    return np.where(used <= BAD_ID, MALFORMED, indices_of(known, used))


def shift_between(used: np.ndarray, known: np.ndarray) -> int:
    """1 or -1 where the ``used`` ids are all of ``known`` plus it, and none of them is in ``known``; else 0.

    Where some are, such as 1 and 2 of 1, 2, 3 for 0, 1, 2, one id may be a stray one and all others right.
    """
    used, known = np.unique(used), np.unique(known)
    if len(used) != len(known) or (used < FIRST_INTEGER).any() or (known < FIRST_INTEGER).any():
        return 0
    if np.isin(used, known).any():
        return 0
    moves = np.unique(used - known)
    return int(moves[0]) if len(moves) == 1 and abs(moves[0]) == 1 else 0
