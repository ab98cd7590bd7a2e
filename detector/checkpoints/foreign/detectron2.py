"""Detectron2's RetinaNet: its tensor names and values, mapped to ours."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from detector.checkpoints.foreign.source import Source, State, renamed
from detector.config.schema import AnchorConfig


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
    return renamed(rules, ours)


def _detectron2_settings(file: str, state: State) -> dict[str, Any]:
    """R50 and R101 there are Microsoft's ResNets: stride in the 1×1, pixels not scaled."""
    return {
        "model": {
            "normalise": {"std": [1.0, 1.0, 1.0]},
            "backbone": {"stride_in_1x1": True},
            "predict": {"clip": "after_nms"},
        }
    }


def _detectron2_value(ours: str, tensor: Tensor, anchors: AnchorConfig) -> Tensor:
    if ours == "pyramid.backbone.body.conv1.weight":
        return tensor.flip(1)  # its images are BGR
    if ours.startswith(("head.cls_output.", "head.box_output.")):
        # Anchors of a cell are scale-major there, ratio-major here.
        by_anchor = tensor.view(len(anchors.scales), len(anchors.ratios), -1, *tensor.shape[1:])
        return by_anchor.transpose(0, 1).reshape(tensor.shape)
    return tensor


SOURCE = Source(
    mark="head.cls_score.weight",
    backbone="backbone.bottom_up.",
    name=_detectron2_name,
    second_layer="head.cls_subnet.1.weight",
    settings=_detectron2_settings,
    convert=_detectron2_value,
    unused=r"pixel_mean|pixel_std|anchor_generator\..*|.*\.num_batches_tracked",
)
