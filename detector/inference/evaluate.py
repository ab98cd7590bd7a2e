"""Score a checkpoint on annotated or labelled images, or a COCO results file, and compare it with another."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from detector.checkpoints.checkpoint import (
    check_val_share,
    checkpoint_config,
    override_config,
    read_checkpoint,
    weights_digest,
    write_checkpoint,
)
from detector.checkpoints.opening import Opened, find_checkpoint, from_content, open_checkpoint, open_model
from detector.checkpoints.transfer import reorder_classes
from detector.config.loader import apply_overrides, config_from_dict
from detector.config.schema import Config
from detector.data.detection import (
    Annotations,
    CheckedBoxes,
    apply_box_policy,
    describe_odd_areas,
    has_val,
    read_split,
    scored_truth,
    with_sizes,
)
from detector.data.listing import check_folder
from detector.errors import ConfigError, DataError, counted, near_path
from detector.evaluation.box_figures import box_report
from detector.evaluation.coco import read_results
from detector.evaluation.tally import Tally
from detector.inference.exported import SUFFIX, ExportedPredictor
from detector.models.compiling import for_prediction
from detector.reports import Scored
from detector.structures import Batch
from detector.tasks import Task, detection, get_core, get_task
from detector.training import distributed
from detector.training.loop import predict_all, predict_batch
from detector.training.run_folder import kept_labels


class Evaluation(NamedTuple):
    """A model or a results file, scored."""

    scored: Scored  # on the main rank; empty on the others
    config: Config
    truth: Any
    images: Path | None  # their folder, if known


class Other(NamedTuple):
    """What to compare an evaluation with."""

    name: str
    opened: Opened | None  # None: a results file


def evaluate_checkpoint(
    source: str | Path,
    overrides: Sequence[str],
    device: torch.device,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    allow_code: bool = False,
) -> Evaluation:
    """Score a checkpoint or a run on its own val data, or on ``annotations`` and ``images``."""
    exported = ExportedPredictor(source) if Path(source).suffix == SUFFIX else None
    content = exported.metadata if exported else open_checkpoint(source)
    given, other = [], []
    for key, path in (("annotations", annotations), ("images", images)):
        if path:  # other data has no part held back
            given += [f"data.val.{key}={json.dumps(str(path), ensure_ascii=False)}", "data.val_share=null"]
            other = ["data.val.sets=[]", "data.val.format=auto", "data.val.part=null"]
    core = get_core(checkpoint_config(content, source).task)
    needs_annotations = core.FOLDER_FORMAT is None
    if images and not annotations and not needs_annotations:
        given.append("data.val.annotations=null")
    if annotations and not images and core.has_images(Path(annotations)):
        other.append("data.val.images=null")  # where the format has them
    overrides = [*other, *overrides, *given]
    if exported:
        opened = Opened(exported, override_config(content, source, overrides), exported.categories)
        exported.follow(opened.config.model.predict)
    else:
        opened = from_content(content, source, overrides, device, allow_code)
    data = opened.config.data
    if not (has_val(data) if needs_annotations else data.val_share is not None or (data.val and data.val.images)):
        missing = "--annotations and --images" if needs_annotations else "--images"
        raise ConfigError(f"{source}: names no data of its own to evaluate on; give {missing}")
    if annotations and data.val.images is None and not core.has_images(Path(annotations)):
        raise ConfigError(f"command line: {annotations} does not say where its images are; give --images too")
    if data.val_share is not None:
        check_val_share(content, source)
    del content
    return evaluate_opened(opened, str(source), opened.config)


def keep_thresholds(source: str | Path, evaluation: Evaluation) -> dict[str, float]:
    """Choose a score threshold for each class of which objects are found, and write them into the checkpoint's config.

    Each is where F1 at IoU 0.5 is best; a class without a found object keeps the threshold that it had. Raises
    :class:`detector.errors.ConfigError` for another task's checkpoint.
    """
    if evaluation.config.task != "detection":
        raise ConfigError(f"--keep-thresholds: {source} is of {evaluation.config.task}; thresholds are for detection")
    path = find_checkpoint(source)
    content = read_checkpoint(path)
    report = box_report(evaluation.scored.rows, evaluation.truth, evaluation.scored.metrics)
    chosen = {row["name"]: row["best_threshold"] for row in report.classes if row["best_f1"] > 0}
    predict = content["config"]["model"]["predict"]
    predict["score_thresholds"] = (predict.get("score_thresholds") or {}) | chosen
    write_checkpoint(path, content)
    return chosen


def evaluate_results(path: str, annotations: str, images: str | None, overrides: Sequence[str]) -> Evaluation:
    """Score a COCO results file against its annotations."""
    folder = Path(images) if images else None
    if folder:
        check_folder(folder, "--images")
    val = json.dumps({"annotations": annotations, "images": images}, ensure_ascii=False)
    config = apply_overrides(Config(), [*overrides, f"data.val={val}"], source=path)
    truth = read_split(config.data, "val", None, config.seed)
    if truth.images:
        truth = with_sizes(truth, truth.images, config.data.exif, config.data.allow_outside)
    policy = config.data.invalid_boxes
    checked = apply_box_policy(truth, "drop" if policy == "error" else policy)
    lines = [truth.notice, _describe_invalid(checked, policy)]
    truth = truth if policy == "error" else scored_truth(truth, checked)
    for line in filter(None, [*lines, describe_odd_areas(truth)]):
        print(line, file=sys.stderr)
    rows = _read_results(path, truth)
    return Evaluation(Scored(path, rows, detection.evaluate(Tally(rows), truth, config)), config, truth, truth.images)


def open_other(source: str, device: torch.device, allow_code: bool = False) -> Other:
    """Open the results file, checkpoint or run to compare an evaluation with."""
    path = Path(source)
    if path.suffix == ".json":
        if not os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises for a name that is too long)
            raise DataError(f"--against {path}: does not exist{near_path(path)}")
        return Other(source, None)
    if path.suffix == SUFFIX:
        exported = ExportedPredictor(path)
        config = config_from_dict(exported.metadata["config"], source)
        return Other(source, Opened(exported, config, exported.categories))
    path = find_checkpoint(source)
    return Other(str(path), open_model(path, (), device, allow_code=allow_code))


def evaluate_other(other: Other, evaluation: Evaluation, name: str) -> Scored:
    """Score ``other`` as ``evaluation`` (of ``name``) was, on the same data."""
    config, truth = evaluation.config, evaluation.truth
    if other.opened is None:
        if not isinstance(truth, Annotations):
            raise ConfigError(
                f"--against {other.name}: is a results file, which only a detector has; give a run or a checkpoint"
            )
        rows = _read_results(other.name, truth)
        return Scored(other.name, rows, detection.evaluate(Tally(rows), truth, config))
    model, own, categories = other.opened
    if own.task != config.task:
        raise ConfigError(f"--against {other.name}: is of {own.task}, not of {config.task}")
    is_exported = isinstance(model, ExportedPredictor)
    if not (categories == truth.categories if is_exported else reorder_classes(model, categories, truth.categories)):
        raise DataError(f"--against {other.name}: has other classes than {name}")
    # Its own resizing, but the same images: the split, val_share and the seed decide which ones are held back.
    same = {
        key: getattr(config.data, key)
        for key in (
            "train",
            "val",
            "val_share",
            "format",
            "one_based",
            "classes",
            "masks",
            "invalid_boxes",
            "allow_outside",
            "exif",
        )
    }
    own = own.model_copy(update={"data": own.data.model_copy(update=same), "seed": config.seed})
    return evaluate_opened(Opened(model, own, truth.categories), other.name, config).scored


def evaluate_opened(opened: Opened, name: str, scored_by: Config) -> Evaluation:
    """Score a model, the checkpoint ``name``, on the val data of its config, by the settings of ``scored_by``."""
    model, config, categories = opened
    task, is_exported = get_task(config), isinstance(model, ExportedPredictor)
    device = torch.device("cpu") if is_exported else next(model.buffers()).device
    network = model
    if not is_exported:
        model, network = for_prediction(model.fold_norms(), config.model.predict, device)
    run = Path(name) if os.path.isdir(name) else Path(name).parent  # noqa: PTH112
    is_run = os.path.exists(run / "config.yaml")  # noqa: PTH110 (Path's functions raise for a name that is too long)
    data = task.open_split(config, "val", categories, kept_labels(run) if is_run else None)
    if distributed.is_main():
        print("\n".join([f"{name} on {data.source}: {data.summary()}", *data.warnings()]), file=sys.stderr)
    if distributed.world_size() > 1:
        distributed.check_same(
            images=len(data), weights=(model.digest() if is_exported else weights_digest(model))[:12]
        )
    predict = _predict_exported if is_exported else predict_batch
    by_tiles = (model.sample, model.outputs) if is_exported else None
    tally = predict_all(network, task, data, config, device, predict, by_tiles)
    metrics = task.evaluate(tally, data.truth, scored_by) if distributed.is_main() else {}
    return Evaluation(Scored(name, tally.rows, metrics, tally.worst), config, data.truth, data.images)


def _predict_exported(model: ExportedPredictor, task: Task, batch: Batch, config: Config) -> Tally:
    """As :func:`detector.training.loop.predict_batch`, of a batch of one padded shape."""
    images = batch.images.contiguous().numpy()
    if images.dtype != model.dtype:
        images = images.astype(model.dtype) * 257 if model.dtype == np.uint16 else model.refuse_depth()
    outputs = list(map(torch.from_numpy, model.run(images, batch.sizes.numpy(), batch.sizes_original.numpy())))
    return task.tally(task.as_predicted(outputs), batch, config)


def _read_results(path: str, truth: Annotations) -> np.ndarray:
    """The detections of a results file; warnings are printed."""
    rows, warnings = read_results(path, truth)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return rows


def _describe_invalid(checked: CheckedBoxes, policy: str) -> str:
    """A line about boxes that training would refuse; a results file is scored against them unchanged."""
    if not checked.first_invalid:
        return ""
    count = counted(checked.clipped + checked.dropped, "invalid box")
    if policy == "error":
        remedy = "data.invalid_boxes=drop removes them, clip cuts them to the image"
        return f"warning: {count} scored unchanged (first: {checked.first_invalid}); {remedy}"
    clipped = f"{counted(checked.clipped, 'invalid box')} clipped"
    return f"{clipped}, {checked.dropped:,} dropped (first: {checked.first_invalid})"
