"""Images that are seen by windows: in memory, or in a file that is too large to decode whole.

A :class:`LargeFile` is read by libvips (extra ``large``) from the top down, a band of full width at a time: no file
format is decoded twice, and memory is that of one row of tiles. JPEG 2000, which libvips' wheel lacks, is read by
rasterio (extra ``jpeg2000``). The limit on pixels holds for what is decoded, the windows, and not for the file.
"""

from __future__ import annotations

import importlib.util
import math
import os
import threading
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import TiffImagePlugin

from detector.data.headers import MAX_PIXELS, check_size, open_header, orientation_of, stored_size
from detector.data.images import LARGEST_FILE, ChannelsError, read_annotated_image, read_image, scale_depth
from detector.data.transforms.resize import cut, resize
from detector.errors import DataError
from detector.ops.tiles import Window

if TYPE_CHECKING:
    import pyvips
    import rasterio

TILE_WIDTH = 322  # a tag of TIFF files that are stored in tiles
STRIP = 256  # rows that are shrunk at a time
CACHE = 256  # MB of decoded blocks of JPEG 2000 that are kept
SHOWN = 4096  # long side of a large image that is drawn on
_FORMATS = {"uchar": np.uint8, "ushort": np.uint16}


@dataclass
class LargeFile:
    """An image file of more pixels than are decoded at once."""

    path: Path
    channels: int
    exif: str
    max_value: int | None

    _piece = 128, 4096  # rows and columns that are decoded at a time

    def __post_init__(self) -> None:
        self._lock, self._start, self._end = threading.Lock(), 0, 0  # rows that the band holds
        self._band = np.zeros((0, 0, 0), dtype=np.uint8)

    @cached_property
    def _image(self) -> pyvips.Image:
        """From the top down."""
        return self._opened("sequential")

    @cached_property
    def _region(self) -> pyvips.Region:
        """What reads the image on from where it stopped: each evaluation of the image itself would begin anew."""
        import pyvips

        return pyvips.Region.new(self._image)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._image.height, self._image.width, self.channels

    @property
    def _dtype(self) -> np.dtype:
        return np.dtype(_FORMATS[self._image.format])

    def read(self, window: Window) -> np.ndarray:
        """A window [h, w, C]. Cheap in rows of windows from the top down; going back up begins the file anew."""
        top, left, height, width = window
        check_size(self.path, self.shape[1], height)
        with self._lock:
            if top < self._start or height != len(self._band):
                for name in ("_region", "_image"):
                    self.__dict__.pop(name, None)
                self._start = self._end = 0
                self._band = np.empty((height, *self.shape[1:]), dtype=self._dtype)
            if top + height > self._end:
                self._move_to(top)
            return scale_depth(self._band[top - self._start :, left : left + width].copy(), self.max_value)

    def _move_to(self, top: int) -> None:
        """Make the band begin at this row: in place, and a piece at a time, as it is most of the memory."""
        kept, bottom = max(0, self._end - top), top + len(self._band)
        for row in range(kept):
            self._band[row] = self._band[top - self._start + row]
        rows, columns = self._piece
        width = self.shape[1]
        for row in range(self._end, bottom, rows):  # none can be skipped
            for left in range(0, width, columns):
                piece = row, left, min(rows, bottom - row), min(columns, width - left)
                new = self._pixels(self._region, piece)[max(0, top - row) :]
                place = max(row, top) - top
                self._band[place : place + len(new), left : left + columns] = new
        self._start, self._end = top, bottom

    def read_anywhere(self, window: Window) -> np.ndarray:
        """A window [h, w, C] on its own: for formats with tiles, such as TIFF, only these are decoded."""
        import pyvips

        return scale_depth(self._pixels(pyvips.Region.new(self._opened("random")), window), self.max_value)

    def shrunk(self, longest: int) -> np.ndarray:
        """The whole image [h, w, C], its long side at most ``longest``."""
        height, width, channels = self.shape
        scale = min(1.0, longest / max(height, width))
        size = max(1, round(height * scale)), max(1, round(width * scale))
        count = min(size[0], math.ceil(height / STRIP))
        tops, ends = (np.linspace(0, side, count + 1).round().astype(int).tolist() for side in (height, size[0]))
        image = np.empty((*size, channels), dtype=self._dtype)
        whole = replace(self)  # read from its top, wherever this one is
        for (top, bottom), (start, end) in zip(pairwise(tops), pairwise(ends), strict=True):
            strip = np.ascontiguousarray(whole._pixels(whole._region, (top, 0, bottom - top, width)))
            image[start:end] = resize(strip, end - start, size[1])
        return scale_depth(image, self.max_value)

    def _opened(self, access: str) -> pyvips.Image:
        import pyvips

        try:
            image = pyvips.Image.new_from_file(str(self.path), access=access, fail_on="truncated")
            if self.exif != "stored" and self._orientation != 1:
                image = pyvips.Image.new_from_file(str(self.path), fail_on="truncated").autorot()
        except pyvips.Error as error:
            raise self._fault(error) from None
        if image.interpretation == "cmyk":
            raise DataError(f"{self.path}: has CMYK colours, which are not read at this size; convert it to RGB")
        if image.format not in _FORMATS:
            raise DataError(f"{self.path}: holds {image.format} values; an image has 8 or 16 bits")
        self._check_bands(image.bands)
        return image

    @cached_property
    def _orientation(self) -> int:
        with self.path.open("rb") as file:
            header = open_header(self.path, file)
            return orientation_of(header) if header else 1

    def _check_bands(self, bands: int) -> None:
        if self.channels != bands and not (self.channels in (1, 3) and bands <= 4):
            raise ChannelsError(f"{self.path}: has {bands} channels, model.in_channels asks for {self.channels}")

    def _as_channels(self, pixels: np.ndarray) -> np.ndarray:
        """Without alpha; gray and RGB into each other, as ``channels`` asks."""
        if self.channels in (1, 3) and pixels.shape[2] in (2, 4):
            pixels = pixels[:, :, :-1]
        if self.channels == 3 and pixels.shape[2] == 1:
            return pixels.repeat(3, axis=2)
        if self.channels == 1 and pixels.shape[2] == 3:
            return cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)[:, :, None]
        return pixels

    def _pixels(self, region: pyvips.Region, window: Window) -> np.ndarray:
        import pyvips

        top, left, height, width = window
        try:
            data = region.fetch(left, top, width, height)
        except pyvips.Error as error:
            raise self._fault(error) from None
        return self._as_channels(np.frombuffer(data, dtype=self._dtype).reshape(height, width, -1))

    def _fault(self, error: Exception) -> DataError:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        return DataError(f"{self.path}: cannot be decoded ({reason}); it is damaged or cut off, so restore the file")


class Jpeg2000File(LargeFile):
    """By rasterio, which decodes any window on its own; a dataset of it is for one thread."""

    _region = None
    _piece = 1 << 30, 1 << 30  # all at once: what is read twice is decoded twice

    @cached_property
    def _image(self) -> rasterio.DatasetReader:
        import rasterio

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                image = rasterio.open(self.path)
        except rasterio.RasterioIOError as error:
            raise self._fault(error) from None
        if image.dtypes[0] not in ("uint8", "uint16"):
            raise DataError(f"{self.path}: holds {image.dtypes[0]} values; an image has 8 or 16 bits")
        self._check_bands(image.count)
        return image

    @property
    def _dtype(self) -> np.dtype:
        return np.dtype(self._image.dtypes[0])

    def read_anywhere(self, window: Window) -> np.ndarray:
        return scale_depth(replace(self)._pixels(None, window), self.max_value)

    def _pixels(self, region: None, window: Window) -> np.ndarray:
        import rasterio

        top, left, height, width = window
        try:
            with rasterio.Env(GDAL_CACHEMAX=CACHE):
                pixels = self._image.read(window=((top, top + height), (left, left + width)))
        except rasterio.RasterioIOError as error:
            raise self._fault(error) from None
        return self._as_channels(pixels.transpose(1, 2, 0))


def open_image(
    path: Path, channels: int = 3, exif: str = "auto", max_value: int | None = None
) -> np.ndarray | LargeFile:
    """:func:`detector.data.images.read_image`, or of a file with too many pixels for it a :class:`LargeFile`."""
    return _opened_large(path, channels, exif, max_value) or read_image(path, channels, exif, max_value)


def open_annotated(
    path: Path, height: int, width: int, *given: Any, for_window: bool = False
) -> np.ndarray | LargeFile:
    """:func:`detector.data.images.read_annotated_image`, or a :class:`LargeFile`.

    ``for_window``: of a file in tiles only a window is wanted, so it is not decoded whole where pyvips is installed.
    """
    channels, exif, max_value, *words = given
    for frame in {"auto": ("stored", "upright")}.get(exif, (exif,)):
        large = _opened_large(path, channels, frame, max_value, for_window)
        if large is None:
            return read_annotated_image(path, height, width, channels, exif, max_value, *words)
        if large.shape[:2] == (height, width):
            return large
    found = "×".join(map(str, large.shape[1::-1]))
    raise DataError(f"{path}: the image is {found}, its annotation says {width}×{height}; correct them")


def _opened_large(
    path: Path, channels: int, exif: str, max_value: int | None, for_window: bool = False
) -> LargeFile | None:
    """None for a file that is decoded whole, and for one whose header says nothing."""
    try:
        with path.open("rb") as file:
            header = open_header(path, file)
            is_large = header is not None and np.prod(stored_size(header), dtype=float) > MAX_PIXELS
            is_large |= os.fstat(file.fileno()).st_size > LARGEST_FILE
            has_tiles = isinstance(header, TiffImagePlugin.TiffImageFile) and TILE_WIDTH in header.tag_v2
    except (OSError, DataError):
        return None  # reading it whole says why
    may_pay = for_window and has_tiles and header.mode != "CMYK" and importlib.util.find_spec("pyvips")
    if not is_large and not may_pay:
        return None
    if header is not None and header.format in ("BMP", "PPM"):
        raise DataError(f"{path}: a {header.format} file of this size is not read; convert it to TIFF or PNG")
    kind, package, extra = LargeFile, "pyvips", "large"
    if header is not None and header.format == "JPEG2000":
        kind, package, extra = Jpeg2000File, "rasterio", "jpeg2000"
    try:
        importlib.import_module(package)
    except (ImportError, OSError):
        raise DataError(
            f"{path}: is too large to decode whole, and windows of it need {package}; install it with: pip install"
            f" 'pyramid-detector[{extra}]'"
        ) from None
    return kind(path, channels, exif, max_value)


def read_window(image: np.ndarray | LargeFile, window: Window) -> np.ndarray:
    """Part of an image, [h, w, C], one of many from the top down."""
    return image.read(window) if isinstance(image, LargeFile) else cut(image, window)


def read_anywhere(image: np.ndarray | LargeFile, window: Window) -> np.ndarray:
    """Part of an image, [h, w, C], without any order."""
    return image.read_anywhere(window) if isinstance(image, LargeFile) else cut(image, window)
