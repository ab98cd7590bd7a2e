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

from detector.commands import add_allow_code, add_reading, source_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from detector.analysis.doctor.columns import Split
    from detector.analysis.doctor.examination import Settings
    from detector.config.schema import Config

FAULTY = 1  # exit code where there are findings of severity error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", help="examine the data of a config: a YAML file, or the name of one in configs/")
    parser.add_argument("--annotations", type=Path, help="annotations: COCO, YOLO, VOC or CSV; or a CSV file of labels")
    parser.add_argument(
        "--images",
        type=Path,
        help="the folder of its images; without --annotations, one folder per class, or with labels beside them",
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
    add_reading(parser)
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
            print(f"{target}: written{fix.form}; {fix.summary()} ({changes_path(target)})")
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
    if not args.config and not args.images and not args.annotations:
        raise ConfigError("command line: give --config, --annotations, or --images, which may be one folder per class")
    if (args.val_annotations or args.val_images) and bool(args.annotations) != bool(args.val_annotations):
        missing = "--annotations" if args.val_annotations else "--val-annotations"
        raise ConfigError(
            f"command line: give {missing} too: both splits have annotations, or both have one folder per class"
        )
    if args.allow_loss and not args.fix:
        raise ConfigError("command line: --allow-loss has no effect without --fix OUT; add it, or remove --allow-loss")
    if args.config and (args.format, args.one_based, args.exif, args.allow_outside) != ("auto", "auto", "auto", False):
        raise ConfigError(
            "command line: with --config, annotations are read as data.format, data.one_based, data.exif and"
            " data.allow_outside say; give these as KEY=VALUE"
        )
    if args.overrides and not args.config:
        raise ConfigError(f"command line: {args.overrides[0]}: overrides need --config")


def _from_paths(args: argparse.Namespace) -> tuple[list[Split], Settings]:
    from detector.analysis.doctor.examination import Settings
    from detector.data.formats.reading import has_part
    from detector.data.formats.recognition import formats_of

    images = args.val_images or args.images
    splits = [_open("train", args.annotations, args.images, args)]
    if args.val_annotations or args.val_images:
        splits.append(_open("val", args.val_annotations, images, args))
    elif splits[0].has_boxes:
        path = args.annotations or args.images
        if formats_of(path) and has_part(source_of(args, path, None), "val"):
            splits.append(_open("val", args.annotations, args.images, args))
    return splits, Settings(exif=args.exif, allow_outside=args.allow_outside)


def _open(name: str, annotations: Path | None, images: Path | None, args: argparse.Namespace) -> Split:
    """A split with boxes or with labels: what the paths hold tells which."""
    from detector.analysis.doctor.reading import read_boxes
    from detector.data.formats.recognition import formats_of
    from detector.data.listing import check_folder

    if images:
        check_folder(images, "--images" if name == "train" else "--val-images")
    source = annotations or images
    assert source is not None
    is_open = args.format == "auto" and not formats_of(source)
    if images and is_open and (annotations is None or annotations.suffix.lower() == ".csv"):
        return _open_labelled(name, annotations, images, allow_outside=args.allow_outside)
    return _checked(read_boxes(name, source_of(args, source, images if annotations else None, name)))


def _open_labelled(
    name: str, annotations: Path | None, images: Path, config: Config | None = None, allow_outside: bool = False
) -> Split:
    from detector.analysis.doctor.reading import read_labelled
    from detector.data.formats.recognition import naming_format
    from detector.data.listing import check_folder

    check_folder(images, f"data.{name}.images" if config else "--images" if name == "train" else "--val-images")
    classes, multi_label = (
        (list(config.data.class_members) or None, config.model.multi_label) if config else (None, True)
    )
    with naming_format(annotations or images):
        allow_outside = config.data.allow_outside if config else allow_outside
        return _checked(read_labelled(name, annotations, images, classes, multi_label, allow_outside))


def _open_sources(config: Config, name: str, members: Mapping[str, Sequence[str]]) -> list[Split]:
    """The splits with boxes of ``data.train`` or ``data.val``: none, one, or one for each of several sets.

    They have the classes of ``members`` (``data.classes``), or all if it is empty.
    """
    from detector.analysis.doctor.columns import with_classes
    from detector.analysis.doctor.reading import read_boxes
    from detector.config.schema import SplitConfig
    from detector.data.detection import has_val, sources_of
    from detector.data.formats.joining import check_members
    from detector.data.split import images_folder, split_to_read

    data = config.data
    if data.train == SplitConfig() if name == "train" else data.val_share is not None or not has_val(data):
        return []
    sources, _ = sources_of(data, name)
    read_name, given = split_to_read(data, name)
    for own in given.each:
        if own.images:
            images_folder(data, read_name, own)
    names = [f"{name} {number}" if len(sources) > 1 else name for number in range(1, len(sources) + 1)]
    splits = [_checked(read_boxes(own, source)) for own, source in zip(names, sources, strict=True)]
    if not members:
        return splits
    if name == "train":
        check_members([split.rows for split in splits if split.rows], members)
    return [with_classes(split, members) for split in splits]


def _open_masks(config: Config, name: str) -> list[Split]:
    """The splits with masks of ``data.train`` or ``data.val``: none, one, or both where a part is held back."""
    from detector.analysis.doctor.masks import read_masks

    data = config.data
    if name == "val" and (data.val_share is not None or data.val is None or data.val.annotations is None):
        return []
    return read_masks(config, name)


def _checked(split: Split) -> Split:
    """The split; raises where all that is wrong with it is its format."""
    from detector.data.formats.recognition import SUPPORTED, unread, what_it_is

    is_odd = split.faults or (len(split.image) > 0 and not split.is_sound.any())
    if (
        is_odd
        and (what := what_it_is(split.source))
        and not (split.has_boxes and what.split("folder of ")[-1] in SUPPORTED)
    ):
        raise unread(split.source, what, split.has_boxes)
    return split


def _with_long_side(config: Config) -> Config:
    """The config with the input size that training would derive; other values that may be auto do not matter here."""
    from detector.errors import DataError
    from detector.training.derived import derive

    if "data.resize.long" not in config.auto:
        return config
    sound = config.data.model_copy(update={"invalid_boxes": "drop"})
    try:
        derived, lines = derive(config.model_copy(update={"data": sound, "auto": ["data.resize.long"]}))
    except DataError:  # the examination says what is wrong
        lines = ["data.resize.long: the default is assumed, as the data cannot be read to derive it"]
        derived = config
    print("\n".join(lines), file=sys.stderr)
    return config.model_copy(update={"data": config.data.model_copy(update={"resize": derived.data.resize})})


def _from_config(args: argparse.Namespace) -> tuple[list[Split], Settings]:
    from detector.analysis.doctor.columns import hold_back_val
    from detector.analysis.doctor.examination import Settings
    from detector.config.loader import load_config
    from detector.errors import ConfigError
    from detector.tasks import get_core

    config = _with_long_side(load_config(args.config, args.overrides, args.allow_code))
    splits = []
    core = get_core(config.task)
    for name, split in (("train", config.data.train), ("val", config.data.val)):
        if core.FILE_FORMAT == "masks":
            splits += _open_masks(config, name)
        elif core.FOLDER_FORMAT is None:
            # --fix is of a whole file.
            splits += _open_sources(config, name, {} if args.fix else config.data.class_members)
        elif split is not None and split.images:
            annotations = Path(split.annotations) if split.annotations else None
            splits.append(_open_labelled(name, annotations, Path(split.images), config))
        elif split is not None and split.annotations:
            raise ConfigError(f"{args.config}: data.{name}.images is not set")
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
        data.tiles.size,
    )
