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

RESUMABLE = 75  # exit code after Ctrl-C or SIGTERM: all is saved, --resume continues (EX_TEMPFAIL of sysexits.h)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/")
    parser.add_argument("--name", help="the run's folder is runs/NAME (default: the config's name)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders are (default: runs)")
    parser.add_argument("--resume", action="store_true", help="continue the run from its last.pt, or begin it")
    parser.add_argument(
        "--init-from",
        metavar="CHECKPOINT",
        help="begin with what fits of a checkpoint of any task, classes or package (model.weights in the config)",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="config values, such as train.batch_size=8")


def run(args: argparse.Namespace) -> int:
    from detector.configfile import load_config
    from detector.errors import ConfigError
    from detector.run import RunFolder

    overrides = list(args.overrides)
    if args.init_from:
        if any(override.startswith("model.weights=") for override in overrides):
            raise ConfigError("command line: --init-from and model.weights name the same thing; give one of them")
        overrides.append(f"model.weights={json.dumps(args.init_from, ensure_ascii=False)}")
    config = load_config(args.config, overrides)
    run_folder = RunFolder(args.runs / (args.name or Path(args.config).stem))

    from detector import distributed
    from detector.training import fit

    try:
        device = distributed.start(args.device)
        finished = fit(config, run_folder, device, resume=args.resume)
        if distributed.is_main():
            outcome = "finished" if finished else "stopped; everything is saved, continue with --resume"
            print(f"{outcome}: {run_folder.path}", file=sys.stderr)
        return 0 if finished else RESUMABLE
    finally:
        distributed.stop()
