"""FPN: by hand, against torchvision, with every option, and at odd sizes."""

from __future__ import annotations

from collections import OrderedDict
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from detector.config.schema import FPNConfig
from detector.models.fpn import FPN
from detector.ops.anchors import level_sizes

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
            nn.init.normal_(parameter)  # zeros would hide a forgotten bias
    return fpn


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize(("p6_from", "height", "width"), [("c5", 128, 64), ("p5", 97, 131)])
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


@pytest.mark.parametrize("levels", [[2, 3, 4, 5], [3, 4, 5, 6, 7], [2, 3, 4, 5, 6, 7], [4, 5, 6, 7]], ids=str)
@pytest.mark.parametrize(("p6_from", "height", "width"), [("p5", 128, 192), ("c5", 97, 131)])
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
        ([3, 4], "c5", 4.0, [70, 60]),  # C5 is added without its own level
        ([5, 6], "c5", 4.0, [40, -4]),  # C3 and C4 are not used
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
    for convolution in (*fpn.lateral, *fpn.output.values()):  # identities
        torch.nn.init.dirac_(convolution.weight)
    fine, _ = fpn([torch.zeros(1, 1, height, width), coarse])
    row, column = torch.meshgrid(torch.arange(height) // 2, torch.arange(width) // 2, indexing="ij")
    assert torch.equal(fine[0, 0], coarse[0, 0, row, column])


@pytest.mark.parametrize("finest", [2, 3])
def test_finer_features_than_the_levels_are_ignored(finest: int) -> None:
    features = make_features(64, 64)[finest - 2 :]
    pyramid = make_fpn([4, 5, 6], finest=finest)(features)
    assert_close(pyramid, make_fpn([4, 5, 6], finest=4)(features[-2:]))


# --- options ----------------------------------------------------------------------------------------------------------


def choices(field: str) -> tuple[str, ...]:
    return get_args(FPNConfig.model_fields[field].annotation)


SIZES = {  # of C2 to C5
    "even": [(32, 48), (16, 24), (8, 12), (4, 6)],
    "up": level_sizes(97, 131, [2, 3, 4, 5]),
    "down": [(17, 22), (8, 11), (4, 5), (2, 2)],  # VGG at 70×90: poolings round down
    "up and down": [(17, 23), (9, 11), (5, 5), (2, 3)],
}


# Every pair of a norm with an upsampling, an activation or sizes, and of these with each other.
COMBINATIONS = [
    (norm, activation, upsample, (i + j) % 2 == 0, list(SIZES)[(i + 2 * j) % 4])
    for i, norm in enumerate(choices("norm"))
    for j, upsample in enumerate(choices("upsample"))
    for activation in [choices("activation")[(i + j) % 3]]
]


@pytest.mark.parametrize(("norm", "activation", "upsample", "output_conv", "sizes"), COMBINATIONS)
def test_combinations_keep_the_sizes_and_train(
    norm: str, activation: str, upsample: str, output_conv: bool, sizes: str
) -> None:
    torch.manual_seed(0)
    options = {"norm": norm, "activation": activation, "upsample": upsample, "output_conv": output_conv}
    config = FPNConfig.model_validate({"levels": [2, 3, 4, 5, 6, 7], "channels": 8, **options})
    fpn = FPN((2, 3, 4, 5), tuple(CHANNELS.values()), config).train()
    features = [torch.randn(2, CHANNELS[level], *size) for level, size in enumerate(SIZES[sizes], start=2)]
    pyramid = fpn(features)
    height, width = SIZES[sizes][-1]
    coarse = [(-(-height // 2), -(-width // 2)), (-(-height // 4), -(-width // 4))]  # P6 and P7 round up
    assert [tuple(feature.shape) for feature in pyramid] == [(2, 8, *size) for size in (*SIZES[sizes], *coarse)]

    before = {name: parameter.detach().clone() for name, parameter in fpn.named_parameters()}
    optimizer = torch.optim.SGD(fpn.parameters(), lr=0.01)
    sum((feature * torch.randn_like(feature)).sum() for feature in pyramid).backward()
    optimizer.step()
    for name, parameter in fpn.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert not torch.equal(parameter, before[name]), name
    assert all(feature.isfinite().all() for feature in fpn(features))


@pytest.mark.parametrize(("norm", "kind"), [("none", None), ("bn", nn.BatchNorm2d), ("gn", nn.GroupNorm)])
@pytest.mark.parametrize(("activation", "after"), [("none", None), ("relu", nn.ReLU), ("silu", nn.SiLU)])
def test_layers_of_laterals_and_outputs(
    norm: str, kind: type[nn.Module] | None, activation: str, after: type[nn.Module] | None
) -> None:
    config = FPNConfig.model_validate({"channels": 48, "norm": norm, "activation": activation})
    fpn = FPN((3, 4, 5), (4, 5, 6), config)
    for level, (lateral, output) in enumerate(zip(fpn.lateral, list(fpn.output.values())[:3], strict=True), start=3):
        for block, inputs, kernel in ((lateral, CHANNELS[level], 1), (output, 48, 3)):
            layers = list(block) if isinstance(block, nn.Sequential) else [block]
            assert [type(layer) for layer in layers] == [layer for layer in (nn.Conv2d, kind, after) if layer]
            assert layers[0].weight.shape == (48, inputs, kernel, kernel)
            assert (layers[0].bias is None) == (norm != "none")  # a norm has its own shift
            assert all(layer.num_groups == 16 for layer in layers if isinstance(layer, nn.GroupNorm))  # gcd(32, 48)
    for name in ("p6", "p7"):
        assert isinstance(fpn.output[name], nn.Conv2d)
        assert fpn.output[name].bias is not None


def test_activation_by_hand() -> None:
    config = FPNConfig(levels=[4, 5], channels=1, activation="relu")
    fpn = FPN((4, 5), (1, 1), config)
    with torch.no_grad():
        for block, factor in zip((*fpn.lateral, *fpn.output.values()), (1.0, -1.0, -10.0, 10.0), strict=True):
            block[0].weight.zero_()
            block[0].weight[..., block[0].kernel_size[0] // 2, block[0].kernel_size[0] // 2] = factor
        # Laterals: ReLU(-3) = 0, ReLU(-1 · -2) = 2. Merged: 0 + 2 and 2. Outputs: ReLU(-10 · 2) = 0, ReLU(10 · 2) = 20.
        fine, coarse = fpn([torch.full((1, 1, 4, 4), -3.0), torch.full((1, 1, 2, 2), -2.0)])
    assert (fine == 0).all()
    assert (coarse == 20).all()


def passing(upsample: str, levels: tuple[int, ...] = (4, 5), channels: int = 1) -> FPN:
    """Identity laterals and no output convolutions: P5 is C5, P4 is C4 + C5 upsampled."""
    config = FPNConfig.model_validate(
        {"levels": list(levels), "channels": channels, "upsample": upsample, "output_conv": False}
    )
    fpn = FPN(levels, (channels,) * len(levels), config)
    for lateral in fpn.lateral:
        nn.init.dirac_(lateral.weight)
    return fpn


@pytest.mark.parametrize("upsample", choices("upsample"))
def test_without_output_convolutions_levels_are_the_merged_laterals(upsample: str) -> None:
    torch.manual_seed(0)
    options = {"levels": [3, 4, 5, 6], "channels": 8, "upsample": upsample}
    plain = FPN((3, 4, 5), (4, 5, 6), FPNConfig.model_validate(options | {"output_conv": False}))
    fpn = FPN((3, 4, 5), (4, 5, 6), FPNConfig.model_validate(options))
    names = {name.split(".")[0] for name, _ in plain.named_parameters()}
    assert names == {"lateral", "output"} | ({"deconv"} if upsample == "deconv" else set())
    assert {name for name, _ in plain.named_parameters() if name.startswith("output")} == {
        "output.p6.weight",
        "output.p6.bias",
    }
    assert set(fpn.load_state_dict(plain.state_dict(), strict=False).missing_keys) == {
        f"output.p{level}.{leaf}" for level in (3, 4, 5) for leaf in ("weight", "bias")
    }
    features = make_features(64, 96, (3, 4, 5))
    with torch.no_grad():
        merged = plain(features)
        for level, feature in enumerate(merged[:3], start=3):
            assert_close(fpn.output[f"p{level}"](feature), fpn(features)[level - 3])
        assert_close(merged[2], plain.lateral[2](features[2]))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (4, 6), (5, 7)])
def test_upsampling_at_even_sizes_equals_torch(rows: int, columns: int) -> None:
    torch.manual_seed(0)
    coarse, nothing = torch.randn(2, 3, rows, columns), torch.zeros(2, 3, 2 * rows, 2 * columns)
    with torch.no_grad():
        fine = {upsample: passing(upsample, channels=3)([nothing, coarse])[0] for upsample in choices("upsample")}
    size = (2 * rows, 2 * columns)
    assert_close(fine["nearest"], F.interpolate(coarse, size=size, mode="nearest"))
    assert_close(fine["bilinear"], F.interpolate(coarse, size=size, mode="bilinear", align_corners=False))
    assert_close(fine["deconv"], fine["nearest"])  # as initialised


@pytest.mark.parametrize(
    ("is_row", "fine", "coarse"),
    [
        (True, 7, 4),
        (False, 8, 4),
        (True, 9, 4),
        (False, 1, 1),
        (True, 2, 1),
        (False, 3, 1),
        (True, 33, 17),
        (False, 45, 22),
    ],
)
@pytest.mark.parametrize("upsample", ["bilinear", "deconv"])
def test_upsampling_at_odd_sizes_by_hand(upsample: str, fine: int, coarse: int, is_row: bool) -> None:
    """A ramp; where a network rounded down, the border is repeated."""
    position = torch.arange(fine, dtype=torch.float32)
    if upsample == "bilinear":
        expected = ((position + 0.5) / 2 - 0.5).clamp(0, coarse - 1)  # centres of pixels, half as large
    else:
        expected = (position // 2).clamp(max=coarse - 1)
    shape, wide = ((1, 1, -1, 1), (1, 1, 1, 6)) if is_row else ((1, 1, 1, -1), (1, 1, 6, 1))
    ramp = torch.arange(coarse, dtype=torch.float32).reshape(shape).tile([max(1, side // 2) for side in wide])
    expected = expected.reshape(shape).tile(wide)
    with torch.no_grad():
        finest, _ = passing(upsample)([torch.zeros_like(expected), ramp])
    assert_close(finest, expected)


def test_every_level_has_its_own_deconvolution() -> None:
    fpn = passing("deconv", levels=(3, 4, 5))
    with torch.no_grad():
        for deconv, factor in zip(fpn.deconv, (2.0, 3.0), strict=True):
            deconv.weight.mul_(factor)
        features = [torch.full((1, 1, side, side), value) for side, value in ((16, 1.0), (8, 2.0), (4, 4.0))]
        pyramid = fpn(features)
    # 4; 2 + 3 · 4 = 14; 1 + 2 · 14 = 29
    assert [feature.unique().tolist() for feature in pyramid] == [[29], [14], [4]]


def test_deconvolution_starts_without_mixing_channels() -> None:
    fpn = passing("deconv", channels=5)
    weight, bias = fpn.deconv[0].weight, fpn.deconv[0].bias
    assert torch.equal(weight, torch.eye(5)[:, :, None, None].expand(5, 5, 2, 2))
    assert (bias == 0).all()
