"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy
import math
from itertools import chain

import torch
from torch import Tensor, nn


class AveragedWeights:
    """``model`` holds the average of another model's parameters and buffers over ``updates`` calls of :meth:`update`.

    After n updates the decay is min(``decay``, (1 + n) / (10 + n)), or ``decay`` · (1 - exp(-n / ``tau``)) where
    ``tau`` is given, so that the random start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float, tau: float | None = None) -> None:
        self.model = copy.deepcopy(model)
        self.decay, self.tau = decay, tau
        self.updates = 0  # a Python int: an update reads nothing from the device

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Average in the weights of ``model`` after an optimizer step; the first update copies them."""
        (averages, counts), (currents, current_counts) = map(_tensors, (self.model, model))
        if self.updates:
            kept = self._kept()
            torch._foreach_lerp_(averages, currents, 1 - kept)
        else:
            torch._foreach_copy_(averages, currents)
        if counts:
            torch._foreach_copy_(counts, current_counts)
        self.updates += 1

    def _kept(self) -> float:
        """The decay of the next update."""
        if self.tau is not None:
            return self.decay * -math.expm1(-self.updates / self.tau)
        return min(self.decay, (1 + self.updates) / (10 + self.updates))


def _tensors(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and buffers: those that can be averaged, and the others, such as BatchNorm's batch counts."""
    tensors = [*chain(model.parameters(), model.buffers())]
    return [t for t in tensors if t.is_floating_point()], [t for t in tensors if not t.is_floating_point()]
