"""COCO annotation files as they are: all rows as columns, with the faults in them.

This is the one reader. For training it raises at the first fault, for the doctor it collects them all, so both accept
the same files. A row is an object only until its numbers are in the columns, so unused keys and long segmentations cost
no memory.

Deviations from COCO that are unambiguous are read and counted (``Rows.notes``): numbers written as text, integers
written 1.0, null in optional fields, annotations without an id, and boxes given as text, as an object or only by a
segmentation.
"""

from __future__ import annotations

import math
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detector.errors import DataError, kind_of
from detector.files.json_stream import JsonStream, has_surrogates, is_integer, is_number, open_json, show, show_text
from detector.structures import Category, Id

# OpenCV's limits: it decodes no larger image.
MAX_SIDE, MAX_AREA = 1 << 20, 1 << 30

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
    """Each class that is not in ``known`` by the same id and name, and the class there with its id or else its name.

    The order, further classes of ``known``, and unused classes unlike all of ``known`` make no difference.
    """
    by_key = {id_key(category.id): category for category in known}
    by_name = {category.name: category for category in known}
    pairs = [(category, by_key.get(id_key(category.id)) or by_name.get(category.name)) for category in own]
    return [
        (category, other)
        for (category, other), used in zip(pairs, is_used, strict=True)
        if (used if other is None else (id_key(other.id), other.name) != (id_key(category.id), category.name))
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
    def counting(cls, count: int) -> Ids:
        """0, 1, 2, …"""
        return cls(np.arange(count), np.zeros(count, dtype=bool), Texts.of([]), np.empty(0, dtype=np.int64))

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


@dataclass(frozen=True)
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

    def key(self, value: Id) -> int:
        """The key of a valid id; NO_ID for one that the file does not have."""
        return _key(value, self.text_codes)

    def id_of(self, key: int) -> Id | None:
        """The id of a key; None for a key without one."""
        return _id_of(key, self.image_ids.texts)

    @property
    def is_used(self) -> np.ndarray:
        """Which categories have annotations, [K] bool."""
        return _counts(self.label, len(self.categories)) > 0


def _counts(label: np.ndarray, size: int) -> np.ndarray:
    """Annotations of each category, [K] int64."""
    return np.bincount(label[label >= 0], minlength=size)


def _key(value: Id, text_codes: dict[str, int]) -> int:
    key = id_key(value)
    return key if _is_code(key) else text_codes.get(str(key), NO_ID)  # type: ignore[return-value]


def _is_code(value: Any) -> bool:
    return type(value) is int and FIRST_INTEGER <= value < 2**63


def _id_of(key: int, texts: Texts) -> Id | None:
    return Ids(np.array([key]), np.array([key < FIRST_INTEGER]), texts, np.empty(0))[0]


def describe_notes(path: Path, notes: Counter[str], skipped: Sequence[str] = ()) -> str:
    """One line on ``Rows.notes`` and skipped classes; empty where there is nothing to say."""
    said = [
        f"{count:,} {what.format(s='' if count == 1 else 's', es='' if count == 1 else 'es')}"
        for what, count in notes.items()
        if count
    ]
    parts = (("read", said), ("skipped classes without annotations:", skipped))
    told = "; ".join(f"{what} {', '.join(own)}" for what, own in parts if own)
    return f"{path}: {told}" if told else ""


def read_rows(path: Path, is_strict: bool) -> Rows:
    """All rows of a COCO JSON file; ``is_strict`` raises at the first fault.

    Raises :class:`detector.errors.DataError` that names file, line, image or annotation id, value and remedy; without
    ``is_strict``, only for a file that is not a COCO file at all.
    """
    return _Reader(path, is_strict).read()


class _Reader:
    def __init__(self, path: Path, is_strict: bool) -> None:
        self.path, self.is_strict = path, is_strict
        self.stream: JsonStream
        self.row: Any = None  # the row being read, for messages
        self.table, self.count = "", 0  # its list, and its index in it
        self.notes: Counter[str] = Counter()
        self.faults: dict[str, Faults] = {}
        self.skipped: list[str] = []
        self.text_codes: dict[str, int] = {}
        self.text_keys = array("q")
        self.categories: list[Category] = []
        self.image_ids, self.annotation_ids, self.of_image, self.of_category = (array("q") for _ in range(4))
        self.is_text_image, self.is_text_annotation, self.is_crowd = (array("b") for _ in range(3))
        self.heights, self.widths, self.name_ends = (array("q") for _ in range(3))
        self.names = bytearray()
        self.xywh, self.areas = array("d"), array("d")

    # --- the file -----------------------------------------------------------------------------------------------------

    def read(self) -> Rows:
        add = {"images": self.add_image, "annotations": self.add_annotation, "categories": self.add_category}
        seen = set()
        with open_json(self.path) as self.stream:
            stream = self.stream
            if stream.peek() != "{":
                kind = kind_of([] if stream.peek() == "[" else stream.value())
                raise DataError(f"{self.path}: holds {kind}; COCO annotations are an object of images and annotations")
            for self.table in stream.members():
                if self.table not in add:
                    stream.skip()
                    continue
                if self.table in seen:
                    raise stream.error(f"key {self.table!r} is duplicated")
                if stream.peek() not in ("[", ""):  # at the end of the file, reported below as missing
                    stream.skip()
                    continue
                seen.add(self.table)
                add_row = add[self.table]
                for self.count, self.row in enumerate(stream.elements()):
                    add_row(self.row)
            stream.finish()
        counts = {"images": len(self.image_ids), "categories": len(self.categories)}
        for self.table in add:
            if self.table not in seen:
                fault = f"has no list {self.table!r}; COCO annotations need images, annotations and categories"
            elif counts.get(self.table) == 0:
                fault = f"has no {self.table}; list at least one"
            else:
                continue
            if self.is_strict or (self.table == "images" and self.table not in seen):
                raise DataError(f"{self.path}: {fault}")
            self.faults.setdefault("list-missing", Faults()).add(0, fault)
        texts, text_keys = Texts.of(self.text_codes), np.asarray(self.text_keys)
        image_ids = Ids(np.asarray(self.image_ids), np.asarray(self.is_text_image).view(bool), texts, text_keys)
        is_text = np.asarray(self.is_text_annotation).view(bool)
        annotation_ids = Ids(np.asarray(self.annotation_ids), is_text, texts, text_keys)
        names = Texts(np.frombuffer(self.names, dtype=np.uint8), np.asarray(self.name_ends))
        of_image, of_category = (keys_of(np.asarray(own), text_keys) for own in (self.of_image, self.of_category))
        label = self._join_categories(of_category, annotation_ids)
        image = self._join_images(of_image, image_ids, names, annotation_ids)
        return Rows(
            path=self.path,
            categories=self.categories,
            image_ids=image_ids,
            heights=np.asarray(self.heights),
            widths=np.asarray(self.widths),
            names=names,
            annotation_ids=annotation_ids,
            of_image=of_image,
            of_category=of_category,
            image=image,
            label=label,
            boxes_xywh=np.asarray(self.xywh).reshape(-1, 4),
            areas=np.asarray(self.areas),
            is_crowd=np.asarray(self.is_crowd).view(bool),
            notes=self.notes,
            skipped=self.skipped,
            faults=self.faults,
            text_codes=self.text_codes,
        )

    # --- between rows -------------------------------------------------------------------------------------------------

    def _join_categories(self, of_category: np.ndarray, annotation_ids: Ids) -> np.ndarray:
        """The index of each annotation's category, [M]. Removes unused classes that have the name of another."""
        own = self.categories
        keys = np.array([_key(category.id, self.text_codes) for category in own], dtype=np.int64)

        def same_id(index: int) -> str:
            names = ", ".join(show_text(own[other].name) for other in np.flatnonzero(keys == keys[index])[:2])
            return f"category id {show_id(own[index].id)} is duplicated: {names}; give each its own"

        self.refuse("category-id-duplicate", duplicated(keys), same_id)
        label = joined(of_category, keys)
        counts = _counts(label, len(own))
        by_name: dict[str, list[int]] = {}
        for index, category in enumerate(own):
            by_name.setdefault(category.name, []).append(index)
        alike = [indices for indices in by_name.values() if len(indices) > 1]
        kept = [[index for index in indices if counts[index]] or indices[:1] for indices in alike]

        def same_name(index: int) -> str:
            indices = next(indices for indices in kept if index in indices)
            ids = " and ".join(f"id {show_id(own[one].id)} ({counts[one]:,} annotations)" for one in indices)
            name = show_text(own[index].name)
            return f"class name {name} is duplicated: {ids}; rename one, or give the annotations of one the other's id"

        self.refuse("category-name-duplicate", [index for indices in kept for index in indices[1:]], same_name)
        if spare := {
            index for indices, used in zip(alike, kept, strict=True) for index in indices if index not in used
        }:
            self.skipped += [f"{show_category(own[index])}, whose name is duplicated" for index in sorted(spare)]
            self.categories = [category for index, category in enumerate(own) if index not in spare]
            keys = np.delete(keys, sorted(spare))
            label = joined(of_category, keys)

        def unknown(row: int) -> str:
            names = [show_category(category) for category in sorted(self.categories, key=lambda one: sort_key(one.id))]
            listed = ", ".join(names if len(names) <= 6 else [*names[:5], "…"])
            value = show_id(_id_of(int(of_category[row]), annotation_ids.texts))
            return (
                f"category_id {value} is not among the categories ({listed});"
                f" remove the annotation or add the category{_shift_hint(of_category, keys)}"
            )

        self.refuse("category-dangling", np.flatnonzero(label == DANGLING), unknown, annotation_ids)
        return label

    def _join_images(self, of_image: np.ndarray, image_ids: Ids, names: Texts, annotation_ids: Ids) -> np.ndarray:
        """The index of each annotation's image, [M]."""
        keys, own_keys = image_ids.keys, annotation_ids.keys

        def image_of(row: int) -> str:
            return show_id(_id_of(int(of_image[row]), annotation_ids.texts))

        def same_image(index: int) -> str:
            indices = np.flatnonzero(keys == keys[index])[:2].tolist()
            said = " and ".join(dict.fromkeys(show(image_ids[one]) for one in indices))
            files = ", ".join(show_text(names[one]) for one in indices)
            return f"image id {said} is duplicated: {files}; give each its own"

        self.refuse("image-id-duplicate", duplicated(keys), same_image)
        image = joined(of_image, keys)

        def unknown(row: int) -> str:
            remedy = f"remove the annotation or add the image{_shift_hint(of_image, keys)}"
            return f"image_id {image_of(row)} is not among the images; {remedy}"

        self.refuse("image-dangling", np.flatnonzero(image == DANGLING), unknown, annotation_ids)

        def same_annotation(row: int) -> str:
            first, second = map(image_of, np.flatnonzero(own_keys == own_keys[row])[:2])
            own = show_id(annotation_ids[row])
            return f"annotation id {own} is duplicated, for image {first} and for image {second}; give each its own"

        self.refuse("annotation-id-duplicate", duplicated(own_keys), same_annotation)
        return image

    def refuse(
        self, check: str, indices: np.ndarray | list[int], words: Callable[[int], str], of: Ids | None = None
    ) -> None:
        """Report the faults that a check of a whole list finds; ``of``: annotation ids, if ``words`` lack them."""
        if not len(indices):
            return
        indices = np.asarray(indices)
        if self.is_strict:
            row = int(indices[0])
            own = of[row] if of else None
            which = f"annotation {row + 1} of the list: " if own is None else f"annotation {show_id(own)}: "
            raise DataError(f"{self.path}: {which if of else ''}{words(row)}")
        self.faults[check] = Faults(array("q", indices.tolist()), [words(row) for row in indices[:KEPT].tolist()])

    # --- rows ---------------------------------------------------------------------------------------------------------

    def fault(self, check: str, words: str) -> None:
        """Report what is wrong with the row that is being read."""
        if self.is_strict:
            raise DataError(f"{self.path}:{self.stream.line}: {self._where()}: {words}")
        self.faults.setdefault(check, Faults()).add(self.count, words)

    def _where(self) -> str:
        if not isinstance(self.row, dict):
            return self.table
        kind = {"images": "image", "annotations": "annotation", "categories": "category"}[self.table]
        own = self.row.get("id")
        if self.table == "images" and isinstance(name := self.row.get("file_name"), str) and name:
            return f"image {show_id(own)} ({show_text(name)})"
        if own is None and self.table == "annotations":
            return f"annotation {self.count + 1} of the list (image {show_id(self.row.get('image_id'))})"
        return f"{kind} {show_id(own)}"

    def add_category(self, row: Any) -> None:
        value, name = (row.get("id"), row.get("name")) if isinstance(row, dict) else (None, None)
        if type(value) is float and value.is_integer() and abs(value) <= 2**53:
            value = int(value)
            self.notes["whole number{s} written with a point"] += 1
        if not is_id(value) or not isinstance(name, str):
            self.fault("category-malformed", f"{show(row)} needs an id, which is an integer or text, and a name")
            return
        self.id_code(value, "category-malformed", "id")
        self.categories.append(Category(value, name))

    def add_image(self, row: Any) -> None:
        if not isinstance(row, dict):
            self.fault("image-malformed", f"{show(row)} is not an object")
            row = {}
        value, name = row.get("id"), row.get("file_name")
        code = self.id_code(value, "image-malformed", "id")
        if not isinstance(name, str) or not name or not _is_file_name(name):
            self.fault("image-malformed", f"file_name is {show(name)}; it must be a path")
            name = ""
        height, width = self._size(row.get("height"), row.get("width"))
        self.image_ids.append(code)
        self.is_text_image.append(type(value) is str)
        self.heights.append(height)
        self.widths.append(width)
        self.names += name.encode()
        self.name_ends.append(len(self.names))

    def _size(self, height: Any, width: Any) -> tuple[int, int]:
        if not (type(height) is int and type(width) is int):
            if height is None or width is None:
                self.notes[WITHOUT_SIZE] += 1
                return 0, 0
            height, width = self._whole(height), self._whole(width)
        said = f"height {show(height)}, width {show(width)}"
        if not (is_integer(height) and is_integer(width) and height > 0 and width > 0):
            self.fault("size-malformed", f"{said} must be positive integers; write the image's own")
        elif max(height, width) > MAX_SIDE or height * width > MAX_AREA:
            self.fault("size-malformed", f"{said} is larger than any image (2^30 pixels); write its own")
        else:
            return height, width
        return 0, 0

    def add_annotation(self, row: Any) -> None:
        if not isinstance(row, dict) or not row:
            self.fault("annotation-malformed", f"{show(row)} is not an object with image_id, category_id and bbox")
            row = {}
        get = row.get
        value, box, area = get("id"), get("bbox"), get("area")
        if value is None:
            code = NO_ID
            self.notes["annotation{s} without an id"] += bool(row)
        else:
            code = self.id_code(value, "annotation-malformed", "id")
        self.annotation_ids.append(code)
        self.is_text_annotation.append(type(value) is str)
        self.of_image.append(self.id_code(get("image_id"), "annotation-malformed", "image_id") if row else BAD_ID)
        self.of_category.append(
            self.id_code(get("category_id"), "annotation-malformed", "category_id") if row else BAD_ID
        )
        if not is_box(box):
            box = self._box(box, get("segmentation")) if row else _NO_BOX
        if not is_number(area):
            area = self._area(area, box) if row else math.nan
        self.xywh.extend(box)
        self.areas.append(area)
        self.is_crowd.append(self._flag(get("iscrowd"), "iscrowd") or self._flag(get("ignore"), "ignore"))

    # --- values -------------------------------------------------------------------------------------------------------

    def id_code(self, value: Any, check: str, what: str) -> int:
        """The code of an id; BAD_ID for what is not an id."""
        if type(value) is int and FIRST_INTEGER <= value < 2**63:
            return value
        if type(value) is float and value.is_integer() and abs(value) <= 2**53:
            self.notes["whole number{s} written with a point"] += 1
            return int(value)
        if not is_id(value):
            self.fault(check, f"{what} {show(value)} must be an integer or text")
            return BAD_ID
        self.notes["id{s} written as text"] += type(value) is str
        key, text = id_key(value), str(value)
        if _is_code(key) and str(key) == text:
            return key  # type: ignore[return-value]
        code = self._text_code(text)
        if str(key) != text:
            self.text_keys[code - FIRST_TEXT] = key if _is_code(key) else self._text_code(str(key))  # type: ignore[call-overload]
        return code

    def _text_code(self, text: str) -> int:
        code = self.text_codes.setdefault(text, FIRST_TEXT + len(self.text_codes))
        if len(self.text_keys) < len(self.text_codes):
            self.text_keys.append(code)
        return code

    def _whole(self, value: Any) -> Any:
        """An integer that is written as text or with a point; anything else as it is."""
        number = self._number(value)
        if type(number) is float and number.is_integer():
            self.notes["whole number{s} written with a point"] += type(value) is float
            return int(number)
        return value if type(number) is float else number

    def _number(self, value: Any) -> Any:
        """A number that is written as text; anything else as it is."""
        number = number_of_text(value)
        if number is None:
            return value
        self.notes["number{s} written as text"] += 1
        return number

    def _box(self, box: Any, segmentation: Any) -> list[float]:
        """A box that is not four plain numbers."""
        if box in (None, [], {}, ""):
            taken = box_of_segmentation(segmentation)
            if taken is None:
                self.fault("box-not-finite", "has no bbox, and no segmentation to take it from")
                return _NO_BOX
            self.notes["box{es} taken from the segmentation"] += 1
            return taken
        numbers = read_box(box)
        if numbers is None:
            self.fault("box-not-finite", f"bbox {show(box)} must be four finite numbers: left, top, width, height")
            return _NO_BOX
        if isinstance(box, list):
            self.notes["number{s} written as text"] += sum(type(number) is str for number in box)
        else:
            self.notes[f"box{{es}} written as {'text' if isinstance(box, str) else 'an object'}"] += 1
        return numbers

    def _area(self, area: Any, box: list[float]) -> float:
        """An area that is not a plain number: the box's where it is missing (pandas writes NaN)."""
        if area is not None and area == area:
            area = self._number(area)
            if is_number(area):
                return area
            self.fault("annotation-malformed", f"area {show(area)} must be a finite number")
        else:
            self.notes["annotation{s} without an area"] += 1
        return box[2] * box[3]

    def _flag(self, value: Any, key: str) -> bool:
        if value is None or value == 0 or value == 1:  # booleans too
            return bool(value)
        if value != value:  # NaN: pandas writes it for a missing value
            return False
        number = self._number(value)
        if number not in (0, 1):
            self.fault("annotation-malformed", f"{key} {show(value)} must be 0 or 1")
        return number == 1


_NO_BOX = [math.nan] * 4


def is_id(value: Any) -> bool:
    """Whether a JSON value can be an id: text or an integer."""
    if type(value) is str:
        return value != "" and not has_surrogates(value)
    return type(value) is int


def _is_file_name(name: str) -> bool:
    """Whether a file can have this name: JSON can escape NUL and half of a surrogate pair, which no file name holds."""
    return "\0" not in name and not has_surrogates(name)


def is_box(value: Any) -> bool:
    """Whether a JSON value is a list of four finite numbers."""
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def number_of_text(value: Any) -> int | float | None:
    """The finite number that a text spells; None for anything else."""
    if type(value) is not str or len(value) > 40 or not re.fullmatch(r"\s*[-+]?[0-9.]+([eE][-+]?[0-9]+)?\s*", value):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    if not is_number(number):
        return None
    return int(number) if value.strip().lstrip("+-").isdigit() else number


_SIDES = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height"))


def read_box(value: Any) -> list[float] | None:
    """Left, top, width, height, as a list, one text ("1 2 3 4", "[1, 2, 3, 4]") or an object; None for anything else.

    The numbers may be written as text.
    """
    if isinstance(value, str) and len(value) <= 200:
        value = re.split(r"\s*[,;\s]\s*", value.strip().removeprefix("[").removesuffix("]").strip())
    elif isinstance(value, dict):
        value = next(([value[side] for side in sides] for sides in _SIDES if value.keys() == {*sides}), None)
    if not isinstance(value, list) or len(value) != 4:
        return None
    numbers = [one if is_number(one) else number_of_text(one) for one in value]
    return numbers if is_box(numbers) else None  # type: ignore[return-value]


def _encoded(segmentation: Any) -> Any:
    """A run-length mask as pycocotools takes it; raises ValueError, TypeError or KeyError for anything else."""
    from pycocotools import mask

    # pycocotools divides by the height unchecked: zero would end the process.
    height, width = segmentation["size"]
    if not all(is_integer(side) and 0 < side <= MAX_SIDE for side in (height, width)):
        raise ValueError
    return mask.frPyObjects(segmentation, height, width) if isinstance(segmentation["counts"], list) else segmentation


def _polygons(segmentation: list[Any]) -> list[np.ndarray]:
    """The corners of each polygon, [N, 2]; a single one may be a flat list."""
    polygons = segmentation if any(isinstance(polygon, list) for polygon in segmentation) else [segmentation]
    return [np.asarray(polygon, dtype=float).reshape(-1, 2) for polygon in polygons]


def plain_polygons(segmentation: list[Any]) -> list[Any]:
    """Polygons as lists of numbers, without empty ones; what cannot be read stays."""
    polygons = segmentation if any(isinstance(polygon, list) for polygon in segmentation) else [segmentation]
    plain = []
    for polygon in polygons:
        numbers = [number_of_text(one) for one in polygon if isinstance(one, str)] if isinstance(polygon, list) else []
        if numbers and None not in numbers:
            texts = iter(numbers)
            polygon = [next(texts) if isinstance(one, str) else one for one in polygon]
        if polygon != []:
            plain.append(polygon)
    return plain


def box_of_segmentation(segmentation: Any) -> list[float] | None:
    """The box around polygons or a run-length mask; None where there is none."""
    from pycocotools import mask

    try:
        if isinstance(segmentation, list):
            corners = np.concatenate(_polygons(segmentation))
            (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
            box = [float(left), float(top), float(right - left), float(bottom - top)]
        else:
            box = [float(number) for number in mask.toBbox(_encoded(segmentation))]
    except (TypeError, KeyError, ValueError, OverflowError):
        return None
    return box if is_box(box) else None


def area_of_segmentation(segmentation: Any) -> float | None:
    """The area of polygons (their sum) or of a run-length mask; None where there is none."""
    from pycocotools import mask

    try:
        if isinstance(segmentation, list):
            area = 0.0
            for corners in _polygons(segmentation):
                x, y = corners.T
                area += abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
        else:
            area = float(mask.area(_encoded(segmentation)))
    except (TypeError, KeyError, ValueError, OverflowError):
        return None
    return area if is_number(area) and area > 0 else None


def odd_areas(boxes: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Which areas [M] are impossible for their ``boxes`` [M, 4] xywh: not positive, or larger than the box.

    One more pixel along each side is accepted: tools count the pixels that a box touches.
    """
    with np.errstate(invalid="ignore"):
        has_area = (boxes[:, 2:] > 0).all(axis=1)
        return has_area & ((areas <= 0) | (areas > 1.01 * (boxes[:, 2:] + 1).prod(axis=1)))


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


def _shift_hint(used: np.ndarray, known: np.ndarray) -> str:
    """A further remedy where all ids are, or may be, off by one."""
    used = used[used > BAD_ID]
    if shift_between(used, known):
        return ", or let detector doctor --fix correct them: all are off by one"
    less, more = (np.isin(used - move, known).all() for move in (1, -1))
    which = "minus" if less else "plus"
    return f"; each id {which} 1 is listed: if all are off by one, correct all of them" if less or more else ""


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
