"""Losses of the classes of pixels, as sums that batches, parts and ranks can add.

Dimension key: B images, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.structures import IGNORED_PIXEL, MaskTargets

SMOOTH = 1.0  # pixels added to both sides of the Dice coefficient, so that a class of few pixels does not dominate


def pixel_losses(
    logits: Tensor, targets: MaskTargets, smoothing: float, has_dice: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of cross entropy and (or 0) of the Dice loss over all pixels that count, and the sum of their weights.

    ``logits`` [B, K, h, w] are interpolated to the size of the masks. Divided by the last sum, the first is
    ``F.cross_entropy`` with the targets' class weights and label smoothing.
    """
    masks = targets.masks.long()
    logits = F.interpolate(logits.float(), size=masks.shape[-2:], mode="bilinear", align_corners=False)
    is_counted = masks != IGNORED_PIXEL  # [B, H, W]
    labels = masks.where(is_counted, 0)
    # By gather, as CUDA has no deterministic nll_loss of images.
    weights = targets.weights.gather(1, labels.flatten(1)).view_as(labels) * is_counted  # [B, H, W]
    log_probabilities = logits.log_softmax(dim=1)
    entropy = -(log_probabilities.gather(1, labels[:, None])[:, 0] * weights)
    if smoothing:
        by_class = (log_probabilities * targets.weights[:, :, None, None]).sum(dim=1)
        entropy = (1 - smoothing) * entropy - smoothing / logits.shape[1] * by_class * is_counted
    per_image = weights.sum(dim=(1, 2))  # [B]
    if not has_dice:
        return entropy.sum(), entropy.new_zeros(()), per_image.sum()
    return entropy.sum(), (dice_loss(log_probabilities.exp(), labels, is_counted) * per_image).sum(), per_image.sum()


def dice_loss(probabilities: Tensor, labels: Tensor, is_counted: Tensor) -> Tensor:
    """1 - Dice coefficient (Milletari et al. 2016, section 3), the mean over the classes of each image, [B].

    By image, where others take the whole batch: a quotient of sums over a batch cannot be added over ranks and parts.
    Shapes: [B, K, H, W], [B, H, W], [B, H, W].
    """
    num_classes = probabilities.shape[1]
    flat = torch.where(is_counted, labels, num_classes).flatten(1)  # what is ignored is one class more
    true = flat.new_zeros(len(flat), num_classes + 1, dtype=torch.float32)
    true = true.scatter_add(1, flat, torch.ones_like(flat, dtype=torch.float32))[:, :num_classes]  # [B, K] pixels
    own = probabilities.gather(1, labels[:, None])[:, 0] * is_counted  # of the true class, [B, H, W]
    both = own.new_zeros(len(flat), num_classes).scatter_add(1, labels.flatten(1), own.flatten(1))  # [B, K]
    predicted = (probabilities * is_counted[:, None]).sum(dim=(2, 3))  # [B, K]
    dice = (2 * both + SMOOTH) / (predicted + true + SMOOTH)
    is_present = true > 0
    return ((1 - dice) * is_present).sum(dim=1) / is_present.sum(dim=1).clamp(min=1)
