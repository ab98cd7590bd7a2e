"""Checkpoints of torchvision give the same logits, deltas, anchors and boxes as there, and go back to it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from foreign import (
    SIZES,
    Pair,
    assert_close,
    assert_same_outputs,
    drawn,
    imported,
    make_image,
    outputs_of,
    outputs_of_torchvision,
    pair_of,
    randomised,
    small_retinanet,
)
from torch import Tensor
from torchvision.models import get_model
from torchvision.models.detection import RetinaNet, retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FrozenBatchNorm2d

from detector.checkpoints.checkpoint import checkpoint_categories, checkpoint_config, load_model
from detector.checkpoints.foreign.source import COCO, RESNETS
from detector.checkpoints.foreign.torchvision import to_torchvision
from detector.checkpoints.opening import import_checkpoint
from detector.config.loader import config_to_dict
from detector.config.schema import BackboneConfig, Config, FPNConfig, PredictConfig
from detector.errors import ConfigError, WeightsError
from detector.models import build_model
from detector.structures import Category

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
