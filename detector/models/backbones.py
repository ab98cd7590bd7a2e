"""Backbones: a normalised image to features such as C3–C5, fine to coarse.

A backbone is a module with ``levels`` (such as (3, 4, 5)), ``channels`` (of each) and ``forward(x) -> list[Tensor]``.
Channels and strides are probed by running the network once on the meta device, never typed in.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
import torchvision
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import FrozenBatchNorm2d

from detector.config import BackboneConfig
from detector.errors import ConfigError, one_of

NORMS: dict[str, type[nn.Module]] = {
    "frozen_bn": FrozenBatchNorm2d,
    "bn": nn.BatchNorm2d,
    "sync_bn": nn.SyncBatchNorm,
}


class Backbone(nn.Module):
    """A classification network that returns the outputs of its stages.

    ``nodes`` names the outputs of its stages, fine to coarse; those finer than level ``finest`` are not returned.
    Parameters keep the network's own names, so that its published weights load into ``body``.
    """

    def __init__(self, network: nn.Module, nodes: list[str], finest: int) -> None:
        super().__init__()
        self.body = create_feature_extractor(network, nodes)
        strides, widths = _probe(self.body)
        if not set(strides) >= {4, 8, 16, 32}:
            raise ConfigError(
                f"model.backbone.name: its stages have strides {strides}; a pyramid needs 4, 8, 16 and 32"
            )
        self.node_of_level = {stride.bit_length() - 1: node for stride, node in zip(strides, nodes, strict=True)}
        self.levels = tuple(level for level in self.node_of_level if level >= finest)
        self.channels = tuple(widths[nodes.index(self.node_of_level[level])] for level in self.levels)
        self.frozen: list[nn.Module] = []

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → [B, channels_l, ceil(H / 2^l), ceil(W / 2^l)] of each level, fine to coarse."""
        features = self.body(images)
        return [features[self.node_of_level[level]] for level in self.levels]

    def freeze(self, freeze_at: int) -> None:
        """Stop training all that leads to C<freeze_at>, running statistics included; 0 freezes nothing."""
        if freeze_at == 0:
            return
        *nodes, output = self.body.graph.nodes
        last = nodes.index(output.args[0][self.node_of_level[freeze_at]])
        targets = dict.fromkeys(node.target for node in nodes[: last + 1] if node.op == "call_module")
        self.frozen = [self.body.get_submodule(target) for target in targets]
        for module in self.frozen:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Backbone:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        # The body is a traced graph, and a copy of one forgets whether it was training.
        return copied.train(self.training)


def _probe(body: nn.Module) -> tuple[list[int], list[int]]:
    """Stride and channels of each output, from one run without data."""
    side = 128
    meta = {name: tensor.to("meta") for name, tensor in (*body.named_parameters(), *body.named_buffers())}
    training = body.training
    with torch.no_grad():
        features = functional_call(body.eval(), meta, torch.empty(1, 3, side, side, device="meta"))
    body.train(training)
    return [side // feature.shape[-1] for feature in features.values()], [f.shape[1] for f in features.values()]


def _resnet(build: Callable[..., nn.Module], config: BackboneConfig, finest: int) -> Backbone:
    # From random weights, residual branches that begin at zero train better (Goyal et al. 2017, section 5.1).
    network = build(norm_layer=NORMS[config.norm], zero_init_residual=config.weights is None)
    return Backbone(network, ["layer1", "layer2", "layer3", "layer4"], finest)


def build_backbone(config: BackboneConfig, finest: int) -> Backbone:
    """The backbone that the config names, with random weights, returning its levels from ``finest`` (2 to 5) up to C5.

    Raises :class:`~detector.errors.ConfigError` for an unknown name.
    """
    if config.name not in BACKBONES:
        raise ConfigError(f"model.backbone.name: unknown backbone {config.name!r}; use {one_of(BACKBONES)}")
    backbone = BACKBONES[config.name](config, finest)
    backbone.freeze(config.freeze_at)
    return backbone


BackboneBuilder = Callable[[BackboneConfig, int], Backbone]

BACKBONES: dict[str, BackboneBuilder] = {
    # Half of ResNet-18, for machines without a GPU; torchvision has no weights for it.
    "resnet10": partial(_resnet, partial(ResNet, BasicBlock, [1, 1, 1, 1])),
    "resnet18": partial(_resnet, torchvision.models.resnet18),
    "resnet34": partial(_resnet, torchvision.models.resnet34),
    "resnet50": partial(_resnet, torchvision.models.resnet50),
    "resnet101": partial(_resnet, torchvision.models.resnet101),
    "resnet152": partial(_resnet, torchvision.models.resnet152),
}
