"""Reading images: [H, W, C] in the right frame and with the depth of the file; broken ones name their file."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from detector.data.images import IMAGE_SUFFIXES, depth_fault, read_annotated_image, read_image, read_size
from detector.data.inputs import as_array
from detector.data.spot_check import spot_check
from detector.errors import DataError
from detector.models import Model
from detector.reports.drawing import as_rgb

HEIGHT, WIDTH = 32, 48
ROTATED = 0x0112  # the EXIF tag of the orientation
COLORS = {(8, 8): (250, 20, 20), (8, 40): (20, 240, 20), (24, 8): (20, 20, 230), (24, 40): (240, 230, 20)}


def quarters() -> Image.Image:
    """Red and green above, blue and yellow below: no two orientations look alike."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for (row, column), color in COLORS.items():
        top, left = row // 16 * 16, column // 24 * 24
        pixels[top : top + 16, left : left + 24] = color
    return Image.fromarray(pixels)


def photo(side: int = 64) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_thumbnail(jpeg: bytes, thumbnail: bytes) -> bytes:
    """``jpeg`` with another JPEG in its EXIF header, as cameras write it."""
    exif = b"Exif\0\0" + Image.Exif().tobytes()[6:] + thumbnail
    return jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]


def distance(first: np.ndarray, second: np.ndarray) -> float:
    assert first.shape == second.shape
    return float(np.abs(first.astype(int) - second).max())


def error_of(path: Path, channels: int = 3) -> str:
    with pytest.raises(DataError) as caught:
        read_image(path, channels)
    return str(caught.value)


# --- orientation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jpeg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int, kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ROTATED] = orientation
    path = tmp_path / f"x.{kind}"
    quarters().save(path, exif=exif, **({"quality": 95, "subsampling": 0} if kind == "jpeg" else {}))
    stored, upright = (
        np.asarray(image.convert("RGB")) for image in (Image.open(path), ImageOps.exif_transpose(Image.open(path)))
    )
    # 5 to 8 lie on their side: the stored 48×32 is 32×48 upright.
    assert upright.shape[:2] == ((WIDTH, HEIGHT) if orientation >= 5 else (HEIGHT, WIDTH))
    assert (distance(stored, upright) > 100) if 1 < orientation < 5 else True

    assert distance(read_image(path), upright) <= 3
    assert distance(read_annotated_image(path, HEIGHT, WIDTH), stored) <= 3
    if orientation >= 5:
        assert distance(read_annotated_image(path, WIDTH, HEIGHT), upright) <= 3
    else:
        with pytest.raises(DataError):
            read_annotated_image(path, WIDTH, HEIGHT)

    # data.exif holds everywhere, in training and in inference.
    assert distance(read_image(path, exif="stored"), stored) <= 3
    assert distance(as_array(Image.open(path), exif="stored"), stored) <= 3
    assert distance(read_image(path, exif="upright"), upright) <= 3
    assert distance(read_annotated_image(path, *upright.shape[:2], exif="upright"), upright) <= 3
    assert distance(read_annotated_image(path, HEIGHT, WIDTH, exif="stored"), stored) <= 3
    if orientation >= 5:
        for exif, size in (("upright", (HEIGHT, WIDTH)), ("stored", (WIDTH, HEIGHT))):
            with pytest.raises(DataError, match=rf"in the frame that data\.exif={exif} reads, its annotation says"):
                read_annotated_image(path, *size, exif=exif)


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_any_channels(orientation: int, kind: str, tmp_path: Path) -> None:
    """Of what OpenCV does not turn (four channels), and of TIFF files, which it always turns."""
    image, path = quarters(), tmp_path / f"x.{kind}"
    image.putalpha(Image.fromarray(np.arange(HEIGHT * WIDTH, dtype=np.uint16).astype(np.uint8).reshape(HEIGHT, -1)))
    stored = np.asarray(image)
    image.getexif()[ROTATED] = orientation
    upright = np.asarray(ImageOps.exif_transpose(image))
    lossless = {"lossless": True, "exact": True} if kind == "webp" else {}
    image.save(path, exif=image.getexif(), **lossless)
    for channels in (3, 4) if kind == "tiff" else (4,):
        for exif, expected in (("stored", stored), ("upright", upright), ("auto", upright)):
            assert np.array_equal(read_image(path, channels, exif), expected[:, :, :channels])
        for exif, expected in (("stored", stored), ("upright", upright), ("auto", stored)):
            size = expected.shape[:2]
            assert np.array_equal(read_annotated_image(path, *size, channels, exif), expected[:, :, :channels])
            if exif != "auto":
                assert read_size(path, exif) == size
        if orientation >= 5:  # auto, annotated upright
            assert np.array_equal(read_annotated_image(path, WIDTH, HEIGHT, channels), upright[:, :, :channels])


def test_a_size_that_no_frame_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    quarters().save(path)
    with pytest.raises(DataError) as caught:
        read_annotated_image(path, 32, 49)
    assert str(caught.value).startswith(f"{path}: the image is 48×32, its annotation says 49×32; ")


# --- depth ------------------------------------------------------------------------------------------------------------


def test_the_value_that_counts_as_255(tmp_path: Path) -> None:
    """A 12-bit camera's 4095 is white: of files of every channel count, of arrays and tensors, and in drawings."""
    stored = np.array([[0, 1, 2048, 4095, 4096, 65535]], np.uint16)
    # 65535 / 4095 = 16.0037; 2048 of them are 32775.5006. What is over 4095 is cut off.
    scaled = np.array([[0, 16, 32776, 65535, 65535, 65535]], np.uint16)
    for channels in (1, 3, 4):
        pixels = np.repeat(stored[:, :, None], channels, axis=2)
        expected = np.repeat(scaled[:, :, None], channels, axis=2)
        path = tmp_path / f"{channels}.png"
        cv2.imwrite(str(path), pixels)
        assert np.array_equal(read_image(path, channels), pixels)
        for found in (
            read_image(path, channels, max_value=4095),
            read_annotated_image(path, 1, 6, channels, max_value=4095),
            as_array(path, channels, max_value=4095),
            as_array(pixels, channels, max_value=4095),
            as_array(torch.from_numpy(pixels).permute(2, 0, 1), channels, max_value=4095),
        ):
            assert found.dtype == np.uint16
            assert np.array_equal(found, expected)
        assert np.array_equal(as_rgb(expected)[0, :, 0], [0, 0, 128, 255, 255, 255])  # 32776 / 256 = 128.03
        model = Model([0.0] * channels, [1.0] * channels, torch.nn.Identity(), torch.nn.Identity())
        seen = model.normalise(torch.from_numpy(expected).permute(2, 0, 1)[None], torch.tensor([[1, 6]]))
        assert seen[0, 0, 0].tolist() == pytest.approx([0, 16 / 257, 32776 / 257, 255, 255, 255])
    gray = np.arange(6, dtype=np.uint8).reshape(1, 6, 1)
    assert np.array_equal(as_array(gray, 1, max_value=4095), gray)  # of 8 bits: as they are


@pytest.mark.parametrize(
    ("peak", "max_value", "said"),
    [
        (0, None, ""),  # of 8 bits
        (65535, None, ""),
        (16384, None, ""),  # over a quarter
        (16383, None, "16,383 of 65,535: the model sees them almost black; set data.max_value=16383"),
        (4011, None, "4,011 of 65,535: the model sees them almost black; set data.max_value=4095"),
        (1, None, "1 of 65,535: the model sees them almost black; set data.max_value=1"),
        (4011, 4095, ""),
        (1000, 4095, "1,000 of 4,095: the model sees them almost black; set data.max_value=1023"),
        (4096, 4095, "4,096, over data.max_value=4095: what is over it is cut off"),
    ],
)
def test_how_much_of_the_depth_is_used(peak: int, max_value: int | None, said: str) -> None:
    fault = depth_fault(peak, max_value)
    assert fault == (said and f"the largest value of the 16-bit images is {said}")


# --- what a sample of the files shows ---------------------------------------------------------------------------------


def test_a_spot_check_names_turns_and_depths(tmp_path: Path) -> None:
    sizes = {"side.jpg": (6, 40, 30), "down.jpg": (3, 40, 30), "square.jpg": (6, 30, 30), "plain.jpg": (1, 40, 30)}
    for name, (orientation, *size) in sizes.items():
        exif = Image.Exif()
        exif[ROTATED] = orientation
        Image.new("RGB", size).save(tmp_path / name, exif=exif)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xffx")  # reading it says so

    def check(names: list[str], max_value: int | None = None, turns: bool = True, channels: int = 3) -> list[str]:
        return spot_check(lambda index: tmp_path / names[index], np.arange(len(names)), channels, max_value, turns)

    (line,) = check([*sizes, "broken.jpg", "missing.jpg"])
    assert line.startswith(f"warning: EXIF turns or mirrors 2 of 6 images without a change of size (first: {tmp_path}/")
    assert "down.jpg" in line
    assert "data.exif=upright" in line
    assert check([*sizes], turns=False) == check(["side.jpg", "plain.jpg"]) == []
    (line,) = check(["down.jpg"] * 1000)
    assert "256 of 256 sampled images" in line

    ramp = np.linspace(0, 4011, 6400).astype(np.uint16).reshape(80, 80)
    said = "warning: the largest value of the 16-bit images is 4,011 of 65,535"
    for name in ("x.png", "x.tif", "x.jp2", "x.ppm"):
        cv2.imwrite(str(tmp_path / name), np.repeat(ramp[:, :, None], 3, axis=2))
        (line,) = check(["plain.jpg", name, "broken.jpg"])
        assert line.startswith(said)
        assert check([name], max_value=4095) == []
    np.save(tmp_path / "x.npy", np.repeat(ramp[:, :, None], 5, axis=2))
    assert check(["x.npy"], channels=5)[0].startswith(said)
    assert check(["x.npy", "x.png"], channels=4) == []  # reading complains of the channels
    cv2.imwrite(str(tmp_path / "light.png"), np.repeat(ramp[:, :, None] * 16, 3, axis=2))
    assert check(["light.png", "x.png"]) == []  # a dark image among others is none that is read wrongly


# --- kinds of images ------------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[str, Callable[[Image.Image], Image.Image], dict[str, Any]]] = {
    "rgb": ("png", lambda image: image, {}),
    "alpha": ("png", lambda image: image.convert("RGBA"), {}),
    "palette": ("png", lambda image: image.quantize(8), {}),
    "palette with a transparent color": ("png", lambda image: image.quantize(8), {"transparency": 0}),
    "gif": ("gif", lambda image: image.quantize(8), {}),
    "cmyk": ("jpeg", lambda image: image.convert("CMYK"), {"quality": 95}),
    "jpeg": ("jpeg", lambda image: image, {"quality": 95}),
    "progressive": ("jpeg", lambda image: image, {"quality": 95, "progressive": True}),
    "webp": ("webp", lambda image: image, {"lossless": True}),
    "tiff": ("tiff", lambda image: image, {"compression": "tiff_lzw"}),
    "bmp": ("bmp", lambda image: image, {}),
    "ppm": ("ppm", lambda image: image, {}),
    "jpeg 2000": ("jp2", lambda image: image, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_out_as_rgb(kind: str, tmp_path: Path) -> None:
    suffix, convert, options = KINDS[kind]
    path = tmp_path / f"x.{suffix}"
    convert(quarters()).save(path, **options)
    assert path.suffix in IMAGE_SUFFIXES
    for image in (read_image(path), read_annotated_image(path, HEIGHT, WIDTH)):
        assert (image.shape, image.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)
        assert all(distance(image[place], np.array(color)) <= 4 for place, color in COLORS.items())


@pytest.mark.parametrize(("mode", "kind"), [("L", "png"), ("LA", "png"), ("1", "png"), ("L", "jpeg")])
def test_gray_comes_out_as_three_equal_channels(mode: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{kind}"
    gray = quarters().convert(mode, dither=Image.Dither.NONE)
    gray.save(path)
    image = read_image(path)
    assert distance(image, np.asarray(gray.convert("RGB"))) <= 2
    assert image.min() < 60
    assert image.max() > 200


# --- depth and channels -----------------------------------------------------------------------------------------------


def ramp(channels: int) -> np.ndarray:
    """[256, 256, channels] with every 16-bit value in each channel, in another order in each."""
    values = np.arange(65536, dtype=np.uint16)
    return np.stack([np.roll(values, 21_845 * channel).reshape(256, 256) for channel in range(channels)], axis=2)


def write_with_opencv(path: Path, pixels: np.ndarray) -> Path:
    """``pixels`` [H, W, C] gray, RGB or RGBA; OpenCV wants the blue first."""
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[pixels.shape[2]]
    assert cv2.imwrite(str(path), pixels[:, :, order])
    return path


@pytest.mark.parametrize(
    ("channels", "suffix"), [(1, "png"), (3, "png"), (4, "png"), (1, "tiff"), (3, "tiff"), (4, "tiff")]
)
def test_every_one_of_16_bits_is_kept(channels: int, suffix: str, tmp_path: Path) -> None:
    pixels = ramp(channels)
    path = write_with_opencv(tmp_path / f"x.{suffix}", pixels)
    for image in (read_image(path, channels), read_annotated_image(path, 256, 256, channels)):
        assert image.dtype == np.uint16
        assert np.array_equal(image, pixels)


def test_16_bits_of_gray_are_three_equal_channels_in_rgb(tmp_path: Path) -> None:
    image = read_image(write_with_opencv(tmp_path / "x.png", ramp(1)))
    assert image.dtype == np.uint16
    assert np.array_equal(image, ramp(1).repeat(3, axis=2))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_four_channels_of_8_bits_are_read_as_they_are_stored(suffix: str, tmp_path: Path) -> None:
    pixels = (ramp(4) >> 8).astype(np.uint8)
    assert (pixels[:, :, 3] == 0).any()  # what would be transparent is not dropped either
    image = read_image(write_with_opencv(tmp_path / f"x.{suffix}", pixels), 4)
    assert image.dtype == np.uint8
    assert np.array_equal(image, pixels)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2"])
@pytest.mark.parametrize("shape", [(7, 5, 5), (7, 5, 1), (7, 5)], ids=str)
def test_an_array_holds_any_number_of_channels(shape: tuple[int, ...], dtype: str, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    path = tmp_path / "x.npy"
    np.save(path, np.asfortranarray(array))
    image = read_image(path, channels=5 if shape == (7, 5, 5) else 1)
    assert image.dtype == np.dtype(dtype).newbyteorder("=")
    assert np.array_equal(image, array.reshape(7, 5, -1))
    assert np.array_equal(read_annotated_image(path, 7, 5, image.shape[2]), image)
    with pytest.raises(DataError, match="is 5×7, its annotation says 7×5"):
        read_annotated_image(path, 5, 7, image.shape[2])


def test_gray_is_the_brightness_of_colors(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    quarters().save(path)
    image = read_image(path, channels=1)
    assert image.shape == (HEIGHT, WIDTH, 1)
    for place, (red, green, blue) in COLORS.items():
        assert image[place][0] == pytest.approx(0.299 * red + 0.587 * green + 0.114 * blue, abs=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_gray_is_upright_too(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ROTATED] = orientation
    path = tmp_path / "x.jpeg"
    quarters().convert("L").save(path, exif=exif, quality=95)
    stored, upright = np.asarray(Image.open(path)), np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert (distance(stored, upright) > 50) if 1 < orientation < 5 else True
    assert distance(read_image(path, channels=1), upright[:, :, None]) <= 3
    assert distance(read_annotated_image(path, HEIGHT, WIDTH, channels=1), stored[:, :, None]) <= 3


@pytest.mark.parametrize(
    ("kind", "channels", "has"),
    [("RGB", 4, 3), ("L", 4, 1), ("RGBA", 5, 4), ("RGB", 2, 3), ("array", 3, 5), ("array", 1, 5), ("array", 4, 5)],
)
def test_another_number_of_channels_is_named(kind: str, channels: int, has: int, tmp_path: Path) -> None:
    path = tmp_path / ("x.npy" if kind == "array" else "x.png")
    if kind == "array":
        np.save(path, np.zeros((4, 4, 5), np.uint8))
    else:
        quarters().convert(kind).save(path)
    expected = f"{path}: has {has} channels, model.in_channels asks for {channels}"
    assert error_of(path, channels) == expected


@pytest.mark.parametrize(
    ("array", "holds"),
    [
        (np.zeros((4, 4, 3)), "float64 [4, 4, 3]"),
        (np.zeros((4, 4, 3), np.int8), "int8 [4, 4, 3]"),
        (np.zeros((4, 4, 3), bool), "bool [4, 4, 3]"),
        (np.zeros((1, 4, 4, 3), np.uint8), "uint8 [1, 4, 4, 3]"),
        (np.zeros(48, np.uint8), "uint8 [48]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_array_that_is_not_an_image_is_refused(array: np.ndarray, holds: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, array)
    fault = f"{path}: holds {holds}; an image is [H, W, C] uint8 or uint16"
    assert error_of(path) == fault
    with pytest.raises(DataError) as caught:
        read_size(path)
    assert str(caught.value) == fault


class _Trap:
    """Unpickling it makes the file that it was given."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("kind", ["object array", "pickle"])
def test_no_pickle_is_ever_executed(kind: str, tmp_path: Path) -> None:
    path, proof = tmp_path / "x.npy", tmp_path / "executed"
    trap = _Trap(proof)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(trap))
    else:
        np.save(path, np.array([[trap]], dtype=object), allow_pickle=True)
    assert error_of(path).startswith(f"{path}: is not an array that can be read: ")
    assert not proof.exists()
    np.load(path, allow_pickle=True)  # it is a trap
    assert proof.exists()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_array_cut_off_anywhere_is_refused(dtype: type, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.ones((3, 4, 5), dtype))
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert error_of(path, channels=5).startswith(f"{path}: ")


# --- broken files -----------------------------------------------------------------------------------------------------

BROKEN = {
    "jpeg": encode(photo(), "JPEG"),
    "progressive jpeg": encode(photo(), "JPEG", progressive=True),
    "gray jpeg": encode(photo().convert("L"), "JPEG"),
    "jpeg with a thumbnail": with_thumbnail(encode(photo(), "JPEG"), encode(photo(16), "JPEG")),
    "png": encode(photo(), "PNG"),
    "palette png": encode(photo().quantize(64), "PNG"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_image_cut_off_anywhere_is_refused(kind: str, tmp_path: Path) -> None:
    data, path = BROKEN[kind], tmp_path / "ä image.jpg"
    path.write_bytes(data)
    assert read_image(path).shape == (64, 64, 3)
    accepted = []
    for length in [*range(1, len(data) - 64, 61), *range(len(data) - 64, len(data))]:
        path.write_bytes(data[:length])
        try:
            read_image(path)
            accepted.append(length)
        except DataError as error:
            assert str(error).startswith(f"{path}: ")
    assert accepted == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"just some text, whatever its name says\n" * 100, "is not an image"),
        (b"\xff\xd8\xff\xd9", ""),  # a JPEG's first and last marker, nothing between
        (bytes(5000), "is not an image"),
    ],
)
def test_a_file_that_is_not_an_image(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(data)
    assert error_of(path).startswith(f"{path}: {message}")


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert error_of(tmp_path / "x.jpg") == f"{tmp_path / 'x.jpg'}: does not exist"
    assert error_of(tmp_path).startswith(f"{tmp_path}: cannot be read: ")


@pytest.mark.parametrize("trailing", [b"\0" * 100, b"\0" * 10_000, b"\0\0\0\x18ftypmp42" + bytes(range(200)) * 50])
def test_bytes_after_the_end_of_a_jpeg_are_no_fault(trailing: bytes, tmp_path: Path) -> None:
    # Cameras pad their files, and "motion photos" carry a video behind the image.
    path = tmp_path / "x.jpg"
    path.write_bytes(BROKEN["jpeg"])
    expected = read_image(path)
    path.write_bytes(BROKEN["jpeg"] + trailing)
    assert distance(read_image(path), expected) == 0
