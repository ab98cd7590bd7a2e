"""A cleaned copy of annotations as COCO JSON, whatever their format, and a list of every change.

Only what needs no judgement is changed; a person decides on the rest. First the changes that lose nothing:

- written as COCO specifies: numbers that are text, integers with a decimal point, boxes that are one text or an object,
  polygons of texts, missing areas; polygons without a corner are dropped;
- joined: ids of images and categories that are written both as text and as integers, or as text in several ways, or
  that are all off by one, with none of them listed;
- renamed: images whose file exists under another name (see ``names``);
- numbered: annotations without an id, or with one that an earlier annotation has;
- taken from the segmentation: boxes that are missing, not four finite numbers or without area;
- recomputed: areas that are 0 or larger than their box, from the segmentation or else the box;
- width and height: taken from the file where they are missing, or wrong by the evidence of the boxes: all boxes fit
  the file, and either there are none, or one extends outside the annotated size, or one side is right (a scaled copy
  shows neither), or both are within two pixels. Not where EXIF turns the image by 90°, as the boxes may be on either
  frame.

Then the changes that lose something:

- clipped to the image: boxes that extend outside; not where the image's size is in doubt;
- removed: annotations of images or categories that are not listed, boxes that are not four finite numbers, without
  area or wholly outside, and boxes equal to an earlier one (same image, class, box and segmentation).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from detector.analysis.doctor.annotations import has_area, is_outside, sizes_of_annotations
from detector.analysis.doctor.columns import Split
from detector.analysis.doctor.files import FileFacts
from detector.analysis.doctor.names import fix_names
from detector.analysis.doctor.reading import as_tree, read_json
from detector.data.box_rules import TOLERANCE
from detector.data.formats.coco_values import (
    area_of_segmentation,
    box_of_segmentation,
    is_box,
    number_of_text,
    odd_areas,
    plain_polygons,
    read_box,
)
from detector.data.formats.columns import BAD_ID, DANGLING, NO_ID, duplicated, id_key, indices_of, shift_between
from detector.data.headers import QUARTER_TURNS
from detector.errors import ConfigError, counted
from detector.system.atomic import atomic_write, check_new, make_folder
from detector.system.json_stream import is_number

ROUNDING = 2  # pixels by which both sides may differ in an image that was not scaled
MOST_LOST = 0.01  # fraction of the annotations, without --allow-loss


def fix_targets(splits: Sequence[Split], out: Path) -> list[tuple[Split, Path]]:
    """The path of each split's copy: beside the first one, others are as ``OUT.val.json``. None may exist."""
    if not splits[0].has_boxes:
        raise ConfigError("command line: --fix fixes annotations of boxes; labelled images have none")
    targets = [(splits[0], out), *((split, _beside(out, split)) for split in splits[1:])]
    for _, target in targets:
        for path in (target, changes_path(target)):
            check_new(path)
    return targets


def _beside(out: Path, split: Split) -> Path:
    return out.with_suffix(f".{split.name.replace(' ', '')}{out.suffix}")


def changes_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.changes.jsonl")


@dataclass
class Fix:
    """A cleaned tree, every change, and the annotations that it loses."""

    tree: dict[str, Any]
    annotations: int = 0  # before
    changes: list[dict[str, Any]] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)  # removed annotations of each class, without duplicates
    form: str = ""  # " as COCO JSON" where the source has another format
    lost_classes: list[str] = field(default_factory=list)  # classes without any annotation left

    @property
    def loses_much(self) -> bool:
        return bool(self.lost_classes) or self.lost.total() > MOST_LOST * self.annotations

    def summary(self) -> str:
        """The changes, counted by kind."""
        if not self.changes:
            return "no changes"
        counts = Counter(_KINDS[change["check"], change["change"]] for change in self.changes)
        return ", ".join(f"{count:,} {kind}" for kind, count in counts.items())

    def loss(self) -> str:
        """What would be lost, in words."""
        text = f"{self.lost.total():,} of {counted(self.annotations, 'annotation')} would be removed"
        return text + (f", all of {', '.join(self.lost_classes)}" if self.lost_classes else "")


# Words of the summary by check and change.
_KINDS = {
    ("read-otherwise", "box"): "boxes written as four numbers",
    ("read-otherwise", "polygons"): "segmentations written as lists of numbers",
    ("read-otherwise", "dropped"): "segmentations without a polygon dropped",
    ("read-otherwise", "value"): "values read from text",
    ("read-otherwise", "id"): "ids written as integers",
    ("read-otherwise", "joined"): "ids joined: they differed only in how they are written",
    ("read-otherwise", "numbered"): "annotations numbered",
    ("read-otherwise", "area"): "missing areas filled in",
    ("read-otherwise", "taken"): "missing boxes taken from the segmentation",
    ("box-not-finite", "taken"): "unusable boxes taken from the segmentation",
    ("box-no-area", "taken"): "boxes without area taken from the segmentation",
    ("area-odd", "recomputed"): "areas recomputed",
    ("image-dangling", "joined"): "image ids joined: all were off by one",
    ("category-dangling", "joined"): "category ids joined: all were off by one",
    ("size-missing", "corrected"): "sizes taken from the file",
    ("size-malformed", "corrected"): "sizes that were no whole numbers taken from the file",
    ("size-differs", "corrected"): "sizes corrected to the file's",
    ("file-missing", "renamed"): "file names corrected",
    ("file-outside", "renamed"): "file names that led out of the folder corrected",
    ("annotation-id-duplicate", "renumbered"): "duplicate annotation ids renumbered",
    ("box-outside", "cut"): "boxes clipped to their image",
    ("row-malformed", "removed"): "removed: row not readable",
    ("image-dangling", "removed"): "removed: image not listed",
    ("category-dangling", "removed"): "removed: category not listed",
    ("box-not-finite", "removed"): "removed: box not readable",
    ("box-no-area", "removed"): "removed: no area",
    ("box-outside", "removed"): "removed: outside the image",
    ("box-duplicate", "removed"): "removed: equal to another",
}


def write_fix(fix: Fix, target: Path) -> None:
    """Write the cleaned copy and ``target``.changes.jsonl."""
    make_folder(target.parent)
    with atomic_write(changes_path(target)) as file:
        file.writelines(f"{json.dumps(change, ensure_ascii=False)}\n" for change in fix.changes)
    with atomic_write(target) as file:
        json.dump(fix.tree, file)


def fix_split(split: Split, facts: Sequence[FileFacts]) -> Fix:
    """Clean the file that ``split`` was read from, in memory."""
    assert split.rows is not None
    if split.rows.has_ids:
        return fix_tree(read_json(split.source), split, facts)
    fix = fix_tree(as_tree(split), split, facts)
    fix.form = " as COCO JSON"
    if malformed := split.rows.faults.get("row-malformed"):
        fix.changes += [{"check": "row-malformed", "change": "removed", "row": words} for words in malformed.words]
        fix.annotations += len(malformed.words)
        fix.lost["rows that cannot be read"] = len(malformed.words)
    return fix


def fix_tree(tree: dict[str, Any], split: Split, facts: Sequence[FileFacts]) -> Fix:
    """Clean the tree that ``split`` was read from, in place."""
    fix = Fix(tree)
    for category in tree.get("categories") or ():
        if isinstance(category, dict) and _is_float_id(category.get("id")):
            before, category["id"] = category["id"], int(category["id"])
            change = {"check": "read-otherwise", "change": "id", "category": category.get("name")}
            fix.changes.append(change | {"before": before, "after": category["id"]})
    fix.changes += fix_names(tree, split, facts)
    sizes, is_doubtful = _fix_sizes(split, facts, fix)
    if isinstance(tree.get("annotations"), list):
        _Annotations(split, fix).run(sizes, is_doubtful)
    return fix


def _fix_sizes(split: Split, facts: Sequence[FileFacts], fix: Fix) -> tuple[np.ndarray, np.ndarray]:
    """Correct ids, widths and heights of images; return the sizes [I, 2], and which are still in doubt [I]."""
    sizes, is_doubtful = split.sizes.copy(), np.zeros(len(split.files), dtype=bool)
    malformed = split.rows_at_fault("size-malformed")
    low, high = _extents(split)
    for index, own in enumerate(facts):
        image = fix.tree["images"][index]
        if not isinstance(image, dict):
            continue
        before, stored = [_plain(image.get("width")), _plain(image.get("height"))], np.array([own.width, own.height])
        entry = {"image": _plain(image.get("id")), "file": split.files[index], "before": before}
        annotated = split.sizes[index]
        if _is_float_id(image.get("id")):
            image["id"] = int(image["id"])
            fix.changes.append(
                {"check": "read-otherwise", "change": "id"} | entry | {"before": entry["image"], "after": image["id"]}
            )
        if (annotated > 0).all() and [type(side) for side in before] != [int, int]:
            image["width"], image["height"] = annotated.tolist()
            fix.changes.append({"check": "read-otherwise", "change": "value"} | entry | {"after": annotated.tolist()})
        is_quarter = own.orientation in QUARTER_TURNS
        frames = [stored, stored[::-1]] if is_quarter else [stored]
        if own.width == 0 or any((annotated == frame).all() for frame in frames):
            continue
        is_inside = (low[index] >= -TOLERANCE).all() and (high[index] <= stored + TOLERANCE).all()
        is_proved = (
            (annotated == 0).any()
            or np.isinf(high[index]).all()  # no boxes
            or (high[index] > annotated + TOLERANCE).any()
            or (annotated == stored).any()
            or (np.abs(annotated - stored) <= ROUNDING).all()
        )
        if not (is_inside and is_proved) or (is_quarter and own.width != own.height):
            is_doubtful[index] = True
            continue
        sizes[index] = stored
        check = "size-malformed" if index in malformed else "size-missing" if (annotated == 0).any() else "size-differs"
        fix.changes.append({"check": check, "change": "corrected"} | entry | {"after": stored.tolist()})
        image["width"], image["height"] = stored.tolist()
    return sizes, is_doubtful


def _extents(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """The corners of the box around all boxes of each image, [I, 2] each; inf and -inf without any."""
    low, high = np.full((len(split.files), 2), np.inf), np.full((len(split.files), 2), -np.inf)
    rows = np.flatnonzero(split.is_sound)
    np.minimum.at(low, split.image[rows], split.boxes[rows, :2])
    np.maximum.at(high, split.image[rows], split.boxes[rows, :2] + split.boxes[rows, 2:])
    return low, high


class _Annotations:
    """Cleans the annotations of a tree, and the columns of ``split`` with them."""

    def __init__(self, split: Split, fix: Fix) -> None:
        assert split.rows is not None
        self.split, self.fix, self.read = split, fix, split.rows
        self.rows: list[Any] = fix.tree["annotations"]
        self.image, self.label = split.image.copy(), split.label.copy()
        self.boxes, self.areas = split.boxes.copy(), split.areas.copy()
        self.is_kept = np.ones(len(self.rows), dtype=bool)
        self.is_duplicate = np.zeros(len(self.rows), dtype=bool)  # removed, as an equal one is kept
        # Annotations whose image or class shares its id with another: a person must tell which is meant.
        category_keys = np.array([self.read.key(category.id) for category in split.categories], dtype=np.int64)
        self.is_image_ambiguous = _is_ambiguous(split.image_ids.keys, split.image)
        self.is_class_ambiguous = _is_ambiguous(category_keys, split.label)

    def run(self, sizes: np.ndarray, is_doubtful: np.ndarray) -> None:
        self.fix.annotations = len(self.rows)
        self._write_ids_alike()
        for index in self._own_rows():
            self._write_plainly(index)
        split, read = self.split, self.read
        categories = [category.id for category in split.categories]
        self.image = self._join("image_id", self.image, read.of_image, split.image_ids.tolist())
        self.label = self._join("category_id", self.label, read.of_category, categories)
        for index in self._own_rows():
            self._take_box(index)
        self._remove_and_cut(sizes, is_doubtful)
        self._compute_areas()
        self._number()
        self._count_loss()
        self.fix.tree["annotations"] = [row for row, is_kept in zip(self.rows, self.is_kept, strict=True) if is_kept]

    def note(self, check: str, change: str, index: int, before: Any, after: Any) -> None:
        image, row = int(self.image[index]), self.rows[index]
        self.fix.changes.append(
            {
                "check": check,
                "change": change,
                "annotation": _plain(row.get("id")),
                "image": _plain(row.get("image_id")),
                "file": self.split.files[image] if image >= 0 else None,
                "before": _plain(before),
                "after": after,
            }
        )

    def _own_rows(self) -> Iterator[int]:
        return (index for index, row in enumerate(self.rows) if isinstance(row, dict))

    # --- changes that lose nothing ------------------------------------------------------------------------------------

    def _write_plainly(self, index: int) -> None:
        """Rewrite numbers as text or with a point, boxes as one text or an object, polygons of texts or of nothing."""
        row = self.rows[index]
        box = row.get("bbox")
        if not is_box(box) and (numbers := read_box(box)):
            self.note("read-otherwise", "box", index, box, numbers)
            row["bbox"] = numbers
        segmentation = row.get("segmentation")
        if isinstance(segmentation, list) and (polygons := plain_polygons(segmentation)) != segmentation:
            if polygons:
                self.note("read-otherwise", "polygons", index, segmentation, polygons)
                row["segmentation"] = polygons
            elif is_box(row.get("bbox")):
                self.note("read-otherwise", "dropped", index, segmentation, None)
                del row["segmentation"]
        for key in ("area", "iscrowd", "ignore"):
            value = row.get(key)
            number = number_of_text(value)
            if number is None and key != "area" and type(value) is float and value in (0, 1):
                number = value
            if number is not None:
                number = int(number) if key != "area" else number
                self.note("read-otherwise", "value", index, value, number)
                row[key] = number
        if _is_float_id(row.get("id")):
            self.note("read-otherwise", "id", index, row["id"], int(row["id"]))
            row["id"] = int(row["id"])
        for key in ("image_id", "category_id"):
            if _is_float_id(value := row.get(key)):
                self.note("read-otherwise", "id", index, value, int(value))
                row[key] = int(value)

    def _write_ids_alike(self) -> None:
        """Rewrite ids as integers where some are text and some integers, or where text is written in several ways.

        Not if two entries of the list have the same id but for its type: only the type tells them apart.
        """
        for key, table, entry, is_ambiguous in (
            ("image_id", "images", self.image, self.is_image_ambiguous),
            ("category_id", "categories", self.label, self.is_class_ambiguous),
        ):
            listed = [row for row in self.fix.tree[table] if isinstance(row, dict)]
            given = [row.get("id") for row in listed]
            used = [*given, *(self.rows[index].get(key) for index in self._own_rows())]
            is_odd = any(isinstance(own, str) and str(id_key(own)) != own for own in used)
            if not is_odd and not {int, str} <= {*map(type, used)}:
                continue
            times = Counter(id_key(own) for own in given if isinstance(own, int | str))
            for row in listed:
                before = row.get("id")
                after = id_key(before) if isinstance(before, str) else before
                if after != before and times[after] == 1:
                    row["id"] = after
                    name = {table: row.get("name", row.get("file_name"))}
                    change = {"check": "read-otherwise", "change": "joined"} | name
                    self.fix.changes.append(change | {"before": before, "after": after})
            for index in self._own_rows():
                before = self.rows[index].get(key)
                after = id_key(before) if isinstance(before, str) and entry[index] >= 0 else before
                if after != before and not is_ambiguous[index]:
                    self.note("read-otherwise", "joined", index, before, after)
                    self.rows[index][key] = after

    def _join(self, key: str, entry: np.ndarray, used: np.ndarray, ids: Sequence[Any]) -> np.ndarray:
        """Correct ids that are all off by one from the listed ``ids``; return the index in ``ids`` per annotation."""
        known = np.array([NO_ID if own is None else self.read.key(own) for own in ids], dtype=np.int64)
        is_id = used > BAD_ID
        shift = shift_between(used[is_id], known) if (entry == DANGLING).any() else 0
        if not shift:
            return entry
        joined = entry.copy()
        joined[is_id] = indices_of(known, used[is_id] - shift)
        check = "image-dangling" if key == "image_id" else "category-dangling"
        for index in np.flatnonzero(is_id).tolist():
            after = ids[joined[index]]
            self.note(check, "joined", index, self.rows[index][key], after)
            self.rows[index][key] = after
        return joined

    def _take_box(self, index: int) -> None:
        """Take the box from the segmentation where it is missing or unusable."""
        row, box = self.rows[index], self.boxes[index]
        is_finite = bool(np.isfinite(box).all())
        if is_box(row.get("bbox")) and (box[2:] > 0).all():
            return
        taken = box_of_segmentation(row.get("segmentation"))
        if taken is None or min(taken[2:]) <= 0:
            return
        given = row.get("bbox")
        check = "read-otherwise" if given is None or given == [] else "box-no-area" if is_finite else "box-not-finite"
        self.note(check, "taken", index, given, taken)
        row["bbox"], self.boxes[index] = taken, taken

    def _compute_areas(self) -> None:
        """Compute areas that are missing or impossible, from the segmentation or else the box."""
        is_sound = np.isfinite(self.boxes).all(axis=1) & (self.boxes[:, 2:] > 0).all(axis=1)
        is_odd = odd_areas(self.boxes, self.areas)
        for index in self._own_rows():
            row = self.rows[index]
            area = row.get("area")
            is_missing = not is_number(area)
            if not (self.is_kept[index] and is_sound[index]) or not (is_missing or is_odd[index]):
                continue
            box = float(self.boxes[index, 2] * self.boxes[index, 3])
            own = area_of_segmentation(row.get("segmentation"))
            after = min(own, box) if own else box
            self.note(*(("read-otherwise", "area") if is_missing else ("area-odd", "recomputed")), index, area, after)
            row["area"] = after

    # --- changes that lose something ----------------------------------------------------------------------------------

    def _remove(self, check: str, indices: np.ndarray) -> None:
        for index in indices[self.is_kept[indices]].tolist():
            if isinstance(self.rows[index], dict):
                self.is_kept[index] = False
                self.is_duplicate[index] = check == "box-duplicate"
                self.note(check, "removed", index, self.rows[index], None)

    def _remove_and_cut(self, sizes: np.ndarray, is_doubtful: np.ndarray) -> None:
        split = replace(self.split, image=self.image, label=self.label, boxes=self.boxes)
        is_finite = np.isfinite(self.boxes).all(axis=1)
        self._remove("image-dangling", np.flatnonzero(self.image == DANGLING))
        self._remove("category-dangling", np.flatnonzero(self.label == DANGLING))
        self._remove("box-not-finite", np.flatnonzero(~is_finite & (self.image >= 0)))
        self._remove("box-no-area", np.flatnonzero(is_finite & ~has_area(split, sizes_of_annotations(split, sizes))))
        is_clear = ~self.is_image_ambiguous & ~self.is_class_ambiguous
        clear = np.flatnonzero(split.is_object & self.is_kept & is_clear)
        self._remove("box-duplicate", _repeated_boxes(split, self.rows, clear))

        doubt = np.append(is_doubtful, True)[np.maximum(self.image, -1)]
        limits = sizes_of_annotations(split, sizes)
        for index in np.flatnonzero(is_outside(split, limits) & ~doubt & self.is_kept).tolist():
            left, top, width, height = self.boxes[index].tolist()
            wide, high = limits[index].tolist()
            right, bottom = min(left + width, wide), min(top + height, high)
            left, top = max(left, 0.0), max(top, 0.0)
            if right <= left or bottom <= top:
                self._remove("box-outside", np.array([index]))
                continue
            row, box = self.rows[index], [left, top, right - left, bottom - top]
            self.note("box-outside", "cut", index, row["bbox"], box)
            if row.get("area") == width * height:  # of the box, not of a mask
                row["area"] = self.areas[index] = box[2] * box[3]
            row["bbox"], self.boxes[index] = box, box

    def _number(self) -> None:
        """Give an id to annotations without one, or with one that an earlier annotation has."""
        kept = np.flatnonzero(self.is_kept)
        keys = self.split.annotation_ids.keys
        next_id = int(keys.max(initial=0)) + 1
        missing = kept[keys[kept] == NO_ID].tolist()
        again = kept[duplicated(keys[kept])].tolist()
        for index in sorted([*missing, *again]):
            row = self.rows[index]
            if not isinstance(row, dict):
                continue
            is_missing = row.get("id") is None
            kind = ("read-otherwise", "numbered") if is_missing else ("annotation-id-duplicate", "renumbered")
            self.note(*kind, index, row.get("id"), next_id)
            row["id"] = next_id
            next_id += 1

    def _count_loss(self) -> None:
        """Count the removed annotations of each class, without duplicates."""
        kept = Counter(map(self._class_of, np.flatnonzero(self.is_kept).tolist()))
        self.fix.lost = Counter(map(self._class_of, np.flatnonzero(~self.is_kept & ~self.is_duplicate).tolist()))
        self.fix.lost_classes = [name for name in self.fix.lost if not kept[name]]

    def _class_of(self, index: int) -> str:
        label = int(self.label[index])
        if label >= 0:
            return self.split.categories[label].name
        return f"category_id {self.read.id_of(self.read.of_category[index])!r}"


def _repeated_boxes(split: Split, rows: list[Any], indices: np.ndarray) -> np.ndarray:
    """Those of ``indices`` whose image, class, box and segmentation equal those of an earlier one."""
    keys = np.column_stack([split.image[indices], split.label[indices], split.boxes[indices]])
    _, group, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    seen: dict[int, list[Any]] = {}
    again = []
    for index, number in zip(indices.tolist(), group.reshape(-1).tolist(), strict=True):
        if counts[number] > 1:
            earlier = seen.setdefault(number, [])
            if rows[index].get("segmentation") in earlier:
                again.append(index)
            else:
                earlier.append(rows[index].get("segmentation"))
    return np.array(again, dtype=np.int64)


def _is_ambiguous(keys: np.ndarray, entry: np.ndarray) -> np.ndarray:
    """Whether the id of each annotation's ``entry`` [M], by the entries' ``keys`` [N], is that of another too, [M]."""
    is_shared = np.append(np.isin(keys, keys[duplicated(keys)]), False)
    return is_shared[np.maximum(entry, -1)]


def _is_float_id(value: Any) -> bool:
    """Whether an id is an integer written as 1.0."""
    return type(value) is float and value.is_integer()


def _plain(value: Any) -> Any:
    """The value with NaN and infinities as text, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
