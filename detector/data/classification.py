"""Images with classes: one folder per class, or a CSV file of paths and labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from detector.config.schema import AugmentConfig, Config, DataConfig, SplitConfig
from detector.data.formats.class_folders import Labelled, divide, read_csv, read_folders, unknown_class
from detector.data.formats.recognition import naming_format
from detector.data.images import read_image
from detector.data.loading.sampler import mixed_epochs
from detector.data.split import images_folder, split_to_read
from detector.data.spot_check import spot_check
from detector.data.transforms.classes import ClassTransform, TrainClassTransform, mix
from detector.data.transforms.colors import same_depth
from detector.errors import ConfigError, DataError, DetectorError, counted
from detector.structures import Category, ClassTargets


class ClassSample(NamedTuple):
    """One image with its class, as a loader's workers hand it to ``collate``."""

    image: Tensor  # [C, H, W] uint8 or uint16
    probabilities: Tensor  # [K] float32, see ClassTargets
    weights: Tensor  # [K] float32
    size_original: tuple[int, int]  # height, width of the file
    id: int

    DIVISOR = 1  # no padding: all images have the config's size, which a network was trained on

    @staticmethod
    def stack_targets(samples: Sequence[ClassSample]) -> ClassTargets:
        probabilities, weights = ([getattr(sample, key) for sample in samples] for key in ("probabilities", "weights"))
        return ClassTargets(torch.stack(probabilities), torch.stack(weights))


class ClassDataset(Dataset[ClassSample | DetectorError]):
    """Labelled images, transformed; with ``augment``, sometimes mixed with another.

    Indexed by (epoch, index): a sample, and its partner in a mix, depend on these and the seed alone. A broken image is
    returned as the error itself (see ``CocoDataset``).
    """

    is_wide = shapes = None  # all images become squares of one size
    shown = None

    def __init__(
        self,
        labelled: Labelled,
        transform: ClassTransform,
        weights: np.ndarray,
        channels: int,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        exif: str = "auto",
        max_value: int | None = None,
        mixed_epochs: float = np.inf,
    ) -> None:
        self.labelled = labelled
        self.transform = transform
        self.weights = torch.from_numpy(weights.astype(np.float32))
        self.channels = channels
        self.augment = augment
        self.seed = seed
        self.exif, self.max_value = exif, max_value
        self.mixed_epochs = mixed_epochs  # below which images are mixed

    def __len__(self) -> int:
        return len(self.labelled)

    @property
    def categories(self) -> list[Category]:
        return self.labelled.categories

    @property
    def truth(self) -> Labelled:
        """What predictions are scored against."""
        return self.labelled

    @property
    def source(self) -> Path:
        return self.labelled.source

    @property
    def images(self) -> Path:
        return self.labelled.root

    def file(self, index: int) -> Path:
        return self.labelled.file(index)

    @property
    def has_targets(self) -> np.ndarray:
        """Which images have a label, [I] bool."""
        return np.diff(self.labelled.first) > 0

    @property
    def image_labels(self) -> tuple[np.ndarray, np.ndarray]:
        """The image and the class of each label, [M] both."""
        return self.labelled.image_index(), self.labelled.labels

    def select(self, indices: Sequence[int]) -> ClassDataset:
        """Some of the images, in this order."""
        some = self.labelled.select(np.asarray(indices))
        given = self.channels, self.augment, self.seed, self.exif, self.max_value, self.mixed_epochs
        return ClassDataset(some, self.transform, self.weights.numpy(), *given)

    def summary(self) -> str:
        """One line of counts for the start of a run."""
        counts = self.labelled.counts()
        names = ", ".join(category.name for category in self.categories[:10])
        names += ", …" if len(self.categories) > 10 else ""
        text = (
            f"{counted(len(self), 'image')} of {counted(len(self.categories), 'class')} ({names}), {counts.min():,} to"
        )
        text += f" {counts.max():,} each"
        if unlabelled := int((~self.has_targets).sum()):
            text += f"; {unlabelled:,} without a label"
        return f"{text}; {self.labelled.note}" if self.labelled.note else text

    def warnings(self) -> list[str]:
        """Doubts that a sample of the files raises."""
        return spot_check(self.file, np.arange(len(self)), self.channels, self.max_value, looks_for_turns=False)

    def __getitem__(self, key: tuple[int, int]) -> ClassSample | DetectorError:
        epoch, index = key
        try:
            return self._sample(epoch, index)
        except DetectorError as error:
            return error

    def _sample(self, epoch: int, index: int) -> ClassSample:
        image, probabilities, size = self._read(epoch, index)
        is_mixed = self.augment and (self.augment.mixup or self.augment.cutmix) and epoch < self.mixed_epochs
        if self.augment and is_mixed:
            # A stream of its own: the transform's is seeded with the first three numbers.
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch, index, 1]))
            partner = int(rng.integers(len(self)))
            if self.augment.mix_share == 1 or rng.random() < self.augment.mix_share:
                other, other_probabilities, _ = self._read(epoch, partner)
                image, other = same_depth([image, other])
                image, fraction = mix(image, other, self.augment, rng)
                probabilities = fraction * probabilities + (1 - fraction) * other_probabilities
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        return ClassSample(pixels, probabilities, self.weights, size, index)

    def _read(self, epoch: int, index: int) -> tuple[np.ndarray, Tensor, tuple[int, int]]:
        """Image, probabilities of the classes, and the file's height and width."""
        image = read_image(self.file(index), self.channels, self.exif, self.max_value)
        probabilities = torch.zeros(len(self.categories))
        probabilities[self.labelled.labels_of(index)] = 1
        return self.transform(image, epoch, index), probabilities, image.shape[:2]


def open_classes(
    config: Config, name: str, categories: list[Category] | None = None, keep_in: Path | None = None
) -> ClassDataset:
    """The data set of ``data.train`` (augmented) or ``data.val``, with the classes of ``categories`` where given.

    Nothing is kept in ``keep_in``: labels are the names of folders, or in one file.
    """
    data, channels = config.data, config.model.in_channels
    classes = [category.name for category in categories] if categories is not None else _class_names(data)
    read_name, split = split_to_read(data, name)
    labelled = _read_split(config, read_name, split, classes)
    if data.val_share is not None:
        train, val = divide(labelled, data.val_share, config.seed)
        labelled = val if name == "val" else train
    if name == "train":
        check_each_class(labelled)
    if name == "val":
        weights, transform, augment = np.ones(len(labelled.categories)), ClassTransform(data.crop), None
    else:
        weights, augment = _class_weights(config, labelled), data.augment
        transform = TrainClassTransform(data.crop, data.augment, config.seed, channels)
    mixed = mixed_epochs(config.train, data.augment.close_out, len(labelled))
    given = channels, augment, config.seed, data.exif, data.max_value, mixed
    return ClassDataset(labelled, transform, weights, *given)


def check_each_class(labelled: Labelled) -> None:
    """Raises for a class without images."""
    if (missing := np.flatnonzero(labelled.counts() == 0)).size:
        raise DataError(
            f"{labelled.source}: has no image of class {labelled.categories[missing[0]].name!r} to train on;"
            " add some, or remove it from data.classes"
        )


def _class_names(data: DataConfig) -> list[str] | None:
    """``data.classes``, which a classifier does not merge."""
    if any(isinstance(one, dict) for one in data.classes or ()):
        raise ConfigError("data.classes: merges classes, which is for task detection; give only names")
    return list(data.class_members) or None


def _read_split(config: Config, name: str, split: SplitConfig, classes: Sequence[str] | None) -> Labelled:
    if split.sets:
        raise ConfigError(f"data.{name}: a list of sets is for task detection; give one folder or CSV file")
    form = split.format or config.data.format
    if form not in ("auto", "folder", "csv"):
        raise ConfigError(f"data.format: {form} has boxes, which are for task detection; use auto, folder or csv")
    if split.images is None and split.annotations and Path(split.annotations).is_dir():
        split = SplitConfig(images=split.annotations)  # data.train: FOLDER
    root = images_folder(config.data, name, split)
    if split.annotations is None:
        with naming_format(root):
            return read_folders(root, classes)
    path = Path(split.annotations)
    with naming_format(path):
        return read_csv(path, root, classes, config.model.multi_label, config.data.allow_outside)


def _class_weights(config: Config, labelled: Labelled) -> np.ndarray:
    """The weight of each class in the loss, [K]."""
    given = config.data.class_weights
    names = [category.name for category in labelled.categories]
    if given == "balanced":
        return len(labelled) / (len(names) * labelled.counts())
    for name in given or {}:
        if name not in names:
            raise DataError(f"data.class_weights: {unknown_class(name, names)}")
    return np.array([(given or {}).get(name, 1.0) for name in names])
