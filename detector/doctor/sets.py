"""What a split holds as a whole: classes, sizes of objects, objects an image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from detector.config import ResizeConfig
from detector.doctor.columns import Split
from detector.doctor.findings import Example, Finding, found

RARE = 10  # objects; with fewer, a class is not learnt
IMBALANCE = 100
SMALL_SIDES = (8, 16, 32)  # pixels at the input size; P3's cells are 8 pixels wide and its smallest anchors usually 32
SMALL_SHARE = 0.25


@dataclass(frozen=True)
class SetFacts:
    """The numbers of one split. Sizes are square roots of areas, in pixels at the input size."""

    name: str
    source: str
    images: int
    empty: int  # images without objects
    objects: int
    crowds: int
    classes: list[tuple[str, int, int]]  # name, objects, images with one
    objects_an_image: list[int]  # of each image
    sizes: np.ndarray  # of each object, float32; empty for labelled pictures
    picture_sizes: list[tuple[str, int]]  # the commonest, and how many have it

    def share_under(self, side: float) -> float:
        return float((self.sizes < side).mean()) if len(self.sizes) else 0.0


def describe(split: Split, picture_sizes: np.ndarray, resize: ResizeConfig) -> SetFacts:
    """``picture_sizes`` [I, 2] are width and height."""
    rows = np.flatnonzero(split.is_object)
    pairs = np.unique(np.stack([split.label[rows], split.image[rows]], axis=1), axis=0)
    images_a_class = np.bincount(pairs[:, 0], minlength=len(split.categories))
    known = picture_sizes[(picture_sizes > 0).all(axis=1)]
    sizes, counts = np.unique(known, axis=0, return_counts=True)
    commonest = np.argsort(-counts, kind="stable")[:10]
    return SetFacts(
        name=split.name,
        source=str(split.source),
        images=len(split.files),
        empty=len(split.empty_images),
        objects=len(rows),
        crowds=int((split.is_sound & split.is_crowd).sum()),
        classes=[
            (category.name, int(objects), int(images))
            for category, objects, images in zip(split.categories, split.objects_a_class, images_a_class, strict=True)
        ],
        objects_an_image=split.objects_an_image.tolist(),
        sizes=object_sizes(split, picture_sizes, resize) if split.has_boxes else np.empty(0, dtype=np.float32),
        picture_sizes=[(f"{sizes[place, 0]}×{sizes[place, 1]}", int(counts[place])) for place in commonest],
    )


def object_sizes(split: Split, picture_sizes: np.ndarray, resize: ResizeConfig) -> np.ndarray:
    """The square root of each object's area once its picture is resized, without those of unknown pictures, float32."""
    with np.errstate(divide="ignore"):  # as detector.data.transforms.target_size has it
        scale = np.minimum(resize.short[-1] / picture_sizes.min(axis=1), resize.long / picture_sizes.max(axis=1))
    rows = np.flatnonzero(split.is_object)
    sizes = np.sqrt(split.boxes[rows, 2:].prod(axis=1)) * scale[split.image[rows]]
    return sizes[np.isfinite(sizes)].astype(np.float32)


def check_sets(splits: Sequence[Split], facts: Sequence[SetFacts], max_detections: int) -> Iterator[Finding]:
    """Findings of each split, and of the classes of both."""
    for split, own in zip(splits, facts, strict=True):
        yield from _classes(split)
        yield from found("images-empty", split.name, split.empty_images, split.example_of_image)
        if split.has_boxes:
            crowded = np.flatnonzero(split.objects_an_image > max_detections)
            yield from found("images-crowded", split.name, crowded, lambda index, split=split: split.example_of_image(
                index, f"{split.objects_an_image[index]} objects"))  # fmt: skip  # type: ignore[misc]
            if own.share_under(16) > SMALL_SHARE:
                shares = ", ".join(f"{own.share_under(side):.0%} under {side} px" for side in SMALL_SIDES)
                yield Finding("objects-small", split.name, 1, [Example(detail=shares)])
    if len(splits) == 2:
        yield from _differing_classes(*splits)


def _classes(split: Split) -> Iterator[Finding]:
    counts = split.objects_a_class

    def example(label: int) -> Example:
        return Example(detail=f"{split.categories[label].name}: {counts[label]:,}")

    yield from found("class-empty", split.name, np.flatnonzero(counts == 0), example)
    if split.name == "train":
        yield from found("class-rare", split.name, np.flatnonzero((counts > 0) & (counts < RARE)), example)
        imbalanced = np.flatnonzero((counts >= RARE) & (counts * IMBALANCE < counts.max(initial=0)))
        yield from found("class-imbalance", split.name, imbalanced, example)


def _differing_classes(train: Split, val: Split) -> Iterator[Finding]:
    """By id and name; of labelled pictures by name, and val may lack some."""
    sets = [
        {
            f"{category.id} {category.name!r}" if split.has_boxes else repr(category.name)
            for category in split.categories
        }
        for split in (train, val)
    ]
    only = [f"{name} only in train" for name in sorted(sets[0] - sets[1])] if train.has_boxes else []
    only += [f"{name} only in val" for name in sorted(sets[1] - sets[0])]
    yield from found("classes-differ", "train/val", range(len(only)), lambda place: Example(detail=only[place]))
