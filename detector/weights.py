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
from detector.models.backbones import TIMM, Backbone


def load_backbone_weights(backbone: Backbone, config: BackboneConfig) -> str:
    """Fill the backbone with the weights that the config names; returns a line that says how much came from where.

    Raises :class:`~detector.errors.WeightsError` where weights cannot be had or do not fit: a backbone that silently
    stays random is the usual reason for a loss of NaN.
    """
    own = backbone.body.state_dict()
    if config.weights is None:
        return f"backbone {config.name}: random weights"
    weights = _read(config.name, config.weights)
    if config.name.startswith(TIMM):
        # timm names the stages of a backbone stages_0 where the whole network, which weights are of, has stages.0.
        own_name = {name.replace(".", "_"): name for name in own}
        weights = {own_name.get(name.replace(".", "_"), name): tensor for name, tensor in weights.items()}
    if backbone.in_channels != 3:
        weights = {name: _inflated(tensor, own.get(name)) for name, tensor in weights.items()}
    fitting = {name: weights[name] for name in own if name in weights and weights[name].shape == own[name].shape}
    # BatchNorm's count of batches is in no file older than it, and nothing reads it.
    missing = [name for name in own if name not in fitting and not name.endswith("num_batches_tracked")]
    if missing:
        fault = "has another shape" if missing[0] in weights else "is missing"
        raise WeightsError(
            f"{config.weights}: {missing[0]} {fault} ({len(missing)} of {len(own)}); not weights of {config.name}"
        )
    backbone.body.load_state_dict(fitting, strict=False)
    counts = {name: parameter.numel() for name, parameter in backbone.body.named_parameters()}
    loaded = sum(count for name, count in counts.items() if name in fitting)
    return f"backbone {config.name}: {loaded:,} of {sum(counts.values()):,} parameters from {config.weights}"


def _inflated(tensor: Tensor, own: Tensor | None) -> Tensor:
    """The first convolution for other than three channels: each gets the mean of the three, and all give as much."""
    if own is None or tensor.ndim != 4 or tensor.shape[1] != 3 or own.shape[1] == 3:
        return tensor
    in_channels = own.shape[1]
    return tensor.mean(dim=1, keepdim=True).expand(-1, in_channels, -1, -1) * (3 / in_channels)


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
    if isinstance(weights, dict) and "format" in weights:
        raise WeightsError(f"{path}: is a checkpoint of training; start from it with --init-from instead")
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise WeightsError(f"{path}: is no state dict (names to tensors)")
    return weights
