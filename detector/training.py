"""A whole run: what stands around the training loop."""

from __future__ import annotations

import sys
from typing import Any

import torch

from detector import distributed
from detector.checkpoint import checkpoint_categories, read_checkpoint
from detector.config import Config, config_to_dict
from detector.data.coco import CocoDataset
from detector.data.transforms import TrainTransform, Transform
from detector.engine import TrainingState, count_steps, train
from detector.errors import ConfigError, DataError
from detector.models import Model, build_model
from detector.optim import scaled_lr
from detector.run import RunFolder, tensorboard_writer
from detector.tasks import get_task
from detector.weights import load_backbone_weights


def fit(config: Config, run: RunFolder, device: torch.device, resume: bool = False) -> bool:
    """A whole run: open the data, build or resume, train, evaluate; True if it reached the end, False if stopped.

    With ``resume`` the run continues from its ``last.pt``, or begins if there is none. Raises
    :class:`~detector.errors.DetectorError` for all that a person can mend.
    """
    torch.set_flush_denormal(True)  # random weights give denormals, which slow convolutions several times on a CPU
    task = get_task(config)
    check_ranks(config, distributed.world_size(), device)
    writer = tensorboard_writer() if config.train.tensorboard else None
    if not resume:
        run.check_free()
    distributed.barrier()  # no rank makes the folder before all have looked
    augmented = TrainTransform(config.data.resize, config.data.augment, config.seed)
    train_data = task.open_split(config.data.train, "train", config.data, augmented)
    categories = train_data.categories
    val_data = task.open_split(config.data.val, "val", config.data, Transform(config.data.resize), categories)

    torch.manual_seed(config.seed)
    model = build_model(config.model, len(categories))
    content = read_checkpoint(run.last) if resume and run.last.exists() else None
    origin = f"resumed from {run.last}"
    if content is None:
        origin = load_backbone_weights(model.pyramid.backbone, config.model.backbone)
    else:
        check_resumable(content, config, train_data, run)
    memory_format = torch.channels_last if config.train.channels_last else torch.contiguous_format
    model = model.to(device, memory_format=memory_format)
    state = TrainingState.begin(model, config.train, len(train_data), device)
    if content is not None:
        state.restore(content, run.last)
    if distributed.is_main():
        begin_run(run, config, state.step, resume)
        if writer:
            run.board = writer(str(run.path), purge_step=state.step + 1)
        print_plan(config, origin, model, train_data, val_data, device)
    distributed.barrier()
    return train(config, task, state, train_data, val_data, run, device)


def check_ranks(config: Config, world_size: int, device: torch.device) -> None:
    """Refuse what the ranks cannot do together."""
    parts = world_size * config.train.accumulate
    if config.train.batch_size % parts:
        raise ConfigError(
            f"train.batch_size: {config.train.batch_size} images a step cannot be shared by {world_size} ranks in"
            f" {config.train.accumulate} parts (train.accumulate); use a multiple of {parts}"
        )
    if config.model.backbone.norm == "sync_bn" and device.type == "cpu" and world_size > 1:
        raise ConfigError("model.backbone.norm: sync_bn works across GPUs only; use bn or frozen_bn on CPUs")


# What a resumed run must have in common with the run that it continues: all that decides which pictures make a step,
# and what is in the optimizer's state.
KEPT = ("task", "seed", "model", "data.resize", "data.augment", "data.invalid_boxes", "data.group_by_aspect")
KEPT += ("train.batch_size", "train.optimizer", "train.precision", "train.ema")


def check_resumable(content: dict[str, Any], config: Config, train_data: CocoDataset, run: RunFolder) -> None:
    """Refuse to continue a run on other data or with another config, which would not be the same run."""
    remedy = "resume with the same, or begin another run with --name"
    categories = train_data.categories
    if checkpoint_categories(content) != categories:
        raise DataError(
            f"{run.last}: was trained on {len(content['categories'])} classes, {train_data.annotations.path} has"
            f" {len(categories)}; {remedy}"
        )
    if content["num_images"] != len(train_data):
        raise DataError(
            f"{run.last}: was trained on {content['num_images']} images, {train_data.annotations.path} has"
            f" {len(train_data)}; {remedy}"
        )
    for key in KEPT:
        old, new = content["config"], config_to_dict(config)
        for part in key.split("."):
            old, new = old[part], new[part]
        if old != new:
            raise ConfigError(f"{run.last}: {key} was {old}, is {new}; {remedy}")
    steps, _ = count_steps(config.train, len(train_data))
    if content["step"] > steps:
        raise ConfigError(f"{run.last}: has done {content['step']} steps, the config asks for {steps}; ask for more")


def begin_run(run: RunFolder, config: Config, step: int, resume: bool) -> None:
    """Make the run's folder, or tidy the one that is continued at ``step``."""
    if not (resume and run.path.exists()):
        run.create()
    run.forget_after(step)
    run.describe(config)


def print_plan(
    config: Config, origin: str, model: Model, train_data: CocoDataset, val_data: CocoDataset, device: torch.device
) -> None:
    steps, steps_per_epoch = count_steps(config.train, len(train_data))
    train, lr = config.train, scaled_lr(config.train.optimizer, config.train.batch_size)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    lines = [
        f"{origin}; {parameters:,} parameters, {trained:,} trained; {distributed.world_size()} × {device}",
        *(f"{name}: {data.summary()}" for name, data in (("train", train_data), ("val", val_data))),
        f"{steps} steps of {train.batch_size} images, {steps_per_epoch} an epoch; peak lr {lr:.3g}"
        f" ({train.optimizer.lr:.3g} for {train.optimizer.lr_batch_size} images, scaled by {train.batch_size})",
    ]
    print("\n".join(lines), file=sys.stderr)
