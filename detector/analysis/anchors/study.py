"""How well the config's anchors cover the objects of a split: overall, and by size, ratio, class and level."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detector.analysis.anchors.search import Split
from detector.analysis.summary import Summary, head_macs
from detector.config.schema import Config
from detector.errors import DataError
from detector.evaluation.coverage import InputBoxes, assign, coverage_of, level_ious

Row = dict[str, Any]  # figures by the keys of JSON

COMPARISONS = 2e8  # anchors times boxes that are matched at most; of a larger set, a sample of the images is matched

SIZES = [8, 16, 32, 64, 128, 256]  # pixels: square root of the area
RATIOS = [1 / 4, 1 / 2, 1 / 2**0.5, 2**0.5, 2, 4]  # height / width


@dataclass(frozen=True)
class Study:
    """The M objects of a split without its crowds, and how the config's anchors cover them."""

    config: Config
    split: Split
    objects: InputBoxes
    level_best: Tensor  # [M, L] best IoU of each object on each level
    positives: Tensor  # [M] float64, anchors that the matcher assigns; NaN where the image is not in the sample
    level_positives: list[int]
    matched_images: int

    @property
    def best(self) -> Tensor:
        return self.level_best.amax(dim=1)

    def row(self, is_member: Tensor) -> Row:
        """The figures of a subset of the objects, ``is_member`` [M]."""
        positives = self.positives[is_member]
        coverage = coverage_of(self.best[is_member], self.config.model.matcher, positives)
        positives = positives[~positives.isnan()]
        figures = coverage._asdict()
        if not self.config.model.matcher.has_thresholds:
            del figures["low_quality"]
        return {
            **figures,
            "missed": coverage.missed,
            "positives": float(positives.mean()) if len(positives) else None,
            "without_positive": float((positives == 0).double().mean()) if len(positives) else None,
        }

    def overall(self) -> Row:
        positives = sum(self.level_positives)
        counts = torch.bincount(self.objects.image, minlength=len(self.objects.sizes))
        return {
            **self.row(torch.ones(len(self.objects.boxes), dtype=torch.bool)),
            "class_recall": float(np.mean([row["recall"] for row in self.by_class()])),
            "images": len(self.objects.sizes),
            "objects_per_image": float(counts.double().mean()),
            "positives_per_image": positives / max(1, self.matched_images),
            "matched_images": self.matched_images,
        }

    def groups(self) -> Iterator[tuple[str, list[Row]]]:
        """Rows by size, ratio and class; groups without objects are skipped."""
        width, height = (self.objects.boxes[:, 2:] - self.objects.boxes[:, :2]).unbind(dim=1)
        sides = [f"{side:g} px" for side in SIZES]
        yield (
            "size",
            self._rows(torch.bucketize((width * height).sqrt(), torch.tensor(SIZES), right=True), _bins(sides)),
        )
        ratios = ["1:4", "1:2", "1:1.4", "1.4:1", "2:1", "4:1"]
        yield "ratio", self._rows(torch.bucketize(height / width, torch.tensor(RATIOS), right=True), _bins(ratios))
        yield "class", self.by_class()

    def by_class(self) -> list[Row]:
        return self._rows(self.objects.labels, [category.name for category in self.split.annotations.categories])

    def _rows(self, group_of: Tensor, names: Sequence[str]) -> list[Row]:
        rows = [{"group": name, **self.row(group_of == index)} for index, name in enumerate(names)]
        return [row for row in rows if row["objects"]]

    def levels(self, summary: Summary) -> list[Row]:
        """Rows by level: its cost, and the objects with their best anchor on it."""
        config = self.config.model
        macs = head_macs(config, summary)
        best_level = self.level_best.argmax(dim=1)
        rows = []
        for index, level in enumerate(config.fpn.levels):
            name = f"P{level}"
            shape = config.anchors.at_level(level)
            anchors = summary.levels[name].anchors or 0
            own = self.row(best_level == index)
            rows.append(
                {
                    "level": name,
                    "stride": 2**level,
                    "sizes": ", ".join(f"{shape.base_size * scale:.3g}" for scale in shape.scales),
                    "anchors": anchors,
                    "anchors_share": anchors / summary.anchors,
                    "macs_share": macs[name] / summary.macs,
                    "objects": own["objects"],
                    "objects_share": own["objects"] / max(1, len(self.objects.boxes)),
                    "recall": own["recall"],
                    "positives_share": self.level_positives[index] / max(1, sum(self.level_positives)),
                }
            )
        return rows

    def worst(self, count: int) -> list[int]:
        """Indices of objects under the matcher's threshold or without positives, worst first; at most two per image."""
        best, matcher = self.best, self.config.model.matcher
        is_bad = best < matcher.positive if matcher.has_thresholds else self.positives == 0
        order = best.argsort(stable=True)
        chosen: list[int] = []
        count_of_image: dict[int, int] = {}
        for index in order[is_bad[order]].tolist():
            image = int(self.objects.image[index])
            count_of_image[image] = count_of_image.get(image, 0) + 1
            if count_of_image[image] <= 2:
                chosen.append(index)
            if len(chosen) == count:
                break
        return chosen

    def describe_object(self, index: int) -> Row:
        annotations, objects = self.split.annotations, self.objects
        image, row = int(objects.image[index]), int(objects.rows[index])
        left, top, right, bottom = objects.boxes[index].tolist()
        return {
            "file_name": annotations.file_name(image),
            "annotation_id": annotations.annotation_ids[row],
            "class": annotations.categories[int(objects.labels[index])].name,
            "width": round(right - left, 1),
            "height": round(bottom - top, 1),
            "best_iou": round(float(self.best[index]), 3),
        }


def study(config: Config, split: Split) -> Study:
    """Measure how the config's anchors cover a split; raises DataError where it has no objects."""
    model = config.model
    boxes = split.at(config.data.resize)
    objects = boxes.objects()
    if not len(objects.boxes):
        raise DataError(f"{split.annotations.path}: has no objects, so there is nothing for anchors to cover")
    comparisons = _comparisons(boxes, config)
    count = max(1, int(len(boxes.sizes) * COMPARISONS / comparisons)) if comparisons > COMPARISONS else len(boxes.sizes)
    sampled = boxes.sample(count, config.seed)
    assigned = assign(sampled, model)
    positives = torch.full((len(split.annotations.labels),), float("nan"), dtype=torch.float64)
    positives[sampled.rows] = assigned.positives.double()
    level_best = level_ious(objects, model.anchors, model.fpn.levels)
    return Study(
        config,
        split,
        objects,
        level_best,
        positives[objects.rows],
        assigned.level_positives,
        count,
    )


def _comparisons(boxes: InputBoxes, config: Config) -> float:
    """Roughly the number of anchors times boxes, over all images."""
    cells = sum(4.0**-level for level in config.model.fpn.levels)
    areas = boxes.padded[boxes.image].double().prod(dim=1)
    return float(areas.sum()) * cells * config.model.anchors.per_cell


def _bins(edges: Sequence[str]) -> list[str]:
    """Names of the ranges that ``edges`` bound."""
    between = [f"{low} – {high}" for low, high in pairwise(edges)]
    return [f"under {edges[0]}", *between, f"{edges[-1]} and over"]
