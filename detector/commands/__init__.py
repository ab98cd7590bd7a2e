"""The commands: each module has ``add_arguments(parser)`` and ``run(args)``.

Heavy imports stand inside ``run``, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from detector.errors import ConfigError


def count(text: str) -> int:
    """The value of an option that says how many: a whole number, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def add_allow_code(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help="import and run the model's parts that are named as package.module:name; for configs and checkpoints that"
        " you trust",
    )


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse what was meant as something else: most often a pattern that the shell wrote out as names of files."""
    for override in overrides:
        if "=" not in override:
            if Path(override[:200]).exists():
                raise ConfigError(
                    f"command line: {override}: is one file too many; quote a pattern, as in '*.jpg', that the shell"
                    " would write out, or name the option that it belongs to"
                )
            raise ConfigError(f"command line: {override}: is not KEY=VALUE, as in train.epochs=12")


class Warnings(io.TextIOBase):
    """``--quiet``: a stream that passes on the lines of warnings and errors alone."""

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
