"""Initialise a model as its config says: from a checkpoint, its backbones' weights, or randomly."""

from __future__ import annotations

from typing import Any

from detector.checkpoints.backbone_weights import follow_weights, load_backbone_weights
from detector.checkpoints.checkpoint import checkpoint_config
from detector.checkpoints.transfer import missing_parts, other_conventions, transfer
from detector.config.schema import BackboneConfig, Config
from detector.errors import ConfigError, WeightsError
from detector.models import Model
from detector.models.backbones import Backbone
from detector.structures import Category


def begin_normalise(config: Config, content: dict[str, Any] | None, path: str) -> tuple[Config, str]:
    """The config with the normalisation of its weights: those of the checkpoint at ``path``, or its backbones'."""
    checkpoint = checkpoint_config(content, path).model if content else None
    model, line = follow_weights(config.model, checkpoint)
    return config.model_copy(update={"model": model}), line


def load_start(
    model: Model, config: Config, categories: list[Category], content: dict[str, Any] | None
) -> tuple[list[str], str | None]:
    """Load a new model's initial weights; returns lines that say what came from where, and a full report.

    ``content`` is that of the checkpoint ``model.weights``, where the config names one.
    """
    if content is None:
        backbones = [module for module in model.modules() if isinstance(module, Backbone)]
        pairs = zip(backbones, config.model.backbones, strict=True)
        return [load_backbone_weights(backbone, section) for backbone, section in pairs], None
    source = str(config.model.weights)
    outcome = transfer(model, categories, content, source)
    counts_on_weights = any(_is_frozen(section) or section.weights for section in config.model.backbones)
    missing = [name for name in outcome.random if ".backbone." in name]
    if missing and counts_on_weights:
        raise WeightsError(
            f"{source}: {missing[0]} and {len(missing) - 1} more tensors of the backbone are not in it"
            f" ({outcome.random[missing[0]]}), and would stay random; use the checkpoint's model.backbone"
        )
    origin = checkpoint_config(content, source)
    lines = [f"from {source} ({origin.task}): {outcome.summary()}"]
    if origin.task == config.task:
        lines += missing_parts(outcome)
    return [*lines, *other_conventions(config, origin, source)], outcome.report()


def check_frozen(config: Config) -> None:
    """Refuse to freeze random weights."""
    for section in config.model.backbones:
        if _is_frozen(section) and section.weights is None and config.model.weights is None:
            key = "norm: frozen_bn" if section.norm == "frozen_bn" else f"freeze_at: {section.freeze_at}"
            raise ConfigError(
                f"model.backbone.{key} freezes random weights of {section.name}, which trains nothing; set weights,"
                " give model.weights or --init-from, or use norm: bn and freeze_at: 0"
            )


def _is_frozen(section: BackboneConfig) -> bool:
    return section.norm == "frozen_bn" or section.freeze_at > 0
