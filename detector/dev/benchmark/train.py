"""A step of training: forward, loss, backward, SGD; the images are in memory.

Both models have the same weights, and frozen batch norms if the config has them. All images have the same objects, as
in ``loss``. Each side gets images as its loader makes them: uint8 here, float in torchvision.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from detector.checkpoints.foreign.torchvision import to_torchvision
from detector.config.schema import Config
from detector.data.transforms.resize import has_one_size
from detector.dev.benchmark.generate import random_boxes
from detector.dev.benchmark.measure import Case, Run, Settings
from detector.dev.benchmark.peer import build_torchvision, comparable, make_weights
from detector.models import Model, build_model
from detector.models.precision import autocast, prepare_gpu
from detector.structures import Batch, Losses, Targets
from detector.tasks import detection
from detector.training.loop import TrainingState
from detector.training.optimizer import scaled_lr

CONFIG, SIDE, BATCH = "retinanet_r50_fpn.yaml", 512, 2
OBJECTS = 8  # per image
# Relative; of the loss, and of the step's change of all weights together.
TOLERANCES = {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.02}


class Inputs(NamedTuple):
    config: Config
    weights: dict[str, Any]
    batch: Batch


class Outputs(NamedTuple):
    loss: Tensor
    weights: Callable[[], dict[str, Tensor]]  # after the step, by torchvision's names


def cases(settings: Settings) -> list[Case]:
    side = settings.side(SIDE)
    if settings.config:
        return [make_case(settings, settings.config, settings.overrides)]
    small = (f"data.resize={{short: [{side}], long: {side}}}", f"train.batch_size={BATCH}", *settings.overrides)
    checkpointed = (*small, "train.activation_checkpointing=true")
    return [
        make_case(settings, CONFIG, small),
        make_case(settings, CONFIG, checkpointed, ", activation checkpointing"),
    ]


def make_case(settings: Settings, name: str, overrides: tuple[str, ...], note: str = "") -> Case:
    config = comparable(name, overrides)
    (height, width), batch = detection.largest_input(config), config.train.batch_size
    backbone, precision = config.model.backbone, config.train.precision
    return Case(
        name=f"{backbone.name if backbone else name}, {height}×{width}, batch {batch}, {precision}{note}",
        inputs=lambda _folder: make_inputs(config, settings.classes, torch.device(settings.device)),
        ours=ours,
        theirs=theirs,
        equal=equal,
        images=batch,
    )


def make_inputs(config: Config, classes: int, device: torch.device) -> Inputs:
    rng = np.random.default_rng(0)
    (height, width), count = detection.largest_input(config), config.train.batch_size
    images = torch.from_numpy(rng.integers(256, size=(count, 3, height, width), dtype=np.uint8))
    weights = make_weights(config, classes, images[0])
    boxes = torch.from_numpy(random_boxes(rng, OBJECTS, height, width))
    labels = torch.from_numpy(rng.integers(classes, size=OBJECTS))
    targets = Targets(boxes.repeat(count, 1, 1), labels.repeat(count, 1))
    sizes = torch.tensor([[height, width]] * count)
    return Inputs(config, weights, Batch(images, sizes, sizes, targets, torch.arange(count)).to(device))


def ours(inputs: Inputs) -> Run:
    """The training loop's step, without ranks and logs."""
    config, batch = inputs.config, inputs.batch
    device = batch.images.device
    model = build_model(config.model, len(inputs.weights["categories"]))
    model.load_state_dict(inputs.weights["model"])
    model = model.place(device).train()
    optimizer = TrainingState.begin(model, config.train, num_images=1, device=device).optimizer
    network = torch.compile(model) if config.train.compile else model
    loss_of = torch.compile(detection.loss) if config.train.compile else detection.loss
    prepare_gpu(config.train, has_one_size(config.data.resize), device)

    def run() -> Outputs:
        with autocast(config.train.precision, device):
            output = network(batch.images, batch.sizes)
        losses = loss_of(output, batch.targets, config.model)
        after = partial(to_torchvision, inputs.weights | {"model": model.state_dict()}, "the config")
        return Outputs(step(model, losses, optimizer), after)

    return run


def step(model: Model, losses: Losses, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """Change the weights as the training loop does; returns the loss."""
    total = sum(losses.parts.values())
    total.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    torch._foreach_mul_(gradients, 1 / losses.normaliser)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total.detach() / losses.normaliser


def theirs(inputs: Inputs) -> Run:
    config, batch = inputs.config, inputs.batch
    device = batch.images.device
    model = build_torchvision(config, inputs.weights).to(device).train()
    optimizer = torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=scaled_lr(config.train.optimizer, config.train.batch_size),
        momentum=config.train.optimizer.momentum,
        weight_decay=config.train.optimizer.weight_decay,
    )
    images = list(batch.images.float() / 255)
    targets = [{"boxes": boxes, "labels": labels} for boxes, labels in zip(*batch.targets[:2], strict=True)]

    def run() -> Outputs:
        with autocast(config.train.precision, device):
            total = sum(model(images, targets).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return Outputs(total.detach(), model.state_dict)

    return run


def equal(inputs: Inputs, own: Outputs, other: Outputs) -> bool:
    """The same loss, and the same step of the weights."""
    tolerance = TOLERANCES[inputs.config.train.precision]
    if own.loss.is_cuda:
        tolerance = max(tolerance, TOLERANCES["fp16"])  # convolutions in fp32 are TF32, which rounds as fp16
    if (own.loss - other.loss).abs() > tolerance * other.loss.abs():
        return False
    before, ours_after, theirs_after = to_torchvision(inputs.weights, "the config"), own.weights(), other.weights()
    gap, moved = 0.0, 0.0
    for name, start in before.items():
        one, two = (after[name].cpu().double() - start.double() for after in (ours_after, theirs_after))
        gap, moved = gap + float((one - two).square().sum()), moved + float(two.square().sum())
    return moved > 0 and gap**0.5 <= tolerance * moved**0.5
