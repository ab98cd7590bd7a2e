"""Figures and checks of whole splits: classes, object sizes, objects per image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from detector.analysis.doctor.columns import Split
from detector.analysis.doctor.findings import Finding, findings_of, in_words
from detector.analysis.small_objects import FRACTION, SMALL, what_pays
from detector.config.schema import ResizeConfig
from detector.data.formats.columns import class_differences
from detector.data.spot_check import FEW
from detector.data.transforms.resize import input_sizes

IMBALANCE = 100  # times the objects of a class
SMALL_SIDES = (8, 16, 32)  # pixels at the input size; P3's cells are 8 pixels wide and its smallest anchors usually 32


@dataclass(frozen=True)
class SetFacts:
    """The figures of one split. Object sizes are square roots of areas, in pixels at the input size."""

    name: str
    source: str
    images: int
    empty: int  # images without objects
    objects: int
    crowds: int
    classes: list[tuple[str, int, int]]  # name, objects, images with one
    objects_per_image: list[int]
    sizes: np.ndarray  # of each object, float32; empty for labelled images
    stored_sizes: np.ndarray  # the same in the files
    image_sizes: list[tuple[str, int]]  # the most common, with the number of images

    def fraction_under(self, side: float) -> float:
        return float((self.sizes < side).mean()) if len(self.sizes) else 0.0


def describe(split: Split, image_sizes: np.ndarray, resize: ResizeConfig, tile: int | None = None) -> SetFacts:
    """The figures of a split; ``image_sizes`` [I, 2] are width and height, ``tile`` is ``data.tiles.size``."""
    at_input, stored = np.empty((2, 0), dtype=np.float32)
    if split.has_boxes:
        at_input, stored = object_sizes(split, image_sizes, resize, tile)
    rows = np.flatnonzero(split.is_object)
    pairs = np.unique(np.stack([split.label[rows], split.image[rows]], axis=1), axis=0)
    images_per_class = np.bincount(pairs[:, 0], minlength=len(split.categories))
    known = image_sizes[(image_sizes > 0).all(axis=1)]
    sizes, counts = np.unique(known, axis=0, return_counts=True)
    most_common = np.argsort(-counts, kind="stable")[:10]
    return SetFacts(
        name=split.name,
        source=str(split.source),
        images=len(split.files),
        empty=int(split.is_empty.sum()),
        objects=len(rows),
        crowds=int((split.is_sound & split.is_crowd).sum()),
        classes=[
            (category.name, int(objects), int(images))
            for category, objects, images in zip(
                split.categories, split.objects_per_class, images_per_class, strict=True
            )
        ],
        objects_per_image=split.objects_per_image.tolist(),
        sizes=at_input,
        stored_sizes=stored,
        image_sizes=[(f"{sizes[index, 0]}×{sizes[index, 1]}", int(counts[index])) for index in most_common],
    )


def object_sizes(
    split: Split, image_sizes: np.ndarray, resize: ResizeConfig, tile: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """The square root of each object's area once its image, or a tile, is resized, and before; float32.

    Only in images of known size.
    """
    is_known = (image_sizes > 0).all(axis=1)
    factors = np.zeros(image_sizes.shape)  # [I, 2] width, height
    known = image_sizes[is_known]
    seen = np.full_like(known, tile) if tile else known
    factors[is_known] = input_sizes(seen[:, ::-1], resize)[:, ::-1] / seen
    rows = np.flatnonzero(split.is_object)
    rows = rows[is_known[split.image[rows]]]
    sides = split.boxes[rows, 2:]
    at_input, stored = (np.sqrt(both.prod(axis=1)) for both in (sides * factors[split.image[rows]], sides))
    return at_input.astype(np.float32), stored.astype(np.float32)


def check_sets(splits: Sequence[Split], facts: Sequence[SetFacts], max_detections: int) -> Iterator[Finding]:
    """Findings in each split, and differences between the classes of train and val."""
    for split, own in zip(splits, facts, strict=True):
        yield from _classes(split)
        yield from split.in_images("images-empty", split.is_empty & ~split.has_region)
        yield from split.in_images("images-ignored", split.is_empty & split.has_region)
        if split.is_train and not split.is_object.any():
            yield from findings_of("objects-none", split.name, [f"{len(split.files):,} images without one"], in_words)
        if split.has_boxes:
            yield from _objects(split, own, max_detections)
    for split in splits:
        if not split.is_train and len(splits) > 1:
            yield from _differing_classes([own for own in splits if own.is_train], split)


def _objects(split: Split, own: SetFacts, max_detections: int) -> Iterator[Finding]:
    counts = split.objects_per_image
    yield from split.in_images("images-crowded", counts > max_detections, lambda index: f"{counts[index]} objects")
    if own.fraction_under(SMALL) > FRACTION:
        fractions = ", ".join(f"{own.fraction_under(side):.0%} under {side} px" for side in SMALL_SIDES)
        yield from findings_of(
            "objects-small", split.name, [f"{fractions}; {what_pays(own.sizes, own.stored_sizes)}"], in_words
        )


def _classes(split: Split) -> Iterator[Finding]:
    counts = split.objects_per_class

    def in_classes(check: str, is_faulty: np.ndarray) -> Iterator[Finding]:
        labels = np.flatnonzero(is_faulty).tolist()
        return findings_of(
            check, split.name, [f"{split.categories[label].name}: {counts[label]:,}" for label in labels], in_words
        )

    must_learn = split.is_train and not split.has_boxes  # a folder's class, or one of data.classes
    yield from in_classes("class-unlearnt" if must_learn else "class-empty", counts == 0)
    if split.is_train:
        yield from in_classes("class-rare", (counts > 0) & (counts < FEW))
        yield from in_classes("class-imbalance", (counts >= FEW) & (counts * IMBALANCE < counts.max(initial=0)))


def _differing_classes(trains: Sequence[Split], val: Split) -> Iterator[Finding]:
    """Compare by id and name, or by name where ids are not the files' own, several sets are joined, or images labelled.

    Val may lack classes, or list others without annotations.
    """
    if val.has_boxes and val.has_ids and len(trains) == 1 and trains[0].has_ids:
        differences = class_differences(val.categories, trains[0].categories, val.is_used)
        said = [
            f"{own.id} {own.name!r} of val is {f'{other.id} {other.name!r}' if other else 'no class'} in train"
            for own, other in differences
        ]
    else:
        known = {category.name for train in trains for category in train.categories}
        is_listed = val.is_used if val.has_boxes else np.ones(len(val.categories), dtype=bool)
        names = [own.name for own, listed in zip(val.categories, is_listed, strict=True) if listed]
        said = [f"{name!r} only in val" for name in names if name not in known]
    yield from findings_of("classes-differ", "train/val", said, in_words)
