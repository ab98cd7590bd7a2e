"""Convert checkpoints of torchvision, Detectron2 and MMDetection to ours.

A source maps our tensor names to its own, and knows the config that gives the same outputs. All differences are plain
config fields, so an imported checkpoint could have been trained here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detector.checkpoints.checkpoint import FORMAT, compare_weights, versions
from detector.checkpoints.foreign import detectron2, mmdetection, torchvision
from detector.checkpoints.foreign.source import COCO, RAW_COCO, RESNETS, Source, State
from detector.config.loader import config_to_dict, merge, overlay
from detector.config.parts import check_code
from detector.config.schema import Config
from detector.errors import WeightsError, one_of
from detector.models import build_model
from detector.models.backbones import BACKBONES
from detector.ops.coders import build_box_coder
from detector.structures import Category
from detector.system.tensors import check_tensor, is_state_dict

HEAD_BATCH_NORMS = r"(head|bbox_head)\..*\.running_(mean|var)"

LARGEST = 10**8  # elements of a tensor; a small file can claim any number by repeating one


class Imported(NamedTuple):
    """A converted file."""

    source: str  # torchvision, detectron2 or mmdetection
    content: dict[str, Any]  # a checkpoint of ours
    used: dict[str, str]  # tensors of the file -> ours
    ignored: list[str]  # tensors of the file that are not learnt

    def report(self) -> str:
        """One line per tensor of the file."""
        lines = [f"used     {theirs} -> {ours}" for theirs, ours in self.used.items()]
        return "\n".join([*lines, *(f"ignored  {theirs}" for theirs in self.ignored)]) + "\n"


def import_content(
    value: Any, path: Path, package: str | None = None, config: str | None = None, overrides: Sequence[str] = ()
) -> Imported:
    """What :func:`detector.checkpoints.opening.import_checkpoint` makes of a file's ``value``."""
    state, names = _unwrap(value, path)
    sources = [(name, source) for name in ([package] if package else SOURCES) for source in SOURCES[name]]
    found = [(name, source) for name, source in sources if source.mark in state]
    if not found:
        known = package or ", ".join(f"{name} ({source.mark})" for name, source in sources)
        is_classifier = {"fc.weight", "classifier.weight"} & state.keys()
        hint = "; a classifier's are given as model.backbone.weights" if is_classifier else ""
        raise WeightsError(f"{path}: is not a RetinaNet of {known}: its first tensor is {next(iter(state))}{hint}")
    package, source = found[0]
    if norms := [name for name in state if re.fullmatch(HEAD_BATCH_NORMS, name)]:
        raise WeightsError(
            f"{path}: {norms[0]}: its head has batch norms, one per level, which a head that all levels share cannot"
            " have; heads with group norm (GN) or without norms are read"
        )
    layers = 3 if source.second_layer in state else 2  # convolution, (norm,) ReLU

    def theirs(ours: str, ndim: int | None = None) -> Tensor:
        name = source.name(ours, layers)
        if name not in state:
            raise WeightsError(f"{path}: {name} is missing; it is cut off, or no RetinaNet of {package}")
        if ndim is not None and state[name].ndim != ndim:
            raise WeightsError(f"{path}: {name} is {list(state[name].shape)}, not {ndim}-dimensional")
        return state[name]

    shapes = _read_shapes(theirs, state, source, layers, path)
    resolved = _resolve_config(shapes, source.settings(path.name, state), path, config, overrides)
    anchors, channels = resolved.model.anchors.per_cell, build_box_coder(resolved.model.box_coder).num_channels
    rows, sides = len(theirs("head.cls_output.bias", 1)), len(theirs("head.box_output.bias", 1))
    if rows % anchors or sides != channels * anchors or rows == 0:
        raise WeightsError(
            f"{path}: has {sides // channels} anchors per cell, the config {anchors}; give the model.anchors that it"
            " was trained with by --config"
        )
    num_classes = rows // anchors
    categories = _categories(num_classes, names, package)

    with torch.device("meta"):
        own = build_model(resolved.model, len(categories)).state_dict()
    weights: State = {}
    used: dict[str, str] = {}
    for ours in own:
        tensor = source.convert(ours, theirs(ours), resolved.model.anchors)
        if ours.startswith("head.cls_output.") and len(categories) < num_classes:
            by_class = tensor.view(anchors, num_classes, *tensor.shape[1:])
            tensor = by_class[:, [category.id for category in categories]].flatten(0, 1)
        weights[ours] = tensor
        used[source.name(ours, layers)] = ours
    compare_weights(own, weights, path)
    weights = {
        name: tensor.float().contiguous() if own[name].is_floating_point() else tensor
        for name, tensor in weights.items()
    }
    ignored = [name for name in state if name not in used]
    unknown = [name for name in ignored if not re.fullmatch(source.unused, name)]
    if unknown:
        raise WeightsError(
            f"{path}: {unknown[0]} is unexpected ({len(unknown)} such tensors): a RetinaNet of {package} does not have"
            " it, and this network would not compute the same without it"
        )
    content = {
        "format": FORMAT,
        "config": config_to_dict(resolved),
        "categories": [category._asdict() for category in categories],
        "versions": versions(),
        "model": weights,
        "source": f"{package}: {path.name}",
    }
    return Imported(package, content, used, ignored)


def _resolve_config(
    shapes: dict[str, Any], settings: dict[str, Any], path: Path, config: str | None, overrides: Sequence[str]
) -> Config:
    """The config from the tensors' shapes, the package's defaults and the user's settings, in this order."""
    tree = merge(config_to_dict(Config()), shapes)
    if overlay(tree, str(path), config, overrides).model.anchors != Config().model.anchors:
        settings["model"].get("anchors", {}).pop("levels", None)  # the user's sizes, not the package's
    resolved = overlay(merge(tree, settings), str(path), config, overrides)
    check_code(resolved, path)
    return resolved


def _unwrap(value: Any, path: Path) -> tuple[State, list[str]]:
    """The state dict, and the class names if the file has them."""
    names: list[str] = []
    if isinstance(value, dict) and "format" in value:
        raise WeightsError(f"{path}: is a checkpoint of this package already; use it as it is, or add --to torchvision")
    if isinstance(value, dict) and isinstance(value.get("meta"), dict):  # MMDetection
        meta = value["meta"].get("dataset_meta") or value["meta"]
        known = (meta.get("classes") or meta.get("CLASSES") or []) if isinstance(meta, dict) else meta
        if not isinstance(meta, dict) or not isinstance(known, list | tuple):
            raise WeightsError(f"{path}: its class names are {str(known)[:80]}, which is not a list")
        names = [str(name) for name in known]
    for key in ("model", "state_dict"):
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
    if not is_state_dict(value):
        raise WeightsError(f"{path}: is neither a checkpoint nor a state dict (names to tensors)")
    # torchvision's files from before 0.13, such as the published COCO_V1, have one level of nesting less.
    state: State = {}
    for name, tensor in value.items():
        _check_tensor(name, tensor, path)
        name = re.sub(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$", r"\1.0.\2", name)
        old = re.fullmatch(r"(head\.(?:classification|regression)_head\.conv)\.(\d+)\.(weight|bias)", name)
        state[f"{old[1]}.{int(old[2]) // 2}.0.{old[3]}" if old else name] = tensor.detach()
    return state, names


def _check_tensor(name: Any, tensor: Tensor, path: Path) -> None:
    """Refuse what is not a dense tensor of finite numbers, or is larger than in any model."""
    if tensor.numel() > LARGEST:
        raise WeightsError(f"{path}: {name} is {list(tensor.shape)}, which is larger than any tensor of a RetinaNet")
    check_tensor(name, tensor, path)
    if not tensor.is_floating_point() and not name.endswith("num_batches_tracked"):
        raise WeightsError(f"{path}: {name} is of {tensor.dtype}; weights are floating-point numbers")


def _read_shapes(
    theirs: Callable[[str, int], Tensor], state: State, source: Source, layers: int, path: Path
) -> dict[str, Any]:
    """The part of a config that tensors show."""
    num_convs = 0
    while source.name(f"head.cls_tower.{layers * num_convs}.weight", layers) in state:
        num_convs += 1
    has_counts = any(name.endswith("num_batches_tracked") for name in state)
    channels = len(theirs("pyramid.fpn.lateral.0.weight", 4))
    width = len(theirs("head.cls_tower.0.weight", 4)) if num_convs else channels
    has_bias = layers == 3 and source.name("head.cls_tower.0.bias", layers) in state
    p6_from = "p5" if theirs("pyramid.fpn.output.p6.weight", 4).shape[1] == channels else "c5"
    backbone = {"name": _find_backbone(state, source, layers, path), "norm": "bn" if has_counts else "frozen_bn"}
    return {
        "task": "detection",
        "model": {
            "backbone": backbone,
            "fpn": {"channels": channels, "p6_from": p6_from},
            "head": {
                "num_convs": num_convs,
                "channels": None if width == channels else width,
                "norm": "gn" if layers == 3 else "none",
                "norm_bias": has_bias,
            },
        },
    }


def _find_backbone(state: State, source: Source, layers: int, path: Path) -> str:
    """The ResNet with tensors of these names and shapes."""
    own = {
        name: tensor.shape
        for name, tensor in state.items()
        if name.startswith(source.backbone) and not name.endswith("num_batches_tracked")
    }
    best: tuple[int, str, str] | None = None
    for network in RESNETS:
        with torch.device("meta"):
            tensors = BACKBONES[network].build().state_dict()
        shapes = {
            source.name(f"pyramid.backbone.body.{name}", layers): tensor.shape
            for name, tensor in tensors.items()
            if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
        }
        faults = [f"{name} is missing" for name in shapes.keys() - own.keys()]
        faults += [f"{name} is unexpected" for name in own.keys() - shapes.keys()]
        faults += [
            f"{name} is {list(own[name])}, not {list(shape)}"
            for name, shape in shapes.items()
            if name in own and own[name] != shape
        ]
        if not faults:
            return network
        if best is None or len(faults) < best[0]:
            best = (len(faults), network, min(faults))
    raise WeightsError(
        f"{path}: its backbone is not {one_of(RESNETS)}; of the nearest, {best[1]}, {best[2]} (faults: {best[0]})"
    )


def _categories(num_classes: int, names: list[str], package: str) -> list[Category]:
    if len(names) == num_classes and names != [category.name for category in COCO]:
        return [Category(label, name) for label, name in enumerate(names)]
    if num_classes == len(COCO) or (package == "torchvision" and num_classes == RAW_COCO):
        return COCO
    return [Category(label, f"class {label}") for label in range(num_classes)]


# Of each package, its detectors.
SOURCES: dict[str, list[Source]] = {
    "torchvision": [torchvision.SOURCE],
    "detectron2": [detectron2.SOURCE],
    "mmdetection": mmdetection.SOURCES,
}
