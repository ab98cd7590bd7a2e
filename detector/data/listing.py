"""The files below a folder, and which of them are images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from detector.data.headers import is_image_start
from detector.data.images import IMAGE_SUFFIXES
from detector.errors import DataError, near_path


def check_folder(folder: str | Path, key: str) -> None:
    """Refuse what is not a folder; ``key`` is the option or config key that gave it."""
    if not os.path.isdir(folder):  # noqa: PTH112 (Path.is_dir raises for a name that is too long)
        raise DataError(f"{key}: {folder} is not a folder{near_path(folder)}")


def walk(root: Path) -> Iterator[tuple[str, bool]]:
    """Everything below ``root`` that is not a folder: its name relative to ``root``, and whether it is a regular file.

    Links are followed, also to folders, except to a folder that contains the link. Raises
    :class:`detector.errors.DataError` for a folder that cannot be searched.
    """
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        below, above = waiting.pop()
        folder = os.path.join(root, below)  # noqa: PTH118 (a Path for each of 100,000 is slow)
        try:
            status = os.stat(folder)  # noqa: PTH116
            if (own := (status.st_dev, status.st_ino)) in above:
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    # entry.is_dir() raises for a link to itself.
                    is_link = entry.is_symlink()
                    if os.path.isdir(entry.path) if is_link else entry.is_dir():  # noqa: PTH112
                        waiting.append((f"{below}{entry.name}/", above | {own}))
                    else:
                        yield below + entry.name, os.path.isfile(entry.path) if is_link else entry.is_file()  # noqa: PTH113
        except OSError as error:
            raise DataError(f"{folder}: cannot be searched: {error.strerror}") from None


@dataclass
class Listing:
    """The images below a folder, and what else is there."""

    files: list[str]  # relative to the folder, sorted
    by_content: Counter[str] = field(default_factory=Counter)  # images without an image's suffix, by suffix
    skipped: Counter[str] = field(default_factory=Counter)  # other files, by suffix

    def note(self) -> str:
        """One line on ``by_content`` and ``skipped``; empty if there is nothing to say."""
        parts = [("images by their content", self.by_content), ("skipped", self.skipped)]
        return "; ".join(f"{what}: {_counted(counts)}" for what, counts in parts if counts)


def _counted(counts: Counter[str]) -> str:
    most = [f"{count:,} {suffix}" for suffix, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:6]]
    return ", ".join([*most, "…"] if len(counts) > 6 else most)


def list_images(root: Path) -> Listing:
    """The images below ``root``."""
    return sort_out(root, walk(root))


def sort_out(root: Path, entries: Iterable[tuple[str, bool]]) -> Listing:
    """The images among the ``entries`` of ``walk``: by their suffix, or else by their first bytes.

    A link with the suffix of an image is listed even where it leads nowhere. Hidden files and folders belong to other
    programs: thumbnails, checkpoints of notebooks.
    """
    listing = Listing([])
    for name, is_file in entries:
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 (a Path for each of 100,000 is slow)
        if name.startswith(".") or "/." in name:
            listing.skipped["hidden"] += 1
        elif suffix in IMAGE_SUFFIXES and (is_file or (root / name).is_symlink()):
            listing.files.append(name)
        elif is_file and _begins_as_image(root / name, suffix):
            listing.files.append(name)
            listing.by_content[suffix or "without a suffix"] += 1
        else:
            listing.skipped[suffix or "without a suffix"] += 1
    listing.files.sort(key=os.fsencode)
    return listing


def _begins_as_image(path: Path, suffix: str) -> bool:
    """Whether a file without an image's suffix is one. TIFF counts only without any suffix: raw files begin like it."""
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except OSError:
        return False
    return is_image_start(start) and (not suffix or start[:2] not in (b"II", b"MM"))
