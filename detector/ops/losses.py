"""Classification and box losses over all anchors, as sums.

They return sums, not means: the normaliser (positives in the global batch) is known only after all ranks and
accumulated parts, so the engine divides once, at the end. Everything is float32 and of fixed shape: anchors that take
no part get weight 0 and are not removed by indexing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from detector.config.schema import LossConfig
from detector.ops.boxes import giou
from detector.ops.chunks import rows_at_once
from detector.ops.coders import BoxCoder


class _FocalLoss(torch.autograd.Function):
    """The sum in :func:`focal_loss`; of all [B, N, K] tensors it keeps only the logits.

    Nearly every (anchor, class) pair is background. So all pairs are summed as background, then the true class is
    corrected: one value per anchor. The backward pass recomputes from the logits, chunk by chunk: a second sigmoid is
    cheaper than the dozen [B, N, K] tensors that autograd would keep.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, target: Tensor, is_counted: Tensor, alpha: float, gamma: float
    ) -> Tensor:
        ctx.save_for_backward(logits, labels, target, is_counted)
        ctx.alpha, ctx.gamma = alpha, gamma
        sums = [
            (_negative_loss(_wide(rows), gamma).sum(dim=1) * counts).sum()
            for rows, counts in _chunks(logits, is_counted)
        ]
        background = (1 - alpha) * torch.stack(sums).sum()
        own = _wide(logits.gather(2, labels.clamp(min=0)[..., None])[..., 0])  # [B, N], of the true class
        correction = alpha * _negative_loss(-own, gamma) - (1 - alpha) * _negative_loss(own, gamma)
        return background + (correction * target * is_counted).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, target, is_counted = ctx.saved_tensors
        weight = is_counted * ((1 - ctx.alpha) * grad_loss)  # [B, N]
        gradient = torch.empty_like(logits)
        for (rows, scale), (out, _) in zip(_chunks(logits, weight), _chunks(gradient, weight), strict=True):
            out.copy_(_negative_slope(_wide(rows), ctx.gamma).mul_(scale[:, None]))
        index = labels.clamp(min=0)[..., None]  # [B, N, 1]
        own = _wide(logits.gather(2, index))
        slope = _negative_slope(-own, ctx.gamma) * is_counted[..., None] * (-ctx.alpha * grad_loss)
        slope = torch.lerp(_wide(gradient.gather(2, index)), slope, target[..., None].to(slope.dtype)).to(logits.dtype)
        return gradient.scatter_(2, index, slope), None, None, None, None, None


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
    target = (labels >= 0).float() if quality is None else quality.where(labels >= 0, 0.0)
    return _FocalLoss.apply(logits.contiguous(), labels, target, is_counted, config.alpha, config.gamma)


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


ClassLoss = Callable[[Tensor, Tensor, Tensor | None, Tensor, LossConfig], Tensor]
BoxLoss = Callable[[Tensor, Tensor, Tensor, BoxCoder, LossConfig], Tensor]

CLASS_LOSSES: dict[str, ClassLoss] = {
    "focal": focal_loss,
}

BOX_LOSSES: dict[str, BoxLoss] = {
    "smooth_l1": smooth_l1_loss,
    "l1": l1_loss,
    "giou": giou_loss,
}
