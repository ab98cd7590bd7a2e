"""Classification and box losses over all anchors, as sums.

They return sums, not means: the normaliser (positives in the global batch) is known only after every rank and every
accumulated part has spoken, so the engine divides once, at the end. Everything is float32 and of fixed shape: an anchor
that takes no part has weight 0, it is not indexed away.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.boxes import decode, encode, giou
from detector.config import LossConfig


def focal_loss(logits: Tensor, labels: Tensor, is_counted: Tensor, config: LossConfig) -> Tensor:
    """Sigmoid focal loss, summed (RetinaNet, eq. 5).

    ``logits`` [B, N, K]; ``labels`` [B, N] 0..K-1, or -1 where no class is right; ``is_counted`` [B, N] leaves out
    anchors that are neither positive nor background.
    """
    logits = logits.float()
    # Compared with arange(K), not one_hot: that would be int64 and one class wider.
    is_class = labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)  # [B, N, K]
    # With the logit turned so that being right is positive, p_t = sigmoid(turned), and both classes share one formula.
    turned = torch.where(is_class, logits, -logits)
    alpha = torch.where(is_class, config.alpha, 1 - config.alpha)
    # (1 - p_t)^gamma by its logarithm: a power of 0 has an infinite gradient for gamma < 1.
    modulation = torch.exp(config.gamma * F.logsigmoid(-turned))
    loss = -alpha * modulation * F.logsigmoid(turned)
    return (loss * is_counted[..., None]).sum()


def smooth_l1_loss(deltas: Tensor, anchors: Tensor, boxes: Tensor, config: LossConfig) -> Tensor:
    """Smooth L1 between deltas and encoded boxes, summed over the four numbers, [B, N] (Fast R-CNN, eq. 3)."""
    return F.smooth_l1_loss(deltas.float(), encode(boxes, anchors), beta=config.beta, reduction="none").sum(dim=-1)


def l1_loss(deltas: Tensor, anchors: Tensor, boxes: Tensor, config: LossConfig) -> Tensor:
    """Absolute difference between deltas and encoded boxes, summed over the four numbers, [B, N]."""
    return F.l1_loss(deltas.float(), encode(boxes, anchors), reduction="none").sum(dim=-1)


def giou_loss(deltas: Tensor, anchors: Tensor, boxes: Tensor, config: LossConfig) -> Tensor:
    """1 - GIoU between decoded and true boxes, [B, N] (Rezatofighi et al. 2019)."""
    return 1 - giou(decode(deltas, anchors), boxes)


ClassLoss = Callable[[Tensor, Tensor, Tensor, LossConfig], Tensor]
BoxLoss = Callable[[Tensor, Tensor, Tensor, LossConfig], Tensor]

CLASS_LOSSES: dict[str, ClassLoss] = {
    "focal": focal_loss,
}

BOX_LOSSES: dict[str, BoxLoss] = {
    "smooth_l1": smooth_l1_loss,
    "l1": l1_loss,
    "giou": giou_loss,
}
