"""A whole run: everything around the training loop."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import torch

from detector.checkpoints.checkpoint import (
    check_val_share,
    checkpoint_categories,
    checkpoint_config,
    load_weights,
    read_checkpoint,
    read_progress,
    weights_digest,
)
from detector.checkpoints.opening import open_start
from detector.checkpoints.start import begin_normalise, check_frozen, load_start
from detector.config.loader import config_to_dict, differences
from detector.config.schema import Config, SplitConfig
from detector.data.own import OwnData
from detector.data.transforms.resize import has_one_size
from detector.errors import ConfigError, DataError, counted
from detector.models import Model, build_model
from detector.models.compiling import check_compiler
from detector.models.precision import check_precision, explain_nondeterministic, prepare_gpu
from detector.reports import Scored
from detector.system.atomic import atomic_write
from detector.tasks import Data, Task, get_task, get_views
from detector.tasks.predicting import check_thresholds
from detector.training import distributed
from detector.training.batch_size import choose_batch_size, with_batch_size
from detector.training.derived import derive
from detector.training.loop import TrainingState, count_steps, predict_all, train
from detector.training.optimizer import scaled_lr
from detector.training.preview import preview_run
from detector.training.run_folder import RunFolder, kept_labels
from detector.training.trackers import Run, Trackers, check_trackers


def fit(
    config: Config, run: RunFolder, device: torch.device, resume: bool = False, data: OwnData | None = None
) -> bool:
    """A whole run: open the data, build or resume, train, evaluate. Returns False if stopped before the end.

    ``data`` (train, val), val None for no evaluation, replaces the config's data. With ``resume`` the run continues
    from its ``last.pt``, or starts if there is none. It starts from the config's weights for the backbone or, instead,
    from what fits of the checkpoint ``model.weights``. Raises :class:`detector.errors.DetectorError` for all that the
    user can fix.

    Any thread may call it; in the main thread, Ctrl-C and SIGTERM end it after the current step. It seeds torch's
    random numbers and flushes the thread's denormals.
    """
    torch.set_flush_denormal(True)  # random weights give denormals, which slow convolutions several times on a CPU
    task = get_task(config)
    check_run(config, device)
    prepare_gpu(config.train, has_one_size(config.data.resize), device)
    trackers = list(dict.fromkeys([*config.train.trackers, *["tensorboard"] * config.train.tensorboard]))
    distributed.from_main(lambda: check_trackers(trackers))
    finished = False
    try:
        with distributed.peers(), explain_nondeterministic():
            finished = _fit(config, task, run, device, resume, trackers, data)
        return finished
    finally:
        if run.trackers:
            run.trackers.close(finished)
        run.unlock()


def _fit(
    config: Config,
    task: Task,
    run: RunFolder,
    device: torch.device,
    resume: bool,
    trackers: list[str],
    own: OwnData | None,
) -> bool:
    config = config if own is None else without_files(config, own)
    config, derived = derive(config, lambda config: open_train(config, task, run, own))
    content = distributed.from_main(lambda: take_up(run, resume))
    start = open_start(config) if content is None else None
    config, normalised = begin_normalise(config, start or content, str(run.last if content else config.model.weights))
    if content is not None:
        if config.train.batch_size == "auto":
            config = with_batch_size(config, checkpoint_config(content, run.last).train.batch_size)
        check_config(content, config, run, own)
    if config.train.batch_size == "auto":
        sample_data = open_train(config, task, run, own)
        num_classes = len(sample_data.categories)
        config = choose_batch_size(config, task, lambda: build_model(config.model, num_classes), sample_data, device)
        print(f"train.batch_size: {config.train.batch_size} fit into the GPU's memory", file=sys.stderr)
    train_data, val_data = open_data(config, task, run, own)
    categories = train_data.categories
    check_thresholds(config.model.predict, categories)

    torch.manual_seed(config.seed)
    model = build_model(config.model, len(categories))
    if content is None:
        origins, report = load_start(model, config, categories, start)
    else:
        check_data(content, config, train_data, run)
        origins, report = [f"resumed from {run.last}", *_changes(content, config, run)], None
    del start
    model = model.place(device)
    state = TrainingState.begin(model, config.train, len(train_data), device)
    is_new = content is None
    if content is not None:
        state.restore(content, run.last)
    del content  # a second copy of the weights, which training does not need
    check_start(config, state, train_data, val_data)
    if distributed.is_main():
        begin_run(run, config, state)
        if report:
            with atomic_write(run.path / "transfer.txt") as file:
                file.write(report)
        if trackers:
            run.trackers = Trackers(trackers, Run(run.path, config_to_dict(config), state.step, None))
        print_plan(config, [*origins, normalised, *derived], model, train_data, val_data, device)
        if is_new:
            preview_run(config, train_data, val_data, run)
    distributed.barrier()
    finished = train(config, task, state, train_data, val_data, run, device)
    if finished and val_data is not None:
        report_best(config, task, state.evaluated, val_data, run, device)
    return finished


def open_train(config: Config, task: Task, run: RunFolder, own: OwnData | None) -> Data:
    if config.train.batch_size == "auto":  # not known yet
        config = with_batch_size(config, 1)
    if own is not None:
        return task.open_own(config, "train", own[0])
    return task.open_split(config, "train", keep_in=kept_labels(run.path))


def open_data(config: Config, task: Task, run: RunFolder, own: OwnData | None) -> tuple[Data, Data | None]:
    """The data to train on, and to evaluate on if there is any."""
    train_data = open_train(config, task, run, own)
    if own is not None:
        return train_data, None if own[1] is None else task.open_own(config, "val", own[1], train_data.categories)
    if not config.data.has_val:
        return train_data, None
    return train_data, task.open_split(config, "val", train_data.categories, kept_labels(run.path))


def without_files(config: Config, own: OwnData) -> Config:
    """The config without data files, for a run on data given from Python."""
    if not isinstance(own, tuple) or len(own) != 2:
        raise DataError(f"data: is {type(own).__name__}; give (train, val), or (train, None) to evaluate nothing")
    if config.data.val_share is not None:
        raise ConfigError("data.val_share: holds back files; of data given from Python, give both parts: (train, val)")
    data = config.data.model_copy(update={"train": SplitConfig(), "val": SplitConfig() if own[1] is not None else None})
    return config.model_copy(update={"data": data})


def take_up(run: RunFolder, resume: bool) -> dict[str, Any] | None:
    """The checkpoint that the run resumes, if any; on the main rank, whose disk has the run's folder."""
    if not resume:
        run.check_free()
    elif run.path.exists():
        run.lock()  # a new run's folder is made and locked later, once all that the run needs is there
    return read_progress(run.last, run.best) if resume and run.last.exists() else None


def check_start(config: Config, state: TrainingState, train_data: Data, val_data: Data | None) -> None:
    """Refuse ranks that differ in config, data or weights: files of one name may differ between machines."""
    if distributed.world_size() == 1:
        return
    settings = config_to_dict(config)
    model, data = settings["model"], settings["data"]
    # Paths and the number of workers may differ between machines.
    for section in (model, *([model["backbone"]] if model["backbone"] else model["pyramid"]["branches"])):
        section["weights"] = None
    data["train"] = data["val"] = data["workers"] = data["cache"] = None
    distributed.check_same(
        settings=hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12],
        classes=train_data.categories,
        images=(len(train_data), len(val_data) if val_data is not None else 0),
        step=state.step,
        weights=weights_digest(state.model, state.evaluated)[:12],
    )


def report_best(config: Config, task: Task, model: Model, val_data: Data, run: RunFolder, device: torch.device) -> None:
    """``report.html`` of the best checkpoint; may load its weights into ``model``."""
    has_best, is_known = distributed.from_main(lambda: (run.best.exists(), run.has_best))
    if not has_best:
        return  # resumed from a lone last.pt, and never better than before
    if not is_known:  # the best epoch was before a resume
        load_weights(model, distributed.from_main(lambda: read_checkpoint(run.best)["model"]), run.best)
        tally = predict_all(model, task, val_data, config, device)
    if distributed.is_main():
        tally, metrics = run.best_tally or (tally, task.evaluate(tally, val_data.truth, config))
        scored = Scored(str(run.best), tally.rows, metrics, tally.worst)
        report = get_views(config.task).report(scored, val_data.truth, config, val_data.images)
        report.write_page(run.path, f"Evaluation of {run.path.name}")


def check_run(config: Config, device: torch.device) -> None:
    """Refuse a config that this machine or these ranks cannot train."""
    if config.train.batch_size != "auto":
        check_ranks(config, distributed.world_size(), device)
    elif device.type == "cpu":
        raise ConfigError("train.batch_size: auto fills a GPU's memory, and there is none here; give a number")
    check_frozen(config)
    check_precision(config.train.precision, device, "train.precision")
    check_precision(config.model.predict.precision, device, "model.predict.precision")
    if config.train.compile:
        check_compiler("train.compile")


def check_ranks(config: Config, world_size: int, device: torch.device) -> None:
    """Refuse a batch size or a norm that these ranks cannot compute."""
    parts = world_size * config.train.accumulate
    if config.train.batch_size % parts:
        raise ConfigError(
            f"train.batch_size: {counted(config.train.batch_size, 'image')} per step cannot be divided among"
            f" {counted(world_size, 'rank')} in {counted(config.train.accumulate, 'part')} (train.accumulate);"
            f" use a multiple of {parts}"
        )
    is_synchronised = any(section.norm == "sync_bn" for section in config.model.backbones)
    if is_synchronised and device.type == "cpu" and world_size > 1:
        raise ConfigError("model.backbone.norm: sync_bn works across GPUs only; use bn or frozen_bn on CPUs")


# Keys that a resumed run may not change: those that decide a step's images and the optimizer's state.
KEPT = (
    "task",
    "seed",
    "model",
    "data.resize",
    "data.tiles",
    "data.crop",
    "data.augment",
    "data.invalid_boxes",
    "data.val_share",
    "data.exif",
    "data.max_value",
    "data.masks",
    "data.class_weights",
    "data.repeat_threshold",
    "data.group_by_aspect",
    "train.batch_size",
    "train.optimizer",
    "train.precision",
    "train.ema",
    "train.ema_tau",
)
_REMEDY = "resume with the same, or start another run with --name"


def check_config(content: dict[str, Any], config: Config, run: RunFolder, own: OwnData | None) -> None:
    """Refuse to resume a run with another config: it would not be the same run."""
    check_val_share(content, run.last)
    before = checkpoint_config(content, run.last)
    if own is None and before.data.train == SplitConfig():
        raise DataError(f"{run.last}: was trained on data given from Python; give the same: detector.train(…, data=…)")
    old_tree, new_tree = config_to_dict(before), config_to_dict(config)
    for key in KEPT:
        old, new = old_tree, new_tree
        for part in key.split("."):
            old, new = old[part], new[part]
        for own_key, was, now in differences(old, new, key):
            # The initial weights no longer matter, and prediction does not affect training.
            if own_key == "model.weights" or own_key.startswith("model.predict."):
                continue
            remedy = f"{_REMEDY} (--init-from starts a task from the other's weights)" if key == "task" else _REMEDY
            raise ConfigError(f"{run.last}: {own_key} was {was}, is {now}; {remedy}")


def check_data(content: dict[str, Any], config: Config, train_data: Data, run: RunFolder) -> None:
    """Refuse to resume a run on other data."""
    categories = train_data.categories
    known = checkpoint_categories(content)
    if known != categories:
        differ = next((pair for pair in zip(known, categories, strict=False) if pair[0] != pair[1]), None)
        first = f"; the first that differs is {differ[0].name!r} and {differ[1].name!r}" if differ else ""
        raise DataError(
            f"{run.last}: was trained on {counted(len(known), 'class')}, {train_data.source} has"
            f" {len(categories)}{first}; {_REMEDY}"
        )
    if content["num_images"] != len(train_data):
        raise DataError(
            f"{run.last}: was trained on {counted(content['num_images'], 'image')}, {train_data.source} has"
            f" {len(train_data)}; {_REMEDY}"
        )
    steps, _ = count_steps(config.train, len(train_data))
    if content["step"] > steps:
        raise ConfigError(f"{run.last}: has done {counted(content['step'], 'step')}, the config has {steps}; set more")


def _changes(content: dict[str, Any], config: Config, run: RunFolder) -> Iterator[str]:
    """One line per difference between the resumed run and the run before."""
    old = config_to_dict(checkpoint_config(content, run.last))
    for key, was, now in differences(old, config_to_dict(config)):
        yield f"changed: {key} was {was}, is {now}"
    before, ranks = content.get("ranks", distributed.world_size()), distributed.world_size()
    if before != ranks:
        yield (
            f"changed: {counted(ranks, 'rank')} instead of {before}; the order of the images is the same,"
            f" {config.train.batch_size // ranks} of each step's {config.train.batch_size} on each rank"
        )


def begin_run(run: RunFolder, config: Config, state: TrainingState) -> None:
    """Make the run's folder, or tidy the one that is resumed."""
    if not run.is_locked:
        run.create()
    run.forget_after(state.step, state.evaluated_step)
    run.describe(config)


def print_plan(
    config: Config, origins: list[str], model: Model, train_data: Data, val_data: Data | None, device: torch.device
) -> None:
    steps, steps_per_epoch = count_steps(config.train, len(train_data))
    train, lr = config.train, scaled_lr(config.train.optimizer, config.train.batch_size)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    lines = [
        *origins,
        f"{parameters:,} parameters, {trained:,} trained; {distributed.world_size()} × {device}",
        f"train: {train_data.summary()}",
        f"val: {val_data.summary()}" if val_data is not None else "val: none; nothing is evaluated (data.val is null)",
        f"{counted(steps, 'step')} of {counted(train.batch_size, 'image')}, {steps_per_epoch} per epoch;"
        f" peak lr {lr:.3g} ({train.optimizer.lr:.3g} for {counted(train.optimizer.lr_batch_size, 'image')}, scaled to"
        f" {train.batch_size})",
    ]
    print("\n".join(lines), file=sys.stderr)
