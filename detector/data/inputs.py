"""Images given from Python: paths, PIL images, arrays and tensors become arrays of one kind."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
from PIL import Image, ImageOps

from detector.data.images import read_image, scale_depth
from detector.errors import DataError, near_path

if TYPE_CHECKING:
    from torch import Tensor

ImageInput: TypeAlias = "str | Path | Image.Image | np.ndarray | Tensor"
Reading = tuple[int, str, int | None]  # how images are read: channels, data.exif, data.max_value


def is_tensor(value: object) -> TypeGuard[Tensor]:
    """Whether a value is a torch tensor. Imports no torch: without it, nothing is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _is_array(value: object) -> TypeGuard[np.ndarray | Tensor]:
    return isinstance(value, np.ndarray) or is_tensor(value)


def check_images(images: object, channels: int) -> Iterator[ImageInput]:
    """The images, each checked to be of a kind that can be read; files need only exist.

    A sequence is checked as a whole before anything is returned, another iterable image by image. Raises TypeError,
    ValueError or :class:`detector.errors.DataError` with the number of the image and the remedy.
    """
    is_single = isinstance(images, str | Path | Image.Image)
    if is_single or (_is_array(images) and images.ndim in (2, 3)):
        raise TypeError("predict takes a list of images; wrap a single one: predict([image])")
    if images is None or not hasattr(images, "__iter__"):
        raise TypeError(f"predict takes a list of images; this is {_kind(images)}")
    checked = _checked(images, channels)
    return iter(list(checked)) if isinstance(images, Sequence) or _is_array(images) else checked


def _checked(images: Iterable[Any], channels: int) -> Iterator[ImageInput]:
    for number, image in enumerate(images):
        check_image(image, channels, f"image {number}")
        yield image


def check_image(image: object, channels: int, name: str = "the image") -> None:
    """Refuse what :func:`as_array` cannot read, with the remedy."""
    if isinstance(image, str | Path):
        _check_path(image, name)
    elif _is_array(image):
        if fault := _array_fault(image, channels):
            raise ValueError(f"{name}: {fault}")
    elif not isinstance(image, Image.Image):
        is_list = isinstance(image, list | tuple)
        remedy = "; give one flat list, of pixels numpy.asarray(image, dtype=numpy.uint8)" if is_list else ""
        raise TypeError(
            f"{name} is {_kind(image)}; it must be a path, a PIL image, an array [H, W, {channels}] or a tensor"
            f" [{channels}, H, W]{remedy}"
        )


def _kind(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def _check_path(image: str | Path, name: str) -> None:
    # os.path, as Path's own functions raise for a name that is too long.
    if str(image).startswith(("http://", "https://")):
        raise DataError(f"{name}: {image}: is a URL; download it and give the path of the file")
    if os.path.isdir(image):  # noqa: PTH112
        files = f"sorted(Path({str(image)!r}).glob('*.jpg'))"
        raise DataError(f"{name}: {image}: is a folder; give its files: predict({files})")
    if not os.path.exists(image):  # noqa: PTH110
        hint = near_path(image) or f"; relative paths start at {Path.cwd()}"
        raise DataError(f"{name}: {image}: does not exist{hint}")


def _array_fault(image: np.ndarray | Tensor, channels: int) -> str:
    """What is wrong with an array or tensor and how to fix it; empty if nothing is."""
    is_torch = is_tensor(image)
    dtype = str(image.dtype).removeprefix("torch.") if is_torch else image.dtype.name  # in any byte order
    shape = list(image.shape)
    wanted = f"uint8 or uint16 {'tensor' if is_torch else 'array'} {_layout(is_torch, channels)}"
    if 0 in shape:
        remedy = "it is empty"
    elif len(shape) != 3 or shape[0 if is_torch else 2] != channels:
        remedy = _shape_remedy(shape, channels, is_torch)
    elif dtype not in ("uint8", "uint16"):
        remedy = _type_remedy(image, dtype, is_torch)
    else:
        return ""
    order = " in the order RGB (cv2.imread gives BGR)" if channels == 3 else ""
    return f"must be a {wanted}{order}; this one is {dtype} {shape}" + (f": {remedy}" if remedy else "")


def _layout(is_torch: bool, channels: int) -> str:
    return f"[{channels}, H, W]" if is_torch else f"[H, W, {channels}]"


def _shape_remedy(shape: list[int], channels: int, is_torch: bool) -> str:
    if len(shape) == 4:
        return f"a batch of {shape[0]} images: give them one by one, predict(list(batch))"
    if len(shape) == 2:
        if channels == 1:
            return "a gray image without its channel: image[None]" if is_torch else "image[:, :, None]"
        stacked = f"image.expand({channels}, -1, -1)" if is_torch else f"numpy.stack([image] * {channels}, axis=2)"
        return f"a gray image: {stacked}"
    if len(shape) != 3:
        return ""
    if is_torch and shape[2] == channels:
        return "looks like [H, W, C]: image.permute(2, 0, 1)"
    if not is_torch and shape[0] == channels:
        return "looks like [C, H, W]: image.transpose(1, 2, 0)"
    found = shape[0 if is_torch else 2]
    if found == 4 and channels == 3:
        return f"looks like RGBA, drop the alpha: {'image[:3]' if is_torch else 'image[:, :, :3]'}"
    if found == 1 and channels == 3:
        return f"a gray image: {'image.expand(3, -1, -1)' if is_torch else 'image.repeat(3, axis=2)'}"
    return f"the model takes {channels} channels (model.in_channels)"


def _type_remedy(image: np.ndarray | Tensor, dtype: str, is_torch: bool) -> str:
    convert = "to(torch.uint8)" if is_torch else "astype(numpy.uint8)"
    if "float" not in dtype:
        return f"with values of 0 to 255, image.{convert}"
    low, high = float(image.min()), float(image.max())
    if low < 0 or not high <= 255:
        return f"values of {low:.3g} to {high:.3g} look normalised; give the pixels as they were read"
    scaled = "image" if high > 1 else "(image * 255)"
    return f"values of {low:.3g} to {high:.3g}, convert them by {scaled}.round().{convert}"


def as_array(image: ImageInput, channels: int = 3, exif: str = "auto", max_value: int | None = None) -> np.ndarray:
    """An image that :func:`check_image` accepts as [H, W, C] uint8 or uint16; RGB if ``channels`` is 3.

    ``exif`` and ``max_value`` are ``data.exif`` and ``data.max_value``.
    """
    check_image(image, channels)
    if isinstance(image, str | Path):
        return read_image(Path(image), channels, exif, max_value)
    if is_tensor(image):
        array = image.permute(1, 2, 0).cpu().numpy()
    elif isinstance(image, np.ndarray):
        array = image
    else:
        array = _from_pil(image, channels, exif)
        check_image(array, channels)
    # An image that needs no resizing becomes a tensor as it is, which a view of negative strides (flipped BGR) cannot.
    array = np.require(array, array.dtype.newbyteorder("="), requirements=("C", "W"))
    return scale_depth(array, max_value)


def as_shown(image: ImageInput, channels: int, exif: str, max_value: int | None) -> np.ndarray:
    """An image to draw on, [H, W, C], as ``as_array`` reads it; an array or tensor may have any number of channels."""
    if _is_array(image) and image.ndim == 3:
        channels = int(image.shape[0 if is_tensor(image) else 2])
    return as_array(image, channels, exif, max_value)


def _from_pil(image: Image.Image, channels: int, exif: str) -> np.ndarray:
    if image.mode in ("RGB", "RGBA") and ";16" in str(getattr(image, "tile", "")):
        raise ValueError("a PIL image of three channels holds 8 of its file's 16 bits; give the path of the file")
    try:
        image.load()  # reads the file, if PIL has only opened it
        upright = image if exif == "stored" else ImageOps.exif_transpose(image)
    except Exception as error:  # damaged files raise almost anything
        name = getattr(image, "filename", "") or "a PIL image"
        raise DataError(f"{name}: cannot be decoded: {' '.join(str(error).split())}") from None
    is_deep = upright.mode.startswith("I")  # 16 bits per pixel (stored in 16 or 32), which PIL would clip to 255
    if channels in (1, 3) and not is_deep:
        upright = upright.convert({1: "L", 3: "RGB"}[channels])
    array = np.asarray(upright)
    if is_deep and array.min() >= 0 and array.max() < 2**16:
        array = array.astype(np.uint16)
    array = array.reshape(*array.shape[:2], -1)
    if is_deep and channels == 3:
        array = array.repeat(3, axis=2)
    return array


def check_threshold(value: object) -> None:
    """Refuse a score threshold that is neither None nor a number in [0, 1], with the remedy."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"score_threshold: {value!r} is not a number between 0 and 1")
    if not 0 <= value <= 1:
        hint = f"; {value:g} looks like a percentage: {value / 100:g}" if 1 < value <= 100 else ""
        raise ValueError(f"score_threshold: {value:g} is not between 0 and 1{hint}")
