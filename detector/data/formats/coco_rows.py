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
from array import array
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.formats.coco_values import (
    MAX_AREA,
    MAX_SIDE,
    box_of_segmentation,
    is_box,
    is_id,
    number_of_text,
    read_box,
)
from detector.data.formats.columns import (
    BAD_ID,
    DANGLING,
    FIRST_INTEGER,
    FIRST_TEXT,
    KEPT,
    NO_ID,
    WITHOUT_SIZE,
    Faults,
    Ids,
    Rows,
    Texts,
    counts_of,
    duplicated,
    id_key,
    id_of_key,
    is_code,
    is_file_name,
    joined,
    key_of,
    keys_of,
    shift_between,
    show_category,
    show_id,
    sort_key,
)
from detector.errors import DataError, kind_of
from detector.structures import Category
from detector.system.json_stream import JsonStream, is_integer, is_number, open_json, show, show_text


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
        self.parents: set[str] = set()
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
            parents=self.parents,
        )

    # --- between rows -------------------------------------------------------------------------------------------------

    def _join_categories(self, of_category: np.ndarray, annotation_ids: Ids) -> np.ndarray:
        """The index of each annotation's category, [M]. Removes unused classes that have the name of another."""
        own = self.categories
        keys = np.array([key_of(category.id, self.text_codes) for category in own], dtype=np.int64)

        def same_id(index: int) -> str:
            names = ", ".join(show_text(own[other].name) for other in np.flatnonzero(keys == keys[index])[:2])
            return f"category id {show_id(own[index].id)} is duplicated: {names}; give each its own"

        self.refuse("category-id-duplicate", duplicated(keys), same_id)
        label = joined(of_category, keys)
        counts = counts_of(label, len(own))
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
            value = show_id(id_of_key(int(of_category[row]), annotation_ids.texts))
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
            return show_id(id_of_key(int(of_image[row]), annotation_ids.texts))

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
        if isinstance(parent := row.get("supercategory"), str) and parent != "none":
            self.parents.add(parent)

    def add_image(self, row: Any) -> None:
        if not isinstance(row, dict):
            self.fault("image-malformed", f"{show(row)} is not an object")
            row = {}
        value, name = row.get("id"), row.get("file_name")
        code = self.id_code(value, "image-malformed", "id")
        if not isinstance(name, str) or not name or not is_file_name(name):
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
        if is_code(key) and str(key) == text:
            return key  # type: ignore[return-value]
        code = self._text_code(text)
        if str(key) != text:
            self.text_keys[code - FIRST_TEXT] = key if is_code(key) else self._text_code(str(key))  # type: ignore[call-overload]
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


def _shift_hint(used: np.ndarray, known: np.ndarray) -> str:
    """A further remedy where all ids are, or may be, off by one."""
    used = used[used > BAD_ID]
    if shift_between(used, known):
        return ", or let detector doctor --fix correct them: all are off by one"
    less, more = (np.isin(used - move, known).all() for move in (1, -1))
    which = "minus" if less else "plus"
    return f"; each id {which} 1 is listed: if all are off by one, correct all of them" if less or more else ""
