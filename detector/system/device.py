"""The device to compute on, and what a bug report should say about this machine."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import detector
from detector.errors import ConfigError, GpuMemoryError

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "opencv-python-headless",
    "albumentations",
    "pillow",
    "pydantic",
    "hotcoco",
    "pycocotools",
    "safetensors",
    "timm",
    "onnx",
    "onnxruntime",
    "tensorboard",
)
SETTINGS = ("OMP_", "GOMP_", "KMP_", "MKL_", "CUDA_")  # prefixes of environment variables


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """The named device; without a name, the first GPU or else the CPU. Raises ConfigError if it is not available."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise ConfigError(f"--device {name}: there is no such device here; use cpu, or leave it out") from None
    return device


@contextlib.contextmanager
def explain_memory(work: str, remedy: str) -> Iterator[None]:
    """Turn a GPU's lack of memory into one line: what it was for, how much there is, and what to lower."""
    try:
        yield
    except torch.OutOfMemoryError:
        sizes = ""
        if torch.cuda.is_available():
            total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
            sizes = f" (peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB of {total / 1e9:.1f} GB)"
        raise GpuMemoryError(f"{work}: the GPU has too little memory{sizes}; {remedy}") from None


def to_cpu(*tensors: Tensor) -> list[Tensor]:
    """Tensors of one device on the CPU, by one copy, as a GPU is waited for at each; float64 must hold their values."""
    if all(tensor.is_cpu for tensor in tensors):
        return list(tensors)
    copied = torch.cat([tensor.double().flatten() for tensor in tensors]).cpu()
    parts = copied.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]


def environment() -> dict[str, Any]:
    """Versions, hardware and threads, without network access; None for what is missing."""
    return {
        "detector": detector.__version__,
        "installed": str(Path(detector.__file__).parent),
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **{name: value for name, value in sorted(os.environ.items()) if name.startswith(SETTINGS)},
        **{name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        "gpus": [
            f"{properties.name}, {properties.total_memory / 1e9:.1f} GB"
            for properties in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        ],
    }


def _version(package: str) -> str | None:
    # An imported module knows its version, even in a checkout or container without pip's metadata.
    module = sys.modules.get(package)
    if module is not None and hasattr(module, "__version__"):
        return str(module.__version__)
    try:
        return version(package)
    except PackageNotFoundError:
        return None
