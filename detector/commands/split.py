"""Split a data set into one part to train on and one to evaluate on, into three with a test part, or into folds.

tools/split.py annotations.json --output split/
tools/split.py annotations.json --val 0.1 --test 0.1 --seed 3 --output split/
tools/split.py data.yaml --folds 5 --group '(.*)_frame' --output folds/

File names and the seed alone decide which images go where, as with data.val_share in a config: adding images later
moves no others. (Folds are made alike in size and classes, so there it may.) --group keeps images together whose names
agree in what a regular expression matches: the frames of a video, the tiles of an image.

COCO JSON and CSV files are split into such files, with everything else in them kept. Of YOLO and Pascal VOC, lists of
the images are written, for YOLO with a data.yaml.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from detector.commands import add_reading, count, source_of

if TYPE_CHECKING:
    import numpy as np

    from detector.data.formats.annotations import Annotations

LISTED = 20  # classes with their own row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("annotations", type=Path, help="a COCO JSON or CSV file, YOLO's data.yaml, a folder of VOC")
    parser.add_argument(
        "--val",
        type=_fraction,
        default=0.2,
        metavar="FRACTION",
        help="fraction of the images that goes to val (default: 0.2)",
    )
    parser.add_argument("--test", type=_fraction, metavar="FRACTION", help="fraction that goes to a test part")
    parser.add_argument(
        "--folds", type=lambda text: count(text, least=2), metavar="K", help="K folds instead, each val of one fold"
    )
    parser.add_argument(
        "--group", metavar="REGEX", help="keep images together whose names agree in what this matches (in its groups)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of images (default: 0)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="the folder of the images, where it is needed")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="the folder for the parts")
    add_reading(parser)


def run(args: argparse.Namespace) -> int:
    import numpy as np

    from detector.data.formats.parts import PART_WRITERS
    from detector.data.formats.reading import detect, read_annotations
    from detector.data.split import group, split_folds, split_parts
    from detector.errors import ConfigError
    from detector.system.atomic import check_new, make_folder

    if args.val + (args.test or 0) >= 1:
        raise ConfigError("command line: --val and --test leave nothing to train on; give fractions that add up to < 1")
    source = source_of(args, args.annotations, args.images)
    annotations = read_annotations(source)
    if annotations.notice:
        print(annotations.notice, file=sys.stderr)
    names = [annotations.file_name(index) for index in range(len(annotations))]
    keys, group_of = group(args.annotations, names, args.group)
    thing = "group" if args.group else "image"
    image, label = group_of[annotations.image_index().numpy()], annotations.labels.numpy()
    if args.folds:
        sizes = np.bincount(group_of)
        fold = split_folds(args.annotations, keys, sizes, image, label, args.folds, args.seed, thing)[group_of]
        masks = {f"fold{number + 1}/val": fold == number for number in range(args.folds)}
        parts = {name.replace("val", "train"): ~is_val for name, is_val in masks.items()} | masks
    else:
        part = split_parts(args.annotations, keys, image, label, args.val, args.test or 0, args.seed, thing)[group_of]
        parts = masks = {
            name: part == number for number, name in enumerate(["train", "val", "test"][: 2 + bool(args.test)])
        }
    form = detect(source)
    writer = PART_WRITERS[form]
    files = {name: args.output / f"{name}{writer.suffix}" for name in parts}
    paths = {name: file.parent / writer.folder / file.name for name, file in files.items()}
    check_new(*paths.values())
    for path in paths.values():
        make_folder(path.parent)
    writer.write(source, annotations, {paths[name]: is_in for name, is_in in parts.items()})
    print(describe(annotations, masks, paths, args.group and len(keys)))
    if form == "csv":
        print(f"\nfile names are relative to {annotations.images}: give it as data.train.images and data.val.images")
    return 0


def describe(annotations: Annotations, parts: dict[str, np.ndarray], paths: dict[str, Path], groups: int | None) -> str:
    """Counts of all parts and of their classes, and the classes that a part lacks."""
    import numpy as np

    from detector.reports.pages import Table

    image, labels = annotations.image_index().numpy(), annotations.labels.numpy()
    files = [[str(paths[name]), int(is_in.sum()), int(is_in[image].sum())] for name, is_in in parts.items()]
    text = f"{groups:,} groups of images\n" if groups else ""
    text += Table(["file", "images", "annotations"], files).as_text()
    counts = [np.bincount(labels[is_in[image]], minlength=len(annotations.categories)) for is_in in parts.values()]
    rows = [[category.name, *map(int, own)] for category, *own in zip(annotations.categories, *counts, strict=True)]
    names = [name.removesuffix("/val") for name in parts]
    if len(rows) <= LISTED:
        text += "\n\n" + Table(["class", *names], rows).as_text()
    for number, name in enumerate(names, start=1):
        if lacking := [row[0] for row in rows if any(row[1:]) and not row[number]]:
            listed = ", ".join(map(str, lacking[:LISTED])) + (", …" if len(lacking) > LISTED else "")
            text += f"\n\nnot in {name}, as they have too few images: {listed}"
    return text


def _fraction(text: str) -> float:
    try:
        fraction = float(text)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return fraction
