"""Masks as the doctor reads them: each class of a mask is an annotation with its pixels as area."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from detector.analysis.doctor.columns import Split
from detector.analysis.doctor.findings import Example, Finding, findings_of, in_words
from detector.config.schema import Config
from detector.data.formats.columns import Ids
from detector.data.formats.mask_files import MaskFiles
from detector.data.images import read_size
from detector.data.segmentation import Masked, held_back, read_masked
from detector.data.split import split_to_read
from detector.errors import DataError, counted
from detector.structures import IGNORED_PIXEL

RARE = 0.001  # of the pixels


def read_masks(config: Config, name: str) -> list[Split]:
    """The split of ``data.train`` or ``data.val``; of ``data.train`` both, where a part of it is held back."""
    data = config.data
    without: list[str] = []
    masked = read_masked(data, *split_to_read(data, name), without=without)
    faults: dict[str, list[Example]] = {}
    missing = [Example(file, detail=f"no mask in {masked.source}") for file in without]
    pixels = np.zeros((len(masked), len(masked.categories)), dtype=np.int64)
    for index in range(len(masked)):
        file = os.fsdecode(masked.files[index])
        mask, fault = _examine(masked, index)
        if fault:
            faults.setdefault(fault[0], []).append(Example(file, detail=fault[1]))
        if mask is None:
            continue
        pixels[index] = np.bincount(mask.ravel(), minlength=IGNORED_PIXEL + 1)[: len(masked.categories)]
        if words := _size_fault(masked.file(index), mask.shape, data.exif):
            faults.setdefault("mask-size", []).append(Example(file, detail=words))
    split = _as_split(masked, name, pixels)
    split.faults = [Finding("mask-missing", name, len(missing), missing[:8])] if missing else []
    for check, examples in faults.items():
        split.faults += findings_of(check, name, examples, lambda example: example)
    split.faults += _rare(split, pixels)
    if data.val_share is None:
        return [split]
    is_val = held_back(masked, data.val_share, config.seed)
    train, val = split.select("train", ~is_val), split.select("val", is_val)
    train.faults = split.faults
    return [train, val]


def _examine(masked: Masked, index: int) -> tuple[np.ndarray | None, tuple[str, str] | None]:
    """The mask, where it can be read, and what is wrong with it: the check and words."""
    try:
        if isinstance(masked.masks, MaskFiles):
            return masked.masks.legend.examine(masked.masks.file(index))
        return masked.mask(index), None
    except DataError as error:
        return None, ("mask-unreadable", str(error))


def _size_fault(image: Path, shape: tuple[int, ...], exif: str) -> str:
    """Why a mask does not fit its image; empty if it does, or if the image cannot be read, which is another finding."""
    try:
        size = read_size(image, "stored")
    except DataError:
        return ""
    fits = size == shape or (exif != "stored" and size[::-1] == shape)
    return "" if fits else f"the image is {size[1]}×{size[0]}, its mask {shape[1]}×{shape[0]}"


def _as_split(masked: Masked, name: str, pixels: np.ndarray) -> Split:
    image, label = np.nonzero(pixels)
    total = max(1, pixels.sum())
    names = [category.name for category in masked.categories]
    fractions = pixels.sum(axis=0) / total
    order = np.argsort(-fractions, kind="stable").tolist()
    notice = f"{name}: {counted(int(total), 'pixel')}: "
    notice += ", ".join(f"{names[place]} {fractions[place]:.2%}" for place in order[:20])
    return Split(
        name=name,
        source=masked.source,
        root=masked.root,
        has_boxes=False,
        categories=masked.categories,
        files=[os.fsdecode(file) for file in masked.files],
        image_ids=Ids.counting(len(masked)),
        sizes=np.zeros((len(masked), 2), dtype=np.int64),
        annotation_ids=Ids.counting(len(image)),
        image=image,
        label=label,
        boxes=np.zeros((len(image), 4)),
        areas=pixels[image, label].astype(np.float64),
        is_crowd=np.zeros(len(image), dtype=bool),
        notice=notice + (f"; {masked.note}" if masked.note else ""),
    )


def _rare(split: Split, pixels: np.ndarray) -> list[Finding]:
    total = pixels.sum(axis=0)
    fractions = total / max(1, total.sum())
    rare = np.flatnonzero((total > 0) & (fractions < RARE)).tolist()
    said = [f"{split.categories[label].name}: {fractions[label]:.3%} of the pixels" for label in rare]
    return list(findings_of("class-small", split.name, said, in_words))
