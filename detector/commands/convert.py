"""Write a data set's boxes in another format, for training elsewhere or for a labelling tool.

tools/convert.py data.yaml coco.json --to coco
tools/convert.py annotations.json yolo/ --to yolo --images images/

YOLO and Pascal VOC are written as a folder that links to the images, the other formats as one file. Boxes alone are
converted: polygons and masks are not kept. What the new format cannot hold is counted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from detector.commands import add_reading, source_of

if TYPE_CHECKING:
    from detector.data.formats.annotations import Annotations
    from detector.data.formats.labels import Labels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="IN", help="annotations: a file or a folder")
    parser.add_argument("target", type=Path, metavar="OUT", help="a new file, or a new folder for YOLO and VOC")
    add_options(parser)
    parser.add_argument("--images", type=Path, metavar="DIR", help="the folder of the images, where IN does not say it")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that :func:`read` and :func:`write` take."""
    parser.add_argument("--to", required=True, metavar="FORMAT", help="coco, yolo, voc, csv, cvat or labelstudio")
    parser.add_argument(
        "--part", default="train", choices=["train", "val", "test"], help="of a data set with several (default: train)"
    )
    add_reading(parser)


def run(args: argparse.Namespace) -> int:
    from detector.data.formats.labels import labels_of

    check_target(args)
    annotations = read(args.source, args.images, args)
    write(labels_of(annotations), len(annotations), args, args.source)
    return 0


def check_target(args: argparse.Namespace) -> None:
    """Raises for a format that does not exist, and for a target that does."""
    from detector.data.formats.writing import WRITERS
    from detector.errors import ConfigError, one_of
    from detector.system.atomic import check_new, make_folder

    if args.to not in WRITERS:
        raise ConfigError(f"command line: --to: {args.to!r} is not a format; use {one_of(WRITERS)}")
    check_new(args.target)
    make_folder(args.target.parent)


def read(source: Path, images: Path | None, args: argparse.Namespace) -> Annotations:
    """The annotations of a source, with the sizes of all images."""
    from detector.data.detection import with_sizes
    from detector.data.formats.reading import read_annotations
    from detector.errors import counted

    annotations = read_annotations(source_of(args, source, images, args.part))
    if annotations.notice:
        print(annotations.notice, file=sys.stderr)
    if args.to != "csv":
        annotations = with_sizes(annotations, annotations.images, args.exif, args.allow_outside)
    empty = (annotations.boxes_xywh[:, 2:] <= 0).any(dim=1).nonzero()[:, 0].tolist()
    if empty:
        print(
            f"warning: {source}: {counted(len(empty), 'box')} without a positive width and height (first:"
            f" {annotations.describe(empty[0])}); detector doctor shows and repairs them",
            file=sys.stderr,
        )
    return annotations


def write(labels: Labels, images: int, args: argparse.Namespace, source: object) -> None:
    """Write the target of ``source`` and print what it holds, and what it cannot hold."""
    from detector.data.formats.labels import describe_lost
    from detector.data.formats.writing import WRITERS, check_names
    from detector.errors import counted

    writer = WRITERS[args.to]
    boxes = 0
    for image in labels:
        boxes += len(image.labels)
    check_names(writer, (image.name for image in labels), source)
    lost = describe_lost(writer.write(labels, args.target))
    holds = f"{counted(images, 'image')}, {counted(boxes, 'box')} of {counted(len(labels.categories), 'class')}"
    print(f"{holds}: {args.target}")
    if lost:
        print(f"{args.to} cannot hold: {lost}")
    if writer.images and labels.images is None:
        print(f"not linked, as their folder is not known: the images; put them into {args.target / writer.images}")
