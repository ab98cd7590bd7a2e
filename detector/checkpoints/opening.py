"""The one way to open a model: from a checkpoint of this package or another, a run, or a config."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from detector.checkpoints.checkpoint import check_format, checkpoint_categories, load_model, override_config
from detector.checkpoints.foreign.importing import Imported, import_content
from detector.checkpoints.start import begin_normalise, load_start
from detector.config.loader import apply_overrides, load_config, refuse_auto
from detector.config.parts import check_code
from detector.config.schema import Config
from detector.errors import ConfigError, WeightsError, near_path
from detector.models import Model, build_model
from detector.structures import Category
from detector.system.device import choose_device
from detector.system.tensors import read_file, resolve

CONFIG_SUFFIXES = (".yaml", ".yml")


class Opened(NamedTuple):
    """A model with its config and its classes."""

    model: Model
    config: Config
    categories: list[Category]  # the class of each label


def open_model(
    source: str | Path | Config,
    overrides: Sequence[str] = (),
    device: str | torch.device | None = None,
    classes: Sequence[str] | None = None,
    allow_code: bool = False,
) -> Opened:
    """The model of a checkpoint, a run or a config, in evaluation mode:

        model, config, categories = open_model("runs/mine")
        model, config, categories = open_model("RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1", device="cpu")
        model, config, categories = open_model("retinanet_r18_fpn.yaml", classes=["cat", "dog"])

    ``source`` is a file of this package, torchvision, Detectron2 or MMDetection (a path, a URL, torchvision's name), a
    run's folder or one with a single run in it; or a config (YAML, :class:`detector.config.schema.Config`), whose
    model is initialised as in training: from ``model.weights``, or randomly but for its backbone's weights. ``classes``
    names those of a config (default: ``data.classes``, or those of ``model.weights``). ``overrides`` are
    ``key=value``; a checkpoint's model stays as it was trained, but for ``model.predict``. ``device`` defaults to the
    first GPU, else the CPU. ``allow_code``: parts that the source names as ``package.module:name`` may run.

    Raises :class:`detector.errors.DetectorError` with the file, the fault and the remedy.
    """
    if isinstance(source, Config) or str(source).endswith(CONFIG_SUFFIXES):
        return _begin(source, overrides, device, classes, allow_code)
    if classes is not None:
        raise ConfigError(f"{source}: has its own classes; only a config can be given others")
    return from_content(open_checkpoint(source), source, overrides, device, allow_code)


def from_content(
    content: dict[str, Any],
    source: str | Path,
    overrides: Sequence[str] = (),
    device: str | torch.device | None = None,
    allow_code: bool = False,
) -> Opened:
    """:func:`open_model` of what :func:`open_checkpoint` read from ``source``."""
    device = choose_device(device)
    config = override_config(content, source, overrides)
    model = load_model(content, source, allow_code)
    return Opened(model.to(device), config, checkpoint_categories(content))


def _begin(
    source: str | Path | Config,
    overrides: Sequence[str],
    device: str | torch.device | None,
    classes: Sequence[str] | None,
    allow_code: bool,
) -> Opened:
    """A config's model, initialised as training does."""
    device, name = choose_device(device), "the config" if isinstance(source, Config) else source
    if isinstance(source, Config):
        config = apply_overrides(source, overrides, name)
        if not allow_code:
            check_code(config, name)
    else:
        config = load_config(source, overrides, allow_code)
    refuse_auto(config, name)
    content = open_start(config)
    if names := classes or list(config.data.class_members):
        categories = [Category(label, name) for label, name in enumerate(names)]
    elif content:
        categories = checkpoint_categories(content)
    else:
        raise ConfigError(f"{name}: does not name the classes; give classes=[...], or the config model.weights")
    config, _ = begin_normalise(config, content, str(config.model.weights))
    model = build_model(config.model, len(categories))
    load_start(model, config, categories, content)
    return Opened(model.eval().to(device), config, categories)


def open_checkpoint(source: str | Path) -> dict[str, Any]:
    """The content of our checkpoint, or of another package's, converted; ``source``: see :func:`find_checkpoint`."""
    path = find_checkpoint(source)
    value = read_file(path)
    if isinstance(value, dict) and "format" in value:
        return check_format(value, path)
    return import_content(value, path).content


def open_start(config: Config) -> dict[str, Any] | None:
    """The content of the checkpoint ``model.weights`` that training starts from, if the config names one."""
    return open_checkpoint(config.model.weights) if config.model.weights else None


def import_checkpoint(
    source: str, package: str | None = None, config: str | None = None, overrides: Sequence[str] = ()
) -> Imported:
    """A checkpoint of another package, with a config that reproduces it.

    ``source``: see :func:`find_checkpoint`. ``package`` None is recognised by the tensors' names. ``config`` (a YAML
    file) and ``overrides`` (``key=value``) give what the tensors do not show where it differs from the package's
    defaults. Raises :class:`detector.errors.WeightsError` for a tensor that is missing, unexpected or of another shape.
    """
    path = find_checkpoint(source)
    return import_content(read_file(path), path, package, config, overrides)


RUN_FILES = ("best.pt", "last.pt")
KINDS = {
    ".yaml": "a config",
    ".yml": "a config",
    ".json": "a JSON file",
    ".csv": "a table",
    ".onnx": "an exported model",
    ".jpg": "an image",
    ".png": "an image",
}


def find_checkpoint(source: str | Path) -> Path:
    """The checkpoint that ``source`` means: a path, a folder, a URL or a name of torchvision's weights.

    A run's folder means its ``best.pt``, else its ``last.pt``; a folder with one run means that run. A line says so.
    Raises :class:`detector.errors.WeightsError` for anything else.
    """
    if not isinstance(source, str | Path):
        raise WeightsError(f"a model's source is {source!r}; give a path, a URL or a name of torchvision's weights")
    if os.path.isdir(source):  # noqa: PTH112 (Path.is_dir raises for a name that is too long)
        folder = Path(source)
        runs = [folder] if _run_file(folder) else sorted(filter(_run_file, filter(Path.is_dir, folder.iterdir())))
        if not runs:
            raise WeightsError(
                f"{source}: is a folder without best.pt and last.pt; give a run's folder or a checkpoint"
            )
        if len(runs) > 1:
            names = ", ".join(map(str, runs[:6])) + (", …" if len(runs) > 6 else "")
            raise WeightsError(f"{source}: holds {len(runs)} runs: {names}; give one of them")
        found = _run_file(runs[0])
        if os.environ.get("RANK", "0") == "0":  # one rank says it
            print(f"{source}: is a folder; using {found.relative_to(folder)}", file=sys.stderr)
        return found
    if kind := KINDS.get(Path(source).suffix.lower()):
        raise WeightsError(f"{source}: is {kind}, not a checkpoint; give one, as runs/NAME/best.pt, or a run's folder")
    path = resolve(str(source))
    if path is None:
        raise WeightsError(f"{source}: is not a file, a URL or a name of torchvision's weights{near_path(source)}")
    return path


def _run_file(folder: Path) -> Path | None:
    return next((folder / name for name in RUN_FILES if (folder / name).is_file()), None)
