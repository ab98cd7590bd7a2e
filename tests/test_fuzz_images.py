"""Images from anywhere: damaged, cut off, huge, tiny, or of another kind than their name says."""

from __future__ import annotations

import io
import os
import resource
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fuzz import photo, survive
from PIL import Image

from detector.config.schema import AugmentConfig, CropConfig, ResizeConfig
from detector.data import headers
from detector.data.images import read_annotated_image, read_image
from detector.data.inputs import as_array
from detector.data.transforms.boxes import TrainTransform, Transform
from detector.data.transforms.classes import ClassTransform, TrainClassTransform
from detector.errors import DataError

PHOTO = Image.fromarray(photo())
FRAMES = [PHOTO, PHOTO.rotate(30), PHOTO.rotate(60)]


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def deep(suffix: str) -> bytes:
    return cv2.imencode(suffix, photo()[:, :, ::-1].astype(np.uint16) * 257)[1].tobytes()


def array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, photo())
    return buffer.getvalue()


ANIMATED = {"save_all": True, "append_images": FRAMES[1:]}
FILES = {
    "jpeg": encode(PHOTO, "JPEG"),
    "progressive jpeg": encode(PHOTO, "JPEG", progressive=True),
    "cmyk jpeg": encode(PHOTO.convert("CMYK"), "JPEG"),
    "turned jpeg": encode(PHOTO, "JPEG", exif=turned(6)),
    "png": encode(PHOTO, "PNG"),
    "palette png": encode(PHOTO.quantize(255), "PNG"),
    "16-bit png": deep(".png"),
    "animated png": encode(FRAMES[0], "PNG", **ANIMATED),
    "gif": encode(PHOTO.quantize(255), "GIF"),
    "animated gif": encode(FRAMES[0], "GIF", **ANIMATED),
    "webp": encode(PHOTO, "WEBP"),
    "alpha webp": encode(PHOTO.convert("RGBA"), "WEBP", lossless=True),
    "animated webp": encode(FRAMES[0], "WEBP", **ANIMATED),
    "tiff": encode(PHOTO, "TIFF", compression="tiff_lzw"),
    "alpha tiff": encode(PHOTO.convert("RGBA"), "TIFF", compression="tiff_deflate"),
    "bmp": encode(PHOTO, "BMP"),
    "ppm": encode(PHOTO, "PPM"),
    "jpeg 2000": encode(PHOTO, "JPEG2000"),
    "array": array(),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_damaged_image_is_read_or_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("x.npy" if kind == "array" else "x.jpg")
    path.write_bytes(FILES[kind])
    assert read_image(path).shape == ((33, 25, 3) if "turned" in kind else (25, 33, 3))

    def read(data: bytes) -> None:
        path.write_bytes(data)
        image = read_image(path)
        assert image.ndim == 3
        assert image.dtype in (np.uint8, np.uint16)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    taken, refused = survive(f"image/{kind}", FILES[kind], 300, read)
    assert refused > 0.1 * (taken + refused)  # the damage is no trifle
    # Two images of the largest size, stored and in RGB, are the bound; in kB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 6 * headers.MAX_PIXELS / 1024


def test_real_photographs_damaged(shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_image(path)

    for file in sorted((shared / "data/trashnet/val").rglob("*.jpg"))[::100]:
        survive(f"image/{file.name}", file.read_bytes(), 50, read)


# Every length of each kind; of an animation, the images after the first are not looked at.
WHOLE = [kind for kind in FILES if "animated png" not in kind]


@pytest.mark.parametrize("kind", WHOLE)
def test_a_image_cut_off_anywhere_is_refused(kind: str, tmp_path: Path) -> None:
    data, path = FILES[kind], tmp_path / ("x.npy" if kind == "array" else "x.png")
    for length in range(0, len(data), 1 + len(data) // 300):
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"x\.(png|npy): "):
            read_image(path)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}], ids=str)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_file_whose_end_was_never_written_is_refused(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    """A full disk and an unfinished download leave zeros up to the length that was planned."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    # A thumbnail in the header has an end of its own.
    thumbnail = b"Exif\0\0" + Image.Exif().tobytes()[6:] + FILES["jpeg"]
    data, path = encode(Image.fromarray(noise), kind, exif=thumbnail, **options), tmp_path / "x.jpg"
    for length in range(1, len(data) - 8, 7):
        path.write_bytes(data[:length] + bytes(len(data) - length))
        with pytest.raises(DataError):
            read_image(path)


# --- kinds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".gif", ".bmp", ".webp"])
@pytest.mark.parametrize("kind", [kind for kind in FILES if kind not in ("array", "turned jpeg")])
def test_the_content_says_what_a_file_is(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(FILES[kind])
    image = read_image(path)
    assert np.abs(image.astype(float) / (257 if image.dtype == np.uint16 else 1) - photo()).mean() < 12


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    red, *others = (Image.new("RGB", (20, 10), color) for color in ("red", "lime", "blue"))
    red.save(path, kind, save_all=True, append_images=others)
    assert read_image(path).shape == (10, 20, 3)
    assert np.abs(read_image(path).astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("orientation", [0, 9, 255, 65535])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_orientation_that_does_not_exist_is_none(kind: str, orientation: int, tmp_path: Path) -> None:
    path = tmp_path / "x"
    PHOTO.save(path, kind, exif=turned(orientation))
    assert read_image(path).shape == read_annotated_image(path, 25, 33).shape == (25, 33, 3)
    with Image.open(path) as image:
        assert as_array(image).shape == (25, 33, 3)


def test_a_image_that_pil_has_only_opened_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(FILES["png"][:-60])
    with Image.open(path) as image, pytest.raises(DataError, match=r"x\.png: cannot be decoded: "):
        as_array(image)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "endless.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "endless.jpg"):
        with pytest.raises(DataError, match="cannot be read: it is not a file"):
            read_image(tmp_path / name)


# --- sizes ------------------------------------------------------------------------------------------------------------


def claiming(kind: str, width: int, height: int) -> bytes:
    """A small file whose header says that it has this size."""
    data = bytearray(FILES[kind])
    if kind == "png":
        header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
        return bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])
    if kind == "gif":
        data[6:10] = struct.pack("<HH", width, height)
    elif kind == "bmp":
        data[18:26] = struct.pack("<ii", width, height)
    elif kind == "ppm":
        return b"P6\n%d %d\n255\n" % (width, height) + bytes(100)
    elif kind == "jpeg 2000":
        place = data.index(b"ihdr") + 4
        data[place : place + 8] = struct.pack(">II", height, width)
        place = data.index(b"\xff\x4f\xff\x51") + 8
        data[place : place + 8] = struct.pack(">II", width, height)
    else:
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(("width", "height"), [(16_385, 16_384), (60_000, 60_000)])
@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "bmp", "ppm", "jpeg 2000"])
def test_a_claim_of_more_pixels_than_any_image_has(kind: str, width: int, height: int, tmp_path: Path) -> None:
    assert headers.MAX_PIXELS == 16_384 * 16_384
    path = tmp_path / "x.jpg"
    path.write_bytes(claiming(kind, width, height))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError) as caught:
        read_image(path)
    expected = f"{path}: has {width:,}×{height:,} pixels, more than the 268,435,456 that an image may have; see it"
    assert str(caught.value).startswith(expected)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_the_limit_is_of_what_the_header_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    for kind in ("png", "jpeg", "tiff", "gif", "bmp", "ppm", "jpeg 2000"):
        path.write_bytes(FILES[kind])
        monkeypatch.setattr(headers, "MAX_PIXELS", 25 * 33)
        assert read_image(path).shape == (25, 33, 3)
        monkeypatch.setattr(headers, "MAX_PIXELS", 25 * 33 - 1)
        with pytest.raises(DataError, match="has 33×25 pixels, more than the 824 "):
            read_image(path)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 20_000), (20_000, 1), (1, 2), (3, 20_000)])
def test_extreme_images_become_sane_tensors(height: int, width: int) -> None:
    image = np.full((height, width, 3), 7, np.uint8)
    boxes, labels = np.array([[0, 0, width, height]], np.float32), np.zeros(1, np.int64)
    # Short side 800 unless the long one would pass 1333, and never less than a pixel.
    long = max(height, width)
    scale = min(800 / min(height, width), 1333 / long)
    expected = tuple(max(1, round(side * scale)) for side in (height, width))
    resized = Transform(ResizeConfig())(image, boxes, labels, 0, 0)
    assert resized.image.shape[:2] == expected
    assert np.allclose(resized.boxes, [[0, 0, expected[1], expected[0]]], rtol=1e-6)
    augment = AugmentConfig(photometric=1.0, vertical_flip=0.5, scale_jitter=[0.1, 3.0])
    train = TrainTransform(ResizeConfig(short=[64], long=128), augment, seed=0)
    classes = TrainClassTransform(CropConfig(size=32), AugmentConfig(photometric=1.0), seed=0)
    for index in range(20):
        changed = train(image, boxes, labels, 0, index)
        assert min(changed.image.shape[:2]) >= 1
        assert max(changed.image.shape[:2]) <= 128
        assert len(changed.boxes) == len(changed.labels) <= 1
        assert (changed.boxes[:, 2:] > changed.boxes[:, :2]).all()
        assert classes(image, 0, index).shape == (32, 32, 3)
    assert ClassTransform(CropConfig(size=32))(image, 0, 0).shape == (32, 32, 3)
