"""Backbones: from normalised images to features such as C3–C5, fine to coarse.

A backbone is a module with ``levels`` such as (3, 4, 5), their ``channels``, and ``forward(x) -> list[Tensor]``.
Strides, channels and the parameters that a level depends on are found by running the network without data (on the meta
device); none is written down.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, fx, nn
from torch.func import functional_call
from torchvision.models.feature_extraction import DualGraphModule, create_feature_extractor
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from detector.config.parts import TIMM, find_part, near_names
from detector.config.schema import BackboneConfig
from detector.errors import ConfigError
from detector.models.norms import FrozenNorm
from detector.models.recompute import recompute_blocks
from detector.models.vgg import CONFIGURATIONS, build_vgg

LEVEL_OF_STRIDE = {4: 2, 8: 3, 16: 4, 32: 5}
PROBE_SIDES = (128, 192)  # height and width; the ratio 2:3 tells the sides of a feature map from its channels


class Feature(NamedTuple):
    """What probing tells of a feature map."""

    stride: int
    channels: int
    is_channels_last: bool  # [B, H, W, C], as in Swin


class Backbone(nn.Module):
    """A classification network that returns the outputs of its stages.

    ``body`` takes images and returns a list or dict of one feature map per stage, fine to coarse, possibly followed by
    the vector that the network classifies. The parameters of ``body`` keep the network's own names, so its published
    weights load. Levels finer than ``finest`` are not returned.
    """

    def __init__(self, body: nn.Module, in_channels: int, finest: int) -> None:
        super().__init__()
        self.body = body
        self.in_channels = in_channels
        outputs = self._probe()
        features = [_as_feature(output) for output in outputs]
        strides = [feature.stride if feature else 0 for feature in features]
        if not set(strides) >= set(LEVEL_OF_STRIDE):
            raise _without_strides([stride for stride in strides if stride])
        self.index_of_level = {level: strides.index(stride) for stride, level in LEVEL_OF_STRIDE.items()}
        self.is_channels_last = [bool(feature and feature.is_channels_last) for feature in features]
        self.levels = tuple(level for level in self.index_of_level if level >= finest)
        self.channels = tuple(features[self.index_of_level[level]].channels for level in self.levels)
        self.vector_channels = outputs[-1].shape[1] if outputs[-1].ndim == 2 else None
        self.frozen: list[nn.Module] = []
        self.recomputed: list[nn.Module] = []  # the body in blocks; a list hides its parameters, which the body has

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, C, H, W] → [B, channels_l, H / 2^l, W / 2^l] of each level, fine to coarse; networks round up or down."""
        stages = self.stages(images)
        return [stages[level] for level in self.levels]

    def stages(self, images: Tensor) -> dict[int, Tensor]:
        """C2 to C5 by level, those finer than ``finest`` included."""
        outputs = self._run(images)
        return {
            level: outputs[index].permute(0, 3, 1, 2) if self.is_channels_last[index] else outputs[index]
            for level, index in self.index_of_level.items()
        }

    def vector(self, images: Tensor) -> Tensor:
        """[B, C, H, W] → [B, vector_channels], if the body returns a vector."""
        return self._run(images)[-1]

    def _run(self, images: Tensor) -> list[Tensor]:
        body = self.recomputed[0] if self.recomputed and self.body.training else self.body
        return _listed(body(images))

    def drop_training(self) -> None:
        """Keep only the evaluation graph: torchvision's pair of graphs exceeds pickle's recursion limit."""
        if isinstance(self.body, DualGraphModule):
            self.body = fx.GraphModule(self.body, self.body.eval_graph).eval()
        self.frozen, self.recomputed = [], []

    def freeze(self, freeze_at: int) -> None:
        """Freeze everything that C<freeze_at> depends on, running statistics included; 0 freezes nothing."""
        if freeze_at == 0:
            return
        for name in self._leading_to(freeze_at):
            self.body.get_parameter(name).requires_grad_(False)
        # A module whose parameters are all frozen stays in eval mode: no batch statistics, no dropout.
        for module in self.body.modules():
            own = [parameter.requires_grad for parameter in module.parameters()]
            if own and not any(own):
                self.frozen.append(module)
        self.train(self.training)

    def stage_of_parameters(self) -> dict[str, int]:
        """The first level, 2 to 5, that each parameter leads to, by its name in ``body``; 5 if it leads to none."""
        stages = {name: max(self.index_of_level) for name, _ in self.body.named_parameters()}
        for level in sorted(self.index_of_level, reverse=True):
            stages |= dict.fromkeys(self._leading_to(level), level)
        return stages

    def _leading_to(self, level: int) -> list[str]:
        """Names of the parameters that C<level> depends on."""
        parameters = {
            name: torch.empty_like(parameter, device="meta", requires_grad=True)
            for name, parameter in self.body.named_parameters()
        }
        feature = self._probe(parameters)[self.index_of_level[level]]
        gradients = torch.autograd.grad(feature.sum(), list(parameters.values()), allow_unused=True)
        return [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None]

    def recompute(self) -> None:
        """From now on, training keeps only the inputs of blocks and recomputes the rest."""
        self.recomputed = [recompute_blocks(self.body.train())]
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
        # The copy of a traced graph loses its training mode.
        return copied.train(self.training)

    def _probe(self, parameters: dict[str, Tensor] | None = None) -> list[Tensor]:
        """The body's outputs on the meta device for an image of ``PROBE_SIDES``, in eval mode."""
        training = self.body.training
        outputs = _listed(_run_without_data(self.body.eval(), self.in_channels, parameters))
        self.body.train(training)
        return outputs


def _run_without_data(network: nn.Module, in_channels: int, parameters: dict[str, Tensor] | None = None) -> Any:
    tensors = {name: tensor.to("meta") for name, tensor in (*network.named_parameters(), *network.named_buffers())}
    image = torch.empty(1, in_channels, *PROBE_SIDES, device="meta")
    return functional_call(network, tensors | (parameters or {}), image)


def _listed(outputs: dict[str, Tensor] | list[Tensor]) -> list[Tensor]:
    return list(outputs.values()) if isinstance(outputs, dict) else outputs


def _without_strides(strides: Sequence[int]) -> ConfigError:
    return ConfigError(
        f"model.backbone.name: its stages have strides {sorted(set(strides))}; a pyramid needs 4, 8, 16 and 32"
    )


def _as_feature(output: Tensor) -> Feature | None:
    """Stride, channels and layout; None if the output is not a feature map (a vector, an adaptive pooling)."""
    if output.ndim != 4:
        return None
    _, first, second, third = output.shape
    for height, width, channels, is_channels_last in ((second, third, first, False), (first, second, third, True)):
        stride = PROBE_SIDES[0] // height
        if (height * stride, width * stride) == PROBE_SIDES:
            return Feature(stride, channels, is_channels_last)
    return None


# --- torchvision's networks and VGG -----------------------------------------------------------------------------------


class Network(NamedTuple):
    """A classification network, and which of its modules has the stages as children, in sequence."""

    build: Callable[[], nn.Module]
    stages: str  # that module's name; empty: the network itself


def build_backbone(config: BackboneConfig, in_channels: int, finest: int, with_vector: bool = False) -> Backbone:
    """The backbone that the config names, randomly initialised, with levels from ``finest`` (2 to 5) to C5.

    ``package.module:name`` must be a :class:`Network`, or a function of the config and ``in_channels`` that returns a
    body for :class:`Backbone`. ``with_vector``: the body also returns the input of the network's last linear layer.
    Raises :class:`detector.errors.ConfigError` for an unknown name, and for a network without the strides 4 to 32.
    """
    if config.name.startswith("timm/"):  # as timm's own collection is written elsewhere
        raise ConfigError(
            f"model.backbone.name: {config.name} is written {TIMM}{config.name.removeprefix('timm/')} in a config"
        )
    if config.name.startswith(TIMM):
        body = _timm_body(config, in_channels, with_vector)
    else:
        known = find_part("model.backbone.name", config.name, BACKBONES, like=_own_body)
        if isinstance(known, Network):
            body = _body(known, config, in_channels, with_vector)
        elif with_vector:
            raise ConfigError(f"model.head.name: classic takes torchvision's and timm's, not {config.name}; use pooled")
        else:
            body = known(config, in_channels)
    backbone = Backbone(body, in_channels, finest)
    if with_vector and backbone.vector_channels is None:
        raise ConfigError(f"model.head.name: classic: {config.name} has no vector before its classifier; use pooled")
    backbone.freeze(config.freeze_at)
    return backbone


def _own_body(config: BackboneConfig, in_channels: int) -> nn.Module:
    """What a user's function takes and returns, for :func:`detector.config.parts.find_part`."""
    raise NotImplementedError


def _body(known: Network, config: BackboneConfig, in_channels: int, with_vector: bool) -> nn.Module:
    network = known.build()
    if config.stride_in_1x1:
        _stride_in_1x1(network, config)
    if config.weights is None:
        _zero_residuals(network)
    if in_channels != 3:
        _take_channels(network, in_channels)
    network = _with_norm(network, config)
    nodes = _last_of_each_stride(network, known.stages, in_channels)
    if with_vector:
        last = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
        network.set_submodule(last, nn.Identity())
        nodes.append(last)
    return create_feature_extractor(network, nodes)


def _last_of_each_stride(network: nn.Module, stages: str, in_channels: int) -> list[str]:
    """Names of the last child of ``stages`` at each stride."""
    name_of_stride: dict[int, str] = {}

    def note(name: str, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        if feature := _as_feature(output):
            name_of_stride[feature.stride] = f"{stages}.{name}".removeprefix(".")

    children = network.get_submodule(stages).named_children()
    handles = [child.register_forward_hook(partial(note, name)) for name, child in children]
    with torch.no_grad():
        _run_without_data(network.eval(), in_channels)
    network.train()
    for handle in handles:
        handle.remove()
    return list(name_of_stride.values())


def _zero_residuals(network: nn.Module) -> None:
    """Random weights train better if residual branches start at zero (Goyal et al. 2017, section 5.1)."""
    for module in network.modules():
        if isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)
        elif isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)


def _stride_in_1x1(network: nn.Module, config: BackboneConfig) -> None:
    blocks = [module for module in network.modules() if isinstance(module, Bottleneck)]
    if not blocks:
        raise ConfigError(
            f"model.backbone.stride_in_1x1: {config.name} has no 1×1 convolutions to take the stride; remove it"
        )
    for block in blocks:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


@torch.no_grad()
def _take_channels(network: nn.Module, in_channels: int) -> None:
    """Replace the first convolution by one of ``in_channels`` inputs, scaled to keep the output's variance."""
    name, first = next((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
    stem = nn.Conv2d(
        in_channels, first.out_channels, first.kernel_size, first.stride, first.padding, bias=first.bias is not None
    )
    stem.weight.normal_().mul_(first.weight.std() * math.sqrt(first.in_channels / in_channels))
    if first.bias is not None:
        stem.bias.copy_(first.bias)
    network.set_submodule(name, stem)


def _with_norm(network: nn.Module, config: BackboneConfig) -> nn.Module:
    norms = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    _set_eps([module for _, module in norms], config)
    if config.norm == "bn":
        return network
    if config.norm == "sync_bn":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for name, module in norms:
        network.set_submodule(name, FrozenNorm(module.num_features, module.eps))
    return network


def _set_eps(norms: list[nn.BatchNorm2d], config: BackboneConfig) -> None:
    """Set ``norm_eps`` if given; refuse the norm keys for a network without batch norm."""
    if not norms and config.norm != "bn":
        raise ConfigError(f"model.backbone.norm: {config.name} has no batch norm to be {config.norm}; use bn")
    if not norms and config.norm_eps is not None:
        raise ConfigError(f"model.backbone.norm_eps: {config.name} has no batch norm; remove it")
    for module in norms:
        module.eps = module.eps if config.norm_eps is None else config.norm_eps


# --- timm -------------------------------------------------------------------------------------------------------------


def _timm_body(config: BackboneConfig, in_channels: int, with_vector: bool = False) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise ConfigError(f"model.backbone.name: {config.name} needs timm; pip install timm") from None
    name = config.name.removeprefix(TIMM)
    if not timm.is_model(name):
        raise ConfigError(f"model.backbone.name: timm has no {name!r}; use {near_names(name, timm.list_models())}")
    try:
        kind = {"num_classes": 0} if with_vector else {"features_only": True}
        body = timm.create_model(name, pretrained=False, in_chans=in_channels, **kind)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"model.backbone.name: timm cannot extract features of {name} ({error}); use another"
        ) from None
    # Of a whole network this is a list, of one that gives features an object with such a list.
    stages = {info["reduction"]: info["module"] for info in getattr(body.feature_info, "info", body.feature_info)}
    if not stages.keys() >= set(LEVEL_OF_STRIDE):
        raise _without_strides(list(stages))
    try:
        _run_without_data(body.eval(), in_channels)
    except AssertionError as error:
        raise ConfigError(
            f"model.backbone.name: {config.name} takes images of one size only ({error}); use another"
        ) from None
    body.train()
    norms = [module for module in body.modules() if isinstance(module, nn.BatchNorm2d)]
    _set_eps(norms, config)
    if config.stride_in_1x1:
        raise ConfigError("model.backbone.stride_in_1x1: is for torchvision's ResNets, not timm's; remove it")
    # timm's norms contain activations, so timm's own functions must convert them.
    if config.norm == "sync_bn":
        body = timm.layers.convert_sync_batchnorm(body)
    elif config.norm == "frozen_bn":
        body = timm.layers.freeze_batch_norm_2d(body)
    if not with_vector:
        return body
    try:
        return timm.models.create_feature_extractor(body, [*stages.values(), body.default_cfg["classifier"]])
    except Exception as error:  # tracing runs the network's own code, which may raise anything
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(
            f"model.head.name: classic cannot be traced in {config.name} ({reason}); use pooled"
        ) from None


# --- all of them ------------------------------------------------------------------------------------------------------


def _torchvision(name: str, stages: str) -> Network:
    return Network(partial(torchvision.models.get_model, name, weights=None), stages)


_RESNETS = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"]
_RESNETS += ["resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"]
_FEATURES = ["convnext_tiny", "convnext_small", "convnext_base", "convnext_large"]
_FEATURES += ["swin_t", "swin_s", "swin_b", "swin_v2_t", "swin_v2_s", "swin_v2_b"]
_FEATURES += [f"efficientnet_b{size}" for size in range(8)]
_FEATURES += ["efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l"]
_FEATURES += ["mobilenet_v3_small", "mobilenet_v3_large"]
_FEATURES += ["densenet121", "densenet161", "densenet169", "densenet201"]
_REGNETS = ["400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf"]

BACKBONES: dict[str, Network] = {
    **{name: Network(partial(build_vgg, table, False), "features") for name, table in CONFIGURATIONS.items()},
    **{
        f"{name}_bn": Network(partial(build_vgg, table, True), "features")
        for name, table in CONFIGURATIONS.items()
        if not table.lrn
    },
    # Half of ResNet-18, for machines without a GPU; torchvision has no weights for it.
    "resnet10": Network(partial(ResNet, BasicBlock, [1, 1, 1, 1]), ""),
    **{name: _torchvision(name, "") for name in _RESNETS},
    **{name: _torchvision(name, "features") for name in _FEATURES},
    **{
        f"regnet_{kind}_{size}": _torchvision(f"regnet_{kind}_{size}", "trunk_output")
        for kind in "xy"
        for size in _REGNETS
    },
}
