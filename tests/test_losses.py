"""Losses: by hand, against torchvision, gradients, and properties of every loss in a dict."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)

from detector.config.schema import LossConfig
from detector.ops import losses
from detector.ops.coders import DeltaCoder
from detector.ops.losses import (
    BOX_LOSSES,
    CLASS_LOSSES,
    ClassLoss,
    focal_loss,
    giou_loss,
    l1_loss,
    quality_focal_loss,
    smooth_l1_loss,
    varifocal_loss,
)

CODER = DeltaCoder()


def class_inputs(num_classes: int = 5, spread: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [2, 40, K], labels with many -1, and a mask that excludes some."""
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(2, 40, num_classes, generator=generator)
    labels = torch.randint(-3, num_classes, (2, 40), generator=generator).clamp(min=-1)
    return logits, labels, torch.rand(2, 40, generator=generator) > 0.3


def box_inputs(num: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    """Deltas [2, N, 4], anchors [N, 4] and boxes [2, N, 4] of similar size."""
    generator = torch.Generator().manual_seed(0)
    corners = 50 * torch.rand(3, num, 2, generator=generator)
    boxes = torch.cat([corners, corners + 5 + 40 * torch.rand(3, num, 2, generator=generator)], dim=-1)
    return 0.5 * torch.randn(2, num, 4, generator=generator), boxes[0], boxes[1:]


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), of)[0]


# --- focal loss -------------------------------------------------------------------------------------------------------


def test_focal_loss_by_hand() -> None:
    # logit 0: p = 0.5. True class: 0.25 · 0.5² · log 2; false class: 0.75 · 0.5² · log 2.
    # logit log 3: p = 0.75. True class: 0.25 · 0.25² · log(4 / 3); false class: 0.75 · 0.75² · log 4.
    low, high = 0.0, math.log(3)
    true = {low: 0.0625 * math.log(2), high: 0.015625 * math.log(4 / 3)}
    false = {low: 0.1875 * math.log(2), high: 0.421875 * math.log(4)}
    table = [
        ([low, low], 0, true[low] + false[low]),
        ([high, low], 0, true[high] + false[low]),
        ([high, low], 1, false[high] + true[low]),
        ([high, high], -1, 2 * false[high]),
    ]
    for logits, label, expected in table:
        arguments = torch.tensor([[logits]]), torch.tensor([[label]])
        counted, excluded = torch.tensor([[True]]), torch.tensor([[False]])
        assert focal_loss(*arguments, None, counted, LossConfig()).item() == pytest.approx(expected)
        assert focal_loss(*arguments, None, excluded, LossConfig()).item() == 0


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.75, 1.5), (0.1, 5.0)])
def test_focal_loss_equals_torchvision(alpha: float, gamma: float) -> None:
    logits, labels, is_counted = class_inputs()
    logits.requires_grad_()
    is_class = torch.zeros_like(logits)
    for image, anchor in (labels >= 0).nonzero().tolist():
        is_class[image, anchor, labels[image, anchor]] = 1
    expected = sigmoid_focal_loss(logits[is_counted], is_class[is_counted], alpha, gamma, reduction="sum")
    loss = focal_loss(logits, labels, None, is_counted, LossConfig(alpha=alpha, gamma=gamma))
    assert_close(loss, expected)
    assert_close(gradient(loss, logits), gradient(expected, logits), rtol=1e-4, atol=1e-6)


def test_focal_loss_of_a_quality_interpolates_positive_and_negative_loss() -> None:
    logits, labels, is_counted = class_inputs()
    logits.requires_grad_()
    quality = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1))
    weights = torch.zeros_like(logits).scatter_(2, labels.clamp(min=0)[..., None], quality[..., None])
    weights = (weights * (labels >= 0)[..., None])[is_counted]  # of the positive loss; 1 - weights of the negative loss
    is_class, is_none = (
        sigmoid_focal_loss(logits[is_counted], torch.full_like(weights, target), reduction="none") for target in (1, 0)
    )
    expected = (weights * is_class + (1 - weights) * is_none).sum()
    loss = focal_loss(logits, labels, quality, is_counted, LossConfig())
    assert_close(loss, expected)
    assert_close(gradient(loss, logits), gradient(expected, logits), rtol=1e-4, atol=1e-6)


# --- quality focal and varifocal loss ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "score", "label", "quality", "expected"),
    [
        ("quality_focal", 0.5, 0, 0.8, 0.06238),  # 0.3² · log 2
        ("quality_focal", 0.2, -1, 0.8, 0.00893),  # 0.2² · -log 0.8
        ("quality_focal", 0.7, 0, 0.7, 0.0),
        ("varifocal", 0.5, 0, 0.8, 0.5545),  # 0.8 · log 2
        ("varifocal", 0.2, -1, 0.8, 0.00669),  # 0.75 · 0.2² · -log 0.8
        ("varifocal", 0.2, 0, 0.0, 0.00669),
    ],
)
def test_losses_of_a_quality_by_hand(name: str, score: float, label: int, quality: float, expected: float) -> None:
    arguments = torch.tensor([[[score]]]).logit(), torch.tensor([[label]]), torch.tensor([[quality]])
    loss = CLASS_LOSSES[name](*arguments, torch.tensor([[True]]), LossConfig(cls=name))
    assert loss.item() == pytest.approx(expected, abs=6e-6 if expected < 0.1 else 6e-5)


def dense_quality_focal(logits: Tensor, target: Tensor, config: LossConfig) -> Tensor:
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (logits.sigmoid() - target).abs().pow(config.gamma) * entropy


def dense_varifocal(logits: Tensor, target: Tensor, config: LossConfig) -> Tensor:
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return torch.where(target > 0, target, (1 - config.alpha) * logits.sigmoid().pow(config.gamma)) * entropy


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 1.0), (0.25, 1.5)])
@pytest.mark.parametrize(
    ("class_loss", "dense"), [(quality_focal_loss, dense_quality_focal), (varifocal_loss, dense_varifocal)]
)
def test_losses_of_a_quality_equal_dense_ones(class_loss: ClassLoss, dense: Any, alpha: float, gamma: float) -> None:
    logits, labels, is_counted = class_inputs()
    logits.requires_grad_()
    quality = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) * (torch.arange(40) % 5 > 0)
    target = torch.zeros_like(logits).scatter_(2, labels.clamp(min=0)[..., None], quality[..., None])
    target = target * (labels >= 0)[..., None]
    config = LossConfig(alpha=alpha, gamma=gamma)
    expected = dense(logits, target, config)[is_counted].sum()
    loss = class_loss(logits, labels, quality, is_counted, config)
    assert_close(loss, expected)
    assert_close(gradient(loss, logits), gradient(expected, logits), rtol=1e-4, atol=1e-6)


# --- box losses -------------------------------------------------------------------------------------------------------

ANCHOR = torch.tensor([[0.0, 0, 10, 10]])


def test_smooth_l1_by_hand() -> None:
    # The box is its anchor, so the true deltas are 0. Under beta: d² / (2 · beta); over it: |d| - beta / 2.
    deltas = torch.tensor([[0.05, -0.1, 1.0, -2.0]])
    # 0.0025 / 0.2 + 0.1 - 0.05 + 1 - 0.05 + 2 - 0.05
    assert smooth_l1_loss(deltas, ANCHOR, ANCHOR, CODER, LossConfig(beta=0.1)).tolist() == pytest.approx([2.9625])
    # beta 1: 0.00125 + 0.005 + 0.5 + 1.5
    assert smooth_l1_loss(deltas, ANCHOR, ANCHOR, CODER, LossConfig(beta=1.0)).tolist() == pytest.approx([2.00625])


def test_l1_by_hand() -> None:
    box = torch.tensor([[5.0, 0, 25, 10]])  # centre 15 instead of 5, twice as wide: true deltas 1, 0, log 2, 0
    deltas = torch.tensor([[0.5, 0.25, 0.0, -1.0]])
    expected = [0.5 + 0.25 + math.log(2) + 1]
    assert l1_loss(deltas, ANCHOR, box, CODER, LossConfig()).tolist() == pytest.approx(expected)


def test_giou_loss_by_hand() -> None:
    # Deltas 0 leave the anchor. Half of it to the right: 50 / 150 shared, the hull is the union.
    assert giou_loss(
        torch.zeros(1, 4), ANCHOR, torch.tensor([[5.0, 0, 15, 10]]), CODER, LossConfig()
    ).item() == pytest.approx(1 - 1 / 3)
    # dx 2 moves it by 20: apart from its box, hull 30 · 10, union 200: 1 - (0 - 100 / 300).
    assert giou_loss(torch.tensor([[2.0, 0, 0, 0]]), ANCHOR, ANCHOR, CODER, LossConfig()).item() == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("giou", generalized_box_iou_loss), ("diou", distance_box_iou_loss), ("ciou", complete_box_iou_loss)],
)
def test_iou_loss_equals_torchvision(name: str, theirs: Any) -> None:
    deltas, anchors, boxes = box_inputs()
    if name == "ciou":  # torchvision's α is not 0 up to an IoU of 0.5
        deltas = CODER.encode(boxes, anchors) + 0.1 * deltas
    deltas.requires_grad_()
    loss = BOX_LOSSES[name](deltas, anchors, boxes, CODER, LossConfig())
    coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
    decoded = torch.stack([coder.decode_single(image, anchors) for image in deltas])
    expected = theirs(decoded, boxes, reduction="none")
    assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert_close(gradient(loss, deltas), gradient(expected, deltas), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "expected"), [("giou", 0.4816), ("diou", 0.46877), ("ciou", 0.46882)])
def test_iou_losses_of_one_pair_by_hand(name: str, expected: float) -> None:
    """(0, 0, 10, 10) and (2, 0, 12, 8): 64 of 116 shared, hull 120, centres √2 apart, diagonal √244."""
    box = torch.tensor([[2.0, 0, 12, 8]])
    loss = BOX_LOSSES[name](torch.zeros(1, 4), ANCHOR, box, CODER, LossConfig())
    assert loss.item() == pytest.approx(expected, abs=6e-5 if name == "giou" else 6e-6)


def test_ciou_compares_ratios_only_of_boxes_that_overlap_by_half() -> None:
    box = torch.tensor([[0.0, 0, 10, 4.9]])
    both = [BOX_LOSSES[name](torch.zeros(1, 4), ANCHOR, box, CODER, LossConfig()).item() for name in ("ciou", "diou")]
    assert both[0] == both[1]


# --- every class loss -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_class_gradient_equals_differences(name: str, gamma: float) -> None:
    logits, labels, is_counted = class_inputs(num_classes=2, spread=1.0)
    logits, labels, is_counted = logits[:, :4].double().requires_grad_(), labels[:, :4], is_counted[:, :4]
    config = LossConfig(gamma=gamma)
    for quality in (None, torch.linspace(0, 1, 8, dtype=torch.float64).view(2, 4)):
        assert torch.autograd.gradcheck(
            lambda x, quality=quality: CLASS_LOSSES[name](x, labels, quality, is_counted, config), (logits,)
        )


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_class_loss_keeps_nothing_but_the_logits(name: str) -> None:
    logits, labels, is_counted = class_inputs()
    logits.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        CLASS_LOSSES[name](logits, labels, None, is_counted, LossConfig())
    large = [tensor.data_ptr() for tensor in kept if tensor.numel() >= logits.numel()]
    assert large == [logits.data_ptr()]


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_class_loss_does_not_depend_on_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels, is_counted = class_inputs()
    logits.requires_grad_()
    results = []
    for step in (1, 7, 1000):
        monkeypatch.setattr(losses, "rows_at_once", lambda rows, width, device, step=step: step)
        loss = CLASS_LOSSES[name](logits, labels, None, is_counted, LossConfig())
        results.append((loss, gradient(loss, logits)))
    for loss, slope in results[:2]:
        assert_close(loss, results[2][0])
        assert_close(slope, results[2][1])


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_class_loss_is_a_sum_over_counted_anchors(name: str) -> None:
    logits, labels, is_counted = class_inputs()
    config, class_loss = LossConfig(cls=name), CLASS_LOSSES[name]
    whole = class_loss(logits, labels, None, is_counted, config)
    assert whole.shape == ()
    alone = [
        class_loss(
            logits[image, anchor][None, None], labels[image, anchor][None, None], None, torch.tensor([[True]]), config
        )
        for image, anchor in is_counted.nonzero().tolist()
    ]
    assert len(alone) > 20
    assert_close(whole, torch.stack(alone).sum())


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_class_loss_raises_true_and_lowers_false_classes(name: str) -> None:
    logits, labels, is_counted = class_inputs()
    logits.requires_grad_()
    slope = gradient(CLASS_LOSSES[name](logits, labels, None, is_counted, LossConfig(cls=name)), logits)
    is_class = labels[..., None] == torch.arange(logits.shape[-1])
    assert (slope[is_class & is_counted[..., None]] < 0).all()
    assert (slope[~is_class & is_counted[..., None]] > 0).all()
    assert (slope[~is_counted] == 0).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_class_loss_is_finite_for_extreme_logits(name: str, gamma: float) -> None:
    logits = torch.tensor([[[100.0, -100.0], [-100.0, 100.0], [100.0, 100.0], [-100.0, -100.0]]], requires_grad=True)
    labels = torch.tensor([[0, 0, -1, -1]])
    loss = CLASS_LOSSES[name](logits, labels, None, torch.ones(1, 4).bool(), LossConfig(cls=name, gamma=gamma))
    assert loss.isfinite()
    assert loss >= 100  # the second and the third are as wrong as can be
    assert gradient(loss, logits).isfinite().all()


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_class_loss_of_bf16_logits_runs_in_float32(name: str) -> None:
    logits, labels, is_counted = class_inputs()
    config, logits = LossConfig(cls=name), logits.bfloat16()
    loss = CLASS_LOSSES[name](logits, labels, None, is_counted, config)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, CLASS_LOSSES[name](logits.float(), labels, None, is_counted, config))


# --- every box loss ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_box_loss_is_least_at_the_true_deltas(name: str) -> None:
    deltas, anchors, boxes = box_inputs()
    config, box_loss = LossConfig(box=name), BOX_LOSSES[name]
    loss = box_loss(deltas, anchors, boxes, CODER, config)
    assert loss.shape == (2, 30)
    assert (loss > 1e-3).all()
    assert_close(
        box_loss(CODER.encode(boxes, anchors), anchors, boxes, CODER, config), torch.zeros(2, 30), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_a_step_down_the_gradient_lowers_the_box_loss(name: str) -> None:
    deltas, anchors, boxes = box_inputs()
    config, box_loss = LossConfig(box=name), BOX_LOSSES[name]
    deltas.requires_grad_()
    loss = box_loss(deltas, anchors, boxes, CODER, config)
    lower = box_loss(deltas - 1e-3 * gradient(loss, deltas), anchors, boxes, CODER, config)
    assert (lower < loss).all()


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_box_loss_is_finite_for_empty_boxes_and_extreme_deltas(name: str) -> None:
    deltas = torch.tensor([[[0.0] * 4, [100.0] * 4, [-100.0] * 4, [0.0, 0, -100, -100], [0.0, 0, 100, 100]]])
    deltas.requires_grad_()
    anchors = torch.tensor([[0.0, 0, 512, 512]]).expand(5, 4)
    for box in ([256.0, 256, 256, 256], [0.0, 0, 0, 0], [0.0, 0, 512, 512]):  # the anchor's centre, padding, the anchor
        loss = BOX_LOSSES[name](deltas, anchors, torch.tensor(box).expand(1, 5, 4), CODER, LossConfig(box=name))
        assert loss.isfinite().all()
        assert gradient(loss, deltas).isfinite().all()


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_box_loss_of_bf16_deltas_runs_in_float32(name: str) -> None:
    deltas, anchors, boxes = box_inputs()
    config, deltas = LossConfig(box=name), deltas.bfloat16()
    loss = BOX_LOSSES[name](deltas, anchors, boxes, CODER, config)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, BOX_LOSSES[name](deltas.float(), anchors, boxes, CODER, config))
