"""Classification and box losses over all anchors, as sums.

They return sums, not means: the normaliser (positives in the global batch) is known only after all ranks and
accumulated parts, so the engine divides once, at the end. Everything is float32 and of fixed shape: anchors that take
no part get weight 0 and are not removed by indexing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from detector.config.schema import LossConfig
from detector.ops.boxes import ciou, diou, giou
from detector.ops.chunks import rows_at_once
from detector.ops.coders import BoxCoder


class TrueClass(Protocol):
    """The loss of the true class's logit and its derivative, [B, N] each, of logits and targets [B, N]."""

    def __call__(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]: ...


class _ClassLoss(torch.autograd.Function):
    """The sum of a class loss over all (anchor, class) pairs; of all [B, N, K] tensors it keeps only the logits.

    Nearly every pair is background, whose loss is ``weight`` · p^γ · -log(1 - p) whichever class loss it is. So all
    pairs are summed as background, then the true class is corrected: one value per anchor. The backward pass recomputes
    from the logits, chunk by chunk: a second sigmoid is cheaper than the dozen [B, N, K] tensors that autograd would
    keep.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        target: Tensor,
        is_counted: Tensor,
        weight: float,
        gamma: float,
        true_class: TrueClass,
    ) -> Tensor:
        ctx.save_for_backward(logits, labels, target, is_counted)
        ctx.weight, ctx.gamma, ctx.true_class = weight, gamma, true_class
        sums = [
            (_negative_loss(_wide(rows), gamma).sum(dim=1) * counts).sum()
            for rows, counts in _chunks(logits, is_counted)
        ]
        background = weight * torch.stack(sums).sum()
        own = _wide(logits.gather(2, labels.clamp(min=0)[..., None])[..., 0])  # [B, N], of the true class
        correction = true_class(own, target)[0] - weight * _negative_loss(own, gamma)
        return background + (correction * (labels >= 0) * is_counted).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, target, is_counted = ctx.saved_tensors
        weight = is_counted * (ctx.weight * grad_loss)  # [B, N]
        gradient = torch.empty_like(logits)
        for (rows, scale), (out, _) in zip(_chunks(logits, weight), _chunks(gradient, weight), strict=True):
            out.copy_(_negative_slope(_wide(rows), ctx.gamma).mul_(scale[:, None]))
        index = labels.clamp(min=0)[..., None]  # [B, N, 1]
        own = _wide(logits.gather(2, index)[..., 0])
        slope = (ctx.true_class(own, target)[1] * is_counted * grad_loss)[..., None].to(logits.dtype)
        slope = torch.where(labels[..., None] >= 0, slope, gradient.gather(2, index))
        return gradient.scatter_(2, index, slope), None, None, None, None, None, None


def _class_loss(
    logits: Tensor,
    labels: Tensor,
    quality: Tensor | None,
    is_counted: Tensor,
    weight: float,
    gamma: float,
    true_class: TrueClass,
) -> Tensor:
    target = torch.ones(labels.shape, device=labels.device) if quality is None else quality.float()
    return _ClassLoss.apply(logits.contiguous(), labels, target, is_counted, weight, gamma, true_class)


def _chunks(values: Tensor, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunks of ``values`` [B, N, K] as views [rows, K], each with its ``weights`` [rows] of [B, N]."""
    rows, num_classes = weights.numel(), values.shape[-1]
    step = rows_at_once(rows, num_classes, values.device)
    return zip(values.view(rows, num_classes).split(step), weights.reshape(rows).split(step), strict=True)


def _wide(logits: Tensor) -> Tensor:
    """At least float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _negative_loss(logits: Tensor, gamma: float) -> Tensor:
    """The focal loss of negatives without its factor 1 - α: p^γ · -log(1 - p), p = sigmoid(logits)."""
    return logits.sigmoid().pow_(gamma).mul_(F.softplus(logits))


def _negative_slope(logits: Tensor, gamma: float) -> Tensor:
    """The derivative of :func:`_negative_loss`: p^γ · (p - γ · (1 - p) · log(1 - p))."""
    score = logits.sigmoid()
    slope = torch.addcmul(score, 1 - score, F.softplus(logits), value=gamma)
    return slope.mul_(score.pow_(gamma))


def focal_loss(
    logits: Tensor, labels: Tensor, quality: Tensor | None, is_counted: Tensor, config: LossConfig
) -> Tensor:
    """Sigmoid focal loss, summed (RetinaNet, eq. 5).

    ``logits`` [B, N, K]; ``labels`` [B, N] 0..K-1, or -1 for background; ``quality`` [B, N] is the target of the true
    class, None for 1 everywhere. A target q weighs the positive loss by q and the negative loss by 1 - q.
    ``is_counted`` [B, N] is false for anchors that are neither positive nor background.
    """
    alpha, gamma = config.alpha, config.gamma

    def true_class(x: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        loss = q * (alpha * _negative_loss(-x, gamma)) + (1 - q) * ((1 - alpha) * _negative_loss(x, gamma))
        slope = (1 - q) * ((1 - alpha) * _negative_slope(x, gamma)) - q * (alpha * _negative_slope(-x, gamma))
        return loss, slope

    return _class_loss(logits, labels, quality, is_counted, 1 - alpha, gamma, true_class)


def quality_focal_loss(
    logits: Tensor, labels: Tensor, quality: Tensor | None, is_counted: Tensor, config: LossConfig
) -> Tensor:
    """Quality focal loss, summed: |q - p|^γ · BCE(p, q), with q = 0 for all but the true class (GFL, eq. 2).

    Arguments as :func:`focal_loss`; the paper's β is ``gamma``. p = 0.5 and q = 0.8 → 0.06238; q = p → 0.
    """
    gamma = config.gamma

    def true_class(x: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        p, entropy = x.sigmoid(), F.softplus(x) - q * x
        distance = (p - q).abs()
        # The derivative of |q - p|^γ is infinite at 0 for γ < 1, which only a target that is met exactly would show.
        steepness = gamma * distance.clamp(min=1e-6) ** (gamma - 1) * p * (1 - p) * (p - q).sign()
        return distance**gamma * entropy, distance**gamma * (p - q) + steepness * entropy

    return _class_loss(logits, labels, quality, is_counted, 1.0, gamma, true_class)


def varifocal_loss(
    logits: Tensor, labels: Tensor, quality: Tensor | None, is_counted: Tensor, config: LossConfig
) -> Tensor:
    """Varifocal loss, summed: q · BCE(p, q) for the true class, else (1 - α) · p^γ · -log(1 - p) (VFNet, eq. 2).

    Arguments as :func:`focal_loss`. The paper's α, 0.75, is 1 - ``alpha`` here, the weight of negatives as in the focal
    loss. p = 0.5 and q = 0.8 → 0.5545; a negative of p = 0.2 → 0.00669. A true class of q = 0 is a negative.
    """
    weight, gamma = 1 - config.alpha, config.gamma

    def true_class(x: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        loss, slope = q * (F.softplus(x) - q * x), q * (x.sigmoid() - q)
        negative_loss, negative_slope = weight * _negative_loss(x, gamma), weight * _negative_slope(x, gamma)
        return torch.where(q > 0, loss, negative_loss), torch.where(q > 0, slope, negative_slope)

    return _class_loss(logits, labels, quality, is_counted, weight, gamma, true_class)


def smooth_l1_loss(channels: Tensor, anchors: Tensor, boxes: Tensor, coder: BoxCoder, config: LossConfig) -> Tensor:
    """Smooth L1 between channels and encoded boxes, summed over the channels, [B, N] (Fast R-CNN, eq. 3)."""
    target = coder.encode(boxes, anchors)
    return F.smooth_l1_loss(channels.float(), target, beta=config.beta, reduction="none").sum(dim=-1)


def l1_loss(channels: Tensor, anchors: Tensor, boxes: Tensor, coder: BoxCoder, config: LossConfig) -> Tensor:
    """Absolute difference between channels and encoded boxes, summed over the channels, [B, N]."""
    return F.l1_loss(channels.float(), coder.encode(boxes, anchors), reduction="none").sum(dim=-1)


def giou_loss(channels: Tensor, anchors: Tensor, boxes: Tensor, coder: BoxCoder, config: LossConfig) -> Tensor:
    """1 - GIoU between decoded and true boxes, [B, N] (Rezatofighi et al. 2019)."""
    return 1 - giou(coder.decode(channels, anchors), boxes)


def diou_loss(channels: Tensor, anchors: Tensor, boxes: Tensor, coder: BoxCoder, config: LossConfig) -> Tensor:
    """1 - DIoU between decoded and true boxes, [B, N] (Zheng et al. 2020)."""
    return 1 - diou(coder.decode(channels, anchors), boxes)


def ciou_loss(channels: Tensor, anchors: Tensor, boxes: Tensor, coder: BoxCoder, config: LossConfig) -> Tensor:
    """1 - CIoU between decoded and true boxes, [B, N] (Zheng et al. 2020)."""
    return 1 - ciou(coder.decode(channels, anchors), boxes)


ClassLoss = Callable[[Tensor, Tensor, Tensor | None, Tensor, LossConfig], Tensor]
BoxLoss = Callable[[Tensor, Tensor, Tensor, BoxCoder, LossConfig], Tensor]

CLASS_LOSSES: dict[str, ClassLoss] = {
    "focal": focal_loss,
    "quality_focal": quality_focal_loss,
    "varifocal": varifocal_loss,
}
# Those that learn the IoU of the predicted box where the assigner gives no quality.
LEARN_IOU = {"quality_focal", "varifocal"}

BOX_LOSSES: dict[str, BoxLoss] = {
    "smooth_l1": smooth_l1_loss,
    "l1": l1_loss,
    "giou": giou_loss,
    "diou": diou_loss,
    "ciou": ciou_loss,
}
