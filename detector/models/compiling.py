"""Networks made ready for prediction, and ``torch.compile``: whether it works here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import torch
from torch import nn

from detector.config.schema import PredictConfig
from detector.errors import ConfigError, one_of
from detector.models import Model
from detector.models.precision import check_precision


def check_compiler(key: str) -> None:
    """Refuse the config's ``key`` without a C++ compiler; PyTorch would say so in a hundred lines at the first step."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "cl"]
    if not any(shutil.which(name) for name in names):
        raise ConfigError(f"{key}: there is no C++ compiler here ({one_of(names)}); install one, or set it to false")


def for_prediction(model: Model, config: PredictConfig, device: torch.device) -> tuple[Model, Callable]:
    """``model`` on ``device``, in the config's precision, and what is called in its place: itself, or it compiled."""
    check_precision(config.precision, device, "model.predict.precision")
    model = model.place(device).fix_precision(config.precision).eval()
    if not config.compile:
        return model, model
    check_compiler("model.predict.compile")
    return model, compiled(model, device)


def compiled(network: nn.Module, device: torch.device) -> Callable:
    """``network`` compiled for each size of batch and images; on a GPU launched as a whole, as a CUDA graph.

    The next pass overwrites the output on a GPU.
    """
    if device.type == "cpu":
        return torch.compile(network, dynamic=False)
    torch.backends.cudnn.benchmark = True  # few sizes are compiled, so searching for the fastest algorithms pays
    return torch.compile(network, dynamic=False, mode="reduce-overhead")
