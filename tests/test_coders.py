"""Box coders: by hand, against torchvision, and as properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_boxes import box, random_boxes
from torch.testing import assert_close
from torchvision.models.detection._utils import BoxCoder

from detector.ops.coders import MAX_LOG_SCALE, DeltaCoder, DistributionCoder

CODER = DeltaCoder()


def test_encode_by_hand() -> None:
    anchor = torch.tensor([[0.0, 0, 10, 20]])  # centre (5, 10)
    box = torch.tensor([[5.0, 10, 15, 50]])  # centre (10, 30), sides 10 · 40
    # (10 - 5) / 10, (30 - 10) / 20, log(10 / 10), log(40 / 20)
    assert_close(CODER.encode(box, anchor), torch.tensor([[0.5, 1.0, 0.0, math.log(2)]]))
    assert_close(CODER.decode(torch.tensor([[0.5, 1.0, 0.0, math.log(2)]]), anchor), box)


def test_coding_equals_torchvision() -> None:
    coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
    boxes, anchors = random_boxes(50, seed=1), random_boxes(50, seed=2)
    assert_close(CODER.encode(boxes, anchors), coder.encode_single(boxes, anchors), rtol=1e-4, atol=1e-5)
    deltas = 3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(3))
    assert (deltas > MAX_LOG_SCALE).any()  # the limit on growth is compared too
    assert_close(CODER.decode(deltas, anchors), coder.decode_single(deltas, anchors), rtol=1e-4, atol=1e-3)


@settings(deadline=None, max_examples=50)
@given(box(), box())
def test_decode_undoes_encode(target: list[float], anchor: list[float]) -> None:
    boxes, anchors = torch.tensor([target]), torch.tensor([anchor])
    deltas = CODER.encode(boxes, anchors)
    if deltas[..., 2:].max() < MAX_LOG_SCALE:
        assert_close(CODER.decode(deltas, anchors), boxes, rtol=1e-4, atol=1e-2)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-200, 200).map(lambda n: n / 100), min_size=4, max_size=4), box())
def test_encode_undoes_decode(delta: list[float], anchor: list[float]) -> None:
    deltas, anchors = torch.tensor([delta]), torch.tensor([anchor])
    assert_close(CODER.encode(CODER.decode(deltas, anchors), anchors), deltas, rtol=1e-3, atol=5e-3)


def test_decode_limits_growth() -> None:
    anchors = torch.tensor([[0.0, 0, 16, 16]])
    boxes = CODER.decode(torch.tensor([[0.0, 0, 100, -100]]), anchors)
    # 16 · 1000 / 16 wide around 8, and shrunk to nothing
    assert_close(boxes, torch.tensor([[-492.0, 8, 508, 8]]), rtol=1e-4, atol=1e-4)


def test_decode_runs_in_float32() -> None:
    anchors = random_boxes(20, seed=1, extent=1000)
    deltas = torch.randn(20, 4, generator=torch.Generator().manual_seed(2)).bfloat16()
    boxes = CODER.decode(deltas, anchors)
    assert boxes.dtype == torch.float32
    assert torch.equal(boxes, CODER.decode(deltas.float(), anchors))


def test_encode_of_an_empty_box_is_finite() -> None:
    deltas = CODER.encode(torch.tensor([[5.0, 5, 5, 5], [0, 0, 0, 0]]), torch.tensor([[0.0, 0, 10, 10]]))
    assert deltas.isfinite().all()
    assert (deltas[:, 2:] < -5).all()


def test_stds_divide_the_deltas() -> None:
    boxes, anchors, coder = random_boxes(50, seed=1), random_boxes(50, seed=2), DeltaCoder((0.1, 0.2))
    reference = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    channels = coder.encode(boxes, anchors)
    assert_close(channels, reference.encode_single(boxes, anchors), rtol=1e-4, atol=1e-5)
    channels = channels + torch.randn(50, 4, generator=torch.Generator().manual_seed(3))
    assert_close(coder.decode(channels, anchors), reference.decode_single(channels, anchors), rtol=1e-4, atol=1e-3)


# --- distributions ----------------------------------------------------------------------------------------------------

SQUARE = torch.tensor([[0.0, 0, 64, 64]])  # centre (32, 32); an eighth is 8


def test_distribution_by_hand() -> None:
    """Logits (0, 0, 2, 1, 0) on each side: the expectation is 2.1311; the loss for a true distance of 2.3 is 0.8732."""
    coder = DistributionCoder(reg_max=4, unit=1 / 8)
    channels = torch.tensor([[0.0, 0, 2, 1, 0] * 4])
    side = 8 * 2.1311
    expected = torch.tensor([[32 - side, 32 - side, 32 + side, 32 + side]])
    assert_close(coder.decode(channels, SQUARE), expected, rtol=0, atol=1e-3)
    side = 8 * 2.3
    box = torch.tensor([[32 - side, 32 - side, 32 + side, 32 + side]])
    assert_close(coder.target(box, SQUARE), torch.tensor([[[0, 0, 0.7, 0.3, 0]] * 4]), rtol=0, atol=1e-5)
    assert coder.loss(channels, SQUARE, box).item() == pytest.approx(0.8732, abs=6e-5)


def test_distribution_names_its_sides_in_order() -> None:
    coder = DistributionCoder(reg_max=16, unit=1 / 8)
    box = torch.tensor([[32 - 8.0, 32 - 20.0, 32 + 33.0, 32 + 100.0]])
    distances = (coder.target(box, SQUARE) * torch.arange(17)).sum(dim=-1)
    assert_close(distances, torch.tensor([[1.0, 2.5, 4.125, 12.5]]))
    assert_close(coder.decode(coder.encode(box, SQUARE), SQUARE), box, rtol=0, atol=1e-3)
    # Of an anchor that is no square, each side has its own unit.
    wide = torch.tensor([[0.0, 0, 128, 64]])  # centre (64, 32)
    box = torch.tensor([[64 - 16.0, 32 - 16.0, 64 + 16.0, 32 + 16.0]])
    assert_close((coder.target(box, wide) * torch.arange(17)).sum(dim=-1), torch.tensor([[1.0, 2.0, 1.0, 2.0]]))


def test_distances_are_limited() -> None:
    """To what the distribution can say: nothing beyond the anchor's centre, and nothing from ``reg_max`` on."""
    coder = DistributionCoder(reg_max=16, unit=1 / 8)
    distances = (coder.target(torch.tensor([[40.0, 0, 2000, 64]]), SQUARE) * torch.arange(17)).sum(dim=-1)
    assert_close(distances, torch.tensor([[0.0, 4.0, 15.9, 4.0]]))


def test_distribution_loss_is_least_at_the_target_and_has_the_right_gradient() -> None:
    coder, generator = DistributionCoder(reg_max=5, unit=1 / 8), torch.Generator().manual_seed(0)
    boxes = torch.tensor([[10.0, 20, 50, 60], [32, 32, 32, 32], [-50, 0, 70, 64]])
    best = coder.loss(coder.encode(boxes, SQUARE), SQUARE, boxes)
    channels = torch.randn(3, coder.num_channels, generator=generator, dtype=torch.float64, requires_grad=True)
    assert (coder.loss(channels, SQUARE, boxes) > best).all()
    # Cross entropy: softmax less target, over the four sides.
    slope = torch.autograd.grad(coder.loss(channels, SQUARE, boxes).sum(), channels)[0].unflatten(-1, (4, 6))
    expected = (channels.unflatten(-1, (4, 6)).softmax(dim=-1) - coder.target(boxes, SQUARE)) / 4
    assert_close(slope, expected, rtol=1e-4, atol=1e-6)


def test_distribution_decodes_in_float32_and_extreme_logits_stay_finite() -> None:
    coder = DistributionCoder(reg_max=16, unit=1 / 8)
    channels = 100 * torch.randn(7, coder.num_channels, generator=torch.Generator().manual_seed(0)).bfloat16()
    boxes = coder.decode(channels.requires_grad_(), SQUARE)
    assert boxes.dtype == torch.float32
    assert torch.equal(boxes, coder.decode(channels.float(), SQUARE))
    loss = coder.loss(channels, SQUARE, torch.zeros(7, 4)).sum() + boxes.sum()
    assert loss.isfinite()
    assert torch.autograd.grad(loss, channels)[0].isfinite().all()
