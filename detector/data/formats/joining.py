"""The classes that are wanted of a data set, and several data sets as one. Classes are told apart by their names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from detector.data.formats.annotations import Annotations, Extra, from_rows
from detector.data.formats.class_folders import unknown_class
from detector.data.formats.columns import Ids, Rows, Texts, counts_of, id_key
from detector.errors import DataError, counted
from detector.structures import Category


def join_rows(
    parts: Sequence[Rows], members: Mapping[str, Sequence[str]], categories: list[Category] | None = None
) -> Annotations:
    """The annotations of sets without faults, with the classes of ``data.classes`` (``members``; empty: all).

    The categories are those of a model, if given, in which all classes must be. Otherwise those of several sets have
    the id of the first set that has them, or else the next free one. Images of several sets are named relative to the
    folder that holds all, and images and annotations are numbered anew.
    """
    if members:
        if categories is None:
            check_members(parts, members)
        parts = [choose_classes(rows, members) for rows in parts]
    if categories is None and (members or len(parts) > 1):
        categories = _union(parts, list(members))
    if len(parts) == 1:
        return from_rows(parts[0], categories)
    for rows in parts:
        rows.has_ids = False
    return _concatenated([from_rows(rows, categories) for rows in parts])


def choose_classes(rows: Rows, members: Mapping[str, Sequence[str]]) -> Rows:
    """Columns with only the classes of ``members``: each is made of those that it lists. Faults are not among them."""
    class_of = {member: name for name, own in members.items() for member in own}
    first = {class_of[own.name]: own.id for own in reversed(rows.categories) if own.name in class_of}
    categories = [Category(first[name], name) for name in members if name in first]
    label_of = {category.name: label for label, category in enumerate(categories)}
    new = np.array([label_of.get(class_of.get(own.name, ""), -1) for own in rows.categories], dtype=np.int64)
    label = np.where(rows.label >= 0, new[rows.label], -1)
    is_kept = label >= 0
    counts = counts_of(rows.label, len(rows.categories))
    dropped = [f"{own.name} {counts[old]:,}" for old, own in enumerate(rows.categories) if new[old] < 0 and counts[old]]
    said = f"data.classes leaves {is_kept.sum():,} of {len(label):,} boxes"
    said += f" (dropped: {', '.join(dropped[:20])}{', …' if len(dropped) > 20 else ''})" if dropped else ""
    return replace(
        rows,
        categories=categories,
        label=label[is_kept],
        annotation_ids=rows.annotation_ids.select(is_kept),
        of_image=rows.of_image[is_kept],
        of_category=rows.of_category[is_kept],
        image=rows.image[is_kept],
        boxes_xywh=rows.boxes_xywh[is_kept],
        areas=rows.areas[is_kept],
        is_crowd=rows.is_crowd[is_kept],
        faults={},
        form="; ".join(filter(None, [rows.form, said])),
        has_ids=False,
    )


def check_members(parts: Sequence[Rows], members: Mapping[str, Sequence[str]]) -> None:
    """Raises for a class of ``members`` that no set has."""
    known = list(dict.fromkeys(category.name for rows in parts for category in rows.categories))
    for member in (member for own in members.values() for member in own):
        if member not in known:
            raise DataError(f"data.classes: {unknown_class(member, known)} ({parts[0].path})")


def _union(parts: Sequence[Rows], order: Sequence[str]) -> list[Category]:
    """The categories of all sets, by name; in this order, or else as the sets have them."""
    ids = {}
    for category in (category for rows in parts for category in rows.categories):
        taken = {id_key(own) for own in ids.values()}
        if category.name not in ids:
            is_free = id_key(category.id) not in taken
            ids[category.name] = category.id if is_free else max(own for own in (*taken, 0) if isinstance(own, int)) + 1
    return [Category(ids[name], name) for name in (order or ids)]


def _concatenated(parts: Sequence[Annotations]) -> Annotations:
    """Annotations of the same categories, one set after the other."""
    for own in parts:
        if own.images is None:
            raise DataError(
                f"{own.path}: does not say where its images are; give the set as"
                f" {{annotations: {own.path}, images: DIR}}"
            )
    folders = [os.path.abspath(own.images) for own in parts]  # noqa: PTH100 (links are the user's own)
    root = os.path.commonpath(folders)
    names = [
        os.path.join(os.path.relpath(folder, root), own.file_name(index)).removeprefix("./")  # noqa: PTH118
        for own, folder in zip(parts, folders, strict=True)
        for index in range(len(own))
    ]
    notices = [own.notice for own in parts if own.notice]
    if again := len(names) - len(set(map(os.path.normpath, names))):
        notices.append(
            f"warning: {counted(again, 'image')} of {parts[0].path} and the other sets are listed again, each time with"
            " the boxes of one set alone: objects that only the other has are background there"
        )
    num_images, num_annotations = sum(map(len, parts)), sum(len(own.labels) for own in parts)
    counts = torch.cat([own.first.diff() for own in parts])
    return Annotations(
        path=Path(" + ".join(str(own.path) for own in parts)),
        categories=parts[0].categories,
        image_ids=Ids.counting(num_images, first=1).map(torch.from_numpy),
        heights=torch.cat([own.heights for own in parts]),
        widths=torch.cat([own.widths for own in parts]),
        names=Texts.of(names).map(torch.from_numpy),
        first=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        annotation_ids=Ids.counting(num_annotations, first=1).map(torch.from_numpy),
        boxes_xywh=torch.cat([own.boxes_xywh for own in parts]),
        labels=torch.cat([own.labels for own in parts]),
        areas=torch.cat([own.areas for own in parts]),
        is_crowd=torch.cat([own.is_crowd for own in parts]),
        notice="\n".join(notices),
        images=Path(root),
    )


def weigh(
    annotations: Annotations, weights: Sequence[float], sizes: Sequence[int], is_chosen: np.ndarray, seed: int
) -> Annotations:
    """The chosen images of sets of ``sizes``, in the ratio of their set's weight.

    Those of the set with the smallest weight occur once. Of a set with 1.5 times that weight, half occur twice: others
    in every epoch, in turns (:class:`detector.data.formats.annotations.Extra`).
    """
    indices: list[int] = []
    extras, start = [], 0
    for number, (weight, size) in enumerate(zip(weights, sizes, strict=True)):
        times, rest = divmod(round(size * weight / min(weights)), max(size, 1))
        order = start + np.random.default_rng([seed, number]).permutation(size)
        more = order[:rest][is_chosen[order[:rest]]].tolist()
        own = start + np.flatnonzero(is_chosen[start : start + size])
        places = len(indices) + np.searchsorted(own, order[is_chosen[order]])
        indices += own.tolist() * times
        extras += [Extra(len(indices), len(more), torch.from_numpy(places))] if more else []
        indices += more
        start += size
    chosen = annotations.select(indices)
    notices, images = [chosen.notice], int(is_chosen.sum())
    if len(indices) > images:
        notices.append(f"weights of the sets: an epoch has {len(indices):,} images, of {images:,} different ones")
    return replace(chosen, extras=tuple(extras), notice="\n".join(filter(None, notices)))
