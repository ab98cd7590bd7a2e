"""The training loop and the evaluation loop: explicit, without hooks, and independent of the task."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from detector.checkpoints.checkpoint import load_weights, save_checkpoint
from detector.config.schema import Config, TrainConfig
from detector.data.loading.bad_images import Replacing, Skipped
from detector.data.loading.collate import load_batches
from detector.data.loading.sampler import EvalBatches, TrainBatches, repeat_factors
from detector.errors import ConfigError, DetectorError, NonFiniteError
from detector.evaluation.tally import Tally, merge
from detector.models import Model
from detector.models.norms import changing_buffers
from detector.models.precision import autocast
from detector.structures import Batch, Category
from detector.system.device import explain_memory
from detector.system.processes import handled
from detector.tasks import Data, Task, get_results, get_views
from detector.tasks.predicting import predict_merged, predict_outputs
from detector.tasks.tiling import Tiles, predict_tiled, tiles_of
from detector.training import distributed
from detector.training.average import AveragedWeights, SavedBuffers
from detector.training.optimizer import build_optimizer, load_optimizer, lr_factor, scaled_lr, set_lr
from detector.training.run_folder import RunFolder

LESS_MEMORY = (
    "lower train.batch_size or data.resize, or keep them and set train.accumulate to 2 or more, or"
    " train.activation_checkpointing=true; --resume continues from what was saved"
)


@dataclass
class TrainingState:
    """Everything that a step changes, as ``last.pt`` stores it."""

    model: Model
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: AveragedWeights | None
    num_images: int  # of the training data: with the batch size, it decides which images make a step
    step: int = 0  # optimizer steps done
    evaluated_step: int = 0  # the last one that was evaluated
    train_seconds: float = 0.0  # spent in steps, reading included and evaluation not
    skipped: int = 0  # steps whose loss or gradient was not finite (train.non_finite=skip)
    best: float = -1.0
    best_epoch: int = 0
    stale: int = 0  # evaluations since the best one

    @classmethod
    def begin(cls, model: Model, config: TrainConfig, num_images: int, device: torch.device) -> TrainingState:
        # Losses are sums over hundreds of positives here, so the usual initial scale of 2^16 would overflow.
        scaler = torch.amp.GradScaler(device.type, init_scale=2.0**8, enabled=config.precision == "fp16")
        ema = AveragedWeights(model, config.ema, config.ema_tau) if config.ema else None
        if config.activation_checkpointing:
            model.recompute_activations()
        return cls(model, build_optimizer(model, config.optimizer, config.batch_size), scaler, ema, num_images)

    @property
    def evaluated(self) -> Model:
        """The model to predict with: the average if there is one."""
        return self.ema.model if self.ema else self.model

    def content(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict() if self.ema else None,
            "ema_updates": self.ema.updates if self.ema else 0,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "num_images": self.num_images,
            "ranks": distributed.world_size(),
            "step": self.step,
            "evaluated_step": self.evaluated_step,
            "train_seconds": self.train_seconds,
            "skipped": self.skipped,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "stale": self.stale,
        }

    def restore(self, content: dict[str, Any], path: object) -> None:
        load_weights(self.model, content["model"], str(path))
        if self.ema and content["ema"]:
            load_weights(self.ema.model, content["ema"], str(path))
            self.ema.updates = content["ema_updates"]
        load_optimizer(self.optimizer, content["optimizer"], path)
        self.scaler.load_state_dict(content["scaler"])
        for name in ("step", "evaluated_step", "train_seconds", "best", "best_epoch"):
            setattr(self, name, content[name])
        self.skipped, self.stale = content.get("skipped", 0), content.get("stale", 0)  # later than the others


@dataclass
class StopRequest:
    """Whether Ctrl-C or SIGTERM has asked for an end after the current step."""

    asked: bool = False

    def ask(self, *_: object) -> None:
        self.asked = True


def seed_of(*numbers: int) -> int:
    """One seed from several numbers, well mixed."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def count_steps(config: TrainConfig, num_images: int) -> tuple[int, int]:
    """Optimizer steps of the whole run and of one epoch."""
    per_epoch = -(-num_images // config.batch_size)
    return config.steps or config.epochs * per_epoch, per_epoch


def train(
    config: Config,
    task: Task,
    state: TrainingState,
    train_data: Data,
    val_data: Data | None,
    run: RunFolder,
    device: torch.device,
) -> bool:
    """Train from ``state.step`` to the end. Returns False if a signal stopped it before, after saving.

    Without ``val_data`` there is no evaluation and no best checkpoint.
    """
    steps, steps_per_epoch = count_steps(config.train, len(train_data))
    categories = train_data.categories
    world_size, accumulate, batch_size = distributed.world_size(), config.train.accumulate, config.train.batch_size
    peak_lr = scaled_lr(config.train.optimizer, batch_size)
    trained = [parameter for parameter in state.model.parameters() if parameter.requires_grad]
    good_buffers = SavedBuffers(state.model)
    # A wrapper: checkpoints, the average and evaluation use the model itself. A second shape compiles it for all.
    network: nn.Module = torch.compile(state.model) if config.train.compile else state.model
    loss_of = torch.compile(task.loss) if config.train.compile else task.loss
    if world_size > 1:
        network = DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)
    batches = _load_train_batches(config, train_data, state.step, steps, device, run)

    def ends_epoch(step: int) -> bool:
        return step > 0 and (step % steps_per_epoch == 0 or step == steps)

    stop = StopRequest()
    with handled(stop.ask), contextlib.closing(_Progress(state.step, steps)) as progress:
        while True:
            # Evaluation comes first, so a run that was stopped before it resumes with it.
            epoch = -(-state.step // steps_per_epoch)
            is_due = ends_epoch(state.step) and (epoch % config.eval.every_epochs == 0 or state.step == steps)
            if val_data is not None and is_due and state.evaluated_step < state.step:
                tally, metrics = run_evaluation(state.evaluated, task, val_data, config, device)
                keep_best(run, config, task, state, categories, tally, metrics, epoch)
                save_last(run, config, categories, state)
                distributed.barrier()  # the others wait here, not in a step, while the main rank scores
            if state.step == steps or (is_due and is_stale(config.train, state)):
                return True

            started = time.perf_counter()
            network.train()
            # Dropout and the like depend only on the step too, so a resumed run draws the same.
            torch.manual_seed(seed_of(config.seed, state.step, distributed.rank()))
            lr = peak_lr * lr_factor(config.train.schedule, state.step, steps, steps_per_epoch)
            set_lr(state.optimizer, lr)

            part_sums: list[Tensor] = []
            ids: list[Tensor] = []
            for part in range(accumulate):
                try:
                    batch = next(batches)
                except DetectorError:
                    # A broken image ends the run on its rank. All ranks have the same state, so any may save it.
                    good_buffers.restore()
                    if distributed.is_main() or run.is_shared():
                        run.save_last(config, categories, state.content())
                    raise
                ids.append(batch.ids)
                # Ranks exchange gradients once per step, with the last part.
                is_last = part == accumulate - 1
                with (
                    contextlib.nullcontext() if is_last or world_size == 1 else network.no_sync(),
                    explain_memory(batch.describe(), LESS_MEMORY),
                ):
                    with autocast(config.train.precision, device), _explain_single_values():
                        output = network(batch.images, batch.sizes)
                    losses = loss_of(output, batch.targets, config.model, state.step / steps)
                    state.scaler.scale(sum(losses.parts.values())).backward()
                part_sums.append(torch.stack([*losses.parts.values(), losses.normaliser]).detach().float())

            # One collective carries the loss parts, the normaliser and whether any rank was asked to stop.
            asked = torch.full((1,), float(stop.asked), device=device)
            totals = distributed.sum_over_ranks(torch.cat([torch.stack(part_sums).sum(dim=0), asked]))
            normaliser = totals[-2].clamp(min=losses.least)
            normaliser = torch.where(normaliser > 0, normaliser, 1)  # no objects in any image: no division
            state.scaler.unscale_(state.optimizer)
            # DDP averages gradients over ranks, but the loss is a sum over them.
            gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
            torch._foreach_mul_(gradients, world_size / normaliser)
            grad_norm = nn.utils.clip_grad_norm_(trained, config.train.clip_norm or float("inf"))
            # The only wait of a step for the device: the numbers decide whether the weights may change. Loading goes on
            # meanwhile; the device idles until the optimizer's few launches and the next pass arrive.
            *parts, divisor, asked_ranks, norm = torch.cat([totals, grad_norm[None]]).tolist()
            divided = (part / (max(divisor, losses.least) or 1.0) for part in parts)
            loss_parts = dict(zip(losses.parts, divided, strict=True))
            loss = sum(loss_parts.values())
            # The fp16 scaler meets infinite gradients now and then: it skips the step and halves its scale. If they
            # remain at scale 1, they are a fault.
            is_skipped = state.scaler.is_enabled() and not math.isfinite(norm) and state.scaler.get_scale() > 1
            skipped: dict[str, Any] = {}
            if not math.isfinite(loss) or not (math.isfinite(norm) or is_skipped):
                # BatchNorm has already averaged over this batch; parameters have not changed yet.
                good_buffers.restore()
                fault = _describe_fault(state.step + 1, lr, loss_parts, norm)
                skipped = skip_step(run, config, state, train_data, fault, ids)
            else:
                state.scaler.step(state.optimizer)
                good_buffers.save()
                if state.ema:
                    state.ema.update(state.model)
            state.scaler.update()
            state.optimizer.zero_grad(set_to_none=True)
            state.step += 1

            seconds = time.perf_counter() - started
            state.train_seconds += seconds
            row = {
                "step": state.step,
                "epoch": state.step / steps_per_epoch,
                "images_seen": state.step * batch_size,
                "loss": _or_null(loss),
                **{f"loss_{name}": _or_null(value) for name, value in loss_parts.items()},
                "lr": lr,
                "grad_norm": _or_null(norm),
                "normaliser": _or_null(divisor),
                "images_per_second": batch_size / seconds,
                **skipped,
            }
            if distributed.is_main():
                run.append(row)
                progress.show(row, config.train.log_steps)

            if asked_ranks:
                save_last(run, config, categories, state)
                return False
            is_late = time.monotonic() - run.saved_at > 60 * config.train.checkpoint_minutes
            if ends_epoch(state.step) or state.step % config.train.checkpoint_steps == 0 or is_late:
                save_last(run, config, categories, state)


@contextlib.contextmanager
def _explain_single_values() -> Iterator[None]:
    """Explain a batch norm without values to average: it depends on network, images and batch together."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            "a batch norm is given a single value per channel, one image on a map of one cell: use a train.batch_size"
            " of two or more per rank and part of train.accumulate, or larger images"
        ) from None


def _describe_fault(step: int, lr: float, loss_parts: dict[str, float], grad_norm: float) -> str:
    parts = ", ".join(f"{name} {value:.4g}" for name, value in loss_parts.items())
    return f"step {step}: the loss or its gradient is not finite (lr {lr:.3g}; {parts}; gradient norm {grad_norm:.4g}"


def skip_step(
    run: RunFolder, config: Config, state: TrainingState, data: Data, fault: str, ids: list[Tensor]
) -> dict[str, Any]:
    """Count a step that is not finite, and return its images' names; if it may not be skipped, save and raise."""
    every_id = [index for rank_ids in distributed.gather(torch.cat(ids).tolist()) for index in rank_ids]
    files = [str(data.file(index)) for index in every_id]
    fault = f"{fault}; images {', '.join(files)})"
    if config.train.non_finite == "stop" or state.skipped == config.train.max_skips:
        save_last(run, config, data.categories, state)
        before = f" after {state.skipped} skipped steps (train.max_skips)" if state.skipped else ""
        raise NonFiniteError(
            f"{fault}{before}; the state before the step is in {run.last}. A lower train.optimizer.lr, a longer"
            " train.schedule.warmup_steps or train.clip_norm usually cures it"
        )
    state.skipped += 1
    if distributed.is_main():
        tqdm.write(f"warning: {fault}; skipped, {state.skipped} of at most {config.train.max_skips}", file=sys.stderr)
    return {"skipped": files}


def _or_null(value: float) -> float | None:
    """JSON has no infinity or NaN."""
    return value if math.isfinite(value) else None


def save_last(run: RunFolder, config: Config, categories: list[Category], state: TrainingState) -> None:
    if distributed.is_main():
        run.save_last(config, categories, state.content())


def keep_best(
    run: RunFolder,
    config: Config,
    task: Task,
    state: TrainingState,
    categories: list[Category],
    tally: Tally,
    metrics: dict[str, Any],
    epoch: int,
) -> None:
    """Write the results of an evaluation, and the model's weights if it is the best so far."""
    state.evaluated_step, state.stale = state.step, state.stale + 1
    if not distributed.is_main():
        return
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    metric = task.main_metric(config)
    score = metrics[metric]
    if state.best_epoch == 0 or score > state.best:
        state.best, state.best_epoch, state.stale = score, epoch, 0
        save_checkpoint(
            run.best, config, categories, {"model": state.evaluated.state_dict(), "epoch": epoch, "metrics": numbers}
        )
        run.keep_best(tally, metrics)
    results = {
        "epoch": epoch,
        "images_seen": state.step * config.train.batch_size,
        "train_seconds": round(state.train_seconds, 1),
        "metric": metric,
        "best": state.best,
        "best_epoch": state.best_epoch,
    }
    run.write_results(metrics | results)
    views = get_views(config.task)
    views.write_report(metrics, run.path)
    run.append({"step": state.step, "epoch": epoch, "evaluation": numbers})
    # Not print, which would write into the progress bar's line.
    tqdm.write(views.describe(metrics, config.eval.per_class and len(categories) <= 20), file=sys.stderr)


def is_stale(config: TrainConfig, state: TrainingState) -> bool:
    """Whether ``patience`` is at its end; the main rank decides, which alone has the scores."""
    patience = config.patience
    if patience is None or not distributed.from_main(lambda: state.stale >= patience):
        return False
    if distributed.is_main():
        line = f"stopped early: no better score than that of epoch {state.best_epoch} in {state.stale} evaluations"
        tqdm.write(f"{line} (train.patience)", file=sys.stderr)
    return True


def run_evaluation(
    model: Model, task: Task, data: Data, config: Config, device: torch.device
) -> tuple[Tally, dict[str, Any]]:
    """The tally and metrics of ``model`` on ``data``: every rank predicts its part, only the main one scores."""
    tally = predict_all(model, task, data, config, device)
    return tally, task.evaluate(tally, data.truth, config) if distributed.is_main() else {}


def predict_batch(model: Model, task: Task, batch: Batch, config: Config) -> Tally:
    with explain_memory(batch.describe(), "lower eval.batch_size or data.resize"):
        return task.tally(predict_merged(model, task, batch, config.model), batch, config)


def predict_all(
    model: Any,
    task: Task,
    data: Data,
    config: Config,
    device: torch.device,
    predict: Callable[[Any, Task, Batch, Config], Tally] = predict_batch,
    by_tiles: tuple[Callable[[np.ndarray], Any], Callable[[list[Any]], Any]] | None = None,
) -> Tally:
    """The tally of the predictions of ``model`` on ``data``: complete on the main rank, empty on the others.

    ``predict`` and, for tiles, ``by_tiles`` (pixels to a sample, samples to outputs) are for what is not a ``Model``.
    """
    distributed.barrier()  # the main rank may still score the last evaluation
    if isinstance(model, nn.Module):
        model.eval()
        # Each rank has its own running statistics; checkpoints have the main rank's.
        distributed.copy_from_main(changing_buffers(model))
    if tiles := tiles_of(config):
        own = merge(_tiled_tallies(model, task, data, config, tiles, device, by_tiles))
        return merge(distributed.gather_on_main(own))
    own_batches = EvalBatches(
        len(data), config.eval.batch_size, distributed.rank(), distributed.world_size(), data.shapes
    )
    batches = load_batches(data, own_batches, config.data.workers, device)
    hidden = not (distributed.is_main() and sys.stderr.isatty())
    bar = tqdm(batches, total=len(own_batches), desc="evaluate", leave=False, disable=hidden)
    own = merge(predict(model, task, batch, config) for batch in bar)
    # A rank without images must take part too.
    return merge(distributed.gather_on_main(own))


def _tiled_tallies(
    model: Any, task: Task, data: Data, config: Config, tiles: Tiles, device: torch.device, given: Any
) -> Iterator[Tally]:
    """The tally of each of this rank's images, predicted by tiles; the next one is read meanwhile."""
    # AP needs all scores.
    predict = config.model.predict.model_copy(update={"score_thresholds": None})
    # An exported file has its own samples and outputs.
    make_sample, outputs = given or (
        lambda pixels: task.make_sample(pixels, 0, config),
        lambda samples: predict_outputs(model, task, samples, config.model, device),
    )
    join = get_results(config.task).join
    indices = range(distributed.rank(), len(data), distributed.world_size())
    hidden = not (distributed.is_main() and sys.stderr.isatty())
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(data.open, indices[0]) if indices else None
        for number, index in enumerate(tqdm(indices, desc="evaluate", leave=False, disable=hidden)):
            image = ahead.result()
            if number + 1 < len(indices):
                ahead = pool.submit(data.open, indices[number + 1])
            found = predict_tiled(
                image,
                tiles,
                config.eval.batch_size,
                make_sample,
                outputs,
                lambda parts, grid: join(parts, grid, tiles.merge, data.categories, predict),
            )
            yield task.tally_whole(found, data, index, config)


def train_batches(config: Config, data: Data, start: int, steps: int) -> TrainBatches:
    """The images of this rank from step ``start`` to ``steps``."""
    threshold = config.data.repeat_threshold
    return TrainBatches(
        num_images=len(data),
        batch_size=config.train.batch_size,
        seed=config.seed,
        start_step=start,
        steps=steps,
        is_wide=data.is_wide if config.data.group_by_aspect else None,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        accumulate=config.train.accumulate,
        repeats=repeat_factors(*data.image_labels, len(data), threshold) if threshold is not None else None,
        shown=data.shown,
    )


def _load_train_batches(
    config: Config, data: Data, start: int, steps: int, device: torch.device, run: RunFolder
) -> Iterator[Any]:
    sampler, skipped = train_batches(config, data, start, steps), None
    if config.data.on_bad_image == "skip":
        data = Replacing(data, config.seed)
        own_images = -(-len(data) // distributed.world_size())
        skipped = Skipped(own_images, config.data.max_bad_share, run.path / "skipped.txt")
    return load_batches(data, sampler, config.data.workers, device, skipped)


class _Progress:
    """A bar on a terminal; elsewhere a line every few steps."""

    def __init__(self, step: int, steps: int) -> None:
        self.bar = tqdm(
            initial=step,
            total=steps,
            unit="step",
            dynamic_ncols=True,
            disable=not (distributed.is_main() and sys.stderr.isatty()),
        )
        self.steps = steps
        self.start_step, self.started = step, time.perf_counter()

    def show(self, row: dict[str, Any], every: int) -> None:
        losses = {name.removeprefix("loss_"): value for name, value in row.items() if name.startswith("loss")}
        parts = [f"{name} {math.nan if value is None else value:.3f}" for name, value in losses.items()]
        text = f"{' '.join(parts)} lr {row['lr']:.2e} {row['images_per_second']:.1f} img/s"
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update()
        if self.bar.disable and (row["step"] % every == 0 or row["step"] == self.steps):
            done = row["step"] - self.start_step
            eta = (time.perf_counter() - self.started) / done * (self.steps - row["step"])
            print(
                f"step {row['step']}/{self.steps} epoch {row['epoch']:.2f} {text} eta {_clock(eta)}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        self.bar.close()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
