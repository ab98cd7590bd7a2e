"""The twelve COCO numbers of generated detections: the default backend against pycocotools, which the references use.

Both start with the annotations in memory and the detections as one array.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import hotcoco  # noqa: F401  (imported before memory is counted, as pycocotools is)
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.config.schema import EvalConfig
from detector.data.detection import Annotations
from detector.data.formats.reading import read_annotations
from detector.dev.benchmark.generate import CLASSES, random_boxes, write_annotations
from detector.dev.benchmark.measure import Case, Run, Settings
from detector.evaluation.coco import METRICS, coco_metrics

IMAGES, OBJECTS, DETECTIONS = 5_000, 7, 100  # objects and detections per image
SIZE = (480, 640)
FILE = "truth.json"
TOLERANCE = 1e-9


class Inputs(NamedTuple):
    truth: Annotations
    tree: dict[str, Any]  # the same, as parsed JSON
    rows: np.ndarray  # [R, 7] as coco_metrics takes them


def cases(settings: Settings) -> list[Case]:
    images = settings.scaled(IMAGES)
    return [
        Case(
            name=f"{images:,} images, {images * DETECTIONS:,} detections",
            files=lambda folder: write_annotations(folder / FILE, [SIZE] * images, OBJECTS),
            inputs=make_inputs,
            ours=ours,
            theirs=theirs,
            equal=equal,
            runs=3,
            slow=True,
        )
    ]


def make_inputs(folder: Path) -> Inputs:
    truth = read_annotations(folder / FILE)
    return Inputs(truth, json.loads((folder / FILE).read_text(encoding="utf-8")), make_detections(truth))


def make_detections(truth: Annotations) -> np.ndarray:
    """A few boxes near every object, most of its class; the rest anywhere."""
    rng = np.random.default_rng(1)
    rows = []
    for index in range(len(truth)):
        boxes, labels = truth.boxes_xywh[truth.rows(index)].numpy(), truth.labels[truth.rows(index)].numpy()
        near = np.tile(boxes, (5, 1))
        near += rng.normal(0, 0.15, near.shape) * np.tile(near[:, 2:], 2)
        near[:, 2:] = near[:, 2:].clip(min=1)
        near_labels = np.where(rng.random(len(near)) < 0.8, np.tile(labels, 5), rng.integers(CLASSES, size=len(near)))
        anywhere = random_boxes(rng, DETECTIONS - len(near), *SIZE).astype(np.float64)
        anywhere[:, 2:] -= anywhere[:, :2]
        found = np.concatenate([near, anywhere])
        found_labels = np.concatenate([near_labels, rng.integers(CLASSES, size=len(anywhere))])
        scores = np.concatenate([rng.beta(4, 3, len(near)), rng.beta(2, 6, len(anywhere))])
        rows.append(np.column_stack([np.full(DETECTIONS, index), found, scores, found_labels]))
    return np.concatenate(rows)


def ours(inputs: Inputs) -> Run:
    return lambda: coco_metrics(inputs.rows, inputs.truth, EvalConfig().backend, 100)


def theirs(inputs: Inputs) -> Run:
    def run() -> list[float]:
        # write_annotations numbers images and classes from 1
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO()
            coco.dataset = inputs.tree
            coco.createIndex()
            evaluation = COCOeval(coco, coco.loadRes(inputs.rows + np.array([1, 0, 0, 0, 0, 0, 1])), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation.stats.tolist()

    return run


def equal(_inputs: Inputs, own: dict[str, Any], other: list[float]) -> bool:
    return all(abs(own[name] - number) <= TOLERANCE for name, number in zip(METRICS, other, strict=True))
