"""Prediction by tiles: batches of windows of one image, and one prediction of what was found in them. Imports no torch.

The model sees each tile as it sees an image, resized by ``data.resize``; it says nothing of what lies beyond.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from detector.config.tasks import LARGEST_TILE, TASKS
from detector.data.large import SHOWN, LargeFile, read_window
from detector.data.transforms.resize import square
from detector.errors import ConfigError, one_of
from detector.ops.tiles import OVERLAPS, Grid

Outputs = Sequence[np.ndarray]  # of one image, as its task's ``OUTPUTS`` lists them


class Tiles(NamedTuple):
    """What prediction takes of the config's ``data.tiles``."""

    size: int
    overlap: float
    full_image: bool
    merge: str


class Part(NamedTuple):
    """What the model found in a tile, or in the whole image."""

    tile: int | None  # index in the grid; None: the whole image
    outputs: Outputs


def tiles_of(config: Any, given: int | Mapping[str, Any] | None = None) -> Tiles | None:
    """The tiles of a config, with ``given`` instead: a size, or some of the keys; None: images are seen whole.

    Raises :class:`detector.errors.ConfigError` for a key or value that is none, and for a task without tiles.
    """
    own = getattr(config.data, "tiles", None)
    given = {} if given is None else dict(given) if isinstance(given, Mapping) else {"size": given}
    if own is None:  # an exported file that is older than tiles
        if given:
            raise ConfigError("tiles: this model was exported before there were any; export it again")
        return None
    if unknown := set(given) - set(Tiles._fields):
        raise ConfigError(f"tiles: {min(map(str, unknown))!r} is not a key; use {one_of(Tiles._fields)}")
    tiles = Tiles(*(given.get(name, getattr(own, name)) for name in Tiles._fields))
    if tiles.size is None:
        return None
    if "data.tiles.size" not in TASKS[config.task]:
        raise ConfigError(f"tiles: the model is of {config.task}, which sees images whole; remove them")
    for key, is_right, wanted in (
        (
            "size",
            isinstance(tiles.size, int) and tiles.size is not True and 1 <= tiles.size <= LARGEST_TILE,
            f"a whole number of pixels from 1 to {LARGEST_TILE:,}",
        ),
        ("overlap", isinstance(tiles.overlap, int | float) and 0 <= tiles.overlap <= 0.9, "a number from 0 to 0.9"),
        ("merge", tiles.merge in OVERLAPS, one_of(OVERLAPS)),
    ):
        if not is_right:
            raise ConfigError(f"tiles: {key}: {getattr(tiles, key)!r} is not {wanted}")
    return tiles


def predict_tiled(
    image: np.ndarray | LargeFile,
    tiles: Tiles,
    batch_size: int,
    make_sample: Callable[[np.ndarray], Any],
    predict: Callable[[list[Any]], Sequence[Outputs]],
    join: Callable[[Iterator[Part], Grid], Any],
) -> Any:
    """What ``join`` makes of the outputs of all tiles, which ``predict`` gives ``batch_size`` at a time."""
    grid = Grid(*image.shape[:2], tiles.size, tiles.overlap)
    return join(_parts(image, grid, tiles.full_image, batch_size, make_sample, predict), grid)


def _parts(
    image: np.ndarray | LargeFile,
    grid: Grid,
    full_image: bool,
    batch_size: int,
    make_sample: Callable[[np.ndarray], Any],
    predict: Callable[[list[Any]], Sequence[Outputs]],
) -> Iterator[Part]:
    def read(indices: Sequence[int]) -> list[Any]:
        return [make_sample(square(read_window(image, grid[index]), grid.size)) for index in indices]

    with ThreadPoolExecutor(1) as pool:  # reads and resizes the next tiles while the model computes
        batches = [range(len(grid))[start : start + batch_size] for start in range(0, len(grid), batch_size)]
        ahead = pool.submit(read, batches[0])
        for number, indices in enumerate(batches):
            samples = ahead.result()
            if number + 1 < len(batches):
                ahead = pool.submit(read, batches[number + 1])
            yield from map(Part, indices, predict(samples))
    if full_image and len(grid) > 1:
        whole = image.shrunk(SHOWN) if isinstance(image, LargeFile) else image
        boxes, *others = predict([make_sample(whole)])[0]
        factors = np.array([grid.width / whole.shape[1], grid.height / whole.shape[0]] * 2, dtype=np.float32)
        yield Part(None, (boxes * factors, *others))
