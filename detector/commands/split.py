"""Split a COCO JSON file into one to train on and one to evaluate on.

tools/split.py annotations.json --output split/
tools/split.py annotations.json --val 0.1 --seed 3 --output split/

File names and the seed alone decide which images go where, as with data.val_share in a config: adding images later
moves no others. Everything else in the file is kept in both.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from detector.data.detection import Annotations

LISTED = 20  # classes with their own row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("annotations", type=Path, help="a COCO JSON file")
    parser.add_argument(
        "--val",
        type=_fraction,
        default=0.2,
        metavar="FRACTION",
        help="fraction of the images that goes to val (default: 0.2)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of images (default: 0)")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="the folder for train.json and val.json"
    )


def run(args: argparse.Namespace) -> int:
    from detector.analysis.doctor.reading import read_json
    from detector.data.detection import held_back
    from detector.data.formats.reading import read_annotations
    from detector.errors import ConfigError
    from detector.files.atomic import atomic_write, make_folder

    paths = [args.output / "train.json", args.output / "val.json"]
    for path in paths:
        if path.exists():
            raise ConfigError(f"{path}: exists already; give another --output")
    annotations = read_annotations(args.annotations)
    is_val = held_back(annotations, args.val, args.seed)
    tree = read_json(args.annotations)
    make_folder(args.output)
    for path, is_chosen in zip(paths, (~is_val, is_val), strict=True):
        with atomic_write(path) as file:
            json.dump(select(tree, is_chosen), file)
    print(describe(annotations, is_val, paths))
    return 0


def select(tree: dict[str, Any], is_chosen: np.ndarray) -> dict[str, Any]:
    """A COCO file's tree with only the images of a mask [I] and their annotations."""
    images = [image for image, chosen in zip(tree["images"], is_chosen, strict=True) if chosen]
    ids = {_key(image["id"]) for image in images}
    rows = [row for row in tree["annotations"] if _key(row["image_id"]) in ids]
    return tree | {"images": images, "annotations": rows}


def _key(image_id: Any) -> str:
    """The same for an id that is written as 1, 1.0 or "1"."""
    return str(int(image_id) if isinstance(image_id, float) else image_id)


def describe(annotations: Annotations, is_val: np.ndarray, paths: list[Path]) -> str:
    """Counts of both parts and of their classes, and the classes that val lacks."""
    import numpy as np

    from detector.reports.pages import Table

    image, labels = annotations.image_index().numpy(), annotations.labels.numpy()
    in_val = is_val[image]
    files = [
        [str(path), int(chosen.sum()), int(chosen[image].sum())]
        for path, chosen in zip(paths, (~is_val, is_val), strict=True)
    ]
    text = Table(["file", "images", "annotations"], files).as_text()
    counts = [np.bincount(labels[part], minlength=len(annotations.categories)) for part in (~in_val, in_val)]
    rows = [
        [category.name, int(train), int(val)]
        for category, train, val in zip(annotations.categories, *counts, strict=True)
    ]
    if len(rows) <= LISTED:
        text += "\n\n" + Table(["class", "train", "val"], rows).as_text()
    if lacking := [name for name, train, val in rows if train and not val]:
        names = ", ".join(map(str, lacking[:LISTED])) + (", …" if len(lacking) > LISTED else "")
        text += f"\n\nnot in val, as they have too few images: {names}"
    return text


def _fraction(text: str) -> float:
    try:
        fraction = float(text)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return fraction
