"""Reading images: one policy for training, evaluation and inference.

An image is [H, W, C] uint8 or, of a file with 16 bits, uint16; RGB if C is 3, gray if it is 1. Nothing is converted to
other numbers of channels: a file must have exactly as many.

EXIF orientation: annotations are drawn either on the stored or on the upright frame of the image (``data.exif``).
``auto`` takes the frame that has the annotated width and height, the stored one where both have; where nothing is
annotated (inference, class folders), the image is read upright, as a viewer shows it. ``stored`` and ``upright`` hold
everywhere. An invalid orientation is ignored.

16-bit values are scaled only here, so that ``data.max_value`` becomes 65535, which the model takes as 255.

The content of a file decides its kind, not its name. Of an animation, the first frame is read.
"""

from __future__ import annotations

import io
import os
import stat
from functools import lru_cache
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from PIL import TiffImagePlugin

from detector.data.headers import QUARTER_TURNS, check_size, checked, open_header, orientation_of, stored_size
from detector.errors import DataError

LARGEST_FILE = 2**31  # bytes; the largest image that is read (see headers) has 2^30.6 as 16-bit RGB, uncompressed

ARRAY_SUFFIX = ".npy"  # an array [H, W, C], for more channels than image files have
IMAGE_SUFFIXES = {
    ".jpg",
    ".jpeg",
    ".png",
    ".bmp",
    ".webp",
    ".tif",
    ".tiff",
    ".gif",
    ".jp2",
    ".ppm",
    ".pgm",
    ARRAY_SUFFIX,
}
_TIFF = (b"II", b"MM")  # TIFF files begin with one of these
# By channels. Not IMREAD_COLOR_RGB: OpenCV 5.0 reads 16-bit TIFF files wrongly with it.
_FLAGS = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR_BGR}


class ChannelsError(DataError):
    """A file has a different number of channels than the model reads."""


def read_image(path: Path, channels: int = 3, exif: str = "auto", max_value: int | None = None) -> np.ndarray:
    """The image upright, unless ``exif`` is stored. Raises :class:`detector.errors.DataError` that names the file."""
    return decode_image(path, _read_bytes(path), channels, exif, max_value)


def decode_image(
    path: Path, data: bytes, channels: int = 3, exif: str = "auto", max_value: int | None = None
) -> np.ndarray:
    """:func:`read_image` of a file's bytes; ``path`` is its name, in errors, and no file is opened."""
    return scale_depth(_decode(path, data, channels, upright=exif != "stored"), max_value)


def read_annotated_image(
    path: Path,
    height: int,
    width: int,
    channels: int = 3,
    exif: str = "auto",
    max_value: int | None = None,
    words: tuple[str, str] = (
        "annotation says",
        "correct width and height in the annotation file, or restore the image",
    ),
) -> np.ndarray:
    """The image in the frame of ``height`` × ``width`` that its boxes or its mask were drawn on."""
    data = _read_bytes(path)
    for upright in {"auto": (False, True), "stored": (False,), "upright": (True,)}[exif]:
        image = _decode(path, data, channels, upright)
        if image.shape[:2] == (height, width):
            return scale_depth(image, max_value)
    frame = f" in the frame that data.exif={exif} reads" if exif != "auto" else ""
    raise DataError(
        f"{path}: the image is {image.shape[1]}×{image.shape[0]}{frame}, its {words[0]} {width}×{height}; {words[1]}"
    )


def read_size(path: Path, exif: str = "auto") -> tuple[int, int]:
    """Height and width of an image, from its header where possible, for annotations that do not give them.

    Raises :class:`detector.errors.DataError` where EXIF turns it by a quarter and ``exif`` is auto: its boxes may be
    on either frame.
    """
    try:
        with open_file(path) as file:
            is_array = path.suffix.lower() == ARRAY_SUFFIX
            header = None if is_array else open_header(path, file)
            if header is None:  # of a kind that only OpenCV knows
                file.seek(0)
                data = file.read()
                image = _read_array(path, data) if is_array else _read_image(path, checked(path, data), 0, False)
                return _check_array(path, image).shape[:2]
            width, height = stored_size(header)
            if width != height and exif != "stored" and orientation_of(header) in QUARTER_TURNS:
                if exif == "auto":
                    raise DataError(
                        f"{path}: EXIF turns the image by a quarter, so {width}×{height} may not be the frame of its"
                        " boxes; write the width and height of that frame into the annotations, or set data.exif"
                        " (without a config: --exif)"
                    )
                width, height = height, width
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    check_size(path, width, height)
    return height, width


def scale_depth(image: np.ndarray, max_value: int | None) -> np.ndarray:
    """16-bit values scaled so that ``max_value`` becomes 65535, larger ones clipped; 8-bit values as they are."""
    return image if max_value is None or image.dtype != np.uint16 else _scaled_values(max_value)[image]


@lru_cache(maxsize=1)
def _scaled_values(max_value: int) -> np.ndarray:
    return np.rint(np.arange(2**16).clip(max=max_value) * (65535 / max_value)).astype(np.uint16)


def read_peak(path: Path, channels: int) -> int:
    """The largest value of a 16-bit image as it is stored; 0 for others."""
    image = _decode(path, _read_bytes(path), channels, upright=False)
    return int(image.max()) if image.dtype == np.uint16 else 0


def depth_fault(peak: int, max_value: int | None) -> str:
    """What is wrong with 16-bit images whose largest value is ``peak``, and the remedy; empty if nothing is."""
    limit = max_value or 65535
    largest = f"the largest value of the 16-bit images is {peak:,}"
    if peak > limit:
        return f"{largest}, over data.max_value={limit}: what is over it is cut off"
    if 0 < peak <= limit // 4:
        suggestion = 2 ** peak.bit_length() - 1
        return f"{largest} of {limit:,}: the model sees them almost black; set data.max_value={suggestion}"
    return ""


def open_file(path: Path) -> IO[bytes]:
    """Open an image file. Raises the system's error, or :class:`detector.errors.DataError` for what is not a file."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would hang, a device never end
        raise DataError(f"{path}: cannot be read: it is not a file")
    if status.st_size == 0:
        raise DataError(f"{path}: the file is empty")
    if status.st_size > LARGEST_FILE and path.suffix.lower() != ARRAY_SUFFIX:
        raise DataError(f"{path}: has {status.st_size:,} bytes; an image has at most {LARGEST_FILE:,}")
    return path.open("rb")


def why_missing(path: Path) -> str:
    """Why there is no file at ``path``: "does not exist", or where its link leads."""
    if os.path.islink(path):  # noqa: PTH114 (Path.is_symlink raises for a name that is too long)
        return f"is a link to {os.path.realpath(path)}, which does not exist"
    return "does not exist"


def _read_bytes(path: Path) -> bytes:
    try:
        with open_file(path) as file:
            return file.read()
    except FileNotFoundError:
        raise DataError(f"{path}: {why_missing(path)}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _decode(path: Path, data: bytes, channels: int, upright: bool) -> np.ndarray:
    if path.suffix.lower() == ARRAY_SUFFIX:
        image = _read_array(path, data)
    else:
        image = _read_image(path, checked(path, data), channels, upright)
    image = _check_array(path, image)
    if image.shape[2] != channels:
        raise ChannelsError(f"{path}: has {image.shape[2]} channels, model.in_channels asks for {channels}")
    return image


def _check_array(path: Path, image: np.ndarray) -> np.ndarray:
    """An array as an image [H, W, C]; raises :class:`detector.errors.DataError` where it is not one."""
    if image.dtype not in (np.uint8, np.uint16) or image.ndim not in (2, 3) or image.size == 0:
        raise DataError(f"{path}: holds {image.dtype} {list(image.shape)}; an image is [H, W, C] uint8 or uint16")
    return image.reshape(*image.shape[:2], -1)


def _read_image(path: Path, data: bytes, channels: int, upright: bool) -> np.ndarray:
    straight = _read_straight_alpha(data) if channels >= 3 else None
    image = straight[:, :, :channels] if straight is not None else _read_with_opencv(path, data, channels, upright)
    # A TIFF file always comes upright; of other files, OpenCV turns only those read as gray or RGB.
    is_turned = data[:2] in _TIFF or (upright and channels in _FLAGS)
    if is_turned == upright:
        return image
    header = open_header(path, io.BytesIO(data))
    orientation = orientation_of(header) if header else 1
    return _turn(image, orientation if upright else {6: 8, 8: 6}.get(orientation, orientation))


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """The image upright, by its EXIF orientation (EXIF 2.32, table 6). All but 6 and 8 are their own inverse."""
    if orientation in QUARTER_TURNS:
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def _read_with_opencv(path: Path, data: bytes, channels: int, upright: bool) -> np.ndarray:
    flags = cv2.IMREAD_UNCHANGED
    if channels in _FLAGS:
        flags = _FLAGS[channels] | cv2.IMREAD_ANYDEPTH | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    try:
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except (cv2.error, MemoryError) as error:
        raise DataError(f"{path}: cannot be decoded: {getattr(error, 'err', error)}") from None
    if image is None:
        raise DataError(f"{path}: is not an image that can be decoded, or is cut off")
    if image.ndim == 3 and image.shape[2] in (3, 4):
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    return image


def _read_array(path: Path, data: bytes) -> np.ndarray:
    try:
        image = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # a damaged header raises almost anything
        raise DataError(f"{path}: is not an array that can be read: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(image, np.ndarray):
        raise DataError(f"{path}: holds several arrays; an image is one, [H, W, C]")
    return image.astype(image.dtype.newbyteorder("="), copy=False)


def _read_straight_alpha(data: bytes) -> np.ndarray | None:
    """An 8-bit RGBA TIFF file, whose colours OpenCV would multiply by alpha; None for other files."""
    if data[:2] not in _TIFF:
        return None
    try:
        with TiffImagePlugin.TiffImageFile(io.BytesIO(data)) as image:
            bits = image.tag_v2.get(258)  # BitsPerSample
            return np.asarray(image) if image.mode == "RGBA" and bits == (8, 8, 8, 8) else None
    except Exception:  # a damaged header raises almost anything; OpenCV reports it
        return None
