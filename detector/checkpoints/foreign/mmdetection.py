"""MMDetection's RetinaNet: its tensor names, mapped to ours."""

from __future__ import annotations

import re
from typing import Any

from detector.checkpoints.foreign.source import Source, as_it_is, renamed


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
    return renamed(rules, ours)


def _mmdetection_settings(file: str) -> dict[str, Any]:
    return {"data": {"resize": {"interpolation": "bilinear"}}, "model": {"fpn": {"relu_before_p7": False}}}


SOURCE = Source(
    mark="bbox_head.retina_cls.weight",
    backbone="backbone.",
    name=_mmdetection_name,
    second_layer="bbox_head.cls_convs.0.gn.weight",
    settings=_mmdetection_settings,
    convert=as_it_is,
    unused=r".*\.num_batches_tracked",
)
