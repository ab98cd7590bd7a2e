"""torchvision's RetinaNet: its tensor names, mapped to ours, and our checkpoints as its state dicts."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from detector.checkpoints.foreign.source import RESNETS, Source, State, as_it_is, renamed
from detector.config.loader import config_from_dict
from detector.config.schema import Config
from detector.errors import WeightsError, one_of

# The file of the published weights that were trained with eps 0 in batch norm; it ends in a hash of the content.
TORCHVISION_COCO_V1 = "retinanet_resnet50_fpn_coco-eeacb38b"


def _torchvision_name(ours: str, layers: int) -> str:
    if match := re.fullmatch(r"pyramid\.fpn\.output\.p([345])\.(\w+)", ours):
        return f"backbone.fpn.layer_blocks.{int(match[1]) - 3}.0.{match[2]}"
    if match := re.fullmatch(r"head\.(cls|box)_tower\.(\d+)\.(\w+)", ours):
        head = {"cls": "classification_head", "box": "regression_head"}[match[1]]
        return f"head.{head}.conv.{int(match[2]) // layers}.{int(match[2]) % layers}.{match[3]}"
    rules = {
        r"pyramid\.backbone\.body\.(.+)": r"backbone.body.\1",
        r"pyramid\.fpn\.lateral\.(\d)\.(\w+)": r"backbone.fpn.inner_blocks.\1.0.\2",
        r"pyramid\.fpn\.output\.(p[67])\.(\w+)": r"backbone.fpn.extra_blocks.\1.\2",
        r"head\.cls_output\.(\w+)": r"head.classification_head.cls_logits.\1",
        r"head\.box_output\.(\w+)": r"head.regression_head.bbox_reg.\1",
    }
    return renamed(rules, ours)


def _torchvision_settings(file: str, state: State) -> dict[str, Any]:
    # Anchor sizes are truncated to whole pixels, corners rounded.
    steps = [1.0, 2 ** (1 / 3), 2 ** (2 / 3)]
    scales = {level: [int(4 * 2**level * step) / (4 * 2**level) for step in steps] for level in range(3, 8)}
    anchors = {"rounded": True, "strides": "from_size"}
    anchors["levels"] = {str(level): {"scales": of_level} for level, of_level in scales.items()}
    model: dict[str, Any] = {"anchors": anchors, "predict": {"max_detections": 300, "keep_empty": True}}
    if file.startswith(TORCHVISION_COCO_V1):
        model["backbone"] = {"norm_eps": 0.0}
    return {"data": {"resize": {"rounding": "down", "interpolation": "bilinear"}}, "model": model}


MOST_ROWS = 100_000  # classes of an exported model, unused ids included


def to_torchvision(content: dict[str, Any], path: str | Path) -> State:
    """The state dict of torchvision's RetinaNet with the weights of one of our checkpoints.

    Its labels are our category ids, so the model to load it into has ``max(id) + 1`` classes; unused ids get a score of
    0.01. Raises :class:`detector.errors.WeightsError` for a model that
    torchvision does not have.
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
    """Raise :class:`detector.errors.WeightsError` for a model that torchvision's RetinaNet cannot represent."""
    model, plain = config.model, Config().model
    if config.task != "detection" or model.backbone is None or model.backbone.name not in RESNETS:
        names = " + ".join(backbone.name for backbone in model.backbones)
        raise WeightsError(
            f"{path}: is {config.task} on {names}; torchvision has detection on one of {one_of(RESNETS)}"
        )
    fpn = {key: (getattr(model.fpn, key), getattr(plain.fpn, key)) for key in type(plain.fpn).model_fields}
    del fpn["channels"], fpn["p6_from"]  # torchvision has both, and any width
    for key, (has, needs) in {
        "in_channels": (model.in_channels, 3),
        "normalise": ((model.mean, model.std), (plain.mean, plain.std)),
        "backbone.stride_in_1x1": (model.backbone.stride_in_1x1, False),
        **{f"fpn.{key}": values for key, values in fpn.items()},
        "head.name": (model.head.name, "retina"),
        "head.num_convs": (model.head.num_convs, 4),
        "head.norm_bias": (model.head.norm_bias, False),
        "head.level_scales": (model.head.level_scales, False),
        "head.quality": (model.head.quality, "none"),
        "box_coder.name": (model.box_coder.name, "deltas"),
        "box_coder.stds": (model.box_coder.stds, [1.0, 1.0]),
        "head.channels": (model.head.channels or model.fpn.channels, model.fpn.channels),
        # torchvision sets the eps 0 of its published weights after building the model.
        "backbone.norm_eps": (model.backbone.norm_eps or 1e-5, 1e-5),
    }.items():
        if has != needs:
            raise WeightsError(f"{path}: torchvision's RetinaNet needs model.{key} {needs}, not {has}")
    width = model.head.channels or model.fpn.channels
    if model.head.norm == "gn" and width % 32:
        raise WeightsError(f"{path}: torchvision's group norm has 32 groups, which do not divide {width} channels")


SOURCE = Source(
    mark="head.classification_head.cls_logits.weight",
    backbone="backbone.body.",
    name=_torchvision_name,
    second_layer="head.classification_head.conv.0.1.weight",
    settings=_torchvision_settings,
    convert=as_it_is,
    unused=r".*\.num_batches_tracked",
)
