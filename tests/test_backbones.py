"""Backbones: levels, channels, equality with torchvision, input channels, freezing and norms."""

from __future__ import annotations

import copy
import sys
from functools import cache

import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import undrawn
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FrozenBatchNorm2d

from detector.config.schema import BackboneConfig, HeadConfig, ModelConfig
from detector.errors import ConfigError
from detector.models import build_model
from detector.models.backbones import BACKBONES, Backbone, build_backbone

RESNET = ["layer1", "layer2", "layer3", "layer4"]
FAMILIES = {  # name: torchvision's names of the last linear layer and of the modules that output C2 to C5; channels
    "vgg11_bn": ("classifier.6", [f"features.{index}" for index in (13, 20, 27, 28)], (256, 512, 512, 512)),
    "resnet18": ("fc", RESNET, (64, 128, 256, 512)),
    "resnext50_32x4d": ("fc", RESNET, (256, 512, 1024, 2048)),
    "convnext_tiny": ("classifier.2", [f"features.{index}" for index in (1, 3, 5, 7)], (96, 192, 384, 768)),
    "swin_t": ("head", [f"features.{index}" for index in (1, 3, 5, 7)], (96, 192, 384, 768)),
    "efficientnet_b0": ("classifier.1", [f"features.{index}" for index in (2, 3, 5, 8)], (24, 40, 112, 1280)),
    "mobilenet_v3_small": ("classifier.3", [f"features.{index}" for index in (1, 3, 8, 12)], (16, 24, 48, 576)),
    "regnet_y_400mf": ("fc", [f"trunk_output.block{index}" for index in (1, 2, 3, 4)], (48, 104, 208, 440)),
    "densenet121": (
        "classifier",
        ["features.denseblock1", "features.denseblock2", "features.denseblock3", "features.norm5"],
        (256, 512, 1024, 1024),
    ),
}
CHANNELS_LAST = ("swin_t",)  # [B, H, W, C]

STAGES = {2: ("conv1.", "bn1.", "layer1."), 3: ("layer2.",), 4: ("layer3.",), 5: ("layer4.",)}


def pretrained(freeze_at: int = 0, norm: str = "bn", name: str = "resnet18") -> BackboneConfig:
    """A config with weights, so that no residual branch starts at zero; building does not load them."""
    return BackboneConfig(name=name, weights="IMAGENET1K_V1", norm=norm, freeze_at=freeze_at)


def frozen_names(backbone: Backbone) -> set[str]:
    return {name for name, parameter in backbone.body.named_parameters() if not parameter.requires_grad}


def stage_names(backbone: Backbone, freeze_at: int) -> set[str]:
    prefixes = tuple(prefix for level in range(2, freeze_at + 1) for prefix in STAGES[level])
    return {name for name, _ in backbone.body.named_parameters() if prefixes and name.startswith(prefixes)}


@torch.no_grad()
def vary_constants(network: nn.Module) -> None:
    """Randomise tensors that start at one number, else a swapped or missing one would not show."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point() and tensor.min() == tensor.max():
            tensor.add_(torch.rand_like(tensor) * 0.5)


def assert_equal_to(expected: Tensor, tensor: Tensor) -> None:
    """To 1e-5 of the largest value."""
    assert expected.std() > 1e-3
    scale = expected.abs().max()
    assert_close(tensor / scale, expected / scale, rtol=0, atol=1e-5)


# --- levels, channels, values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_torchvision_with_its_weights(name: str) -> None:
    last, nodes, channels = FAMILIES[name]
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None).eval()
    vary_constants(network)
    published = network.state_dict()
    own = {
        f"head.{key.rpartition('.')[2]}" if key.startswith(f"{last}.") else f"pyramid.backbone.body.{key}": tensor
        for key, tensor in published.items()
    }
    config = ModelConfig(backbone=BackboneConfig(name=name), head=HeadConfig(name="classic"))
    with undrawn():
        model = build_model(config, num_classes=1000).eval()
    model.load_state_dict(own, strict=True)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    normal = (images / 255 - mean) / std  # as torchvision's presets have it
    expected: dict[str, Tensor] = {}
    for node in nodes:  # copies, as DenseNet's classifier changes C5 in place
        network.get_submodule(node).register_forward_hook(
            lambda _module, _inputs, output, node=node: expected.update({node: output.clone()})
        )
    with torch.no_grad():
        assert_equal_to(network(normal), model(images, torch.tensor([[64, 96]] * 2)))

    with undrawn():
        backbone = build_backbone(BackboneConfig(name=name), in_channels=3, finest=2).eval()
    assert backbone.channels == channels
    backbone.body.load_state_dict({key: published[key] for key in backbone.body.state_dict()}, strict=True)
    with torch.no_grad():
        features = backbone(normal)
    for feature, node in zip(features, nodes, strict=True):
        reference = expected[node].permute(0, 3, 1, 2) if name in CHANNELS_LAST else expected[node]
        assert_equal_to(reference, feature)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # From torchvision's documentation, for networks not compared above.
        ("resnext101_32x8d", 88_791_336),
        ("resnet50", 25_557_032),
        ("wide_resnet50_2", 68_883_240),
    ],
)
def test_parameters_of_the_whole_network(name: str, parameters: int) -> None:
    config = ModelConfig(backbone=BackboneConfig(name=name), head=HeadConfig(name="classic"))
    with torch.device("meta"):
        model = build_model(config, num_classes=1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_resnet34_at_224() -> None:
    with undrawn():
        backbone = build_backbone(BackboneConfig(name="resnet34"), in_channels=3, finest=2)
    assert backbone.channels == (64, 128, 256, 512)
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 224, 224))
    assert [tuple(feature.shape) for feature in features] == [
        (1, 64, 56, 56),
        (1, 128, 28, 28),
        (1, 256, 14, 14),
        (1, 512, 7, 7),
    ]


@pytest.mark.parametrize("finest", [2, 3, 4, 5])
def test_levels_start_at_the_finest(finest: int) -> None:
    backbone = build_backbone(BackboneConfig(name="resnet10"), in_channels=3, finest=finest)
    assert backbone.levels == tuple(range(finest, 6))
    assert backbone.channels == (64, 128, 256, 512)[finest - 2 :]
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = backbone.eval()(images)
        stages = backbone.stages(images)
    assert [feature.shape[-1] for feature in features] == [16, 8, 4, 2][finest - 2 :]
    assert list(stages) == [2, 3, 4, 5]
    assert all(torch.equal(features[level - finest], stages[level]) for level in backbone.levels)


@pytest.mark.parametrize("training", [True, False])
def test_probing_leaves_the_network_as_it_was(training: bool) -> None:
    network = torchvision.models.resnet18(weights=None)
    before = copy.deepcopy(network.state_dict())
    body = Backbone(create_feature_extractor(network, RESNET).train(training), in_channels=3, finest=2).body
    assert body.training == training
    assert set(before) - set(body.state_dict()) == {"fc.weight", "fc.bias"}
    for name, tensor in body.state_dict().items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, before[name]), name


def test_resnext_is_split_transform_merge() -> None:
    """Aggregated transformations as a sum of 32 paths, not as a grouped convolution (Xie et al. 2017, figure 3a)."""
    torch.manual_seed(0)
    backbone = build_backbone(pretrained(name="resnext50_32x4d"), in_channels=3, finest=2).eval()
    vary_constants(backbone)
    seen: dict[str, Tensor] = {}
    for name in ("layer1.0.conv1", "layer1.1.conv1"):  # their inputs are the first block's input and output
        backbone.body.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0].clone()})
        )
    with torch.no_grad():
        backbone(torch.randn(2, 3, 32, 48))
    weights = {
        name.removeprefix("layer1.0."): tensor.detach()
        for name, tensor in backbone.body.state_dict().items()
        if name.startswith("layer1.0.")
    }
    # 64 channels → 32 paths of 4 → 256.
    assert weights["conv1.weight"].shape == (128, 64, 1, 1)
    assert weights["conv2.weight"].shape == (128, 4, 3, 3)
    assert weights["conv3.weight"].shape == (256, 128, 1, 1)

    def normed(features: Tensor, norm: str, channels: slice = slice(None)) -> Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        mean, var, weight, bias = (weights[f"{norm}.{name}"][channels, None, None] for name in names)
        return (features - mean) / (var + 1e-5).sqrt() * weight + bias

    block_input = seen["layer1.0.conv1"]
    total = torch.zeros(2, 256, 8, 12)
    for path in range(32):
        own = slice(4 * path, 4 * path + 4)
        reduced = normed(F.conv2d(block_input, weights["conv1.weight"][own]), "bn1", own).relu()
        transformed = normed(F.conv2d(reduced, weights["conv2.weight"][own], padding=1), "bn2", own).relu()
        total += F.conv2d(transformed, weights["conv3.weight"][:, own])
    shortcut = normed(F.conv2d(block_input, weights["downsample.0.weight"]), "downsample.1")
    expected = (normed(total, "bn3") + shortcut).relu()
    assert normed(total, "bn3").std() > 0.1 * shortcut.std()  # the paths matter
    assert_equal_to(expected, seen["layer1.1.conv1"])


# --- input channels ---------------------------------------------------------------------------------------------------


@cache
def for_rgb(name: str) -> Backbone:
    return build_backbone(BackboneConfig(name=name), in_channels=3, finest=2)


def first_convolution(backbone: Backbone) -> nn.Conv2d:
    return next(module for module in backbone.body.modules() if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize(
    ("name", "in_channels"),
    [
        ("resnet18", 1),
        ("resnet18", 4),
        ("resnet18", 5),
        ("swin_t", 1),
        ("timm:resnet18", 4),
    ],
)
def test_images_of_other_than_three_channels(name: str, in_channels: int) -> None:
    torch.manual_seed(0)
    usual = for_rgb(name)
    backbone = build_backbone(BackboneConfig(name=name), in_channels, finest=2)
    assert backbone.in_channels == in_channels
    assert backbone.channels == usual.channels
    first, usual_first = first_convolution(backbone), first_convolution(usual)
    assert first.weight.shape == (usual_first.out_channels, in_channels, *usual_first.kernel_size)
    own, others = backbone.body.state_dict(), usual.body.state_dict()
    assert list(own) == list(others)
    assert [key for key in own if own[key].shape != others[key].shape] == [next(iter(own))]

    images = torch.randn(2, in_channels, 64, 96)
    features = backbone(images)
    assert [tuple(feature.shape[-2:]) for feature in features] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    sum(feature.square().sum() for feature in features).backward()
    assert (first.weight.grad.abs().sum(dim=(0, 2, 3)) > 0).all()  # every channel is used
    if not name.startswith("timm:"):  # timm initialises its own
        with torch.no_grad():
            deviation, usual_deviation = first(images).std(), usual_first(torch.randn(2, 3, 64, 96)).std()
        # Unscaled weights would be off by √(1 / 3) = 0.58, √(4 / 3) = 1.15 and √(5 / 3) = 1.29.
        assert deviation.item() == pytest.approx(usual_deviation.item(), rel=0.1)


# --- freezing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("freeze_at", "finest"), [(0, 2), (2, 3), (3, 2), (4, 3), (5, 2)])
def test_freeze_at_stops_the_stem_and_the_stages_up_to_it(freeze_at: int, finest: int) -> None:
    with undrawn():
        backbone = build_backbone(pretrained(freeze_at), in_channels=3, finest=finest)
    assert frozen_names(backbone) == stage_names(backbone, freeze_at)
    assert len(frozen_names(backbone)) == {0: 0, 2: 15, 3: 30, 4: 45, 5: 60}[freeze_at]


@pytest.mark.parametrize(
    ("name", "freeze_at"),
    [
        ("resnet10", 4),
        ("resnet10", 5),
        ("swin_t", 2),
        ("convnext_tiny", 2),
        ("densenet121", 2),
        ("efficientnet_b0", 2),
        ("timm:convnext_atto", 3),
    ],
)
def test_what_is_frozen_is_exactly_what_the_level_depends_on(name: str, freeze_at: int) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(pretrained(freeze_at, name=name), in_channels=3, finest=2).eval().double()
    vary_constants(backbone)
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    frozen = [parameter for parameter in backbone.body.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    before = backbone.stages(images)[freeze_at]
    gradients = torch.autograd.grad((before * torch.randn_like(before)).sum(), frozen)
    for parameter, gradient in zip(frozen, gradients, strict=True):
        assert gradient.abs().sum() > 0
        parameter.requires_grad_(False)
    with torch.no_grad():
        for parameter in backbone.body.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        assert torch.equal(backbone.stages(images)[freeze_at], before)
    assert frozen_names(backbone)
    assert (len(frozen_names(backbone)) == len(list(backbone.parameters()))) == (freeze_at == 5)


@pytest.mark.parametrize("name", ["swin_t", "efficientnet_b0", "timm:resnet18"])
def test_what_is_frozen_does_not_notice_training(name: str) -> None:
    """In training, frozen levels equal those in evaluation: no batch statistics, no dropped paths."""
    torch.manual_seed(0)
    backbone = build_backbone(pretrained(3, name=name), in_channels=3, finest=2)
    vary_constants(backbone)
    images = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        expected = {level: feature.clone() for level, feature in backbone.eval().stages(images).items()}
        statistics = copy.deepcopy(dict(backbone.named_buffers()))
        trained = backbone.train().stages(images)
        assert torch.equal(trained[2], expected[2])
        assert torch.equal(trained[3], expected[3])
        assert not torch.allclose(trained[5], expected[5], rtol=1e-3, atol=1e-3)
        again = backbone.eval().stages(images)
    assert torch.equal(again[3], expected[3])
    moved = {key for key, tensor in backbone.named_buffers() if not torch.equal(tensor, statistics[key])}
    assert bool(moved) == (name != "swin_t")  # it has no batch norm


def test_all_of_a_network_can_be_frozen() -> None:
    torch.manual_seed(0)
    backbone = build_backbone(pretrained(5, name="efficientnet_b0"), in_channels=3, finest=2)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    images = torch.randn(2, 3, 32, 32)
    expected = [feature.clone() for feature in backbone.eval()(images)]
    assert all(torch.equal(*pair) for pair in zip(backbone.train()(images), expected, strict=True))


@pytest.mark.parametrize(
    ("name", "freeze_at"),
    [("resnet18", 0), ("resnet18", 2), ("timm:resnet18", 2)],
)
def test_frozen_statistics_are_constant_and_the_others_change(freeze_at: int, name: str) -> None:
    backbone = build_backbone(pretrained(freeze_at, name=name), in_channels=3, finest=2)
    backbone.eval()
    backbone.train()  # as after every evaluation
    before = copy.deepcopy(backbone.body.state_dict())
    with torch.no_grad():
        backbone(torch.randn(2, 3, 64, 64))
    frozen = {parameter_name.rpartition(".")[0] for parameter_name in frozen_names(backbone)}
    assert bool(frozen) == (freeze_at > 0)
    for key, tensor in backbone.body.state_dict().items():
        module, _, leaf = key.rpartition(".")
        if leaf in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(tensor, before[key]) == (module in frozen), key
            assert backbone.body.get_submodule(module).training == (module not in frozen), key


@pytest.mark.parametrize("name", ["resnet18", "timm:resnet18"])
def test_frozen_parts_get_no_gradient_and_the_others_do(name: str) -> None:
    backbone = build_backbone(pretrained(freeze_at=3, name=name), in_channels=3, finest=2)
    sum(feature.square().sum() for feature in backbone(torch.randn(2, 3, 64, 64))[2:]).backward()
    for parameter_name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad), parameter_name


def modes(backbone: Backbone) -> dict[str, bool]:
    """Whether each layer is in training mode; containers do not matter."""
    layers = {name: module.training for name, module in backbone.named_modules() if not list(module.children())}
    return layers | {"": backbone.training, "body": backbone.body.training}


@pytest.mark.parametrize("name", ["resnet18", "timm:resnet18"])
@pytest.mark.parametrize("training", [True, False])
def test_a_copy_keeps_its_modes(training: bool, name: str) -> None:
    """The average of the weights is a copy, and users copy models to change them."""
    backbone = build_backbone(pretrained(freeze_at=2, name=name), in_channels=3, finest=2).train(training)
    before = modes(backbone)
    twin = copy.deepcopy(backbone)
    assert modes(twin) == before
    assert frozen_names(twin) == frozen_names(backbone)
    # The copy freezes its own layers and leaves the original alone.
    twin.train(not training)
    assert not twin.body.bn1.training
    assert modes(backbone) == before


# --- norms ------------------------------------------------------------------------------------------------------------

BATCH_NORMS = {
    "resnet18": 20,  # one in the stem, 16 in its blocks, 3 in shortcuts
    "timm:resnet18": 20,
    "timm:mobilenetv3_small_050": 34,  # one in the stem, 2 + 10 · 3 in its blocks, one at the end
}


def batch_norms(backbone: Backbone) -> list[nn.Module]:
    """All batch norms, converted or not."""
    kinds = (FrozenBatchNorm2d, nn.modules.batchnorm._BatchNorm)
    by_name = ("FrozenBatchNormAct2d", "FrozenBatchNorm2d")  # timm has its own
    return [module for module in backbone.modules() if isinstance(module, kinds) or type(module).__name__ in by_name]


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        *(
            (name, norm)
            for name in ("resnet18", "timm:mobilenetv3_small_050")
            for norm in ("bn", "frozen_bn", "sync_bn")
        ),
        ("timm:resnet18", "frozen_bn"),
    ],
)
def test_norm_is_used_throughout(norm: str, name: str) -> None:
    torch.manual_seed(0)
    plain = build_backbone(pretrained(name=name), in_channels=3, finest=2).eval()
    vary_constants(plain)
    backbone = build_backbone(pretrained(norm=norm, name=name), in_channels=3, finest=2).eval()
    norms = batch_norms(backbone)
    assert len(norms) == BATCH_NORMS[name]
    for module in norms:
        assert isinstance(module, nn.SyncBatchNorm) == (norm == "sync_bn")
        assert type(module).__name__.startswith("Frozen") == (norm == "frozen_bn")
        assert bool(list(module.parameters(recurse=False))) == (norm != "frozen_bn")
    # The same network with the same weights, activations included.
    missing, unexpected = backbone.body.load_state_dict(plain.body.state_dict(), strict=False)
    assert not missing
    assert all(key.endswith("num_batches_tracked") for key in unexpected)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for feature, expected in zip(backbone(images), plain(images), strict=True):
            assert_equal_to(expected, feature)
        backbone.train()(images)


@pytest.mark.parametrize("name", ["resnet18", "timm:resnet18"])
def test_frozen_batch_norm_has_nothing_to_train(name: str) -> None:
    backbone = build_backbone(pretrained(norm="frozen_bn", name=name), in_channels=3, finest=2)
    assert all(parameter.ndim == 4 for parameter in backbone.parameters())
    before = copy.deepcopy(dict(backbone.named_buffers()))
    with torch.no_grad():
        backbone.train()(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.named_buffers())


@pytest.mark.parametrize("norm", ["frozen_bn", "sync_bn"])
@pytest.mark.parametrize("name", ["vgg16", "convnext_tiny", "swin_t", "timm:convnext_atto"])
def test_a_network_without_batch_norm_is_refused_another(name: str, norm: str) -> None:
    expected = rf"^model\.backbone\.norm: {name} has no batch norm to be {norm}; use bn$"
    with pytest.raises(ConfigError, match=expected), torch.device("meta"):
        build_backbone(BackboneConfig(name=name, norm=norm), in_channels=3, finest=3)


def test_residual_branches_start_at_zero_only_from_random_weights() -> None:
    scratch, ready = (build_backbone(config, 3, finest=2) for config in (BackboneConfig(name="resnet18"), pretrained()))
    for name, module in scratch.body.named_modules():
        if name.endswith("bn2"):
            assert (module.weight == 0).all()
            assert (ready.body.get_submodule(name).weight == 1).all()
        elif name.endswith("bn1"):
            assert (module.weight == 1).all()


# --- errors -----------------------------------------------------------------------------------------------------------


def refusal(name: str, with_vector: bool = False) -> str:
    with pytest.raises(ConfigError) as caught:
        build_backbone(BackboneConfig(name=name), in_channels=3, finest=3, with_vector=with_vector)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_unknown_name_lists_those_that_begin_with_it() -> None:
    expected = "unknown backbone 'resnext'; use resnext50_32x4d, resnext101_32x8d or resnext101_64x4d"
    assert refusal("resnext") == f"model.backbone.name: {expected}"


@pytest.mark.parametrize(
    ("name", "meant"), [("rsnet50", "resnet50"), ("vgg16bn", "vgg16_bn"), ("timm:resnt18", "resnet18")]
)
def test_an_unknown_name_lists_near_ones(name: str, meant: str) -> None:
    message = refusal(name)
    known = message.partition("; use ")[2].replace(" or ", ", ").split(", ")
    assert known[0] == meant
    assert len(known) == 6
    assert repr(name.removeprefix("timm:")) in message
    assert refusal("timm/resnet18") == "model.backbone.name: timm/resnet18 is written timm:resnet18 in a config"


def test_a_network_without_the_strides_is_refused() -> None:
    network = create_feature_extractor(torchvision.models.resnet18(weights=None), RESNET[:3])
    with pytest.raises(ConfigError, match=r"strides \[4, 8, 16\]; a pyramid needs 4, 8, 16 and 32$"):
        Backbone(network, in_channels=3, finest=2)
    expected = "model.backbone.name: its stages have strides [16]; a pyramid needs 4, 8, 16 and 32"
    assert refusal("timm:vit_tiny_patch16_224") == expected


def test_a_network_for_images_of_one_size_is_refused() -> None:
    message = refusal("timm:swin_tiny_patch4_window7_224")
    expected = "model.backbone.name: timm:swin_tiny_patch4_window7_224 takes images of one size only ("
    assert message.startswith(expected)


@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_lite0", "convnext_atto"])
def test_timms_own_classifier_equals_timms(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=5).eval()
    vary_constants(network)
    published, last = network.state_dict(), network.default_cfg["classifier"]
    config = ModelConfig(backbone=BackboneConfig(name=f"timm:{name}"), head=HeadConfig(name="classic"))
    with undrawn():
        model = build_model(config, num_classes=5)
    own = {
        f"head.{key.rpartition('.')[2]}" if key.startswith(f"{last}.") else f"pyramid.backbone.body.{key}": tensor
        for key, tensor in published.items()
    }
    model.load_state_dict(own, strict=True)
    images, sizes = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), torch.tensor([[64, 96]] * 2)
    with torch.no_grad():
        assert_equal_to(network(model.normalise(images, sizes)), model.eval()(images, sizes))
    model.train()(images, sizes).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_classic_classifier_needs_a_pyramid_of_strides_too() -> None:
    expected = "model.backbone.name: its stages have strides [16]; a pyramid needs 4, 8, 16 and 32"
    assert refusal("timm:vit_tiny_patch16_224", with_vector=True) == expected
    expected = "model.head.name: classic: timm:dla34 has no vector before its classifier; use pooled"
    assert refusal("timm:dla34", with_vector=True) == expected


def test_without_timm_its_networks_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # importing it fails
    assert refusal("timm:resnet18") == "model.backbone.name: timm:resnet18 needs timm; pip install timm"


def test_no_name_of_the_package_looks_like_timms() -> None:
    assert not any(name.startswith("timm:") for name in BACKBONES)
