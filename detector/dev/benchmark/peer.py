"""torchvision's RetinaNet with our weights, and a comparison of detections.

For the same mathematics our side uses torchvision's anchors, L1 as the box loss and no gradient clipping, all by fields
of our config.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detector.checkpoints.foreign import torchvision
from detector.checkpoints.foreign.torchvision import check_exportable, to_torchvision
from detector.config.loader import config_from_dict, config_to_dict, load_config, merge
from detector.config.schema import Config
from detector.data.loading.collate import pad_images
from detector.errors import ConfigError
from detector.models import build_model

C5 = {"resnet18": 512, "resnet34": 512}  # channels of the others are 2048
SCORE_SPREAD, DELTA_SPREAD = 0.88, 0.2  # deviations of logits and deltas: 3 % of the scores pass 0.05
PLAIN_STEP = {"clip_norm": None, "ema": None, "accumulate": 1, "optimizer": {"name": "sgd"}}


def comparable(name: str, overrides: Sequence[str]) -> Config:
    """The config of that name, changed to what torchvision does where they differ.

    Raises :class:`detector.errors.WeightsError` for a model that torchvision does not have.
    """
    config = load_config(name, overrides)
    if config.train.batch_size == "auto":
        raise ConfigError("train.batch_size: auto is for training; give a number")
    check_exportable(config, name)
    tree = merge(config_to_dict(config), torchvision.SOURCE.settings("", {}))
    tree = merge(tree, {"model": {"weights": None, "loss": {"box": "l1"}}, "train": PLAIN_STEP})
    return config_from_dict(tree, name)


def make_weights(config: Config, classes: int, image: Tensor) -> dict[str, Any]:
    """The content of a checkpoint with random weights and class ids 0..K-1.

    On ``image`` [C, H, W] uint8 the scores spread like a trained model's, so that there are detections.
    """
    torch.manual_seed(0)
    model = build_model(config.model, classes).eval()
    with torch.no_grad():
        output = model(pad_images([image]), torch.tensor([image.shape[-2:]]))
        model.head.cls_output.weight *= SCORE_SPREAD / output.cls_logits.std()
        model.head.box_output.weight *= DELTA_SPREAD / output.box_channels.std()
    return {
        "config": config_to_dict(config),
        "categories": [{"id": label, "name": f"class {label}"} for label in range(classes)],
        "model": model.state_dict(),
    }


def build_torchvision(config: Config, weights: dict[str, Any]) -> RetinaNet:
    """torchvision's model for a comparable config, with the weights of :func:`make_weights`."""
    state = to_torchvision(weights, "the config")
    section = config.model.backbone
    in_channels = C5.get(section.name, 2048) if config.model.fpn.p6_from == "c5" else config.model.fpn.channels
    backbone = resnet_fpn_backbone(
        backbone_name=section.name,
        weights=None,
        norm_layer=FrozenBatchNorm2d if section.norm == "frozen_bn" else nn.BatchNorm2d,
        trainable_layers=5 - section.freeze_at,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(in_channels, config.model.fpn.channels),
    )
    norm = partial(nn.GroupNorm, 32) if config.model.head.norm == "gn" else None
    classes = len(weights["categories"])
    resize = config.data.resize
    short, long = sorted(resize.fixed) if resize.fixed else (resize.short[-1], resize.long)
    model = RetinaNet(
        backbone,
        classes,
        min_size=short,
        max_size=long,
        head=RetinaNetHead(backbone.out_channels, config.model.anchors.per_cell, classes, norm_layer=norm),
        anchor_generator=torchvision_anchors(),
    )
    model.load_state_dict(state, strict=False)  # it may have batch counts, which ours does not
    return model


def torchvision_anchors() -> AnchorGenerator:
    """The anchors of its published RetinaNets."""
    sizes = [tuple(int(side * 2 ** (step / 3)) for step in range(3)) for side in (32, 64, 128, 256, 512)]
    return AnchorGenerator(tuple(sizes), ((0.5, 1.0, 2.0),) * len(sizes))


def torchvision_without_backbone(classes: int) -> RetinaNet:
    """For its losses and its post-processing, which need no network."""
    backbone = nn.Identity()
    backbone.out_channels = 8
    return RetinaNet(backbone, classes)


Found = tuple[Tensor, Tensor, Tensor]  # boxes [D, 4], scores [D], labels [D] of one image


def same_detections(ours: Sequence[Found], theirs: Sequence[Found], score: float, pixels: float) -> bool:
    """Whether each detection of either side has a counterpart with its label, score and box within the tolerances.

    Only the lowest-scored ones may lack one: the sides may keep different ones of equal scores.
    """
    for own, other in zip(ours, theirs, strict=True):
        if len(own[1]) != len(other[1]):
            return False
        if len(own[1]) == 0:
            continue
        last = torch.maximum(own[1].min(), other[1].min())
        for one, two in itertools.permutations((own, other)):
            is_same = (
                ((one[0][:, None] - two[0]).abs().amax(dim=-1) <= pixels)
                & ((one[1][:, None] - two[1]).abs() <= score)
                & (one[2][:, None] == two[2])
            )  # [D, D]
            if not (is_same.any(dim=1) | (one[1] <= last + score)).all():
                return False
    return True
