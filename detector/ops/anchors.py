"""Anchors: boxes of fixed sizes and ratios, centred on every cell of every pyramid level.

Native order: level, then row, then column, then ratio, then scale (ratio-major within a cell).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detector.config.schema import AnchorConfig


def level_sizes(height: int, width: int, levels: Sequence[int]) -> list[tuple[int, int]]:
    """Height and width of each level's feature map for an input of ``height`` × ``width`` pixels.

    Level l has stride 2^l, and every stride-2 step of the network rounds up.
    """
    return [(-(-height // 2**level), -(-width // 2**level)) for level in levels]


def cell_anchors(base_size: float, ratios: list[float], scales: list[float], rounded: bool = False) -> Tensor:
    """The anchors of one cell, centred on the origin, [A, 4], ratio-major.

    An anchor of ratio r (height / width) and scale s covers (base_size · s)² pixels (RetinaNet, section 4).
    ``rounded`` rounds its corners to whole pixels.
    """
    size = base_size * torch.tensor(scales, dtype=torch.float64)[None, :]  # [1, S]
    root = torch.tensor(ratios, dtype=torch.float64).sqrt()[:, None]  # [R, 1]
    half_width, half_height = (size / root / 2).flatten(), (size * root / 2).flatten()
    cells = torch.stack([-half_width, -half_height, half_width, half_height], dim=1).float()
    return cells.round() if rounded else cells


class Anchors(nn.Module):
    """The anchors of a pyramid. Those of one cell are buffers, so they follow the model's device."""

    def __init__(self, config: AnchorConfig, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.offset = config.offset
        self.has_exact_strides = config.strides == "exact"
        for level in levels:
            shape = config.at_level(level)
            cells = cell_anchors(shape.base_size, shape.ratios, shape.scales, config.rounded)
            # Not saved: they are a function of the config, which a checkpoint carries anyway.
            self.register_buffer(f"p{level}", cells, persistent=False)
        self.per_cell = config.per_cell

    def forward(self, sizes: list[tuple[int, int]]) -> tuple[Tensor, list[int]]:
        """Anchors [N, 4] for feature maps of the given (height, width), and the number of anchors of each level."""
        # The padded image has whole cells on the finest level, so that level's size gives the image's.
        image = [side * 2 ** self.levels[0] for side in sizes[0]]
        per_level = []
        for level, size in zip(self.levels, sizes, strict=True):
            strides = [2**level] * 2 if self.has_exact_strides else [p // s for p, s in zip(image, size, strict=True)]
            per_level.append(self._at_level(level, size, strides))
        return torch.cat(per_level), [anchors.shape[0] for anchors in per_level]  # len() fixes an exported number

    def _at_level(self, level: int, size: tuple[int, int], strides: list[int]) -> Tensor:
        cells = self.get_buffer(f"p{level}")  # [A, 4]
        rows, columns = (
            (torch.arange(side, device=cells.device) + self.offset) * stride
            for side, stride in zip(size, strides, strict=True)
        )
        y, x = torch.meshgrid(rows.to(cells.dtype), columns.to(cells.dtype), indexing="ij")
        centers = torch.stack([x, y, x, y], dim=-1)  # [H, W, 4]
        return (centers[:, :, None, :] + cells).reshape(-1, 4)
