"""Initialise a model from another's checkpoint: a classifier from a detector, or a model with other classes."""

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
from detector.data.formats.columns import id_key
from detector.errors import WeightsError
from detector.models import Model
from detector.structures import Category


class Transfer(NamedTuple):
    """What happened to each tensor of the model and of the checkpoint."""

    loaded: list[str]
    by_class: dict[str, str]  # tensors whose rows were loaded class by class name, and which classes
    random: dict[str, str]  # tensors that stay randomly initialised, and why
    unexpected: list[str]  # tensors of the checkpoint that the model does not have

    def summary(self) -> str:
        """One line; tensors are grouped by part."""
        total = len(self.loaded) + len(self.by_class) + len(self.random)
        parts = [f"{len(self.loaded)} of {total} tensors loaded"]
        parts += sorted({f"the class layer by name: {classes}" for classes in self.by_class.values()})
        if self.random:
            parts.append(f"{len(self.random)} are randomly initialised ({_grouped(self.random)})")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} unexpected ({_grouped(self.unexpected)})")
        return "; ".join(parts)

    def report(self) -> str:
        """One line per tensor."""
        lines = [f"loaded     {name}" for name in self.loaded]
        lines += [f"by class   {name}: {classes}" for name, classes in self.by_class.items()]
        lines += [f"random     {name}: {reason}" for name, reason in self.random.items()]
        lines += [f"unexpected {name}" for name in self.unexpected]
        return "\n".join(lines) + "\n"


@torch.no_grad()
def transfer(model: Model, categories: list[Category], content: dict[str, Any], path: str | Path) -> Transfer:
    """Copy into ``model`` what fits of a checkpoint's ``content``: by name and shape, class rows by class name.

    Raises :class:`detector.errors.WeightsError` if nothing of a backbone fits.
    """
    source = _at_levels(content.get("ema") or content["model"], content, path, model)
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
            outcome.random[name] = "not in the checkpoint"
        elif not _fits(tensor, source[name], counts if is_of_classes else None):
            outcome.random[name] = f"is {list(source[name].shape)} in the checkpoint, {list(tensor.shape)} here"
        elif is_of_classes and not known:
            outcome.random[name] = "no class has the same name"
    # A part of the head is loaded whole or not at all: a bias without its weights, or half of a tower, is not what the
    # checkpoint learned.
    first_of_part = {_part(name, class_tensors): name for name in reversed(outcome.random) if name.startswith("head.")}
    for name, tensor in own.items():
        if name in outcome.random:
            continue
        if first := first_of_part.get(_part(name, class_tensors)):
            outcome.random[name] = f"goes with {first}"
        elif name in class_tensors:
            _by_class(tensor, counts[0])[:, known] = _by_class(source[name], counts[1])[:, known_there]
            names = ", ".join(categories[label].name for label in known[:10]) + (", …" if len(known) > 10 else "")
            outcome.by_class[name] = f"{len(known)} of {len(categories)} classes ({names})"
        else:
            outcome.loaded.append(name)
    model.load_state_dict({name: source[name] for name in outcome.loaded}, strict=False)
    if not any(".backbone." in name for name in outcome.loaded):
        old_model = checkpoint_config(content, path).model
        names = " + ".join(backbone.name for backbone in old_model.backbones)
        raise WeightsError(f"{path}: nothing of its backbone ({names}) fits this model; use the same model.backbone")
    return outcome


def _at_levels(source: dict[str, Tensor], content: dict[str, Any], path: str | Path, model: Model) -> dict[str, Tensor]:
    """The checkpoint's tensors under this model's names, where its pyramid begins at another level.

    Lateral and transposed convolutions are counted from a pyramid's finest level: those of C3 are ``lateral.0`` of a
    detector from P3, and ``lateral.1`` of a segmenter from P2.
    """
    levels = model.pyramid.levels
    if not levels:
        return source
    finer = checkpoint_config(content, path).model.fpn.levels[0] - levels[0]
    if not finer:
        return source

    def moved(match: re.Match[str]) -> str:
        place = int(match[2]) + finer
        return f"{match[1]}{place}{match[3]}" if place >= 0 else f"{match[1]}level{levels[0] + place}{match[3]}"

    return {re.sub(r"(\.fpn\.(?:lateral|deconv)\.)(\d+)(\.)", moved, name): own for name, own in source.items()}


@torch.no_grad()
def reorder_classes(model: Model, own: list[Category], wanted: list[Category]) -> bool:
    """Put the model's classes, ``own``, into the order of ``wanted``; False if they are not the same classes.

    Classes are compared by name, or by id and name where a name is duplicated.
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
    """The part of a config that a model's weights depend on, as a tree, without what only training needs."""
    tree = config_to_dict(config)
    model, data = tree["model"], tree["data"]
    for backbone in filter(None, [model["backbone"], *model["pyramid"]["branches"]]):
        for key in ("weights", "freeze_at", "norm"):
            del backbone[key]
    model["normalise"] = {"mean": config.model.mean, "std": config.model.std}
    part = {"model": {key: model[key] for key in ("in_channels", "normalise", "backbone", "pyramid", "fpn")}}
    part["data"] = {"max_value": data["max_value"]}
    if has_head:
        part["model"] |= {key: model[key] for key in ("anchors", "box_coder", "head", "predict")}
        part["data"] |= {"resize": data["resize"], "crop": {key: data["crop"][key] for key in ("size", "eval_share")}}
    return part


def other_conventions(own: Config, source: Config, path: str | Path) -> list[str]:
    """Lines that list the values of a checkpoint's config that differ from this config's."""
    there, here = (conventions(config, has_head=own.task == source.task) for config in (source, own))
    lines = [f"  {key}={_short(old)} (here {_short(new)})" for key, old, new in differences(there, here)]
    return [f"{path} was trained with other values than this config's:", *lines] if lines else []


def _short(value: Any) -> str:
    """A value as on the command line, cut if it is long."""
    text = json.dumps(value).replace(" ", "")
    return text if len(text) <= 100 else f"{text[:100]}…"


def missing_parts(outcome: Transfer) -> list[str]:
    """A warning if parts of the head other than the class layer stay random, though the task is the same."""
    names = [
        name
        for name in outcome.random
        if re.match(r"head\.(cls_tower|box_tower|box_output|scales|quality_output|hidden|towers)", name)
    ]
    if not names:
        return []
    return [f"warning: {_grouped(names)} stay random: {names[0]} {outcome.random[names[0]]}"]


def _part(name: str, class_tensors: set[str]) -> str:
    """The part that a tensor belongs to: ``head.cls_tower``, or the class layer."""
    return "the class layer" if name in class_tensors else ".".join(name.split(".")[:2])


def _fits(tensor: Tensor, old: Tensor, counts: tuple[int, int] | None) -> bool:
    """Whether shapes are equal; those of a class layer, apart from the numbers of classes (here, there)."""
    if counts is None or old.shape[1:] != tensor.shape[1:]:
        return tensor.shape == old.shape
    return len(tensor) * counts[1] == len(old) * counts[0]


def _by_class(tensor: Tensor, num_classes: int) -> Tensor:
    """Rows by class, for each anchor of a cell: [A · K, ...] → [A, K, ...]."""
    return tensor.view(-1, num_classes, *tensor.shape[1:])


def _grouped(names: Any) -> str:
    """``head.cls_tower.*, pyramid.fpn.*``"""
    groups = dict.fromkeys(".".join(name.split(".")[:2]) for name in names)
    return ", ".join(group if group in names else f"{group}.*" for group in groups)
