"""Train configs with several seeds, one run after another, and print mean and deviation of each metric.

tools/compare.py --config bccd_r18_scratch.yaml --seeds 3
tools/compare.py --config a.yaml --config b.yaml --seeds 2 --json train.epochs=10

The runs are runs/NAME_seedN; the metrics are those of each one's best checkpoint. After Ctrl-C the same command
continues.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detector.commands import add_allow_code, count
from detector.commands.train import RESUMABLE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        required=True,
        action="append",
        help="a YAML file, or the name of one in configs/; given again, the next column",
    )
    parser.add_argument(
        "--seeds", type=count, default=3, help="runs of each config, with the seeds 0, 1, 2 and so on (default: 3)"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders are (default: runs)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_allow_code(parser)
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="config values, such as train.epochs=10")


def run(args: argparse.Namespace) -> int:
    import json
    import sys

    from detector.config.loader import load_config
    from detector.errors import ConfigError

    names = [Path(config).stem for config in args.config]
    if duplicates := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"command line: --config: two are named {duplicates[0]}; give each file a name of its own")
    configs = {
        name: load_config(config, args.overrides, args.allow_code)
        for name, config in zip(names, args.config, strict=True)
    }
    if fixed := next((override for override in args.overrides if override.partition("=")[0].strip() == "seed"), None):
        raise ConfigError(f"command line: {fixed}: the seeds are 0, 1, 2 and so on; say how many with --seeds")
    for name, config in configs.items():
        if not config.data.has_val:
            raise ConfigError(f"{name}: data.val is null, so there is nothing to compare; set it, or data.val_share")

    from detector.training import distributed
    from detector.training.comparison import as_text, spreads, train_seeds

    device = distributed.start(args.device)
    columns = {}
    try:
        if distributed.world_size() > 1:
            raise ConfigError("command line: compare runs in one process; start it without torchrun")
        for name, config in configs.items():
            by_seed = train_seeds(config, name, args.runs, range(args.seeds), device)
            if by_seed is None:
                print("stopped; everything is saved, the same command continues", file=sys.stderr)
                return RESUMABLE
            columns[name] = spreads(by_seed)
    finally:
        distributed.stop()
    if args.json:
        tree = {name: {key: spread._asdict() for key, spread in column.items()} for name, column in columns.items()}
        print(json.dumps({"seeds": args.seeds, "configs": tree}))
    else:
        print(as_text(columns))
    return 0
