"""Show the training data on a page: images as they are stored and as they are augmented, with boxes or classes.

tools/browse.py --config retinanet_r50_fpn.yaml data.train.annotations=train.json data.train.images=images/
tools/browse.py --config classify_r50_fpn.yaml --number 60 --output classes.html data.train.images=folders/
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from detector.commands import add_allow_code, count
from detector.errors import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/")
    parser.add_argument("--split", choices=("train", "val"), default="train", help="the split to show (default: train)")
    parser.add_argument(
        "--number", type=count, default=40, help="number of images, evenly spread over the split (default: 40)"
    )
    parser.add_argument("--epochs", type=count, default=2, help="augmented versions of each image (default: 2)")
    parser.add_argument("--output", type=Path, default=Path("browse.html"), help="the page (default: browse.html)")
    add_allow_code(parser)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="config values, such as data.augment.mixup=1")


def run(args: argparse.Namespace) -> int:
    from detector.config.loader import load_config

    config = load_config(args.config, args.overrides, args.allow_code)

    from detector.analysis.gallery import browse
    from detector.tasks import get_task, get_views
    from detector.training.derived import derive

    config, derived = derive(config)
    data, views = get_task(config).open_split(config, args.split), get_views(config.task)
    print("\n".join([*derived, data.summary()]), file=sys.stderr)
    epochs = args.epochs if args.split == "train" else 1  # val is not augmented
    shown = browse(args.output, f"{args.split} data of {args.config}", data, views, args.number, epochs)
    print(f"{counted(shown, 'image')}: {args.output}")
    return 0
