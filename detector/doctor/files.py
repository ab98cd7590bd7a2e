"""Looking at picture files: what the header says, whether they decode, and a fingerprint of what they show.

The fingerprint is the signs of the 128 lowest frequencies of a 32×32 gray copy (a perceptual hash after Zauner 2010,
with twice the usual bits): re-encoded, halved or brighter copies differ in at most 11 of them, unrelated photographs
in 33 or more (measured on the small real sets that tests use).
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from detector.data.images import ARRAY_SUFFIX

BITS = 128
_SIDE = 32
_CHUNK = 16  # files a task of the pool

# Frequencies by their sum, without the mean.
_FREQUENCIES = sorted(((i, j) for i in range(16) for j in range(16) if i + j), key=lambda at: (sum(at), at))[:BITS]
_ROWS, _COLUMNS = np.array(_FREQUENCIES).T


class FileFacts(NamedTuple):
    """What a file is; ``fault`` names the check that it fails, and ``reason`` why."""

    fault: str = ""  # file-missing, file-unreadable, file-damaged
    reason: str = ""
    format: str = ""  # as Pillow names it, by content
    mode: str = ""
    width: int = 0  # as stored
    height: int = 0
    orientation: int = 1  # EXIF
    digest: bytes = b""  # of the file's bytes; empty if only the header was read
    fingerprint: bytes = b""  # 16 bytes; empty also where nothing is to be seen


def look_at_files(paths: Sequence[Path], is_quick: bool, title: str) -> list[FileFacts]:
    """The facts of each file, on all cores; ``is_quick`` reads the headers only.

    Threads: reading and decoding let go of the interpreter, and there is no process that an interrupt could leave.
    """
    look = partial(_look_at_chunk, is_quick=is_quick)
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    facts: list[FileFacts] = []
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        with tqdm(total=len(paths), desc=title, unit=" files", disable=None, leave=False) as bar:
            for part in pool.map(look, chunks):
                facts += part
                bar.update(len(part))
    finally:
        pool.shutdown(cancel_futures=True)
    return facts


def _look_at_chunk(paths: Sequence[Path], is_quick: bool) -> list[FileFacts]:
    return [look_at_file(path, is_quick) for path in paths]


def look_at_file(path: Path, is_quick: bool) -> FileFacts:
    """The facts of one file; nothing that is wrong with it raises."""
    try:
        if is_quick:
            with path.open("rb") as file:
                return _read_header(path, file)
        data = path.read_bytes()
    except FileNotFoundError:
        return FileFacts("file-missing")
    except (OSError, ValueError) as error:
        return FileFacts("file-unreadable", getattr(error, "strerror", None) or str(error))
    facts = _read_header(path, io.BytesIO(data))
    if facts.fault:
        return facts
    digest = hashlib.blake2b(data, digest_size=16).digest()
    if path.suffix.lower() == ARRAY_SUFFIX:
        return facts._replace(digest=digest)
    gray = _decode_gray(data, min(facts.width, facts.height))
    if gray is None:
        return facts._replace(fault="file-damaged", reason="its header is sound, its pixels cannot be decoded")
    return facts._replace(digest=digest, fingerprint=fingerprint(gray))


def _read_header(path: Path, file: io.BufferedIOBase) -> FileFacts:
    if path.suffix.lower() == ARRAY_SUFFIX:
        return _read_array(file)
    try:
        with Image.open(file) as image:
            # PNG looks for EXIF behind the pixels unless it stands before them, and would decode them all.
            has_exif = image.format != "PNG" or "exif" in image.info
            orientation = image.getexif().get(0x0112, 1) if has_exif else 1
            return FileFacts("", "", image.format or "", image.mode, *image.size, _as_orientation(orientation))
    except Exception as error:  # damaged headers raise almost anything
        reason = " ".join(str(error).split()).split(" <")[0]
    # What Pillow does not know, such as TIFF with three channels of 16 bits, OpenCV may.
    file.seek(0)
    data = np.frombuffer(file.read(), dtype=np.uint8)
    if len(data) == 0:
        return FileFacts("file-unreadable", "the file is empty")
    try:
        pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None:
        return FileFacts("file-unreadable", reason)
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    return FileFacts("", "", "", f"{pixels.dtype}, {channels} channels", pixels.shape[1], pixels.shape[0])


def _as_orientation(value: object) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _read_array(file: io.BufferedIOBase) -> FileFacts:
    try:
        array = np.load(file, allow_pickle=False)
        height, width = array.shape[:2]
        channels = array.shape[2] if array.ndim == 3 else 1
        return FileFacts("", "", "array", f"{array.dtype}, {channels} channels", width, height)
    except Exception as error:  # damaged headers raise almost anything
        return FileFacts("file-unreadable", " ".join(str(error).split())[:120])


def _decode_gray(data: bytes, short_side: int) -> np.ndarray | None:
    """The picture in gray, as small as a JPEG decoder can make it with 64 pixels left; None if it is damaged.

    All of the file is read all the same, so that a missing end is noticed: only the transform is of fewer pixels.
    """
    flag = cv2.IMREAD_GRAYSCALE
    for factor, reduced in (
        (8, cv2.IMREAD_REDUCED_GRAYSCALE_8), (4, cv2.IMREAD_REDUCED_GRAYSCALE_4), (2, cv2.IMREAD_REDUCED_GRAYSCALE_2)
    ):  # fmt: skip
        if short_side >= 64 * factor:
            flag = reduced
            break
    try:
        return cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None


def fingerprint(gray: np.ndarray) -> bytes:
    """16 bytes of a gray picture [H, W]; empty for one of a single tone, which looks like every other such."""
    small = cv2.resize(gray, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    if small.max() - small.min() < 4:
        return b""
    return np.packbits(cv2.dct(small)[_ROWS, _COLUMNS] > 0).tobytes()
