"""Training a segmenter on tiles: each window of an image and of its mask is an image of its own (``data.tiles``)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detector.config.schema import TilesConfig
from detector.data.large import read_anywhere
from detector.data.segmentation import MaskDataset
from detector.data.transforms.masks import Transformed
from detector.data.transforms.resize import cut, square
from detector.errors import counted
from detector.ops.tiles import Grid
from detector.structures import IGNORED_PIXEL


class TiledMasks(MaskDataset):
    """All tiles of a data set's images; an index is a tile. What lies beyond an image is ignored."""

    is_wide = None  # type: ignore[assignment]

    def __init__(self, whole: MaskDataset, tiles: TilesConfig, chosen: np.ndarray | None = None) -> None:
        counts = np.array([len(Grid(*size, tiles.size, tiles.overlap)) for size in whole.masked.sizes.tolist()])
        places = np.arange(counts.sum()) if chosen is None else chosen
        self.whole, self.tiles, self.places = whole, tiles, places
        image = np.repeat(np.arange(len(counts)), counts)[places]
        self.tile = places - (counts.cumsum() - counts)[image]
        given = whole.channels, whole.exif, whole.max_value, whole.mixed_epochs
        super().__init__(whole.masked.select(image), whole.transform, whole.weights.numpy(), *given)

    def select(self, indices: Sequence[int]) -> TiledMasks:
        """Some of the tiles, in this order."""
        return TiledMasks(self.whole, self.tiles, self.places[np.asarray(indices, dtype=np.int64)])

    def summary(self) -> str:
        return f"{self.whole.summary()}; {counted(len(self), 'tile')} of {self.tiles.size}×{self.tiles.size}"

    def _transformed(self, epoch: int, index: int) -> Transformed:
        size = self.tiles.size
        window = Grid(*self.masked.sizes[index].tolist(), size, self.tiles.overlap)[int(self.tile[index])]
        shown = cut(self.masked.mask(index), window)
        mask = np.full((size, size), IGNORED_PIXEL, dtype=np.uint8)
        mask[: shown.shape[0], : shown.shape[1]] = shown
        pixels = square(read_anywhere(self.open(index, for_window=True), window), size)
        return self.transform(pixels, mask, epoch, index)
