"""Index masks in image files: which image has which, and the class of each index."""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from detector.config.schema import MaskConfig
from detector.data.formats.building import read_cells
from detector.data.formats.class_folders import PATH_NAMES, unknown_class
from detector.data.headers import checked
from detector.data.images import open_file, read_size, why_missing
from detector.data.listing import list_images
from detector.data.names import Names, check_names, files_below
from detector.errors import ConfigError, DataError, counted
from detector.structures import IGNORED_PIXEL
from detector.system.json_stream import show_text

UNKNOWN_PIXEL = IGNORED_PIXEL - 1  # of an index that is no class
SHOWN = 6  # colours of a mask in a message
VOC_IMAGES, VOC_MASKS, VOC_LISTS = "JPEGImages", "SegmentationClass", "ImageSets/Segmentation"


@dataclass(frozen=True)
class Legend:
    """What the pixels of mask files mean."""

    classes: Sequence[str]
    of_index: np.ndarray  # [65536] uint8: the class, IGNORED_PIXEL or UNKNOWN_PIXEL
    of_color: dict[int, int]  # class by 0xRRGGBB; empty: masks have no colours
    first_index: int  # of class 0, for messages

    @classmethod
    def of(cls, config: MaskConfig, classes: Sequence[str]) -> Legend:
        """Raises :class:`detector.errors.ConfigError` for a class that there is not."""
        of_index = np.full(2**16, IGNORED_PIXEL if config.label_map else UNKNOWN_PIXEL, dtype=np.uint8)
        first = int(config.reduce_zero_label)
        if config.ignore_index is not None:
            of_index[config.ignore_index] = IGNORED_PIXEL
        if config.label_map:
            for index, label in config.label_map.items():
                if label >= len(classes):
                    known = f"data.classes has {len(classes)}, 0 to {len(classes) - 1}"
                    raise ConfigError(f"data.masks.label_map: {index}: {label} is no class; {known}")
                of_index[index] = label
        else:
            indices = np.arange(len(classes)) + first
            if config.ignore_index in indices:
                name = classes[config.ignore_index - first]
                raise ConfigError(
                    f"data.masks.ignore_index: {config.ignore_index} is the index of class {name!r}; indices count from"
                    f" {first}, so set another one, null, or data.masks.label_map"
                )
            of_index[:first], of_index[indices] = IGNORED_PIXEL, indices - first
        for name in config.colors:
            if name not in classes:
                raise ConfigError(f"data.masks.colors: {unknown_class(name, classes)}")
        of_color = {(r << 16) | (g << 8) | b: classes.index(name) for name, (r, g, b) in config.colors.items()}
        return cls(classes, of_index, of_color, first)

    def index_of(self, label: int) -> int:
        """The lowest index of a class in the files, which is its id; of classes that have only a colour, the label."""
        indices = np.flatnonzero(self.of_index == label)
        return int(indices[0]) if indices.size and not self.of_color else label

    def read(self, path: Path) -> np.ndarray:
        """The classes of a mask file's pixels, [H, W] uint8. Raises :class:`detector.errors.DataError`."""
        mask, fault = self.examine(path)
        if fault:
            raise DataError(f"{path}: {fault[1]}")
        return mask

    def examine(self, path: Path) -> tuple[np.ndarray, tuple[str, str] | None]:
        """The classes, and what is wrong with them: the doctor's name of the fault, and words with the remedy."""
        pixels = read_pixels(path)
        if pixels.ndim == 3:
            if not self.of_color:
                return np.full(pixels.shape[:2], IGNORED_PIXEL, dtype=np.uint8), (
                    "mask-colors",
                    self._describe_colors(pixels),
                )
            colors, inverse = np.unique(_packed(pixels), return_inverse=True)
            labels = np.array([self.of_color.get(color, IGNORED_PIXEL) for color in colors.tolist()], dtype=np.uint8)
            return labels[inverse].reshape(pixels.shape[:2]), None
        mask = self.of_index[pixels]
        is_unknown = mask == UNKNOWN_PIXEL
        if not is_unknown.any():
            return mask, None
        row, column = (int(place[0]) for place in np.nonzero(is_unknown))
        index, last = pixels[row, column], len(self.classes) - 1 + self.first_index
        count = counted(int((pixels == index).sum()), "pixel")
        words = (
            f"has index {index} ({count}, first in row {row}, column {column}), which is no class: data.classes names"
            f" {len(self.classes)}, {self.first_index} to {last}; name it, ignore it (data.masks.ignore_index), or map"
            " it (data.masks.label_map)"
        )
        return np.where(is_unknown, IGNORED_PIXEL, mask), ("mask-index", words)

    def _describe_colors(self, pixels: np.ndarray) -> str:
        colors, counts = np.unique(_packed(pixels), return_counts=True)
        most = np.argsort(-counts)[:SHOWN]
        found = ", ".join(
            f"[{color >> 16}, {color >> 8 & 255}, {color & 255}] {count / counts.sum():.0%}"
            for color, count in zip(colors[most].tolist(), counts[most].tolist(), strict=True)
        )
        more = ", …" if len(colors) > SHOWN else ""
        return (
            f"is in RGB, with {counted(len(colors), 'colour')} ({found}{more}); a mask has an index per pixel: convert"
            f" it, or name each class's colour, as in data.masks.colors={{{self.classes[0]}: [128, 64, 128], …}}"
        )


def _packed(pixels: np.ndarray) -> np.ndarray:
    """Colours [H, W, 3] as 0xRRGGBB, [H, W]."""
    red, green, blue = (pixels[..., channel].astype(np.int64) for channel in range(3))
    return (red << 16) | (green << 8) | blue


def read_pixels(path: Path) -> np.ndarray:
    """The indices of a mask file as they are stored, [H, W], a palette left alone; of one in colours [H, W, 3] uint8.

    One in RGB whose channels are all equal has indices.
    """
    try:
        with open_file(path) as file:
            data = checked(path, file.read())
        with Image.open(io.BytesIO(data)) as image:
            if image.mode in ("RGBA", "LA", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
                image = image.convert({"LA": "L", "PA": "P"}.get(image.mode, "RGB"))
            pixels = np.asarray(image)
    except FileNotFoundError:
        raise DataError(f"{path}: {why_missing(path)}") from None
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # damaged files raise almost anything
        raise DataError(f"{path}: is not a mask that can be decoded: {' '.join(str(error).split())[:120]}") from None
    if pixels.ndim == 3:
        is_gray = (pixels == pixels[..., :1]).all()
        return pixels[..., 0] if is_gray else pixels
    if pixels.dtype.kind not in "bui" or (pixels.size and not 0 <= pixels.min() <= pixels.max() < 2**16):
        raise DataError(f"{path}: holds {image.mode} values, which are no indices; give masks of 8 or 16 bits")
    return pixels.astype(np.uint8 if pixels.dtype == bool else np.uint16 if pixels.dtype.itemsize > 1 else np.uint8)


@dataclass(frozen=True)
class MaskFiles:
    """A file per image."""

    root: Path
    files: np.ndarray  # [I] names relative to root, in the bytes of the file system
    legend: Legend

    def file(self, index: int) -> Path:
        return self.root / os.fsdecode(self.files[index])

    def read(self, index: int, height: int, width: int) -> np.ndarray:
        return self.legend.read(self.file(index))

    def select(self, indices: np.ndarray) -> MaskFiles:
        return MaskFiles(self.root, self.files[indices], self.legend)

    def sizes(self, is_strict: bool = True) -> np.ndarray:
        """Height and width of each, from their headers, [I, 2]; unless strict, 0 where one cannot be read."""
        sizes = np.zeros((len(self.files), 2), dtype=np.int64)
        for index in range(len(self.files)):
            with contextlib.suppress(*(() if is_strict else (DataError,))):
                sizes[index] = read_size(self.file(index), "stored")
        return sizes


def pair_folders(
    images: Path, masks: Path, endings: Sequence[str], without: list[str] | None = None
) -> tuple[list[str], list[str], str]:
    """Names of images, of their masks, and a note on what was left over; a mask's name may also be the image's + .png.

    Images without a mask are added to ``without`` if it is given; otherwise :class:`detector.errors.DataError` is
    raised for the first one.
    """
    listing = list_images(images)
    by_stem: dict[str, list[str]] = {}
    for name in list_images(masks).files:
        stem = os.path.splitext(name)[0]  # noqa: PTH122
        if stem.endswith(endings[1]):
            by_stem.setdefault(stem[: len(stem) - len(endings[1])], []).append(name)
    pairs: dict[str, str] = {}
    missing = []
    for name in listing.files:
        stem = os.path.splitext(name)[0]  # noqa: PTH122
        own = by_stem.get(stem.removesuffix(endings[0])) or by_stem.get(name, [])
        if len(own) > 1:
            raise DataError(f"{images / name}: has several masks in {masks}: {', '.join(own)}; keep one")
        if own:
            pairs[name] = own[0]
        else:
            missing.append(name)
    if not listing.files:
        raise DataError(f"{images}: has no images")
    if without is not None:
        without += missing
    elif missing:
        few = f", {counted(len(missing), 'image')} of {len(listing.files):,} without one" if len(missing) > 1 else ""
        expected = os.path.splitext(missing[0])[0].removesuffix(endings[0]) + endings[1] + ".png"  # noqa: PTH122
        raise DataError(
            f"{images / missing[0]}: has no mask {masks / expected}{few}; add it, remove the image, or say how names"
            " end (data.masks.endings)"
        )
    left = Counter(name for own in by_stem.values() for name in own) - Counter(pairs.values())
    notes = [listing.note(), f"{counted(left.total(), 'mask')} without an image" if left else ""]
    return list(pairs), list(pairs.values()), "; ".join(filter(None, notes))


def read_pairs(path: Path, root: Path, allow_outside: bool) -> tuple[list[str], list[str]]:
    """The rows of a CSV file, with or without a header: the paths of an image and of its mask, relative to ``root``."""
    images: list[str] = []
    masks: list[str] = []
    lines: list[int] = []
    for number, (line, cells) in enumerate(read_cells(path)):
        if number == 0 and cells[0].strip().lower() in PATH_NAMES:
            continue
        if len(cells) != 2 or not all(cell.strip() for cell in cells):
            raise DataError(
                f"{path}:{line}: has {counted(len(cells), 'cell')}; give the paths of an image and its mask"
            )
        images.append(cells[0].strip())
        masks.append(cells[1].strip())
        lines.append(line)
    if not images:
        raise DataError(f"{path}: has no rows")
    for names in (images, masks):
        repeated = {name: place for place, name in enumerate(names)}  # the last of each
        if names is images and len(repeated) < len(names):
            place = next(place for place, name in enumerate(names) if repeated[name] != place)
            raise DataError(f"{path}:{lines[repeated[names[place]]]}: {names[place]} is listed twice; keep one row")
        unique = list(repeated)
        for index, is_outside, reason in check_names(unique, root, allow_outside):
            remedy = "set data.allow_outside=true if you trust the file" if is_outside else f"paths start at {root}"
            remedy = Names(files_below(root)).hint(unique[index]) or remedy
            raise DataError(f"{path}:{lines[repeated[unique[index]]]}: {unique[index]} {reason}; {remedy}")
    return images, masks


def read_voc_list(path: Path) -> tuple[Path, list[str], list[str]]:
    """A file of Pascal VOC's ``ImageSets``, a name per line: VOC's folder, and there the images and their masks."""
    root = next((folder for folder in path.parents if (folder / VOC_MASKS).is_dir()), None)
    if root is None:
        raise DataError(
            f"{path}: is a text file, which is read as a list of Pascal VOC's, and no folder above it has a folder"
            f" {VOC_MASKS}; give a folder of masks, a CSV file of pairs, or COCO JSON"
        )
    found = [{Path(name).stem: name for name in list_images(root / part).files} for part in (VOC_IMAGES, VOC_MASKS)]
    names: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        name = line.split()[0]
        for part, known in zip((VOC_IMAGES, VOC_MASKS), found, strict=True):
            if name not in known:
                raise DataError(
                    f"{path}:{number}: {root / part} has no image {show_text(name)}; add it, or remove the line"
                )
        if names.setdefault(name, number) != number:
            raise DataError(f"{path}:{number}: {name} is listed twice; keep one line")
    if not names:
        raise DataError(f"{path}: has no lines")
    images, masks = (
        [f"{part}/{known[name]}" for name in names] for part, known in zip((VOC_IMAGES, VOC_MASKS), found, strict=True)
    )
    return root, images, masks
