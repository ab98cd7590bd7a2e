"""Anchors: counts, positions and shapes by hand, and against torchvision's generator."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from detector.config.schema import AnchorConfig, AnchorShapes
from detector.ops.anchors import Anchors, cell_anchors, level_sizes


def make_anchors(config: AnchorConfig, levels: list[int], height: int, width: int) -> tuple[Tensor, list[int]]:
    return Anchors(config, levels)(level_sizes(height, width, levels))


@pytest.mark.parametrize(
    ("height", "width", "levels", "expected"),
    [
        (800, 1344, [3, 4, 5, 6, 7], [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]),
        (224, 224, [2, 3, 4, 5], [(56, 56), (28, 28), (14, 14), (7, 7)]),
        (97, 131, [2, 3, 4, 5, 6, 7], [(25, 33), (13, 17), (7, 9), (4, 5), (2, 3), (1, 2)]),
        (1, 1, [5, 7], [(1, 1), (1, 1)]),
    ],
)
def test_level_sizes_by_hand(height: int, width: int, levels: list[int], expected: list[tuple[int, int]]) -> None:
    assert level_sizes(height, width, levels) == expected


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5000), st.integers(1, 5000))
def test_level_sizes_are_repeated_halves_rounded_up(height: int, width: int) -> None:
    rows, columns = height, width
    for level in range(1, 8):
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
        assert level_sizes(height, width, [level]) == [(rows, columns)]


def test_800_by_1344_holds_201600_anchors() -> None:
    anchors, counts = make_anchors(AnchorConfig(), [3, 4, 5, 6, 7], 800, 1344)
    # 9 · (100 · 168 + 50 · 84 + 25 · 42 + 13 · 21 + 7 · 11) = 9 · 22,400
    assert anchors.shape == (201_600, 4)
    assert counts == [151_200, 37_800, 9_450, 2_457, 693]
    assert anchors.dtype == torch.float32


def test_512_by_512_holds_147456_anchors_on_p2() -> None:
    _, counts = make_anchors(AnchorConfig(), [2, 3, 4, 5], 512, 512)
    assert counts == [147_456, 36_864, 9_216, 2_304]  # 9 · 128², then a quarter each


def test_cell_anchors_are_ratio_major_by_hand() -> None:
    # Ratio 0.25: width = size / 0.5, height = size · 0.5. The square. Ratio 4: width = size / 2, height = size · 2.
    assert cell_anchors(32, [0.25, 1.0, 4.0], [1.0, 2.0]).tolist() == [
        [-32, -8, 32, 8],
        [-64, -16, 64, 16],
        [-16, -16, 16, 16],
        [-32, -32, 32, 32],
        [-8, -32, 8, 32],
        [-16, -64, 16, 64],
    ]


def test_cell_anchors_have_their_area_and_ratio() -> None:
    config = AnchorConfig()
    cells = cell_anchors(32, config.ratios, config.scales)
    sides = cells[:, 2:] - cells[:, :2]
    # 32², 32² · 2^(2/3), 32² · 2^(4/3), for each ratio
    assert_close(sides.prod(dim=1), torch.tensor([1024.0, 1024 * 2 ** (2 / 3), 1024 * 2 ** (4 / 3)] * 3))
    assert_close(sides[:, 1] / sides[:, 0], torch.tensor([0.5] * 3 + [1.0] * 3 + [2.0] * 3))
    assert_close(cells[:, :2], -cells[:, 2:])


def test_sizes_grow_with_the_stride() -> None:
    anchors, counts = make_anchors(AnchorConfig(ratios=[1.0], scales=[1.0]), [3, 4, 5, 6, 7], 128, 128)
    starts = torch.tensor([0, *counts[:-1]]).cumsum(0)
    sides = (anchors[:, 2:] - anchors[:, :2])[starts]
    assert sides.tolist() == [[side, side] for side in (32, 64, 128, 256, 512)]  # 4 · stride (RetinaNet, section 4)


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_order_is_level_row_column_anchor(offset: float) -> None:
    config, levels, sizes = AnchorConfig(offset=offset), [3, 4], [(2, 3), (1, 2)]
    anchors, counts = Anchors(config, levels)(sizes)
    assert counts == [2 * 3 * 9, 1 * 2 * 9]
    index = 0
    for level, (height, width) in zip(levels, sizes, strict=True):
        stride = 2**level
        cells = cell_anchors(4 * stride, config.ratios, config.scales)
        for row in range(height):
            for column in range(width):
                x, y = (column + offset) * stride, (row + offset) * stride
                assert_close(anchors[index : index + 9], cells + torch.tensor([x, y, x, y]))
                index += 9
    assert index == len(anchors)


@pytest.mark.parametrize(
    ("ratios", "scales"), [([0.5, 1.0, 2.0], [1.0]), ([1.0], [1.0]), ([0.5, 2.0], [1.0, 1.3]), ([1.0, 3.0] * 3, [1, 2])]
)
def test_any_number_of_anchors_per_cell(ratios: list[float], scales: list[float]) -> None:
    module = Anchors(AnchorConfig(ratios=ratios, scales=scales), [3, 4])
    per_cell = len(ratios) * len(scales)
    assert module.per_cell == per_cell
    anchors, counts = module([(4, 5), (2, 3)])
    assert counts == [20 * per_cell, 6 * per_cell]
    assert len(anchors) == sum(counts)
    # The second anchor of a cell has the next scale, where there is one, else the next ratio.
    sides = anchors[:per_cell, 2:] - anchors[:per_cell, :2]
    expected = [(32 * s / math.sqrt(r), 32 * s * math.sqrt(r)) for r in ratios for s in scales]
    assert_close(sides, torch.tensor(expected))


def test_overrides_of_one_level() -> None:
    config = AnchorConfig(
        ratios=[1.0, 4.0],
        scales=[1.0, 2.0],
        levels={
            4: AnchorShapes(base_size=0.625),
            5: AnchorShapes(ratios=[1.0, 0.25], scales=[1.0, 3.0]),
            6: AnchorShapes(ratios=[1.0], scales=[1.0, 2.0, 3.0, 4.0]),
        },
    )
    anchors, counts = Anchors(config, [3, 4, 5, 6])([(1, 1)] * 4)
    assert counts == [4, 4, 4, 4]
    sides = (anchors[:, 2:] - anchors[:, :2]).tolist()
    assert sides[:4] == [[32, 32], [64, 64], [16, 64], [32, 128]]  # 4 · 8
    assert sides[4:8] == [[10, 10], [20, 20], [5, 20], [10, 40]]  # 0.625 · 16
    assert sides[8:12] == [[128, 128], [384, 384], [256, 64], [768, 192]]  # 4 · 32
    assert sides[12:] == [[256, 256], [512, 512], [768, 768], [1024, 1024]]  # 4 · 64


def torchvision_anchors(sizes: list[list[float]], ratios: list[float], levels: list[int], side: int) -> Tensor:
    generator = AnchorGenerator(tuple(tuple(own) for own in sizes), (tuple(ratios),) * len(sizes))
    features = [torch.zeros(1, 1, *size) for size in level_sizes(side, side, levels)]
    return generator(ImageList(torch.zeros(1, 3, side, side), [(side, side)]), features)[0]


def test_equal_to_torchvision_up_to_its_rounding() -> None:
    levels = [3, 4, 5, 6, 7]
    config = AnchorConfig()
    sizes = [[4 * 2**level * scale for scale in config.scales] for level in levels]
    anchors, _ = make_anchors(config, levels, 256, 256)
    assert_close(anchors, torchvision_anchors(sizes, config.ratios, levels, 256), rtol=0, atol=0.5)


def test_equal_to_torchvision_where_nothing_is_rounded() -> None:
    levels = [2, 3, 4]
    config = AnchorConfig(ratios=[0.25, 1.0, 4.0], scales=[1.0, 2.0])
    sizes = [[4 * 2**level * scale for scale in config.scales] for level in levels]
    anchors, _ = make_anchors(config, levels, 64, 64)
    assert torch.equal(anchors, torchvision_anchors(sizes, config.ratios, levels, 64))


def test_anchors_are_not_saved_but_follow_the_device() -> None:
    module = Anchors(AnchorConfig(), [3, 4])
    assert module.state_dict() == {}
    anchors, counts = module.to("meta")([(2, 2), (1, 1)])
    assert anchors.device.type == "meta"
    assert counts == [36, 9]


def test_as_many_sizes_as_levels() -> None:
    with pytest.raises(ValueError, match="zip"):
        Anchors(AnchorConfig(), [3, 4])([(2, 2)])
