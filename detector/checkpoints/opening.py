"""The one way to a checkpoint, of this package or of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detector.checkpoints.checkpoint import check_format
from detector.checkpoints.finding import find_checkpoint
from detector.checkpoints.foreign.importing import import_content
from detector.files.tensors import read_file


def open_checkpoint(source: str | Path) -> dict[str, Any]:
    """The content of a checkpoint of ours, or of what :func:`import_checkpoint` makes of another package's."""
    path = find_checkpoint(source)
    value = read_file(path)
    if isinstance(value, dict) and "format" in value:
        return check_format(value, path)
    return import_content(value, path, None, None, ()).content
