"""Measure this package against torchvision: the same weights, inputs and batch, in alternating runs.

tools/benchmark.py loss
tools/benchmark.py all --data ../shared/data/coco --json > benchmark.json
tools/benchmark.py train --config retinanet_x50_32x4d_fpn.yaml train.batch_size=4 data.resize.short=[256]

docs/BENCHMARKS.md explains each part and line. Where outputs differ, no ratio is printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from detector.commands import count
from detector.dev.benchmark import PARTS

if TYPE_CHECKING:
    from detector.dev.benchmark.measure import Row, Settings

DATA = "../shared/data/coco"
DIFFERENT = 1  # exit code where outputs differ
WITH_CONFIG, WITH_DATA = ("train", "infer"), ("data", "infer", "doctor")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parts = "; ".join(f"{name}: {text}" for name, text in PARTS.items())
    parser.add_argument("part", metavar="PART", help=f"{parts}; all: all of these")
    parser.add_argument(
        "--against",
        choices=["torchvision", "nothing"],
        default="torchvision",
        help="what to compare with (default: torchvision, and pycocotools where its references use that)",
    )
    parser.add_argument("--config", help=f"of {' and '.join(WITH_CONFIG)}: a YAML file, or the name of one in configs/")
    parser.add_argument("--classes", type=count, default=80, help="of train and infer: number of classes (default: 80)")
    parser.add_argument(
        "--data",
        help=f"of data and infer: a folder with images/ and annotations/train.json; of doctor: any (default: {DATA})",
    )
    parser.add_argument("--synthetic", action="store_true", help="generate images instead of reading --data")
    parser.add_argument("--runs", type=count, help="runs of each side (default: 2 to 20, by part)")
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="scale of image sides and of counts, such as 0.1 for a trial (default: 1, as in the documents)",
    )
    parser.add_argument("--json", action="store_true", help="print a list of JSON objects, one per line of the table")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="config values of train and infer, such as train.batch_size=4"
    )


def run(args: argparse.Namespace) -> int:
    check_arguments(args)
    parts = list(PARTS) if args.part == "all" else [args.part]

    import torch

    # Random weights give denormals, which slow convolutions several times on a CPU; set before threads start.
    torch.set_flush_denormal(True)

    from detector.dev.benchmark.measure import measure_part

    settings = make_settings(args, parts)
    rows: list[Row] = []
    for part in parts:
        own: list[Row] = []
        for row in measure_part(part, settings):
            own.append(row)
            # Printed as they come: all parts take an hour.
            print(f"  {describe(row)}", file=sys.stderr, flush=True)
        rows += own
        if not args.json:
            print(table(own), flush=True)
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        print(rows[0].hardware)
    different = [row for row in rows if row.outputs_equal is False]
    for row in different:
        print(f"{row.part}: {row.case}: outputs differ, so there is no ratio", file=sys.stderr)
    return DIFFERENT if different else 0


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse values that are unknown, out of range or without effect."""
    from detector.errors import ConfigError, one_of

    if args.part not in (*PARTS, "all"):
        raise ConfigError(f"command line: {args.part}: no such part; use {one_of([*PARTS, 'all'])}")
    if not 0 < args.scale <= 1:
        raise ConfigError(f"command line: --scale {args.scale}: must be over 0 and at most 1")
    if args.synthetic and args.data:
        raise ConfigError("command line: give either --data or --synthetic")
    for name, parts in (("config", WITH_CONFIG), ("data", WITH_DATA), ("overrides", WITH_CONFIG)):
        given = getattr(args, name)
        if given and args.part not in (*parts, "all"):
            said = given[0] if name == "overrides" else f"--{name}"
            raise ConfigError(f"command line: {said} has no effect on {args.part}, only on {one_of(parts)}; remove it")


def make_settings(args: argparse.Namespace, parts: Sequence[str]) -> Settings:
    from detector.dev.benchmark.generate import IMAGES, TRAIN
    from detector.dev.benchmark.measure import Settings
    from detector.errors import DataError
    from detector.system.device import choose_device

    data = None if args.synthetic or not {*parts} & {*WITH_DATA} else Path(args.data or DATA)
    if data:
        for path in (data,) if parts == ["doctor"] else (data / TRAIN, data / IMAGES):
            if not path.exists():
                raise DataError(f"{path}: does not exist; name the data with --data FOLDER, or use --synthetic")
    return Settings(
        device=str(choose_device(args.device)),
        config=args.config,
        overrides=tuple(args.overrides),
        classes=args.classes,
        data=str(data) if data else None,
        scale=args.scale,
        runs=args.runs,
        against=args.against == "torchvision",
    )


EQUAL = {True: "yes", False: "NO", None: "–"}
HEAD = ["", "seconds", "theirs", "ratio", "added MB", "theirs", "ratio", "held MB"]
HEAD += ["images/s", "theirs", "per core", "equal"]


def table(rows: Sequence[Row]) -> str:
    """The rows of a part for a terminal: medians with quartiles."""
    lines = [(rows[0].part, *HEAD[1:])]
    for row in rows:
        lines.append(
            (
                row.case,
                spread(row.ours_seconds, row.ours_spread),
                spread(row.theirs_seconds, row.theirs_spread),
                number(row.time_ratio, 3),
                number(row.ours_peak_mb),
                number(row.theirs_peak_mb),
                number(row.memory_ratio, 3),
                number(row.ours_held_mb),
                number(row.ours_images_per_second, 1),
                number(row.theirs_images_per_second, 1),
                number(row.ours_images_per_second_per_core, 1),
                EQUAL[row.outputs_equal],
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("   ".join(map(str.ljust, line, widths)).rstrip() for line in lines) + "\n"


def describe(row: Row) -> str:
    """A row as one line of progress."""
    theirs = f", theirs {spread(row.theirs_seconds, row.theirs_spread)}" if row.theirs_seconds else ""
    return f"{spread(row.ours_seconds, row.ours_spread)} s{theirs}, outputs equal: {EQUAL[row.outputs_equal]}"


def spread(median: float | None, quartiles: tuple[float, float] | None) -> str:
    if median is None or quartiles is None:
        return "–"
    return f"{median:.3f} ({quartiles[0]:.3f}–{quartiles[1]:.3f})"


def number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
