"""Copies that follow a model in training: its weights' moving average, and its buffers after the last good step."""

from __future__ import annotations

import copy
import math
from collections import defaultdict

import torch
from torch import Tensor, nn

from detector.models.norms import changing_buffers


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
    """What training changes: what can be averaged, and the rest, such as BatchNorm's batch counts."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tensors = [*trained, *changing_buffers(model)]
    return [t for t in tensors if t.is_floating_point()], [t for t in tensors if not t.is_floating_point()]


class SavedBuffers:
    """The buffers that a step changes, such as BatchNorm's statistics, as they were after the last good step."""

    def __init__(self, model: nn.Module) -> None:
        of_type: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for buffer in changing_buffers(model):
            of_type[buffer.dtype].append(buffer)
        # By type, as a GPU copies many of one type at once, and mixed ones one by one.
        self.groups = [(buffers, [buffer.clone() for buffer in buffers]) for buffers in of_type.values()]

    def save(self) -> None:
        for buffers, saved in self.groups:
            torch._foreach_copy_(saved, buffers)

    def restore(self) -> None:
        for buffers, saved in self.groups:
            torch._foreach_copy_(buffers, saved)
