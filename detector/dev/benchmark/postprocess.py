"""Logits and deltas to detections: top-k of each level, decoding, class-wise NMS, scaling to the file's frame."""

from __future__ import annotations

from typing import NamedTuple

import torch

from detector.config.schema import ModelConfig, PredictConfig
from detector.dev.benchmark.generate import CLASSES
from detector.dev.benchmark.loss import HEIGHT, WIDTH, make_predictions
from detector.dev.benchmark.measure import Case, Run, Settings
from detector.dev.benchmark.peer import Found, same_detections, torchvision_without_backbone
from detector.structures import Batch, Detections, Predictions, Targets
from detector.system.device import to_cpu
from detector.tasks import detection

BATCH = 4
CONFIG = ModelConfig(predict=PredictConfig(max_detections=300, keep_empty=True))  # torchvision's

# Mean and deviation of the logits; a score of 0.05, the threshold, is a logit of -2.94.
DISTRIBUTIONS = {
    "trained (3 % of the scores over 0.05)": (-4.6, 0.88),
    "untrained (none over 0.05)": (-4.6, 0.05),
    "adversarial (half over 0.05)": (-2.944, 1.0),
}


class Inputs(NamedTuple):
    predictions: Predictions
    batch: Batch


def cases(settings: Settings) -> list[Case]:
    height, width = settings.side(HEIGHT), settings.side(WIDTH)
    return [
        Case(
            name=f"{height}×{width}, batch {BATCH}, {name}",
            inputs=lambda _folder, logits=logits: make_inputs(height, width, *logits, settings.device),
            ours=ours,
            theirs=theirs,
            equal=equal,
        )
        for name, logits in DISTRIBUTIONS.items()
    ]


def make_inputs(height: int, width: int, mean: float, spread: float, device: str) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    logits, deltas, anchors, counts, _ = make_predictions(height, width, BATCH, generator, mean, spread)
    sizes = torch.tensor([[height, width]] * BATCH)
    nothing = Targets(torch.zeros(BATCH, 1, 4), torch.full((BATCH, 1), -1))
    batch = Batch(torch.zeros(BATCH, 3, 1, 1, dtype=torch.uint8), sizes, sizes, nothing, torch.arange(BATCH))
    return Inputs(
        Predictions(logits.to(device), deltas.to(device), anchors.to(device), counts), batch.to(torch.device(device))
    )


def ours(inputs: Inputs) -> Run:
    return torch.inference_mode()(lambda: detection.predict(inputs.predictions, inputs.batch, CONFIG))


def theirs(inputs: Inputs) -> Run:
    model = torchvision_without_backbone(CLASSES)
    logits, deltas, anchors, counts, _ = inputs.predictions
    sizes = [tuple(size) for size in inputs.batch.sizes.tolist()]

    @torch.inference_mode()
    def run() -> list[Found]:
        outputs = {
            "cls_logits": list(logits.split(counts, dim=1)),
            "bbox_regression": list(deltas.split(counts, dim=1)),
        }
        detections = model.postprocess_detections(outputs, [list(anchors.split(counts))] * BATCH, sizes)
        return to_found(model.transform.postprocess(detections, sizes, sizes))

    return run


def equal(_inputs: Inputs, own: Detections, other: list[Found]) -> bool:
    return same_detections(to_list(own), [tuple(to_cpu(*each)) for each in other], score=1e-5, pixels=1e-2)


def to_found(detections: list[dict[str, torch.Tensor]]) -> list[Found]:
    return [(found["boxes"], found["scores"], found["labels"]) for found in detections]


def to_list(detections: Detections) -> list[Found]:
    """Per image, without the padding."""
    is_kept = detections.labels >= 0
    return [tuple(part[row][is_kept[row]] for part in detections) for row in range(len(is_kept))]
