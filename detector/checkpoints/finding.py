"""Which file a person means by a checkpoint."""

from __future__ import annotations

import difflib
import os
import sys
from pathlib import Path

from detector.errors import WeightsError
from detector.files.tensors import resolve


def find_checkpoint(source: str | Path) -> Path:
    """The file that ``source`` means, here or in another package: a path, a run's folder, a URL or torchvision's name.

    Of a run it is ``best.pt``, else ``last.pt``, and a line says so. Raises
    :class:`~detector.errors.WeightsError` for anything else.
    """
    if os.path.isdir(source):  # noqa: PTH112 (Path.is_dir raises for a name that is too long)
        files = [Path(source) / name for name in ("best.pt", "last.pt")]
        found = next((file for file in files if file.is_file()), None)
        if found is None:
            raise WeightsError(
                f"{source}: is a folder without best.pt and last.pt; give a run's folder or a checkpoint"
            )
        if os.environ.get("RANK", "0") == "0":  # once, of all that torchrun started
            print(f"{source}: is a folder, of which {found.name} is taken", file=sys.stderr)
        return found
    if kind := _KINDS.get(Path(source).suffix.lower()):
        raise WeightsError(f"{source}: is {kind}, not a checkpoint; give one, as runs/NAME/best.pt, or a run's folder")
    path = resolve(str(source))
    if path is None:
        beside = {file.name: str(file) for file in Path(source).parent.glob("*")}
        near = difflib.get_close_matches(Path(source).name, beside, n=1)
        hint = f"; did you mean {beside[near[0]]}?" if near else ""
        raise WeightsError(f"{source}: is no file, no URL and no name of torchvision's weights{hint}")
    return path


_KINDS = {".yaml": "a config", ".yml": "a config", ".json": "a JSON file", ".jpg": "an image", ".png": "an image"}


_KINDS |= {".csv": "a table", ".onnx": "an exported model"}
