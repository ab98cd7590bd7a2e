"""Optimizer and learning rate, the latter a pure function of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from detector.config.schema import OptimizerConfig, ScheduleConfig
from detector.errors import WeightsError
from detector.models.backbones import Backbone
from detector.system.tensors import check_tensor


def scaled_lr(config: OptimizerConfig, batch_size: int) -> float:
    """The peak learning rate for a global batch (linear scaling, Goyal et al. 2017, section 2.1)."""
    return config.lr * batch_size / config.lr_batch_size


def lr_factor(config: ScheduleConfig, step: int, steps: int, steps_per_epoch: int) -> float:
    """The factor on the peak rate at ``step`` of ``steps``, 0-based."""
    wanted = config.warmup_steps if config.warmup_epochs is None else round(config.warmup_epochs * steps_per_epoch)
    warmup_steps = min(wanted, steps)
    warmup = 1.0
    if step < warmup_steps:
        warmup = config.warmup_factor + (1 - config.warmup_factor) * step / warmup_steps
    if config.name == "cosine":
        return warmup * (1 + math.cos(math.pi * step / steps)) / 2
    return warmup * config.gamma ** sum(step >= round(milestone * steps) for milestone in config.milestones)


def build_optimizer(model: nn.Module, config: OptimizerConfig, batch_size: int) -> torch.optim.Optimizer:
    """SGD or AdamW over the trained parameters, in two groups for each rate: weights of layers, and all others."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    rates = backbone_rates(model, config)
    groups: list[dict[str, Any]] = []
    for rate in sorted({1.0, *rates.values()}, reverse=True):
        own = [(name, parameter) for name, parameter in trained if rates.get(name, 1.0) == rate]
        weights, others = (
            [parameter for name, parameter in own if is_layer_weight(name, parameter) == kind] for kind in (True, False)
        )
        # Optimizer states of earlier versions have no rates.
        extra = {} if rate == 1 else {"rate": rate}
        groups += [
            {"params": weights, "weight_decay": config.weight_decay, **extra},
            {"params": others, "weight_decay": config.weight_decay if config.decay_norm_and_bias else 0.0, **extra},
        ]
    lr = scaled_lr(config, batch_size)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, fused=True)


def backbone_rates(model: nn.Module, config: OptimizerConfig) -> dict[str, float]:
    """Factors of the rate by name of the parameter, for backbones: a stage's is ``layer_decay`` of the next one's."""
    if config.backbone_rate == config.layer_decay == 1:
        return {}
    return {
        f"{prefix}.body.{name}".removeprefix("."): config.backbone_rate * config.layer_decay ** (5 - level)
        for prefix, module in model.named_modules()
        if isinstance(module, Backbone)
        for name, level in module.stage_of_parameters().items()
    }


def is_layer_weight(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is the weight of a convolution or a linear layer, by name and shape.

    Norms' weights are vectors. Layer scales, position bias tables, tokens and temperatures have other names. (A traced
    backbone keeps the names of its layers, but not always their types.)
    """
    return name.rpartition(".")[2].startswith("weight") and parameter.ndim > 1


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("rate", 1.0)


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Any, path: object) -> None:
    """Load a checkpoint's state. Raises :class:`detector.errors.WeightsError` if it is another model's."""
    own = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not isinstance(saved, dict) or saved.keys() != own.keys() or not isinstance(saved["state"], dict):
        raise WeightsError(f"{path}: its optimizer entry is not an optimizer's state")
    if _without_lr(saved["param_groups"]) != _without_lr(own["param_groups"]):
        raise WeightsError(
            f"{path}: its optimizer is of another kind, or groups its parameters otherwise, as earlier versions did"
            " (by shape); start another run from its weights with --init-from"
        )
    for index, values in saved["state"].items():
        if index not in range(len(parameters)) or not isinstance(values, dict):
            raise WeightsError(f"{path}: its optimizer has a parameter {index!r} of {len(parameters)}")
        for name, value in values.items():
            where = f"optimizer: {name} of parameter {index}"
            if isinstance(value, Tensor):
                check_tensor(where, value, path)
                if value.ndim and value.shape != parameters[index].shape:
                    shape = list(parameters[index].shape)
                    raise WeightsError(f"{path}: {where} is {list(value.shape)}, the parameter {shape}")
            elif value is not None:
                raise WeightsError(f"{path}: {where} is a {type(value).__name__}, not a tensor")
    optimizer.load_state_dict(saved)


def _without_lr(groups: Any) -> Any:
    """The groups without the rate, which is set at every step."""
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        return None
    return [{key: value for key, value in group.items() if key != "lr"} for group in groups]
