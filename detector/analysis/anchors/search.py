"""Anchors that fit a data set: a search over base size, scales and ratios at the same number of anchors per cell.

The search maximises recall first. Recall is a step function, so the mean best IoU gives it a slope to follow. Both are
means over classes, as AP is: a class with few objects counts as much as one with many. The search starts from the
config's own anchors, and no figure may fall below theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from detector.analysis.summary import summarise
from detector.config.schema import AnchorConfig, Config, MatcherConfig, ResizeConfig
from detector.data.detection import Annotations, CheckedBoxes
from detector.evaluation.coverage import (
    Coverage,
    InputBoxes,
    NearestCells,
    coverage_of,
    input_boxes,
    level_ious,
    nearest_cells,
)
from detector.structures import SIZE_DIVISOR
from detector.tasks import detection

# Of class-mean recall, class-mean best IoU and recall of all objects, which gains nothing but must not fall.
WEIGHTS = (3, 1, 0)
SHORTFALL_WEIGHT = 10  # of the amount by which any of them is below that of the config's anchors
SEARCHED = 4000  # objects that the search samples
GENERATIONS, FEWER_GENERATIONS = 50, 15
POPULATION = 8  # candidates per generation and searched value

# Recall that a costlier change must gain, and that a cheaper one may lose, to pay.
WORTH, FREE = 0.01, 0.002

_BASE_SIZES = (0.5, 16.0)  # in strides
_LARGEST_GAP = 3.0  # between one scale and the next
_RATIOS = (1 / 8, 8.0)


@dataclass(frozen=True)
class Split:
    """The annotations of a split, to be taken at any input size."""

    annotations: Annotations
    checked: CheckedBoxes
    seed: int

    def at(self, resize: ResizeConfig) -> InputBoxes:
        return input_boxes(self.annotations, self.checked, resize, self.seed)


class Option(NamedTuple):
    """A pyramid and input size, with anchors that were searched for it."""

    name: str
    keys: str  # config overrides that give it
    coverage: Coverage  # of the training objects
    anchors: int  # for the largest image
    macs: int  # the same
    verdict: str  # "pays", or why not


def score(best: torch.Tensor, labels: torch.Tensor, matcher: MatcherConfig) -> float:
    """What the search maximises, from the best IoU and the class of each object, [M] each."""
    return float(_figures(best.numpy(), _class_weights(labels), matcher.positive) @ WEIGHTS)


def _figures(best: np.ndarray, weights: np.ndarray, threshold: float) -> np.ndarray:
    """Weighted recall, weighted mean best IoU, and unweighted recall."""
    is_covered = best >= threshold
    return np.array([weights @ is_covered, weights @ best, is_covered.mean()])


def search(
    objects: InputBoxes,
    config: AnchorConfig,
    matcher: MatcherConfig,
    levels: Sequence[int],
    seed: int,
    generations: int = GENERATIONS,
) -> AnchorConfig:
    """The anchors that cover ``objects`` best, or ``config`` itself where nothing better is found.

    Differential evolution (Storn & Price 1997) on a seeded sample of the objects; the result is rounded to three digits
    and compared with ``config`` on all objects.
    """
    from scipy.optimize import differential_evolution

    sample, labels = _sample(objects, config, levels, seed)
    weights = _class_weights(labels)  # [M]
    num_scales, num_ratios = len(config.scales), len(config.ratios)
    base_bounds, gap_bounds, ratio_bounds = np.log(_BASE_SIZES), np.log((1.0, _LARGEST_GAP)), np.log(_RATIOS)
    bounds = np.array([base_bounds, *[gap_bounds] * (num_scales - 1), *[ratio_bounds] * num_ratios])
    scales = np.sort(config.scales)
    start = np.log([config.base_size * scales[0], *(scales[1:] / scales[:-1]), *config.ratios])
    strides = 2.0 ** np.array(levels)[:, None]  # [L, 1]
    width, height = sample.sides.float().numpy().T[:, :, None, None]  # [M, 1, 1] each
    x, y = sample.distances.float().numpy().transpose(2, 0, 1)[..., None]  # [M, L, 1] each

    def figures(values: np.ndarray) -> np.ndarray:
        base, gaps, ratios = np.split(values, [1, num_scales])
        sizes = np.exp(base + np.concatenate([[0.0], np.cumsum(gaps)]))
        root = np.exp(ratios / 2)[:, None]
        anchor_width, anchor_height = (
            (strides * side.ravel()).astype(np.float32) for side in (sizes / root, sizes * root)
        )  # [L, A]
        # coverage.shape_ious in float32, with width and height apart: this runs a few thousand times.
        overlap = _overlap(width, anchor_width, x) * _overlap(height, anchor_height, y)  # [M, L, A]
        iou = overlap / (width * height + anchor_width * anchor_height - overlap)
        best = iou.reshape(len(iou), -1).max(axis=1)
        return _figures(best, weights, matcher.positive)

    floor = figures(start)

    def loss(values: np.ndarray) -> float:
        own = figures(values)
        return float(-own @ WEIGHTS + SHORTFALL_WEIGHT * (floor - own).clip(0).sum())

    result = differential_evolution(
        loss,
        bounds,
        x0=start.clip(*bounds.T),
        popsize=POPULATION,
        maxiter=generations,
        tol=1e-4,
        polish=False,
        rng=np.random.default_rng(seed),
    )
    base, gaps, ratios = np.split(result.x, [1, num_scales])
    suggestion = config.model_copy(
        update={
            "base_size": _rounded(np.exp(base[0])),
            "scales": [_rounded(scale) for scale in np.exp(np.concatenate([[0.0], np.cumsum(gaps)]))],
            "ratios": sorted(_rounded(ratio) for ratio in np.exp(ratios)),
            "levels": {},
        }
    )
    before, after = (best_ious(objects, anchors, levels) for anchors in (config, suggestion))
    loses_recall = coverage_of(after, matcher).recall < coverage_of(before, matcher).recall
    gains = score(after, objects.labels, matcher) - score(before, objects.labels, matcher)
    return suggestion if gains > 0 and not loses_recall else config


def _overlap(side: np.ndarray, anchor_side: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """The overlap of two intervals with centres ``distance`` apart."""
    return np.minimum((side + anchor_side) / 2 - distance, np.minimum(side, anchor_side)).clip(0)


def _sample(
    objects: InputBoxes, config: AnchorConfig, levels: Sequence[int], seed: int
) -> tuple[NearestCells, torch.Tensor]:
    count = len(objects.boxes)
    drawn = torch.arange(count)
    if count > SEARCHED:
        drawn = torch.from_numpy(np.random.default_rng(seed).choice(count, SEARCHED, replace=False))
    cells = nearest_cells(objects.boxes[drawn], objects.padded[objects.image[drawn]], config, levels)
    return cells, objects.labels[drawn]


def _class_weights(labels: torch.Tensor) -> np.ndarray:
    """Weights of the objects, [M], that sum to 1 and give every class that has objects the same total, as AP does."""
    counts = torch.bincount(labels)
    return (1 / (counts[labels] * (counts > 0).sum())).numpy()


def _rounded(value: float) -> float:
    """To three digits."""
    return float(f"{value:.3g}")


def best_ious(objects: InputBoxes, config: AnchorConfig, levels: Sequence[int]) -> torch.Tensor:
    """The best IoU of each object, [M]."""
    return level_ious(objects, config, levels).amax(dim=1)


def options(train: Split, config: Config, suggestion: AnchorConfig, num_classes: int) -> list[Option]:
    """The config with the suggested anchors, then with one more or fewer levels and with other input sizes."""
    model, matcher = config.model, config.model.matcher
    compared: list[Option] = []
    for name, keys, levels, resize in _changes(config):
        objects = train.at(resize).objects()
        anchors = suggestion
        if keys:
            anchors = search(objects, suggestion, matcher, levels, config.seed, FEWER_GENERATIONS)
        coverage = coverage_of(best_ious(objects, anchors, levels), matcher)
        fpn = model.fpn.model_copy(update={"levels": levels})
        changed = model.model_copy(update={"fpn": fpn, "anchors": anchors})
        data = config.data.model_copy(update={"resize": resize})
        size = detection.largest_input(config.model_copy(update={"data": data}))
        cost = summarise(changed, num_classes, size)
        verdict = judge(compared[0].coverage.recall, coverage.recall, compared[0].macs, cost.macs) if compared else ""
        compared.append(Option(name, keys, coverage, cost.anchors, cost.macs, verdict))
    return compared


def judge(recall_before: float, recall: float, macs_before: int, macs: int) -> str:
    """Whether a change pays: one that adds multiply-adds by its gain in recall, another by losing hardly any."""
    gain = recall - recall_before
    if macs > macs_before:
        return "pays" if gain >= WORTH else f"does not pay: under {WORTH:.0%} more objects covered"
    return "pays" if gain >= -FREE else "does not pay: loses objects"


def _changes(config: Config) -> list[tuple[str, str, list[int], ResizeConfig]]:
    """Name, config overrides, pyramid levels and input sizes of each option."""
    levels, resize = config.model.fpn.levels, config.data.resize
    changes = [("as configured", "", levels, resize)]
    if levels[0] > 2:
        more = [levels[0] - 1, *levels]
        changes.append((f"with P{more[0]}", _override("model.fpn.levels", more), more, resize))
    for dropped in range(1, len(levels)):
        if levels[-dropped] < 6:
            break
        fewer = levels[:-dropped]
        names = " and ".join(f"P{level}" for level in levels[-dropped:])
        changes.append((f"without {names}", _override("model.fpn.levels", fewer), fewer, resize))
    for factor in (0.75, 1.5):
        # With ``fixed``, ``short`` and ``long`` have no effect.
        own = {"fixed": resize.fixed} if resize.fixed else {"short": resize.short, "long": resize.long}
        update = {
            key: [_multiple(side * factor) for side in value] if isinstance(value, list) else _multiple(value * factor)
            for key, value in own.items()
        }
        scaled = resize.model_copy(update=update)
        keys = " ".join(_override(f"data.resize.{key}", value) for key, value in update.items())
        changes.append((f"input × {factor}", keys, levels, scaled))
    return changes


def _override(key: str, value: object) -> str:
    """An override for the command line, without spaces that would need quotes."""
    return f"{key}={value}".replace(" ", "")


def _multiple(side: float) -> int:
    return max(1, round(side / SIZE_DIVISOR)) * SIZE_DIVISOR
