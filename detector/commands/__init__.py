"""The commands: each module has ``add_arguments(parser)`` and ``run(args)``.

Heavy imports are inside ``run``, so that ``--help`` is fast.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from detector.errors import ConfigError

if TYPE_CHECKING:
    from detector.data.formats.building import Source

READABLE = ("auto", "coco", "yolo", "voc", "csv")
RESUMABLE = 75  # exit code after Ctrl-C or SIGTERM: everything is saved (EX_TEMPFAIL of sysexits.h)


def count(text: str, least: int = 1) -> int:
    """The value of an option that is a number of things."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return int(text)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """How annotations are read, for :func:`source_of`: what a config's section ``data`` says, by the same names."""
    group = parser.add_argument_group("reading", "as data.format, one_based, exif and allow_outside of a config")
    group.add_argument(
        "--from",
        default="auto",
        dest="format",
        choices=READABLE,
        help="format of the annotations (default: auto)",
    )
    group.add_argument(
        "--one-based",
        default="auto",
        choices=["auto", "true", "false"],
        help="Pascal VOC: whether the first pixel is 1 (default: auto, unless a corner is under 1)",
    )
    group.add_argument(
        "--exif",
        default="auto",
        choices=["auto", "stored", "upright"],
        help="the frame of the images that boxes lie in, where no size is annotated (default: auto)",
    )
    group.add_argument(
        "--allow-outside", action="store_true", help="allow file names that lead out of the folder, absolute or by '..'"
    )


def source_of(args: argparse.Namespace, path: Path, images: Path | None, part: str = "train") -> Source:
    """Annotations as the options of :func:`add_reading` say."""
    from detector.data.formats.building import Source
    from detector.data.formats.reading import detect
    from detector.data.listing import check_folder

    if images:
        check_folder(images, "--images")
    one_based = None if args.one_based == "auto" else args.one_based == "true"
    source = Source(path, images, args.format, part, one_based, args.exif, args.allow_outside)
    if one_based is not None and (found := detect(source)) != "voc":
        raise ConfigError(
            f"command line: --one-based is of Pascal VOC, but {path} is read as {found}; remove it (of several sets,"
            " convert that of Pascal VOC first)"
        )
    return source


def add_allow_code(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help="import and run your own parts that are named as package.module:name; only for configs and checkpoints"
        " that you trust",
    )


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse what is not KEY=VALUE: most often file names, to which the shell has expanded a pattern."""
    for override in overrides:
        if "=" not in override:
            if Path(override[:200]).exists():
                raise ConfigError(
                    f"command line: {override}: is one file too many; quote a pattern, as in '*.jpg', that the shell"
                    " would expand, or name the option that it belongs to"
                )
            hint = "; quote a value with spaces, as 'data.classes=[a, b]'" if override[-1:] in "]}" else ""
            raise ConfigError(f"command line: {override}: is not KEY=VALUE, as in train.epochs=12{hint}")


class Warnings(io.TextIOBase):
    """``--quiet``: a stream that passes on only the lines of warnings and errors."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.line = stream, ""

    def write(self, text: str) -> int:
        *lines, self.line = (self.line + text).split("\n")
        for line in lines:
            if line.startswith(("warning: ", "error: ")):
                self.stream.write(line + "\n")
        return len(text)

    def fileno(self) -> int:
        return self.stream.fileno()
