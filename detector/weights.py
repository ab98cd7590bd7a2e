"""ImageNet weights for a backbone: torchvision's by name, a path, or a URL."""

from __future__ import annotations

import pickle
from pathlib import Path
from urllib.error import URLError
from urllib.parse import unquote, urlparse

import torch
import torchvision
from torch import Tensor

from detector.config import BackboneConfig
from detector.errors import WeightsError, one_of
from detector.models.backbones import Backbone


def load_backbone_weights(backbone: Backbone, config: BackboneConfig) -> str:
    """Fill the backbone with the weights that the config names; returns a line that says how much came from where.

    Raises :class:`~detector.errors.WeightsError` where weights cannot be had or do not fit: a backbone that silently
    stays random is the usual reason for a loss of NaN.
    """
    own = backbone.body.state_dict()
    if config.weights is None:
        return f"backbone {config.name}: random weights"
    weights = _read(config.name, config.weights)
    fitting = {name: weights[name] for name in own if name in weights and weights[name].shape == own[name].shape}
    # BatchNorm's count of batches is in no file older than it, and nothing reads it.
    missing = [name for name in own if name not in fitting and not name.endswith("num_batches_tracked")]
    if missing:
        fault = "has another shape" if missing[0] in weights else "is missing"
        raise WeightsError(
            f"{config.weights}: {missing[0]} {fault} ({len(missing)} of {len(own)}); not weights of {config.name}"
        )
    backbone.body.load_state_dict(fitting, strict=False)
    return f"backbone {config.name}: {len(fitting)} of {len(own)} tensors from {config.weights}"


def _read(name: str, source: str) -> dict[str, Tensor]:
    has_weights = name in torchvision.models.list_models()
    known = [weight.name for weight in torchvision.models.get_model_weights(name)] if has_weights else []
    path = Path(unquote(urlparse(source).path)) if source.startswith("file://") else Path(source)
    if source in known:
        url = torchvision.models.get_model_weights(name)[source].url
    elif urlparse(source).scheme in ("http", "https"):
        url = source
    elif path.is_file():
        return _load_file(path)
    else:
        raise WeightsError(
            f"model.backbone.weights: {source} is no file, no URL and no weights of {name}"
            f" ({one_of(known or ['it has none'])})"
        )
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not cached.exists():
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(cached))
        except (URLError, OSError) as error:
            raise WeightsError(
                f"model.backbone.weights: {url} cannot be downloaded ({getattr(error, 'reason', error)}); download it"
                f" elsewhere and put it into {cached.parent}, or set model.backbone.weights to a path"
            ) from None
    return _load_file(cached)


def _load_file(path: Path) -> dict[str, Tensor]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from None
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
        raise WeightsError(f"{path}: is no file of tensors, or is cut off") from None
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise WeightsError(f"{path}: is no state dict (names to tensors)")
    return weights
