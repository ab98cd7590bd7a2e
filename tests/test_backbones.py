"""Backbones: levels, channels, equality with torchvision, freezing and norms."""

from __future__ import annotations

import copy
from typing import get_args

import pytest
import torch
import torchvision
from torch import nn
from torch.testing import assert_close
from torchvision.ops import FrozenBatchNorm2d

from detector.anchors import level_sizes
from detector.config import BackboneConfig
from detector.errors import ConfigError
from detector.models.backbones import BACKBONES, NORMS, Backbone, build_backbone

STAGES = {2: ("conv1.", "bn1.", "layer1."), 3: ("layer2.",), 4: ("layer3.",), 5: ("layer4.",)}


def pretrained(freeze_at: int = 0, norm: str = "bn", name: str = "resnet18") -> BackboneConfig:
    """A config that names weights, so that it may freeze; building does not load them."""
    return BackboneConfig(name=name, weights="IMAGENET1K_V1", norm=norm, freeze_at=freeze_at)


def frozen_names(backbone: Backbone) -> set[str]:
    return {name for name, parameter in backbone.body.named_parameters() if not parameter.requires_grad}


def stage_names(backbone: Backbone, freeze_at: int) -> set[str]:
    prefixes = tuple(prefix for level in range(2, freeze_at + 1) for prefix in STAGES[level])
    return {name for name, _ in backbone.body.named_parameters() if prefixes and name.startswith(prefixes)}


@pytest.mark.parametrize("name", BACKBONES)
def test_levels_channels_and_sizes(name: str) -> None:
    backbone = build_backbone(BackboneConfig(name=name), finest=2).eval()
    assert backbone.levels == (2, 3, 4, 5)
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 97, 131))
    assert tuple(feature.shape[1] for feature in features) == backbone.channels
    assert [tuple(feature.shape[2:]) for feature in features] == level_sizes(97, 131, [2, 3, 4, 5])


def test_resnet34_at_224() -> None:
    backbone = build_backbone(BackboneConfig(name="resnet34"), finest=2)
    assert backbone.channels == (64, 128, 256, 512)
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 224, 224))
    assert [tuple(feature.shape) for feature in features] == [
        (1, 64, 56, 56),
        (1, 128, 28, 28),
        (1, 256, 14, 14),
        (1, 512, 7, 7),
    ]


def test_resnet50_channels() -> None:
    assert build_backbone(BackboneConfig(name="resnet50"), finest=3).channels == (512, 1024, 2048)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_equals_torchvision_with_its_weights(name: str) -> None:
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None).eval()
    backbone = build_backbone(pretrained(name=name), finest=2).eval()
    published = network.state_dict()
    assert set(published) - set(backbone.body.state_dict()) == {"fc.weight", "fc.bias"}
    backbone.body.load_state_dict({key: value for key, value in published.items() if not key.startswith("fc.")})
    images = torch.randn(2, 3, 65, 50)
    with torch.no_grad():
        features = backbone(images)
        expected = network.maxpool(network.relu(network.bn1(network.conv1(images))))
        layers = (network.layer1, network.layer2, network.layer3, network.layer4)
        for feature, layer in zip(features, layers, strict=True):
            expected = layer(expected)
            assert_close(feature, expected)


@pytest.mark.parametrize("finest", [2, 3, 4, 5])
def test_levels_begin_at_the_finest(finest: int) -> None:
    backbone = build_backbone(BackboneConfig(name="resnet18"), finest)
    assert backbone.levels == tuple(range(finest, 6))
    assert backbone.channels == (64, 128, 256, 512)[finest - 2 :]
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 64, 64))
    assert [feature.shape[-1] for feature in features] == [16, 8, 4, 2][finest - 2 :]


def test_probing_leaves_the_network_as_it_was() -> None:
    network = torchvision.models.resnet18(weights=None)
    before = copy.deepcopy(network.state_dict())
    body = Backbone(network, ["layer1", "layer2", "layer3", "layer4"], 2).body
    assert body.training
    for name, tensor in body.state_dict().items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, before[name]), name


# --- freezing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("finest", [2, 3])
@pytest.mark.parametrize("freeze_at", [0, 2, 3, 4, 5])
def test_freeze_at_stops_the_stem_and_the_stages_up_to_it(freeze_at: int, finest: int) -> None:
    backbone = build_backbone(pretrained(freeze_at), finest)
    assert frozen_names(backbone) == stage_names(backbone, freeze_at)
    assert len(frozen_names(backbone)) == {0: 0, 2: 15, 3: 30, 4: 45, 5: 60}[freeze_at]


@pytest.mark.parametrize("freeze_at", [0, 2, 4])
def test_frozen_statistics_stand_still_and_the_others_move(freeze_at: int) -> None:
    backbone = build_backbone(pretrained(freeze_at), finest=2)
    backbone.eval()
    backbone.train()  # as after every evaluation
    before = copy.deepcopy(backbone.body.state_dict())
    with torch.no_grad():
        backbone(torch.randn(2, 3, 64, 64))
    frozen = {name.rpartition(".")[0] for name in stage_names(backbone, freeze_at)}
    for name, tensor in backbone.body.state_dict().items():
        module, _, leaf = name.rpartition(".")
        if leaf in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(tensor, before[name]) == (module in frozen), name
            assert backbone.body.get_submodule(module).training == (module not in frozen), name


def test_frozen_parts_get_no_gradient_and_the_others_do() -> None:
    backbone = build_backbone(pretrained(freeze_at=3), finest=2)
    sum(feature.square().sum() for feature in backbone(torch.randn(2, 3, 64, 64))[1:]).backward()
    assert all(
        (parameter.grad is None) == (not parameter.requires_grad) for _, parameter in backbone.named_parameters()
    )


def modes(backbone: Backbone) -> dict[str, bool]:
    """Whether each of its layers trains; containers that are only called through do not matter."""
    layers = {name: module.training for name, module in backbone.named_modules() if not list(module.children())}
    return layers | {"": backbone.training, "body": backbone.body.training}


@pytest.mark.parametrize("training", [True, False])
def test_a_copy_keeps_its_modes(training: bool) -> None:
    """An average of the weights is a copy, and people copy models to change them."""
    backbone = build_backbone(pretrained(freeze_at=2), finest=2).train(training)
    before = modes(backbone)
    twin = copy.deepcopy(backbone)
    assert modes(twin) == before
    assert frozen_names(twin) == frozen_names(backbone)
    # The copy freezes its own layers and leaves the original alone.
    twin.train(not training)
    assert not twin.body.bn1.training
    assert modes(backbone) == before


# --- norms ------------------------------------------------------------------------------------------------------------


def test_every_norm_of_the_config_is_known() -> None:
    assert set(get_args(BackboneConfig.model_fields["norm"].annotation)) == set(NORMS)


@pytest.mark.parametrize("norm", NORMS)
def test_norm_is_used_throughout(norm: str) -> None:
    backbone = build_backbone(pretrained(norm=norm), finest=2)
    norms = [
        type(module)
        for module in backbone.modules()
        if isinstance(module, (FrozenBatchNorm2d, nn.modules.batchnorm._BatchNorm))
    ]
    assert norms == [NORMS[norm]] * 20  # ResNet-18: one in the stem, 16 in its blocks, 3 in shortcuts
    with torch.no_grad():
        backbone(torch.randn(2, 3, 64, 64))


def test_frozen_batch_norm_has_nothing_to_train() -> None:
    backbone = build_backbone(pretrained(norm="frozen_bn"), finest=2)
    assert all(parameter.ndim == 4 for parameter in backbone.parameters())
    before = copy.deepcopy(dict(backbone.named_buffers()))
    with torch.no_grad():
        backbone.train()(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.named_buffers())


def test_residual_branches_begin_at_zero_from_random_weights_only() -> None:
    scratch, ready = (build_backbone(config, 2) for config in (BackboneConfig(name="resnet18"), pretrained()))
    for name, module in scratch.body.named_modules():
        if name.endswith("bn2"):
            assert (module.weight == 0).all()
            assert (ready.body.get_submodule(name).weight == 1).all()
        elif name.endswith("bn1"):
            assert (module.weight == 1).all()


# --- errors -----------------------------------------------------------------------------------------------------------


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'resnet99'.*resnet18.*resnet152"):
        build_backbone(BackboneConfig(name="resnet99"), finest=3)


def test_a_network_without_the_strides_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"strides \[4, 8, 16\]"):
        Backbone(torchvision.models.resnet18(weights=None), ["layer1", "layer2", "layer3"], finest=2)
