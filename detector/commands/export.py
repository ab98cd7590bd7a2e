"""Export a model to one file that runs without this package: pixels in, boxes and classes out.

detector export --checkpoint runs/x/best.pt --output model.onnx --images photos/
detector export --checkpoint runs/x/best.pt --format int8 --output small.onnx --images photos/ --check val

The file is compared with the checkpoint before it gets its name. docs/EXPORT.md says what is in it and how to run it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detector.commands import add_allow_code, count

SUFFIXES = {"onnx": ".onnx", "int8": ".onnx", "fp16": ".onnx", "pt2": ".pt2"}  # by format


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="a .pt file, or a run's folder; of another package too")
    parser.add_argument(
        "--format",
        choices=list(SUFFIXES),
        default="onnx",
        help="onnx: in float; int8 and fp16: ONNX in smaller numbers; pt2: torch.export's (default: onnx)",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the file to write")
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="a folder, a file or a quoted pattern: images like those to predict, to compare on; int8 needs them",
    )
    parser.add_argument(
        "--most", type=count, default=100, metavar="N", help="images of --images that are used, at most (default: 100)"
    )
    parser.add_argument("--fixed", action="store_true", help="make thresholds and counts constants instead of inputs")
    parser.add_argument(
        "--bits", type=int, choices=[8, 16], default=8, help="of the input's values; 16 takes images of both"
    )
    parser.add_argument(
        "--check", choices=["val"], help="also score checkpoint and file on the config's val data, and print both"
    )
    parser.add_argument(
        "--max-ap-drop", type=float, metavar="X", help="with --check: exit 1, without a file, if AP falls by more"
    )
    add_allow_code(parser)
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="config values, such as model.predict.max_detections=300"
    )


def run(args: argparse.Namespace) -> int:
    from detector.errors import ConfigError

    suffix = SUFFIXES[args.format]
    if args.output.suffix != suffix:
        raise ConfigError(f"--output {args.output}: a file of --format {args.format} ends in {suffix}")
    if args.max_ap_drop is not None and not args.check:
        raise ConfigError("command line: --max-ap-drop compares scores; give --check val too")
    if args.check and args.format == "pt2":
        raise ConfigError("command line: --check scores ONNX files; a .pt2 file is compared tensor by tensor")
    if args.format == "int8" and not args.images:
        raise ConfigError("command line: --format int8 is calibrated on images; give --images DIR")

    from detector.inference.folder import find_images
    from detector.system.atomic import folder_of

    images = list(find_images(args.images)) if args.images else []
    with folder_of(args.output):
        return _export(args, images)


def _export(args: argparse.Namespace, images: Sequence[Path]) -> int:
    import torch

    torch.set_flush_denormal(True)

    from detector.checkpoints.opening import find_checkpoint, open_model
    from detector.export.exporting import Request, export

    opened = open_model(find_checkpoint(args.checkpoint), args.overrides, "cpu", allow_code=args.allow_code)
    print(f"exporting {args.checkpoint}: about a minute", file=sys.stderr)
    step = max(1, len(images) // args.most)
    request = Request(
        kind=args.format,
        images=images[::step][: args.most],
        is_deep=args.bits == 16,
        is_fixed=args.fixed,
        is_scored=args.check is not None,
        max_drop=args.max_ap_drop,
    )
    written = export(opened, args.checkpoint, args.output, request)
    print("\n".join(written.lines))
    print(f"{written.path}: {written.bytes / 1e6:.1f} MB")
    return 0
