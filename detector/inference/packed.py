"""Items of a folder from loader processes: their images travel in shared memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from detector.data.loading.collate import shared_zeros
from detector.errors import DetectorError
from detector.inference.images import Item


class Packed(NamedTuple):
    """A batch of items with their images in one block of shared memory: a pipe would copy them."""

    items: list[Item]  # without their images
    forms: list[tuple[int, np.dtype[Any], tuple[int, ...]] | None]  # of each image: first byte, type, shape
    memory: Tensor  # [bytes] uint8

    @classmethod
    def pack(cls, samples: list[Item | DetectorError]) -> Packed:
        """Pack items; a DetectorError becomes one without a sample."""
        items = [sample if isinstance(sample, Item) else Item(None, None, str(sample)) for sample in samples]
        forms, size = [], 0
        for item in items:
            forms.append(None if item.image is None else (size, item.image.dtype, item.image.shape))
            size += 0 if item.image is None else -(-item.image.nbytes // 16) * 16
        packed = cls([item._replace(image=None) for item in items], forms, shared_zeros([size], torch.uint8))
        for item, image in zip(items, packed._images(), strict=True):
            if image is not None:
                image[:] = item.image
        return packed

    def unpack(self) -> list[Item]:
        return [item._replace(image=image) for item, image in zip(self.items, self._images(), strict=True)]

    def _images(self) -> Iterator[np.ndarray | None]:
        memory = self.memory.numpy()
        for form in self.forms:
            yield None if form is None else np.ndarray(form[2], form[1], memory, offset=form[0])
