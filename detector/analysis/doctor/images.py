"""Checks of the image files against the annotations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from detector.analysis.doctor.columns import Split
from detector.analysis.doctor.files import FileFacts
from detector.analysis.doctor.findings import Example, Finding, findings_of
from detector.data.headers import QUARTER_TURNS, is_ambiguous
from detector.data.images import depth_fault
from detector.data.listing import list_images
from detector.data.names import Names, files_below


def check_images(
    split: Split, facts: Sequence[FileFacts], in_channels: int, exif: str, max_value: int | None
) -> Iterator[Finding]:
    """Findings in one split."""
    for check in ("file-unreadable", "file-damaged", "file-channels"):
        yield from split.in_images(check, _with_fault(split, facts, check), lambda index: facts[index].reason)
    yield from _names(split, facts)
    yield from _extensions(split, facts)
    yield from _modes(split, facts, in_channels)
    fault = depth_fault(max((own.peak for own in facts), default=0), max_value)
    deep = [index for index, own in enumerate(facts) if own.peak] if fault else []
    yield from split.in_images("depth-range", deep, lambda index: f"values up to {facts[index].peak:,}", fault)
    if split.has_boxes:
        yield from _frames(split, facts, exif)


def _with_fault(split: Split, facts: Sequence[FileFacts], check: str) -> list[int]:
    return [index for index, own in enumerate(facts) if own.fault == check and split.files[index]]


def _names(split: Split, facts: Sequence[FileFacts]) -> Iterator[Finding]:
    """Names without a file or that lead out of the folder, and the files that are probably meant."""
    names = Names(files_below(split.root))
    for check in ("file-outside", "file-missing"):
        indices = _with_fault(split, facts, check)
        meant = [len(names.meant(split.files[index])) for index in indices]

        def detail(index: int) -> str:
            return "; ".join(filter(None, [facts[index].reason, names.hint(split.files[index])]))

        one, several = meant.count(1), sum(count > 1 for count in meant)
        said = [f"{one:,} probably exist under another name"] if one else []
        said += [f"{several:,} may be any of several files"] if several else []
        yield from split.in_images(check, indices, detail, "; ".join(said))


def check_unlisted(splits: Sequence[Split], facts: Sequence[Sequence[FileFacts]]) -> Iterator[Finding]:
    """Images in the image folders that no split lists; class folders list all of theirs.

    A file that is probably meant by a name without a file is told with that name.
    """
    listed = {split.path(index) for split in splits for index, file in enumerate(split.files) if file}
    for root in dict.fromkeys(split.root for split in splits if split.root != split.source):
        files = [file for file in list_images(root).files if root / file not in listed]
        names, meant = Names(files), set()
        for split, own in zip(splits, facts, strict=True):
            if split.root == root:
                lost = _with_fault(split, own, "file-missing") + _with_fault(split, own, "file-outside")
                meant |= {tuple(names.meant(split.files[index])) for index in lost}
        files = [file for file in files if (file,) not in meant]
        name = "/".join(split.name for split in splits if split.root == root)
        yield from findings_of("file-unlisted", name, files, Example)


def _extensions(split: Split, facts: Sequence[FileFacts]) -> Iterator[Finding]:
    known = Image.registered_extensions()
    wrong = []
    for index, own in enumerate(facts):
        suffix = split.path(index).suffix.lower() if own.format else ""
        # MPO is a JPEG followed by a second image.
        if own.format not in ("", "array", known.get(suffix)) and (own.format, known.get(suffix)) != ("JPEG", "MPO"):
            wrong.append(index)
    yield from split.in_images("file-extension", wrong, lambda index: f"is {facts[index].format}")


def _modes(split: Split, facts: Sequence[FileFacts], in_channels: int) -> Iterator[Finding]:
    usual = {1: ("L",), 3: ("RGB",)}.get(in_channels)
    if usual is None:
        return
    odd = [index for index, own in enumerate(facts) if own.mode and own.mode not in usual]
    counts = Counter(facts[index].mode for index in odd)
    detail = ", ".join(f"{count:,} {mode}" for mode, count in counts.most_common())
    yield from split.in_images("file-mode", odd, lambda index: facts[index].mode, detail)


def _frames(split: Split, facts: Sequence[FileFacts], exif: str) -> Iterator[Finding]:
    """Sizes that are missing or wrong, and EXIF orientations that leave the frame of the boxes open."""
    differing, ambiguous, turned, missing, unclear = [], [], [], [], []
    malformed = split.rows_at_fault("size-malformed")
    for index, own in enumerate(facts):
        size = (int(split.sizes[index, 0]), int(split.sizes[index, 1]))
        stored, is_quarter = (own.width, own.height), own.orientation in QUARTER_TURNS
        if size[0] == 0 and split.files[index] and index not in malformed:
            (unclear if exif == "auto" and is_quarter and own.width != own.height else missing).append(index)
        if own.width == 0 or size[0] == 0:
            continue
        upright = stored[::-1] if is_quarter else stored
        if size not in {"auto": (stored, upright), "stored": (stored,), "upright": (upright,)}[exif]:
            differing.append(index)
        elif exif == "auto" and own.orientation != 1 and split.objects_per_image[index]:
            (ambiguous if is_ambiguous(own.orientation, *stored) else turned).append(index)

    def sizes(index: int) -> str:
        width, height = split.sizes[index]
        return f"annotated {width}×{height}, is {facts[index].width}×{facts[index].height}"

    def orientation(index: int) -> str:
        return f"EXIF orientation {facts[index].orientation}"

    yield from split.in_images("size-differs", differing, sizes)
    yield from split.in_images("size-missing", missing)
    yield from split.in_images("size-unclear", unclear, orientation)
    yield from split.in_images("exif-ambiguous", ambiguous, orientation)
    yield from split.in_images("exif-turned", turned, orientation)


def image_sizes(split: Split, facts: Sequence[FileFacts]) -> np.ndarray:
    """Width and height of each image, as annotated or else of its file, 0 where unknown, [I, 2] int64."""
    of_files = np.array([(own.width, own.height) for own in facts], dtype=np.int64).reshape(-1, 2)
    return np.where((split.sizes == 0).any(axis=1, keepdims=True), of_files, split.sizes)
