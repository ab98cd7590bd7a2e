"""Pictures with classes: a folder a class, or a CSV file of paths and labels."""

from __future__ import annotations

import csv
import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from detector.config import AugmentConfig, Config, SplitConfig
from detector.data.coco import Category
from detector.data.images import IMAGE_SUFFIXES, read_image
from detector.data.split import hold_back, not_set, split_to_read
from detector.data.spot_check import spot_check
from detector.data.transforms import ClassTransform, TrainClassTransform, mix
from detector.errors import DataError, DetectorError, one_of, unreadable


class ClassSample(NamedTuple):
    """One picture with its class, as a loader's workers hand it to ``collate``."""

    image: Tensor  # [C, H, W] uint8 or uint16
    shares: Tensor  # [K] float32, see ClassTargets
    weights: Tensor  # [K] float32
    size_original: tuple[int, int]  # height, width of the file
    id: int


@dataclass(frozen=True)
class Labelled:
    """Pictures and their labels as columns: I pictures, M labels sorted by picture. Forked workers share the arrays."""

    source: Path  # the folder or CSV file that says so
    root: Path
    categories: list[Category]
    files: np.ndarray  # [I] names as the file system has them, in bytes, relative to root
    first: np.ndarray  # [I + 1] int64; picture i has labels[first[i]:first[i + 1]]
    labels: np.ndarray  # [M] int64, 0..K-1

    def __len__(self) -> int:
        return len(self.files)

    def file(self, index: int) -> Path:
        return self.root / os.fsdecode(self.files[index])

    def labels_of(self, index: int) -> np.ndarray:
        return self.labels[self.first[index] : self.first[index + 1]]

    def is_true(self) -> np.ndarray:
        """Which classes each picture has, [I, K] bool."""
        is_true = np.zeros((len(self), len(self.categories)), dtype=bool)
        is_true[np.repeat(np.arange(len(self)), np.diff(self.first)), self.labels] = True
        return is_true

    def counts(self) -> np.ndarray:
        """Pictures of each class, [K]."""
        return np.bincount(self.labels, minlength=len(self.categories))

    def select(self, indices: np.ndarray) -> Labelled:
        """Some of the pictures."""
        labels = [self.labels_of(index) for index in indices]
        return Labelled(
            self.source,
            self.root,
            self.categories,
            self.files[indices],
            np.cumsum([0, *map(len, labels)]),
            np.concatenate([np.empty(0, dtype=np.int64), *labels]),
        )


def read_folders(root: Path, classes: Sequence[str] | None) -> Labelled:
    """A folder of class folders, each searched whole; without ``classes`` their names are the classes.

    Raises :class:`~detector.errors.DataError` for a class without pictures.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise DataError(f"{root}: has no class folders; put the pictures of each class into a folder of its name")
    if stray := sorted(path for path in root.iterdir() if path.is_file() and _is_picture(path, root)):
        raise DataError(f"{stray[0]}: lies outside the class folders ({len(stray)} pictures do); move or remove it")
    for folder in folders:
        if not _is_utf8(folder.name):
            raise DataError(f"{folder}: the folder's name is not UTF-8, and no class can have it; rename it")
    names = list(classes) if classes is not None else [folder.name for folder in folders]
    files: list[str] = []
    labels: list[int] = []
    for folder in folders:
        label = _label_of(folder.name, names, f"{folder}: the folder's name")
        own = sorted(path for path in folder.rglob("*") if _is_picture(path, folder))
        if not own:
            raise DataError(f"{folder}: the class folder has no pictures; fill it or remove it")
        files += [path.relative_to(root).as_posix() for path in own]
        labels += [label] * len(own)
    return _labelled(root, root, names, files, [[label] for label in labels])


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)  # bytes that Python kept as they were


def _is_picture(path: Path, folder: Path) -> bool:
    """Hidden files and folders are other programs': thumbnails, checkpoints of notebooks."""
    is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden and path.is_file()


def read_csv(
    path: Path, root: Path, classes: Sequence[str] | None, multi_label: bool, allow_outside: bool = False
) -> Labelled:
    """A CSV file with a header: the path of a picture (relative to ``root``), then its label.

    With ``multi_label`` a row may have several, in cells of their own or separated by ``;`` in one, or none. Raises
    :class:`~detector.errors.DataError` with the line for all that is wrong, also, unless ``allow_outside``, for a path
    that leads out of ``root``: by itself or by a link.
    """
    real_root = os.path.realpath(root)
    line_of: dict[str, int] = {}
    texts: list[list[str]] = []
    for line, cells in _csv_rows(path):
        name, *rest = cells
        found = [text.strip() for cell in rest for text in (cell.split(";") if multi_label else [cell]) if text.strip()]
        if not multi_label and len(found) != 1:
            fault = "has no label" if not found else f"has {len(found)} labels ({', '.join(found[:4])})"
            raise DataError(
                f"{path}:{line}: {name} {fault}; give one, or set model.multi_label=true for several or none"
            )
        if not name.strip():
            raise DataError(f"{path}:{line}: has no path")
        if not os.path.isfile(root / name):  # noqa: PTH113 (Path.is_file raises for a name that is too long)
            raise DataError(f"{path}:{line}: {root / name} does not exist; paths are relative to {root}")
        if not allow_outside and not Path(os.path.realpath(root / name)).is_relative_to(real_root):
            raise DataError(
                f"{path}:{line}: {name} leads out of {root}; put the picture into the folder, or set"
                " data.allow_outside=true if you trust the file"
            )
        for text in found:
            if classes is not None:
                _label_of(text, classes, f"{path}:{line}: label")
        if name in line_of:
            raise DataError(
                f"{path}:{line}: {name} stands twice, first in line {line_of[name]}; keep one row a picture"
            )
        line_of[name] = line
        texts.append(found)
    if not line_of:
        raise DataError(f"{path}: has no rows below its header")
    names = list(classes) if classes is not None else sorted({text for row in texts for text in row})
    if not names:
        raise DataError(f"{path}: has no label in any row")
    label_of = {name: label for label, name in enumerate(names)}
    return _labelled(path, root, names, list(line_of), [sorted({label_of[text] for text in row}) for row in texts])


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each row below the header."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if len(header) < 2 or header[0].strip().lower() not in ("path", "file", "file_name", "filename", "image"):
                raise DataError(f"{path}:1: the header is {','.join(header)!r}; the first row must be path,label")
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
    except OSError as error:
        raise DataError(f"{path}: {unreadable(path, error, '*.csv')}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is no CSV file in UTF-8: {error}") from None


def _label_of(name: str, names: Sequence[str], where: str) -> int:
    if name in names:
        return names.index(name)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"they are {one_of(names[:10])}{', …' if len(names) > 10 else ''}"
    raise DataError(f"{where} {name!r} is not among the {len(names)} classes; {hint}")


def _labelled(source: Path, root: Path, names: Iterable[str], files: list[str], labels: list[list[int]]) -> Labelled:
    return Labelled(
        source=source,
        root=root,
        categories=[Category(label, name) for label, name in enumerate(names)],
        files=np.array([os.fsencode(file) for file in files]),
        first=np.cumsum([0, *map(len, labels)]),
        labels=np.array([label for row in labels for label in row], dtype=np.int64),
    )


def divide(labelled: Labelled, share: float, seed: int) -> tuple[Labelled, Labelled]:
    """The images to train on and those held back (see :func:`~detector.data.split.hold_back`)."""
    image = np.repeat(np.arange(len(labelled)), np.diff(labelled.first))
    is_val = hold_back(labelled.source, labelled.files.tolist(), image, labelled.labels, share, seed)
    return labelled.select(np.flatnonzero(~is_val)), labelled.select(np.flatnonzero(is_val))


class ClassDataset(Dataset[ClassSample | DetectorError]):
    """Labelled pictures, transformed; with ``augment``, now and then mixed with another.

    Indexed by (epoch, index): what happens to a sample depends on these and the seed alone, its partner in a mix
    included. A broken picture comes back as the error itself (see ``CocoDataset``).
    """

    is_wide = shapes = None  # all images become squares of one size

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
    ) -> None:
        self.labelled = labelled
        self.transform = transform
        self.weights = torch.from_numpy(weights.astype(np.float32))
        self.channels = channels
        self.augment = augment
        self.seed = seed
        self.exif, self.max_value = exif, max_value

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
        """Which pictures have a label, [I] bool."""
        return np.diff(self.labelled.first) > 0

    def select(self, indices: Sequence[int]) -> ClassDataset:
        """Some of the pictures, in this order."""
        some = self.labelled.select(np.asarray(indices))
        given = self.channels, self.augment, self.seed, self.exif, self.max_value
        return ClassDataset(some, self.transform, self.weights.numpy(), *given)

    def summary(self) -> str:
        """A line of counts for the start of a run."""
        counts = self.labelled.counts()
        names = ", ".join(category.name for category in self.categories[:10])
        names += ", …" if len(self.categories) > 10 else ""
        text = f"{len(self):,} pictures of {len(self.categories)} classes ({names}), {counts.min():,} to"
        text += f" {counts.max():,} each"
        if unlabelled := int((np.diff(self.labelled.first) == 0).sum()):
            text += f"; {unlabelled:,} without a label"
        return text

    def warnings(self) -> list[str]:
        """What a sample of the files shows to be in doubt."""
        return spot_check(self.file, np.arange(len(self)), self.channels, self.max_value, looks_for_turns=False)

    def __getitem__(self, key: tuple[int, int]) -> ClassSample | DetectorError:
        epoch, index = key
        try:
            return self._sample(epoch, index)
        except DetectorError as error:
            return error

    def _sample(self, epoch: int, index: int) -> ClassSample:
        image, shares, size = self._read(epoch, index)
        if self.augment and (self.augment.mixup or self.augment.cutmix):
            # Another stream than that of the transform, which has the first three numbers.
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch, index, 1]))
            other, other_shares, _ = self._read(epoch, int(rng.integers(len(self))))
            if other.dtype != image.dtype:  # 8 bits and 16: 255 becomes 65535
                image, other = (a if a.dtype == np.uint16 else a.astype(np.uint16) * 257 for a in (image, other))
            image, share = mix(image, other, self.augment, rng)
            shares = share * shares + (1 - share) * other_shares
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        return ClassSample(pixels, shares, self.weights, size, index)

    def _read(self, epoch: int, index: int) -> tuple[np.ndarray, Tensor, tuple[int, int]]:
        """Picture, shares of the classes, and the file's height and width."""
        image = read_image(self.file(index), self.channels, self.exif, self.max_value)
        shares = torch.zeros(len(self.categories))
        shares[self.labelled.labels_of(index)] = 1
        return self.transform(image, epoch, index), shares, image.shape[:2]


def open_classes(config: Config, name: str, categories: list[Category] | None = None) -> ClassDataset:
    """The data set of ``data.train`` (augmented) or ``data.val``, with the classes of ``categories`` where given."""
    data, channels = config.data, config.model.in_channels
    classes = [category.name for category in categories] if categories is not None else data.classes
    read_name, split = split_to_read(data, name)
    labelled = _read_split(config, read_name, split, classes)
    if data.val_share is not None:
        train, val = divide(labelled, data.val_share, config.seed)
        labelled = val if name == "val" else train
    if name == "train" and (missing := np.flatnonzero(labelled.counts() == 0)).size:
        raise DataError(
            f"{labelled.source}: has no picture of class {labelled.categories[missing[0]].name!r} to train on;"
            " add some, or remove it from data.classes"
        )
    if name == "val":
        weights, transform, augment = np.ones(len(labelled.categories)), ClassTransform(data.crop), None
    else:
        weights, augment = _class_weights(config, labelled), data.augment
        transform = TrainClassTransform(data.crop, data.augment, config.seed, channels)
    given = channels, augment, config.seed, data.exif, data.max_value
    return ClassDataset(labelled, transform, weights, *given)


def _read_split(config: Config, name: str, split: SplitConfig, classes: Sequence[str] | None) -> Labelled:
    if split.images is None:
        raise not_set(config.data, name, "images")
    root = Path(split.images)
    if not os.path.isdir(root):  # noqa: PTH112 (Path.is_dir raises for a name that is too long)
        raise DataError(f"data.{name}.images: {root} is no folder")
    if split.annotations is not None:
        labelled = read_csv(Path(split.annotations), root, classes, config.model.multi_label, config.data.allow_outside)
    else:
        labelled = read_folders(root, classes)
    return labelled


def _class_weights(config: Config, labelled: Labelled) -> np.ndarray:
    """The weight of each class in the loss, [K]."""
    given = config.data.class_weights
    names = [category.name for category in labelled.categories]
    if given == "balanced":
        return len(labelled) / (len(names) * labelled.counts())
    for name in given or {}:
        _label_of(name, names, "data.class_weights:")
    return np.array([(given or {}).get(name, 1.0) for name in names])
