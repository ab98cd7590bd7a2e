"""The detection task: its loss against a loop, its predictions in the original image's pixels, its rows and scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import TINY
from torch import Tensor
from torch.testing import assert_close
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import box_iou, distance_box_iou_loss, generalized_box_iou_loss, sigmoid_focal_loss

from detector.checkpoints.checkpoint import checkpoint_categories, read_checkpoint, save_checkpoint
from detector.config import tasks
from detector.config.schema import (
    AnchorConfig,
    BackboneConfig,
    BoxCoderConfig,
    Config,
    FPNConfig,
    HeadConfig,
    LossConfig,
    MatcherConfig,
    ModelConfig,
    PredictConfig,
)
from detector.data.formats.reading import read_annotations
from detector.errors import ConfigError
from detector.evaluation.tally import Tally, merge
from detector.models import build_model
from detector.models.backbones import BACKBONES
from detector.models.heads import HEADS
from detector.ops.anchors import Anchors, level_sizes
from detector.ops.assignment import ASSIGNERS, assign
from detector.ops.coders import BOX_CODERS, DeltaCoder, build_box_coder
from detector.ops.losses import BOX_LOSSES, CLASS_LOSSES
from detector.structures import (
    BACKGROUND,
    IGNORE,
    PADDING,
    Assignment,
    Batch,
    Category,
    Detections,
    Predictions,
    Targets,
)
from detector.tasks import detection, detection_results, detection_views, get_core, get_task

SIDE, NUM_CLASSES = 64, 3


def random_predictions(num_images: int) -> Predictions:
    levels = [3, 4, 5]
    anchors, counts = Anchors(AnchorConfig(), levels)(level_sizes(SIDE, SIDE, levels))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_images, len(anchors), NUM_CLASSES, generator=generator) - 2
    deltas = 0.3 * torch.randn(num_images, len(anchors), 4, generator=generator)
    return Predictions(logits.requires_grad_(), deltas.requires_grad_(), anchors, counts)


CROWD = torch.tensor([[[0.0, 0, 40, 40]]])  # an ignore region


def make_targets(*images: list[tuple[list[float], int]], regions: Tensor | None = None) -> Targets:
    """Padded targets of images given as (box, label) pairs, with at least one row of padding in each."""
    most = 1 + max(len(objects) for objects in images)
    boxes, labels = torch.zeros(len(images), most, 4), torch.full((len(images), most), PADDING)
    for image, objects in enumerate(images):
        for row, (box, label) in enumerate(objects):
            boxes[image, row], labels[image, row] = torch.tensor(box), label
    return Targets(boxes, labels, regions)


OBJECTS = (
    [([3.0, 5, 30, 33], 0), ([20.0, 8, 60, 50], 2)],
    [([10.0, 10, 22, 40], 1)],
    [],
)


def total(losses: detection.Losses) -> Tensor:
    return torch.stack(list(losses.parts.values())).sum()


# --- loss -------------------------------------------------------------------------------------------------------------


def naive_box_loss(name: str, deltas: Tensor, anchors: Tensor, boxes: Tensor, config: LossConfig) -> Tensor:
    coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
    if name == "giou":
        return generalized_box_iou_loss(coder.decode_single(deltas, anchors), boxes, reduction="sum")
    true_deltas = coder.encode_single(boxes, anchors)
    if name == "l1":
        return (deltas - true_deltas).abs().sum()
    return F.smooth_l1_loss(deltas, true_deltas, beta=config.beta, reduction="sum")


@pytest.mark.parametrize("box", ["smooth_l1", "l1", "giou"])
def test_loss_equals_a_loop_with_torchvisions_parts(box: str) -> None:
    predictions = random_predictions(len(OBJECTS))
    config = ModelConfig(loss=LossConfig(box=box, alpha=0.3, gamma=1.5, cls_weight=2.0, box_weight=0.5))
    losses = detection.loss(predictions, make_targets(*OBJECTS), config)

    cls_loss, box_loss, num_positives = torch.zeros(()), torch.zeros(()), 0
    for image, objects in enumerate(OBJECTS):
        logits, deltas = predictions.cls_logits[image], predictions.box_channels[image]
        is_class = torch.zeros_like(logits)
        is_counted = torch.ones(len(logits), dtype=torch.bool)
        if objects:
            boxes = torch.tensor([box for box, _ in objects])
            match = Matcher(0.5, 0.4, allow_low_quality_matches=True)(box_iou(boxes, predictions.anchors))
            is_counted = match != -2
            for anchor in (match >= 0).nonzero()[:, 0].tolist():
                target = int(match[anchor])
                is_class[anchor, objects[target][1]] = 1
                pair = predictions.anchors[anchor][None], boxes[target][None]
                box_loss = box_loss + naive_box_loss(box, deltas[anchor][None], *pair, config.loss)
                num_positives += 1
        cls_loss = cls_loss + sigmoid_focal_loss(logits[is_counted], is_class[is_counted], 0.3, 1.5, reduction="sum")
    assert num_positives > 10
    assert set(losses.parts) == {"cls", "box"}
    assert losses.normaliser.item() == num_positives
    assert_close(losses.parts["cls"], 2.0 * cls_loss, rtol=1e-4, atol=1e-4)
    assert_close(losses.parts["box"], 0.5 * box_loss, rtol=1e-4, atol=1e-4)
    gradients = torch.autograd.grad(total(losses), [predictions.cls_logits, predictions.box_channels])
    expected = torch.autograd.grad(2.0 * cls_loss + 0.5 * box_loss, [predictions.cls_logits, predictions.box_channels])
    assert_close(gradients, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("box", BOX_LOSSES)
@pytest.mark.parametrize("cls", CLASS_LOSSES)
@pytest.mark.parametrize("matcher", ASSIGNERS)
def test_an_image_without_objects_is_a_good_negative(matcher: str, cls: str, box: str) -> None:
    predictions = random_predictions(1)
    config = ModelConfig(matcher=MatcherConfig(name=matcher), loss=LossConfig(cls=cls, box=box))
    losses = detection.loss(predictions, make_targets([]), config)
    assert losses.normaliser.item() == 0
    assert losses.parts["cls"].isfinite()
    assert losses.parts["cls"] > 0
    assert losses.parts["box"] == 0
    total(losses).backward()
    assert (predictions.cls_logits.grad > 0).all()  # every score goes down
    assert (predictions.box_channels.grad == 0).all()  # not None, so that ranks agree on which tensors have gradients


# Published combinations of parts, with one square anchor per cell.
ONE_ANCHOR = {"anchors": {"base_size": 8.0, "ratios": [1.0], "scales": [1.0]}}
GFL = {
    "matcher": {"name": "atss"},
    "box_coder": {"name": "distribution"},
    "loss": {"cls": "quality_focal", "box": "giou", "box_weight": 2.0, "weigh_boxes": "score"},
}
RECIPES = {
    "ATSS": {
        "matcher": {"name": "atss"},
        "head": {"quality": "centerness"},
        "box_coder": {"stds": [0.1, 0.2]},
        "loss": {"box": "giou", "box_weight": 2.0, "weigh_boxes": "quality"},
    },
    "ATSS with IoU": {
        "matcher": {"name": "atss"},
        "head": {"quality": "iou"},
        "loss": {"box": "diou", "weigh_boxes": "quality", "quality_weight": 0.5},
    },
    "GFL": GFL,
    "GFLv2": GFL | {"head": {"quality": "distribution"}},
    "VFL": {"matcher": {"name": "atss"}, "loss": {"cls": "varifocal", "box": "giou", "weigh_boxes": "quality"}},
    "TOOD": {
        "matcher": {"name": "task_aligned", "iou_power": 2.0},
        "loss": {"cls": "quality_focal", "box": "giou", "weigh_boxes": "quality"},
    },
    "nine anchors": {"anchors": {}, "loss": {"cls": "quality_focal", "box": "giou"}},
}


def recipe(name: str) -> ModelConfig:
    tree = ONE_ANCHOR | RECIPES[name] | {"backbone": {"name": "tiny"}, "fpn": {"channels": 16, "levels": [3, 4, 5]}}
    tree["head"] = {"num_convs": 1, "level_scales": True} | tree.get("head", {})
    return ModelConfig.model_validate(tree)


def predictions_of(config: ModelConfig, num_images: int) -> Predictions:
    """Random numbers of the shapes that the config's head gives; they require gradients."""
    levels, generator = [3, 4, 5], torch.Generator().manual_seed(0)
    anchors, counts = Anchors(config.anchors, levels)(level_sizes(SIDE, SIDE, levels))
    shape, channels = (num_images, len(anchors)), build_box_coder(config.box_coder).num_channels
    logits = torch.randn(*shape, NUM_CLASSES, generator=generator) - 2
    boxes = 0.3 * torch.randn(*shape, channels, generator=generator)
    has_branch = config.head.quality in ("centerness", "iou")
    quality = torch.randn(shape, generator=generator).requires_grad_() if has_branch else None
    return Predictions(logits.requires_grad_(), boxes.requires_grad_(), anchors, counts, quality)


@pytest.mark.parametrize("name", RECIPES)
def test_loss_of_a_recipe_equals_the_published_formulas(name: str) -> None:
    """Of one image, with only its positives: box losses are divided by the sum of their own weights."""
    config, targets = recipe(name), make_targets(OBJECTS[0])
    predictions, coder = predictions_of(config, 1), build_box_coder(config.box_coder)
    anchors, logits, score = predictions.anchors, predictions.cls_logits[0], predictions.cls_logits[0].sigmoid()
    losses = detection.loss(predictions, targets, config)
    total(losses).backward()
    assert all(part.grad.isfinite().all() for part in predictions if isinstance(part, Tensor) and part.requires_grad)

    found = assign(anchors, predictions.level_counts, targets, predictions, coder, config.matcher)
    own = (found.target[0] >= 0).nonzero()[:, 0]  # [P]
    assert len(own) > 4
    boxes, labels = (part[0, found.target[0, own]] for part in targets[:2])
    decoded = coder.decode(predictions.box_channels[0, own], anchors[own])
    iou = box_iou(decoded, boxes).diagonal().detach()
    centers = (anchors[own, :2] + anchors[own, 2:]) / 2
    low, high = centers - boxes[:, :2], boxes[:, 2:] - centers
    ratios = (torch.minimum(low, high) / torch.maximum(low, high)).prod(dim=1)
    aligned = found.quality[0, own] if name == "TOOD" else None

    target = torch.zeros_like(logits)
    target[own, labels] = {"ATSS": torch.ones(len(own)), "ATSS with IoU": torch.ones(len(own)), "TOOD": aligned}.get(
        name, iou
    )
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    cls = {
        "focal": sigmoid_focal_loss(logits, target),
        "quality_focal": (score - target) ** 2 * entropy,
        "varifocal": torch.where(target > 0, target, 0.75 * score**2) * entropy,
    }[config.loss.cls][found.target[0] != IGNORE].sum()
    normaliser = float(aligned.sum()) if name == "TOOD" else len(own)
    assert losses.normaliser.item() == pytest.approx(normaliser)
    assert_close(losses.parts["cls"], cls)

    weights = {
        "ATSS": ratios.clamp(min=0).sqrt(),
        "ATSS with IoU": iou,
        "GFL": score[own].amax(dim=1),
        "GFLv2": score[own].amax(dim=1),
        "VFL": iou,
        "TOOD": aligned,
        "nine anchors": torch.ones(len(own)),
    }[name]
    box_loss = {"giou": generalized_box_iou_loss, "diou": distance_box_iou_loss}[config.loss.box]
    box = (box_loss(decoded, boxes, reduction="none") * weights).sum() / weights.sum()
    assert_close(losses.parts["box"] / normaliser, config.loss.box_weight * box)
    if name.startswith("GFL"):
        strides = ((anchors[own, 2:] - anchors[own, :2]) / 8).repeat(1, 2)
        distances = (torch.cat([low, high], dim=1) / strides).clamp(min=0, max=15.9)
        log_p, left = predictions.box_channels[0, own].unflatten(-1, (4, 17)).log_softmax(dim=-1), distances.long()
        near, far = (log_p.gather(2, side[..., None])[..., 0] for side in (left, left + 1))
        dfl = -((left + 1 - distances) * near + (distances - left) * far).sum(dim=1) / 4  # [P]
        assert_close(losses.parts["dfl"] / normaliser, 0.25 * (dfl * weights).sum() / weights.sum())
    if name.startswith("ATSS"):
        branch = F.binary_cross_entropy_with_logits(predictions.quality[0, own], weights)
        assert_close(losses.parts["quality"] / normaliser, config.loss.quality_weight * branch)
    others = {"GFL": ["dfl"], "GFLv2": ["dfl"], "ATSS": ["quality"], "ATSS with IoU": ["quality"]}
    assert sorted(losses.parts) == sorted(["cls", "box", *others.get(name, [])])


@pytest.mark.parametrize("name", RECIPES)
def test_parts_of_a_recipes_batch_add_up(name: str) -> None:
    """However a batch is divided among ranks and accumulated parts. An image without objects adds its negatives."""
    config = recipe(name)
    predictions, targets = predictions_of(config, len(OBJECTS)), make_targets(*OBJECTS)
    whole, parts = detection.loss(predictions, targets, config), []
    for image in range(len(OBJECTS)):
        of_image = slice(image, image + 1)
        own = predictions._replace(
            cls_logits=predictions.cls_logits[of_image],
            box_channels=predictions.box_channels[of_image],
            quality=None if predictions.quality is None else predictions.quality[of_image],
        )
        parts.append(detection.loss(own, Targets(targets.boxes[of_image], targets.labels[of_image]), config))
    assert_close(whole.normaliser.float(), torch.stack([part.normaliser.float() for part in parts]).sum())
    for key, loss in whole.parts.items():
        assert_close(loss, sum(part.parts[key] for part in parts))
    nothing = parts[-1]
    assert nothing.normaliser == 0
    assert nothing.parts["cls"] > 0
    assert all(loss == 0 for key, loss in nothing.parts.items() if key != "cls")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_every_parameter_of_its_head_and_predicts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "tiny", TINY)
    torch.manual_seed(0)
    config = recipe(name)
    model, images = build_model(config, NUM_CLASSES), torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    sizes = torch.full((2, 2), SIDE)
    with torch.autocast("cpu", torch.bfloat16):
        predictions = model(images, sizes)
    assert predictions.cls_logits.dtype == torch.bfloat16
    losses = detection.loss(predictions, make_targets(OBJECTS[0], []), config)
    assert all(part.dtype == torch.float32 for part in losses.parts.values())
    total(losses).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), key
        # A scale learns from its level's positives only.
        assert (parameter.grad != 0).any() or not key.startswith("head") or "scales" in key, key
    assert any((scale.grad != 0).all() for scale in model.head.scales)
    batch = Batch(images, sizes, sizes, make_targets([], []), torch.arange(2))
    every = config.model_copy(update={"predict": PredictConfig(score_threshold=0)})
    with torch.inference_mode():
        detections = detection.predict(predictions, batch, every)
    assert (detections.labels[:, 0] >= 0).all()
    assert detections.boxes.isfinite().all()


def test_task_aligned_begins_as_atss() -> None:
    """For a fraction of the run, a function of the step: resuming changes nothing."""
    config = recipe("TOOD")
    predictions, targets = predictions_of(config, 1), make_targets(OBJECTS[0])
    as_atss = config.model_copy(update={"matcher": MatcherConfig(name="atss")})
    early, expected = detection.loss(predictions, targets, config, 0.33), detection.loss(predictions, targets, as_atss)
    assert early.normaliser == expected.normaliser
    assert_close(early.parts, expected.parts)
    late = [detection.loss(predictions, targets, config, progress).normaliser for progress in (1 / 3, 1.0)]
    assert late[0] == late[1] < early.normaliser


def test_an_assigner_is_one_function_in_the_dict(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the levels and the predictions; ignore regions and losses use what it returns."""

    def coarsest(anchors: Tensor, counts: list[int], targets: Targets, raw: Any, coder: Any, config: Any) -> Assignment:
        """The last level learns the first object; the quality is the predicted width."""
        target = torch.full(raw.cls_logits.shape[:2], BACKGROUND)
        target[:, -counts[-1] :] = 0
        sides = coder.decode(raw.box_channels, anchors).detach() / SIDE
        return Assignment(target, (sides[..., 2] - sides[..., 0]).clamp(0, 1))

    monkeypatch.setitem(ASSIGNERS, "coarsest", coarsest)
    predictions = random_predictions(1)
    last, count = predictions.level_counts[-1], len(predictions.anchors)
    targets = make_targets(OBJECTS[0], regions=torch.tensor([[[-300.0, -300, 400, 400]]]))  # all anchors lie in it
    losses = detection.loss(predictions, targets, ModelConfig(matcher=MatcherConfig(name="coarsest")))
    assert losses.normaliser == last

    labels = torch.tensor([[-1] * (count - last) + [0] * last])
    sides = DeltaCoder().decode(predictions.box_channels, predictions.anchors).detach() / SIDE
    quality = (sides[..., 2] - sides[..., 0]).clamp(0, 1)
    expected = CLASS_LOSSES["focal"](predictions.cls_logits, labels, quality, labels >= 0, LossConfig())
    assert_close(losses.parts["cls"], expected)


def test_a_box_coder_says_how_many_channels_a_box_has(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled:
        """Each delta is the mean of two channels."""

        num_channels = 8

        def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
            return DeltaCoder().encode(boxes, anchors).repeat(*[1] * (boxes.ndim - 1), 2)

        def decode(self, channels: Tensor, anchors: Tensor) -> Tensor:
            return DeltaCoder().decode(channels.unflatten(-1, (2, 4)).mean(dim=-2), anchors)

    monkeypatch.setitem(BOX_CODERS, "doubled", lambda config: Doubled())
    config = ModelConfig(
        backbone=BackboneConfig(name="resnet18", weights="none"),
        fpn=FPNConfig(channels=16),
        head=HeadConfig(num_convs=0),
    )
    doubled = config.model_copy(update={"box_coder": BoxCoderConfig(name="doubled")})
    images, sizes = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8), torch.tensor([[SIDE, SIDE]])
    raw = build_model(doubled, NUM_CLASSES)(images, sizes)
    assert raw.box_channels.shape == (*raw.cls_logits.shape[:2], 8)
    same = raw._replace(box_channels=raw.box_channels.unflatten(-1, (2, 4)).mean(dim=-2))
    targets = make_targets(OBJECTS[0])
    batch = Batch(images, sizes, sizes, targets, torch.tensor([0]))
    giou = {"loss": LossConfig(box="giou")}
    of_each = [
        (detection.loss(own, targets, one.model_copy(update=giou)).parts["box"], *detection.predict(own, batch, one))
        for own, one in ((raw, doubled), (same, config))
    ]
    for part, expected in zip(*of_each, strict=True):
        assert_close(part, expected)


@pytest.mark.parametrize("objects", [OBJECTS[0], []], ids=["objects", "none"])
@pytest.mark.parametrize("box", BOX_LOSSES)
def test_every_parameter_gets_a_finite_gradient(box: str, objects: list[tuple[list[float], int]]) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        backbone=BackboneConfig(name="resnet18"),
        fpn=FPNConfig(channels=16),
        head=HeadConfig(num_convs=1),
        loss=LossConfig(box=box),
    )
    model = build_model(config, NUM_CLASSES)
    images = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    predictions = model(images, torch.full((2, 2), SIDE))
    total(detection.loss(predictions, make_targets(objects, []), config)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if name.startswith("head.box") and not objects:
            assert (parameter.grad == 0).all(), name
        elif name.startswith(("head", "pyramid.fpn")):
            assert (parameter.grad != 0).any(), name


def test_anchors_in_a_crowd_take_no_part() -> None:
    predictions = random_predictions(1)
    config = ModelConfig()
    targets = make_targets([([4.0, 4, 20, 20], 1)], regions=CROWD)
    anchors, counts = predictions.anchors, predictions.level_counts
    match = assign(anchors, counts, targets, None, DeltaCoder(), config.matcher).target[0]
    left, top, right, bottom = predictions.anchors.unbind(dim=1)
    is_inside = (left >= 0) & (top >= 0) & (right <= 40) & (bottom <= 40)
    assert (is_inside & (match == IGNORE)).any()
    assert (match >= 0).any()  # the object in the crowd is still learned
    losses = detection.loss(predictions, targets, config)
    assert losses.normaliser == (match >= 0).sum()
    total(losses).backward()
    assert (predictions.cls_logits.grad[0, is_inside & (match < 0)] == 0).all()
    assert ((predictions.cls_logits.grad[0] != 0).all(dim=1) == (match != IGNORE)).all()
    assert ((predictions.box_channels.grad[0] != 0).any(dim=1) == (match >= 0)).all()


def test_crowds_alone_have_no_positives_and_less_background() -> None:
    predictions = random_predictions(1)
    crowd = detection.loss(predictions, make_targets([], regions=CROWD), ModelConfig())
    nothing = detection.loss(predictions, make_targets([]), ModelConfig())
    assert crowd.normaliser == 0
    assert crowd.parts["box"] == 0
    assert 0 < crowd.parts["cls"] < nothing.parts["cls"]


@pytest.mark.parametrize("box", BOX_LOSSES)
def test_parts_of_a_batch_add_up(box: str) -> None:
    predictions, targets = random_predictions(len(OBJECTS)), make_targets(*OBJECTS)
    config = ModelConfig(loss=LossConfig(box=box))
    whole = detection.loss(predictions, targets, config)
    parts = []
    for image in (slice(0, 1), slice(1, 3)):
        own = predictions._replace(
            cls_logits=predictions.cls_logits[image], box_channels=predictions.box_channels[image]
        )
        parts.append(detection.loss(own, Targets(targets.boxes[image], targets.labels[image]), config))
    assert whole.normaliser == sum(part.normaliser for part in parts)
    assert whole.normaliser > 0
    for name, loss in whole.parts.items():
        assert_close(loss, sum(part.parts[name] for part in parts))


def test_padding_and_the_order_of_objects_change_nothing() -> None:
    predictions, targets = random_predictions(len(OBJECTS)), make_targets(*OBJECTS)
    expected = detection.loss(predictions, targets, ModelConfig())
    padded = Targets(F.pad(targets.boxes, (0, 0, 0, 40)), F.pad(targets.labels, (0, 40), value=PADDING))
    flipped = Targets(targets.boxes.flip(1), targets.labels.flip(1))
    for other in (padded, flipped):
        losses = detection.loss(predictions, other, ModelConfig())
        assert losses.normaliser == expected.normaliser
        for name, loss in losses.parts.items():
            assert_close(loss, expected.parts[name])


def test_bf16_predictions_give_float32_losses() -> None:
    predictions, targets = random_predictions(len(OBJECTS)), make_targets(*OBJECTS)
    low = predictions._replace(
        cls_logits=predictions.cls_logits.bfloat16(), box_channels=predictions.box_channels.bfloat16()
    )
    high = low._replace(cls_logits=low.cls_logits.float(), box_channels=low.box_channels.float())
    losses, expected = (detection.loss(one, targets, ModelConfig()) for one in (low, high))
    for name, loss in losses.parts.items():
        assert loss.dtype == torch.float32
        assert torch.equal(loss, expected.parts[name])


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tasks.TASKS)
def test_every_task_has_its_name_and_heads(name: str) -> None:
    for head in get_core(name).PARTS["head.name"]:
        config = Config.model_validate({"task": name, "model": {"head": {"name": head}}})
        assert get_task(config) is get_core(name)


def test_every_head_is_of_one_task() -> None:
    assert list(tasks.HEADS) == list(tasks.TASKS)
    assert sorted(head for heads in tasks.HEADS.values() for head in heads) == sorted(HEADS)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"matcher": {"name": "atsss"}}, r"model\.matcher\.name.*'atsss'.*max_iou"),
        ({"loss": {"cls": "fokal"}}, r"model\.loss\.cls.*'fokal'.*focal"),
        ({"loss": {"box": "ciouu"}}, r"model\.loss\.box.*'ciouu'.*smooth_l1.*giou"),
        ({"head": {"name": "pooled"}}, r"model\.head\.name: 'pooled' is not known to task detection; use retina"),
    ],
)
def test_unknown_names_list_the_known_ones(section: dict[str, dict[str, str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_task(Config.model_validate({"model": section}))


def test_unknown_task_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'detektion'.*detection, classification or segmentation"):
        Config(task="detektion")


# --- predictions ------------------------------------------------------------------------------------------------------


def make_batch(sizes: list[list[int]], sizes_original: list[list[int]]) -> Batch:
    num = len(sizes)
    images = torch.zeros(num, 3, SIDE, SIDE, dtype=torch.uint8)
    return Batch(
        images, torch.tensor(sizes), torch.tensor(sizes_original), make_targets(*[[]] * num), torch.arange(num)
    )


def test_predictions_are_in_pixels_of_the_original_image() -> None:
    anchors = torch.tensor([[4.0, 6, 20, 22], [30, 30, 60, 60], [50, 2, 58, 8]])
    logits = torch.tensor([0.9, 0.8, 0.7]).logit()[:, None].expand(2, 3, 1)
    predictions = Predictions(logits, torch.zeros(2, 3, 4), anchors, [3])
    batch = make_batch([[40, 64], [64, 56]], [[80, 192], [32, 14]])
    detections = detection.predict(predictions, batch, ModelConfig(predict=PredictConfig()))
    # Clipped to 40 · 64, then x · 192 / 64 and y · 80 / 40; clipped to 64 · 56, then x · 14 / 56 and y · 32 / 64.
    assert_close(detections.boxes[0], torch.tensor([[12.0, 12, 60, 44], [90, 60, 180, 80], [150, 4, 174, 16]]))
    assert_close(detections.boxes[1], torch.tensor([[1.0, 3, 5, 11], [7.5, 15, 14, 30], [12.5, 1, 14, 4]]))
    assert_close(detections.scores, torch.tensor([[0.9, 0.8, 0.7]] * 2))


def test_no_prediction_exceeds_its_original_image() -> None:
    predictions = random_predictions(2)
    # In float32 47 · (427 / 47) and 52 · (1000 / 52) round to more than 427 and 1000.
    batch = make_batch([[64, 47], [52, 64]], [[479, 427], [1000, 1733]])
    boxes = detection.predict(predictions, batch, ModelConfig()).boxes
    assert boxes.shape[1] > 10
    assert (boxes >= 0).all()
    for image, (height, width) in enumerate(batch.sizes_original.tolist()):
        assert (boxes[image] <= torch.tensor([width, height, width, height])).all()
        assert boxes[image, :, 2].max() == width
        assert boxes[image, :, 3].max() == height


CATEGORIES = [Category(5, "cat"), Category(18, "dog"), Category(90, "owl")]


def test_rows_by_hand() -> None:
    detections = Detections(
        boxes=torch.tensor([[[1.0, 2, 4, 8], [0, 0, 10, 10]], [[3, 3, 5, 4], [0, 0, 0, 0]]]),
        scores=torch.tensor([[0.75, 0.5], [0.25, 0.0]]),
        labels=torch.tensor([[2, 0], [1, PADDING]]),
    )
    rows = detection.to_rows(detections, torch.tensor([2**40 + 1, 7]))
    assert rows.dtype == np.float64
    # image, left, top, width, height, score, label; padding has none
    assert rows.tolist() == [
        [2**40 + 1, 1, 2, 3, 6, 0.75, 2],
        [2**40 + 1, 0, 0, 10, 10, 0.5, 0],
        [7, 3, 3, 2, 1, 0.25, 1],
    ]


def test_rows_of_no_detections() -> None:
    empty = Detections(torch.zeros(2, 0, 4), torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.int64))
    assert detection.to_rows(empty, torch.tensor([1, 2])).shape == (0, 7)


# --- scores -----------------------------------------------------------------------------------------------------------


def test_category_ids_of_any_kind_travel_from_the_checkpoint_to_the_results(tmp_path: Path) -> None:
    categories = [Category(7, "cat"), Category("8", "dog"), Category("bird", "bird")]
    save_checkpoint(tmp_path / "x.pt", Config(), categories, {"model": {"x": torch.ones(1)}})
    assert checkpoint_categories(read_checkpoint(tmp_path / "x.pt")) == categories
    boxes, scores = torch.tensor([[[1.0, 2, 4, 8]] * 3]), torch.tensor([[0.9, 0.8, 0.7]])
    (prediction,) = detection.to_predictions(
        Detections(boxes, scores, torch.tensor([[2, 1, 0]])), categories, Config().model
    )
    rows = json.loads(json.dumps(detection_results.to_results(prediction, "frame 1", Path("a.jpg"))))
    assert [(row["image_id"], row["category_id"]) for row in rows] == [("frame 1", own) for own in ("bird", "8", 7)]
    (plain,) = detection.to_predictions(
        Detections(boxes, scores, torch.tensor([[2, 1, 0]])), CATEGORIES, Config().model
    )
    assert plain.category_ids.dtype == np.int64


def test_scores_of_right_and_wrong_detections(tmp_path: Path) -> None:
    file = tmp_path / "truth.json"
    boxes = {11: ([10, 10, 40, 40], 5), 12: ([20, 5, 50, 60], 18), 13: ([0, 0, 30, 30], 90)}
    file.write_text(
        json.dumps(
            {
                "images": [{"id": id, "file_name": f"{id}.png", "height": 100, "width": 100} for id in boxes],
                "categories": [category._asdict() for category in CATEGORIES],
                "annotations": [
                    {
                        "id": id,
                        "image_id": id,
                        "category_id": category,
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": 0,
                    }
                    for id, (box, category) in boxes.items()
                ],
            }
        )
    )
    truth = read_annotations(file)
    xywh = torch.tensor([box for box, _ in boxes.values()]).float()[:, None]  # one per image
    xyxy = torch.cat([xywh[..., :2], xywh[..., :2] + xywh[..., 2:]], dim=-1)
    right = Detections(xyxy, torch.full((3, 1), 0.9), torch.tensor([[0], [1], [2]]))
    ids = torch.arange(3)

    metrics = detection.evaluate(Tally(detection.to_rows(right, ids)), truth, Config())
    assert metrics[detection.main_metric(Config())] == pytest.approx(1)
    # The owl is detected as a dog: no owl is found. It scores lower than the dog, so the dogs' AP stays 1.
    wrong = right._replace(labels=torch.tensor([[0], [1], [1]]), scores=torch.tensor([[0.9], [0.9], [0.1]]))
    batches = [detection.to_rows(wrong, ids)[:2], detection.to_rows(wrong, ids)[2:]]
    metrics = detection.evaluate(merge(map(Tally, batches)), truth, Config())
    assert metrics["AP"] == pytest.approx(2 / 3)
    assert [row["AP"] for row in metrics["per_class"]] == pytest.approx([1, 1, 0])
    assert detection.evaluate(merge([]), truth, Config())["AP"] == 0

    table = detection_views.describe(metrics, per_class=True)
    assert "AP 0.667" in table
    assert [line.split()[0] for line in table.splitlines()[-3:]] == ["cat", "dog", "owl"]
    assert "cat" not in detection_views.describe(metrics, per_class=False)
    detection_views.write_report(metrics, tmp_path)
    assert list(tmp_path.iterdir()) == [file]  # results.json has it all
