"""Checkpoints of torchvision, Detectron2 and MMDetection: the same logits, deltas, anchors and boxes as there.

Weights are drawn from seeds so that activations keep their scale, logits stay below 10 and a few per cent of the scores
pass the threshold. "To 1e-5" is the largest difference, in parts of the largest number: float32 with two orders of
summation does not give more.
"""

from __future__ import annotations

import importlib.util
import math
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.detection import RetinaNet, retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.models.detection._utils import BoxCoder, overwrite_eps
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d, batched_nms, clip_boxes_to_image
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detector.checkpoints.checkpoint import checkpoint_categories, checkpoint_config, load_model
from detector.checkpoints.foreign.importing import Imported
from detector.checkpoints.foreign.source import COCO, RESNETS
from detector.checkpoints.foreign.torchvision import to_torchvision
from detector.checkpoints.opening import import_checkpoint
from detector.config.loader import config_to_dict
from detector.config.schema import AnchorConfig, BackboneConfig, Config, FPNConfig, PredictConfig, ResizeConfig
from detector.data.loading.collate import pad_images
from detector.data.transforms.resize import input_size, resize
from detector.errors import ConfigError, WeightsError
from detector.models import Model, build_model
from detector.models.backbones import build_backbone
from detector.models.fpn import FPN
from detector.ops.anchors import Anchors, cell_anchors, level_sizes
from detector.ops.coders import DeltaCoder, build_box_coder
from detector.ops.postprocess import detect
from detector.structures import PADDING, Batch, Category, Detections, Predictions, Targets
from detector.tasks import detection

State = dict[str, Tensor]

CLOSE = 1e-5  # of the largest number
PIXEL = 2e-3  # group norm sums in another order, which processors do in yet another
TIE = 1e-5
SIZES = [(256, 384), (161, 223)]
ANCHORS = 9  # a cell


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder for files of a hundred megabytes, which no run leaves behind."""
    yield tmp_path
    shutil.rmtree(tmp_path)


# --- weights and images ---------------------------------------------------------------------------------------------


def draw(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if name.endswith("running_var"):
        return 0.5 + noise.abs()
    if name.endswith("running_mean"):
        return 0.1 * noise
    if name.endswith("bias"):
        return 0.02 * noise
    if len(shape) == 1:  # the weight of a norm
        return 0.8 + 0.1 * noise
    return noise * math.sqrt(1.3 / math.prod(shape[1:]))


def drawn(shapes: dict[str, torch.Size], seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    counts = {name: torch.tensor(7) for name in shapes if name.endswith("num_batches_tracked")}
    return {name: counts[name] if name in counts else draw(name, shape, generator) for name, shape in shapes.items()}


def make_image(height: int, width: int, seed: int = 0) -> Tensor:
    """[3, H, W] uint8: blurred blobs and some noise."""
    generator = torch.Generator().manual_seed(seed)
    blobs = torch.rand(1, 3, height // 24 + 2, width // 24 + 2, generator=generator) * 255
    blobs = F.interpolate(blobs, (height, width), mode="bicubic", align_corners=False)[0]
    return (blobs + 12 * torch.randn(3, height, width, generator=generator)).clamp(0, 255).to(torch.uint8)


@torch.inference_mode()
def calibrate(state: State, cls: str, box: str, outputs: Callable[[], tuple[Tensor, Tensor]], mean: float) -> None:
    """Scale the last layers to logits around ``mean`` and deltas around 0; ``outputs`` gives both as [1, N, ...]."""
    generator = torch.Generator().manual_seed(5)
    for name in (f"{cls}.bias", f"{box}.bias"):
        state[name].zero_()
    for name, output, spread in zip((cls, box), outputs(), (0.7, 0.1), strict=True):
        bias = state[f"{name}.bias"]
        by_channel = output.reshape(-1, len(bias))
        factor = spread / (by_channel - by_channel.mean(dim=0)).std()
        state[f"{name}.weight"].mul_(factor)
        bias.copy_(-factor * by_channel.mean(dim=0) + 0.3 * spread * torch.randn(bias.shape, generator=generator))
    state[f"{cls}.bias"].add_(mean)


class Outputs(NamedTuple):
    logits: Tensor  # [N, K]
    deltas: Tensor  # [N, 4]
    anchors: Tensor  # [N, 4]
    boxes: Tensor  # [D, 4]
    scores: Tensor  # [D]
    labels: Tensor  # [D]


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=CLOSE * float(theirs.abs().max()))


def assert_same_detections(ours: Outputs, theirs: Outputs) -> None:
    """The same labels and boxes in the same order; two scores within a ``TIE`` have no order, in float32."""
    assert len(theirs.scores) > 20
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=TIE)
    left = list(range(len(ours.scores)))
    for score, label, box in zip(theirs.scores, theirs.labels, theirs.boxes, strict=True):
        is_same = (ours.labels == label) & ((ours.boxes - box).abs().amax(dim=1) < PIXEL)
        is_same &= (ours.scores - score).abs() < TIE
        found = [place for place in left if is_same[place]]
        # Of equal ones at the end of a full list, either may be the last.
        assert found or (score - theirs.scores[-1] < TIE and len(left) == 1), (score, label, box)
        left.remove(found[0] if found else left[0])


# --- torchvision ------------------------------------------------------------------------------------------------------


def small_retinanet(
    network: str,
    num_classes: int,
    channels: int = 64,
    norm: type[nn.Module] = nn.BatchNorm2d,
    has_gn: bool = False,
    p6_from: str = "c5",
    anchors: AnchorGenerator | None = None,
) -> RetinaNet:
    """torchvision's RetinaNet from its parts."""
    body = get_model(network, weights=None, norm_layer=norm)
    widths = [body.inplanes // 4, body.inplanes // 2, body.inplanes]
    extra = LastLevelP6P7(channels if p6_from == "p5" else widths[-1], channels)
    layers = {"layer2": "0", "layer3": "1", "layer4": "2"}
    backbone = BackboneWithFPN(body, layers, widths, channels, extra_blocks=extra)
    per_cell = anchors.num_anchors_per_location()[0] if anchors else ANCHORS
    norm_layer = partial(nn.GroupNorm, 32) if has_gn else None
    head = RetinaNetHead(channels, per_cell, num_classes, norm_layer=norm_layer)
    return RetinaNet(backbone, num_classes, head=head, anchor_generator=anchors)


def randomised(
    build: Callable[[], RetinaNet], seed: int, unused: list[int] | None = None, mean: float = -5.0
) -> RetinaNet:
    """With weights and statistics of a seed; ``unused`` are classes that never occur, as ids that COCO left out."""
    with torch.device("meta"):
        model = build()
    model = model.to_empty(device="cpu").eval()
    state = model.state_dict()
    model.load_state_dict(drawn({name: tensor.shape for name, tensor in state.items()}, seed))
    head = "head.classification_head.cls_logits", "head.regression_head.bbox_reg"

    def outputs() -> tuple[Tensor, Tensor]:
        output = model.head(list(model.backbone(make_image(256, 256, seed)[None] / 64 - 2).values()))
        return output["cls_logits"], output["bbox_regression"]

    calibrate(state, *head, outputs, mean)
    if unused:
        bias = state[f"{head[0]}.bias"].view(model.head.classification_head.num_anchors, -1)
        with torch.inference_mode():
            bias[:, unused] = -20
    return model


@torch.inference_mode()
def outputs_of_torchvision(model: RetinaNet, image: Tensor) -> Outputs:
    """For an image as it is, not resized."""
    seen: dict[str, Any] = {}
    handles = [
        model.head.register_forward_hook(lambda _, __, output: seen.update(output)),
        model.anchor_generator.register_forward_hook(lambda _, __, output: seen.update(anchors=output[0])),
    ]
    model.transform.min_size, model.transform.max_size = (min(image.shape[1:]),), max(image.shape[1:])
    found = model([image / 255])[0]
    for handle in handles:
        handle.remove()
    raw = seen["cls_logits"][0], seen["bbox_regression"][0], seen["anchors"]
    return Outputs(*raw, found["boxes"], found["scores"], found["labels"])


@torch.inference_mode()
def outputs_of(model: Model, config: Config, image: Tensor, original: tuple[int, int] | None = None) -> Outputs:
    size = torch.tensor([image.shape[1:]])
    # In the layout that the others compute in: convolutions of images channels last round otherwise.
    images = pad_images([image]).contiguous()
    predictions = model(images, size)
    nothing = Targets(torch.zeros(1, 1, 4), torch.full((1, 1), PADDING))
    batch = Batch(images, size, torch.tensor([original]) if original else size, nothing, torch.zeros(1))
    found = detection.predict(predictions, batch, config.model)
    raw = predictions.cls_logits[0], predictions.box_channels[0], predictions.anchors
    is_kept = found.labels[0] != PADDING
    return Outputs(*raw, *(part[0, is_kept] for part in (found.boxes, found.scores, found.labels)))


def imported(
    state: Any, folder: Path, name: str = "model.pth", config: str | None = None, overrides: tuple[str, ...] = ()
) -> Imported:
    torch.save(state, folder / name)
    made = import_checkpoint(str(folder / name), config=config, overrides=overrides)
    (folder / name).unlink()
    return made


class Pair(NamedTuple):
    theirs: RetinaNet
    content: dict[str, Any]
    ours: Model
    config: Config
    ids: list[int]  # our classes among theirs


def pair_of(theirs: RetinaNet, made: Imported) -> Pair:
    rows = theirs.head.classification_head.num_classes
    ids = [category.id for category in checkpoint_categories(made.content)] if rows == 91 else list(range(rows))
    ours, config = load_model(made.content, "x"), checkpoint_config(made.content, "x")
    return Pair(theirs, made.content, ours, config, ids)


def assert_same_outputs(pair: Pair, image: Tensor) -> Outputs:
    theirs, ours = outputs_of_torchvision(pair.theirs, image), outputs_of(pair.ours, pair.config, image)
    logits = theirs.logits[:, pair.ids]
    assert 3 < logits.abs().max() < 20
    assert_close(ours.logits, logits)
    assert_close(ours.deltas, theirs.deltas)
    assert torch.equal(ours.anchors, theirs.anchors)
    assert_same_detections(ours._replace(labels=torch.tensor(pair.ids)[ours.labels]), theirs)
    return ours


UNUSED = sorted(set(range(91)) - {category.id for category in COCO})
SMALL = (70, 101)
BUILDERS: dict[str, tuple[Callable[..., RetinaNet], int]] = {
    "v1": (retinanet_resnet50_fpn, 5),
    "v2": (retinanet_resnet50_fpn_v2, 91),
}


@pytest.fixture(scope="module", params=BUILDERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """torchvision's own two, and ours of their state dicts."""
    build, num_classes = BUILDERS[request.param]
    build = partial(build, weights=None, weights_backbone=None, num_classes=num_classes)
    theirs = randomised(build, seed=3, unused=UNUSED if num_classes == 91 else None)
    return pair_of(theirs, imported(theirs.state_dict(), tmp_path_factory.mktemp("torchvision")))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_torchvisions_models_give_the_same(pair: Pair, size: tuple[int, int]) -> None:
    found = assert_same_outputs(pair, make_image(*size, seed=size[0]))
    # In the large one is more than they may keep: the limit is torchvision's too.
    assert len(found.scores) == 300 or size != SIZES[0]


def test_what_reproduces_torchvision_stands_in_the_config(pair: Pair) -> None:
    config, is_v2 = pair.config, len(pair.ids) == 80
    assert config.model.backbone == BackboneConfig(name="resnet50", norm="bn")
    assert config.model.fpn == FPNConfig(p6_from="c5" if is_v2 else "p5")
    assert config.model.head.norm == ("gn" if is_v2 else "none")
    assert (config.data.resize.rounding, config.data.resize.interpolation) == ("down", "bilinear")
    assert (config.data.resize.short, config.data.resize.long) == ([800], 1333)
    assert config.model.predict == PredictConfig(max_detections=300, keep_empty=True)
    assert config.model.anchors.rounded
    # torchvision's sizes are whole pixels: 32 · 2^(1/3) = 40.3 is 40, 32 · 2^(2/3) = 50.8 is 50.
    assert config.model.anchors.at_level(3).base_size * np.array(config.model.anchors.at_level(3).scales) == (
        pytest.approx([32, 40, 50])
    )
    categories = checkpoint_categories(pair.content)
    if is_v2:
        assert len(categories) == 80
        assert categories[0] == Category(1, "person")
        assert categories[11] == Category(13, "stop sign")  # 12 is not a class
        assert categories[-1] == Category(90, "toothbrush")
    else:
        assert categories == [Category(label, f"class {label}") for label in range(5)]


def test_every_tensor_of_the_source_is_used_once_or_named(scratch: Path) -> None:
    state = randomised(partial(small_retinanet, "resnet18", 2), seed=1).state_dict()
    made = imported(state, scratch)
    lines = [re.fullmatch(r"(used|ignored) +(\S+)(?: -> (\S+))?", line) for line in made.report().splitlines()]
    assert sorted(line[2] for line in lines if line) == sorted(state)
    assert sorted(line[3] for line in lines if line and line[1] == "used") == sorted(made.content["model"])
    # Our own norms have the count too, so that everything of a bn model is used; a frozen one has none.
    assert not made.ignored
    assert made.source == "torchvision"
    assert made.content["source"] == "torchvision: model.pth"


# What is in the parts, and in our config of them.
PARTS: dict[str, tuple[Callable[[], RetinaNet], dict[str, Any]]] = {
    "resnet18, frozen": (
        partial(small_retinanet, "resnet18", 3, norm=FrozenBatchNorm2d),
        {"backbone": {"name": "resnet18", "norm": "frozen_bn"}},
    ),
    "resnet34, one class, P6 from P5": (
        partial(small_retinanet, "resnet34", 1, p6_from="p5"),
        {"backbone": {"name": "resnet34"}, "fpn": {"p6_from": "p5"}},
    ),
    "resnet18, COCO": (partial(small_retinanet, "resnet18", 91), {"backbone": {"name": "resnet18"}}),
    "resnext50, GN": (
        partial(small_retinanet, "resnext50_32x4d", 2, has_gn=True),
        {"backbone": {"name": "resnext50_32x4d"}, "head": {"norm": "gn"}},
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_torchvisions_parts_give_the_same(name: str, scratch: Path) -> None:
    build, expected = PARTS[name]
    theirs = randomised(build, seed=4, unused=UNUSED if "COCO" in name else None, mean=-3.5)
    state = theirs.state_dict()
    pair = pair_of(theirs, imported(state, scratch))
    fpn = {"channels": 64, **expected.get("fpn", {})}
    assert pair.config.model.backbone == BackboneConfig.model_validate(expected["backbone"])
    assert pair.config.model.fpn == FPNConfig.model_validate(fpn)
    assert pair.config.model.head.norm == expected.get("head", {}).get("norm", "none")
    assert_same_outputs(pair, make_image(*SMALL))
    assert_export_is_identical(pair)


def test_the_names_of_torchvisions_older_versions(scratch: Path) -> None:
    theirs = randomised(partial(small_retinanet, "resnet18", 3, p6_from="p5"), seed=5, mean=-4.0)
    state = {
        re.sub(r"((?:inner|layer)_blocks\.\d)\.0\.", r"\1.", name): tensor
        for name, tensor in theirs.state_dict().items()
    }
    state = {
        re.sub(r"_head\.conv\.(\d)\.0\.", lambda match: f"_head.conv.{2 * int(match[1])}.", name): tensor
        for name, tensor in state.items()
    }
    assert "backbone.fpn.inner_blocks.0.weight" in state
    assert "head.regression_head.conv.6.bias" in state
    # So torchvision reads them too.
    other = small_retinanet("resnet18", 3, p6_from="p5").eval()
    other.load_state_dict(state)
    pair = pair_of(other, imported(state, scratch))
    assert_same_outputs(pair, make_image(*SMALL))


def test_the_published_weights_without_eps(scratch: Path) -> None:
    theirs = randomised(partial(small_retinanet, "resnet18", 3, norm=FrozenBatchNorm2d), seed=6, mean=-4.0)
    # Small variances, as some channels of trained networks have: eps makes a difference there.
    for name, tensor in theirs.state_dict().items():
        if name.endswith("bn1.running_var"):
            tensor.mul_(1e-3)
        elif name.endswith("bn1.weight"):
            tensor.mul_(math.sqrt(1e-3))
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    image = make_image(*SMALL)
    with_eps = pair_of(theirs, imported(state, scratch))
    assert with_eps.config.model.backbone.norm_eps is None
    assert_same_outputs(with_eps, image)
    overwrite_eps(theirs, 0.0)  # what torchvision does after loading this very file
    without = pair_of(theirs, imported(state, scratch, name="retinanet_resnet50_fpn_coco-eeacb38b.pth"))
    assert without.config.model.backbone.norm_eps == 0.0
    assert_same_outputs(without, image)
    logits = [outputs_of(pair.ours, pair.config, image).logits for pair in (with_eps, without)]
    assert (logits[0] - logits[1]).abs().max() > 1e-2


def test_other_anchors_by_a_config(scratch: Path) -> None:
    # Two sizes and two ratios: four a cell.
    sizes = tuple((side * 2**level, 1.5 * side * 2**level) for level, side in enumerate([20.0] * 5))
    anchors = AnchorGenerator(sizes, ((0.5, 2.0),) * 5)
    theirs = randomised(partial(small_retinanet, "resnet18", 3, anchors=anchors), seed=7, mean=-3.5)
    scales = [20 / 32, 30 / 32]
    path = scratch / "anchors.yaml"
    tree = {"ratios": [0.5, 2.0], "scales": scales, "levels": {level: {"scales": scales} for level in range(3, 8)}}
    path.write_text(yaml.safe_dump({"model": {"anchors": tree}}))
    pair = pair_of(theirs, imported(theirs.state_dict(), scratch, config=str(path)))
    assert pair.config.model.anchors.per_cell == 4
    assert_same_outputs(pair, make_image(*SMALL))
    with pytest.raises(WeightsError, match=r"has 4 anchors per cell, the config 9; give the model\.anchors .*--config"):
        imported(theirs.state_dict(), scratch)


def test_overrides_stand_above_what_the_source_has(scratch: Path) -> None:
    state = randomised(partial(small_retinanet, "resnet18", 2), seed=1).state_dict()
    made = imported(state, scratch, overrides=("model.predict.max_detections=7", "data.resize.short=[64]"))
    config = checkpoint_config(made.content, "x")
    assert (config.model.predict.max_detections, config.data.resize.short) == (7, [64])
    assert config.model.predict.keep_empty
    with pytest.raises(ConfigError, match=r"command line: model\.predict\.max_detection: unknown key"):
        imported(state, scratch, overrides=("model.predict.max_detection=7",))


@pytest.mark.parametrize("network", sorted(set(RESNETS) - {"resnet18", "resnet34", "resnet50"}))
def test_every_resnet_is_recognised(network: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        state = small_retinanet(network, 2).state_dict()
    # Without numbers: one zero that stands for all of a tensor.
    state = {name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for name, tensor in state.items()}
    torch.save(state, tmp_path / "model.pth")
    assert (tmp_path / "model.pth").stat().st_size < 1e6
    del state
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "contiguous", lambda tensor: tensor)  # which would make them whole
        made = import_checkpoint(str(tmp_path / "model.pth"))
    assert made.content["config"]["model"]["backbone"]["name"] == network


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


# --- back to torchvision ----------------------------------------------------------------------------------------------


def assert_export_is_identical(pair: Pair) -> None:
    """torchvision loads it strictly; it is what was imported, but for classes that never occur."""
    state = pair.theirs.state_dict()
    exported = to_torchvision(pair.content, "x")
    assert exported.keys() == state.keys()
    rows = pair.theirs.head.classification_head.num_classes
    for name, tensor in exported.items():
        if "cls_logits" in name and rows == 91:
            own, other = (t.view(-1, rows, *t.shape[1:])[:, pair.ids] for t in (tensor, state[name]))
            assert torch.equal(own, other)
        else:
            assert torch.equal(tensor, state[name]), name


def test_torchvisions_models_come_back_identical(pair: Pair) -> None:
    assert_export_is_identical(pair)
    build, num_classes = BUILDERS["v2" if len(pair.ids) == 80 else "v1"]
    with torch.device("meta"):
        model = build(weights=None, weights_backbone=None, num_classes=num_classes)
    model = model.to_empty(device="cpu").eval()
    assert not any(model.load_state_dict(to_torchvision(pair.content, "x"), strict=True))
    image = make_image(*SMALL)
    before, after = (outputs_of_torchvision(which, image) for which in (pair.theirs, model))
    assert len(before.scores) > 20
    assert torch.equal(after.logits[:, pair.ids], before.logits[:, pair.ids])
    for name in ("deltas", "boxes", "scores", "labels"):
        assert torch.equal(getattr(after, name), getattr(before, name)), name
    if num_classes == 91:
        unused = after.logits[:, UNUSED]  # at a score of 0.01, wherever one looks: ln(0.01 / 0.99)
        torch.testing.assert_close(unused, torch.full_like(unused, -math.log(99)))


OWN = {"backbone": {"name": "resnet18"}, "fpn": {"channels": 32}}


def own_checkpoint(model: dict[str, Any], ids: list[int], **more: Any) -> dict[str, Any]:
    """A checkpoint's content with weights of a seed."""
    config = Config.model_validate({"model": {**OWN, **model}, **more.pop("sections", {})})
    categories = [Category(number, f"kind {number}") for number in ids]
    torch.manual_seed(3)
    built = build_model(config.model, len(categories)).eval()
    shapes = {name: tensor.shape for name, tensor in built.state_dict().items()}
    return {
        "format": 1,
        "config": config_to_dict(config),
        "categories": [category._asdict() for category in categories],
        "model": drawn(shapes, seed=9),
        **more,
    }


@pytest.mark.parametrize(("ids", "has_gn"), [([0, 1, 2], True), ([7, 2, 90], False)], ids=str)
@torch.inference_mode()
def test_our_own_models_in_torchvision(ids: list[int], has_gn: bool) -> None:
    content = own_checkpoint({"fpn": {"channels": 64}, "head": {"norm": "gn" if has_gn else "none"}}, ids)
    model = small_retinanet("resnet18", max(ids) + 1, has_gn=has_gn).eval()
    exported = to_torchvision(content, "x")
    assert not any(model.load_state_dict(exported, strict=True))
    image = make_image(*SMALL)
    theirs = outputs_of_torchvision(model, image)
    ours = outputs_of(load_model(content, "x"), checkpoint_config(content, "x"), image)
    assert_close(ours.logits, theirs.logits[:, ids])
    assert_close(ours.deltas, theirs.deltas)
    others = sorted(set(range(max(ids) + 1)) - set(ids))
    torch.testing.assert_close(theirs.logits[:, others].sigmoid(), torch.full((len(theirs.logits), len(others)), 0.01))


def test_what_is_exported_is_what_predicts(scratch: Path) -> None:
    """The average, where training kept one; also through a file, and back in."""
    content = own_checkpoint({}, [3, 5])
    content["ema"] = {name: tensor + 1 for name, tensor in content["model"].items()}
    exported = to_torchvision(content, "x")
    assert torch.equal(exported["backbone.body.conv1.weight"], content["ema"]["pyramid.backbone.body.conv1.weight"])
    # In torchvision's file, classes are rows: 0 to 5.
    again = imported(exported, scratch)
    assert len(again.content["categories"]) == 6
    assert sorted(again.content["model"]) == sorted(content["model"])
    same = [name for name in content["ema"] if "cls_output" not in name]
    assert all(torch.equal(again.content["model"][name], content["ema"][name]) for name in same)


# What torchvision's RetinaNet cannot be, and the key that the line names.
NOT_TORCHVISIONS: dict[str, dict[str, Any]] = {
    "model.backbone.stride_in_1x1": {"backbone": {"name": "resnet50", "stride_in_1x1": True}},
    "model.in_channels": {"in_channels": 1},
    "model.normalise": {"normalise": {"std": [1.0, 1.0, 1.0]}},
    "model.normalise, mean": {"normalise": {"mean": [0.0, 0.0, 0.0]}},
    "model.fpn.levels": {"fpn": {"levels": [3, 4, 5], "channels": 32}},
    "model.fpn.relu_before_p7": {"fpn": {"relu_before_p7": False}},
    "model.fpn.norm": {"fpn": {"norm": "bn"}},
    "model.fpn.activation": {"fpn": {"activation": "relu"}},
    "model.fpn.upsample": {"fpn": {"upsample": "bilinear"}},
    "model.fpn.output_conv": {"fpn": {"output_conv": False}},
    "model.head.num_convs": {"head": {"num_convs": 2}},
    "model.head.channels": {"head": {"channels": 64}},
    "model.head.norm_bias": {"head": {"norm": "gn", "norm_bias": True}},
}


@pytest.mark.parametrize(
    "model",
    [{"fpn": {"channels": 48}, "head": {"norm": "gn"}}, {"backbone": {"name": "resnet18", "norm_eps": 0.1}}],
    ids=str,
)
def test_norms_that_torchvision_computes_otherwise_are_refused(model: dict[str, Any]) -> None:
    # torchvision's group norm has 32 groups, ours of 48 channels has 16. Its batch norm has an eps of 1e-5.
    with pytest.raises(WeightsError):
        to_torchvision(own_checkpoint(model, [0, 1]), "x")


@pytest.mark.parametrize("key", NOT_TORCHVISIONS)
def test_what_torchvision_cannot_hold_is_refused(key: str) -> None:
    config = Config.model_validate({"model": {**OWN, **NOT_TORCHVISIONS[key]}})
    content = {"config": config_to_dict(config), "categories": [{"id": 1, "name": "x"}], "model": {}}
    with pytest.raises(WeightsError) as caught:
        to_torchvision(content, "some/best.pt")
    assert str(caught.value).startswith(f"some/best.pt: torchvision's RetinaNet needs {key.partition(',')[0]} ")
    assert ", not " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "task", "said"),
    [
        ({"head": {"name": "pooled"}}, "classification", "is classification on resnet50; torchvision has detection"),
        ({"backbone": {"name": "resnet10"}}, "detection", "is detection on resnet10; .* on one of resnet18, resnet34,"),
        ({"pyramid": {"branches": ["resnet18", "resnet34"]}}, "detection", r"is detection on resnet18 \+ resnet34; "),
    ],
)
def test_other_networks_and_tasks_are_not_exported(model: dict[str, Any], task: str, said: str) -> None:
    config = Config.model_validate({"task": task, "model": model})
    content = {"config": config_to_dict(config), "categories": [{"id": 1, "name": "x"}], "model": {}}
    with pytest.raises(WeightsError, match=f"^x: {said}"):
        to_torchvision(content, "x")


@pytest.mark.parametrize("key", ["channels", "p6_from"])
def test_what_torchvision_can_hold_is_not(key: str) -> None:
    value = {"channels": 64, "p6_from": "p5"}[key]
    exported = to_torchvision(own_checkpoint({"fpn": {"channels": 32, key: value}}, [0, 1]), "x")
    model = small_retinanet(
        "resnet18", 2, channels=64 if key == "channels" else 32, p6_from="p5" if key == "p6_from" else "c5"
    )
    assert not any(model.load_state_dict(exported, strict=True))


# --- what is not a RetinaNet ------------------------------------------------------------------------------------------


def test_a_backbone_is_no_retinanet(scratch: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"is not a RetinaNet of torchvision \(head\..* its first tensor is conv1\.weight"
    ):
        imported(get_model("resnet18", weights=None).state_dict(), scratch)


@pytest.mark.parametrize(
    "value", [[], {}, {"model": {}}, {"a": 1}, {"model": [torch.zeros(1)]}, 3, "text", None], ids=str
)
def test_what_holds_no_tensors_is_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"model\.pth: is neither a checkpoint nor a state dict"):
        imported(value, tmp_path)


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
