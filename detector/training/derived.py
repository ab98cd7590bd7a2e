"""Values of a config that the training data decides (``auto``): one rule each, printed, and overridden by a value.

They are derived once, before anything is built, and the run's config has the values. The same data gives the same, so a
resumed run does not change.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from detector.config.schema import DERIVED, Config
from detector.data.transforms.resize import padded
from detector.errors import ConfigError
from detector.evaluation.coverage import input_boxes
from detector.tasks import get_task
from detector.training.loop import count_steps

SMALL_OBJECT = 16  # px: two cells of P3
SHORTEST, LONGEST = 256, 800  # of the long side
LARGEST_BASE = 4.0  # RetinaNet's
LONGEST_WARMUP = 1000  # steps


def derive(config: Config, open_train: Callable[[Config], Any] | None = None) -> tuple[Config, list[str]]:
    """The config with values for its ``auto`` keys, and a line on each; ``open_train`` opens its training data."""
    if not config.auto:
        return config, []
    data = open_train(config) if open_train else get_task(config).open_split(config, "train")
    lines = []
    for key in DERIVED:
        if key in config.auto:
            value, rule = RULES[key](config, data)
            config = _with(config, key.split("."), value)
            lines.append(f"{key}: {value:g}, derived: {rule}")
    return config.model_copy(update={"auto": []}), lines


def _with(section: Any, keys: list[str], value: Any) -> Any:
    name, *below = keys
    return section.model_copy(update={name: _with(getattr(section, name), below, value) if below else value})


def _sides(boxes: Tensor) -> np.ndarray:
    """The square root of each box's area."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt().numpy()


def long_side(config: Config, data: Any) -> tuple[int, str]:
    """So long that the 10th percentile of the objects has ``SMALL_OBJECT`` pixels.

    No image needs to grow for it, except to ``SHORTEST``: enlarged, small images are learned better.
    """
    if not hasattr(data, "annotations"):
        raise ConfigError(f"data.resize.long: auto is derived from boxes, and {data.source} has none; give a number")
    long_sides = np.maximum(data.annotations.heights.numpy(), data.annotations.widths.numpy())
    image, _ = data.image_labels
    fraction = float(np.quantile(_sides(data.checked.boxes[data.is_object]) / long_sides[image], 0.1))
    longest = int(np.median(long_sides))
    wanted = padded(math.ceil(round(SMALL_OBJECT / fraction, 3)))
    rule = (
        f"the 10th percentile of the objects, {fraction:.1%} of their image's long side, is to have {SMALL_OBJECT} px;"
        f" at most {LONGEST} and the images' median, {longest}, rounded up to 32, but at least {SHORTEST}"
    )
    return max(min(wanted, LONGEST, padded(longest)), SHORTEST), rule


def base_size(config: Config, data: Any) -> tuple[float, str]:
    """The smallest anchor is as large as the 5th percentile of the objects."""
    objects = input_boxes(data.annotations, data.checked, config.data.resize, config.seed).objects()
    side, stride = float(np.quantile(_sides(objects.boxes), 0.05)), 2 ** config.model.fpn.levels[0]
    rule = f"the 5th percentile of the objects, {side:.0f} px, in strides of {stride} px; 1 to {LARGEST_BASE:g}"
    return round(min(max(side / stride, 1.0), LARGEST_BASE), 2), rule


def warmup_steps(config: Config, data: Any) -> tuple[int, str]:
    """A tenth of the run."""
    if config.train.batch_size == "auto":
        raise ConfigError(
            "train.schedule.warmup_steps: auto needs the number of steps, which train.batch_size=auto leaves open; give"
            " one of them as a number, or train.schedule.warmup_epochs"
        )
    steps, _ = count_steps(config.train, len(data))
    return min(-(-steps // 10), LONGEST_WARMUP), f"a tenth of {steps} steps, at most {LONGEST_WARMUP}"


RULES: dict[str, Callable[[Config, Any], tuple[float, str]]] = {
    "data.resize.long": long_side,
    "model.anchors.base_size": base_size,
    "train.schedule.warmup_steps": warmup_steps,
}
