"""Score a checkpoint on annotated or labelled images, or a COCO results file, and compare it with another."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from detector.checkpoints.checkpoint import check_val_share, checkpoint_config, weights_digest
from detector.checkpoints.opening import Opened, find_checkpoint, from_content, open_checkpoint, open_model
from detector.checkpoints.transfer import reorder_classes
from detector.config.loader import apply_overrides
from detector.config.schema import Config
from detector.data.detection import (
    Annotations,
    CheckedBoxes,
    apply_box_policy,
    describe_odd_areas,
    read_annotations,
    scored_truth,
    with_sizes,
)
from detector.data.formats.recognition import naming_format
from detector.errors import ConfigError, DataError
from detector.evaluation.coco import read_results
from detector.evaluation.tally import Tally
from detector.models.precision import check_precision
from detector.reports import Scored
from detector.tasks import detection, get_core, get_task
from detector.training import distributed
from detector.training.loop import predict_all


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
    content = open_checkpoint(source)
    given = []
    for key, path in (("annotations", annotations), ("images", images)):
        if path:  # other data has no part held back
            given += [f"data.val.{key}={json.dumps(str(path), ensure_ascii=False)}", "data.val_share=null"]
    needs_annotations = get_core(checkpoint_config(content, source).task).FOLDER_FORMAT is None
    if images and not annotations and not needs_annotations:
        given.append("data.val.annotations=null")
    opened = from_content(content, source, [*overrides, *given], device, allow_code)
    data = opened.config.data
    if not data.has_val:
        options = "--annotations and --images" if needs_annotations else "--images"
        raise ConfigError(f"{source}: was trained without data to evaluate on (data.val is null); give {options}")
    if data.val_share is not None:
        check_val_share(content, source)
    del content
    return _evaluate(opened, str(source), opened.config)


def evaluate_results(path: str, annotations: str, images: str | None, overrides: Sequence[str]) -> Evaluation:
    """Score a COCO results file against its annotations."""
    folder = Path(images) if images else None
    if folder and not folder.is_dir():
        raise DataError(f"--images: {images} is not a folder")
    val = json.dumps({"annotations": annotations, "images": images}, ensure_ascii=False)
    config = apply_overrides(Config(), [*overrides, f"data.val={val}"], source=path)
    with naming_format(Path(annotations)):
        truth = read_annotations(annotations)
    if folder:
        truth = with_sizes(truth, folder, config.data.exif)
    policy = config.data.invalid_boxes
    checked = apply_box_policy(truth, "drop" if policy == "error" else policy)
    lines = [truth.notice, _describe_invalid(checked, policy)]
    truth = truth if policy == "error" else scored_truth(truth, checked)
    for line in filter(None, [*lines, describe_odd_areas(truth)]):
        print(line, file=sys.stderr)
    rows = _read_results(path, truth)
    return Evaluation(Scored(path, rows, detection.evaluate(Tally(rows), truth, config)), config, truth, folder)


def open_other(source: str, device: torch.device, allow_code: bool = False) -> Other:
    """Open the results file, checkpoint or run to compare an evaluation with."""
    path = Path(source)
    if path.suffix == ".json":
        if not path.is_file():
            raise DataError(f"--against {path}: does not exist")
        return Other(source, None)
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
    if not reorder_classes(model, categories, truth.categories):
        raise DataError(f"--against {other.name}: has other classes than {name}")
    # Its own resizing, but the same images: the split, val_share and the seed decide which ones are held back.
    same = {
        key: getattr(config.data, key)
        for key in ("train", "val", "val_share", "classes", "invalid_boxes", "allow_outside", "exif")
    }
    own = own.model_copy(update={"data": own.data.model_copy(update=same), "seed": config.seed})
    return _evaluate(Opened(model, own, truth.categories), other.name, config).scored


def _evaluate(opened: Opened, name: str, scored_by: Config) -> Evaluation:
    """Score a model on the val data of its config, by the settings of ``scored_by``."""
    model, config, categories = opened
    task, device = get_task(config), next(model.buffers()).device
    check_precision(config.model.predict.precision, device, "model.predict.precision")
    data = task.open_split(config, "val", categories)
    if distributed.is_main():
        print("\n".join([f"{name} on {data.source}: {data.summary()}", *data.warnings()]), file=sys.stderr)
    model = model.fold_norms().place(device, config.model.predict.precision)
    if distributed.world_size() > 1:
        distributed.check_same(images=len(data), weights=weights_digest(model)[:12])
    tally = predict_all(model, task, data, config, device)
    metrics = task.evaluate(tally, data.truth, scored_by) if distributed.is_main() else {}
    return Evaluation(Scored(name, tally.rows, metrics), config, data.truth, data.images)


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
    count = f"{checked.clipped + checked.dropped:,} invalid boxes"
    if policy == "error":
        remedy = "data.invalid_boxes=drop removes them, clip cuts them to the image"
        return f"warning: {count} are scored unchanged (first: {checked.first_invalid}); {remedy}"
    return f"{checked.clipped:,} invalid boxes clipped, {checked.dropped:,} dropped (first: {checked.first_invalid})"
