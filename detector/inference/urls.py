"""Images to predict that are named by a URL: a folder, a file or a pattern of any file system that fsspec reads."""

from __future__ import annotations

import glob
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.images import IMAGE_SUFFIXES, decode_image
from detector.data.inputs import Reading
from detector.data.listing import sort_out
from detector.data.remote import Url, open_system, read_bytes, reading
from detector.errors import DataError
from detector.inference.folder import Images


class UrlImages(Images):
    """Files below a URL, read into memory and never stored here. That one changes meanwhile is not noticed."""

    root: Any  # a URL

    def __getitem__(self, index: int) -> Url:  # type: ignore[override]
        return Url(f"{self.root}/{self.name(index)}")

    def read(self, index: int, _: Callable[[Path], Any], how: Reading) -> np.ndarray:
        url = self[index]
        return decode_image(url, read_bytes(url.text), *how)  # type: ignore[arg-type]

    def has_changed(self, index: int, since: float) -> bool:
        return False


def find_url_images(pattern: str) -> UrlImages:
    """The images of a folder (with all below it), a file or a pattern, by their suffix, sorted by name."""
    system, path = open_system(pattern)
    with reading(pattern):
        if glob.has_magic(path):
            root = path[: min(path.index(sign) for sign in "*?[" if sign in path)].rpartition("/")[0]
            files = system.glob(path)
        elif system.isfile(path):
            root, files = path.rpartition("/")[0], [path]
        else:
            root, files = path.rstrip("/"), system.find(path)
    names = [file.removeprefix(root).lstrip("/") for file in files]
    listing = sort_out(Path(root), ((name, Url(name).suffix.lower() in IMAGE_SUFFIXES) for name in names))
    if not listing.files:
        skipped = f"; {listing.note()}" if listing.skipped else ", or there is no such folder"
        raise DataError(f"{pattern}: has no images ({', '.join(sorted(IMAGE_SUFFIXES))}){skipped}")
    return UrlImages(system.unstrip_protocol(root), listing.files, listing.note())
