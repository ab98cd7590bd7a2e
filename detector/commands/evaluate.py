"""Score a checkpoint on annotated or labelled pictures, or a COCO results file.

tools/evaluate.py --checkpoint runs/x/best.pt
tools/evaluate.py --checkpoint runs/x/best.pt --annotations val.json --images images/
tools/evaluate.py --checkpoint runs/classifier/best.pt --images folders/ --output scores/
tools/evaluate.py --annotations val.json --results results.json
tools/evaluate.py --checkpoint runs/x/best.pt --report report/ --against runs/y
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import torch

    from detector.config.schema import Config
    from detector.data.detection import Annotations, CheckedBoxes
    from detector.reports import Scored


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", help="a .pt file or a run's folder; its own val data is used unless others are given"
    )
    parser.add_argument("--results", help="a COCO results file to score instead of a model")
    parser.add_argument("--annotations", help="a COCO JSON file; for a classifier, a CSV file of paths and labels")
    parser.add_argument(
        "--images", help="the folder of its pictures; for a classifier, alone, a folder of class folders"
    )
    parser.add_argument(
        "--output", type=Path, help="a folder for results.json, and of a classifier the confusion matrix"
    )
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="a folder for report.html and its figures as JSON and CSV"
    )
    parser.add_argument(
        "--against",
        metavar="OTHER",
        help="in the report, compare with another results file, checkpoint or run folder, on the same data",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="config values, such as eval.backend=pycocotools"
    )


class _Evaluation(NamedTuple):
    """A model or a results file, scored."""

    scored: Scored
    config: Config
    truth: Any
    images: Path | None  # the folder of the pictures, if it is known


def run(args: argparse.Namespace) -> int:
    from detector.errors import ConfigError

    if bool(args.checkpoint) == bool(args.results):
        raise ConfigError("command line: give either --checkpoint or --results")
    if args.results and not args.annotations:
        raise ConfigError("command line: --results needs --annotations to be scored against")
    if args.against and not args.report:
        raise ConfigError("command line: --against compares in a report; give --report DIR too")

    from detector.files.atomic import make_folder, write_json

    for folder in (args.output, args.report):
        if folder:
            make_folder(folder)

    import torch

    from detector.tasks import get_views
    from detector.training import distributed

    torch.set_flush_denormal(True)
    try:
        device = distributed.start(args.device)
        other = _open_other(args) if args.against else None  # before hours of work
        with distributed.peers():
            evaluation = _score_results(args) if args.results else _score_checkpoint(args, device)
            against = _score_other(args, other, evaluation, device) if other else None
        if distributed.is_main():
            metrics, config, views = evaluation.scored.metrics, evaluation.config, get_views(evaluation.config.task)
            if args.output:
                write_json(args.output / "results.json", metrics)
                views.write_report(metrics, args.output)
            if args.report:
                report = views.report(evaluation.scored, evaluation.truth, config, evaluation.images, against)
                path = report.write(args.report, f"Evaluation of {evaluation.scored.name}")
                print(f"report: {path}", file=sys.stderr)
            numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
            print(json.dumps(numbers) if args.json else views.describe(metrics, config.eval.per_class))
        return 0
    finally:
        distributed.stop()


def _score_results(args: argparse.Namespace) -> _Evaluation:
    from detector.config.loader import apply_overrides
    from detector.config.schema import Config
    from detector.data.detection import (
        apply_box_policy,
        describe_odd_areas,
        read_annotations,
        scored_truth,
        with_sizes,
    )
    from detector.data.formats.recognition import naming_format
    from detector.errors import DataError
    from detector.evaluation.tally import Tally
    from detector.reports import Scored
    from detector.tasks import detection

    images = Path(args.images) if args.images else None
    if images and not images.is_dir():
        raise DataError(f"--images: {images} is no folder")
    config = apply_overrides(Config(), args.overrides, source=args.results)
    with naming_format(Path(args.annotations)):
        annotations = read_annotations(args.annotations)
    if images:
        annotations = with_sizes(annotations, images, config.data.exif)
    policy = config.data.invalid_boxes
    checked = apply_box_policy(annotations, "drop" if policy == "error" else policy)
    truth = annotations if policy == "error" else scored_truth(annotations, checked)
    for line in (annotations.notice, _describe_invalid(checked, policy), describe_odd_areas(truth)):
        if line:
            print(line, file=sys.stderr)
    rows = _read_results(args.results, truth)
    metrics = detection.evaluate(Tally(rows), truth, config)
    return _Evaluation(Scored(args.results, rows, metrics), config, truth, images)


def _read_results(path: str, truth: Annotations) -> np.ndarray:
    """The detections of a results file; what is odd about them is said."""
    from detector.evaluation.coco import read_results

    rows, warnings = read_results(path, truth)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return rows


def _describe_invalid(checked: CheckedBoxes, policy: str) -> str:
    """Boxes that training would refuse, in a line; a results file is scored against them as they stand."""
    if not checked.first_invalid:
        return ""
    count = f"{checked.clipped + checked.dropped:,} invalid boxes"
    if policy == "error":
        remedy = "data.invalid_boxes=drop or clip leaves them out or cuts them"
        return f"warning: {count} are scored as they stand (first: {checked.first_invalid}); {remedy}"
    return f"{checked.clipped:,} invalid boxes clipped, {checked.dropped:,} dropped (first: {checked.first_invalid})"


def _score_checkpoint(args: argparse.Namespace, device: torch.device) -> _Evaluation:
    from detector.checkpoints.checkpoint import check_val_share, checkpoint_config, override_config
    from detector.checkpoints.opening import open_checkpoint
    from detector.errors import ConfigError
    from detector.tasks import get_core

    content = open_checkpoint(args.checkpoint)
    overrides = list(args.overrides)
    for key in ("annotations", "images"):
        if getattr(args, key):
            # Data of their own are not a part held back.
            path = json.dumps(getattr(args, key), ensure_ascii=False)
            overrides += [f"data.val.{key}={path}", "data.val_share=null"]
    needs_annotations = get_core(checkpoint_config(content, args.checkpoint).task).FOLDER_FORMAT is None
    if args.images and not args.annotations and not needs_annotations:
        overrides.append("data.val.annotations=null")
    config = override_config(content, args.checkpoint, overrides)
    if not config.data.has_val:
        data = "--annotations and --images" if needs_annotations else "--images"
        raise ConfigError(f"{args.checkpoint}: was trained without data to evaluate on (data.val is null); give {data}")
    if config.data.val_share is not None:
        check_val_share(content, args.checkpoint)
    return _predict(content, args.checkpoint, config, config, device)


def _predict(
    content: dict[str, Any], name: str, config: Config, scored_by: Config, device: torch.device
) -> _Evaluation:
    """The checkpoint on the val data of ``config``, scored as ``scored_by`` says."""
    import torch

    from detector.checkpoints.checkpoint import checkpoint_categories, load_model, weights_digest
    from detector.models.precision import check_precision
    from detector.reports import Scored
    from detector.tasks import get_task
    from detector.training import distributed
    from detector.training.loop import predict_all

    task = get_task(config)
    check_precision(config.model.predict.precision, device, "model.predict.precision")
    data = task.open_split(config, "val", checkpoint_categories(content))
    if distributed.is_main():
        print("\n".join([f"{name} on {data.source}: {data.summary()}", *data.warnings()]), file=sys.stderr)
    model = load_model(content, name).fold_norms().to(device, memory_format=torch.channels_last)
    if distributed.world_size() > 1:
        distributed.check_same(images=len(data), weights=weights_digest(model)[:12])
    tally = predict_all(model, task, data, config, device)
    metrics = task.evaluate(tally, data.truth, scored_by) if distributed.is_main() else {}
    return _Evaluation(Scored(name, tally.rows, metrics), config, data.truth, data.images)


class _Other(NamedTuple):
    """What ``--against`` names."""

    name: str
    checkpoint: dict[str, Any] | None  # None: a results file


def _open_other(args: argparse.Namespace) -> _Other:
    from detector.checkpoints.finding import find_checkpoint
    from detector.checkpoints.opening import open_checkpoint
    from detector.errors import ConfigError, DataError

    path = Path(args.against)
    if path.suffix == ".json":
        if not path.is_file():
            raise DataError(f"--against {path}: does not exist")
        return _Other(args.against, None)
    if args.results and not args.images:
        raise ConfigError("command line: --against a checkpoint needs the pictures; give --images too")
    path = find_checkpoint(args.against)
    return _Other(str(path), open_checkpoint(path))


def _score_other(args: argparse.Namespace, other: _Other, evaluation: _Evaluation, device: torch.device) -> Scored:
    """``other`` on the data of ``evaluation``, scored in the same way."""
    from detector.checkpoints.checkpoint import checkpoint_categories, checkpoint_config
    from detector.errors import ConfigError, DataError
    from detector.evaluation.tally import Tally
    from detector.reports import Scored
    from detector.tasks import get_task

    config, truth, (name, content) = evaluation.config, evaluation.truth, other
    if content is None:
        if config.task != "detection":
            raise ConfigError(f"--against {name}: results files are of detection; give a run or a checkpoint")
        rows = _read_results(name, truth)
        return Scored(name, rows, get_task(config).evaluate(Tally(rows), truth, config))
    own = checkpoint_config(content, name)
    if own.task != config.task:
        raise ConfigError(f"--against {name}: is of {own.task}, not of {config.task}")
    if checkpoint_categories(content) != truth.categories:
        raise DataError(f"--against {name}: has other classes than {args.checkpoint or args.results}")
    data = config.data
    if args.results:
        val = data.val.model_copy(update={"annotations": args.annotations, "images": args.images})
        data = data.model_copy(update={"val": val})
    # Its own resizing, but the same pictures: which ones are held back follows from the split, the share and the seed.
    same = {
        key: getattr(data, key)
        for key in ("train", "val", "val_share", "classes", "invalid_boxes", "allow_outside", "exif")
    }
    same_data = own.model_copy(update={"data": own.data.model_copy(update=same), "seed": config.seed})
    return _predict(content, name, same_data, config, device).scored
