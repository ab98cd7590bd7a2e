"""Checkpoints of torchvision, Detectron2 and MMDetection as ours, and ours as torchvision's.

A source is a function from our names to its names, and what its config must have to give the same outputs. All of that
are plain config fields, so an imported checkpoint is one of ours that could have been trained here.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor

from detector.checkpoints.checkpoint import FORMAT, check_format, compare_weights, versions
from detector.config.loader import config_from_dict, config_to_dict, merge, overlay
from detector.config.schema import AnchorConfig, Config
from detector.data.detection import Category
from detector.errors import WeightsError, one_of
from detector.files.tensors import check_tensor, is_state_dict, read_file, resolve
from detector.models import build_model
from detector.models.backbones import BACKBONES

State = dict[str, Tensor]

# Models trained on COCO name their classes by ids of 1 to 90, of which no picture has ten.
_ROWS = torchvision.models.detection.RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
COCO = [Category(row, name) for row, name in enumerate(_ROWS) if name not in ("__background__", "N/A")]
RAW_COCO = len(_ROWS)  # torchvision's COCO models have a row for every id from 0 to 90

RESNETS = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d"]
RESNETS += ["resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"]

HEAD_BATCH_NORMS = r"(head|bbox_head)\..*\.running_(mean|var)"

LARGEST = 10**8  # numbers of a tensor; a small file can claim any number by repeating one

# torchvision's published weights that were trained with eps 0 in batch norm; the name ends in a hash of the content.
TORCHVISION_COCO_V1 = "retinanet_resnet50_fpn_coco-eeacb38b"


class Source(NamedTuple):
    """How a package writes a RetinaNet."""

    mark: str  # a tensor that the others do not have
    backbone: str  # what the names of its backbone's tensors begin with
    name: Callable[[str, int], str]  # its name of a tensor of ours; with layers a convolution of a head has
    second_layer: str  # the norm after the first convolution of the class head, where there is one
    settings: Callable[[str], dict[str, Any]]  # of a file name: what its config has that is not seen in the tensors
    convert: Callable[[str, Tensor, AnchorConfig], Tensor]  # its value of a tensor of ours, as ours
    unused: str  # a pattern of tensors that hold nothing learnt


class Imported(NamedTuple):
    """What was made of a file."""

    source: str  # torchvision, detectron2 or mmdetection
    content: dict[str, Any]  # of a checkpoint of ours
    used: dict[str, str]  # tensors of the file, and ours that they became
    ignored: list[str]  # tensors of the file that hold nothing learnt

    def report(self) -> str:
        """One line a tensor of the file."""
        lines = [f"used     {theirs} -> {ours}" for theirs, ours in self.used.items()]
        return "\n".join([*lines, *(f"ignored  {theirs}" for theirs in self.ignored)]) + "\n"


def find_checkpoint(source: str | Path) -> Path:
    """The file that ``source`` means, here or in another package: a path, a run's folder, a URL or torchvision's name.

    Of a run it is ``best.pt``, else ``last.pt``, and a line says so. Raises
    :class:`~detector.errors.WeightsError` for anything else.
    """
    if os.path.isdir(source):  # noqa: PTH112 (Path.is_dir raises for a name that is too long)
        files = [Path(source) / name for name in ("best.pt", "last.pt")]
        found = next((file for file in files if file.is_file()), None)
        if found is None:
            raise WeightsError(
                f"{source}: is a folder without best.pt and last.pt; give a run's folder or a checkpoint"
            )
        if os.environ.get("RANK", "0") == "0":  # once, of all that torchrun started
            print(f"{source}: is a folder, of which {found.name} is taken", file=sys.stderr)
        return found
    if kind := _KINDS.get(Path(source).suffix.lower()):
        raise WeightsError(f"{source}: is {kind}, not a checkpoint; give one, as runs/NAME/best.pt, or a run's folder")
    path = resolve(str(source))
    if path is None:
        beside = {file.name: str(file) for file in Path(source).parent.glob("*")}
        near = difflib.get_close_matches(Path(source).name, beside, n=1)
        hint = f"; did you mean {beside[near[0]]}?" if near else ""
        raise WeightsError(f"{source}: is no file, no URL and no name of torchvision's weights{hint}")
    return path


_KINDS = {".yaml": "a config", ".yml": "a config", ".json": "a JSON file", ".jpg": "an image", ".png": "an image"}
_KINDS |= {".csv": "a table", ".onnx": "an exported model"}


def open_checkpoint(source: str | Path) -> dict[str, Any]:
    """The content of a checkpoint of ours, or of what :func:`import_checkpoint` makes of another package's."""
    path = find_checkpoint(source)
    value = read_file(path)
    if isinstance(value, dict) and "format" in value:
        return check_format(value, path)
    return _import(value, path, None, None, ()).content


def import_checkpoint(
    source: str, package: str | None = None, config: str | None = None, overrides: Sequence[str] = ()
) -> Imported:
    """A checkpoint of another package, with a config that reproduces it.

    ``source``: see :func:`find_checkpoint`. ``package`` is recognised by the tensors' names if it is None.
    ``config`` is a YAML file, and ``overrides`` are ``key=value``, of what the tensors do not show and is not usual
    there. Raises :class:`~detector.errors.WeightsError` for a tensor that is missing, too many or of another shape.
    """
    path = find_checkpoint(source)
    return _import(read_file(path), path, package, config, overrides)


def _import(value: Any, path: Path, package: str | None, config: str | None, overrides: Sequence[str]) -> Imported:
    state, names = _unwrap(value, path)
    package = package or next((name for name, source in SOURCES.items() if source.mark in state), None)
    if package is None or SOURCES[package].mark not in state:
        known = ", ".join(f"{name} ({source.mark})" for name, source in SOURCES.items())
        raise WeightsError(f"{path}: is no RetinaNet of {package or known}: its first tensor is {next(iter(state))}")
    source = SOURCES[package]
    if norms := [name for name in state if re.fullmatch(HEAD_BATCH_NORMS, name)]:
        raise WeightsError(
            f"{path}: {norms[0]}: its head has batch norms, in Detectron2 and MMDetection one for each level, which"
            " a head that all levels share cannot hold; heads with group norms (GN) or without norms are read"
        )
    layers = 3 if source.second_layer in state else 2  # convolution, (norm,) ReLU

    def theirs(ours: str, ndim: int | None = None) -> Tensor:
        name = source.name(ours, layers)
        if name not in state:
            raise WeightsError(f"{path}: {name} is missing")
        if ndim is not None and state[name].ndim != ndim:
            raise WeightsError(f"{path}: {name} is {list(state[name].shape)}, which has not {ndim} dimensions")
        return state[name]

    resolved = _resolve_config(_read_shapes(theirs, state, source, layers, path), source, path, config, overrides)
    anchors = resolved.model.anchors.per_cell
    rows, sides = len(theirs("head.cls_output.bias", 1)), len(theirs("head.box_output.bias", 1))
    if rows % anchors or sides != 4 * anchors or rows == 0:
        raise WeightsError(
            f"{path}: has {sides // 4} anchors a cell, the config {anchors}; give the model.anchors that it was trained"
            " with by --config"
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
        raise WeightsError(f"{path}: {unknown[0]} has no place in the model ({len(unknown)} tensors like this)")
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
    shapes: dict[str, Any], source: Source, path: Path, config: str | None, overrides: Sequence[str]
) -> Config:
    """The config that the tensors show, with what is usual in the package and what the person says."""
    tree = merge(config_to_dict(Config()), shapes)
    settings = source.settings(path.name)
    if overlay(tree, str(path), config, overrides).model.anchors != Config().model.anchors:
        settings["model"].get("anchors", {}).pop("levels", None)  # the person's own, not the package's sizes
    return overlay(merge(tree, settings), str(path), config, overrides)


def _unwrap(value: Any, path: Path) -> tuple[State, list[str]]:
    """The state dict and the names of classes, where the file has them."""
    names: list[str] = []
    if isinstance(value, dict) and isinstance(value.get("meta"), dict):  # MMDetection
        meta = value["meta"].get("dataset_meta") or value["meta"]
        known = (meta.get("classes") or meta.get("CLASSES") or []) if isinstance(meta, dict) else meta
        if not isinstance(meta, dict) or not isinstance(known, list | tuple):
            raise WeightsError(f"{path}: its names of classes are {str(known)[:80]}, which is no list")
        names = [str(name) for name in known]
    for key in ("model", "state_dict"):
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
    if not is_state_dict(value):
        raise WeightsError(f"{path}: is neither a checkpoint nor a state dict (names to tensors)")
    # torchvision's files from before its version 0.13, among them its published COCO_V1, have one level less.
    state: State = {}
    for name, tensor in value.items():
        _check_tensor(name, tensor, path)
        name = re.sub(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$", r"\1.0.\2", name)
        old = re.fullmatch(r"(head\.(?:classification|regression)_head\.conv)\.(\d+)\.(weight|bias)", name)
        state[f"{old[1]}.{int(old[2]) // 2}.0.{old[3]}" if old else name] = tensor.detach()
    return state, names


def _check_tensor(name: Any, tensor: Tensor, path: Path) -> None:
    """Refuse what is no dense tensor of finite numbers, or claims to be larger than any model."""
    if tensor.numel() > LARGEST:
        raise WeightsError(f"{path}: {name} is {list(tensor.shape)}, which is larger than any of a RetinaNet")
    check_tensor(name, tensor, path)
    if not tensor.is_floating_point() and not name.endswith("num_batches_tracked"):
        raise WeightsError(f"{path}: {name} is of {tensor.dtype}; weights are floating-point numbers")


def _read_shapes(
    theirs: Callable[[str, int], Tensor], state: State, source: Source, layers: int, path: Path
) -> dict[str, Any]:
    """What the tensors show of a config."""
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
        faults += [f"{name} has no place" for name in own.keys() - shapes.keys()]
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
        f"{path}: its backbone is none of {one_of(RESNETS)}; of {best[1]}, {best[2]} (faults: {best[0]})"
    )


def _categories(num_classes: int, names: list[str], package: str) -> list[Category]:
    if len(names) == num_classes and names != [category.name for category in COCO]:
        return [Category(label, name) for label, name in enumerate(names)]
    if num_classes == len(COCO) or (package == "torchvision" and num_classes == RAW_COCO):
        return COCO
    return [Category(label, f"class {label}") for label in range(num_classes)]


def _renamed(rules: dict[str, str], name: str) -> str:
    """``name`` by the first pattern that fits."""
    for pattern, template in rules.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(template)
    raise KeyError(name)


# --- torchvision ------------------------------------------------------------------------------------------------------


def _torchvision_name(ours: str, layers: int) -> str:
    if match := re.fullmatch(r"pyramid\.fpn\.output\.p([345])\.(\w+)", ours):
        return f"backbone.fpn.layer_blocks.{int(match[1]) - 3}.0.{match[2]}"
    if match := re.fullmatch(r"head\.(cls|box)_tower\.(\d+)\.(\w+)", ours):
        head = {"cls": "classification", "box": "regression"}[match[1]]
        return f"head.{head}_head.conv.{int(match[2]) // layers}.{int(match[2]) % layers}.{match[3]}"
    rules = {
        r"pyramid\.backbone\.body\.(.+)": r"backbone.body.\1",
        r"pyramid\.fpn\.lateral\.(\d)\.(\w+)": r"backbone.fpn.inner_blocks.\1.0.\2",
        r"pyramid\.fpn\.output\.(p[67])\.(\w+)": r"backbone.fpn.extra_blocks.\1.\2",
        r"head\.cls_output\.(\w+)": r"head.classification_head.cls_logits.\1",
        r"head\.box_output\.(\w+)": r"head.regression_head.bbox_reg.\1",
    }
    return _renamed(rules, ours)


def _torchvision_settings(file: str) -> dict[str, Any]:
    # Sizes are cut to whole pixels, cells' corners rounded to them.
    steps = [1.0, 2 ** (1 / 3), 2 ** (2 / 3)]
    scales = {level: [int(4 * 2**level * step) / (4 * 2**level) for step in steps] for level in range(3, 8)}
    anchors = {"rounded": True, "strides": "from_size"}
    anchors["levels"] = {str(level): {"scales": of_level} for level, of_level in scales.items()}
    model: dict[str, Any] = {"anchors": anchors, "predict": {"max_detections": 300, "keep_empty": True}}
    if file.startswith(TORCHVISION_COCO_V1):
        model["backbone"] = {"norm_eps": 0.0}
    return {"data": {"resize": {"rounding": "down", "interpolation": "bilinear"}}, "model": model}


def _as_it_is(ours: str, tensor: Tensor, anchors: AnchorConfig) -> Tensor:
    return tensor


# --- Detectron2 -------------------------------------------------------------------------------------------------------


def _detectron2_name(ours: str, layers: int) -> str:
    if match := re.fullmatch(r"pyramid\.fpn\.lateral\.(\d)\.(\w+)", ours):
        return f"backbone.fpn_lateral{int(match[1]) + 3}.{match[2]}"
    if match := re.fullmatch(r"pyramid\.backbone\.body\.layer(\d)\.(.+)", ours):
        ours = f"backbone.bottom_up.res{int(match[1]) + 1}.{match[2]}"
    rules = {
        r"pyramid\.backbone\.body\.conv1\.(\w+)": r"backbone.bottom_up.stem.conv1.\1",
        r"pyramid\.backbone\.body\.bn1\.(\w+)": r"backbone.bottom_up.stem.conv1.norm.\1",
        r"(backbone\..+)\.bn(\d)\.(\w+)": r"\1.conv\2.norm.\3",
        r"(backbone\..+)\.downsample\.0\.(\w+)": r"\1.shortcut.\2",
        r"(backbone\..+)\.downsample\.1\.(\w+)": r"\1.shortcut.norm.\2",
        r"(backbone\..+)": r"\1",
        r"pyramid\.fpn\.output\.p([345])\.(\w+)": r"backbone.fpn_output\1.\2",
        r"pyramid\.fpn\.output\.(p[67])\.(\w+)": r"backbone.top_block.\1.\2",
        r"head\.cls_tower\.(.+)": r"head.cls_subnet.\1",
        r"head\.box_tower\.(.+)": r"head.bbox_subnet.\1",
        r"head\.cls_output\.(\w+)": r"head.cls_score.\1",
        r"head\.box_output\.(\w+)": r"head.bbox_pred.\1",
    }
    return _renamed(rules, ours)


def _detectron2_settings(file: str) -> dict[str, Any]:
    """Of its RetinaNets R50 and R101, whose ResNets are Microsoft's: stride in the 1×1, pixels not scaled."""
    return {
        "model": {
            "normalise": {"std": [1.0, 1.0, 1.0]},
            "backbone": {"stride_in_1x1": True},
            "predict": {"clip": "after_nms"},
        }
    }


def _detectron2_value(ours: str, tensor: Tensor, anchors: AnchorConfig) -> Tensor:
    if ours == "pyramid.backbone.body.conv1.weight":
        return tensor.flip(1)  # its pictures are BGR
    if ours.startswith(("head.cls_output.", "head.box_output.")):
        # Its cells have the ratios of one scale after the other, ours the scales of one ratio.
        by_anchor = tensor.view(len(anchors.scales), len(anchors.ratios), -1, *tensor.shape[1:])
        return by_anchor.transpose(0, 1).reshape(tensor.shape)
    return tensor


# --- MMDetection ------------------------------------------------------------------------------------------------------


def _mmdetection_name(ours: str, layers: int) -> str:
    if match := re.fullmatch(r"pyramid\.fpn\.output\.p(\d)\.(\w+)", ours):
        return f"neck.fpn_convs.{int(match[1]) - 3}.conv.{match[2]}"
    if match := re.fullmatch(r"head\.(cls|box)_tower\.(\d+)\.(\w+)", ours):
        head, layer = {"cls": "cls", "box": "reg"}[match[1]], ["conv", "gn"][int(match[2]) % layers]
        return f"bbox_head.{head}_convs.{int(match[2]) // layers}.{layer}.{match[3]}"
    rules = {
        r"pyramid\.backbone\.body\.(.+)": r"backbone.\1",
        r"pyramid\.fpn\.lateral\.(\d)\.(\w+)": r"neck.lateral_convs.\1.conv.\2",
        r"head\.cls_output\.(\w+)": r"bbox_head.retina_cls.\1",
        r"head\.box_output\.(\w+)": r"bbox_head.retina_reg.\1",
    }
    return _renamed(rules, ours)


def _mmdetection_settings(file: str) -> dict[str, Any]:
    return {"data": {"resize": {"interpolation": "bilinear"}}, "model": {"fpn": {"relu_before_p7": False}}}


SOURCES: dict[str, Source] = {
    "torchvision": Source(
        mark="head.classification_head.cls_logits.weight",
        backbone="backbone.body.",
        name=_torchvision_name,
        second_layer="head.classification_head.conv.0.1.weight",
        settings=_torchvision_settings,
        convert=_as_it_is,
        unused=r".*\.num_batches_tracked",
    ),
    "detectron2": Source(
        mark="head.cls_score.weight",
        backbone="backbone.bottom_up.",
        name=_detectron2_name,
        second_layer="head.cls_subnet.1.weight",
        settings=_detectron2_settings,
        convert=_detectron2_value,
        unused=r"pixel_mean|pixel_std|anchor_generator\..*|.*\.num_batches_tracked",
    ),
    "mmdetection": Source(
        mark="bbox_head.retina_cls.weight",
        backbone="backbone.",
        name=_mmdetection_name,
        second_layer="bbox_head.cls_convs.0.gn.weight",
        settings=_mmdetection_settings,
        convert=_as_it_is,
        unused=r".*\.num_batches_tracked",
    ),
}


MOST_ROWS = 100_000  # classes, those that ours does not have included


# --- back -------------------------------------------------------------------------------------------------------------


def to_torchvision(content: dict[str, Any], path: str | Path) -> State:
    """The state dict of torchvision's RetinaNet with the weights of one of our checkpoints.

    Its labels are our category ids, so the model to load it into has ``max(id) + 1`` classes; classes in between that
    ours does not have begin at a score of 0.01. Raises :class:`~detector.errors.WeightsError` for a model that
    torchvision cannot hold.
    """
    config = config_from_dict(content["config"], str(path))
    check_exportable(config, path)
    ids = [category["id"] for category in content["categories"]]
    if odd := [own for own in ids if not isinstance(own, int) or not 0 <= own < MOST_ROWS]:
        raise WeightsError(
            f"{path}: category id {odd[0]!r} cannot be a label of torchvision's, which are integers from 0; train with"
            " such ids to export"
        )
    rows, anchors = max(ids) + 1, config.model.anchors.per_cell
    layers = 3 if config.model.head.norm == "gn" else 2
    state: State = {}
    for ours, tensor in (content.get("ema") or content["model"]).items():
        if ours.startswith("head.cls_output."):
            fill = -math.log(99) if ours.endswith("bias") else 0.0
            by_class = tensor.new_full((anchors, rows, *tensor.shape[1:]), fill)
            by_class[:, ids] = tensor.view(anchors, -1, *tensor.shape[1:])
            tensor = by_class.flatten(0, 1)
        state[_torchvision_name(ours, layers)] = tensor
    return state


def check_exportable(config: Config, path: str | Path) -> None:
    """Raise :class:`~detector.errors.WeightsError` for a model that torchvision's RetinaNet cannot hold."""
    model, plain = config.model, Config().model
    if config.task != "detection" or model.backbone is None or model.backbone.name not in RESNETS:
        names = " + ".join(backbone.name for backbone in model.backbones)
        raise WeightsError(
            f"{path}: is {config.task} on {names}; torchvision's is detection on one of {one_of(RESNETS)}"
        )
    fpn = {key: (getattr(model.fpn, key), getattr(plain.fpn, key)) for key in type(plain.fpn).model_fields}
    del fpn["channels"], fpn["p6_from"]  # torchvision has both kinds, and any width
    for key, (has, needs) in {
        "in_channels": (model.in_channels, 3),
        "normalise": ((model.mean, model.std), (plain.mean, plain.std)),
        "backbone.stride_in_1x1": (model.backbone.stride_in_1x1, False),
        **{f"fpn.{key}": values for key, values in fpn.items()},
        "head.num_convs": (model.head.num_convs, 4),
        "head.norm_bias": (model.head.norm_bias, False),
        "head.channels": (model.head.channels or model.fpn.channels, model.fpn.channels),
        # Published weights of torchvision's want eps 0, which is set after loading them there, too.
        "backbone.norm_eps": (model.backbone.norm_eps or 1e-5, 1e-5),
    }.items():
        if has != needs:
            raise WeightsError(f"{path}: torchvision's RetinaNet has model.{key} {needs}, this one {has}")
    width = model.head.channels or model.fpn.channels
    if model.head.norm == "gn" and width % 32:
        raise WeightsError(f"{path}: torchvision's group norm has 32 groups, which {width} channels do not make")
