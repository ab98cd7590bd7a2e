"""Pyramids: every backbone under one, several of them fused, and a network without."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import undrawn
from torch import Tensor, nn
from torch.testing import assert_close

from detector.config.schema import BackboneConfig, FPNConfig, HeadConfig, ModelConfig, PredictConfig
from detector.models import Model, build_model
from detector.models.backbones import BACKBONES, build_backbone
from detector.models.heads import PooledHead
from detector.models.pyramid import FusedPyramid, Pyramid, Trunk, build_pyramid
from detector.ops.anchors import level_sizes
from detector.structures import Batch, Targets
from detector.tasks import detection

# One network of every family is trained; of another one, larger or of other depth or width, only shapes are checked.
LEARNING = ["vgg11_lrn", "resnet10", "resnext50_32x4d", "convnext_tiny", "swin_v2_t", "efficientnet_v2_s"]
LEARNING += ["mobilenet_v3_small", "densenet121", "regnet_y_400mf", "timm:convnext_atto", "timm:mobilenetv3_small_050"]
OTHERS = ["resnet101", "wide_resnet50_2", "resnext101_64x4d", "convnext_base", "swin_s", "efficientnet_b7"]
OTHERS += ["efficientnet_v2_m", "mobilenet_v3_large", "densenet161", "regnet_x_400mf", "regnet_y_16gf"]
FUSES = ["sum", "mean", "concat"]


# --- every backbone ---------------------------------------------------------------------------------------------------


def config_for(name: str, head: str = "retina") -> ModelConfig:
    return ModelConfig(
        backbone=BackboneConfig(name=name),
        fpn=FPNConfig(channels=16),
        head=HeadConfig(name=head, num_convs=1) if head == "retina" else HeadConfig(name=head),
        predict=PredictConfig(score_threshold=0.0, topk=20),
    )


def make_images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    return images, torch.tensor([[64, 64], [60, 50]])


def step(model: Model, loss: Tensor) -> None:
    """A step of gradient descent that changes everything from the head to the stem and keeps it finite."""
    ends = [next(model.pyramid.parameters()), model.pyramid.fpn.lateral[0].weight, *model.head.parameters()]
    before = [parameter.detach().clone() for parameter in ends]
    assert loss.isfinite()
    model.zero_grad()
    loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without
    torch.optim.SGD(model.parameters(), lr=1e-2).step()
    model.zero_grad()
    assert not any(torch.equal(parameter, old) for parameter, old in zip(ends, before, strict=True))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_every_name_is_torchvisions_or_our_own() -> None:
    own = {"resnet10", "vgg11_lrn", "vgg16_1x1", "vgg16_1x1_bn"}
    assert set(BACKBONES) - own <= set(torchvision.models.list_models(torchvision.models))


@pytest.mark.parametrize("name", OTHERS)
def test_larger_ones_have_the_levels(name: str) -> None:
    with undrawn():
        backbone = build_backbone(BackboneConfig(name=name), in_channels=3, finest=2).to("meta")
    assert backbone.levels == (2, 3, 4, 5)
    features = backbone.eval()(torch.empty(2, 3, 64, 96, device="meta"))
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3)]
    expected = [(2, channels, *size) for channels, size in zip(backbone.channels, sizes, strict=True)]
    assert [tuple(feature.shape) for feature in features] == expected


@pytest.mark.parametrize("name", LEARNING)
def test_every_family_learns(name: str) -> None:
    gc.collect()  # traced graphs are cycles
    torch.manual_seed(0)
    model = build_model(config_for(name), num_classes=3)
    check_channels_and_sizes(model)
    check_it_learns_to_detect_and_predicts(model)
    check_it_learns_to_classify_and_predicts(model)


def check_channels_and_sizes(model: Model) -> None:
    backbone = model.pyramid.backbone
    assert backbone.levels == (3, 4, 5)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        stages = backbone.eval().stages(images)
        features = backbone(images)
        pyramid = model.pyramid.eval()(images)
    # 64 / 2^l and 96 / 2^l
    assert {level: tuple(feature.shape[2:]) for level, feature in stages.items()} == {
        2: (16, 24),
        3: (8, 12),
        4: (4, 6),
        5: (2, 3),
    }
    assert tuple(feature.shape[1] for feature in features) == backbone.channels
    assert all(torch.equal(*pair) for pair in zip(features, list(stages.values())[1:], strict=True))
    assert all(feature.std() > 0 for feature in features)
    assert (model.pyramid.levels, model.pyramid.channels) == ((3, 4, 5, 6, 7), 16)
    sizes = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
    assert [tuple(feature.shape) for feature in pyramid] == [(2, 16, *size) for size in sizes]


def check_it_learns_to_detect_and_predicts(model: Model) -> None:
    images, sizes = make_images()
    config = config_for("resnet10")  # of any name
    targets = Targets(torch.tensor([[[8.0, 8.0, 40.0, 48.0]], [[0.0, 0.0, 0.0, 0.0]]]), torch.tensor([[1], [-1]]))
    losses = detection.loss(model.train()(images, sizes), targets, config)
    assert losses.normaliser > 0
    step(model, sum(losses.parts.values()) / losses.normaliser)

    batch = Batch(images, sizes, 2 * sizes, targets, torch.tensor([1, 2]))
    with torch.no_grad():
        boxes, scores, labels = detection.predict(model.eval()(images, sizes), batch, config)
    assert (labels[:, 0] >= 0).all()
    assert ((scores >= 0) & (scores <= 1)).all()
    assert ((boxes >= 0) & (boxes <= 2 * sizes.flip(1).tile(2)[:, None])).all()


def check_it_learns_to_classify_and_predicts(model: Model) -> None:
    images, sizes = make_images()
    config = config_for("resnet10", head="pooled")
    pyramid = model.pyramid
    torch.manual_seed(0)
    classifier = Model(config.mean, config.std, pyramid, PooledHead(config, pyramid.levels, pyramid.channels, 3))
    logits = classifier.train()(images, sizes)
    assert logits.shape == (2, 3)
    step(classifier, F.cross_entropy(logits, torch.tensor([2, 0])))
    with torch.no_grad():
        scores = classifier.eval()(images, sizes).softmax(dim=1)
    assert_close(scores.sum(dim=1), torch.ones(2))
    assert ((scores >= 0) & (scores <= 1)).all()


UP = [(18, 23), (9, 12), (5, 6), (3, 3)]  # 70 / 2^l and 90 / 2^l
DOWN = [(17, 22), (8, 11), (4, 5), (2, 2)]


@pytest.mark.parametrize(
    ("name", "upsample", "sizes"),
    [
        ("resnet10", "nearest", UP),
        ("convnext_tiny", "bilinear", DOWN),
        ("swin_t", "nearest", [(17, 22), (9, 11), (5, 6), (3, 3)]),  # patches down, merging up
        ("densenet121", "deconv", [(18, 23), (9, 11), (4, 5), (2, 2)]),  # stem up, transitions down
    ],
)
def test_images_of_odd_sizes(name: str, upsample: str, sizes: list[tuple[int, int]]) -> None:
    """Networks round them up or down; pyramid, anchors and predictions still agree."""
    torch.manual_seed(0)
    config = config_for(name)
    config = config.model_copy(update={"fpn": FPNConfig(levels=[2, 3, 4, 5, 6, 7], channels=16, upsample=upsample)})
    model = build_model(config, num_classes=3).eval()
    images = torch.randint(0, 256, (1, 3, 70, 90), dtype=torch.uint8)
    with torch.no_grad():
        features = model.pyramid.backbone(images.float())
        pyramid = model.pyramid(images.float())
        predictions = model(images, torch.tensor([[70, 90]]))
    assert [tuple(feature.shape[2:]) for feature in features] == sizes
    assert [tuple(feature.shape[2:]) for feature in pyramid[:4]] == sizes
    assert predictions.level_counts == [9 * feature.shape[2] * feature.shape[3] for feature in pyramid]
    assert predictions.cls_logits.shape == (1, len(predictions.anchors), 3)


# --- several side by side ---------------------------------------------------------------------------------------------


def fused_config(fuse: str, head: str = "retina", **model: object) -> ModelConfig:
    tree = {
        "backbone": None,
        "pyramid": {"branches": ["timm:convnext_atto", "resnet10"], "fuse": fuse},
        "fpn": {"channels": 16},
        "head": {"name": head},
    }
    return ModelConfig.model_validate(tree | model)


@torch.no_grad()
def assert_fused(pyramid: FusedPyramid, fuse: str, height: int, width: int, padded_height: int) -> None:
    images = torch.randn(2, 3, height, width)
    padded = torch.zeros(2, 3, padded_height, 96)
    padded[:, :, :height, :width] = images
    fused = pyramid(images)
    first, second = (branch(padded) for branch in pyramid.branches)
    assert not torch.equal(first[0], second[0])
    for index, (feature, one, other) in enumerate(zip(fused, first, second, strict=True)):
        if fuse == "concat":
            weight, bias = pyramid.merge[index].weight[..., 0, 0], pyramid.merge[index].bias
            assert weight.shape == (16, 32)
            expected = torch.einsum("oc,bchw->bohw", weight[:, :16], one)
            expected += torch.einsum("oc,bchw->bohw", weight[:, 16:], other) + bias[:, None, None]
        else:
            expected = one + other if fuse == "sum" else (one + other) / 2
        assert_close(feature, expected, rtol=1e-5, atol=1e-5)
    sizes = level_sizes(padded_height, 96, [3, 4, 5, 6, 7])
    assert [tuple(feature.shape) for feature in fused] == [(2, 16, *size) for size in sizes]


@pytest.mark.parametrize("fuse", FUSES)
def test_fusing_by_hand(fuse: str) -> None:
    torch.manual_seed(0)
    pyramid = FusedPyramid(fused_config(fuse)).eval()
    assert [type(branch) for branch in pyramid.branches] == [Pyramid, Pyramid]
    assert (pyramid.levels, pyramid.channels) == ((3, 4, 5, 6, 7), 16)
    assert_fused(pyramid, fuse, 64, 96, padded_height=64)
    # Alone, ConvNeXt rounds 70×90 down and ResNet up: 8×11 and 9×12 on P3. Padded to multiples of 32 they agree.
    assert_fused(pyramid, fuse, 70, 90, padded_height=96)


def test_more_than_two_branches_with_options_of_their_own() -> None:
    torch.manual_seed(0)
    branches = ["resnet10", {"name": "resnet18", "freeze_at": 2}, {"name": "timm:resnet18", "norm": "frozen_bn"}]
    config = fused_config("mean", pyramid={"branches": branches, "fuse": "mean"}, in_channels=4)
    pyramid = FusedPyramid(config).eval()
    frozen = [sum(not parameter.requires_grad for parameter in branch.parameters()) for branch in pyramid.branches]
    assert frozen == [0, 15, 0]  # the stem's convolution and norm, and 4 of each in C2: 5 · 3
    norms = [sum(isinstance(module, nn.BatchNorm2d) for module in branch.modules()) for branch in pyramid.branches]
    assert norms == [12, 20, 0]  # ResNet-10: 1 in the stem, 8 in its blocks, 3 in shortcuts
    images = torch.randn(1, 4, 64, 64)
    with torch.no_grad():
        levels = [branch(images) for branch in pyramid.branches]
        for feature, *parts in zip(pyramid(images), *levels, strict=True):
            assert_close(feature, torch.stack(parts).mean(dim=0))


@pytest.mark.parametrize(("fuse", "head"), [("sum", "pooled"), ("mean", "retina"), ("concat", "retina")])
def test_fused_pyramids_learn(fuse: str, head: str) -> None:
    torch.manual_seed(0)
    branches = {"branches": ["resnet10", "mobilenet_v3_small"], "fuse": fuse}
    model = build_model(fused_config(fuse, head, pyramid=branches), num_classes=3).train()
    images, sizes = make_images()
    output = model(images, sizes)
    tensors = [output] if head == "pooled" else [output.cls_logits, output.box_channels]
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    sum((tensor - 1).square().mean() for tensor in tensors).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    changed = {name for name, tensor in model.state_dict().items() if name in before and (tensor != before[name]).any()}
    for part in ("pyramid.branches.0.backbone", "pyramid.branches.1.backbone", "pyramid.branches.1.fpn", "head"):
        assert any(name.startswith(f"{part}.") for name in changed), part
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    with torch.no_grad():
        alone = model.eval()(images[:1], sizes[:1])
        together = model(images, sizes)
    if head == "pooled":
        assert_close(alone[0], together[0], rtol=1e-4, atol=1e-5)
    else:
        assert_close(alone.cls_logits[0], together.cls_logits[0], rtol=1e-4, atol=1e-5)


# --- none -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "channels"), [("resnet10", 512), ("vgg11", 4096), ("mobilenet_v3_small", 1024)])
def test_a_trunk_ends_in_what_the_last_layer_takes(name: str, channels: int) -> None:
    torch.manual_seed(0)
    model = build_model(config_for(name, head="classic"), num_classes=4).train()
    assert isinstance(model.pyramid, Trunk)
    assert (model.pyramid.levels, model.pyramid.channels) == ((), channels)
    images, sizes = make_images()
    logits = model(images, sizes)
    assert logits.shape == (2, 4)
    vector = model.eval().pyramid(model.normalise(images, sizes))
    assert vector.shape == (2, channels)
    F.cross_entropy(logits, torch.tensor([3, 0])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_trunk_is_frozen_up_to_a_level() -> None:
    config = ModelConfig.model_validate({"backbone": {"name": "vgg11", "freeze_at": 5}, "head": {"name": "classic"}})
    with undrawn():
        model = build_model(config, num_classes=4)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    body = "pyramid.backbone.body.classifier"
    assert trained == {f"{body}.{index}.{leaf}" for index in (0, 3) for leaf in ("weight", "bias")} | {
        "head.weight",
        "head.bias",
    }


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (config_for("resnet10"), Pyramid),
        (config_for("resnet10", head="pooled"), Pyramid),
        (config_for("resnet10", head="classic"), Trunk),
        (fused_config("sum", pyramid={"branches": ["resnet10", "resnet10"]}), FusedPyramid),
    ],
)
def test_the_input_of_a_head(config: ModelConfig, kind: type[nn.Module]) -> None:
    assert type(build_pyramid(config)) is kind
