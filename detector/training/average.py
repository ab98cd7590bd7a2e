"""Exponential moving average of a model's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """An average of parameters and buffers; call ``update_parameters(model)`` after each optimizer step.

    The decay rises as (1 + n) / (10 + n) towards ``decay``, so that the random start is soon forgotten.
    """

    @torch.no_grad()
    def update(averages: list[Tensor], currents: list[Tensor], num_averaged: Tensor | int) -> None:
        count = int(num_averaged)
        weight = 1 - min(decay, (1 + count) / (10 + count))
        # Called once for each type and device, so one tensor speaks for all.
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, currents, weight)
        else:  # BatchNorm's count of batches
            torch._foreach_copy_(averages, currents)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
