"""On a machine with a GPU: is this package right there, how fast is it, and where does a training step's time go.

detector gpu-check gpu.json
detector gpu-check trial.json --device cpu --scale 0.1 --parts loss ties

A table on stdout, and all figures in the JSON file, which is complete after each part. Each part runs apart from the
others' failure. The exit code is 1 if one failed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="OUT", help="the JSON file to write")
    parser.add_argument("--device", help="cuda, cuda:1, or cpu for a trial (default: the first GPU)")
    parser.add_argument("--scale", type=float, default=1.0, help="scale of images and counts (default: 1)")
    parser.add_argument("--minutes", type=float, default=8.0, help="parts after this time are skipped (default: 8)")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="only these parts")


def run(args: argparse.Namespace) -> int:
    from detector.errors import ConfigError, one_of

    if args.output.is_dir() or not args.output.parent.is_dir():
        raise ConfigError(f"{args.output}: give a JSON file in a folder that exists")
    if not 0 < args.scale <= 1:
        raise ConfigError(f"command line: --scale {args.scale}: must be over 0 and at most 1")

    import torch

    from detector.dev.gpu_check.check import Check
    from detector.dev.gpu_check.runner import PARTS, run_parts
    from detector.system.atomic import write_json
    from detector.system.device import environment

    unknown = sorted(set(args.parts or ()) - PARTS.keys())
    if unknown:
        raise ConfigError(f"command line: --parts {unknown[0]}: no such part; use {one_of(PARTS)}")
    if args.device is None and not torch.cuda.is_available():
        raise ConfigError("command line: there is no GPU here; --device cpu --scale 0.1 tries the check without one")
    check = Check(args.device or "cuda", args.scale)
    report: dict[str, Any] = {"device": check.device, "scale": check.scale, "environment": environment(), "parts": []}
    failed = 0
    for outcome in run_parts(check, args.parts or list(PARTS), args.minutes):
        report["parts"].append(outcome._asdict())
        write_json(args.output, report)
        print(
            f"{outcome.part:<14}  {outcome.status:<7}  {outcome.seconds:6.1f} s  {outcome.detail}".rstrip(), flush=True
        )
        for row in outcome.found if isinstance(outcome.found, list) else ():
            print("    " + ", ".join(f"{key} {number(value)}" for key, value in row.items()), flush=True)
        failed += outcome.status == "failed"
    return FAILED if failed else 0


def number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)
