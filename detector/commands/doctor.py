"""Find faults of a data set before training: files, boxes, ids, classes, images of train that leak into val.

tools/doctor.py --annotations train.json --images images/
tools/doctor.py --config mine.yaml --html doctor.html
tools/doctor.py --annotations train.json --images images/ --fix train_fixed.json
tools/doctor.py --images classes/train --val-images classes/val --quick
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from detector.commands import add_allow_code

if TYPE_CHECKING:
    from detector.analysis.doctor.columns import Split
    from detector.analysis.doctor.examination import Settings
    from detector.config.schema import Config

FAULTY = 1  # exit code where there are findings of severity error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", help="examine the data of a config: a YAML file, or the name of one in configs/")
    parser.add_argument("--annotations", type=Path, help="a COCO JSON file, or a CSV file of paths and labels")
    parser.add_argument(
        "--images",
        type=Path,
        help="the folder of its images; without --annotations, a folder with one folder per class",
    )
    parser.add_argument("--val-annotations", type=Path, help="annotations of the val split, to look for leaks")
    parser.add_argument(
        "--val-images", type=Path, help="images of the val split (default: --images, with --val-annotations)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="read headers only: finds no damaged files and no duplicates"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--html", type=Path, metavar="OUT", help="write a page with the findings and their images")
    parser.add_argument(
        "--fix", type=Path, metavar="OUT", help="write a cleaned copy of the annotations, and OUT.changes.jsonl"
    )
    parser.add_argument(
        "--allow-loss",
        action="store_true",
        help="with --fix: write the copy even if it loses over 1 %% of the annotations, or a whole class",
    )
    add_allow_code(parser)
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="with --config: config values, such as data.resize.long=512"
    )


def run(args: argparse.Namespace) -> int:
    check_arguments(args)
    splits, settings = _from_config(args) if args.config else _from_paths(args)

    from detector.analysis.doctor.examination import examine
    from detector.analysis.doctor.fixing import changes_path, fix_split, fix_targets, write_fix
    from detector.analysis.doctor.table import as_object, format_report

    for split in splits:
        if split.notice:
            print(split.notice, file=sys.stderr)
    targets = fix_targets(splits, args.fix) if args.fix else []
    report = examine(splits, settings, args.quick)
    if args.html:
        from detector.analysis.doctor.page import write_report

        write_report(report, args.html)
    fixes = [fix_split(split, facts) for (split, _), facts in zip(targets, report.files, strict=False)]
    losing = [
        (fix, split) for fix, (split, _) in zip(fixes, targets, strict=True) if fix.loses_much and not args.allow_loss
    ]
    written = [] if losing else [(fix, target) for fix, (_, target) in zip(fixes, targets, strict=True)]
    for fix, target in written:
        write_fix(fix, target)
    if args.json:
        print(json.dumps(as_object(report), ensure_ascii=False))
    else:
        print(format_report(report))
        for fix, target in written:
            print(f"{target}: written; {fix.summary()} ({changes_path(target)})")
        if args.html:
            print(f"{args.html}: written")
    if losing:
        lost = "; ".join(f"of {split.source}, {fix.loss()} ({fix.summary()})" for fix, split in losing)
        remedy = "correct them, or give --allow-loss to write the copy without them"
        print(f"error: NOTHING IS WRITTEN: {lost}; {remedy}", file=sys.stderr)
    return FAULTY if losing or report.count("error") else 0


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse contradictions and options without effect."""
    from detector.errors import ConfigError

    paths = (args.annotations, args.images, args.val_annotations, args.val_images)
    if args.config and any(paths):
        raise ConfigError("command line: give either --config or --annotations and --images")
    if not args.config and not args.images:
        if args.annotations:
            raise ConfigError(f"command line: --annotations {args.annotations}: add --images, the folder of its images")
        raise ConfigError(
            "command line: give --config, or --images (one folder per class) with or without --annotations"
        )
    if (args.val_annotations or args.val_images) and bool(args.annotations) != bool(args.val_annotations):
        missing = "--annotations" if args.val_annotations else "--val-annotations"
        raise ConfigError(
            f"command line: give {missing} too: both splits have annotations, or both have one folder per class"
        )
    if args.allow_loss and not args.fix:
        raise ConfigError("command line: --allow-loss has no effect without --fix OUT; add it, or remove --allow-loss")
    if args.overrides and not args.config:
        raise ConfigError(f"command line: {args.overrides[0]}: overrides need --config")


def _from_paths(args: argparse.Namespace) -> tuple[list[Split], Settings]:
    from detector.analysis.doctor.examination import Settings

    splits = [_open("train", args.annotations, args.images)]
    if args.val_annotations or args.val_images:
        splits.append(_open("val", args.val_annotations, args.val_images or args.images))
    return splits, Settings()


def _open(name: str, annotations: Path | None, images: Path, config: Config | None = None) -> Split:
    """A split with boxes or with labels; without a config, the annotation file's name tells which."""
    from detector.analysis.doctor.reading import read_coco, read_labelled
    from detector.data.formats.recognition import naming_format, unread, what_it_is
    from detector.data.listing import check_folder
    from detector.tasks import get_core

    check_folder(images, f"data.{name}.images" if config else "--images" if name == "train" else "--val-images")
    source = annotations or images
    if annotations is None:
        is_labelled = True
    else:
        is_labelled = get_core(config.task).FILE_FORMAT == "csv" if config else annotations.suffix.lower() == ".csv"
    with naming_format(source):
        if is_labelled:
            classes, multi_label = (config.data.classes, config.model.multi_label) if config else (None, True)
            split = read_labelled(name, annotations, images, classes, multi_label)
        else:
            split = read_coco(name, annotations, images)
    is_odd = split.faults or (len(split.image) > 0 and not split.is_sound.any())
    if is_odd and (what := what_it_is(source)):
        raise unread(source, what)
    return split


def _from_config(args: argparse.Namespace) -> tuple[list[Split], Settings]:
    from detector.analysis.doctor.columns import hold_back_val
    from detector.analysis.doctor.examination import Settings
    from detector.config.loader import load_config, refuse_auto
    from detector.errors import ConfigError
    from detector.tasks import get_core

    config = load_config(args.config, args.overrides, args.allow_code)
    refuse_auto(config, args.config)
    needs_annotations = get_core(config.task).FOLDER_FORMAT is None
    splits = []
    for name, split in (("train", config.data.train), ("val", config.data.val)):
        if split is None:
            continue
        if split.images is None or (split.annotations is None and needs_annotations):
            if split.images or split.annotations:
                missing = "annotations" if split.images else "images"
                raise ConfigError(f"{args.config}: data.{name}.{missing} is not set")
            continue
        splits.append(_open(name, Path(split.annotations) if split.annotations else None, Path(split.images), config))
    if not splits:
        raise ConfigError(f"{args.config}: names no data; give data.train.images=DIR, or --images")
    if config.data.val_share is not None and len(splits) == 1 and not args.fix:  # --fix is of a whole file
        splits = hold_back_val(splits[0], config.data.val_share, config.seed)
    data, model = config.data, config.model
    return splits, Settings(
        data.resize,
        model.in_channels,
        model.predict.max_detections,
        data.exif,
        data.max_value,
        data.allow_outside,
    )
