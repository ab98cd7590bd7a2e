"""JPEG files to padded batches: read, flip, resize to 800/1333, collate, with two workers, in the same order.

torchvision's side is the pipeline of its detection reference with ``--use-v2``: ``CocoDetection`` decodes with PIL,
workers flip, convert to float and sanitise boxes by transforms v2, batches are lists; then, in the training process,
``GeneralizedRCNNTransform`` normalises, resizes and pads them, as its models do before the network. Our batch is uint8;
the model normalises it, within the times of ``train`` and ``infer``. Images without objects are skipped, as in the
reference.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2

from detector.config.loader import config_from_dict
from detector.config.schema import Config
from detector.data.detection import CocoDataset
from detector.data.loading.collate import load_batches
from detector.data.loading.sampler import TrainBatches
from detector.data.loading.workers import init_worker
from detector.dev.benchmark.generate import IMAGES, TRAIN, write_photos
from detector.dev.benchmark.measure import Case, Run, Settings, num_cores
from detector.structures import Batch
from detector.tasks import detection

GENERATED = 96  # images of --synthetic
BATCH, WORKERS = 4, 2
SHORT, LONG = 800, 1333
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TOLERANCE = 1.0  # mean difference of an image's values, of 255: ours are rounded to whole numbers


class Inputs(NamedTuple):
    folder: Path
    config: Config
    data: CocoDataset
    keys: list[list[tuple[int, int]]]  # (epoch, index) of each batch


class Outputs(NamedTuple):
    images: int
    first: Any  # the first batch


def cases(settings: Settings) -> list[Case]:
    short, long = settings.side(SHORT), settings.side(SHORT) * LONG // SHORT
    generated = settings.scaled(GENERATED, least=2 * BATCH)
    own = Path(settings.data) if settings.data else None
    name = f"{own.name}" if own else f"{generated} generated photos"
    images = len(open_data(own, short, long)[1]) if own else generated
    return [
        Case(
            name=f"{name}, {short}/{long}, flip, batch {BATCH}, {WORKERS} workers",
            files=None if own else lambda folder: write_photos(folder / "photos", generated),
            inputs=lambda folder: make_inputs(own or folder / "photos", short, long),
            ours=ours,
            theirs=theirs,
            equal=equal,
            images=-(-images // BATCH) * BATCH,
            cores=min(WORKERS, num_cores()),
            runs=3,
        )
    ]


def open_data(folder: Path, short: int, long: int) -> tuple[Config, CocoDataset]:
    tree = {
        "data": {
            "train": {"annotations": str(folder / TRAIN), "images": str(folder / IMAGES)},
            "invalid_boxes": "drop",
            # As torchvision resizes; everything else is the default.
            "resize": {"short": [short], "long": long, "rounding": "down", "interpolation": "bilinear"},
        }
    }
    config = config_from_dict(tree, "benchmark")
    data = detection.open_split(config, "train")
    return config, data.select(np.flatnonzero(data.has_targets).tolist())


def make_inputs(folder: Path, short: int, long: int) -> Inputs:
    config, data = open_data(folder, short, long)
    steps = -(-len(data) // BATCH)
    batches = TrainBatches(len(data), BATCH, config.seed, start_step=0, steps=steps, is_wide=data.is_wide)
    return Inputs(folder, config, data, list(batches))


def ours(inputs: Inputs) -> Run:
    def run() -> Outputs:
        batches = load_batches(inputs.data, inputs.keys, WORKERS)
        first = next(batches)
        return Outputs(len(first.ids) + sum(len(batch.ids) for batch in batches), first)

    return run


def theirs(inputs: Inputs) -> Run:
    with contextlib.redirect_stdout(io.StringIO()):
        data = CocoDetection(inputs.folder / IMAGES, inputs.folder / TRAIN, transforms=reference_transforms())
    data = wrap_dataset_for_transforms_v2(data, target_keys=("boxes", "labels", "image_id"))
    place = {image_id: index for index, image_id in enumerate(data.ids)}  # it sorts its images by id
    ids = inputs.data.annotations.image_ids.tolist()
    indices = [[place[ids[index]] for _, index in keys] for keys in inputs.keys]
    resize = inputs.config.data.resize
    before_network = GeneralizedRCNNTransform(resize.short[-1], resize.long, MEAN, STD)

    def run() -> Outputs:
        loader = DataLoader(
            data, batch_sampler=indices, num_workers=WORKERS, collate_fn=list_fields, worker_init_fn=init_worker
        )
        batches = (before_network(list(images), list(targets)) for images, targets in loader)
        first = next(batches)
        return Outputs(len(first[1]) + sum(len(targets) for _, targets in batches), first)

    return run


def reference_transforms() -> v2.Transform:
    """``DetectionPresetTrain(data_augmentation="hflip", backend="pil", use_v2=True)`` of references/detection."""
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(p=0.5),
            v2.ToImage(),
            v2.ToDtype(torch.float, scale=True),
            v2.ConvertBoundingBoxFormat(tv_tensors.BoundingBoxFormat.XYXY),
            v2.SanitizeBoundingBoxes(),
            v2.ToPureTensor(),
        ]
    )


def list_fields(samples: list[tuple[Any, ...]]) -> tuple[tuple[Any, ...], ...]:
    """The reference's ``collate_fn``."""
    return tuple(zip(*samples, strict=True))


def equal(_inputs: Inputs, own: Outputs, other: Outputs) -> bool:
    """The same number of images, and in the first batch the same pixels and boxes, apart from random flips."""
    batch, (padded, targets) = own.first, other.first
    if own.images != other.images or batch.sizes.tolist() != [list(size) for size in padded.image_sizes]:
        return False
    pixels = (padded.tensors * torch.tensor(STD).view(-1, 1, 1) + torch.tensor(MEAN).view(-1, 1, 1)) * 255
    return all(
        same_image(batch, row, image, target["boxes"])
        for row, (image, target) in enumerate(zip(pixels, targets, strict=True))
    )


def same_image(batch: Batch, row: int, other: Tensor, other_boxes: Tensor) -> bool:
    height, width = batch.sizes[row].tolist()
    image = batch.images[row, :, :height, :width].float()
    boxes = batch.targets.boxes[row][batch.targets.labels[row] != -1]
    if batch.targets.regions is not None:  # torchvision's targets have crowds among the objects
        regions = batch.targets.regions[row]
        boxes = torch.cat([boxes, regions[(regions[:, 2:] > regions[:, :2]).all(dim=1)]])
    other = other[:, :height, :width]
    if (image - other).abs().mean() > (image - other.flip(-1)).abs().mean():
        other = other.flip(-1)
        mirrored = other_boxes.clone()
        mirrored[:, [0, 2]] = width - other_boxes[:, [2, 0]]
        other_boxes = mirrored
    is_close = (image - other).abs().mean() <= TOLERANCE
    distance = torch.cdist(boxes, other_boxes, p=torch.inf)  # [T, T']
    is_same = boxes.shape == other_boxes.shape and bool((distance.amin(dim=0) <= 0.05).all())
    return bool(is_close) and is_same and bool((distance.amin(dim=1) <= 0.05).all())
