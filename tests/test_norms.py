"""Frozen norms: one operation in training, folded into convolutions for prediction."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchvision.ops import FrozenBatchNorm2d

from detector.config.schema import AnchorConfig, BackboneConfig, FPNConfig, HeadConfig, ModelConfig, PyramidConfig
from detector.models import Model, build_model
from detector.models.norms import FOLDABLE, FrozenNorm, fold_norms


def randomise(module: nn.Module) -> None:
    """Random statistics and weights of norms, as after training; 0 and 1 would hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d):
            for tensor, low in ((norm.running_mean, -0.5), (norm.bias, -0.5), (norm.running_var, 0.5)):
                tensor.data.uniform_(low, low + 1, generator=generator)
            norm.weight.data.uniform_(0.5, 1.5, generator=generator)
            norm.load_state_dict(norm.state_dict())  # a frozen norm computes its scale and shift


def make_model(fpn_norm: str = "none", **backbone: object) -> Model:
    torch.manual_seed(0)
    config = ModelConfig(
        backbone=BackboneConfig(**backbone),
        fpn=FPNConfig(levels=[3, 4, 5], channels=16, norm=fpn_norm),
        anchors=AnchorConfig(ratios=[1.0], scales=[1.0]),
        head=HeadConfig(num_convs=1),
    )
    model = build_model(config, num_classes=2)
    randomise(model)
    nn.init.normal_(model.head.cls_output.weight, std=1)
    nn.init.normal_(model.head.box_output.weight, std=1)
    return model.eval()


def norms_of(model: nn.Module) -> int:
    return sum(type(module) in FOLDABLE for module in model.modules())


def test_a_frozen_norm_is_torchvisions() -> None:
    ours, theirs = FrozenNorm(6, eps=1e-3), FrozenBatchNorm2d(6, eps=1e-3)
    randomise(ours)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 5, 7).to(memory_format=torch.channels_last)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    own, expected = ours(inputs[0]), theirs(inputs[1])
    assert_close(own, expected)
    assert own.is_contiguous(memory_format=torch.channels_last)
    for output in (own, expected):
        (output**2).sum().backward()
    assert_close(inputs[0].grad, inputs[1].grad)


def test_a_frozen_norm_keeps_half_precision() -> None:
    assert FrozenNorm(4)(torch.randn(1, 4, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


# How many norms follow a convolution, and how many do not (a dense layer's first norm follows a concatenation).
@pytest.mark.parametrize(
    ("backbone", "folded", "left"),
    [
        ({"name": "resnet10"}, 12, 0),
        ({"name": "resnet10", "norm": "frozen_bn"}, 12, 0),
        ({"name": "mobilenet_v3_small"}, 34, 0),
        ({"name": "densenet121"}, 59, 62),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_folding_changes_no_prediction(backbone: dict[str, str], folded: int, left: int) -> None:
    model = make_model(**backbone)
    folding = copy.deepcopy(model).fold_norms()
    assert (norms_of(model) - norms_of(folding), norms_of(folding)) == (folded, left)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    sizes = torch.tensor([[64, 96], [50, 90]])
    with torch.inference_mode():
        expected, folded_output = model(images, sizes), folding(images, sizes)
    for ours, theirs in zip(folded_output[:2], expected[:2], strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_norms_of_a_pyramid_and_of_two_networks_are_folded() -> None:
    model = make_model("bn", name="resnet10")
    assert norms_of(model) == 18  # the network's 12, and those of 3 lateral and 3 output convolutions
    assert norms_of(model.fold_norms()) == 0
    branches = PyramidConfig(branches=[BackboneConfig(name="resnet10"), BackboneConfig(name="mobilenet_v3_small")])
    assert norms_of(build_model(ModelConfig(backbone=None, pyramid=branches), 2).fold_norms()) == 0


class Readers(nn.Module):
    """Convolutions that only a norm reads (0 and 5), or also another convolution, a function or the output."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(8))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(7))

    def forward(self, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        x = self.norms[0](self.convs[0](x))
        x = self.convs[1](x)
        x = self.norms[1](x) + self.convs[7](x)
        added, joined, viewed = (conv(x) for conv in self.convs[2:5])
        x = added + self.norms[2](added)
        x = x + torch.cat([joined[:, 1:], self.norms[3](joined)[:, :1]], dim=1)
        x = x + self.norms[4](viewed) + viewed.flatten(1).mean()
        x = self.norms[5](self.convs[5](x))
        returned = self.convs[6](x)
        return {"features": [self.norms[6](returned), returned]}


def test_what_others_read_is_not_folded() -> None:
    torch.manual_seed(0)
    model, x = Readers().eval(), torch.randn(1, 3, 4, 4)
    randomise(model)
    expected = model(x)["features"]
    fold_norms(model, lambda: model(x))
    assert [type(norm) is nn.Identity for norm in model.norms] == [number in (0, 5) for number in range(7)]
    assert_close(model(x)["features"], expected)


class Shared(nn.Module):
    """A norm that two convolutions feed."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.left(x)) + self.norm(self.right(x))


def test_a_shared_norm_is_not_folded() -> None:
    model, x = Shared().eval(), torch.randn(1, 3, 4, 4)
    randomise(model)
    expected = model(x)
    fold_norms(model, lambda: model(x))
    assert norms_of(model) == 1
    assert torch.equal(model(x), expected)
