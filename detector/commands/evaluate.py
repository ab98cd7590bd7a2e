"""Score a checkpoint on annotated pictures, or a COCO results file.

tools/evaluate.py --checkpoint runs/x/best.pt
tools/evaluate.py --checkpoint runs/x/best.pt --annotations val.json --images images/
tools/evaluate.py --annotations val.json --results results.json
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detector.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", help="a .pt file of a run; its own val data is used unless others are given")
    parser.add_argument("--results", help="a COCO results file to score instead of a model")
    parser.add_argument("--annotations", help="a COCO JSON file")
    parser.add_argument("--images", help="the folder of its pictures")
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

    try:
        metrics, config = _score_results(args) if args.results else _score_checkpoint(args)
        if distributed.is_main():
            numbers = {name: value for name, value in metrics.items() if name != "per_class"}
            print(json.dumps(numbers) if args.json else get_task(config).describe(metrics, config.eval.per_class))
        return 0
    finally:
        distributed.stop()


def _score_results(args: argparse.Namespace) -> tuple[dict, Config]:
    from detector.config import Config, apply_overrides
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
    from detector.checkpoint import checkpoint_categories, checkpoint_config, load_model, read_checkpoint
    from detector.config import SplitConfig, apply_overrides
    from detector.data.transforms import Transform
    from detector.engine import run_evaluation
    from detector.tasks import get_task

    torch.set_flush_denormal(True)
    device = distributed.start(args.device)
    content = read_checkpoint(args.checkpoint)
    config = apply_overrides(checkpoint_config(content, args.checkpoint), args.overrides, source=args.checkpoint)
    split = SplitConfig(
        annotations=args.annotations or config.data.val.annotations, images=args.images or config.data.val.images
    )
    task = get_task(config)
    data = task.open_split(split, "val", config.data, Transform(config.data.resize), checkpoint_categories(content))
    if distributed.is_main():
        print(f"{args.checkpoint} on {split.annotations}: {data.summary()}", file=sys.stderr)
    model = load_model(content, args.checkpoint).to(device)
    metrics = run_evaluation(model, task, data, config, device)
    return metrics, config
