"""MMDetection's RetinaNet, ATSS and GFL: their tensor names, mapped to ours."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from detector.checkpoints.foreign.source import Source, State, renamed
from detector.config.schema import AnchorConfig


def _source(kind: str) -> Source:
    """How it stores the detector whose output layers are ``bbox_head.{kind}_cls`` and ``bbox_head.{kind}_reg``."""

    def name(ours: str, layers: int) -> str:
        if match := re.fullmatch(r"pyramid\.fpn\.output\.p(\d)\.(\w+)", ours):
            return f"neck.fpn_convs.{int(match[1]) - 3}.conv.{match[2]}"
        if match := re.fullmatch(r"head\.(cls|box)_tower\.(\d+)\.(\w+)", ours):
            head, layer = {"cls": "cls", "box": "reg"}[match[1]], ["conv", "gn"][int(match[2]) % layers]
            return f"bbox_head.{head}_convs.{int(match[2]) // layers}.{layer}.{match[3]}"
        rules = {
            r"pyramid\.backbone\.body\.(.+)": r"backbone.\1",
            r"pyramid\.fpn\.lateral\.(\d)\.(\w+)": r"neck.lateral_convs.\1.conv.\2",
            r"head\.cls_output\.(\w+)": rf"bbox_head.{kind}_cls.\1",
            r"head\.box_output\.(\w+)": rf"bbox_head.{kind}_reg.\1",
            r"head\.scales\.(\d+)": r"bbox_head.scales.\1.scale",
            r"head\.quality_output\.hidden\.(\w+)": r"bbox_head.reg_conf.0.\1",
            r"head\.quality_output\.output\.(\w+)": r"bbox_head.reg_conf.2.\1",
            r"head\.quality_output\.(\w+)": r"bbox_head.atss_centerness.\1",
        }
        return renamed(rules, ours)

    def settings(file: str, state: State) -> dict[str, Any]:
        model: dict[str, Any] = {"fpn": {"relu_before_p7": False}}
        if kind != "retina":
            model["anchors"] = {"base_size": 8.0, "ratios": [1.0], "scales": [1.0]}
            model["matcher"] = {"name": "atss"}
            model["predict"] = {"nms_threshold": 0.6}
            model |= _atss() if kind == "atss" else _gfl(state)
        return {"data": {"resize": {"interpolation": "bilinear"}}, "model": model}

    return Source(
        mark=f"bbox_head.{kind}_cls.weight",
        backbone="backbone.",
        name=name,
        second_layer="bbox_head.cls_convs.0.gn.weight",
        settings=settings,
        convert=_value,
        unused=r".*\.num_batches_tracked|bbox_head\.integral\.project",
    )


def _atss() -> dict[str, Any]:
    return {
        "head": {"level_scales": True, "quality": "centerness"},
        "box_coder": {"stds": [0.1, 0.2]},
        "loss": {"box": "giou", "box_weight": 2.0, "weigh_boxes": "quality"},
    }


def _gfl(state: State) -> dict[str, Any]:
    """GFL, or GFLv2, whose authors build on MMDetection."""
    is_v2 = "bbox_head.reg_conf.0.weight" in state
    return {
        "head": {"level_scales": True, "quality": "distribution" if is_v2 else "none"},
        "box_coder": {"name": "distribution", "reg_max": state["bbox_head.gfl_reg.bias"].numel() // 4 - 1},
        "loss": {"cls": "quality_focal", "box": "giou", "box_weight": 2.0, "weigh_boxes": "score"},
    }


def _value(ours: str, tensor: Tensor, anchors: AnchorConfig) -> Tensor:
    # Linear layers on each anchor's numbers are 1×1 convolutions there.
    is_linear = re.fullmatch(r"head\.quality_output\.(hidden|output)\.weight", ours)
    return tensor.flatten(1) if is_linear else tensor


SOURCES = [_source(kind) for kind in ("retina", "atss", "gfl")]
