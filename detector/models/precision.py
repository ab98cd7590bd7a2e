"""The precision that a network computes in."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F

from detector.errors import ConfigError

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """A context in which networks on ``device`` compute in ``precision``, a key of ``AUTOCAST``."""
    dtype = AUTOCAST[precision]
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def check_precision(precision: str, device: torch.device, key: str) -> None:
    """Refuse the ``precision`` of the config's ``key`` if ``device`` cannot compute in it."""
    try:
        with autocast(precision, device):
            F.conv2d(torch.zeros(1, 8, 4, 4, device=device), torch.zeros(8, 8, 3, 3, device=device))
    except RuntimeError:
        raise ConfigError(f"{key}: {device} cannot compute in {precision}; use fp32") from None
