"""Errors that the user can fix: each message names the file, the value and the remedy.

Commands print them as one line on stderr and exit with the error's code; nothing else is caught.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

MOST_COMPARED = 10_000  # names beside a missing one


class DetectorError(Exception):
    """A command prints it as one line instead of a traceback."""

    exit_code = 2  # input that the user can fix


class ConfigError(DetectorError):
    """A config file or a command-line override is wrong."""


class DataError(DetectorError):
    """An annotation file, an image or a results file is wrong."""


class WeightsError(DetectorError):
    """A checkpoint or a weight file is missing, broken or for another model."""


class StorageError(DetectorError):
    """A file could not be written: the disk is full, read-only, over its quota, or gone. Earlier files are intact."""

    exit_code = 74  # EX_IOERR of sysexits.h: the input is fine; --resume continues once there is room


class GpuMemoryError(DetectorError):
    """A GPU has too little memory for what was asked; what was saved before stands."""


class RankLostError(DetectorError):
    """Another rank has ended, so this one ends too."""

    exit_code = 76  # EX_PROTOCOL: the cause is in the other rank's message


class NonFiniteError(DetectorError):
    """Training met a loss or a gradient that is not finite; the last good state was saved."""


def unreadable(path: Path, error: Exception, pattern: str) -> str:
    """Why ``path`` cannot be read; for a folder, suggest its first file that matches ``pattern``."""
    if isinstance(error, IsADirectoryError):
        names = sorted(file.name for file in path.glob(pattern))
        return "is a folder; give a file" + (f", as {path / names[0]}" if names else "")
    near = near_path(path) if isinstance(error, FileNotFoundError) else ""
    return f"cannot be read: {getattr(error, 'strerror', None) or error}{near}"


def near_path(path: str | Path, others: Iterable[str] = ()) -> str:
    """``"; did you mean data/train.json?"`` of a missing ``path``, by what is beside it, or by ``others``; or empty."""
    missing = path = Path(path)
    if os.path.exists(path):  # noqa: PTH110 (Path.exists may raise)
        return ""  # it is only something else than was expected
    while missing != missing.parent and not os.path.isdir(missing.parent):  # noqa: PTH112 (Path.is_dir may raise)
        missing = missing.parent
    known = {name.casefold(): name for name in others}
    # ValueError: a path with a NUL in it
    with contextlib.suppress(OSError, ValueError), os.scandir(missing.parent) as entries:
        for name in (entry.name for entry in islice(entries, MOST_COMPARED) if entry.name != missing.name):
            known[name.casefold()] = str(missing.parent / name)
    near = difflib.get_close_matches(missing.name.casefold(), known, n=1)
    whole = Path(known[near[0]], path.relative_to(missing)) if near else path
    return f"; did you mean {whole if os.path.exists(whole) else known[near[0]]}?" if near else ""  # noqa: PTH110


def counted(number: int, thing: str) -> str:
    """``"1 image"``, ``"1,000 images"``, ``"2 classes"``."""
    return f"{number:,} {thing}{'' if number == 1 else 'es' if thing.endswith(('s', 'x')) else 's'}"


def kind_of(value: object) -> str:
    """What a document holds, in the words of JSON and YAML."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def one_of(choices: Iterable[object]) -> str:
    """``"a, b or c"`` for a message that lists the choices."""
    names = [str(choice) for choice in choices]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" or {names[-1]}"
