"""Probabilities as logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def product_logit(first: Tensor, second: Tensor) -> Tensor:
    """The logit of sigmoid(first) · sigmoid(second), in float32; shapes broadcast.

    With p = 1 / ((1 + e^-a) (1 + e^-b)), the odds (1 - p) / p are e^-a + e^-b + e^-(a + b). So no sigmoid is computed,
    which could be rounded to 0 or 1 and then has no logit. Example: 0 and 0, a half each → log(1/3), a quarter.
    """
    a, b = first.float(), second.float()
    return a + b - F.softplus(torch.logaddexp(a, b))
