"""Facts of image files: what the header says, whether they can be decoded, and a perceptual hash of their content.

The hash is the signs of the 128 lowest frequencies of a 32×32 gray copy (after Zauner 2010, with twice the usual bits).
Re-encoded or halved copies differ in at most 12 bits, unrelated photographs in 32 or more (measured on the small real
sets that the tests use).
"""

from __future__ import annotations

import gc
import hashlib
import io
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

import cv2
import numpy as np
from PIL.ImageFile import ImageFile
from tqdm import tqdm

from detector.data.headers import check_size, checked, may_be_deep, open_header, orientation_of, stored_size
from detector.data.images import ARRAY_SUFFIX, ChannelsError, open_file, read_image, why_missing
from detector.errors import DataError
from detector.system.processes import begin_child

BITS = 128
_SIDE = 32
_MOST = 128  # files per task of the pool
# Formats and modes that OpenCV decodes to gray exactly if it decodes them to colours, with any number of channels.
_PLAIN_FORMATS = {"JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "PPM"}
_PLAIN_MODES = {"1", "L", "P", "LA", "PA", "RGB", "RGBA", "CMYK", "I;16"}

# Frequencies by their sum, without the mean, and the cosines that compute them (DCT-II).
_LOWEST = 16
_FREQUENCIES = sorted(((i, j) for i in range(_LOWEST) for j in range(_LOWEST) if i + j), key=lambda at: (sum(at), at))
_POSITIONS = np.array([i * _LOWEST + j for i, j in _FREQUENCIES[:BITS]])
_COSINES = np.cos(np.pi / _SIDE * np.arange(_LOWEST)[:, None] * (np.arange(_SIDE) + 0.5)).astype(np.float32)
_NOTHING = np.zeros((_SIDE, _SIDE), dtype=np.uint8)  # the content of a file that is not decoded


class FileFacts(NamedTuple):
    """Facts of a file; ``fault`` names the check that it fails, and ``reason`` says why."""

    fault: str = ""  # file-outside, file-missing, file-unreadable, file-damaged, file-channels
    reason: str = ""
    format: str = ""  # as Pillow names it, by content
    mode: str = ""
    width: int = 0  # as stored
    height: int = 0
    orientation: int = 1  # EXIF
    peak: int = 0  # the largest value of an image of 16 bits, where it was decoded
    digest: bytes = b""  # of the file's bytes; empty if only the header was read
    perceptual_hash: bytes = b""  # 16 bytes; empty also for an image of a single tone


def look_at_files(paths: Sequence[Path], is_quick: bool, title: str, in_channels: int = 3) -> list[FileFacts]:
    """The facts of each file, on all cores; ``is_quick`` reads the headers only.

    Raises :class:`detector.errors.DataError` if one of the processes is killed.
    """
    look = partial(look_at, is_quick=is_quick, in_channels=in_channels)
    cores = os.cpu_count() or 1
    # Large tasks cost less to hand over; but each core gets several, so that none waits long for another.
    size = min(_MOST, max(1, len(paths) // (8 * cores)))
    chunks = [paths[start : start + size] for start in range(0, len(paths), size)]
    facts: list[FileFacts] = []
    # Processes, not threads: with small images, most of the time is spent holding the interpreter lock.
    pool = ProcessPoolExecutor(max(1, min(cores, len(chunks))), multiprocessing.get_context("fork"), initializer=_begin)
    try:
        with tqdm(total=len(paths), desc=title, unit=" files", disable=None, leave=False) as bar:
            for part in pool.map(look, chunks):
                facts += part
                bar.update(len(part))
    except BrokenProcessPool:
        raise DataError(
            f"{paths[len(facts)]}: a process that read this image, or one of the next"
            f" {size * cores}, was killed; if the system was out of memory, one of them may be very large"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
    return facts


def _begin() -> None:
    """Set up a process of the pool."""
    begin_child()
    cv2.setNumThreads(0)
    gc.freeze()  # garbage collection need not visit the parent's objects, which would copy their pages


def look_at(paths: Sequence[Path], is_quick: bool, in_channels: int = 3) -> list[FileFacts]:
    """The facts of some files, in this process; no fault of theirs raises."""
    pairs = [_look_at_file(path, is_quick, in_channels) for path in paths]
    hashes = perceptual_hashes(np.stack([small for _, small in pairs]))
    return [facts._replace(perceptual_hash=own) for (facts, _), own in zip(pairs, hashes, strict=True)]


def _look_at_file(path: Path, is_quick: bool, in_channels: int) -> tuple[FileFacts, np.ndarray]:
    """The facts of one file, and its content in gray, [32, 32] uint8."""
    try:
        with open_file(path) as file:
            data = b"" if is_quick else file.read()
            file.seek(0)
            if path.suffix.lower() == ARRAY_SUFFIX:
                facts = _read_array(file)._replace(digest=_digest(data))
                return (facts if is_quick else _as_training(path, facts, in_channels)), _NOTHING
            source = file if is_quick else io.BytesIO(data)
            header = open_header(path, source)
            facts = _read_facts(path, header) if header else _decode_facts(path, source, in_channels)
    except FileNotFoundError:
        return FileFacts("file-missing", why_missing(path).removeprefix("does not exist")), _NOTHING
    except DataError as error:
        return FileFacts("file-unreadable", _reason(path, error)), _NOTHING
    except (OSError, ValueError) as error:
        return FileFacts("file-unreadable", getattr(error, "strerror", None) or str(error)), _NOTHING
    if is_quick:
        return facts, _NOTHING
    is_plain = facts.format in _PLAIN_FORMATS and facts.mode in _PLAIN_MODES and in_channels in (1, 3)
    if not is_plain:
        facts = _as_training(path, facts, in_channels)
    if facts.fault:
        return facts, _NOTHING
    facts = facts._replace(digest=_digest(data))
    try:
        sound = checked(path, data, header)
        gray = _decode_gray(path, sound, min(facts.width, facts.height))
        if header and may_be_deep(header):  # colours without alpha, whose values are always large
            facts = facts._replace(peak=_peak(_decode(path, sound, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)))
    except DataError as error:
        # Training may still read what cannot be decoded to gray.
        return facts._replace(fault="file-damaged", reason=_reason(path, error)) if is_plain else facts, _NOTHING
    return facts, cv2.resize(gray, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)


def _as_training(path: Path, facts: FileFacts, in_channels: int) -> FileFacts:
    """The facts, with the fault for which training would refuse the file."""
    try:
        read_image(path, in_channels)
    except ChannelsError as error:
        return facts._replace(fault="file-channels", reason=_reason(path, error))
    except DataError as error:
        return facts._replace(fault="file-damaged", reason=_reason(path, error))
    return facts


def _reason(path: Path, error: DataError) -> str:
    return str(error).removeprefix(f"{path}: ")


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest() if data else b""


def _read_facts(path: Path, header: ImageFile) -> FileFacts:
    check_size(path, *header.size)
    return FileFacts("", "", header.format or "", header.mode, *stored_size(header), orientation_of(header))


def _decode_facts(path: Path, file: IO[bytes], in_channels: int) -> FileFacts:
    """Facts by OpenCV of what Pillow does not read, such as TIFF with three channels of 16 bits."""
    try:
        pixels = _decode(path, file.read(), cv2.IMREAD_UNCHANGED)
    except DataError:
        pixels = read_image(path, in_channels)  # only this decodes some damaged files
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    mode = f"{pixels.dtype}, {channels} channels"
    return FileFacts("", "", "", mode, pixels.shape[1], pixels.shape[0], peak=_peak(pixels))


def _peak(pixels: np.ndarray) -> int:
    return int(pixels.max(initial=0)) if pixels.dtype.name == "uint16" else 0


def _read_array(file: IO[bytes]) -> FileFacts:
    try:
        array = np.load(file, allow_pickle=False)
        height, width = array.shape[:2]
        channels = array.shape[2] if array.ndim == 3 else 1
        return FileFacts("", "", "array", f"{array.dtype.name}, {channels} channels", width, height, peak=_peak(array))
    except Exception as error:  # damaged headers raise almost anything
        return FileFacts("file-unreadable", " ".join(str(error).split())[:120])


def _decode_gray(path: Path, data: bytes, short_side: int) -> np.ndarray:
    """The image in gray, reduced by a JPEG's decoder as far as 32 pixels remain.

    The whole file is still read, so a missing end is noticed: only the inverse transform is of fewer pixels.
    """
    flag = cv2.IMREAD_GRAYSCALE
    for factor, reduced in (
        (8, cv2.IMREAD_REDUCED_GRAYSCALE_8), (4, cv2.IMREAD_REDUCED_GRAYSCALE_4), (2, cv2.IMREAD_REDUCED_GRAYSCALE_2)
    ):  # fmt: skip
        if short_side >= _SIDE * factor:
            flag = reduced
            break
    return _decode(path, data, flag | cv2.IMREAD_IGNORE_ORIENTATION)


def _decode(path: Path, data: bytes, flag: int) -> np.ndarray:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flag)
    except (cv2.error, MemoryError):
        pixels = None
    if pixels is None:
        raise DataError(f"{path}: it cannot be decoded, or is cut off")
    return pixels


def perceptual_hashes(small: np.ndarray) -> list[bytes]:
    """16 bytes for each gray image of [N, 32, 32] uint8; empty for a single tone, as all such look alike."""
    frequencies = (_COSINES @ small.astype(np.float32) @ _COSINES.T).reshape(len(small), -1)[:, _POSITIONS]
    has_tones = small.max(axis=(1, 2)) - small.min(axis=(1, 2)) >= 4
    bits = np.packbits(frequencies > 0, axis=1)
    return [own.tobytes() if seen else b"" for own, seen in zip(bits, has_tones, strict=True)]
