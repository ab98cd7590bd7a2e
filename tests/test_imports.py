"""Imports run downwards only, and what is slow to import is imported late."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import detector
from detector.__main__ import COMMANDS
from detector.checkpoints.checkpoint import save_checkpoint
from detector.config.loader import load_config
from detector.models import build_model
from detector.structures import Category

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "detector"

# From the bottom up: a module imports its own folder and those above it here.
ORDER = [
    ["errors", "structures"],
    ["system"],
    ["config"],
    ["ops"],
    ["data", "models"],
    ["checkpoints", "evaluation"],
    ["reports"],
    ["tasks"],
    ["training", "inference", "export"],
    ["analysis", "dev", "ray"],
    ["commands", "__main__"],
]
LAYER_OF = {name: number for number, layer in enumerate(ORDER) for name in layer}

MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imported(source: str) -> Iterator[str]:
    """Dotted names of all imports, those inside functions too; of ``from a import b`` both ``a`` and ``a.b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(source: str) -> set[str]:
    """The package's modules that a source imports; the package itself, for its version, is none of them."""
    return {name for name in imported(source) if name in MODULES and name != "detector"}


def upward(module: str, source: str) -> list[str]:
    """Imports of modules that stand higher than ``module``."""
    layer = LAYER_OF[module.split(".")[1]]
    return sorted(name for name in own_imports(source) if LAYER_OF[name.split(".")[1]] > layer)


def test_every_module_has_its_layer() -> None:
    assert {name.split(".")[1] for name in MODULES if name != "detector"} == set(LAYER_OF)


# ``detector/__init__.py`` stands under all and reaches up, late, for ``detector.load``.
def test_imports_run_downwards() -> None:
    modules = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items() if name != "detector"}
    found = {name: upward(name, source) for name, source in modules.items()}
    assert {name: imports for name, imports in found.items() if imports} == {}


def test_an_import_upwards_would_be_found() -> None:
    for line in (
        "import detector.training.loop",
        "from detector.training.loop import train",
        "from detector.training import loop",
        "def late():\n    from detector.training.loop import train",
        "if True:\n    import detector.training.loop as e",
    ):
        assert upward("detector.data.detection", line)[-1] == "detector.training.loop"
        assert upward("detector.commands.train", line) == []
    assert upward("detector.ops.boxes", "import torch, detector\nfrom detector import __version__") == []


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {name: own_imports(path.read_text(encoding="utf-8")) - {name} for name, path in MODULES.items()}
    del graph["detector"]
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert (
        order.index("detector.errors") < order.index("detector.config.schema") < order.index("detector.training.loop")
    )


def test_albumentations_is_known_to_one_module() -> None:
    files = [*MODULES.values(), *sorted((REPOSITORY / "tools").glob("*.py"))]
    knowing = [
        file.relative_to(REPOSITORY).as_posix()
        for file in files
        if any(name.split(".")[0] == "albumentations" for name in imported(file.read_text(encoding="utf-8")))
    ]
    assert knowing == ["detector/data/transforms/colors.py"]


def test_the_input_size_has_one_rule_and_the_divisor_one_place() -> None:
    """Who reads ``data.resize``, and who computes with a 32: the rest asks ``input_sizes`` and ``SIZE_DIVISOR``."""
    reading, dividing = set(), set()
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("long", "fixed", "rounding"):
                owner = node.value
                if "resize" in (getattr(owner, "id", ""), getattr(owner, "attr", "")):
                    reading.add(name)
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod | ast.FloorDiv | ast.Div | ast.Mult):
                dividing |= {name for side in (node.left, node.right) if getattr(side, "value", None) == 32}
    assert reading == {
        "detector.data.transforms.resize",
        *("detector.analysis.anchors.report", "detector.analysis.anchors.search"),  # words and suggestions
        *("detector.dev.benchmark.data", "detector.dev.benchmark.peer"),  # arguments of torchvision's
    }
    assert dividing == {"detector.checkpoints.foreign.torchvision"}  # group norm's groups


# --- what is really imported ------------------------------------------------------------------------------------------

SLOW = {"torch", "torchvision", "albumentations", "cv2", "numpy"}


def slow_modules(*arguments: str) -> tuple[set[str], str]:
    """Those of ``SLOW`` that a run of Python imports, and what it prints."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    names = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "detector" in names
    return names & SLOW, done.stdout


def test_the_package_itself_is_cheap() -> None:
    slow, printed = slow_modules("-c", "import detector; print(detector.__version__, callable(detector.load))")
    assert (slow, printed) == (set(), f"{detector.__version__} True\n")


def test_all_that_the_package_names_is_there() -> None:
    names: dict[str, object] = {}
    exec("from detector import *", names)
    assert names.keys() - {"__builtins__"} == set(detector.__all__)
    assert {"load", "train", "evaluate", "open_model", "Config"} <= set(detector.__all__)
    assert all(names[name].__module__.startswith("detector") for name in detector.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        _ = detector.lode


def test_slow_modules_would_be_found() -> None:
    assert slow_modules("-c", "import detector, numpy")[0] == {"numpy"}


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "detector"],
        *(["-m", "detector", name] for name in COMMANDS),
        ["tools/train.py"],
    ],
)
def test_help_answers_at_once(command: list[str]) -> None:
    slow, printed = slow_modules(*command, "--help")
    assert slow == set()
    assert printed.startswith("usage: ")


def test_evaluation_and_inference_do_without_albumentations() -> None:
    slow, _ = slow_modules("-c", "import detector.training.loop, detector.training.fitting, detector.inference.folder")
    assert slow == SLOW - {"albumentations"}


def test_inference_does_without_what_reports_and_training_need(shapes: Path, tmp_path: Path) -> None:
    """A prediction and a folder of them, drawn; an environment without these packages can serve a model."""
    config = load_config("quickstart.yaml", ["model.backbone.name=resnet10", "data.resize={short: [64], long: 64}"])
    content = {"model": build_model(config.model, 2).state_dict(), "epoch": 1, "metrics": {}}
    save_checkpoint(tmp_path / "best.pt", config, [Category(1, "circle"), Category(2, "square")], content)
    for image in sorted((shapes / "images").glob("val_*"))[:2]:
        shutil.copy(image, tmp_path)
    code = f"""
import sys
for name in ("matplotlib", "jinja2", "markupsafe", "scipy", "albumentations"):
    sys.modules[name] = None  # so that importing it fails
import detector
from detector.__main__ import main
print(len(detector.load("best.pt", "cpu").predict(["{image.name}"])))
arguments = ["--checkpoint", "best.pt", "--input", ".", "--output", "found", "--draw-score", "0", "--workers", "0"]
sys.exit(main(["infer", *arguments, "model.predict.score_threshold=0.0"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "1"), done.stderr
    assert len(list((tmp_path / "found" / "images").iterdir())) == 2
