"""Samples to a :class:`detector.structures.Batch`, and the batches of a loader."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import get_worker_info

from detector.data.loading.bad_images import Replaced, Skipped
from detector.data.loading.feed import feed
from detector.data.loading.workers import load
from detector.data.transforms.resize import padded
from detector.errors import DetectorError
from detector.structures import SIZE_DIVISOR, Batch

CPU = torch.device("cpu")


def pad_images(images: list[torch.Tensor], divisor: int = SIZE_DIVISOR) -> torch.Tensor:
    """Images [C, H, W] in one [B, C, H', W'], zero right and below, both sides multiples of ``divisor``.

    Channels last, as images are decoded and convolutions prefer: whole rows are copied, nothing is transposed.
    """
    sides = torch.tensor([image.shape[-2:] for image in images]).amax(dim=0)
    height, width = padded(sides, divisor).tolist()
    if any(image.dtype == torch.uint16 for image in images):  # 8 bits with 16: 255 becomes 65535
        images = [image if image.dtype == torch.uint16 else image.to(torch.uint16) * 257 for image in images]
    batch = shared_zeros([len(images), height, width, images[0].shape[0]], images[0].dtype).permute(0, 3, 1, 2)
    for row, image in enumerate(images):
        batch[row, :, : image.shape[1], : image.shape[2]] = image
    return batch


def shared_zeros(shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    """Zeros; in a loader's worker, in memory shared with the main process, so that sending them copies nothing."""
    if get_worker_info() is None:
        return torch.zeros(shape, dtype=dtype)
    # As in torch's default_collate. The system returns new shared memory as zeros.
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize, device="cpu")
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)


def collate(samples: list[Any]) -> Batch | DetectorError:
    """One batch of a task's samples; if any is an error, the first error (see ``CocoDataset``)."""
    for sample in samples:
        if isinstance(sample, DetectorError):
            return sample
    kind = type(samples[0])
    return Batch(
        images=pad_images([sample.image for sample in samples], kind.DIVISOR),
        sizes=torch.tensor([sample.image.shape[-2:] for sample in samples]),
        sizes_original=torch.tensor([sample.size_original for sample in samples]),
        targets=kind.stack_targets(samples),
        ids=torch.tensor([sample.id for sample in samples]),
    )


def load_batches(
    data: Any, batches: Any, workers: int, device: torch.device = CPU, skipped: Skipped | None = None
) -> Iterator[Batch]:
    """The batches of ``data``, on ``device``, in the order of a sampler of key lists; raises a broken sample's error.

    ``skipped`` is told what a :class:`detector.data.loading.bad_images.Replacing` data set skipped, batch by batch.
    """
    loaded = load(data, batches, workers, _collate_replaced, pin_memory=device.type == "cuda")
    for batch, replaced in feed(loaded, device):
        for one in replaced:
            if skipped:
                skipped.add(one)
        if isinstance(batch, DetectorError):
            raise batch
        yield batch


def _collate_replaced(samples: list[Any]) -> tuple[Batch | DetectorError, list[Replaced]]:
    """The batch, and which of its samples replace others, without the samples themselves."""
    replaced = [sample for sample in samples if isinstance(sample, Replaced)]
    batch = collate([sample.sample if isinstance(sample, Replaced) else sample for sample in samples])
    return batch, [one._replace(sample=None) for one in replaced]
