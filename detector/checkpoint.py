"""Self-describing checkpoints: plain tensors, numbers and strings, written atomically, read without unpickling code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision

import detector
from detector.config import Config
from detector.configfile import apply_overrides, config_from_dict, config_to_dict
from detector.data.coco import Category
from detector.errors import ConfigError, WeightsError
from detector.files import read_file
from detector.models import Model, build_model
from detector.storage import atomic_write

FORMAT = 1


def save_checkpoint(path: Path, config: Config, categories: list[Category], state: dict[str, Any]) -> None:
    """Write ``state`` (``model`` and whatever training needs) with all that it takes to use it elsewhere.

    The file stands whole under its name or not at all: a crash leaves the one before.
    """
    content = {
        "format": FORMAT,
        "config": config_to_dict(config),
        "categories": [category._asdict() for category in categories],
        "versions": versions(),
        **state,
    }
    with atomic_write(path, "wb") as file:
        torch.save(content, file)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU. Raises :class:`~detector.errors.WeightsError` for anything else."""
    return check_format(read_file(Path(path)), path)


def check_format(content: Any, path: str | Path) -> dict[str, Any]:
    """``content`` if it is of this package and version."""
    if not isinstance(content, dict) or "format" not in content:
        raise WeightsError(f"{path}: holds weights, but not of this package's training (no 'format')")
    if content["format"] != FORMAT:
        raise WeightsError(
            f"{path}: has format {content['format']}, this version reads {FORMAT}; use the version that wrote it"
        )
    if missing := {"config", "categories", "model"} - content.keys():
        raise WeightsError(f"{path}: is no whole checkpoint: {min(missing)} is missing")
    return content


def checkpoint_config(content: dict[str, Any], path: str | Path) -> Config:
    try:
        return config_from_dict(content["config"], str(path))
    except ConfigError as error:
        raise WeightsError(f"{path}: its config is not one of this version: {error}") from None


def override_config(content: dict[str, Any], path: str | Path, overrides: Sequence[str]) -> Config:
    """A checkpoint's config with ``key=value`` overrides; its model stays as it was trained, but for ``predict``."""
    own = checkpoint_config(content, path)
    config = apply_overrides(own, overrides, source=str(path))
    for key in type(own.model).model_fields:
        was, now = getattr(own.model, key), getattr(config.model, key)
        if key != "predict" and was != now:
            raise ConfigError(f"command line: model.{key}: {path} has the model that it was trained with; remove it")
    if config.task != own.task:
        raise ConfigError(f"command line: task: {path} is of {own.task}; remove it")
    if config.data.val_share and (config.data.val_share, config.seed) != (own.data.val_share, own.seed):
        raise ConfigError(
            f"command line: data.val_share and seed: another part than {path} held back, it was trained on; remove them"
        )
    return config


def checkpoint_categories(content: dict[str, Any]) -> list[Category]:
    return [Category(**category) for category in content["categories"]]


def load_model(content: dict[str, Any], path: str | Path) -> Model:
    """The model of a checkpoint with the weights to predict with: the averaged ones where training kept an average."""
    config = checkpoint_config(content, path)
    model = build_model(config.model, len(content["categories"]))
    load_weights(model, content["ema"] if content.get("ema") else content["model"], path)
    return model.eval()


def load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor], path: str | Path) -> None:
    """Strictly; a difference is named by its first key."""
    compare_weights(model.state_dict(), weights, path)
    model.load_state_dict(weights)


def compare_weights(own: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], path: str | Path) -> None:
    """Refuse ``weights`` that are not of the names and shapes of a model's ``own``."""
    for name in sorted(own.keys() ^ weights.keys()):
        where = "missing from" if name in own else "unknown to the model but in"
        raise WeightsError(f"{path}: {name} is {where} the checkpoint; it is of another architecture")
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            raise WeightsError(
                f"{path}: {name} is {list(tensor.shape)} in the checkpoint and {list(own[name].shape)} in the model;"
                " it is of another architecture or class count"
            )


def versions() -> dict[str, str]:
    # str(): torch's own is a subclass, which weights_only refuses to read.
    return {
        "detector": detector.__version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
    }
