"""The whole of prediction as one graph: from the pixels of a padded batch to final detections or scores.

Dimension key: B images, D detections per image (padded).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from detector.config.schema import Config
from detector.models import Model
from detector.structures import SIZE_DIVISOR, Batch
from detector.tasks import get_results, get_task

# Of the images that a graph with dynamic sides is traced with. P7 is 3×5: a side of 1, or two equal ones, would be
# taken for a constant.
EXAMPLE_SIDES = (12 * SIZE_DIVISOR, 20 * SIZE_DIVISOR)


class Prediction(nn.Module):
    """A model with its task's prediction; the settings that are given as tensors replace the config's."""

    def __init__(self, model: Model, config: Config) -> None:
        super().__init__()
        self.model = model
        self.config = config.model
        self.task, self.task_name = get_task(config), config.task

    def settings(self, is_fixed: bool) -> dict[str, Tensor]:
        """The config's values of the settings that are inputs."""
        names = () if is_fixed else get_results(self.task_name).INPUTS
        return {name: torch.tensor(getattr(self.config.predict, name)) for name in names}

    def forward(self, images: Tensor, sizes: Tensor, sizes_original: Tensor, **settings: Tensor) -> tuple[Tensor, ...]:
        """What the task predicts, such as boxes [B, D, 4], scores [B, D] and labels [B, D] in the original images.

        ``images`` [B, C, H, W] uint8 or uint16; ``sizes`` and ``sizes_original`` [B, 2] as in a ``Batch``.
        """
        update = {name: _number(value) for name, value in settings.items()}
        config = self.config.model_copy(update={"predict": self.config.predict.model_copy(update=update)})
        batch = Batch(images, sizes, sizes_original, None, sizes)
        found = self.task.predict(self.model(images, sizes), batch, config)
        return (found,) if isinstance(found, Tensor) else tuple(found)


def _number(value: Tensor) -> Any:
    """A setting as post-processing takes it: a count is a size of tensors, so it is a number and not a tensor."""
    if value.is_floating_point():
        return value
    count = value.item()
    torch._check(count >= 1)
    return count


def export_graph(model: Model, config: Config, is_deep: bool, is_fixed: bool) -> ExportedProgram:
    """The graph of prediction, with dynamic batch and, where the task takes any size, dynamic height and width.

    ``is_deep``: the images are uint16. ``is_fixed``: the settings of ``model.predict`` are constants, not inputs.
    """
    results, channels = get_results(config.task), config.model.in_channels
    batch, dynamic = Dim("batch"), {}
    sides = get_task(config).largest_input(config)
    if results.DIVISOR > 1:
        sides = EXAMPLE_SIDES
        dynamic = {2: results.DIVISOR * Dim("rows"), 3: results.DIVISOR * Dim("columns")}
    images = torch.zeros(2, channels, *sides, dtype=torch.uint16 if is_deep else torch.uint8)
    sizes = torch.tensor([sides, sides])
    prediction = Prediction(model, config).eval()
    settings = prediction.settings(is_fixed)
    shapes = {"images": {0: batch, **dynamic}, "sizes": {0: batch}, "sizes_original": {0: batch}}
    shapes |= {"settings": dict.fromkeys(settings)} if settings else {}
    with torch.no_grad():
        return torch.export.export(
            prediction,
            (images, sizes, sizes.clone()),  # one tensor twice would be one input
            settings,
            dynamic_shapes=shapes,
            strict=False,  # traces Python as it runs; symbolic shapes are kept, and a fixed batch is an error
        )
