"""Files of tensors from untrusted sources, read without running any code in them."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import URLError
from urllib.parse import unquote, urlparse

import numpy as np
import torch
import torchvision
from torch import Tensor

from detector.errors import WeightsError, unreadable

# All that a pickle of arrays needs. Anything else that a file asks for is refused by its name, and not imported.
SAFE_GLOBALS = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *(("numpy" + core + ".multiarray", name) for core in (".core", "._core") for name in ("_reconstruct", "scalar")),
    *(("numpy" + core + ".numeric", "_frombuffer") for core in (".core", "._core")),
}


def resolve(source: str, known: dict[str, str] | None = None) -> Path | None:
    """The file that ``source`` means, for a URL the one in torch hub's cache; None if ``source`` is unknown.

    A source is a path, a ``file://`` or ``https://`` URL, a name in ``known`` (names to URLs), or a member of one of
    torchvision's enums such as ``ResNet50_Weights.IMAGENET1K_V1``. Raises :class:`detector.errors.WeightsError` where
    a download fails.
    """
    path = Path(unquote(urlparse(source).path)) if source.startswith("file://") else Path(source)
    if source in (known or {}):
        return _download(known[source])
    if urlparse(source).scheme in ("http", "https"):
        return _download(source)
    if os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises for a name that is too long)
        return path
    try:
        return _download(torchvision.models.get_weight(source).url)
    except (ValueError, AttributeError, KeyError):
        return None


def _download(url: str) -> Path:
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not cached.exists():
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(cached))
        except (URLError, OSError) as error:
            raise WeightsError(
                f"{url} cannot be downloaded ({getattr(error, 'reason', error)}); download it elsewhere and put it into"
                f" {cached.parent}, or give the path of the file"
            ) from None
    return cached


def read_file(path: Path) -> Any:
    """What a ``.pth``, ``.pt``, ``.pkl`` or ``.safetensors`` file holds, on the CPU; arrays become tensors.

    Raises :class:`detector.errors.WeightsError` for a file that is cut off, compressed, or holds more than tensors,
    numbers, texts, lists and dicts.
    """
    try:
        path.open("rb").close()
    except OSError as error:
        raise WeightsError(f"{path}: {unreadable(path, error, '*.pt')}") from None
    try:
        return _read(path)
    except WeightsError:
        raise
    except Exception as error:  # broken files raise almost anything
        reason = " ".join(str(error).split())
        if match := re.search(r"[Uu]nsupported (?:global|GLOBAL):? (?:GLOBAL )?([\w.]+)", reason):
            raise WeightsError(
                f"{path}: holds {match[1]}, which is not a tensor and is not loaded; if you trust the file, save"
                " its state dict alone"
            ) from None
        if not path.stat().st_size:
            raise WeightsError(f"{path}: is empty; copy or download it again") from None
        if start := _first_words(path):
            raise WeightsError(
                f"{path}: is text, which begins {start!r}, and not a checkpoint; give one, or download it again"
            ) from None
        raise WeightsError(f"{path}: is not a file of tensors, or is cut off; copy or download it again") from None


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if zipfile.is_zipfile(path):
        _check_zip(path)
    elif path.suffix == ".pkl":
        with path.open("rb") as file:
            return _as_tensors(_Unpickler(file).load(), path, {})
    return torch.load(path, map_location="cpu", weights_only=True)


def _first_words(path: Path) -> str:
    """How a file of text begins, such as a page or git-lfs's pointer in place of a checkpoint; empty for others."""
    with path.open("rb") as file:
        text = file.read(200).decode(errors="replace")
    words = " ".join(text.split())[:40]
    return words if words.isprintable() and "\ufffd" not in words else ""


def _check_zip(path: Path) -> None:
    """Refuse compressed or overlapping entries, which may unpack to any size; torch stores each tensor once, as is."""
    with zipfile.ZipFile(path) as archive:
        claimed, size = sum(entry.file_size for entry in archive.infolist()), path.stat().st_size
        if claimed > size and all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist()):
            raise WeightsError(f"{path}: claims to hold {claimed:,} bytes, and has {size:,}: cut off, or malicious")
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise WeightsError(
                    f"{path}: {entry.filename} is compressed, {entry.compress_size:,} bytes for {entry.file_size:,};"
                    " torch never compresses"
                )


class _Unpickler(pickle.Unpickler):
    """Detectron2's ``.pkl``: arrays, dicts, lists, texts and numbers."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")
        self.path = file.name

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in SAFE_GLOBALS:
            raise WeightsError(f"{self.path}: asks for {module}.{name}, which is not an array; the file was not loaded")
        return super().find_class(module, name)


def _as_tensors(value: Any, path: Path, done: dict[int, Any]) -> Any:
    """``value`` with tensors instead of arrays; an object that occurs several times is converted once."""
    if not isinstance(value, dict | np.ndarray):
        return value
    if id(value) not in done:
        done[id(value)] = done  # in progress
        if isinstance(value, dict):
            done[id(value)] = {key: _as_tensors(inner, path, done) for key, inner in value.items()}
        elif value.dtype.kind in "fiub":
            done[id(value)] = torch.from_numpy(value.copy(order="C"))
        else:
            raise WeightsError(f"{path}: holds an array of {value.dtype}, which is not a tensor")
    if done[id(value)] is done:
        raise ValueError("a dict contains itself")
    return done[id(value)]


def is_state_dict(value: Any) -> bool:
    """Whether a value is a dict of names to tensors, and not empty."""
    return isinstance(value, dict) and bool(value) and all(isinstance(tensor, Tensor) for tensor in value.values())


def check_tensor(name: Any, tensor: Tensor, path: str | Path) -> None:
    """Refuse a tensor of a file that does not hold finite, real numbers."""
    if not isinstance(name, str):
        raise WeightsError(f"{path}: has a tensor named {name!r}; names must be strings")
    is_dense = not tensor.is_nested and tensor.layout == torch.strided and not tensor.is_meta
    if not is_dense or tensor.is_quantized or tensor.is_complex():
        raise WeightsError(f"{path}: {name} is not a dense tensor of numbers")
    if not tensor.is_floating_point():
        return
    if tensor.element_size() == 1:
        raise WeightsError(f"{path}: {name} is of {tensor.dtype}; weights have 16 bits or more")
    if not bool(tensor.isfinite().all()):
        count = int((~tensor.isfinite()).sum())
        raise WeightsError(
            f"{path}: {name} has {count:,} of {tensor.numel():,} values that are not finite; training diverged, or"
            " the file is damaged: use an earlier one"
        )
