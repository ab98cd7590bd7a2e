"""The package ``detector_runtime``: modules of ``detector``, with their imports of each other renamed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCE, NAME = REPOSITORY / "detector", "detector_runtime"
MODULES = (
    "__main__",
    *("errors", "processes", "structures"),
    *("commands/__init__", "commands/infer"),
    *("config/__init__", "config/parts", "config/tasks"),
    *("data/__init__", "data/headers", "data/images", "data/inputs", "data/listing", "data/names"),
    *("data/formats/__init__", "data/formats/box_csv", "data/formats/building", "data/formats/coco"),
    *("data/formats/coco_rows", "data/formats/coco_values", "data/formats/columns", "data/formats/labels"),
    *("data/formats/reading", "data/formats/recognition", "data/formats/voc", "data/formats/writing"),
    "data/formats/yolo",
    *("data/loading/__init__", "data/loading/sampler"),
    *("data/transforms/__init__", "data/transforms/resize"),
    *("files/__init__", "files/atomic", "files/json_stream"),
    *("inference/__init__", "inference/exported", "inference/exports", "inference/folder", "inference/images"),
    *("reports/__init__", "reports/drawing", "reports/fonts", "reports/pages/__init__"),
    *("tasks/__init__", "tasks/classification_results", "tasks/detection_results"),
)


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
    for module in MODULES:
        path = package / f"{module}.py"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(renamed((SOURCE / f"{module}.py").read_text(encoding="utf-8")), encoding="utf-8")


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
