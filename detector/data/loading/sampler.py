"""Which images make up which step: a pure function of (seed, epoch), independent of the number of ranks.

The global order is cut into batches of ``train.batch_size``, and each batch into equal parts by rank and accumulation.
There is no state between steps, so a run resumes at any step by starting there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from detector.config.schema import TrainConfig

Key = tuple[int, int]  # (epoch, index), which indexes a data set


def mixed_epochs(train: TrainConfig, close_out: float, num_images: int) -> float:
    """The epochs of a run, counted from 0, below which images are mixed (``data.augment.close_out``)."""
    epochs = train.epochs if train.steps is None else train.steps / -(-num_images // train.batch_size)
    return round((1 - close_out) * epochs, 6)


def repeat_factors(image: np.ndarray, label: np.ndarray, num_images: int, threshold: float) -> np.ndarray:
    """How many times each image should come, [I]; object m has class label[m], in image[m] (``repeat_threshold``).

    An image's factor is the largest of its classes', which is max(1, sqrt(threshold / fraction of images with it)).
    """
    of_image, of_class = np.unique(np.stack([image, label]), axis=1)
    fraction = np.bincount(of_class) / num_images
    factors = np.ones(num_images)
    np.maximum.at(factors, of_image, np.sqrt(threshold / fraction[of_class]))
    return factors


def epoch_batches(
    is_wide: np.ndarray | None,
    num_images: int,
    batch_size: int,
    seed: int,
    epoch: int,
    repeats: np.ndarray | None = None,
) -> np.ndarray:
    """Image indices of every batch of an epoch, [steps, batch_size].

    Every image comes once, or with ``repeats`` [I] in proportion to these, rounded up or down at random; the last batch
    is filled up from the beginning of the order. With ``is_wide`` [I], batches hold only landscape or only portrait
    images, except for the few made of leftovers.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(num_images)
    if repeats is not None:
        ends = np.cumsum(repeats[order]) * (num_images / repeats.sum())
        ends[-1] = num_images  # whatever was rounded
        copies = np.diff(np.floor(ends + rng.random()).astype(np.int64), prepend=0)
        order = rng.permutation(np.repeat(order, copies))
    groups = [order] if is_wide is None else [order[is_wide[order]], order[~is_wide[order]]]
    full = [group[: len(group) // batch_size * batch_size].reshape(-1, batch_size) for group in groups]
    rest = np.concatenate([group[len(group) // batch_size * batch_size :] for group in groups])
    short = -len(rest) % batch_size
    rest = np.concatenate([rest, np.resize(order, short)]).reshape(-1, batch_size)
    return rng.permutation(np.concatenate([*full, rest]))


class TrainBatches:
    """This rank's parts of every batch from ``start_step`` to ``steps``: ``accumulate`` lists of keys per step."""

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        start_step: int,
        steps: int,
        is_wide: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        repeats: np.ndarray | None = None,
        shown: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        self.is_wide, self.repeats = is_wide, repeats  # of each image
        self.shown = shown  # the image that each index shows in an epoch; None: its own
        self.arguments = (num_images, batch_size, seed)
        self.steps_per_epoch = -(-num_images // batch_size)
        self.start_step, self.steps = start_step, steps
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate

    def __len__(self) -> int:
        return (self.steps - self.start_step) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        batches, epoch_of_batches = np.empty((0, 0), dtype=np.int64), -1
        for step in range(self.start_step, self.steps):
            epoch, number = divmod(step, self.steps_per_epoch)
            if epoch != epoch_of_batches:
                batches, epoch_of_batches = self._of_epoch(epoch), epoch
            parts = batches[number].reshape(self.world_size, self.accumulate, -1)
            for part in parts[self.rank]:
                yield [(epoch, int(index)) for index in part]

    def _of_epoch(self, epoch: int) -> np.ndarray:
        is_wide, repeats = self.is_wide, self.repeats
        if self.shown is not None:
            shown = self.shown(epoch)
            is_wide, repeats = (None if own is None else own[shown] for own in (is_wide, repeats))
        return epoch_batches(is_wide, *self.arguments, epoch, repeats)


class EvalBatches:
    """This rank's batches of a whole data set; a rank without images has none.

    In order, or with ``shapes`` [I, 2] (height and width of each image padded on its own) shape by shape: then each
    batch has one shape, and an image's predictions do not depend on the rest of its batch.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        shapes: np.ndarray | None = None,
    ) -> None:
        order, shape_of = np.arange(num_images), np.zeros(num_images, dtype=np.int64)
        if shapes is not None:
            shape_of = np.unique(shapes, axis=0, return_inverse=True)[1].reshape(-1)
            order = np.argsort(shape_of, kind="stable")
        own = order[rank::world_size]
        alike = np.split(own, np.flatnonzero(np.diff(shape_of[own])) + 1)
        self.batches = [part[start : start + batch_size] for part in alike for start in range(0, len(part), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        for batch in self.batches:
            yield [(0, index) for index in batch.tolist()]
