"""Checkpoints of Detectron2 give the same logits, deltas, anchors and boxes as there."""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from foreign import (
    ANCHORS,
    Outputs,
    State,
    assert_close,
    assert_same_detections,
    imported,
    outputs_of,
)
from torch import Tensor, nn

from detector.checkpoints.checkpoint import checkpoint_config, load_model
from detector.checkpoints.foreign.importing import Imported
from detector.checkpoints.opening import import_checkpoint
from detector.config.schema import AnchorConfig, BackboneConfig, FPNConfig, PredictConfig
from detector.errors import WeightsError
from detector.models import Model

# --- Detectron2 -------------------------------------------------------------------------------------------------------

# Detectron2 has three ratios for each of three scales, we have three scales for each ratio: our anchor's place there.
PLACES = [0, 3, 6, 1, 4, 7, 2, 5, 8]


class Golden(NamedTuple):
    state: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    model: Model
    made: Imported


@pytest.fixture(scope="module")
def golden(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    """What Detectron2 itself put out, and ours of its state dict in a file such as its model zoo has."""
    folder = shared / "peers/detectron2_golden"
    spec = importlib.util.spec_from_file_location("fill", folder / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    state = module.state_dict()
    path = tmp_path_factory.mktemp("detectron2") / "model_final.pkl"
    with path.open("wb") as file:
        pickle.dump({"model": state, "__author__": "Detectron2 Model Zoo"}, file, protocol=2)
    made = import_checkpoint(str(path))
    path.unlink()
    outputs = dict(np.load(folder / "outputs.npz"))
    return Golden(state, outputs, load_model(made.content, path), made)


@pytest.mark.parametrize("number", range(3))
def test_detectron2s_outputs(golden: Golden, number: int) -> None:
    config = checkpoint_config(golden.made.content, "x")
    theirs = {name: torch.from_numpy(golden.outputs[f"{name}_{number}"]) for name in ("image", "logits", "deltas")}
    found = {name: torch.from_numpy(golden.outputs[f"{name}_{number}"]) for name in ("boxes", "scores", "classes")}
    anchors = torch.from_numpy(golden.outputs[f"anchors_{number}"])
    order = torch.arange(len(anchors)).view(-1, ANCHORS)[:, PLACES].flatten()
    original = tuple(golden.outputs[f"original_size_{number}"].tolist())
    ours = outputs_of(golden.model, config, theirs["image"].permute(2, 0, 1), original)
    assert_close(ours.logits, theirs["logits"][order])
    assert_close(ours.deltas, theirs["deltas"][order])
    assert torch.equal(ours.anchors, anchors[order])
    assert len(found["scores"]) == 100
    detections = Outputs(theirs["logits"], theirs["deltas"], anchors, found["boxes"], found["scores"], found["classes"])
    assert_same_detections(ours, detections)


def test_what_reproduces_detectron2_stands_in_the_config(golden: Golden) -> None:
    config = checkpoint_config(golden.made.content, "x")
    assert config.model.backbone == BackboneConfig(name="resnet50", norm="frozen_bn", stride_in_1x1=True)
    assert (config.model.std, config.model.mean) == ([1.0, 1.0, 1.0], [123.675, 116.28, 103.53])
    assert config.model.predict == PredictConfig(clip="after_nms")
    assert (config.model.anchors, config.model.fpn) == (AnchorConfig(), FPNConfig())
    assert not golden.made.ignored
    assert sorted(golden.made.used) == sorted(golden.state)


def test_detectron2s_checkpoint_of_training(golden: Golden, scratch: Path) -> None:
    """A .pth with the same tensors, and what Detectron2 keeps beside them."""
    state = {name: torch.from_numpy(array) for name, array in golden.state.items()}
    extra = {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
    extra["anchor_generator.cell_anchors.0"] = torch.zeros(9, 4)
    made = imported({"model": {**state, **extra}, "iteration": 89999}, scratch)
    assert made.source == "detectron2"
    assert sorted(made.ignored) == sorted(extra)
    assert all(
        torch.equal(tensor, golden.made.content["model"][name]) for name, tensor in made.content["model"].items()
    )


@pytest.mark.parametrize(
    ("num_ratios", "num_scales"),
    [(1, 1), (2, 3), (3, 2)],
)
def test_detectron2s_order_of_other_anchors(num_ratios: int, num_scales: int, tmp_path: Path) -> None:
    num_classes, channels, per_cell = 2, 8, num_ratios * num_scales
    state = detectron2_state(num_classes, channels, per_cell)
    # Each row says which it is: the anchor's scale and ratio, and its class or side.
    for name, rows in (("head.cls_score", num_classes), ("head.bbox_pred", 4)):
        codes = [
            100 * scale + 10 * ratio + row
            for scale in range(num_scales)
            for ratio in range(num_ratios)
            for row in range(rows)
        ]
        state[f"{name}.bias"] = torch.tensor(codes, dtype=torch.float32)
        state[f"{name}.weight"] = state[f"{name}.bias"][:, None, None, None].repeat(1, channels, 3, 3)
    overrides = (
        f"model.anchors.ratios={[0.5, 1.0, 2.0][:num_ratios]}",
        f"model.anchors.scales={[1.0, 1.3, 1.6][:num_scales]}",
    )
    content = imported(state, tmp_path, overrides=overrides).content["model"]
    for name, rows in (("head.cls_output", num_classes), ("head.box_output", 4)):
        expected = [
            100 * scale + 10 * ratio + row
            for ratio in range(num_ratios)
            for scale in range(num_scales)
            for row in range(rows)
        ]
        assert content[f"{name}.bias"].tolist() == expected
        assert content[f"{name}.weight"][:, 1, 2, 0].tolist() == expected


def detectron2_state(num_classes: int, channels: int, per_cell: int = ANCHORS) -> State:
    """Zeros in the names and shapes of Detectron2's R50, one number for all of a tensor."""
    shapes: dict[str, list[int]] = {}

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.norm.{part}": [width] for part in ("weight", "bias", "running_mean", "running_var")})

    def convolution(name: str, out_channels: int, in_channels: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = [out_channels, in_channels, kernel, kernel]
        shapes[f"{name}.bias"] = [out_channels]

    def plain(name: str, out_channels: int, in_channels: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = [out_channels, in_channels, kernel, kernel]
        norm(name, out_channels)

    plain("backbone.bottom_up.stem.conv1", 64, 3, 7)
    width = 64
    for stage, blocks in enumerate((3, 4, 6, 3), start=2):
        inner, out = 16 * 2**stage, 64 * 2**stage
        for block in range(blocks):
            name = f"backbone.bottom_up.res{stage}.{block}"
            if block == 0:
                plain(f"{name}.shortcut", out, width, 1)
            plain(f"{name}.conv1", inner, width, 1)
            plain(f"{name}.conv2", inner, inner, 3)
            plain(f"{name}.conv3", out, inner, 1)
            width = out
    for level in (3, 4, 5):
        convolution(f"backbone.fpn_lateral{level}", channels, 64 * 2**level, 1)
        convolution(f"backbone.fpn_output{level}", channels, channels, 3)
    convolution("backbone.top_block.p6", channels, width, 3)
    convolution("backbone.top_block.p7", channels, channels, 3)
    for subnet in ("cls_subnet", "bbox_subnet"):
        for layer in range(0, 8, 2):
            convolution(f"head.{subnet}.{layer}", channels, channels, 3)
    convolution("head.cls_score", per_cell * num_classes, channels, 3)
    convolution("head.bbox_pred", per_cell * 4, channels, 3)
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


class Detectron2Head(nn.Module):
    """Detectron2's RetinaNetHead with MODEL.RETINANET.NORM: every convolution of its subnets has a bias and a norm."""

    def __init__(self, channels: int, num_classes: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        for name in ("cls_subnet", "bbox_subnet"):
            layers = [
                layer
                for _ in range(4)
                for layer in (nn.Conv2d(channels, channels, 3, padding=1), norm(channels), nn.ReLU())
            ]
            setattr(self, name, nn.Sequential(*layers))
        self.cls_score = nn.Conv2d(channels, ANCHORS * num_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, ANCHORS * 4, 3, padding=1)

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        """[B, N, K] and [B, N, 4]: row, column, anchor."""
        found = [(self.cls_score(self.cls_subnet(x)), self.bbox_pred(self.bbox_subnet(x))) for x in levels]
        logits, deltas = (
            torch.cat([y.unflatten(1, (ANCHORS, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3) for y in kind], dim=1)
            for kind in zip(*found, strict=True)
        )
        return logits, deltas


class CycledNorms(nn.ModuleList):
    """Detectron2's CycleBatchNormList: statistics of each level, weight and bias of all."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.BatchNorm2d(channels, affine=False) for _ in range(5))
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))


def with_head(head: nn.Module, num_classes: int, channels: int) -> State:
    state = {name: tensor for name, tensor in detectron2_state(num_classes, channels).items() if "head." not in name}
    return state | {f"head.{name}": tensor for name, tensor in head.state_dict().items()}


def test_detectron2s_head_with_group_norm_and_biases(scratch: Path) -> None:
    torch.manual_seed(3)
    head = Detectron2Head(64, 2, partial(nn.GroupNorm, 32)).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    made = imported({"model": with_head(head, 2, 64)}, scratch)
    config = checkpoint_config(made.content, "x").model.head
    assert (config.norm, config.norm_bias, config.num_convs) == ("gn", True, 4)
    features = [torch.randn(2, 64, *size) for size in ((6, 10), (3, 5), (2, 3), (1, 2), (1, 1))]
    with torch.no_grad():
        expected = head(features)
        found = load_model(made.content, "x").head(features)
    order = torch.arange(expected[0].shape[1]).view(-1, ANCHORS)[:, PLACES].flatten()
    assert_close(found.cls_logits, expected[0][:, order])
    assert_close(found.box_channels, expected[1][:, order])
    assert expected[0].std() > 0.1


@pytest.mark.parametrize("norm", [CycledNorms, nn.BatchNorm2d], ids=["one for each level", "shared"])
def test_detectron2s_head_with_batch_norms_is_refused(norm: Callable[[int], nn.Module], scratch: Path) -> None:
    state = with_head(Detectron2Head(64, 2, norm), 2, 64)
    with pytest.raises(WeightsError, match=r"cls_subnet\.1\..*its head has batch norms.*one per level.*are read$"):
        imported({"model": state}, scratch)


def test_those_names_are_detectron2s(golden: Golden) -> None:
    expected = {name: array.shape for name, array in golden.state.items()}
    assert {name: tensor.shape for name, tensor in detectron2_state(7, 256).items()} == expected
