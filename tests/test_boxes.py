"""Box geometry: by hand, against torchvision, and as properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torchvision.ops import box_iou, clip_boxes_to_image, generalized_box_iou

from detector.ops import boxes as box_ops


def random_boxes(*shape: int, seed: int = 0, extent: float = 100.0) -> Tensor:
    """Boxes [*shape, 4] with sides of 1 to ``extent`` pixels."""
    generator = torch.Generator().manual_seed(seed)
    top_left = extent * torch.rand(*shape, 2, generator=generator)
    sides = 1 + (extent - 1) * torch.rand(*shape, 2, generator=generator)
    return torch.cat([top_left, top_left + sides], dim=-1)


@st.composite
def box(draw: st.DrawFn) -> list[float]:
    left, top = (draw(st.integers(-200, 800)) / 4 for _ in range(2))
    width, height = (draw(st.integers(4, 2000)) / 4 for _ in range(2))
    return [left, top, left + width, top + height]


PAIRS = [
    # box, box, intersection, union, hull
    ([0, 0, 10, 10], [0, 0, 10, 10], 100, 100, 100),  # the same
    ([0, 0, 10, 10], [5, 5, 15, 15], 25, 175, 225),  # 5 · 5; 100 + 100 - 25; 15 · 15
    ([0, 0, 10, 10], [2, 3, 6, 8], 20, 100, 100),  # inside: 4 · 5
    ([0, 0, 10, 10], [10, 0, 20, 10], 0, 200, 200),  # touching
    ([0, 0, 2, 2], [4, 0, 6, 2], 0, 8, 12),  # apart: 4 + 4; 6 · 2
    ([0, 0, 2, 2], [-3, -3, -1, -2], 0, 6, 25),  # apart on both axes: 4 + 2; 5 · 5
    ([0, 0, 4, 1], [1, 0, 2, 8], 1, 11, 32),  # a cross: 4 + 8 - 1; 4 · 8
]


@pytest.mark.parametrize(("first", "second", "shared", "union", "hull"), PAIRS)
def test_overlaps_by_hand(first: list[float], second: list[float], shared: float, union: float, hull: float) -> None:
    one, two = torch.tensor([first]).float(), torch.tensor([second]).float()
    for pair in ((one, two), (two, one)):
        assert box_ops.intersection(*pair).item() == shared
        assert box_ops.pairwise_iou(*pair).item() == pytest.approx(shared / union)
        assert box_ops.giou(*pair).item() == pytest.approx(shared / union - (hull - union) / hull, abs=1e-6)


def test_area_of_an_inverted_or_empty_box_is_0() -> None:
    boxes = torch.tensor([[1.0, 2, 4, 7], [5, 5, 5, 9], [4, 0, 1, 3], [4, 4, 1, 1]])
    assert box_ops.box_area(boxes).tolist() == [15, 0, 0, 0]  # 3 · 5


def test_empty_boxes_overlap_nothing() -> None:
    empty = torch.tensor([[3.0, 3, 3, 3]])
    assert box_ops.pairwise_iou(empty, empty).item() == 0
    assert box_ops.pairwise_iou(empty, torch.tensor([[0.0, 0, 10, 10]])).item() == 0
    empty.requires_grad_()
    giou = box_ops.giou(empty, empty.detach())
    assert giou.item() == 0
    giou.sum().backward()
    assert empty.grad is not None
    assert empty.grad.isfinite().all()


def test_overlaps_equal_torchvision() -> None:
    first, second = random_boxes(30, seed=1), random_boxes(20, seed=2)
    assert_close(box_ops.pairwise_iou(first, second), box_iou(first, second))
    assert_close(box_ops.giou(first[:20], second), generalized_box_iou(first[:20], second).diagonal())


def test_iou_broadcasts_over_leading_dimensions() -> None:
    first, second = random_boxes(3, 5, seed=1), random_boxes(3, 7, seed=2)
    iou = box_ops.pairwise_iou(first, second)
    assert iou.shape == (3, 5, 7)
    assert_close(iou, torch.stack([box_iou(*pair) for pair in zip(first, second, strict=True)]))


@settings(deadline=None, max_examples=50)
@given(box(), box())
def test_giou_is_at_most_iou_and_within_bounds(first: list[float], second: list[float]) -> None:
    one, two = torch.tensor([first]), torch.tensor([second])
    giou, iou = box_ops.giou(one, two).item(), box_ops.pairwise_iou(one, two).item()
    assert -1 <= giou <= iou + 1e-6
    assert giou == box_ops.giou(two, one).item()
    assert (giou > 1 - 1e-6) == (first == second)


def test_clip_by_hand() -> None:
    boxes = torch.tensor([[[-5.0, -5, 30, 30], [1, 2, 3, 4]], [[-5.0, -5, 30, 30], [50, 50, 60, 60]]])
    sizes = torch.tensor([[10, 20], [25, 15]])  # height, width
    expected = [[[0, 0, 20, 10], [1, 2, 3, 4]], [[0, 0, 15, 25], [15, 25, 15, 25]]]
    assert box_ops.clip(boxes, sizes).tolist() == expected


def test_clip_equals_torchvision() -> None:
    boxes = random_boxes(2, 20) - 40
    clipped = box_ops.clip(boxes, torch.tensor([[60, 90], [33, 20]]))
    assert torch.equal(clipped[0], clip_boxes_to_image(boxes[0], (60, 90)))
    assert torch.equal(clipped[1], clip_boxes_to_image(boxes[1], (33, 20)))


def test_rescale_by_hand() -> None:
    boxes = torch.tensor([[[1.0, 2, 3, 4]], [[10.0, 10, 20, 30]]])
    sizes, new_sizes = torch.tensor([[100, 200], [50, 40]]), torch.tensor([[300, 400], [25, 40]])
    # x · 400 / 200, y · 300 / 100; x · 40 / 40, y · 25 / 50
    assert box_ops.rescale(boxes, sizes, new_sizes).tolist() == [[[2, 6, 6, 12]], [[10, 5, 20, 15]]]


@settings(deadline=None, max_examples=25)
@given(box(), st.tuples(*[st.integers(1, 2000)] * 4))
def test_rescaling_there_and_back_changes_nothing(target: list[float], sides: tuple[int, int, int, int]) -> None:
    boxes = torch.tensor([[target]])
    sizes, new_sizes = torch.tensor([sides[:2]]), torch.tensor([sides[2:]])
    there = box_ops.rescale(boxes, sizes, new_sizes)
    assert_close(box_ops.rescale(there, new_sizes, sizes), boxes, rtol=1e-4, atol=1e-3)
