"""Score a checkpoint on annotated or labelled pictures, or a COCO results file.

tools/evaluate.py --checkpoint runs/x/best.pt
tools/evaluate.py --checkpoint runs/x/best.pt --annotations val.json --images images/
tools/evaluate.py --checkpoint runs/classifier/best.pt --images folders/ --output scores/
tools/evaluate.py --annotations val.json --results results.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detector.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", help="a .pt file of a run; its own val data is used unless others are given")
    parser.add_argument("--results", help="a COCO results file to score instead of a model")
    parser.add_argument("--annotations", help="a COCO JSON file; for a classifier, a CSV file of paths and labels")
    parser.add_argument(
        "--images", help="the folder of its pictures; for a classifier, alone, a folder of class folders"
    )
    parser.add_argument(
        "--output", type=Path, help="a folder for results.json, and of a classifier the confusion matrix"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="config values, such as eval.backend=pycocotools"
    )


def run(args: argparse.Namespace) -> int:
    from detector.errors import ConfigError

    if bool(args.checkpoint) == bool(args.results):
        raise ConfigError("command line: give either --checkpoint or --results")
    if args.results and not args.annotations:
        raise ConfigError("command line: --results needs --annotations to be scored against")

    from detector import distributed
    from detector.tasks import get_task

    if args.output:
        try:
            args.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{args.output}: cannot be made: {error.strerror}") from None
    try:
        metrics, config = _score_results(args) if args.results else _score_checkpoint(args)
        if distributed.is_main():
            if args.output:
                (args.output / "results.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
                get_task(config).write_report(metrics, args.output)
            numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
            print(json.dumps(numbers) if args.json else get_task(config).describe(metrics, config.eval.per_class))
        return 0
    finally:
        distributed.stop()


def _score_results(args: argparse.Namespace) -> tuple[dict, Config]:
    from detector.config import Config
    from detector.configfile import apply_overrides
    from detector.data.coco import read_annotations
    from detector.metrics import read_results
    from detector.tasks import detection

    config = apply_overrides(Config(), args.overrides, source=args.results)
    truth = read_annotations(args.annotations)
    metrics = detection.evaluate([read_results(args.results, truth)], truth, config)
    return metrics, config


def _score_checkpoint(args: argparse.Namespace) -> tuple[dict, Config]:
    import torch

    from detector import distributed
    from detector.checkpoint import checkpoint_categories, load_model, override_config
    from detector.engine import run_evaluation
    from detector.interchange import open_checkpoint
    from detector.tasks import get_task

    torch.set_flush_denormal(True)
    device = distributed.start(args.device)
    content = open_checkpoint(args.checkpoint)
    overrides = list(args.overrides)
    for key in ("annotations", "images"):
        if getattr(args, key):
            # Data of their own are not a part held back.
            path = json.dumps(getattr(args, key), ensure_ascii=False)
            overrides += [f"data.val.{key}={path}", "data.val_share=null"]
    if args.images and not args.annotations and content["config"]["task"] == "classification":
        overrides.append("data.val.annotations=null")  # a folder of class folders
    config = override_config(content, args.checkpoint, overrides)
    task = get_task(config)
    data = task.open_split(config, "val", checkpoint_categories(content))
    if distributed.is_main():
        print(f"{args.checkpoint} on {data.source}: {data.summary()}", file=sys.stderr)
    model = load_model(content, args.checkpoint).fold_norms().to(device, memory_format=torch.channels_last)
    metrics = run_evaluation(model, task, data, config, device)
    return metrics, config
