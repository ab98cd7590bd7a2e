"""The package ``detector_runtime``: modules of ``detector``, with their imports of each other renamed."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCE, NAME = REPOSITORY / "detector", "detector_runtime"
# The command, and what it and predictors import only when they use it; what these import follows.
ROOTS = (
    *("__main__", "commands.infer", "config.tasks", "data.inputs"),
    *("inference.exported", "inference.exports", "inference.folder", "inference.parts", "inference.urls"),
    *("inference.video_folder", "reports.pages"),
    *("tasks.classification_results", "tasks.detection_results", "tasks.segmentation_results"),
)


def needed_files() -> list[Path]:
    """The files of :data:`ROOTS` and of all that they import when they are imported."""
    waiting, files = [f"detector.{name}" for name in ROOTS], set()
    while waiting:
        names = waiting.pop().split(".")
        for end in range(2, len(names) + 1):  # a module's packages are imported before it
            path = SOURCE.joinpath(*names[1:end])
            path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            if path.is_file() and path not in files:  # a name that a module imports may be no module
                files.add(path)
                waiting += _imported(path)
    return sorted(files)


def _imported(path: Path) -> Iterator[str]:
    """What a module imports of the package when it is imported itself: not in functions, nor for type checkers."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "detector":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def renamed(text: str) -> str:
    """A module's text with ``detector.data`` and the like as ``detector_runtime.data``."""
    text = re.sub(r"\bdetector\.(?=[a-z])", f"{NAME}.", text)
    return re.sub(r"^( *)import detector$", rf"\1import {NAME} as detector", text, flags=re.MULTILINE)


def write_package(folder: Path, version: str) -> None:
    """Write ``folder/detector_runtime``."""
    package = folder / NAME
    package.mkdir(parents=True)
    start = (REPOSITORY / "runtime" / f"{NAME}.py").read_text(encoding="utf-8")
    (package / "__init__.py").write_text(renamed(start).replace("VERSION", version), encoding="utf-8")
    for source in needed_files():
        path = package / source.relative_to(SOURCE)
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(renamed(source.read_text(encoding="utf-8")), encoding="utf-8")


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # a test writes the package without building a wheel
    BuildHookInterface = object


class BuildHook(BuildHookInterface):
    """Called by hatchling when it builds the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        self.folder = Path(mkdtemp(prefix="detector-runtime-"))
        write_package(self.folder, self.metadata.version)
        build_data["force_include"][str(self.folder / NAME)] = NAME

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        shutil.rmtree(self.folder)
