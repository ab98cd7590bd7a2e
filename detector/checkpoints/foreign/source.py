"""How another package stores a RetinaNet, and what the packages share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torchvision
from torch import Tensor

from detector.config.schema import AnchorConfig
from detector.structures import Category

State = dict[str, Tensor]

# COCO's category ids are 1 to 90, of which ten are unused.
_ROWS = torchvision.models.detection.RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
COCO = [Category(row, name) for row, name in enumerate(_ROWS) if name not in ("__background__", "N/A")]
RAW_COCO = len(_ROWS)  # torchvision's COCO models have a row for every id from 0 to 90

RESNETS = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d"]
RESNETS += ["resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"]


class Source(NamedTuple):
    """How a package stores a RetinaNet."""

    mark: str  # a tensor that only this package has
    backbone: str  # prefix of its backbone's tensors
    name: Callable[[str, int], str]  # our name, layers per head convolution -> its name
    second_layer: str  # the norm after the first convolution of the class head, where there is one
    settings: Callable[[str, State], dict[str, Any]]  # file name, tensors -> config values that names do not show
    convert: Callable[[str, Tensor, AnchorConfig], Tensor]  # our name, its tensor, anchors -> our tensor
    unused: str  # a pattern of tensors that are not learnt


def renamed(rules: dict[str, str], name: str) -> str:
    """``name`` rewritten by the first pattern that matches."""
    for pattern, template in rules.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(template)
    raise KeyError(name)


def as_it_is(ours: str, tensor: Tensor, anchors: AnchorConfig) -> Tensor:
    return tensor
