"""Heads: the order of their outputs, their first scores, their layers, and pooling by hand."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.models.detection.retinanet import RetinaNetClassificationHead

from detector.config.loader import load_config
from detector.config.schema import AnchorConfig, BoxCoderConfig, HeadConfig, LossConfig, ModelConfig
from detector.models.heads import HEADS, ClassicHead, PooledHead, RetinaHead
from detector.ops.anchors import level_sizes
from detector.ops.logits import product_logit

SIZES = [(3, 4), (2, 2), (1, 1)]
LEVELS = (3, 4, 5)


def make_head(num_classes: int, ratios: list[float] | None = None, channels: int = 16, **head: object) -> RetinaHead:
    torch.manual_seed(0)
    anchors = AnchorConfig() if ratios is None else AnchorConfig(ratios=ratios, scales=[1.0])
    return RetinaHead(ModelConfig(anchors=anchors, head=HeadConfig(**head)), LEVELS, channels, num_classes)


def make_pyramid(channels: int = 16, num_images: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(num_images, channels, *size, generator=generator) for size in SIZES]


@pytest.mark.parametrize("ratios", [[1.0], [0.5, 1.0], None], ids=["1", "2", "9"])
@pytest.mark.parametrize("num_classes", [1, 2, 7])
def test_order_is_level_row_column_anchor_class(num_classes: int, ratios: list[float] | None) -> None:
    head, pyramid = make_head(num_classes, ratios), make_pyramid()
    num_anchors = 9 if ratios is None else len(ratios)
    with torch.no_grad():
        predictions = head(pyramid)
        flat = 0
        for feature, (height, width) in zip(pyramid, SIZES, strict=True):
            logits, deltas = head.cls_output(head.cls_tower(feature)), head.box_output(head.box_tower(feature))
            for row in range(height):
                for column in range(width):
                    for anchor in range(num_anchors):
                        own = slice(anchor * num_classes, (anchor + 1) * num_classes)
                        assert torch.equal(predictions.cls_logits[:, flat], logits[:, own, row, column])
                        own = slice(anchor * 4, (anchor + 1) * 4)
                        assert torch.equal(predictions.box_channels[:, flat], deltas[:, own, row, column])
                        flat += 1
    assert predictions.cls_logits.shape == (2, flat, num_classes)
    assert predictions.box_channels.shape == (2, flat, 4)
    assert predictions.level_counts == [height * width * num_anchors for height, width in SIZES]


def test_each_prediction_has_the_index_of_its_anchor() -> None:
    """A head that copies its input, the position, predicts each anchor's position in the anchors' order."""
    head = make_head(2, ratios=[1.0, 4.0], channels=4, num_convs=0)
    with torch.no_grad():
        for output in (head.cls_output, head.box_output):
            output.weight.zero_()
            output.bias.zero_()
        for anchor in range(2):
            head.cls_output.weight[2 * anchor, 3, 1, 1] = 1.0  # class 0 repeats channel 3
            head.cls_output.bias[2 * anchor + 1] = anchor  # class 1 names the anchor
            for number in range(4):
                head.box_output.weight[4 * anchor + number, number, 1, 1] = 1.0
        pyramid = []
        for level, (height, width) in zip(LEVELS, SIZES, strict=True):
            y, x = torch.meshgrid(torch.arange(height) * 2**level, torch.arange(width) * 2**level, indexing="ij")
            pyramid.append(torch.stack([x, y, torch.full_like(x, level), x + 1000 * y])[None].float())
        predictions = head(pyramid)
    anchors = predictions.anchors
    x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2).unbind(dim=1)
    width, height = (anchors[:, 2:] - anchors[:, :2]).unbind(dim=1)
    level = (width * height).log2() / 2 - 2  # the area is (4 · 2^level)²
    assert_close(predictions.box_channels[0, :, :3], torch.stack([x, y, level], dim=1))
    assert_close(predictions.cls_logits[0, :, 0], x + 1000 * y)
    assert_close(predictions.cls_logits[0, :, 1], (height > 2 * width).float())  # the second ratio


@pytest.mark.parametrize("norm", ["none", "gn"])
@pytest.mark.parametrize("prior", [0.01, 0.05, 0.3])
def test_scores_start_at_the_prior(prior: float, norm: str) -> None:
    head = make_head(7, prior=prior, norm=norm, channels=32)
    with torch.no_grad():
        scores = head(
            [torch.randn(2, 32, 8, 8), torch.randn(2, 32, 4, 4), torch.randn(2, 32, 2, 2)]
        ).cls_logits.sigmoid()
    assert scores.mean().item() == pytest.approx(prior, rel=0.1)


def test_equals_torchvision_with_its_weights() -> None:
    head, pyramid = make_head(7), make_pyramid()
    reference = RetinaNetClassificationHead(16, 9, 7)
    with torch.no_grad():
        tower = [module for module in head.cls_tower if isinstance(module, nn.Conv2d)]
        for (conv, _), own in zip(reference.conv, tower, strict=True):
            own.load_state_dict(conv.state_dict())
        head.cls_output.load_state_dict(reference.cls_logits.state_dict())
        assert_close(head(pyramid).cls_logits, reference(pyramid))


def test_levels_share_the_head_and_images_do_not_mix() -> None:
    head = make_head(3, norm="gn")
    feature = make_pyramid()[0]
    with torch.no_grad():
        predictions = head([feature] * 3)
        first, second, third = predictions.cls_logits.split(predictions.level_counts, dim=1)
        assert torch.equal(first, second)
        assert torch.equal(first, third)
        assert_close(head([feature[1:]] * 3).cls_logits, predictions.cls_logits[1:])


@pytest.mark.parametrize(
    ("norm", "layers"), [("none", [nn.Conv2d, nn.ReLU]), ("gn", [nn.Conv2d, nn.GroupNorm, nn.ReLU])]
)
@pytest.mark.parametrize("num_convs", [0, 1, 4])
def test_layers_of_the_towers(num_convs: int, norm: str, layers: list[type[nn.Module]]) -> None:
    head = make_head(3, num_convs=num_convs, norm=norm)
    for tower in (head.cls_tower, head.box_tower):
        assert [type(module) for module in tower] == layers * num_convs
        # A normalised layer has its own shift.
        assert all((module.bias is None) == (norm == "gn") for module in tower if isinstance(module, nn.Conv2d))
        # 32 groups (Wu & He 2018), or as many as divide the channels and leave two to each: 8 of 16.
        assert all(module.num_groups == 8 for module in tower if isinstance(module, nn.GroupNorm))
    assert head(make_pyramid()).cls_logits.shape == (2, 153, 3)  # 9 · (12 + 4 + 1)


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (48, 16), (32, 16), (7, 1)])
def test_groups_divide_the_channels(channels: int, groups: int) -> None:
    head = make_head(1, channels=channels, norm="gn", num_convs=1)
    assert head.cls_tower[1].num_groups == groups


def test_classes_and_boxes_share_no_layer() -> None:
    head, pyramid = make_head(3), make_pyramid()
    with torch.no_grad():
        before = head(pyramid)
        for parameter in (*head.cls_tower.parameters(), *head.cls_output.parameters()):
            parameter.add_(0.1)
        after = head(pyramid)
    assert torch.equal(after.box_channels, before.box_channels)
    assert not torch.allclose(after.cls_logits, before.cls_logits)


@pytest.mark.parametrize("num_convs", [0, 2])
def test_channels_of_its_own(num_convs: int) -> None:
    head = make_head(3, channels=16, num_convs=num_convs)
    wide = RetinaHead(ModelConfig(head=HeadConfig(num_convs=num_convs, channels=24)), LEVELS, 16, 3)
    assert head.cls_output.in_channels == 16
    assert wide.cls_output.in_channels == (24 if num_convs else 16)
    assert wide(make_pyramid()).cls_logits.shape == (2, 153, 3)


def test_initial_weights() -> None:
    head = make_head(80, channels=64)
    for name, parameter in head.named_parameters():
        if name.endswith("weight"):
            assert parameter.std().item() == pytest.approx(0.01, rel=0.1), name
            assert parameter.mean().item() == pytest.approx(0, abs=1e-3), name
        elif name == "cls_output.bias":
            assert_close(parameter.data, torch.full((720,), -math.log(99)))  # log((1 - 0.01) / 0.01)
        else:
            assert (parameter == 0).all(), name


# --- what says how good a box is --------------------------------------------------------------------------------------


def test_each_level_has_its_scale() -> None:
    """It multiplies the box channels, biases included, and nothing else."""
    plain, scaled = make_head(3), make_head(3, level_scales=True)
    pyramid = make_pyramid()
    with torch.no_grad():
        nn.init.normal_(plain.box_output.bias)
        scaled.load_state_dict(plain.state_dict() | {f"scales.{index}": torch.ones(()) for index in range(3)})
        before, same = plain(pyramid), scaled(pyramid)
        assert torch.equal(same.box_channels, before.box_channels)  # 1 at first
        for level, scale in enumerate(scaled.scales):
            scale.fill_(level + 2.0)
        after = scaled(pyramid)
    factors = torch.tensor([2.0, 3.0, 4.0]).repeat_interleave(torch.tensor(before.level_counts))[:, None]
    assert_close(after.box_channels, before.box_channels * factors)
    assert torch.equal(after.cls_logits, before.cls_logits)


@pytest.mark.parametrize("quality", ["centerness", "iou"])
def test_a_branch_of_the_box_subnet_rates_each_anchor(quality: str) -> None:
    head, pyramid = make_head(3, ratios=[0.5, 1.0], quality=quality), make_pyramid()
    with torch.no_grad():
        predictions, flat = head(pyramid), 0
        for feature in pyramid:
            own = head.quality_output(head.box_tower(feature)).permute(0, 2, 3, 1).flatten(1)  # row, column, anchor
            assert torch.equal(predictions.quality[:, flat : flat + own.shape[1]], own)
            flat += own.shape[1]
    assert predictions.quality.shape == predictions.cls_logits.shape[:2] == (2, flat)


def test_quality_from_distributions_equals_the_papers_formula() -> None:
    """GFLv2, section 3.2: of each side the top 4 probabilities and their mean, two layers, and a product of scores."""
    config = ModelConfig(
        anchors=AnchorConfig(ratios=[1.0], scales=[1.0]),
        head=HeadConfig(quality="distribution", num_convs=1),
        box_coder=BoxCoderConfig(name="distribution", reg_max=6),
        loss=LossConfig(box="giou"),
    )
    torch.manual_seed(0)
    head, pyramid = RetinaHead(config, LEVELS, 16, 3), make_pyramid()
    with torch.no_grad():
        first, second = head.quality_output.hidden, head.quality_output.output
        for layer in (first, second, head.box_output):
            layer.weight.mul_(50)
        predictions, scores = head(pyramid), []
        for feature in pyramid:
            channels = head.box_output(head.box_tower(feature))  # [B, 4 · 7, H, W]
            probabilities = channels.unflatten(1, (4, 7)).softmax(dim=2)
            top = probabilities.sort(dim=2, descending=True).values[:, :, :4]
            statistics = torch.cat([top, top.mean(dim=2, keepdim=True)], dim=2).flatten(1, 2)  # [B, 20, H, W]
            hidden = torch.einsum("oc,bchw->bohw", first.weight, statistics) + first.bias[:, None, None]
            quality = torch.einsum("oc,bchw->bohw", second.weight, hidden.relu()) + second.bias[:, None, None]
            score = head.cls_output(head.cls_tower(feature)).sigmoid() * quality.sigmoid()
            scores.append(score.permute(0, 2, 3, 1).flatten(1, 2))
    assert predictions.quality is None  # it is in the logits already
    assert_close(predictions.cls_logits.sigmoid(), torch.cat(scores, dim=1), rtol=1e-4, atol=1e-6)
    assert torch.cat(scores, dim=1).std() > 1e-4


def test_logit_of_a_product() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (8 * torch.randn(200, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = (first.sigmoid() * second.sigmoid()).logit()
    assert_close(product_logit(first, second), expected.float(), rtol=1e-4, atol=1e-5)
    assert product_logit(torch.zeros(1), torch.zeros(1)).item() == pytest.approx(-math.log(3))
    extreme = torch.tensor([-200.0, -200, 200, 0], requires_grad=True)
    product = product_logit(extreme, torch.tensor([-200.0, 200, 200, 200]))
    # e^-200 · e^-200; e^-200 · 1; 1 - 2 e^-200; 1/2 · 1
    assert product.tolist() == pytest.approx([-400, -200, 200 - math.log(2), 0], abs=1e-4)
    # The derivative is (1 - σ(a)) / (1 - σ(a) σ(b)).
    assert torch.autograd.grad(product.sum(), extreme)[0].tolist() == pytest.approx([1, 1, 0.5, 1])


def test_one_square_anchor_per_cell_is_a_ninth_of_the_output() -> None:
    """What ATSS and GFL predict, beside RetinaNet's nine anchors, from the configs' own heads."""
    outputs = {}
    for name in ("retinanet_r50_fpn.yaml", "retinanet_r50_fpn_gfl.yaml"):
        config = load_config(name).model
        head = HEADS[config.head.name](config, (3, 4, 5, 6, 7), 256, 80)
        with torch.no_grad():
            sizes = level_sizes(256, 320, (3, 4, 5, 6, 7))
            outputs[name] = head([torch.zeros(1, 256, *size) for size in sizes])
    nine, one = outputs.values()
    assert nine.cls_logits.shape[1:] == (9 * one.cls_logits.shape[1], 80)
    assert nine.level_counts == [9 * count for count in one.level_counts]
    assert nine.cls_logits.numel() == 9 * one.cls_logits.numel()
    sides = one.anchors[:, 2:] - one.anchors[:, :2]
    strides = torch.tensor([8.0, 16, 32, 64, 128]).repeat_interleave(torch.tensor(one.level_counts))
    assert torch.equal(sides, 8 * strides[:, None].expand(-1, 2))


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_of_every_head_is_used(name: str) -> None:
    torch.manual_seed(0)
    own = HeadConfig(name=name, pool="gem", fuse="learned", hidden=[8], level_scales=True, quality="centerness")
    head = HEADS[name](ModelConfig(head=own), LEVELS, 16, 3)
    output = head(torch.randn(2, 16) if name == "classic" else make_pyramid())
    tensors = [output] if isinstance(output, Tensor) else [output.cls_logits, output.box_channels, output.quality]
    sum(tensor.square().sum() for tensor in tensors).backward()
    for parameter_name, parameter in head.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert (parameter.grad != 0).any(), parameter_name


@pytest.mark.parametrize("name", HEADS)
def test_tensors_by_class_have_its_classes_in_rows(name: str) -> None:
    """Loading weights of other classes relies on it."""
    head = HEADS[name](ModelConfig(head=HeadConfig(name=name, hidden=[8])), LEVELS, 16, 7)
    anchors = 9 if name == "retina" else 1
    assert [head.get_parameter(tensor).shape[0] for tensor in head.by_class] == [7 * anchors, 7 * anchors]
    others = HEADS[name](ModelConfig(head=HeadConfig(name=name, hidden=[8])), LEVELS, 16, 6)
    differing = {key for key, tensor in head.state_dict().items() if tensor.shape != others.state_dict()[key].shape}
    assert differing == set(head.by_class)


# --- pooled and classic -----------------------------------------------------------------------------------------------


def make_pooled(num_levels: int = 3, channels: int = 16, num_classes: int = 3, **head: object) -> PooledHead:
    torch.manual_seed(0)
    config = ModelConfig(head=HeadConfig.model_validate({"name": "pooled", **head}))
    return PooledHead(config, LEVELS[:num_levels], channels, num_classes)


def passing(head: PooledHead) -> PooledHead:
    """``head`` with an identity as classifier, which returns the fused vector."""
    with torch.no_grad():
        nn.init.eye_(head.classifier.weight)
        head.classifier.bias.zero_()
    return head


# One image, two channels, two levels.
FINE = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[0.0, 8.0], [4.0, 0.0]]]])
COARSE = torch.tensor([[[[5.0]], [[-1.0]]]])


@pytest.mark.parametrize(
    ("pool", "fuse", "expected"),
    [
        # Averages: (1 + 2 + 3 + 6) / 4 = 3 and (8 + 4) / 4 = 3; then 5 and -1. Maxima: 6 and 8; 5 and -1.
        ("avg", "mean", [4.0, 1.0]),
        ("avg", "concat", [3.0, 3.0, 5.0, -1.0]),
        ("avg", "learned", [4.0, 1.0]),
        ("max", "mean", [5.5, 3.5]),
        ("max", "concat", [6.0, 8.0, 5.0, -1.0]),
        ("max", "learned", [5.5, 3.5]),
        # Cubes: (1 + 8 + 27 + 216) / 4 = 63 and (512 + 64) / 4 = 144; what is not positive counts as (nearly) 0.
        ("gem", "concat", [63 ** (1 / 3), 144 ** (1 / 3), 5.0, 1e-6]),
        ("gem", "mean", [(63 ** (1 / 3) + 5) / 2, 144 ** (1 / 3) / 2]),
        ("gem", "learned", [(63 ** (1 / 3) + 5) / 2, 144 ** (1 / 3) / 2]),
    ],
)
def test_pooling_and_fusing_by_hand(pool: str, fuse: str, expected: list[float]) -> None:
    head = passing(make_pooled(2, channels=2, num_classes=len(expected), pool=pool, fuse=fuse))
    with torch.no_grad():
        assert_close(head([FINE, COARSE]), torch.tensor([expected]))


def test_every_way_of_pooling_and_fusing_is_tried() -> None:
    pools, fuses = (get_args(HeadConfig.model_fields[field].annotation) for field in ("pool", "fuse"))
    assert (pools, fuses) == (("avg", "max", "gem"), ("mean", "concat", "learned"))


def test_learned_weights_by_hand() -> None:
    head = passing(make_pooled(2, channels=2, num_classes=2, fuse="learned"))
    with torch.no_grad():
        head.level_weights.copy_(torch.tensor([0.0, math.log(3)]))  # softmax: 1/4 and 3/4
        # 3 / 4 + 5 · 3 / 4 = 4.5; 3 / 4 - 1 · 3 / 4 = 0
        assert_close(head([FINE, COARSE]), torch.tensor([[4.5, 0.0]]))


def test_gem_is_between_average_and_maximum() -> None:
    feature = torch.rand(2, 4, 5, 6) * 3 - 0.5
    clamped = feature.clamp(min=1e-6)
    head = passing(make_pooled(1, channels=4, num_classes=4, pool="gem"))
    assert head.power.item() == 3
    with torch.no_grad():
        usual = head([feature])
        head.power.fill_(1.0)
        average = head([feature])
        assert_close(average, clamped.mean(dim=(2, 3)))
        head.power.fill_(60.0)  # 30 cells: at most (1 / 30)^(1 / 60) = 0.94 of the maximum is lost
        largest = head([feature])
    maximum = feature.amax(dim=(2, 3))
    assert ((average < usual) & (usual < largest) & (largest <= maximum)).all()
    assert (largest > 0.94 * maximum).all()


@pytest.mark.parametrize("hidden", [[], [5], [7, 5]])
@pytest.mark.parametrize(("fuse", "width"), [("mean", 16), ("concat", 48), ("learned", 16)])
def test_widths_of_fully_connected_layers(fuse: str, width: int, hidden: list[int]) -> None:
    head = make_pooled(3, fuse=fuse, hidden=hidden)
    layers = [module for module in head.modules() if isinstance(module, nn.Linear)]
    widths = [width, *hidden, 3]
    shapes = list(pairwise(widths))
    assert [(layer.in_features, layer.out_features) for layer in layers] == shapes
    # A dropout before each, a ReLU between two.
    kinds = [type(module) for module in (*head.hidden, head.classifier)]
    assert kinds == [nn.Dropout, nn.Linear, nn.ReLU] * len(hidden) + [nn.Dropout, nn.Linear]
    assert head(make_pyramid()).shape == (2, 3)


def test_hidden_layers_by_hand() -> None:
    head = passing(make_pooled(2, channels=2, num_classes=2, fuse="mean", hidden=[2]))
    with torch.no_grad():
        head.hidden[1].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
        head.hidden[1].bias.copy_(torch.tensor([0.5, 0.5]))
        # Means 4 and 1: ReLU(4 + 0.5) = 4.5, ReLU(-1 + 0.5) = 0
        assert_close(head([FINE, COARSE]), torch.tensor([[4.5, 0.0]]))


@pytest.mark.parametrize("hidden", [[], [64]])
def test_dropout_is_for_training_only(hidden: list[int]) -> None:
    head = make_pooled(dropout=0.5, hidden=hidden)
    assert [module.p for module in head.modules() if isinstance(module, nn.Dropout)] == [0.5] * (len(hidden) + 1)
    pyramid = make_pyramid()
    with torch.no_grad():
        assert not torch.equal(head.train()(pyramid), head(pyramid))
        assert torch.equal(head.eval()(pyramid), head(pyramid))


def test_without_dropout_training_and_evaluation_agree() -> None:
    head, pyramid = make_pooled(hidden=[8]), make_pyramid()
    assert torch.equal(head.train()(pyramid), head.eval()(pyramid))


def test_classic_is_one_linear_layer() -> None:
    head = ClassicHead(ModelConfig(head=HeadConfig(name="classic")), (), 2, 3)
    assert sorted(head.state_dict()) == ["bias", "weight"]
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, -1.0]]))
        head.bias.copy_(torch.tensor([0.0, 0.0, 10.0]))
        # 3; 2 · 4; 3 - 4 + 10
        assert head(torch.tensor([[3.0, 4.0]])).tolist() == [[3, 8, 9]]
