"""Start a model from the checkpoint of another: a classifier from a detector, or the same with other classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detector.checkpoint import checkpoint_categories, checkpoint_config
from detector.data.coco import Category
from detector.errors import WeightsError
from detector.models import Model


class Transfer(NamedTuple):
    """What became of every tensor of the model, and of the checkpoint. Nothing is skipped without a word."""

    loaded: list[str]
    by_class: dict[str, str]  # tensors of which the rows of classes of the same name were loaded, and which
    begun: dict[str, str]  # tensors that keep their random start, and why
    left_over: list[str]  # tensors of the checkpoint that the model has no place for

    def summary(self) -> str:
        """One line; tensors of one part are named together."""
        total = len(self.loaded) + len(self.by_class) + len(self.begun)
        parts = [f"{len(self.loaded)} of {total} tensors loaded"]
        parts += sorted({f"the class layer by name: {classes}" for classes in self.by_class.values()})
        if self.begun:
            parts.append(f"{len(self.begun)} begin at random ({_grouped(self.begun)})")
        if self.left_over:
            parts.append(f"{len(self.left_over)} left over ({_grouped(self.left_over)})")
        return "; ".join(parts)

    def report(self) -> str:
        """One line a tensor."""
        lines = [f"loaded     {name}" for name in self.loaded]
        lines += [f"by class   {name}: {classes}" for name, classes in self.by_class.items()]
        lines += [f"random     {name}: {reason}" for name, reason in self.begun.items()]
        lines += [f"left over  {name}" for name in self.left_over]
        return "\n".join(lines) + "\n"


@torch.no_grad()
def transfer(model: Model, categories: list[Category], content: dict[str, Any], path: str | Path) -> Transfer:
    """Copy into ``model`` what fits of a checkpoint's ``content``: by name and shape, rows of classes by class name.

    Raises :class:`~detector.errors.WeightsError` if nothing of a backbone fits.
    """
    source = content["ema"] if content.get("ema") else content["model"]
    old_labels = {category.name: label for label, category in enumerate(checkpoint_categories(content))}
    class_tensors = {f"head.{name}" for name in model.head.by_class}
    outcome = Transfer([], {}, {}, [])
    for name, tensor in model.state_dict().items():
        old = source.get(name)
        if old is None:
            outcome.begun[name] = "not in the checkpoint"
        elif name in class_tensors:
            _copy_classes(name, tensor, old, categories, old_labels, outcome)
        elif old.shape != tensor.shape:
            outcome.begun[name] = f"is {list(old.shape)} in the checkpoint, {list(tensor.shape)} here"
        else:
            tensor.copy_(old)
            outcome.loaded.append(name)
    outcome.left_over.extend(sorted(source.keys() - model.state_dict().keys()))
    if not any(".backbone." in name for name in outcome.loaded):
        old = checkpoint_config(content, path).model
        names = " + ".join(backbone.name for backbone in old.backbones)
        raise WeightsError(f"{path}: nothing of its backbone ({names}) fits this model; use the same model.backbone")
    return outcome


def _copy_classes(
    name: str, tensor: Tensor, old: Tensor, categories: list[Category], old_labels: dict[str, int], outcome: Transfer
) -> None:
    """Rows are classes, several times over where every anchor has its own: [A · K, ...]."""
    groups = len(tensor) // len(categories)
    if old.shape[1:] != tensor.shape[1:] or len(old) != groups * len(old_labels):
        outcome.begun[name] = f"is {list(old.shape)} in the checkpoint, {list(tensor.shape)} here"
        return
    known = [label for label, category in enumerate(categories) if category.name in old_labels]
    if not known:
        outcome.begun[name] = "no class has the same name"
        return
    new_rows = tensor.view(groups, len(categories), *tensor.shape[1:])
    old_rows = old.view(groups, len(old_labels), *old.shape[1:])
    new_rows[:, known] = old_rows[:, [old_labels[categories[label].name] for label in known]]
    names = ", ".join(categories[label].name for label in known[:10]) + (", …" if len(known) > 10 else "")
    outcome.by_class[name] = f"{len(known)} of {len(categories)} classes ({names})"


def _grouped(names: Any) -> str:
    """``head.cls_tower.*, pyramid.fpn.*``"""
    groups = dict.fromkeys(".".join(name.split(".")[:2]) for name in names)
    return ", ".join(group if group in names else f"{group}.*" for group in groups)
