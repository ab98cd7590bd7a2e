"""Models of other packages with drawn weights, and how to compare what they give with ours.

Weights are drawn from seeds so that activations keep their scale, logits stay below 10 and a few per cent of the scores
pass the threshold. "To 1e-5" is the largest difference, in parts of the largest number: float32 with two orders of
summation does not give more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detector.checkpoints.checkpoint import checkpoint_categories, checkpoint_config, load_model
from detector.checkpoints.foreign.importing import Imported
from detector.checkpoints.opening import import_checkpoint
from detector.config.schema import Config
from detector.data.loading.collate import pad_images
from detector.models import Model
from detector.structures import PADDING, Batch, Targets
from detector.tasks import detection

State = dict[str, Tensor]

CLOSE = 1e-5  # of the largest number
PIXEL = 2e-3  # group norm sums in another order, which processors do in yet another
TIE = 1e-5
SIZES = [(256, 384), (161, 223)]
ANCHORS = 9  # a cell


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
