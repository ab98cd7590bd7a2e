"""The errors that a person can fix: each message names the file, the value and the remedy.

The commands turn them into one line on stderr and the error's exit code; nothing else is caught.
"""

from __future__ import annotations

from pathlib import Path


class DetectorError(Exception):
    """What a command prints as one line instead of a traceback."""

    exit_code = 2  # input that a person can fix


class ConfigError(DetectorError):
    """A config file or a command-line override is wrong."""


class DataError(DetectorError):
    """An annotation file, an image or a results file is wrong."""


class WeightsError(DetectorError):
    """A checkpoint or a weight file is missing, broken or of another model."""


class StorageError(DetectorError):
    """A file could not be written: the disk is full, read-only, over its quota, or gone. What was saved stands."""

    exit_code = 74  # EX_IOERR of sysexits.h: not the input's fault; --resume continues once there is room


class RankLostError(DetectorError):
    """Another rank has ended, and this one with it."""

    exit_code = 76  # EX_PROTOCOL: of interest is what the other rank says


class NonFiniteError(DetectorError):
    """Training met a loss or a gradient that is not finite; the last good state was saved."""


def unreadable(path: Path, error: Exception, pattern: str) -> str:
    """What the system's error means; of a folder, the first file in it by ``pattern``, which may be meant."""
    if isinstance(error, IsADirectoryError):
        names = sorted(file.name for file in path.glob(pattern))
        return "is a folder; give a file" + (f", as {path / names[0]}" if names else "")
    return f"cannot be read: {getattr(error, 'strerror', None) or error}"


def one_of(choices: object) -> str:
    """``"a, b or c"`` for a message that lists what is known."""
    names = [str(choice) for choice in choices]  # type: ignore[attr-defined]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" or {names[-1]}"
