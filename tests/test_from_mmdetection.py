"""Checkpoints of MMDetection give the same logits, deltas, anchors and boxes as there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from foreign import (
    ANCHORS,
    Outputs,
    State,
    assert_close,
    assert_same_detections,
    calibrate,
    drawn,
    imported,
    make_image,
    outputs_of,
)
from torch import Tensor
from torchvision.models import get_model
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, clip_boxes_to_image

from detector.checkpoints.checkpoint import checkpoint_categories, checkpoint_config, load_model
from detector.checkpoints.foreign.source import COCO
from detector.config.schema import AnchorConfig, Config, FPNConfig
from detector.ops.coders import build_box_coder
from detector.structures import Category

# --- MMDetection ------------------------------------------------------------------------------------------------------


# MMDetection's detectors by their output layers: anchors per cell, and channels per box.
MMDETECTION = {"retina": (ANCHORS, 4), "atss": (1, 4), "gfl": (1, 4 * 11)}


def mmdetection_shapes(
    network: str, num_classes: int, channels: int, has_gn: bool = False, kind: str = "retina", is_v2: bool = False
) -> dict[str, torch.Size]:
    with torch.device("meta"):
        body = get_model(network, weights=None)
    own = {name: tensor.shape for name, tensor in body.state_dict().items() if not name.startswith("fc.")}
    shapes = {f"backbone.{name}": list(shape) for name, shape in own.items()}

    def convolution(name: str, out_channels: int, in_channels: int, kernel: int, has_bias: bool = True) -> None:
        shapes[f"{name}.weight"] = [out_channels, in_channels, kernel, kernel]
        if has_bias:
            shapes[f"{name}.bias"] = [out_channels]

    for place in range(3):
        convolution(f"neck.lateral_convs.{place}.conv", channels, body.inplanes >> (2 - place), 1)
    for place in range(5):
        from_c5 = place == 3 and kind == "retina"
        convolution(f"neck.fpn_convs.{place}.conv", channels, body.inplanes if from_c5 else channels, 3)
    for tower in ("cls", "reg"):
        for layer in range(4):
            convolution(f"bbox_head.{tower}_convs.{layer}.conv", channels, channels, 3, has_bias=not has_gn)
            if has_gn:
                shapes.update({f"bbox_head.{tower}_convs.{layer}.gn.{part}": [channels] for part in ("weight", "bias")})
    anchors, width = MMDETECTION[kind]
    convolution(f"bbox_head.{kind}_cls", anchors * num_classes, channels, 3)
    convolution(f"bbox_head.{kind}_reg", anchors * width, channels, 3)
    if kind != "retina":
        shapes.update({f"bbox_head.scales.{level}.scale": [] for level in range(5)})
    if kind == "atss":
        convolution("bbox_head.atss_centerness", 1, channels, 3)
    if kind == "gfl":
        shapes["bbox_head.integral.project"] = [11]
    if is_v2:
        convolution("bbox_head.reg_conf.0", 64, 20, 1)
        convolution("bbox_head.reg_conf.2", 1, 64, 1)
    return {name: torch.Size(shape) for name, shape in shapes.items()}


def mmdetection_forward(
    state: State, images: Tensor, kind: str = "retina"
) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """Logits [1, N, K], box channels [1, N, C] and the levels' sizes, of normalised images."""

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        groups = x.shape[1] // weight.shape[1]
        return F.conv2d(x, weight, state.get(f"{name}.bias"), stride, weight.shape[-1] // 2, groups=groups)

    def norm(name: str, x: Tensor) -> Tensor:
        return F.batch_norm(x, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    x = F.relu(norm("backbone.bn1", conv("backbone.conv1", images, 2)))
    x = F.max_pool2d(x, 3, 2, 1)
    stages = []
    for stage in range(1, 5):
        block = 0
        while (name := f"backbone.layer{stage}.{block}") + ".conv1.weight" in state:
            stride = 2 if stage > 1 and block == 0 else 1
            is_bottleneck = f"{name}.conv3.weight" in state  # its 3×3 shrinks ("pytorch" style)
            out = F.relu(norm(f"{name}.bn1", conv(f"{name}.conv1", x, 1 if is_bottleneck else stride)))
            out = norm(f"{name}.bn2", conv(f"{name}.conv2", out, stride if is_bottleneck else 1))
            if is_bottleneck:
                out = norm(f"{name}.bn3", conv(f"{name}.conv3", F.relu(out)))
            if f"{name}.downsample.0.weight" in state:
                x = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", x, stride))
            x, block = F.relu(out + x), block + 1
        stages.append(x)
    merged = [conv(f"neck.lateral_convs.{place}.conv", stages[place + 1]) for place in range(3)]
    for place in (1, 0):
        merged[place] = merged[place] + F.interpolate(merged[place + 1], merged[place].shape[2:])
    levels = [conv(f"neck.fpn_convs.{place}.conv", feature) for place, feature in enumerate(merged)]
    levels.append(conv("neck.fpn_convs.3.conv", stages[-1] if kind == "retina" else levels[-1], 2))
    levels.append(conv("neck.fpn_convs.4.conv", levels[-1], 2))

    def head(tower: str, last: str, width: int) -> Tensor:
        rows = []
        for index, level in enumerate(levels):
            for layer in range(4):
                name = f"bbox_head.{tower}_convs.{layer}"
                level = conv(f"{name}.conv", level)
                if f"{name}.gn.weight" in state:
                    level = F.group_norm(level, 32, state[f"{name}.gn.weight"], state[f"{name}.gn.bias"])
                level = F.relu(level)
            output = conv(f"bbox_head.{last}", level)
            if last == f"{kind}_reg" and kind != "retina":
                output = output * state[f"bbox_head.scales.{index}.scale"]
            rows.append(output.permute(0, 2, 3, 1).reshape(1, -1, width))
        return torch.cat(rows, dim=1)

    anchors, width = MMDETECTION[kind]
    logits = head("cls", f"{kind}_cls", len(state[f"bbox_head.{kind}_cls.bias"]) // anchors)
    channels = head("reg", f"{kind}_reg", width)
    if "bbox_head.reg_conf.0.weight" in state:  # GFLv2
        top = channels.unflatten(-1, (4, -1)).softmax(dim=-1).topk(4).values
        statistics = torch.cat([top, top.mean(dim=-1, keepdim=True)], dim=-1).flatten(-2).mT  # [1, 20, N]
        hidden = conv("bbox_head.reg_conf.0", statistics[..., None]).relu()
        quality = conv("bbox_head.reg_conf.2", hidden)[..., 0].mT.sigmoid()
        logits = (logits.sigmoid() * quality).logit()
    if kind == "atss":  # its factor is applied after the choice of candidates
        channels = torch.cat([channels, head("reg", "atss_centerness", 1)], dim=-1)
    return logits, channels, [tuple(level.shape[2:]) for level in levels]


def mmdetection_anchors(sizes: list[tuple[int, int]]) -> Tensor:
    """Of its AnchorGenerator(octave_base_scale=4, scales_per_octave=3, ratios=[0.5, 1, 2]), scale-major."""
    anchors = []
    for stride, (height, width) in zip((8, 16, 32, 64, 128), sizes, strict=True):
        root = np.sqrt(np.array([0.5, 1.0, 2.0]))[:, None]
        scales = 4 * 2 ** (np.arange(3) / 3)
        half_width, half_height = ((stride * scales * factor).ravel() / 2 for factor in (1 / root, root))
        cell = np.stack([-half_width, -half_height, half_width, half_height], axis=1)
        y, x = np.meshgrid(np.arange(height) * stride, np.arange(width) * stride, indexing="ij")
        anchors.append((np.stack([x, y, x, y], axis=-1)[:, :, None] + cell).reshape(-1, 4))
    return torch.from_numpy(np.concatenate(anchors)).float()


def mmdetection_detections(
    raw: tuple[Tensor, Tensor, list[tuple[int, int]]], size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Score threshold and 1000 best of each level, decoded, clipped, what is empty left out, then NMS, 100."""
    (logits, deltas, sizes), anchors = raw, mmdetection_anchors(raw[2])
    boxes, scores, labels, start = [], [], [], 0
    for height, width in sizes:
        level = slice(start, start := start + height * width * ANCHORS)
        anchor, label = torch.nonzero(logits[0, level].sigmoid() > 0.05, as_tuple=True)
        score, best = logits[0, level].sigmoid()[anchor, label].sort(descending=True)
        anchor, label = anchor[best[:1000]], label[best[:1000]]
        box = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode_single(deltas[0, level][anchor], anchors[level][anchor])
        box = clip_boxes_to_image(box, size)
        is_kept = ((box[:, 2:] - box[:, :2]) > 0).all(dim=1)
        for parts, part in ((boxes, box), (scores, score[:1000]), (labels, label)):
            parts.append(part[is_kept])
    found = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
    kept = batched_nms(*found, 0.5)[:100]
    return found[0][kept], found[1][kept], found[2][kept]


def mmdetection_input(image: Tensor) -> Tensor:
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    normalised = (image - mean[:, None, None]) / std[:, None, None]
    height, width = image.shape[1:]
    return F.pad(normalised, (0, -width % 32, 0, -height % 32))[None]


@pytest.mark.parametrize(
    ("network", "num_classes", "has_gn", "meta"),
    [
        ("resnet18", 3, False, None),
        ("resnet18", 80, False, "dataset_meta"),
        ("resnext50_32x4d", 2, True, "CLASSES"),
    ],
)
@torch.inference_mode()
def test_mmdetections_names_and_values(
    network: str, num_classes: int, has_gn: bool, meta: str | None, scratch: Path
) -> None:
    state = drawn(mmdetection_shapes(network, num_classes, 64, has_gn), seed=8)
    wide = mmdetection_input(make_image(256, 256, seed=8))
    calibrate(state, "bbox_head.retina_cls", "bbox_head.retina_reg", lambda: mmdetection_forward(state, wide)[:2], -4.0)
    names = [category.name for category in COCO] if num_classes == 80 else [f"kind {row}" for row in range(num_classes)]
    content: dict[str, Any] = {"state_dict": state}
    if meta == "dataset_meta":  # version 3
        content["meta"] = {"dataset_meta": {"classes": names}, "epoch": 12}
    elif meta == "CLASSES":  # version 2
        content["meta"] = {"CLASSES": tuple(names)}
    made = imported(content if meta else state, scratch)
    assert made.source == "mmdetection"
    assert sorted([*made.used, *made.ignored]) == sorted(state)
    config = checkpoint_config(made.content, "x")
    assert config.model.backbone.name == network
    assert config.model.fpn == FPNConfig(channels=64, relu_before_p7=False)
    assert config.data.resize == Config().data.resize.model_copy(update={"interpolation": "bilinear"})
    assert config.model.anchors == AnchorConfig()
    categories = checkpoint_categories(made.content)
    if num_classes == 80:
        assert categories == COCO
    elif meta:
        assert categories == [Category(label, name) for label, name in enumerate(names)]
    else:
        assert [category.name for category in categories] == [f"class {label}" for label in range(num_classes)]

    image = make_image(150, 201, seed=2)
    raw = mmdetection_forward(state, mmdetection_input(image))
    theirs = Outputs(raw[0][0], raw[1][0], mmdetection_anchors(raw[2]), *mmdetection_detections(raw, (150, 201)))
    ours = outputs_of(load_model(made.content, "x"), config, image)
    assert_close(ours.logits, theirs.logits)
    assert_close(ours.deltas, theirs.deltas)
    torch.testing.assert_close(ours.anchors, theirs.anchors, rtol=0, atol=1e-4)  # theirs are made in float64
    assert_same_detections(ours, theirs)


@pytest.mark.parametrize(("kind", "is_v2"), [("atss", False), ("gfl", False), ("gfl", True)])
@torch.inference_mode()
def test_mmdetections_dense_heads(kind: str, is_v2: bool, scratch: Path) -> None:
    """ATSS and GFL; GFLv2's authors build on the same package."""
    state = drawn(mmdetection_shapes("resnet18", 3, 64, has_gn=True, kind=kind, is_v2=is_v2), seed=8)
    for level in range(5):
        state[f"bbox_head.scales.{level}.scale"] = torch.tensor(1.0 + level / 4)
    made = imported({"state_dict": state}, scratch)
    config = checkpoint_config(made.content, "x")
    assert made.source == "mmdetection"
    assert made.ignored == (["bbox_head.integral.project"] if kind == "gfl" else [])
    assert (config.model.fpn.p6_from, config.model.fpn.relu_before_p7) == ("p5", False)
    assert config.model.box_coder.reg_max == (10 if kind == "gfl" else 16)
    assert config.model.predict.nms_threshold == 0.6

    image = make_image(150, 201, seed=2)
    model, images = load_model(made.content, "x"), mmdetection_input(image)
    theirs, channels, sizes = mmdetection_forward(state, images, kind)
    padded = F.pad(image, (0, images.shape[3] - 201, 0, images.shape[2] - 150))[None]
    ours = model(padded.to(torch.uint8), torch.tensor([[150, 201]]))
    assert_close(ours.cls_logits, theirs)
    assert_close(ours.box_channels, channels[..., : ours.box_channels.shape[-1]])
    cell = torch.tensor([-4.0, -4, 4, 4])  # in strides, around the cell's corner
    strides = [8, 16, 32, 64, 128]
    grids = [
        torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy") * 2, dim=-1).reshape(-1, 4)
        for height, width in sizes
    ]
    expected = torch.cat([stride * (grid + cell) for stride, grid in zip(strides, grids, strict=True)])
    torch.testing.assert_close(ours.anchors, expected)

    boxes = build_box_coder(config.model.box_coder).decode(ours.box_channels, ours.anchors)[0]
    if kind == "gfl":
        unit = torch.tensor(strides).repeat_interleave(torch.tensor(ours.level_counts))[:, None]
        sides = (channels[0].unflatten(-1, (4, 11)).softmax(dim=-1) @ torch.arange(11.0)) * unit
        centers = (expected[:, :2] + expected[:, 2:]) / 2
        theirs = torch.cat([centers - sides[:, :2], centers + sides[:, 2:]], dim=1)
    else:
        theirs = BoxCoder((10.0, 10.0, 5.0, 5.0)).decode_single(channels[0, :, :4], expected)
        assert_close(ours.quality, channels[..., 4])
    torch.testing.assert_close(boxes, theirs, rtol=1e-4, atol=1e-2)
