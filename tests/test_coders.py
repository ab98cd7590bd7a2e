"""Box coders: by hand, against torchvision, and as properties."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_boxes import box, random_boxes
from torch.testing import assert_close
from torchvision.models.detection._utils import BoxCoder

from detector.ops.coders import MAX_LOG_SCALE, DeltaCoder

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
