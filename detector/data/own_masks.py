"""The user's own images with masks, given from Python: ``detector.train(..., data=(train, val))``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from detector.config.schema import Config
from detector.data.inputs import ImageInput, as_array
from detector.data.own import read_categories
from detector.data.segmentation import MaskDataset, Masked, make_dataset
from detector.errors import DataError
from detector.structures import IGNORED_PIXEL, Category


class MaskData(Protocol):
    """Images with masks, by index. An index must always give the same item, or a resumed run would differ."""

    categories: Sequence[Category]  # ids of your choice, and names; the values of masks are indices into these

    def __len__(self) -> int: ...

    # The image as ``predict`` takes it, such as an array [H, W, 3], and its mask [H, W], integers; 255 is ignored.
    def __getitem__(self, index: int) -> tuple[ImageInput, Any]: ...


@dataclass(frozen=True)
class OwnMasks:
    """The masks of a :class:`MaskData`, and its images."""

    own: MaskData
    indices: np.ndarray  # [I] in it
    source: Path
    reading: tuple[int, str, int | None]  # how images are read: channels, data.exif, data.max_value

    def read(self, index: int, height: int, width: int) -> np.ndarray:
        return self.item(index, (height, width))[1]

    def item(self, index: int, size: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """An image [H, W, C] and its mask [H, W] uint8; of this size, where it is known."""
        name, item = f"{self.source}: image {self.indices[index]}", self.own[int(self.indices[index])]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"{name}: is {type(item).__name__}; give (image, mask)")
        try:
            image, mask = as_array(item[0], *self.reading), _as_mask(item[1], len(self.own.categories))
        except (TypeError, ValueError, DataError) as error:
            raise DataError(f"{name}: {error}") from None
        sizes = ["×".join(map(str, shape[1::-1])) for shape in (image.shape, mask.shape, size or mask.shape)]
        if sizes[0] != sizes[1]:
            raise DataError(f"{name}: is {sizes[0]}, its mask {sizes[1]}; a mask has the size of its image")
        if sizes[1] != sizes[2]:
            raise DataError(f"{name}: is {sizes[1]}, was {sizes[2]}; an index must always give the same image")
        return image, mask

    def select(self, indices: np.ndarray) -> OwnMasks:
        return replace(self, indices=self.indices[indices])


def _as_mask(given: Any, classes: int) -> np.ndarray:
    """A mask [H, W] uint8; raises ValueError with the remedy."""
    mask = np.asarray(given)
    if mask.ndim != 2 or mask.dtype.kind not in "biu":
        raise ValueError(f"has a mask {list(mask.shape)} of {mask.dtype}; give integers [H, W]")
    if (is_unknown := ((mask < 0) | (mask >= classes)) & (mask != IGNORED_PIXEL)).any():
        value = mask[is_unknown][0]
        raise ValueError(
            f"has the value {value} in its mask; give indices of the categories, 0 to {classes - 1}, or 255"
        )
    return mask.astype(np.uint8)


class OwnMaskDataset(MaskDataset):
    """A :class:`MaskData` for the training loop. Images have no files: their names are their indices in it."""

    @property
    def images(self) -> None:
        return None

    def file(self, index: int) -> Path:
        """What messages name instead of a file."""
        return Path(f"{self.source}: image {self.masked.masks.indices[index]}")

    def warnings(self) -> list[str]:
        return []

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.masked.masks.item(index, self.masked.sizes[index].tolist())


def read_own_masks(
    own: MaskData, name: str, config: Config, categories: list[Category] | None = None
) -> OwnMaskDataset:
    """The data set ``own`` as train or val (``name``), with each item read once.

    Raises :class:`detector.errors.DataError` for an item that is not as :class:`MaskData` says, and for classes that
    differ from ``categories`` (those of train).
    """
    source, data = Path(f"data given for {name}"), config.data
    known = read_categories(own, source, categories)
    if not len(own):
        raise DataError(f"{source}: has no images; give at least one")
    masks = OwnMasks(own, np.arange(len(own)), source, (config.model.in_channels, data.exif, data.max_value))
    sizes = np.array([masks.item(index)[1].shape for index in range(len(own))])
    files = np.array([str(index).encode() for index in range(len(own))])
    return make_dataset(config, name, Masked(source, source, known, files, sizes, masks), OwnMaskDataset)
