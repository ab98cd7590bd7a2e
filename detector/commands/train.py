"""Train a model from a config.

tools/train.py --config retinanet_r50_fpn.yaml data.train.annotations=train.json data.train.images=images/ ...
tools/train.py --config classify_r50_fpn.yaml --init-from runs/detector/best.pt data.train.images=folders/ ...
torchrun --nproc-per-node 8 tools/train.py --config retinanet_r50_fpn.yaml
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from detector.commands import RESUMABLE, add_allow_code, count

if TYPE_CHECKING:
    from detector.config.schema import Config
    from detector.training.run_folder import RunFolder

FAILED, STOPPED = 1, 130  # exit codes of --overfit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/")
    parser.add_argument("--name", help="the run's folder is runs/NAME (default: the config's name)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders are (default: runs)")
    parser.add_argument("--resume", action="store_true", help="continue the run from its last.pt, or start it")
    parser.add_argument(
        "--init-from",
        metavar="CHECKPOINT",
        help="start from what fits of a checkpoint of any task, classes or package (model.weights in the config)",
    )
    parser.add_argument(
        "--overfit",
        type=count,
        metavar="N",
        help="overfit N images, in runs/NAME_overfit, and say whether it works (exit code 0 or 1)",
    )
    add_allow_code(parser)
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="config values, such as train.batch_size=8")


def run(args: argparse.Namespace) -> int:
    from detector.config.loader import load_config
    from detector.errors import ConfigError
    from detector.training.run_folder import RunFolder

    overrides = list(args.overrides)
    if args.init_from:
        if any(override.startswith("model.weights=") for override in overrides):
            raise ConfigError("command line: --init-from and model.weights name the same thing; give one of them")
        overrides.append(f"model.weights={json.dumps(args.init_from, ensure_ascii=False)}")
    config = load_config(args.config, overrides, args.allow_code)
    name = Path(args.config).stem if args.name is None else args.name
    if args.overfit is not None:
        check_overfit(args)
        return run_overfit(args, config, RunFolder.named(args.runs, args.name or f"{name}_overfit"))
    run_folder = RunFolder.named(args.runs, name)
    try:
        return _train(args, config, run_folder)
    except KeyboardInterrupt:  # before the first step or after the last: nothing to save
        print(f"stopped; continue with --resume: {run_folder.path}", file=sys.stderr)
        return RESUMABLE


def _train(args: argparse.Namespace, config: Config, run_folder: RunFolder) -> int:
    from detector.training import distributed
    from detector.training.fitting import fit

    try:
        device = distributed.start(args.device)
        finished = fit(config, run_folder, device, resume=args.resume)
        if distributed.is_main():
            outcome = "finished" if finished else "stopped; everything is saved, continue with --resume"
            result = run_folder.path
            if finished and not config.data.has_val:
                outcome, result = "finished without evaluation (data.val is null); the result is", run_folder.last
            print(f"{outcome}: {result}", file=sys.stderr)
        return 0 if finished else RESUMABLE
    finally:
        distributed.stop()


def check_overfit(args: argparse.Namespace) -> None:
    from detector.errors import ConfigError

    if args.resume:
        raise ConfigError("command line: --overfit starts afresh each time; remove --resume")


def run_overfit(args: argparse.Namespace, config: Config, run_folder: RunFolder) -> int:
    """Exit code 0 if the images were learned, 1 if they were not."""
    from detector.tasks import get_task
    from detector.training import distributed
    from detector.training.overfit import describe, overfit

    try:
        device = distributed.start(args.device)
        outcome = overfit(config, args.overfit, run_folder, device)
    finally:
        run_folder.unlock()
        distributed.stop()
    if outcome.stopped:
        print("stopped", file=sys.stderr)
        return STOPPED
    print(describe(outcome, run_folder, get_task(config).main_metric(config)))
    return 0 if outcome.passed else FAILED
