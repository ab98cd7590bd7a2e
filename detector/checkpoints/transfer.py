"""Start a model from the checkpoint of another: a classifier from a detector, or the same with other classes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detector.checkpoints.checkpoint import checkpoint_categories, checkpoint_config
from detector.config.loader import config_to_dict, differences
from detector.config.schema import Config
from detector.data.formats.coco_rows import id_key
from detector.errors import WeightsError
from detector.models import Model
from detector.structures import Category


class Transfer(NamedTuple):
    """What became of every tensor of the model, and of the checkpoint. Nothing is skipped without a word."""

    loaded: list[str]
    by_class: dict[str, str]  # tensors of which the rows of classes of the same name were loaded, and which
    begun: dict[str, str]  # tensors that keep their random start, and why
    unexpected: list[str]  # tensors of the checkpoint that the model has no place for

    def summary(self) -> str:
        """One line; tensors of one part are named together."""
        total = len(self.loaded) + len(self.by_class) + len(self.begun)
        parts = [f"{len(self.loaded)} of {total} tensors loaded"]
        parts += sorted({f"the class layer by name: {classes}" for classes in self.by_class.values()})
        if self.begun:
            parts.append(f"{len(self.begun)} are randomly initialised ({_grouped(self.begun)})")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} unexpected ({_grouped(self.unexpected)})")
        return "; ".join(parts)

    def report(self) -> str:
        """One line a tensor."""
        lines = [f"loaded     {name}" for name in self.loaded]
        lines += [f"by class   {name}: {classes}" for name, classes in self.by_class.items()]
        lines += [f"random     {name}: {reason}" for name, reason in self.begun.items()]
        lines += [f"unexpected  {name}" for name in self.unexpected]
        return "\n".join(lines) + "\n"


@torch.no_grad()
def transfer(model: Model, categories: list[Category], content: dict[str, Any], path: str | Path) -> Transfer:
    """Copy into ``model`` what fits of a checkpoint's ``content``: by name and shape, rows of classes by class name.

    Raises :class:`~detector.errors.WeightsError` if nothing of a backbone fits.
    """
    source = content["ema"] if content.get("ema") else content["model"]
    old_categories = checkpoint_categories(content)
    old_labels = {category.name: label for label, category in enumerate(old_categories)}
    known = [label for label, category in enumerate(categories) if category.name in old_labels]
    known_there = [old_labels[categories[label].name] for label in known]
    own, counts = model.state_dict(), (len(categories), len(old_categories))
    class_tensors = {f"head.{name}" for name in getattr(model.head, "by_class", ())}
    outcome = Transfer([], {}, {}, sorted(source.keys() - own.keys()))
    for name, tensor in own.items():
        is_of_classes = name in class_tensors
        if name not in source:
            outcome.begun[name] = "not in the checkpoint"
        elif not _fits(tensor, source[name], counts if is_of_classes else None):
            outcome.begun[name] = f"is {list(source[name].shape)} in the checkpoint, {list(tensor.shape)} here"
        elif is_of_classes and not known:
            outcome.begun[name] = "no class has the same name"
    # A part of the head is one function: the bias of another layer's weights, or half of a tower that has its norms
    # elsewhere, is neither what the checkpoint learned nor a start.
    first_of_part = {_part(name, class_tensors): name for name in reversed(outcome.begun) if name.startswith("head.")}
    for name, tensor in own.items():
        if name in outcome.begun:
            continue
        if first := first_of_part.get(_part(name, class_tensors)):
            outcome.begun[name] = f"goes with {first}"
        elif name in class_tensors:
            _by_class(tensor, counts[0])[:, known] = _by_class(source[name], counts[1])[:, known_there]
            names = ", ".join(categories[label].name for label in known[:10]) + (", …" if len(known) > 10 else "")
            outcome.by_class[name] = f"{len(known)} of {len(categories)} classes ({names})"
        else:
            tensor.copy_(source[name])
            outcome.loaded.append(name)
    if not any(".backbone." in name for name in outcome.loaded):
        old_model = checkpoint_config(content, path).model
        names = " + ".join(backbone.name for backbone in old_model.backbones)
        raise WeightsError(f"{path}: nothing of its backbone ({names}) fits this model; use the same model.backbone")
    return outcome


@torch.no_grad()
def reorder_classes(model: Model, own: list[Category], wanted: list[Category]) -> bool:
    """Put the model's classes, ``own``, into the order of ``wanted``; False where they are not the same classes.

    Names tell them, whatever their ids; where a name is there twice, ids and names do.
    """
    has_names = all(len({category.name for category in classes}) == len(classes) for classes in (own, wanted))
    here, there = (
        [category.name if has_names else (id_key(category.id), category.name) for category in classes]
        for classes in (own, wanted)
    )
    if set(here) != set(there):
        return False
    order = [here.index(key) for key in there]
    for name in model.head.by_class if order != sorted(order) else ():
        rows = _by_class(model.head.get_parameter(name), len(own))
        rows.copy_(rows[:, order])
    return True


def conventions(config: Config, has_head: bool = True) -> dict[str, Any]:
    """The part of a config that a model's weights were made with, as a tree; nothing that only training asks."""
    tree = config_to_dict(config)
    model, data = tree["model"], tree["data"]
    for backbone in filter(None, [model["backbone"], *model["pyramid"]["branches"]]):
        for key in ("weights", "freeze_at", "norm"):
            del backbone[key]
    model["normalise"] = {"mean": config.model.mean, "std": config.model.std}
    part = {"model": {key: model[key] for key in ("in_channels", "normalise", "backbone", "pyramid", "fpn")}}
    part["data"] = {"max_value": data["max_value"]}
    if has_head:
        part["model"] |= {key: model[key] for key in ("anchors", "head", "predict")}
        part["data"] |= {"resize": data["resize"], "crop": {key: data["crop"][key] for key in ("size", "eval_share")}}
    return part


def other_conventions(own: Config, source: Config, path: str | Path) -> list[str]:
    """Lines that say with which values a checkpoint was trained where the config has others."""
    there, here = (conventions(config, has_head=own.task == source.task) for config in (source, own))
    lines = [f"  {key}={_short(old)} (here {_short(new)})" for key, old, new in differences(there, here)]
    return [f"{path} was made with other values than this config has; its own are", *lines] if lines else []


def _short(value: Any) -> str:
    """As the command line takes it, cut where it is long."""
    text = json.dumps(value).replace(" ", "")
    return text if len(text) <= 100 else f"{text[:100]}…"


def missing_parts(outcome: Transfer) -> list[str]:
    """A warning where parts of a head that the checkpoint has stay random all the same; a class layer may."""
    names = [name for name in outcome.begun if re.match(r"head\.(cls_tower|box_tower|box_output|hidden)", name)]
    if not names:
        return []
    return [f"warning: {_grouped(names)} stay random: {names[0]} {outcome.begun[names[0]]}"]


def _part(name: str, class_tensors: set[str]) -> str:
    """What of a head belongs together: ``head.cls_tower``; the class layer."""
    return "the class layer" if name in class_tensors else ".".join(name.split(".")[:2])


def _fits(tensor: Tensor, old: Tensor, counts: tuple[int, int] | None) -> bool:
    """Whether shapes are the same; of a class layer, but for the numbers of classes, here and there."""
    if counts is None or old.shape[1:] != tensor.shape[1:]:
        return tensor.shape == old.shape
    return len(tensor) * counts[1] == len(old) * counts[0]


def _by_class(tensor: Tensor, num_classes: int) -> Tensor:
    """Rows are classes, several times over where every anchor has its own: [A · K, ...] → [A, K, ...]."""
    return tensor.view(-1, num_classes, *tensor.shape[1:])


def _grouped(names: Any) -> str:
    """``head.cls_tower.*, pyramid.fpn.*``"""
    groups = dict.fromkeys(".".join(name.split(".")[:2]) for name in names)
    return ", ".join(group if group in names else f"{group}.*" for group in groups)
