"""A test of data, model and recipe before the real run: overfit a few images.

If that fails, more data will not help: boxes are wrong, anchors cover nothing, the rate is off, or the model is frozen.
Training uses no augmentation and a constant rate, and evaluates the same images.
"""

from __future__ import annotations

import json
import sys
from typing import NamedTuple

import numpy as np
import torch

from detector.checkpoints.opening import open_start
from detector.checkpoints.start import begin_normalise, load_start
from detector.config.schema import AugmentConfig, Config, ScheduleConfig
from detector.data.transforms.resize import has_one_size
from detector.errors import ConfigError, counted
from detector.models import build_model
from detector.models.precision import prepare_gpu
from detector.reports import figure
from detector.tasks import get_task
from detector.training import distributed
from detector.training.derived import derive
from detector.training.fitting import check_run
from detector.training.loop import TrainingState, train
from detector.training.preview import draw_first_batch
from detector.training.run_folder import RunFolder

ROUND_STEPS = 50  # between two checks of the loss
MAX_ROUNDS = 20
WARMUP_STEPS = 20
AVERAGED_STEPS = 10  # the first and the last loss are means over this many steps
NEAR_ZERO = 0.05  # fraction of the first loss
ENTROPIES = ("dfl", "quality")  # parts of the loss


class Outcome(NamedTuple):
    """How far the loss fell."""

    passed: bool
    stopped: bool  # by a signal, before the outcome was clear
    steps: int
    first_loss: float
    last_loss: float


def overfit(config: Config, count: int, run: RunFolder, device: torch.device) -> Outcome:
    """Train on ``count`` images with objects or labels until the loss is near zero or the steps are used up.

    There are ``train.steps`` steps, and at most ``MAX_ROUNDS`` rounds.
    """
    if distributed.world_size() > 1:
        raise ConfigError("command line: --overfit runs in one process; start it without torchrun")
    torch.set_flush_denormal(True)  # as training does
    if config.train.batch_size == "auto":
        raise ConfigError("train.batch_size: auto is for training; give a number to --overfit")
    task = get_task(config)
    check_run(config, device)
    prepare_gpu(config.train, has_one_size(config.data.resize), device)
    run.check_free()
    wanted, longest = config.train.steps, MAX_ROUNDS * ROUND_STEPS
    limit = min(wanted or longest, longest)
    config, derived = derive(config)
    config = plain_config(config, count)
    whole = task.open_split(config, "val")  # the training set, transformed as for evaluation
    usable = np.flatnonzero(whole.has_targets)
    if len(usable) < count:
        raise ConfigError(
            f"command line: --overfit {count}: {whole.source} has {counted(len(usable), 'image')} to learn from"
        )
    chosen = np.sort(np.random.default_rng(config.seed).choice(usable, count, replace=False))
    # One epoch is a round of repeated images: evaluation and saving follow a round, not every step.
    train_data = whole.select(np.resize(chosen, ROUND_STEPS * config.train.batch_size).tolist())
    val_data = whole.select(chosen.tolist())

    torch.manual_seed(config.seed)
    start = open_start(config)
    config, normalised = begin_normalise(config, start, str(config.model.weights))
    model = build_model(config.model, len(whole.categories))
    origins, _ = load_start(model, config, whole.categories, start)
    model = model.place(device)
    state = TrainingState.begin(model, config.train, len(train_data), device)
    run.create()
    run.describe(config)
    ignored = f" (train.steps {wanted:,} is for training)" if wanted and wanted > limit else ""
    goal = f"overfitting in at most {limit:,} steps{ignored}: {val_data.summary()}"
    print("\n".join([*origins, normalised, *derived, goal, *val_data.warnings()]), file=sys.stderr)
    draw_first_batch(config, train_data, run)

    first = last = float("nan")
    for rounds in range(1, -(-limit // ROUND_STEPS) + 1):
        longer = config.train.model_copy(update={"steps": min(rounds * ROUND_STEPS, limit)})
        is_done = train(config.model_copy(update={"train": longer}), task, state, train_data, val_data, run, device)
        losses = vanishing_losses(run)
        if not is_done:
            return Outcome(False, True, state.step, first, last)
        few = max(1, min(AVERAGED_STEPS, len(losses) // 2))
        first, last = float(np.mean(losses[:few])), float(np.mean(losses[-few:]))
        if last <= NEAR_ZERO * first:
            return Outcome(True, False, state.step, first, last)
    return Outcome(False, False, state.step, first, last)


def plain_config(config: Config, count: int) -> Config:
    """The config without augmentation, averaging and regularisation, evaluated on what it is trained on."""
    augment = AugmentConfig(horizontal_flip=0.0)
    resize = config.data.resize.model_copy(update={"short": config.data.resize.short[-1:]})
    own = {"val": config.data.train.of_part("train"), "val_share": None, "augment": augment, "resize": resize}
    own["repeat_threshold"] = None
    data = config.data.model_copy(update=own)
    head = config.model.head.model_copy(update={"dropout": 0.0})
    loss = config.model.loss.model_copy(update={"label_smoothing": 0.0})
    constant = ScheduleConfig(milestones=[], warmup_steps=min(WARMUP_STEPS, config.train.schedule.warmup_steps))
    batch_size, optimizer = min(count, config.train.batch_size), config.train.optimizer
    if optimizer.name == "adamw":  # its steps hardly depend on the batch size, so neither does the rate
        optimizer = optimizer.model_copy(update={"lr_batch_size": batch_size})
    changes = {
        "batch_size": batch_size,
        "optimizer": optimizer,
        "accumulate": 1,
        "steps": None,
        "schedule": constant,
        "ema": None,
        "ema_tau": None,
        "patience": None,
    }
    return config.model_copy(
        update={
            "data": data,
            "model": config.model.model_copy(update={"head": head, "loss": loss}),
            "train": config.train.model_copy(update=changes),
            "eval": config.eval.model_copy(update={"every_epochs": 1}),
        }
    )


def vanishing_losses(run: RunFolder) -> list[float]:
    """The loss of every step so far, without the parts that a perfect fit leaves above zero.

    A distribution keeps its target's entropy (a distance of 2.5 strides is half 2 and half 3: ln 2), and so does a
    quality branch (a centerness of 0.5: ln 2 too).
    """
    rows = (json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines())
    steps = [row for row in rows if row.get("loss") is not None]
    return [row["loss"] - sum(row.get(f"loss_{part}", 0.0) for part in ENTROPIES) for row in steps]


def describe(outcome: Outcome, run: RunFolder, metric: str) -> str:
    """The outcome in one line."""
    results = json.loads(run.results.read_text(encoding="utf-8"))
    fraction = outcome.last_loss / outcome.first_loss
    text = (
        f"the loss went from {outcome.first_loss:.3f} to {outcome.last_loss:.3f} ({fraction:.0%}) in {outcome.steps}"
        f" steps, {metric} {figure(results[metric])} on the same images"
    )
    if outcome.passed:
        return f"passed: {text}"
    return (
        f"FAILED: {text}; look at {run.path / 'first_batch.jpg'} for wrong boxes or labels, try other rates"
        " (train.optimizer.lr), or train more of the network (model.backbone.freeze_at)"
    )
