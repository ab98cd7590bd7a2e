"""Checks of an image file's header and structure, before it is decoded.

OpenCV's decoder is too trusting: it allocates what a header claims, returns half an image where the rest of the file
was never written, and up to version 5.0 crashes on damaged animations in PNG files.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from detector.errors import DataError

# 16,384 × 16,384: 805 MB of RGB. The largest cameras take 2^27.2 pixels; larger images are maps or slides, in which a
# network that sees 800 × 1333 pixels detects nothing.
MAX_PIXELS = 2**28

_PNG = b"\x89PNG\r\n\x1a\n"
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_KINDS: dict[bytes, type[ImageFile.ImageFile]] = {
    b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
    _PNG: PngImagePlugin.PngImageFile,
    b"GIF8": GifImagePlugin.GifImageFile,
    b"BM": BmpImagePlugin.BmpImageFile,
    b"\0\0\0\x0cjP  \r\n\x87\n": Jpeg2KImagePlugin.Jpeg2KImageFile,
    b"\xff\x4f\xff\x51": Jpeg2KImagePlugin.Jpeg2KImageFile,
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImagePlugin.TiffImageFile),
    **dict.fromkeys((b"P%d" % number for number in range(1, 7)), PpmImagePlugin.PpmImageFile),
}


def open_header(path: Path, file: IO[bytes]) -> ImageFile.ImageFile | None:
    """The header of an image, by Pillow; None where it is damaged, or of a kind that only OpenCV knows.

    The kind is decided by the first bytes, not the name. Raises :class:`detector.errors.DataError` for what is not an
    image.
    """
    start = file.read(12)
    file.seek(0)
    opener = _opener(start)
    if opener is None:
        kinds = "JPEG, PNG, WebP, TIFF, GIF, BMP, JPEG 2000, PPM or PGM"
        raise DataError(f"{path}: is not an image: it begins with {start[:8]!r}, unlike {kinds}")
    try:
        return opener(file)
    except Exception:  # damaged headers raise almost anything
        return None


def _opener(start: bytes) -> type[ImageFile.ImageFile] | None:
    """The class that opens a file with these first 12 bytes."""
    if start[:4] == b"RIFF" and start[8:] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    return next((opener for known, opener in _KINDS.items() if start.startswith(known)), None)


def is_image_start(start: bytes) -> bool:
    """Whether the first 12 bytes can only be an image's: texts, too, may begin with the letters of BMP and PPM."""
    return len(start) == 12 and not start.startswith((b"BM", b"P")) and _opener(start) is not None


def orientation_of(header: ImageFile.ImageFile) -> int:
    """EXIF orientation as the decoder takes it, 1 to 8; 1, as stored, for a missing or invalid one."""
    # Not from XMP, which the decoder ignores. For PNG, Pillow would decode all pixels to look for EXIF behind them.
    if "exif" not in header.info and header.format != "TIFF":
        return 1
    try:
        value = header.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF raises almost anything, and counts as missing
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def stored_size(header: ImageFile.ImageFile) -> tuple[int, int]:
    """Width and height as stored; for a TIFF file, Pillow's ``size`` is that of the upright image."""
    if isinstance(header, TiffImagePlugin.TiffImageFile):
        return header.tag_v2[TiffImagePlugin.IMAGEWIDTH], header.tag_v2[TiffImagePlugin.IMAGELENGTH]
    return header.size


def is_ambiguous(orientation: int, width: int, height: int) -> bool:
    """Whether EXIF turns or mirrors an image so that its size does not show which frame boxes are drawn on."""
    return orientation != 1 and (width == height or orientation not in QUARTER_TURNS)


def may_be_deep(header: ImageFile.ImageFile) -> bool:
    """Whether an image may have 16 bits per channel; for two rare formats, Pillow's header does not tell."""
    is_known = header.mode.startswith("I") or ";16" in str(header.tile)
    return is_known or header.format in ("JPEG2000", "PPM")


def checked(path: Path, data: bytes, header: ImageFile.ImageFile | None = None) -> bytes:
    """The bytes of a file to decode; ``header`` where it has been opened already.

    Raises :class:`detector.errors.DataError` for what is not an image, claims more than ``MAX_PIXELS``, or is cut off.
    """
    if data.startswith(_PNG):
        return _checked_png(path, data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return data  # has at most 16,383 × 16,383 pixels, and its length is in the header
    header = header or open_header(path, io.BytesIO(data))
    if header is None:
        return data  # of an odd kind, or damaged: OpenCV reports it, and stops at 2^30 pixels
    check_size(path, *header.size)
    # Where a disk was full or a download was cut off, the rest of the file may be zeros. The search begins behind the
    # header, which may hold a thumbnail with an end of its own.
    if isinstance(header, JpegImagePlugin.JpegImageFile) and data.rfind(b"\xff\xd9", header.fp.tell()) < 0:
        raise DataError(f"{path}: is cut off: the image has no end (FFD9); restore the file")
    return data


def _checked_png(path: Path, data: bytes) -> bytes:
    """The file without animation chunks: what is left is the image that viewers without animation show."""
    chunks = list(_chunks(data))
    kinds = [kind for kind, _, _ in chunks]
    if kinds[:1] == [b"IHDR"]:
        check_size(path, *struct.unpack_from(">II", data, len(_PNG) + 8))
    if kinds[-1:] != [b"IEND"]:
        raise DataError(f"{path}: is cut off or damaged: the image has no end (IEND); restore the file")
    if b"acTL" not in kinds:
        return data
    still = [data[start:end] for kind, start, end in chunks if kind not in (b"acTL", b"fcTL", b"fdAT")]
    return _PNG + b"".join(still)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of each complete chunk."""
    start, kind = len(_PNG), b""
    while start + 12 <= len(data) and kind != b"IEND":
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")  # length, type, content, checksum
        if end > len(data):
            return
        kind = data[start + 4 : start + 8]
        yield kind, start, end
        start = end


def check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{path}: has {width:,}×{height:,} pixels, more than the {MAX_PIXELS:,} that an image may have; see it"
            " by tiles (data.tiles.size), or scale it down"
        )
