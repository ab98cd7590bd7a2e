"""Heads: from pyramid levels, or a network's last vector, to predictions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.config.schema import HeadConfig, ModelConfig
from detector.models.fpn import group_norm
from detector.models.recompute import Recomputed
from detector.ops.anchors import Anchors
from detector.ops.coders import DistributionCoder, build_box_coder
from detector.ops.logits import product_logit
from detector.structures import Predictions


class RetinaHead(nn.Module):
    """Class and box subnets, shared by all levels (RetinaNet, section 4), and what says how good a box is."""

    by_class = ("cls_output.weight", "cls_output.bias")  # tensors whose rows are the classes, repeated per anchor

    def __init__(self, config: ModelConfig, levels: tuple[int, ...], in_channels: int, num_classes: int) -> None:
        super().__init__()
        head, anchors = config.head, config.anchors
        channels = head.channels or in_channels
        coder = build_box_coder(config.box_coder)
        self.num_classes, self.box_channels = num_classes, coder.num_channels
        self.cls_tower = _tower(in_channels, channels, head)
        self.box_tower = _tower(in_channels, channels, head)
        out_channels = channels if head.num_convs else in_channels
        self.cls_output = nn.Conv2d(out_channels, anchors.per_cell * num_classes, 3, padding=1)
        self.box_output = nn.Conv2d(out_channels, anchors.per_cell * self.box_channels, 3, padding=1)
        self.scales = nn.ParameterList(torch.ones(()) for _ in levels) if head.level_scales else None
        self.quality = head.quality
        if head.quality in ("centerness", "iou"):
            self.quality_output = nn.Conv2d(out_channels, anchors.per_cell, 3, padding=1)
        elif head.quality == "distribution":
            self.quality_output = DistributionQuality(cast(DistributionCoder, coder))
        self.anchors = Anchors(anchors, levels)
        self.recomputes = False  # whether the backward pass recomputes the towers' inner features
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Every class of every anchor starts at the score ``prior``; otherwise the loss of 10^5 easy background anchors
        # dominates the first steps (RetinaNet, section 3.3).
        nn.init.constant_(self.cls_output.bias, -math.log((1 - head.prior) / head.prior))

    def forward(self, pyramid: list[Tensor]) -> Predictions:
        """Pyramid levels [B, C, H_l, W_l], fine to coarse → predictions for all anchors of all levels."""
        towers = (self.cls_tower, self.box_tower)
        cls_tower, box_tower = (Recomputed(tower) for tower in towers) if self.recomputes else towers
        logits = [_per_anchor(self.cls_output(cls_tower(feature)), self.num_classes) for feature in pyramid]
        box_features = [box_tower(feature) for feature in pyramid]
        box_outputs = [self.box_output(feature) for feature in box_features]
        if self.scales is not None:
            box_outputs = [output * scale for output, scale in zip(box_outputs, self.scales, strict=True)]
        channels = [_per_anchor(output, self.box_channels) for output in box_outputs]
        anchors, level_counts = self.anchors([tuple(feature.shape[-2:]) for feature in pyramid])
        raw = Predictions(torch.cat(logits, dim=1), torch.cat(channels, dim=1), anchors, level_counts)
        if self.quality == "none":
            return raw
        if self.quality == "distribution":  # the class loss learns the product (GFLv2, eq. 3)
            quality = self.quality_output(raw.box_channels)
            return raw._replace(cls_logits=product_logit(raw.cls_logits, quality).to(raw.cls_logits.dtype))
        qualities = [_per_anchor(self.quality_output(feature), 1) for feature in box_features]
        return raw._replace(quality=torch.cat(qualities, dim=1)[..., 0])


class DistributionQuality(nn.Module):
    """How good a box is, from how sharp its sides' distributions are (GFLv2: Li et al. 2021, section 3.2)."""

    HIGHEST, HIDDEN = 4, 64  # probabilities of each side that are looked at, and hidden features

    def __init__(self, coder: DistributionCoder) -> None:
        super().__init__()
        self.coder = coder
        self.hidden = nn.Linear(4 * (self.HIGHEST + 1), self.HIDDEN)
        self.output = nn.Linear(self.HIDDEN, 1)

    def forward(self, channels: Tensor) -> Tensor:
        """Channels of boxes [B, N, C] → logits [B, N, 1]."""
        highest = self.coder.logits(channels).softmax(dim=-1).topk(self.HIGHEST, dim=-1).values  # [B, N, 4, HIGHEST]
        statistics = torch.cat([highest, highest.mean(dim=-1, keepdim=True)], dim=-1)
        return self.output(F.relu(self.hidden(statistics.flatten(-2))))


class PooledHead(nn.Module):
    """Pools every level to a vector, fuses the vectors and classifies the result."""

    by_class = ("classifier.weight", "classifier.bias")

    def __init__(self, config: ModelConfig, levels: tuple[int, ...], in_channels: int, num_classes: int) -> None:
        super().__init__()
        head = config.head
        self.pool, self.fuse = head.pool, head.fuse
        if head.pool == "gem":
            self.power = nn.Parameter(torch.tensor(3.0))
        if head.fuse == "learned":
            self.level_weights = nn.Parameter(torch.zeros(len(levels)))  # before softmax
        width = in_channels * (len(levels) if head.fuse == "concat" else 1)
        layers: list[nn.Module] = []
        for hidden in head.hidden:
            layers += [nn.Dropout(head.dropout), nn.Linear(width, hidden), nn.ReLU(inplace=True)]
            width = hidden
        self.hidden = nn.Sequential(*layers, nn.Dropout(head.dropout))
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        """Pyramid levels [B, C, H_l, W_l] → logits [B, K]."""
        vectors = torch.stack([self._pooled(feature) for feature in pyramid], dim=1)  # [B, L, C]
        if self.fuse == "concat":
            fused = vectors.flatten(1)
        elif self.fuse == "learned":
            fused = (vectors * self.level_weights.softmax(0)[:, None]).sum(dim=1)
        else:
            fused = vectors.mean(dim=1)
        return self.classifier(self.hidden(fused))

    def _pooled(self, feature: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C]."""
        if self.pool == "max":
            return feature.amax(dim=(2, 3))
        if self.pool == "gem":
            # Generalised mean of the positive values: power 1 is the average, ∞ the maximum (Radenović et al. 2018,
            # section 3.2). In logarithms, as a small number to a large power would be 0 and its gradient NaN.
            logs = feature.float().clamp(min=1e-6).log().flatten(2)  # [B, C, H · W]
            power = self.power.clamp(min=1)
            return (((logs * power).logsumexp(dim=2) - math.log(logs.shape[2])) / power).exp()
        return feature.mean(dim=(2, 3))


class ClassicHead(nn.Linear):
    """A network's own last layer: its vector [B, C] → logits [B, K]."""

    by_class = ("weight", "bias")

    def __init__(self, config: ModelConfig, levels: tuple[int, ...], in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes)


class SemanticHead(nn.Module):
    """Every level upsampled to the finest one, and their sum classified cell by cell (Kirillov et al. 2019, figure 3).

    A block is a convolution, a group norm and ReLU; upsampling by two follows it until the finest level is reached.
    """

    by_class = ("classifier.weight", "classifier.bias")

    def __init__(self, config: ModelConfig, levels: tuple[int, ...], in_channels: int, num_classes: int) -> None:
        super().__init__()
        head = config.head
        channels = head.channels or 128
        self.doublings = [level - levels[0] for level in levels]
        self.towers = nn.ModuleList()
        for doublings in self.doublings:
            widths = [in_channels, *[channels] * max(head.blocks, doublings)]
            self.towers.append(nn.ModuleList(_block(*pair) for pair in itertools.pairwise(widths)))
        self.dropout = nn.Dropout2d(head.dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        """Pyramid levels [B, C, H_l, W_l], fine to coarse → logits [B, K, H_0, W_0] on the grid of the finest."""
        sizes = [feature.shape[-2:] for feature in pyramid]
        total: Tensor | None = None
        for feature, tower, doublings in zip(pyramid, self.towers, self.doublings, strict=True):
            for number, block in enumerate(tower):
                feature = block(feature)
                if number < doublings:  # networks may round odd sizes up or down, so the size is a level's own
                    finer = sizes[doublings - 1 - number]
                    feature = F.interpolate(feature, size=finer, mode="bilinear", align_corners=False)
            total = feature if total is None else total + feature
        return self.classifier(self.dropout(total))


def _block(in_channels: int, channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, group_norm(channels), nn.ReLU(inplace=True))


def _tower(in_channels: int, channels: int, config: HeadConfig) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(config.num_convs):
        width, has_bias = in_channels if index == 0 else channels, config.norm == "none" or config.norm_bias
        layers.append(nn.Conv2d(width, channels, 3, padding=1, bias=has_bias))
        if config.norm == "gn":
            layers.append(group_norm(channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _per_anchor(output: Tensor, width: int) -> Tensor:
    """[B, A · width, H, W] → [B, H · W · A, width], in the anchors' order: row, column, anchor."""
    return output.permute(0, 2, 3, 1).reshape(output.shape[0], -1, width)  # len() fixes an exported batch


Head = Callable[[ModelConfig, tuple[int, ...], int, int], nn.Module]

HEADS: dict[str, Head] = {
    "retina": RetinaHead,
    "pooled": PooledHead,
    "classic": ClassicHead,
    "semantic": SemanticHead,
}
