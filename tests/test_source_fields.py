"""The config's fields that reproduce another package, each on its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from foreign import (
    make_image,
)
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torchvision.models import get_model
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from detector.config.schema import AnchorConfig, BackboneConfig, FPNConfig, PredictConfig, ResizeConfig
from detector.data.transforms.resize import input_size, resize
from detector.errors import ConfigError
from detector.models.backbones import build_backbone
from detector.models.fpn import FPN
from detector.ops.anchors import Anchors, cell_anchors, level_sizes
from detector.ops.coders import DeltaCoder
from detector.ops.postprocess import detect
from detector.structures import PADDING, Detections, Predictions

# --- the fields that reproduce a source, on their own -----------------------------------------------------------------


def test_rounded_anchors_by_hand() -> None:
    # 20 px at ratio 2: 20 / √2 = 14.14 wide and 28.28 high, from the middle ±7.07 and ±14.14: ±7 and ±14.
    # 20 px at ratio 0.5: the same lying down. A square of 20: ±10. Of 23: ±11.5, which rounds to the even ±12.
    rounded = cell_anchors(20, [0.5, 1.0, 2.0], [1.0], rounded=True)
    assert rounded.tolist() == [[-14, -7, 14, 7], [-10, -10, 10, 10], [-7, -14, 7, 14]]
    assert cell_anchors(23, [1.0], [1.0], rounded=True).tolist() == [[-12, -12, 12, 12]]
    assert cell_anchors(23, [1.0], [1.0]).tolist() == [[-11.5, -11.5, 11.5, 11.5]]
    config = AnchorConfig(ratios=[1.0], scales=[23 / 32], rounded=True)
    assert Anchors(config, [3])([(1, 1)])[0].tolist() == [[-12, -12, 12, 12]]


@pytest.mark.parametrize(
    ("strides", "expected"),
    [
        # An image of 160 × 96: P5 has 5 × 3 cells of 32, P6 3 × 2 and P7 2 × 1. Cells of P6 are 160 // 3 = 53 high
        # and 96 // 2 = 48 wide, of P7 80 high and 96 wide.
        ("from_size", {5: (32, 32), 6: (53, 48), 7: (80, 96)}),
        ("exact", {5: (32, 32), 6: (64, 64), 7: (128, 128)}),
    ],
)
def test_strides_by_hand(strides: str, expected: dict[int, tuple[int, int]]) -> None:
    levels = [3, 4, 5, 6, 7]
    sizes = level_sizes(160, 96, levels)
    assert sizes == [(20, 12), (10, 6), (5, 3), (3, 2), (2, 1)]
    config = AnchorConfig(ratios=[1.0], scales=[1.0], strides=strides)
    anchors, counts = Anchors(config, levels)(sizes)
    for level, of_level, (height, width) in zip(levels, anchors.split(counts), sizes, strict=True):
        centers = (of_level.view(height, width, 4)[..., :2] + of_level.view(height, width, 4)[..., 2:]) / 2
        stride_y, stride_x = expected.get(level, (2**level, 2**level))
        assert centers[:, 0, 1].tolist() == [stride_y * row for row in range(height)]
        assert centers[0, :, 0].tolist() == [stride_x * column for column in range(width)]
        assert (of_level[:, 2] - of_level[:, 0]).tolist() == [4 * 2**level] * (height * width)


@given(height=st.integers(1, 12), width=st.integers(1, 12))
def test_anchors_of_every_padded_size_are_torchvisions(height: int, width: int) -> None:
    levels = [3, 4, 5, 6, 7]
    height, width = 32 * height, 32 * width
    sizes = level_sizes(height, width, levels)
    steps = [1.0, 2 ** (1 / 3), 2 ** (2 / 3)]
    whole = tuple(tuple(int(4 * 2**level * step) for step in steps) for level in levels)
    scales = {
        level: {"scales": [side / (4 * 2**level) for side in row]} for level, row in zip(levels, whole, strict=True)
    }
    config = AnchorConfig.model_validate({"rounded": True, "strides": "from_size", "levels": scales})
    generator = AnchorGenerator(whole, ((0.5, 1.0, 2.0),) * 5)
    theirs = generator(
        ImageList(torch.zeros(1, 3, height, width), [(height, width)]), [torch.zeros(1, 1, *size) for size in sizes]
    )
    assert torch.equal(Anchors(config, levels)(sizes)[0], theirs[0])


@pytest.mark.parametrize("has_relu", [True, False])
def test_relu_before_p7(has_relu: bool) -> None:
    torch.manual_seed(0)
    fpn = FPN((3, 4, 5), (4, 4, 4), FPNConfig(channels=4, relu_before_p7=has_relu))
    *_, p6, p7 = fpn([torch.randn(1, 4, 32 // side, 32 // side) for side in (1, 2, 4)])
    assert (p6 < 0).any()
    expected = fpn.output["p7"](p6.clamp(min=0) if has_relu else p6)
    assert torch.equal(p7, expected)
    assert not torch.equal(p7, fpn.output["p7"](p6 if has_relu else p6.clamp(min=0)))


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d", "wide_resnet50_2"])
@pytest.mark.parametrize("in_1x1", [True, False])
def test_the_convolution_that_shrinks(name: str, in_1x1: bool) -> None:
    with torch.device("meta"):
        backbone = build_backbone(BackboneConfig(name=name, stride_in_1x1=in_1x1), 3, finest=3)
    strides = {key: module.stride for key, module in backbone.body.named_modules() if isinstance(module, nn.Conv2d)}
    for stage in (1, 2, 3, 4):
        for block in range(3):
            shrinking = 2 if stage > 1 and block == 0 else 1
            expected = (shrinking, 1) if in_1x1 else (1, shrinking)
            found = [strides[f"layer{stage}.{block}.conv{number}"] for number in (1, 2, 3)]
            assert found == [(expected[0],) * 2, (expected[1],) * 2, (1, 1)]
        if stage > 1:
            assert strides[f"layer{stage}.0.downsample.0"] == (2, 2)
    assert backbone.levels == (3, 4, 5)


@pytest.mark.parametrize("name", ["resnet10", "vgg11_bn", "timm:resnet18"])
def test_networks_without_a_1x1_that_shrinks(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^model\.backbone\.stride_in_1x1: "), torch.device("meta"):
        build_backbone(BackboneConfig(name=name, stride_in_1x1=True), 3, finest=3)


@pytest.mark.parametrize(
    ("norm", "eps", "expected"),
    [
        ("bn", None, 1e-5),
        ("bn", 0.0, 0.0),
        ("frozen_bn", None, 1e-5),
        ("frozen_bn", 0.0, 0.0),
        ("sync_bn", None, 1e-5),
        ("sync_bn", 1e-3, 1e-3),
    ],
)
def test_norm_eps(norm: str, eps: float | None, expected: float) -> None:
    backbone = build_backbone(BackboneConfig(name="resnet10", norm=norm, norm_eps=eps), 3, finest=3)
    kinds = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)
    norms = [module.eps for module in backbone.body.modules() if isinstance(module, kinds)]
    assert norms == [expected] * 12  # the stem's, two a block, and three that shrink


@pytest.mark.parametrize("name", ["vgg11", "swin_t", "timm:convnext_atto"])
def test_norm_eps_of_networks_without_batch_norm(name: str) -> None:
    expected = rf"^model\.backbone\.norm_eps: {name} has no batch norm; remove it"
    with pytest.raises(ConfigError, match=expected), torch.device("meta"):
        build_backbone(BackboneConfig(name=name, norm_eps=0.0), 3, finest=3)


def boxes_found(boxes: list[list[float]], scores: list[float], size: tuple[int, int], **config: Any) -> Detections:
    """One class; the boxes are the anchors."""
    logits = torch.tensor(scores).logit()[None, :, None]
    predictions = Predictions(logits, torch.zeros(1, len(boxes), 4), torch.tensor(boxes), [len(boxes)])
    found = detect(predictions, torch.tensor([size]), DeltaCoder(), PredictConfig(**config))
    return Detections(*(part[:, found.labels[0] >= 0] for part in found))


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        # Of an image 100 wide, [50, 0, 100, 40] and [60, 0, 100, 40] are to be seen: 40 of 50 columns, IoU 0.8. Not
        # cut, they are [50, 0, 250, 40] and [60, 0, 100, 40]: 40 of 200, IoU 0.2.
        ("before_nms", [[50, 0, 100, 40]]),
        ("after_nms", [[50, 0, 100, 40], [60, 0, 100, 40]]),
    ],
)
def test_clip_before_or_after_nms(clip: str, expected: list[list[float]]) -> None:
    found = boxes_found([[50.0, 0, 250, 40], [60.0, 0, 100, 40]], [0.9, 0.8], (50, 100), clip=clip)
    assert found.boxes[0].tolist() == expected
    assert found.labels[0].tolist() == [0] * len(expected)


@pytest.mark.parametrize("clip", ["before_nms", "after_nms"])
@pytest.mark.parametrize("keep_empty", [True, False])
def test_boxes_of_which_nothing_is_seen(clip: str, keep_empty: bool) -> None:
    boxes = [[10.0, 10, 30, 30], [120.0, 10, 140, 30], [40.0, -30, 60, -10]]
    found = boxes_found(boxes, [0.5, 0.9, 0.8], (50, 100), clip=clip, keep_empty=keep_empty)
    expected = [[10, 10, 30, 30]]
    if keep_empty:  # best first: one is left as a line at the right border, one at the upper
        expected = [[100, 10, 100, 30], [40, 0, 60, 0], *expected]
    assert found.boxes[0].tolist() == expected


def test_clipping_after_nms_pads_images_to_the_same_number() -> None:
    logits = torch.tensor([[2.0, 1.0], [1.0, 2.0]])[..., None]
    anchors = torch.tensor([[120.0, 10, 140, 30], [10.0, 10, 30, 30]])
    predictions = Predictions(logits, torch.zeros(2, 2, 4), anchors, [2])
    found = detect(predictions, torch.tensor([[50, 100], [50, 200]]), DeltaCoder(), PredictConfig(clip="after_nms"))
    assert found.labels.tolist() == [[0, PADDING], [0, 0]]
    assert found.boxes[0].tolist() == [[10, 10, 30, 30], [0, 0, 0, 0]]
    assert found.boxes[1].tolist() == [[10, 10, 30, 30], [120, 10, 140, 30]]
    assert found.scores[0, 1] == 0


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.sampled_from([(800, 1333), (64, 100), (640, 640), (1, 1), (511, 853)]),
)
@example(480, 640, (800, 1333))
@example(427, 640, (800, 1333))
@example(333, 500, (800, 1333))
@example(1, 3000, (800, 1333))
def test_sizes_rounded_down_are_torchvisions(height: int, width: int, limits: tuple[int, int]) -> None:
    transform = GeneralizedRCNNTransform(limits[0], limits[1], [0.0] * 3, [1.0] * 3).eval()
    ours = input_size(height, width, ResizeConfig(short=[limits[0]], long=limits[1], rounding="down"))
    try:
        theirs = transform.resize(torch.empty(3, height, width, device="meta"))[0].shape[1:]
    except (RuntimeError, ZeroDivisionError):  # it cannot make a side of 0, we make it 1
        assert 1 in ours
        return
    assert ours == tuple(theirs)


@pytest.mark.parametrize(("height", "width"), [(40, 60), (37, 91), (150, 190)])
def test_bilinear_is_torchvisions_and_area_is_not(height: int, width: int) -> None:
    image = make_image(100, 130, seed=4)
    expected = F.interpolate(image[None].float(), (height, width), mode="bilinear", align_corners=False)[0]
    pixels = image.permute(1, 2, 0).numpy()
    difference = {
        kind: (torch.from_numpy(resize(pixels, height, width, kind)).permute(2, 0, 1) - expected).abs().max()
        for kind in ("bilinear", "area")
    }
    assert difference["bilinear"] <= 1  # rounded to 8 bits
    assert (difference["area"] > 5) == (height < 100)


def test_area_does_not_alias_and_bilinear_does() -> None:
    stripes = np.zeros((8, 64, 1), dtype=np.uint8)
    stripes[:, ::4] = 255  # one column of four
    assert set(resize(stripes, 8, 16, "area").ravel().tolist()) == {64}  # 255 / 4
    assert set(resize(stripes, 8, 16, "bilinear").ravel().tolist()) == {0}  # between columns 1 and 2 of each four


def test_blocks_have_what_the_tests_above_count_on() -> None:
    assert isinstance(get_model("resnet18", weights=None).layer1[0], BasicBlock)
    assert isinstance(get_model("resnet50", weights=None).layer1[0], Bottleneck)
