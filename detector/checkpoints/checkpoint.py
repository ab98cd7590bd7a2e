"""Self-describing checkpoints: plain tensors, numbers and strings, written atomically, read without unpickling code."""

from __future__ import annotations

import hashlib
import math
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision

import detector
from detector.config.loader import apply_overrides, config_from_dict, config_to_dict
from detector.config.parts import check_code
from detector.config.schema import Config
from detector.data.formats.coco_values import is_id
from detector.data.formats.columns import id_key
from detector.errors import ConfigError, WeightsError, kind_of
from detector.models import Model, build_model
from detector.structures import Category, Id
from detector.system.atomic import atomic_write
from detector.system.tensors import check_tensor, is_state_dict, read_file

FORMAT = 1


def save_checkpoint(path: Path, config: Config, categories: list[Category], state: dict[str, Any]) -> None:
    """Write ``state`` (``model`` and whatever training needs) with its config, categories and versions.

    The write is atomic: a crash leaves the previous file.
    """
    content = {
        "format": FORMAT,
        "config": config_to_dict(config),
        "categories": [category._asdict() for category in categories],
        "versions": versions(),
        **state,
    }
    write_checkpoint(path, content)


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    with atomic_write(path, "wb") as file:
        torch.save(content, file)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU. Raises :class:`detector.errors.WeightsError` for anything else."""
    return check_format(read_file(Path(path)), path)


def check_format(content: Any, path: str | Path) -> dict[str, Any]:
    """``content`` if this package's version can read it and its parts have the right types."""
    if not isinstance(content, dict) or "format" not in content:
        raise WeightsError(f"{path}: holds weights, but is not a checkpoint of this package (no 'format')")
    if type(content["format"]) is not int or content["format"] != FORMAT:
        found = content["format"] if isinstance(content["format"], int | str) else type(content["format"]).__name__
        raise WeightsError(f"{path}: has format {found}, this version reads {FORMAT}; use the version that wrote it")
    if missing := {"config", "categories", "model"} - content.keys():
        raise _damaged(path, f"has no {min(missing)}")
    if not isinstance(content["config"], dict):
        raise _damaged(path, f"its config is {kind_of(content['config'])}, not a mapping of sections")
    _check_categories(content["categories"], path)
    for part in ("model", "ema"):
        state = content.get(part)
        if state is None and part == "ema":
            continue
        if not is_state_dict(state):
            raise _damaged(path, f"its {part} is not a state dict (names to tensors)")
        for name, tensor in state.items():
            _check_size(name, tensor, path)
            check_tensor(name, tensor, path)
    return content


def _damaged(path: str | Path, fault: str) -> WeightsError:
    return WeightsError(f"{path}: {fault}; it was changed or damaged since training saved it: copy it again")


def _check_size(name: Any, tensor: torch.Tensor, path: str | Path) -> None:
    """Refuse a tensor that is larger than its storage: a small file can claim any size by repeating one number."""
    is_plain = not tensor.is_nested and tensor.layout == torch.strided and not tensor.is_meta
    if is_plain and tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        stored = tensor.untyped_storage().nbytes()
        raise _damaged(path, f"{name} is {list(tensor.shape)}, made of {stored:,} bytes that repeat")


# What a run needs to resume, besides what every checkpoint has.
_PROGRESS = {"step": int, "evaluated_step": int, "num_images": int, "ema_updates": int, "best_epoch": int}
_PROGRESS |= {"best": float, "train_seconds": float, "optimizer": dict, "scaler": dict}


def read_progress(path: Path, best: Path) -> dict[str, Any]:
    """The content of a run's ``last.pt``. Where it is damaged, the error names ``best`` as a way on."""
    try:
        content = read_checkpoint(path)
        for name, kind in _PROGRESS.items():
            value = content.get(name)
            if not isinstance(value, kind) or (kind is float and not math.isfinite(value)):
                raise WeightsError(f"{path}: cannot be resumed: its {name} is {reprlib.repr(value)[:80]}")
        return content
    except WeightsError as error:
        remedy = f"start another run from the best epoch's weights with --init-from {best}"
        if not best.exists():
            remedy = f"there is no {best.name} either; start another run with --name"
        raise WeightsError(f"{error}; {remedy}") from None


def _check_categories(rows: Any, path: str | Path) -> None:
    if not isinstance(rows, list) or not rows:
        raise _damaged(path, "its categories are not a list of classes")
    seen: set[Id] = set()
    for row in rows:
        is_whole = isinstance(row, dict) and row.keys() == {"id", "name"}
        if not is_whole or not is_id(row["id"]) or not isinstance(row["name"], str):
            raise _damaged(path, f"category {reprlib.repr(row)[:120]} is not an id (integer or text) and a name")
        if id_key(row["id"]) in seen:
            raise _damaged(path, f"category id {reprlib.repr(row['id'])[:120]} is duplicated")
        seen.add(id_key(row["id"]))


def checkpoint_config(content: dict[str, Any], path: str | Path) -> Config:
    try:
        return config_from_dict(content["config"], str(path))
    except ConfigError as error:
        fault = str(error).removeprefix(f"{path}: ")
        raise WeightsError(
            f"{path}: its config is not valid in this version: {fault}; use the one that wrote it"
        ) from None


def override_config(content: dict[str, Any], path: str | Path, overrides: Sequence[str]) -> Config:
    """A checkpoint's config with ``key=value`` overrides, which may change nothing of its model but ``predict``."""
    own = checkpoint_config(content, path)
    if f"task={own.task}" not in overrides and any(override.startswith("task=") for override in overrides):
        raise ConfigError(f"command line: task: {path} is of {own.task}; remove it")
    config = apply_overrides(own, overrides, source=str(path))
    for key in type(own.model).model_fields:
        was, now = getattr(own.model, key), getattr(config.model, key)
        if key != "predict" and was != now:
            raise ConfigError(f"command line: model.{key}: {path} has the model that it was trained with; remove it")
    if config.data.val_share and (config.data.val_share, config.seed) != (own.data.val_share, own.seed):
        raise ConfigError(
            f"command line: data.val_share and seed: {path} was trained on images that these would hold back;"
            " remove them"
        )
    return config


def check_val_share(content: dict[str, Any], path: str | Path) -> None:
    """Refuse the held-back images of an older version's run, which held back other ones."""
    data = content["config"].get("data", {})
    if data.get("val_share") is not None and "exif" not in data:  # data.exif is as old as today's rule
        raise ConfigError(
            f"{path}: is of an older version, whose data.val_share={data['val_share']} held back other images: it was"
            " trained on some of those that would be evaluated; evaluate it on other data (evaluate --images), or start"
            " another run with --init-from"
        )


def checkpoint_categories(content: dict[str, Any]) -> list[Category]:
    return [Category(**category) for category in content["categories"]]


def load_model(content: dict[str, Any], path: str | Path, allow_code: bool = False) -> Model:
    """The model of a checkpoint with the weights to predict with: the averaged ones where training kept an average.

    A model with parts of the user's own (``package.module:name``) needs ``allow_code``.
    """
    whole, num_classes = checkpoint_config(content, path), len(content["categories"])
    if not allow_code:
        check_code(whole, path)
    config = whole.model
    weights = content.get("ema") or content["model"]
    try:
        # An untrusted config can ask for any size: the file must have such weights before memory is allocated.
        with torch.device("meta"):
            own = build_model(config, num_classes).state_dict()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (RuntimeError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split())[:120]
        raise _damaged(path, f"its config asks for a model that cannot be built ({reason})") from None
    compare_weights(own, weights, path)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        model = build_model(config, num_classes)
    model.load_state_dict(weights)
    return model.eval()


def load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor], path: str | Path) -> None:
    """Load strictly; an error names the first key that differs."""
    compare_weights(model.state_dict(), weights, path)
    model.load_state_dict(weights)


def compare_weights(own: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], path: str | Path) -> None:
    """Refuse ``weights`` that differ from a model's ``own`` in names, shapes or kind."""
    for name in sorted(own.keys() ^ weights.keys()):
        where = "missing from" if name in own else "unknown to the model but in"
        raise WeightsError(f"{path}: {name} is {where} the checkpoint, which is of another architecture")
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            there, here = list(tensor.shape), list(own[name].shape)
            raise WeightsError(
                f"{path}: {name} is {there} in the checkpoint and {here} in the model;"
                " it is of another architecture or class count"
            )
        if own[name].is_floating_point() and not tensor.is_floating_point():
            raise WeightsError(f"{path}: {name} is of {tensor.dtype} in the checkpoint, {own[name].dtype} in the model")


def weights_digest(*models: torch.nn.Module) -> str:
    """SHA-256 of the models' parameters and buffers, bit by bit, with their names."""
    digest = hashlib.sha256()
    for model in models:
        for name, tensor in model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    # str(): torch's version is a subclass of it, which weights_only refuses to read.
    return {
        "detector": detector.__version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
    }
