"""A cleaned copy of COCO annotations, and a list of every change.

Only what needs no judgement is changed; everything else stays for a person to decide:

- removed: annotations of images or categories that are not listed, boxes that are not four finite numbers, boxes
  without area or wholly outside, and boxes equal to an earlier one (same image, class, box and segmentation);
- cut to the picture: boxes that reach outside; not where the picture's size is in doubt;
- renamed: images whose file is there by another name, as ``names`` has it;
- renumbered: annotations whose id stands before already;
- width and height: taken from the file where they are missing, or wrong and the boxes say so: all of them fit the
  file, and there are none, or one reaches outside the annotated size, or one side is right (a scaled copy has neither),
  or both are within two pixels. Not where EXIF turns the picture by a quarter: the boxes may be on either frame.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.box_rules import TOLERANCE
from detector.doctor.annotations import has_area, is_outside, repeated
from detector.doctor.columns import DANGLING, Split
from detector.doctor.files import FileFacts
from detector.doctor.names import fix_names
from detector.doctor.pictures import QUARTER_TURNS
from detector.doctor.reading import read_json
from detector.errors import ConfigError
from detector.storage import atomic_write, make_folder

ROUNDING = 2  # pixels that both sides may differ by in a picture that was not scaled


def fix_targets(splits: Sequence[Split], out: Path) -> list[tuple[Split, Path]]:
    """Where the copy of each split goes: val beside train, as ``OUT.val.json``. Nothing that exists is written over."""
    if not splits[0].has_boxes:
        raise ConfigError("command line: --fix mends COCO annotations; labelled pictures have none")
    targets = [(splits[0], out), *((split, out.with_suffix(f".val{out.suffix}")) for split in splits[1:])]
    for _, target in targets:
        for path in (target, changes_path(target)):
            if path.exists():
                raise ConfigError(f"{path}: exists and is not written over; give --fix another name")
    return targets


def changes_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.changes.jsonl")


def fix_split(split: Split, facts: Sequence[FileFacts], target: Path) -> int:
    """Write the cleaned copy and ``target``.changes.jsonl; returns the number of changes."""
    tree = read_json(split.source)
    changes = fix_tree(tree, split, facts)
    make_folder(target.parent)
    with atomic_write(changes_path(target)) as file:
        file.writelines(f"{json.dumps(change)}\n" for change in changes)
    with atomic_write(target) as file:
        json.dump(tree, file)
    return len(changes)


def fix_tree(tree: dict[str, Any], split: Split, facts: Sequence[FileFacts]) -> list[dict[str, Any]]:
    """Mend the tree that ``split`` was read from, in place; returns every change."""
    changes = fix_names(tree, split, facts)
    sizes, is_doubtful = _fix_sizes(tree, split, facts, changes)
    if isinstance(tree.get("annotations"), list):
        _fix_annotations(tree, split, sizes, is_doubtful, changes)
    return changes


def _fix_sizes(
    tree: dict[str, Any], split: Split, facts: Sequence[FileFacts], changes: list[dict[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """Corrects widths and heights; returns the sizes, and which of them are still in doubt."""
    sizes, is_doubtful = split.sizes.copy(), np.zeros(len(split.files), dtype=bool)
    low, high = _extents(split)
    for index, own in enumerate(facts):
        annotated, stored = split.sizes[index], np.array([own.width, own.height])
        is_quarter = own.orientation in QUARTER_TURNS
        frames = [stored, stored[::-1]] if is_quarter else [stored]
        if own.width == 0 or any((annotated == frame).all() for frame in frames):
            continue
        is_inside = (low[index] >= -TOLERANCE).all() and (high[index] <= stored + TOLERANCE).all()
        is_shown = (
            (annotated == 0).any()
            or np.isinf(high[index]).all()  # no boxes
            or (high[index] > annotated + TOLERANCE).any()
            or (annotated == stored).any()
            or (np.abs(annotated - stored) <= ROUNDING).all()
        )
        image = tree["images"][index]
        if not (is_inside and is_shown) or (is_quarter and own.width != own.height) or not isinstance(image, dict):
            is_doubtful[index] = True
            continue
        sizes[index] = stored
        changes.append(
            {
                "check": "size-missing" if (annotated == 0).any() else "size-differs",
                "change": "corrected",
                "image": _plain(image.get("id")),
                "file": split.files[index],
                "before": [_plain(image.get("width")), _plain(image.get("height"))],
                "after": stored.tolist(),
            }
        )
        image["width"], image["height"] = stored.tolist()
    return sizes, is_doubtful


def _extents(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """The corners of the box around all boxes of each image, [I, 2] both; infinite, and swapped, without any."""
    low, high = np.full((len(split.files), 2), np.inf), np.full((len(split.files), 2), -np.inf)
    rows = np.flatnonzero(split.is_sound)
    np.minimum.at(low, split.image[rows], split.boxes[rows, :2])
    np.maximum.at(high, split.image[rows], split.boxes[rows, :2] + split.boxes[rows, 2:])
    return low, high


def _fix_annotations(
    tree: dict[str, Any], split: Split, sizes: np.ndarray, is_doubtful: np.ndarray, changes: list[dict[str, Any]]
) -> None:
    rows = tree["annotations"]

    def note(check: str, change: str, index: int, before: Any, after: Any = None) -> None:
        image = int(split.image[index])
        row = rows[index] if isinstance(rows[index], dict) else {}
        entry = {"check": check, "change": change, "annotation": _plain(row.get("id")), "image": row.get("image_id")}
        entry |= {"file": split.files[image] if image >= 0 else None, "before": _plain(before)}
        changes.append(entry if after is None else entry | {"after": after})

    is_kept = np.ones(len(rows), dtype=bool)

    def remove(check: str, places: np.ndarray) -> None:
        for index in places[is_kept[places]].tolist():
            is_kept[index] = False
            note(check, "removed", index, rows[index].get("bbox"))

    is_finite = np.isfinite(split.boxes).all(axis=1)
    remove("image-dangling", np.flatnonzero(split.image == DANGLING))
    remove("category-dangling", np.flatnonzero(split.label == DANGLING))
    remove("box-not-finite", np.flatnonzero(~is_finite & ~split.is_implied & (split.image >= 0)))
    remove("box-no-area", np.flatnonzero(is_finite & ~has_area(split)))
    remove("box-duplicate", _repeated_boxes(split, rows, np.flatnonzero(split.is_object & is_kept)))

    doubt = np.append(is_doubtful, True)[np.maximum(split.image, -1)]
    limits = np.append(np.where(sizes == 0, np.inf, sizes), [[np.inf, np.inf]], axis=0)[np.maximum(split.image, -1)]
    for index in np.flatnonzero(is_outside(split, limits) & ~doubt & is_kept).tolist():
        left, top, width, height = split.boxes[index].tolist()
        wide, high = limits[index].tolist()
        right, bottom = min(left + width, wide), min(top + height, high)
        left, top = max(left, 0.0), max(top, 0.0)
        if right <= left or bottom <= top:
            remove("box-outside", np.array([index]))
            continue
        row, box = rows[index], [left, top, right - left, bottom - top]
        note("box-outside", "cut", index, row["bbox"], box)
        if row.get("area") == width * height:  # of the box, not of a mask
            row["area"] = box[2] * box[3]
        row["bbox"] = box

    kept = np.flatnonzero(is_kept)
    next_id = int(split.annotation_ids.max(initial=0)) + 1
    for place in repeated(split.annotation_ids[kept]).tolist():
        row = rows[kept[place]]
        note("annotation-id-duplicate", "renumbered", int(kept[place]), row["id"], next_id)
        row["id"] = next_id
        next_id += 1
    tree["annotations"] = [rows[index] for index in kept.tolist()]


def _repeated_boxes(split: Split, rows: list[Any], places: np.ndarray) -> np.ndarray:
    """Those of ``places`` whose image, class, box and segmentation an earlier one has."""
    keys = np.column_stack([split.image[places], split.label[places], split.boxes[places]])
    _, group, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    seen: dict[int, list[Any]] = {}
    again = []
    for place, number in zip(places.tolist(), group.reshape(-1).tolist(), strict=True):
        if counts[number] > 1:
            earlier = seen.setdefault(number, [])
            if rows[place].get("segmentation") in earlier:
                again.append(place)
            else:
                earlier.append(rows[place].get("segmentation"))
    return np.array(again, dtype=np.int64)


def _plain(value: Any) -> Any:
    """JSON has no NaN: numbers that are none become text."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
