"""ImageNet weights for a backbone: torchvision's by name, a path, or a URL."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torchvision
from torch import Tensor
from torchvision.models import WeightsEnum

from detector.config.parts import TIMM
from detector.config.schema import IMAGENET_MEAN, IMAGENET_STD, BackboneConfig, ModelConfig, for_channels
from detector.errors import ConfigError, WeightsError, near_path, one_of
from detector.models.backbones import Backbone
from detector.system.tensors import check_tensor, is_state_dict, read_file, resolve


def load_backbone_weights(backbone: Backbone, config: BackboneConfig) -> str:
    """Fill the backbone with the weights that the config names; returns a line that says how much was loaded.

    Raises :class:`detector.errors.WeightsError` where weights are missing or do not fit: a backbone that silently
    stays random is the usual reason for a loss of NaN.
    """
    own = backbone.body.state_dict()
    if config.weights is None:
        return f"backbone {config.name}: random weights"
    weights = _read(config.name, config.weights)
    if config.name.startswith(TIMM):
        # A stage is stages_0 in timm's backbones, and stages.0 in the whole network, which the weights are of.
        own_name = {name.replace(".", "_"): name for name in own}
        weights = {own_name.get(name.replace(".", "_"), name): tensor for name, tensor in weights.items()}
    if backbone.in_channels != 3:
        weights = {name: _inflated(tensor, own.get(name)) for name, tensor in weights.items()}
    fitting = {name: weights[name] for name in own if name in weights and weights[name].shape == own[name].shape}
    # Old files lack BatchNorm's count of batches, and nothing reads it.
    missing = [name for name in own if name not in fitting and not name.endswith("num_batches_tracked")]
    if missing:
        fault = "has a different shape" if missing[0] in weights else "is missing"
        raise WeightsError(
            f"{config.weights}: {missing[0]} {fault} ({len(missing)} of {len(own)}); not weights of {config.name}"
        )
    backbone.body.load_state_dict(fitting, strict=False)
    counts = {name: parameter.numel() for name, parameter in backbone.body.named_parameters()}
    loaded = sum(count for name, count in counts.items() if name in fitting)
    return f"backbone {config.name}: {loaded:,} of {sum(counts.values()):,} parameters from {config.weights}"


Statistics = tuple[list[float], list[float]]  # mean and deviation of each channel, of values 0..255


def follow_weights(config: ModelConfig, checkpoint: ModelConfig | None) -> tuple[ModelConfig, str]:
    """``config`` with the mean and std of its weights where its ``normalise`` has none, and a line that says so.

    ``checkpoint`` is the model of the checkpoint that training starts from, if not from backbones' weights. Raises
    :class:`detector.errors.ConfigError` where backbones want different values, or a file's are not known.
    """
    statistics, origin = (config.mean, config.std), "the config's"
    if config.normalise.mean is None or config.normalise.std is None:
        if checkpoint is None:
            statistics, origin = _wanted(config)
        elif checkpoint.in_channels == config.in_channels:
            statistics, origin = (checkpoint.mean, checkpoint.std), "the checkpoint's"
        elif checkpoint.in_channels == 3:
            statistics, origin = _of_rgb(config, checkpoint.mean, checkpoint.std), "the mean of the checkpoint's"
        else:
            origin = "ImageNet's"
    own = {"mean": config.normalise.mean or statistics[0], "std": config.normalise.std or statistics[1]}
    # null means ImageNet's; spelled out, it would be a different config to a run that is resumed.
    changed = {key: value for key, value in own.items() if value != getattr(config, key)}
    config = config.model_copy(update={"normalise": config.normalise.model_copy(update=changed)})
    mean, std = (", ".join(f"{value:g}" for value in values[:3]) for values in (config.mean, config.std))
    return config, f"normalised by mean {mean} and std {std} of values 0..255: {origin}"


def _of_rgb(config: ModelConfig, *parts: Sequence[float]) -> Statistics:
    mean, std = (for_channels(list(part), config.in_channels) for part in parts)
    return mean, std


def _wanted(config: ModelConfig) -> tuple[Statistics, str]:
    """Mean and std that the backbones' weights were trained with, and where they are from."""
    wanted = [(section.name, _published(section)) for section in config.backbones if section.weights]
    values = {statistics for _, statistics in wanted}
    if len(values) > 1:
        said = "; ".join(f"{name} {_in_words(statistics)}" for name, statistics in wanted)
        raise ConfigError(f"model.normalise: the networks' weights want different values ({said}); set mean and std")
    if not values:
        return (config.mean, config.std), "ImageNet's"
    return _of_rgb(config, *values.pop()), f"that of the weights of {' and '.join(name for name, _ in wanted)}"


def _published(config: BackboneConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of RGB that a network's weights were trained with, as far as its package says."""
    name, source = config.name, str(config.weights)
    imagenet = (tuple(IMAGENET_MEAN), tuple(IMAGENET_STD))
    if name.startswith(TIMM):
        if importlib.util.find_spec("timm") is None:
            return imagenet  # building the network will say that timm is missing
        import timm

        network = name.removeprefix(TIMM)
        configs = {tag: timm.get_pretrained_cfg(f"{network}.{tag}") for tag in _timm_tags(network)}
        rows = [(tag, f"{network}.{tag}", cfg.url, cfg.mean, cfg.std) for tag, cfg in configs.items()]
    else:
        weights = [(one, one.transforms()) for one in _torchvision_weights(name)]
        rows = [(one.name, str(one), one.url, preset.mean, preset.std) for one, preset in weights]
    # Weights are recognised by name or by file name; any other file may be any of them.
    named = [
        row for row in rows if source == row[0] or row[1] in source or Path(source).name == Path(row[2] or "none").name
    ]
    found = {tuple(tuple(round(255 * value, 4) for value in part) for part in row[3:]) for row in named or rows}
    if len(found) > 1 and not name.startswith(TIMM):
        return imagenet
    if len(found) > 1:
        said = " or ".join(_in_words(statistics) for statistics in sorted(found))
        raise ConfigError(f"model.normalise: weights of {name} want {said}, and {source} may be any; set mean and std")
    return found.pop() if found else imagenet


def _in_words(statistics: Sequence[Sequence[float]]) -> str:
    mean, std = ([float(f"{value:g}") for value in part] for part in statistics)
    return f"mean {mean}, std {std}"


def _inflated(tensor: Tensor, own: Tensor | None) -> Tensor:
    """The first convolution for other than three channels: each gets the mean of the three, scaled to the same sum."""
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
        known, choices = {}, _timm_tags(network)
    else:
        known = choices = {weights.name: weights.url for weights in _torchvision_weights(name)}
    hint = one_of(choices or ["it has none"])
    try:
        path = resolve(source, known)
    except WeightsError as error:
        raise WeightsError(f"model.backbone.weights: {error}") from None
    if path is None:
        raise WeightsError(
            f"model.backbone.weights: {source} is not a file, a URL or a name of {name}'s weights ({hint})"
            f"{near_path(source) if Path(source).suffix else ''}"
        )
    weights = read_file(path)
    if isinstance(weights, dict) and "format" in weights:
        raise WeightsError(f"{path}: is a training checkpoint; start from it with --init-from instead")
    if not is_state_dict(weights):
        raise WeightsError(f"{path}: is not a state dict (names to tensors)")
    for tensor_name, tensor in weights.items():
        check_tensor(tensor_name, tensor, path)
    return weights


def _torchvision_weights(name: str) -> list[WeightsEnum]:
    return list(torchvision.models.get_model_weights(name)) if name in torchvision.models.list_models() else []


def _timm_tags(network: str) -> list[str]:
    """Names of timm's published weights of a network, such as ``a1_in1k``."""
    import timm

    return [name.partition(".")[2] for name in timm.list_pretrained(f"{network}.*")]


def _of_timm(network: str, tag: str) -> dict[str, Tensor] | None:
    """timm's published weights, from its own cache or downloaded; None if it has none of that name."""
    if tag not in _timm_tags(network):
        return None
    import timm

    try:
        return timm.create_model(f"{network}.{tag}", pretrained=True).state_dict()
    except Exception as error:  # the hub's client raises its own errors and those of its HTTP library
        reason = " ".join(str(error).split())[:160]
        raise WeightsError(
            f"model.backbone.weights: timm's {network}.{tag} cannot be loaded ({reason}); download it elsewhere and"
            " give its path"
        ) from None
