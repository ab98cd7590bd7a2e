"""The cost of a model, without training it: parameters, multiply-adds, memory, the size of each level, and time.

All but the time is counted on PyTorch's meta device, where tensors have shapes and no values: it takes a second for a
network of any size. All figures are for one image.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from detector.config.schema import ModelConfig
from detector.errors import ConfigError
from detector.models import Model, build_model
from detector.models.backbones import Backbone
from detector.models.pyramid import FusedPyramid
from detector.structures import Predictions

WARM_UP_RUNS = 3


class Level(NamedTuple):
    """The feature map of a stage (C2 to C5) or of a pyramid level (P2 to P7)."""

    channels: int
    height: int
    width: int
    stride: int
    anchors: int | None  # None without a detection head, and for a stage


class Summary(NamedTuple):
    """A model's cost for one image."""

    in_channels: int
    size: tuple[int, int]  # height, width of the image
    classes: int
    parameters: int
    trainable_parameters: int
    macs: int  # multiply-adds of convolutions and matrix products in inference
    activation_bytes: int  # what a training step keeps for the backward pass, in float32
    levels: dict[str, Level]  # by name: C2 (BACKBONE.C2 with several backbones), P3

    @property
    def anchors(self) -> int:
        return sum(level.anchors or 0 for level in self.levels.values())


class Latency(NamedTuple):
    """The time of ``Model.forward`` in milliseconds: median and quartiles of some runs."""

    median: float
    low: float
    high: float


def summarise(config: ModelConfig, num_classes: int, size: tuple[int, int]) -> Summary:
    """The cost of the config's model for an image of ``size`` (height, width).

    Raises :class:`detector.errors.ConfigError` for unknown names and for a size that the model refuses.
    """
    model = build_on_meta(config, num_classes)
    images = torch.empty(1, config.in_channels, *size, dtype=torch.uint8, device="meta")
    sizes = torch.empty(1, 2, dtype=torch.int64, device="meta")
    try:
        macs, levels = _trace(model, config, images, sizes)
        activation_bytes = count_activations(model, images, sizes)
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"size {size[0]} × {size[1]}: the model cannot take such an image ({reason})") from None
    return Summary(
        in_channels=config.in_channels,
        size=size,
        classes=num_classes,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trainable_parameters=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        macs=macs,
        activation_bytes=activation_bytes,
        levels=levels,
    )


def build_on_meta(config: ModelConfig, num_classes: int) -> Model:
    """The model with shapes but no weights."""
    try:
        with torch.device("meta"):
            return build_model(config, num_classes)
    except (ConfigError, RuntimeError):
        # RegNet and some of timm's networks compute their widths with tensors, which have no values on the meta device.
        # A mistake in the config fails here again.
        return build_model(config, num_classes).to("meta")


def _trace(model: Model, config: ModelConfig, images: Tensor, sizes: Tensor) -> tuple[int, dict[str, Level]]:
    """Multiply-adds of a prediction, and the shapes of all levels."""
    model.eval()
    backbones = _named_backbones(model, config)
    inputs: dict[str, Tensor] = {}  # of each backbone: a fused pyramid pads the image
    pyramid: list[Tensor] = []

    def note_input(name: str, _body: nn.Module, arguments: tuple[Tensor]) -> None:
        inputs[name] = arguments[0]

    def note_pyramid(_pyramid: nn.Module, _arguments: object, output: Tensor | list[Tensor]) -> None:
        if model.pyramid.levels:
            pyramid.extend(output)

    handles = [
        backbone.body.register_forward_pre_hook(partial(note_input, name)) for name, backbone in backbones.items()
    ]
    handles.append(model.pyramid.register_forward_hook(note_pyramid))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        outputs = model(images, sizes)
    for handle in handles:
        handle.remove()

    levels = {}
    for name, backbone in backbones.items():
        with torch.no_grad():
            stages = backbone.stages(inputs[name])
        for level, feature in stages.items():
            levels[f"{name}.C{level}".removeprefix(".")] = Level(*feature.shape[1:], 2**level, anchors=None)
    counts = outputs.level_counts if isinstance(outputs, Predictions) else [None] * len(pyramid)
    for level, feature, count in zip(model.pyramid.levels, pyramid, counts, strict=True):
        levels[f"P{level}"] = Level(*feature.shape[1:], 2**level, anchors=count)
    return counter.get_total_flops() // 2, levels


def head_macs(config: ModelConfig, summary: Summary) -> dict[str, int]:
    """Multiply-adds of the detection head on each level of the pyramid, by name."""
    levels = {name: level for name, level in summary.levels.items() if level.anchors is not None}
    head = build_on_meta(config, summary.classes).head
    features = [torch.empty(1, level.channels, level.height, level.width, device="meta") for level in levels.values()]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        head(features)
    # The levels share the subnets, so the cost of each is proportional to its anchors.
    macs, anchors = counter.get_total_flops() // 2, summary.anchors
    return {name: macs * level.anchors // anchors for name, level in levels.items() if level.anchors is not None}


def _named_backbones(model: Model, config: ModelConfig) -> dict[str, Backbone]:
    """The backbones by name; duplicate names get an index, and a single backbone has the empty name."""
    if not isinstance(model.pyramid, FusedPyramid):
        return {"": model.pyramid.backbone}
    names = [branch.name for branch in config.backbones]
    unique = [f"{name}[{index}]" if names.count(name) > 1 else name for index, name in enumerate(names)]
    return {name: branch.backbone for name, branch in zip(unique, model.pyramid.branches, strict=True)}


def count_activations(model: Model, images: Tensor, sizes: Tensor) -> int:
    """Bytes that a training step keeps for the backward pass, without parameters and buffers; on the meta device."""
    model.train()
    for module in model.modules():
        # Batch norm refuses to train on one value per channel, as in C5 of a small image. Eval mode keeps the same.
        if isinstance(module, _BatchNorm):
            module.eval()
    own = {tensor.untyped_storage()._cdata for tensor in chain(model.parameters(), model.buffers())}
    # By address of the storage, since meta tensors have no data pointer; held, so that no address is used twice.
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        model(images, sizes)
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own)


@torch.inference_mode()
def measure_latencies(
    models: Sequence[Model], images: Sequence[Tensor], device: torch.device, runs: int
) -> list[Latency]:
    """The time of each model on its image [1, C, H, W] uint8, on ``device``.

    The models take turns, so that other load on the machine affects all of them alike.
    """
    batches = [(image.to(device), torch.tensor([image.shape[-2:]], device=device)) for image in images]
    models = [model.to(device).eval() for model in models]
    times = torch.empty(WARM_UP_RUNS + runs, len(models), dtype=torch.float64)  # milliseconds
    for row in times:
        for index, (model, batch) in enumerate(zip(models, batches, strict=True)):
            finish(device)
            start = time.perf_counter()
            model(*batch)
            finish(device)
            row[index] = (time.perf_counter() - start) * 1000
    low, median, high = times[WARM_UP_RUNS:].quantile(torch.tensor([0.25, 0.5, 0.75]).double(), dim=0).tolist()
    return [Latency(*of_model) for of_model in zip(median, low, high, strict=True)]


def finish(device: torch.device) -> None:
    """Wait for a GPU's queue; a CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
