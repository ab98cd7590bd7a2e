"""Training on data with broken images, which are replaced by others (``data.on_bad_image: skip``)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from detector.errors import DataError, DetectorError
from detector.system.atomic import append_line

TRIES = 10  # replacements for one image; if all of them fail, the disk is gone rather than images broken


class Replaced(NamedTuple):
    """A sample that replaces one that could not be read."""

    sample: Any
    epoch: int
    errors: list[DetectorError]  # of the broken image, and of replacements that were broken too


class Replacing(Dataset[Any]):
    """A training set in which another image, drawn from (seed, epoch, index), replaces one that is broken.

    So batches stay full, and a step still depends only on the data, not on workers, ranks or restarts. The other image
    is transformed as in its own turn of this epoch.
    """

    def __init__(self, data: Any, seed: int) -> None:
        self.data = data
        self.seed = seed

    def __len__(self) -> int:
        return len(self.data)

    def file(self, index: int) -> Path:
        return self.data.file(index)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        sample = self.data[key]
        if not isinstance(sample, DataError):  # another error is not the fault of an image
            return sample
        errors = [sample]
        # A stream of its own: the transform's is seeded with (seed, epoch, index), that of mixing with a 1 behind them.
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch, index, 2]))
        for other in rng.integers(len(self), size=TRIES).tolist():
            sample = self.data[epoch, other]
            if not isinstance(sample, DataError):
                return Replaced(sample, epoch, errors)
            errors.append(sample)
        return DataError(f"{errors[0]}; and none of {TRIES} replacements could be read (first: {errors[1]})")


class Skipped:
    """The broken images of one rank: each is named once per run, and counted once per epoch.

    ``add`` raises :class:`detector.errors.DataError` where they exceed the fraction ``max_share`` of this rank's
    images of an epoch.
    """

    def __init__(self, num_images: int, max_share: float, log: Path, say: Callable[[str], None] | None = None) -> None:
        self.num_images = num_images  # that this rank sees in an epoch
        self.max_share = max_share
        self.log = log
        self.say = say or (lambda line: tqdm.write(line, file=sys.stderr))  # not into the progress bar's line
        self.named = set(log.read_text(encoding="utf-8").splitlines()) if log.exists() else set()
        self.epoch = -1
        self.in_epoch: set[str] = set()

    def add(self, replaced: Replaced) -> None:
        if replaced.epoch != self.epoch:
            self.epoch, self.in_epoch = replaced.epoch, set()
        for error in replaced.errors:
            text = str(error).encode(errors="backslashreplace").decode()
            self.in_epoch.add(text)
            if text not in self.named:
                self.named.add(text)
                if self.log.parent.is_dir():  # a rank on another machine may not see the run folder
                    append_line(self.log, text)  # ranks share the file
                self.say(f"skipped: {text} ({len(self.in_epoch)} in this epoch; data.on_bad_image)")
        if len(self.in_epoch) > self.max_share * self.num_images:
            raise DataError(
                f"{len(self.in_epoch)} images of {self.num_images} could not be read, more than"
                f" data.max_bad_share={self.max_share} allows; they are in {self.log}"
            )
