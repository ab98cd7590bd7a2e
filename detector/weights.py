"""ImageNet weights for a backbone: torchvision's by name, a path, or a URL."""

from __future__ import annotations

import torchvision
from torch import Tensor

from detector.config import BackboneConfig
from detector.errors import WeightsError, one_of
from detector.files import check_tensor, is_state_dict, read_file, resolve
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
    """The state dict that ``source`` means for the network ``name``."""
    if name.startswith(TIMM):
        network = name.removeprefix(TIMM)
        if (weights := _of_timm(network, source)) is not None:
            return weights
        known: dict[str, str] = {}
        hint = one_of(_timm_tags(network) or ["it has none"])
    else:
        has_weights = name in torchvision.models.list_models()
        known = (
            {weight.name: weight.url for weight in torchvision.models.get_model_weights(name)} if has_weights else {}
        )
        hint = one_of(known or ["it has none"])
    try:
        path = resolve(source, known)
    except WeightsError as error:
        raise WeightsError(f"model.backbone.weights: {error}") from None
    if path is None:
        raise WeightsError(f"model.backbone.weights: {source} is no file, no URL and no weights of {name} ({hint})")
    weights = read_file(path)
    if isinstance(weights, dict) and "format" in weights:
        raise WeightsError(f"{path}: is a checkpoint of training; start from it with --init-from instead")
    if not is_state_dict(weights):
        raise WeightsError(f"{path}: is no state dict (names to tensors)")
    for tensor_name, tensor in weights.items():
        check_tensor(tensor_name, tensor, path)
    return weights


def _timm_tags(network: str) -> list[str]:
    """What timm's published weights of a network are called, such as ``a1_in1k``."""
    import timm

    return [name.partition(".")[2] for name in timm.list_pretrained(f"{network}.*")]


def _of_timm(network: str, tag: str) -> dict[str, Tensor] | None:
    """timm's published weights, from its own cache or downloaded; None if it has none of that name."""
    if tag not in _timm_tags(network):
        return None
    import timm

    try:
        return timm.create_model(f"{network}.{tag}", pretrained=True).state_dict()
    except Exception as error:  # the hub's client raises errors of its own and of whichever library it uses below
        reason = " ".join(str(error).split())[:160]
        raise WeightsError(
            f"model.backbone.weights: timm's {network}.{tag} cannot be had ({reason}); download it elsewhere and give"
            " the path of the file"
        ) from None
