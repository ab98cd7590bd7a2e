"""Activation checkpointing: the same mathematics, fewer tensors kept."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

from detector.config.schema import (
    AnchorConfig,
    BackboneConfig,
    FPNConfig,
    HeadConfig,
    ModelConfig,
    PyramidConfig,
    TrainConfig,
)
from detector.models import Model, build_model

CLASSIC = HeadConfig(name="classic")
PARTS = {
    "batch norm": ModelConfig(backbone=BackboneConfig(name="resnet10")),
    "frozen": ModelConfig(backbone=BackboneConfig(name="resnet18", norm="frozen_bn", freeze_at=2)),
    "dropped paths, attributes of the graph": ModelConfig(backbone=BackboneConfig(name="convnext_tiny")),
    "windows": ModelConfig(backbone=BackboneConfig(name="swin_t")),
    "squeeze": ModelConfig(backbone=BackboneConfig(name="mobilenet_v3_small", freeze_at=2)),
    "two": ModelConfig(
        backbone=None,
        pyramid=PyramidConfig(branches=[BackboneConfig(name=name) for name in ("mobilenet_v3_small", "resnet10")]),
    ),
    "classifier with dropout": ModelConfig(backbone=BackboneConfig(name="efficientnet_b0"), head=CLASSIC),
    "the whole network frozen": ModelConfig(backbone=BackboneConfig(name="resnet10", freeze_at=5)),
}


def make_model(config: ModelConfig) -> Model:
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    small = {
        "fpn": FPNConfig(levels=[3, 4, 5], channels=16),
        "anchors": AnchorConfig(ratios=[1.0], scales=[1.0]),
        "head": HeadConfig(num_convs=2, norm="gn"),
    }
    update = {} if config.head == CLASSIC else small
    return build_model(config.model_copy(update=update), num_classes=2).train()


def step(model: Model) -> tuple[list[Tensor | None], int]:
    """Gradients of a training step, and how many numbers its forward pass kept."""
    torch.manual_seed(1)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(images, torch.tensor([[64, 96], [60, 90]]))
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    outputs = [output] if isinstance(output, Tensor) else [output.cls_logits, output.box_channels]
    sum((output**2).sum() for output in outputs).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    return gradients, sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in own)


@pytest.mark.parametrize("part", PARTS)
def test_gradients_and_statistics_are_the_same(part: str) -> None:
    model = make_model(PARTS[part])
    other = copy.deepcopy(model)
    other.recompute_activations()
    expected, kept = step(model)
    recomputed, kept_less = step(other)
    assert sum(gradient is not None for gradient in expected) > 5
    for own, others in zip(expected, recomputed, strict=True):
        assert (own is None) == (others is None)
        if own is not None:
            assert_close(others, own, rtol=1e-6, atol=1e-6)
    assert kept_less < 0.8 * kept

    # Running statistics and batch counts too: recomputing must not average twice.
    assert model.state_dict().keys() == other.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_statistics_are_counted_once_more_in_the_next_step() -> None:
    model = make_model(PARTS["batch norm"])
    model.recompute_activations()
    step(model)
    step(model)
    counts = {int(tensor) for name, tensor in model.state_dict().items() if name.endswith("num_batches_tracked")}
    assert counts == {2}


def test_prediction_and_copies_are_those_of_the_model() -> None:
    model = make_model(PARTS["squeeze"])
    images, sizes = torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64, 64]])
    with torch.no_grad():
        expected = model.eval()(images, sizes).cls_logits
        model.recompute_activations()
        assert torch.equal(model(images, sizes).cls_logits, expected)
        copied = copy.deepcopy(model)
        assert torch.equal(copied(images, sizes).cls_logits, expected)
    copied.train()
    step(copied)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_compiling_decides_by_itself_what_to_keep() -> None:
    with pytest.raises(ValueError, match="compile chooses by itself what to keep"):
        TrainConfig(compile=True, activation_checkpointing=True)
