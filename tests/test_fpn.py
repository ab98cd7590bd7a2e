"""FPN: by hand, against torchvision, and at odd sizes."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from detector.anchors import level_sizes
from detector.config import FPNConfig
from detector.models.fpn import FPN

CHANNELS = {2: 3, 3: 4, 4: 5, 5: 6}
LEVELS = [[2, 3, 4, 5], [3, 4, 5, 6, 7], [2, 3, 4, 5, 6, 7], [3, 4, 5], [4, 5, 6, 7], [3, 4, 5, 6], [3, 4], [5, 6]]


def make_features(height: int, width: int, levels: tuple[int, ...] = (2, 3, 4, 5)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(height * width)
    return [
        torch.randn(2, CHANNELS[level], *size, generator=generator)
        for level, size in zip(levels, level_sizes(height, width, list(levels)), strict=True)
    ]


def make_fpn(levels: list[int], p6_from: str = "c5", channels: int = 8, finest: int = 2) -> FPN:
    torch.manual_seed(0)
    own = {level: CHANNELS[level] for level in range(finest, 6)}
    fpn = FPN(tuple(own), tuple(own.values()), FPNConfig(levels=levels, channels=channels, p6_from=p6_from))
    for name, parameter in fpn.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)  # begun at zero, they would hide a forgotten one
    return fpn


@pytest.mark.parametrize("p6_from", ["c5", "p5"])
@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize(("height", "width"), [(128, 64), (97, 131)])
def test_every_level_has_its_size_and_every_parameter_a_gradient(
    levels: list[int], p6_from: str, height: int, width: int
) -> None:
    fpn = make_fpn(levels, p6_from)
    pyramid = fpn(make_features(height, width))
    assert (fpn.levels, fpn.channels) == (tuple(levels), 8)
    assert [tuple(feature.shape) for feature in pyramid] == [
        (2, 8, *size) for size in level_sizes(height, width, levels)
    ]
    sum(feature.square().sum() for feature in pyramid).backward()
    for name, parameter in fpn.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


def test_initial_weights() -> None:
    fpn = FPN((3, 4, 5), (64, 64, 64), FPNConfig(channels=64))
    for name, parameter in fpn.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:  # uniform within ±√(3 / inputs), whose deviation is √(1 / inputs)
            inputs = parameter[0].numel()
            assert parameter.abs().max() <= (3 / inputs) ** 0.5 + 1e-6, name
            assert parameter.std().item() == pytest.approx((1 / inputs) ** 0.5, rel=0.05), name


def as_torchvision(fpn: FPN, lateral_levels: list[int], p6_from: str) -> FeaturePyramidNetwork:
    """torchvision's FPN with the weights of ``fpn``."""
    extra = None
    if 7 in fpn.levels:
        extra = LastLevelP6P7(CHANNELS[5] if p6_from == "c5" else fpn.channels, fpn.channels)
        extra.p6.load_state_dict(fpn.output["p6"].state_dict())
        extra.p7.load_state_dict(fpn.output["p7"].state_dict())
    reference = FeaturePyramidNetwork([CHANNELS[level] for level in lateral_levels], fpn.channels, extra)
    for index, level in enumerate(lateral_levels):
        reference.inner_blocks[index][0].load_state_dict(fpn.lateral[index].state_dict())
        reference.layer_blocks[index][0].load_state_dict(fpn.output[f"p{level}"].state_dict())
    return reference


@pytest.mark.parametrize("p6_from", ["c5", "p5"])
@pytest.mark.parametrize("levels", [[2, 3, 4, 5], [3, 4, 5, 6, 7], [2, 3, 4, 5, 6, 7], [4, 5, 6, 7]], ids=str)
@pytest.mark.parametrize(("height", "width"), [(128, 192), (97, 131)])
def test_equals_torchvision(levels: list[int], p6_from: str, height: int, width: int) -> None:
    fpn = make_fpn(levels, p6_from)
    lateral_levels = [level for level in levels if level <= 5]
    features = make_features(height, width)
    with torch.no_grad():
        pyramid = fpn(features)
        named = OrderedDict((str(level), features[level - 2]) for level in lateral_levels)
        expected = as_torchvision(fpn, lateral_levels, p6_from)(named)
    assert len(pyramid) == len(expected)
    for feature, reference in zip(pyramid, expected.values(), strict=True):
        assert_close(feature, reference)


def constant_fpn(levels: list[int], p6_from: str) -> FPN:
    """One channel; laterals × 1, outputs × 10, P6 × -1, P7 × 2."""
    fpn = FPN((3, 4, 5), (1, 1, 1), FPNConfig(levels=levels, channels=1, p6_from=p6_from))
    factors = {"p3": 10.0, "p4": 10.0, "p5": 10.0, "p6": -1.0, "p7": 2.0}
    with torch.no_grad():
        for parameter in fpn.parameters():
            parameter.zero_()
        for lateral in fpn.lateral:
            lateral.weight.fill_(1.0)
        for name, output in fpn.output.items():
            output.weight[0, 0, 1, 1] = factors[name]
    return fpn


@pytest.mark.parametrize(
    ("levels", "p6_from", "c5", "expected"),
    [
        # Top-down sums 4, 4 + 2, 4 + 2 + 1. P6 = -4, and the ReLU before P7 leaves 0.
        ([3, 4, 5, 6, 7], "c5", 4.0, [70, 60, 40, -4, 0]),
        ([3, 4, 5, 6, 7], "p5", 4.0, [70, 60, 40, -40, 0]),
        # -4, -4 + 2, -4 + 2 + 1; P6 = 4 and 40, P7 twice that.
        ([3, 4, 5, 6, 7], "c5", -4.0, [-10, -20, -40, 4, 8]),
        ([3, 4, 5, 6, 7], "p5", -4.0, [-10, -20, -40, 40, 80]),
        ([3, 4], "c5", 4.0, [70, 60]),  # C5 adds to them without a level of its own
        ([5, 6], "c5", 4.0, [40, -4]),  # C3 and C4 play no part
    ],
)
def test_constant_features_by_hand(levels: list[int], p6_from: str, c5: float, expected: list[float]) -> None:
    features = [torch.full((1, 1, side, side), value) for side, value in ((16, 1.0), (8, 2.0), (4, c5))]
    with torch.no_grad():
        pyramid = constant_fpn(levels, p6_from)(features)
    assert [feature.unique().tolist() for feature in pyramid] == [[value] for value in expected]


@pytest.mark.parametrize(("height", "width"), [(2, 2), (1, 1), (7, 12), (13, 17), (25, 33), (199, 333)])
def test_upsampling_takes_cell_i_from_half_of_it(height: int, width: int) -> None:
    rows, columns = -(-height // 2), -(-width // 2)
    coarse = torch.arange(rows * columns, dtype=torch.float32).reshape(1, 1, rows, columns)
    fpn = FPN((4, 5), (1, 1), FPNConfig(levels=[4, 5], channels=1))
    for convolution in (*fpn.lateral, *fpn.output.values()):  # all pass on what they get
        torch.nn.init.dirac_(convolution.weight)
    fine, _ = fpn([torch.zeros(1, 1, height, width), coarse])
    row, column = torch.meshgrid(torch.arange(height) // 2, torch.arange(width) // 2, indexing="ij")
    assert torch.equal(fine[0, 0], coarse[0, 0, row, column])


@pytest.mark.parametrize("finest", [2, 3])
def test_finer_features_than_asked_for_are_left_out(finest: int) -> None:
    features = make_features(64, 64)[finest - 2 :]
    pyramid = make_fpn([4, 5, 6], finest=finest)(features)
    assert_close(pyramid, make_fpn([4, 5, 6], finest=4)(features[-2:]))
