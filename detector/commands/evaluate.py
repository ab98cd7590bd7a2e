"""Score a checkpoint on annotated or labelled images, or a COCO results file.

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
from typing import Any

from detector.commands import add_allow_code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", help="a .pt file or a run's folder; its own val data is used unless others are given"
    )
    parser.add_argument("--results", help="a COCO results file to score instead of a model")
    parser.add_argument(
        "--annotations",
        help="annotations: COCO, YOLO, VOC or CSV; for a classifier, paths and labels as CSV; for a segmenter, a folder"
        " of masks, CSV or COCO",
    )
    parser.add_argument(
        "--images", help="the folder of its images; for a classifier without --annotations, one folder per class"
    )
    parser.add_argument(
        "--output", type=Path, help="a folder for results.json and, but for a detector, the confusion matrix"
    )
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="a folder for report.html and its figures as JSON and CSV"
    )
    parser.add_argument(
        "--against",
        metavar="OTHER",
        help="in the report, compare with another results file, checkpoint or run folder, on the same data",
    )
    parser.add_argument(
        "--keep-thresholds",
        action="store_true",
        help="choose a score threshold for each class by F1, and write them into the checkpoint, for infer and predict",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    add_allow_code(parser)
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="config values, such as eval.backend=pycocotools"
    )


def run(args: argparse.Namespace) -> int:
    from detector.errors import ConfigError

    if bool(args.checkpoint) == bool(args.results):
        raise ConfigError("command line: give either --checkpoint or --results")
    if args.results and not args.annotations:
        raise ConfigError("command line: --results needs --annotations to be scored against")
    if args.keep_thresholds and not args.checkpoint:
        raise ConfigError("command line: --keep-thresholds writes into a checkpoint; give --checkpoint")
    if args.against and not args.report:
        raise ConfigError("command line: --against compares in a report; give --report DIR too")
    if args.against and args.results and not args.images and not args.against.endswith(".json"):
        raise ConfigError("command line: --against a checkpoint needs the images; give --images too")

    from detector.system.atomic import make_folder, write_json

    for folder in (args.output, args.report):
        if folder:
            make_folder(folder)

    import torch

    from detector.inference.evaluate import (
        evaluate_checkpoint,
        evaluate_other,
        evaluate_results,
        keep_thresholds,
        open_other,
    )
    from detector.tasks import get_views
    from detector.training import distributed

    torch.set_flush_denormal(True)
    name, own_data = args.checkpoint or args.results, (args.annotations, args.images)
    try:
        device = distributed.start(args.device)
        # Opened first: an error after hours of evaluation would be late.
        other = open_other(args.against, device, args.allow_code) if args.against else None
        with distributed.peers():
            if args.results:
                evaluation = evaluate_results(name, *own_data, args.overrides)
            else:
                evaluation = evaluate_checkpoint(name, args.overrides, device, *own_data, args.allow_code)
            against = evaluate_other(other, evaluation, name) if other else None
        if distributed.is_main():
            metrics, config, views = evaluation.scored.metrics, evaluation.config, get_views(evaluation.config.task)
            if args.output:
                write_json(args.output / "results.json", metrics)
                views.write_report(metrics, args.output)
            if args.report:
                report = views.report(evaluation.scored, evaluation.truth, config, evaluation.images, against)
                path = report.write(args.report, f"Evaluation of {evaluation.scored.name}")
                print(f"report: {path}", file=sys.stderr)
            print(as_json(metrics) if args.json else views.describe(metrics, config.eval.per_class), flush=True)
            if args.keep_thresholds:
                chosen = keep_thresholds(args.checkpoint, evaluation)
                for category in evaluation.truth.categories:
                    found = f"{chosen[category.name]:.3f}" if category.name in chosen else "none is found, so it stays"
                    print(f"lowest score of {category.name}: {found}", file=sys.stderr)
        return 0
    finally:
        distributed.stop()


def as_json(metrics: dict[str, Any]) -> str:
    """The numbers, and those of each class; null where there is nothing to score."""

    def known(row: dict[str, Any]) -> dict[str, Any]:
        return {key: None if isinstance(value, float) and value == -1 else value for key, value in row.items()}

    numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    return json.dumps(known(numbers) | {"per_class": list(map(known, metrics["per_class"]))}, ensure_ascii=False)
