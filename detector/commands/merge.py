"""Join the boxes of several data sets, in any formats, into one; classes are joined by name.

tools/merge.py a.json b.json both.json --to coco
tools/merge.py north=north/data.yaml south=south/labels.csv all.json --to coco

File names must differ. NAME=IN puts a folder NAME before the file names of a data set, so the images of ``north`` are
then expected in a folder ``north`` beside those of ``south``. The options of reading hold for all of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from detector.commands.convert import add_options, check_target, read, write

if TYPE_CHECKING:
    from detector.data.formats.annotations import Annotations


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", metavar="[NAME=]IN", help="annotations: files or folders")
    parser.add_argument("target", type=Path, metavar="OUT", help="a new file, or a new folder for YOLO and VOC")
    add_options(parser)


def run(args: argparse.Namespace) -> int:
    from detector.data.formats.labels import join_labels, labels_of

    check_target(args)
    parts = [(folder, read(source, None, args)) for folder, source in map(_source, args.sources)]
    check_distinct(parts)
    joined = join_labels([(folder, labels_of(own)) for folder, own in parts])
    write(joined, sum(len(own) for _, own in parts), args, ", ".join(args.sources))
    return 0


def _source(text: str) -> tuple[str, Path]:
    """The folder and the path of ``NAME=IN``, or of ``IN``."""
    from detector.data.names import leads_out
    from detector.errors import ConfigError

    folder, found, path = text.partition("=")
    if not found or Path(text).exists():
        return "", Path(text)
    if leads_out(folder):
        raise ConfigError(f"command line: {text}: {folder} leads out of the folder of images; give a folder's name")
    return folder, Path(path)


def check_distinct(parts: list[tuple[str, Annotations]]) -> None:
    """Raises where two images of the joined set would have one name."""
    from detector.errors import DataError
    from detector.system.json_stream import show_text

    taken: dict[str, Annotations] = {}
    for folder, own in parts:
        for index in range(len(own)):
            name = f"{folder}/{own.file_name(index)}" if folder else own.file_name(index)
            if (other := taken.setdefault(name, own)) is not own:
                raise DataError(
                    f"{own.path}: {show_text(name)} is in {other.path} too; give NAME=IN to put each set's images into"
                    " a folder of its own, or remove one of them"
                )
