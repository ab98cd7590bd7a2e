"""Networks that cost little: built without drawing their weights, or so small that all around them takes longer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch import nn

from detector.config.schema import Config, ModelConfig
from detector.models.backbones import Network

MAX_IOU = str(Path(__file__).with_name("max_iou.yaml"))  # a config
TINY_BACKBONE = "model.backbone={name: tiny, norm: bn}"  # where BACKBONES has it, which a test or short.py says


@contextmanager
def undrawn() -> Iterator[None]:
    """Build networks in memory as it is, for weights that are loaded or not looked at: drawing takes longer than that.

    What constructors set to zeros, ones or a constant is set.
    """
    with pytest.MonkeyPatch.context() as patch:
        for draw in ("normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_", "trunc_normal_", "xavier_uniform_"):
            patch.setattr(nn.init, draw, lambda tensor, *_, **__: tensor)
        yield


def on_resnet10(config: Config) -> Config:
    """With all that it says, but the network: pyramids of the others learn in test_pyramid.py."""
    tree = config.model.model_dump()
    for branch in [tree["backbone"]] if tree["backbone"] else tree["pyramid"]["branches"]:
        branch["name"] = "resnet10"
    return config.model_copy(update={"model": ModelConfig.model_validate(tree)})


class Tiny(nn.Sequential):
    """Five convolutions, each of stride 2; a ResNet has dozens."""

    def __init__(self) -> None:
        pairs = itertools.pairwise([3, 8, 8, 8, 8, 8])
        super().__init__(
            *(
                nn.Sequential(nn.Conv2d(*pair, 3, 2, 1), nn.BatchNorm2d(pair[1]), nn.ReLU(inplace=True))
                for pair in pairs
            )
        )


TINY = Network(Tiny, "")
