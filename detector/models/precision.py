"""The precision that a network computes in, and whether a GPU repeats its results."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F

from detector.config.schema import TrainConfig
from detector.errors import ConfigError

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """A context in which networks on ``device`` compute in ``precision``, a key of ``AUTOCAST``."""
    dtype = AUTOCAST[precision]
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def check_precision(precision: str, device: torch.device, key: str) -> None:
    """Refuse the ``precision`` of the config's ``key`` if ``device`` cannot compute in it."""
    # Older cards emulate bf16, more slowly than they compute fp32.
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(f"{key}: {torch.cuda.get_device_name(device)} has no bf16; use fp16 or fp32")
    try:
        with autocast(precision, device):
            F.conv2d(torch.zeros(1, 8, 4, 4, device=device), torch.zeros(8, 8, 3, 3, device=device))
    except RuntimeError:
        raise ConfigError(f"{key}: {device} cannot compute in {precision}; use fp32") from None


def prepare_gpu(config: TrainConfig, has_one_size: bool, device: torch.device) -> None:
    """Set, for this process, how a GPU computes; a CPU has one way.

    ``has_one_size``: all images have one size, so that cuDNN's search for the fastest algorithms pays.
    """
    if device.type != "cuda":
        return
    torch.backends.cudnn.allow_tf32 = config.tf32 != "nothing"
    torch.set_float32_matmul_precision("high" if config.tf32 == "everything" else "highest")
    torch.backends.cudnn.benchmark = has_one_size and not config.deterministic
    torch.use_deterministic_algorithms(config.deterministic)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it


@contextlib.contextmanager
def explain_nondeterministic() -> Iterator[None]:
    """Turn PyTorch's refusal under ``train.deterministic`` into one line."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition(", but you set")[0]
        if "deterministic" not in reason:
            raise
        raise ConfigError(f"train.deterministic: {reason}; set it to false, or replace that part") from None
