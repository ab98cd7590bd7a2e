"""Files to detections, one image at a time; on a GPU also batches and single images that are already in its memory.

The photos are 640 px on the long side, the size they are predicted at, so neither side resizes them.
torchvision's side decodes with PIL, as its references do.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from detector.config.schema import Config
from detector.data.formats.reading import read_annotations
from detector.data.transforms.resize import in_words
from detector.dev.benchmark.generate import IMAGES, TRAIN, write_photos
from detector.dev.benchmark.measure import BenchmarkError, Case, Run, Settings
from detector.dev.benchmark.peer import Found, build_torchvision, comparable, make_weights, same_detections
from detector.dev.benchmark.postprocess import to_found, to_list
from detector.inference.predictor import Predictor
from detector.models import build_model
from detector.models.compiling import compiled
from detector.structures import Batch, Category, Targets
from detector.tasks import detection

CONFIG, SIDE = "retinanet_r50_fpn.yaml", 640
PHOTOS = 4  # per run
GPU_SIDE, GPU_BATCH = 800, 32


class Inputs(NamedTuple):
    config: Config
    weights: dict[str, Any]
    files: list[Path]
    device: str


class Pixels(NamedTuple):
    config: Config
    weights: dict[str, Any]
    images: torch.Tensor  # [B, 3, H, W] uint8


def cases(settings: Settings) -> list[Case]:
    side = settings.side(SIDE)
    overrides = settings.overrides
    if not settings.config:
        overrides = (f"data.resize={{short: [{side}], long: {side}}}", *overrides)
    config = comparable(settings.config or CONFIG, overrides)
    backbone = config.model.backbone
    own = Path(settings.data) if settings.data else None
    name = backbone.name if backbone else settings.config
    from_files = Case(
        name=f"{name}, files at {in_words(config.data.resize)}, one by one",
        files=None if own else lambda folder: write_photos(folder / "images", PHOTOS, side),
        inputs=lambda folder: make_inputs(config, settings, own or folder / "images", side),
        ours=ours,
        theirs=theirs,
        equal=lambda _inputs, own, other: same_detections(own, other, score=1e-3, pixels=0.1),
        images=PHOTOS,
    )
    return [from_files, *(gpu_cases(settings) if settings.device != "cpu" else [])]


def make_inputs(config: Config, settings: Settings, folder: Path, side: int) -> Inputs:
    files = find_photos(folder, side)
    return Inputs(config, make_weights(config, settings.classes, read_tensor(files[0])), files, settings.device)


def read_tensor(file: Path) -> torch.Tensor:
    """[3, H, W] uint8, as torchvision's references read an image."""
    return pil_to_tensor(Image.open(file).convert("RGB"))


def find_photos(folder: Path, side: int) -> list[Path]:
    """The first photos in the annotations with a long side of ``side`` px."""
    truth = read_annotations(folder / TRAIN)
    is_right = torch.maximum(truth.heights, truth.widths) == side
    if is_right.sum() < PHOTOS:
        raise BenchmarkError(f"{folder}: has fewer than {PHOTOS} images of {side} px on the long side; use --synthetic")
    return [folder / IMAGES / truth.file_name(index) for index in is_right.nonzero()[:PHOTOS, 0].tolist()]


def ours(inputs: Inputs) -> Run:
    categories = [Category(**category) for category in inputs.weights["categories"]]
    model = build_model(inputs.config.model, len(categories))
    model.load_state_dict(inputs.weights["model"])
    predictor = Predictor(model.fold_norms(), inputs.config, categories, torch.device(inputs.device))

    def run() -> list[Found]:
        found = [predictor.predict([file])[0] for file in inputs.files]
        return [tuple(map(torch.from_numpy, (each.boxes, each.scores, each.labels))) for each in found]

    return run


def theirs(inputs: Inputs) -> Run:
    model = build_torchvision(inputs.config, inputs.weights).to(inputs.device).eval()

    @torch.inference_mode()
    def run() -> list[Found]:
        images = (read_tensor(file).to(inputs.device) for file in inputs.files)
        found = [to_found(model([image.float() / 255]))[0] for image in images]
        return [tuple(part.cpu() for part in each) for each in found]

    return run


# --- on a GPU ---------------------------------------------------------------------------------------------------------


def gpu_cases(settings: Settings) -> list[Case]:
    side = settings.side(GPU_SIDE)
    overrides = () if settings.config else (f"data.resize={{short: [{side}], long: {side}}}",)
    config = comparable(settings.config or CONFIG, (*overrides, *settings.overrides))
    height, width = detection.largest_input(config)
    return [
        Case(
            name=f"{height}×{width}, batch {batch}, bf16, images on the GPU{', compiled' * is_compiled}",
            inputs=lambda _folder, batch=batch: make_pixels(config, settings.classes, batch, settings.device),
            ours=partial(ours_from_pixels, is_compiled=is_compiled),
            theirs=theirs_from_pixels,
            # Half precision rounds scores to a few thousandths, so only the counts are compared, roughly.
            equal=lambda _inputs, own, other: same_counts(own, other),
            images=batch,
            runs=20,
        )
        for batch in (GPU_BATCH, 1)
        for is_compiled in (False, True)
    ]


def make_pixels(config: Config, classes: int, batch: int, device: str) -> Pixels:
    shape = (batch, 3, *detection.largest_input(config))
    images = torch.from_numpy(np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8))
    return Pixels(config, make_weights(config, classes, images[0]), images.to(device))


def ours_from_pixels(inputs: Pixels, is_compiled: bool) -> Run:
    device, count = inputs.images.device, len(inputs.images)
    model = build_model(inputs.config.model, len(inputs.weights["categories"]))
    model.load_state_dict(inputs.weights["model"])
    model = model.fold_norms().place(device).fix_precision("bf16")
    network = compiled(model, device) if is_compiled else model
    sizes = torch.tensor([inputs.images.shape[-2:]] * count, device=device)
    nothing = Targets(torch.zeros(count, 1, 4), torch.full((count, 1), -1))
    batch = Batch(inputs.images, sizes, sizes, nothing, torch.arange(count)).to(device)

    @torch.inference_mode()
    def run() -> list[Found]:
        with torch.autocast(device.type, torch.bfloat16):
            output = network(batch.images, batch.sizes)
        return to_list(detection.predict(output, batch, inputs.config.model))

    return run


def theirs_from_pixels(inputs: Pixels) -> Run:
    device = inputs.images.device
    model = build_torchvision(inputs.config, inputs.weights).to(device).eval()
    images = list(inputs.images.float() / 255)

    @torch.inference_mode()
    def run() -> list[Found]:
        with torch.autocast(device.type, torch.bfloat16):
            return to_found(model(images))

    return run


def same_counts(own: list[Found], other: list[Found]) -> bool:
    return all(abs(len(one[1]) - len(two[1])) <= 0.05 * len(two[1]) for one, two in zip(own, other, strict=True))
