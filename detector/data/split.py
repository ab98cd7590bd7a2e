"""Which images are held back for evaluation: one rule for every task, for the doctor and for ``detector split``.

Dimension key: I images, M annotations, G groups of images that stay together.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from detector.config.schema import DataConfig, SplitConfig
from detector.data.cache import local_split
from detector.data.listing import check_folder
from detector.errors import ConfigError, DataError, counted
from detector.system.json_stream import show_text


def hold_back(
    source: Path,
    names: Sequence[bytes],
    image: np.ndarray,
    label: np.ndarray,
    fraction: float,
    seed: int,
    thing: str = "image",
) -> np.ndarray:
    """Which of I images are held back, [I] bool, by their file names; annotation m has class label[m], in image[m].

    Each image is decided on its own: a hash of ``seed`` and its name gives a number in [0, 1), and the image is held
    back if that is below ``fraction``. So added images move no others, and about ``fraction`` of each class is held
    back. Then as few images as possible are moved, those whose numbers are nearest to ``fraction`` first:

    - to train, one of each class that is wholly held back;
    - to val, one of each class that has none there, the rarest classes first, unless train would lose the last image
      of a class.

    Only these few may move back when their class gets more images. Raises :class:`detector.errors.DataError` where
    nothing can be held back.
    """
    number = np.array([int.from_bytes(hashlib.sha256(b"%d %s" % (seed, name)).digest()[:8], "big") for name in names])
    number = number.astype(np.float64) / 2**64
    is_val = number < fraction
    # One more class that all images have, so that neither part is empty.
    everything = label.max(initial=-1) + 1
    pairs = np.unique(
        np.stack([np.append(label, np.full(len(names), everything)), np.append(image, np.arange(len(names)))]), axis=1
    )  # [2, P] class and image, sorted by class
    first = np.searchsorted(pairs[0], np.arange(everything + 2))
    members = [pairs[1, start:end] for start, end in pairwise(first) if end > start]  # images of each class
    members.sort(key=lambda own: (len(own), number[own].min()))  # the rarest first, in any order of the labels
    for own in members:
        if is_val[own].all():
            is_val[own[number[own].argmax()]] = False
    in_train = np.bincount(pairs[0, ~is_val[pairs[1]]], minlength=everything + 1)
    by_image = pairs[:, np.argsort(pairs[1], kind="stable")]
    bounds = np.searchsorted(by_image[1], np.arange(len(names) + 1))
    for own in members:
        if is_val[own].any():
            continue
        for index in own[np.argsort(number[own], kind="stable")]:
            classes = by_image[0, bounds[index] : bounds[index + 1]]
            if (in_train[classes] > 1).all():
                is_val[index] = True
                in_train[classes] -= 1
                break
    if not is_val.any():
        raise DataError(
            f"{source}: of its {counted(len(names), thing)}, none can be held back without taking the last one of a"
            f" class from training; add {thing}s, or train without evaluation (data.val=null)"
        )
    return is_val


def group(source: Path, names: Sequence[str], pattern: str | None) -> tuple[list[bytes], np.ndarray]:
    """Which of I images stay together, such as the frames of a video: keys of G groups, and the group of each, [I].

    ``pattern`` is a regular expression that is searched in the names: images are together where all its groups match
    the same text, or the whole of it where it has none. An image that does not match stays alone; so does every one
    without a pattern.
    """
    if pattern is None:
        return [name.encode() for name in names], np.arange(len(names))
    try:
        matches = list(map(re.compile(pattern).search, names))
    except re.error as error:
        raise ConfigError(f"command line: --group: {pattern!r} is not a regular expression: {error}") from None
    if not any(matches):
        raise ConfigError(
            f"{source}: no file name matches {pattern!r} of --group; names are like {show_text(names[0])}"
        )
    keys = [
        "\0".join(match.groups("") or [match[0]]) if match else f"\0{name}"
        for match, name in zip(matches, names, strict=True)
    ]
    index = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    if len(index) == 1:
        raise ConfigError(
            f"{source}: {pattern!r} of --group keeps {counted(len(names), 'image')} together in one group, which cannot"
            f" be split; put what tells groups apart in parentheses; names are like {show_text(names[0])}"
        )
    return [key.encode() for key in index], np.array([index[key] for key in keys])


def split_parts(
    source: Path,
    names: Sequence[bytes],
    image: np.ndarray,
    label: np.ndarray,
    val: float,
    test: float,
    seed: int,
    thing: str = "image",
) -> np.ndarray:
    """The part of each image, [I]: 0 train, 1 val, 2 test (none if its fraction is 0). Val is the same without test."""
    part = hold_back(source, names, image, label, val, seed, thing).astype(np.int64)
    if test:
        rest = np.flatnonzero(part == 0)
        place = np.full(len(names), -1)
        place[rest] = np.arange(len(rest))
        is_left = place[image] >= 0
        others = [b"test " + names[index] for index in rest]  # other numbers than those that chose val
        is_test = hold_back(source, others, place[image[is_left]], label[is_left], test / (1 - val), seed, thing)
        part[rest[is_test]] = 2
    return part


def split_folds(
    source: Path,
    names: Sequence[bytes],
    sizes: np.ndarray,
    image: np.ndarray,
    label: np.ndarray,
    folds: int,
    seed: int,
    thing: str = "image",
) -> np.ndarray:
    """The fold of each of G groups of ``sizes`` [G] images, [G] in 0..folds-1; annotation m is in group image[m].

    Folds are alike in size and in their classes: the groups of the rarest class come first, each goes where that class
    has the fewest annotations yet (Sechidis et al. 2011, iterative stratification, with the order of classes fixed).
    """
    if len(names) < folds:
        raise DataError(f"{source}: {counted(len(names), thing)} cannot make {folds} folds; give fewer --folds")
    number = [hashlib.sha256(b"%d %s" % (seed, name)).digest() for name in names]
    order = np.array(sorted(range(len(names)), key=number.__getitem__))
    pairs, counts = np.unique(np.stack([image, label]), axis=1, return_counts=True)  # [2, P] by group
    bounds = np.searchsorted(pairs[0], np.arange(len(names) + 1))
    rank = np.argsort(order)
    fold = np.full(len(names), -1)
    has = np.zeros((folds, label.max(initial=-1) + 1), dtype=np.int64)  # annotations of each class
    images = np.zeros(folds, dtype=np.int64)

    def place(index: int, own: int | None) -> None:
        first = np.lexsort((images, images if own is None else has[:, own]))[0]
        fold[index] = first
        images[first] += sizes[index]
        mine = slice(*bounds[index : index + 2])
        has[first, pairs[1, mine]] += counts[mine]

    classes, frequency = np.unique(pairs[1], return_counts=True)
    for own in classes[np.argsort(frequency, kind="stable")]:
        members = pairs[0, pairs[1] == own]
        for index in members[np.argsort(rank[members])]:
            if fold[index] < 0:
                place(index, own)
    for index in order[fold[order] < 0]:
        place(index, None)
    return fold


def split_to_read(data: DataConfig, name: str) -> tuple[str, SplitConfig]:
    """The split that lists the images of ``data.train`` or ``data.val`` (``name``); train, if val is held back.

    What it names by URL is copied to this machine first.
    Raises :class:`detector.errors.DetectorError` where the config has no such split, or names it twice.
    """
    if data.val_share is not None:
        default = SplitConfig()
        for key in SplitConfig.model_fields:
            if data.val is not None and getattr(data.val, key) != getattr(default, key):
                raise ConfigError(
                    f"data.val_share: holds back a part of data.train; data.val.{key} is given too; set data.val=null"
                )
        return "train", local_split(data, data.train)
    split = data.train if name == "train" else data.val
    if split is None:
        raise DataError(
            "data.val is null: there is nothing to evaluate on; give data.val.annotations and data.val.images"
        )
    return name, local_split(data, split)


def images_folder(data: DataConfig, name: str, split: SplitConfig) -> Path:
    """``split.images``. Raises :class:`detector.errors.DataError` where it is not set or not a folder."""
    if split.images is None:
        raise not_set(data, name, "images")
    check_folder(split.images, f"data.{name}.images")
    return Path(split.images)


def not_set(data: DataConfig, name: str, key: str) -> DataError:
    """The error for a split without ``annotations`` or ``images``; for val it names every remedy."""
    split = data.train if name == "train" else data.val
    if split is not None and split.sets:
        return DataError(f"data.{name}: a set without {key}; write each as {{annotations: PATH, images: DIR}}")
    error = f"data.{name}.{key} is not set; give it in the config or as data.{name}.{key}="
    error += "DIR" if key == "images" else "PATH"
    if name == "val" and data.val == SplitConfig():
        error += "; or data.val_share=0.2 holds back a part of data.train, data.val=null trains without evaluation"
    return DataError(error)
