"""A step of training a segmenter: forward, loss, backward, AdamW; the images are in memory.

The other side is the FPN of segmentation_models_pytorch, where that is installed: the same encoder, images and masks,
its own decoder and its Dice loss. They are other networks, so nothing says that outputs are equal.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import torch

from detector.config.loader import load_config
from detector.config.schema import Config
from detector.dev.benchmark.measure import Case, Run, Settings
from detector.dev.benchmark.train import step
from detector.models import build_model
from detector.structures import IGNORED_PIXEL, Batch, MaskTargets
from detector.tasks import segmentation
from detector.training.loop import TrainingState

CONFIG, CLASSES, BATCH = "camvid_r18_scratch.yaml", 11, 8
PEER = "segmentation_models_pytorch"


def cases(settings: Settings) -> list[Case]:
    config = load_config(CONFIG)
    height, width = (settings.side(side) for side in segmentation.largest_input(config))
    return [
        Case(
            name=f"{config.model.backbone.name}, {height}×{width}, batch {BATCH}, {CLASSES} classes, {PEER}",
            inputs=lambda _folder: make_batch(height, width, torch.device(settings.device)),
            ours=lambda batch: ours(config, batch),
            theirs=theirs if importlib.util.find_spec(PEER) else None,
            images=BATCH,
        )
    ]


def make_batch(height: int, width: int, device: torch.device) -> Batch:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(256, size=(BATCH, 3, height, width), dtype=np.uint8))
    masks = torch.from_numpy(rng.integers(CLASSES, size=(BATCH, height, width), dtype=np.uint8))
    masks[:, :8] = IGNORED_PIXEL
    sizes = torch.tensor([[height, width]] * BATCH)
    return Batch(images, sizes, sizes, MaskTargets(masks, torch.ones(BATCH, CLASSES)), torch.arange(BATCH)).to(device)


def ours(config: Config, batch: Batch) -> Run:
    """The training loop's step, without ranks and logs."""
    device = batch.images.device
    model = build_model(config.model, CLASSES).place(device).train()
    optimizer = TrainingState.begin(model, config.train, num_images=1, device=device).optimizer

    def run() -> torch.Tensor:
        return step(model, segmentation.loss(model(batch.images, batch.sizes), batch.targets, config.model), optimizer)

    return run


def theirs(batch: Batch) -> Run:
    import segmentation_models_pytorch as peer

    model = peer.FPN("resnet18", encoder_weights=None, classes=CLASSES).to(batch.images.device).train()
    loss_of = peer.losses.DiceLoss(peer.losses.MULTICLASS_MODE, ignore_index=IGNORED_PIXEL)
    optimizer = torch.optim.AdamW(model.parameters())
    images, masks = batch.images.float() / 255, batch.targets.masks.long()

    def run() -> None:
        loss_of(model(images), masks).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run
