"""Errors that the user can fix: each message names the file, the value and the remedy.

Commands print them as one line on stderr and exit with the error's code; nothing else is caught.
"""

from __future__ import annotations

from pathlib import Path


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
    return f"cannot be read: {getattr(error, 'strerror', None) or error}"


def one_of(choices: object) -> str:
    """``"a, b or c"`` for a message that lists the choices."""
    names = [str(choice) for choice in choices]  # type: ignore[attr-defined]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" or {names[-1]}"
