"""The types that flow through the package, and the constants that every part must agree on.

``data`` → :class:`Batch` → ``Model`` → :class:`Predictions` → ``tasks.detection.loss`` (training) or
``tasks.detection.predict`` → :class:`Detections` → evaluation and writers. For classification, targets are
:class:`ClassTargets`, the model returns logits [B, K], and predictions are scores [B, K]. For segmentation, targets are
:class:`MaskTargets`, the model returns logits [B, K, h, w] on a coarse grid, and predictions are :class:`PixelScores`.

Dimension key, the same in every module:
B images, L levels, A anchors per cell, N anchors in all levels, K classes, T targets per image (padded), M candidates,
D detections per image (padded). Boxes are xyxy in pixels of the padded input unless the name says otherwise
(``boxes_original``, ``deltas``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # what reads images without torch needs the constants and Category
    import torch
    from torch import Tensor

PADDING = -1  # label of a padded box
IGNORE_REGION = -2  # label of a crowd in a sample; anchors in it take no part in the loss
BACKGROUND, IGNORE = -1, -2  # target index of an anchor without a target, and of one that takes no part in the loss
IGNORED_PIXEL = 255  # class of a pixel that takes no part in the loss or the score
SIZE_DIVISOR = 32  # images are padded to multiples of it: the stride of C5

Id = int | str  # a data set's own id of an image or a category


class Category(NamedTuple):
    """A class by the data set's own id and name; its label is its index in the list of categories."""

    id: Id
    name: str


class Targets(NamedTuple):
    """Ground truth of a batch, padded to the same number of boxes per image."""

    boxes: Tensor  # [B, T, 4] float32
    labels: Tensor  # [B, T] int64: 0..K-1 or PADDING
    regions: Tensor | None = None  # [B, R, 4] ignore regions, padded with empty boxes; None: no image has any


class ClassTargets(NamedTuple):
    """Classes of the images of a batch."""

    probabilities: Tensor  # [B, K] float32: 1 for the true classes of an image, less where two images are mixed
    weights: Tensor  # [B, K] float32: each class's weight in the loss


class MaskTargets(NamedTuple):
    """Classes of the pixels of a batch."""

    masks: Tensor  # [B, H, W] uint8 0..K-1 or IGNORED_PIXEL, as which they are padded with the images
    weights: Tensor  # [B, K] float32: each class's weight in the loss
    originals: Tensor | None = None  # [B, H', W'] uint8: as stored, padded, to score predictions; None in training

    KEPT = ("originals",)  # on the CPU, where predictions are scored; unannotated, so it is not a field


class Batch(NamedTuple):
    """What a loader yields and a model takes."""

    images: Tensor  # [B, C, H, W] uint8 or uint16, RGB if C is 3, padded right and below; the model normalises
    sizes: Tensor  # [B, 2] int64 height, width before padding
    sizes_original: Tensor  # [B, 2] int64 height, width of the image in its file
    targets: Any  # the task's: a tensor [B, ...] or a named tuple of such, as Targets and ClassTargets
    ids: Tensor  # [B] int64 indices of the images in the data set

    def to(self, device: torch.device) -> Batch:
        """What a model and its loss take on the device; the rest stays, as reading it back would wait for a GPU."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        kept = {name: getattr(self.targets, name) for name in getattr(self.targets, "KEPT", ())}
        targets = _map(self.targets._replace(**dict.fromkeys(kept)) if kept else self.targets, move)
        targets = targets._replace(**kept) if kept else targets
        return self._replace(images=move(self.images), sizes=move(self.sizes), targets=targets)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory, though another stream allocated it, until ``stream`` has done what it was given so far."""
        _map(self, lambda tensor: tensor.record_stream(stream) if tensor.is_cuda else None)

    def describe(self) -> str:
        images, _, height, width = self.images.shape
        return f"a batch of {images} image{'s' * (images > 1)} of {height}×{width}"

    def first(self, count: int) -> Batch:
        """The first ``count`` images, with the same padding."""
        return _map(self, lambda tensor: tensor[:count])


class Predictions(NamedTuple):
    """Raw outputs of a detection head over all levels, fine to coarse, in the anchors' order."""

    cls_logits: Tensor  # [B, N, K]
    box_channels: Tensor  # [B, N, C], decoded to boxes by a box coder
    anchors: Tensor  # [N, 4]
    level_counts: list[int]  # number of anchors of each level; their sum is N
    quality: Tensor | None = None  # [B, N] logits of how good the box is, a factor of every class's score; None: 1


class Assignment(NamedTuple):
    """What each anchor of a batch is to learn."""

    target: Tensor  # [B, N] int64 index into the image's targets, BACKGROUND or IGNORE
    quality: Tensor | None  # [B, N] float32 class score that a positive anchor should have; None: 1
    weight: Tensor | None = None  # [B, N] float32 how much a positive anchor adds to the normaliser; None: 1


class Losses(NamedTuple):
    """Weighted sums over a batch, and the normaliser; the engine sums both over ranks and parts, then divides."""

    parts: dict[str, Tensor]
    normaliser: Tensor
    least: float = 0.0  # what the engine divides by at least; a sum of 0 divides nothing


class Detections(NamedTuple):
    """Final boxes of a batch, best first, padded to the same number per image; in the original images' pixels."""

    boxes: Tensor  # [B, D, 4]
    scores: Tensor  # [B, D]; 0 = padding
    labels: Tensor  # [B, D]; -1 = padding


class PixelScores(NamedTuple):
    """What each cell of a grid on the padded images is, from which the classes of pixels are interpolated."""

    scores: Tensor  # [B, K, h, w] logarithms of probabilities
    extents: Tensor  # [B, 2] float32 height, width of the image itself in cells
    sizes_original: Tensor  # [B, 2] int64, of the masks to make


def _map(part: Any, change: Callable[[Tensor], Any]) -> Any:
    """``change`` applied to a tensor or to each tensor of a named tuple; None stays None."""
    if hasattr(part, "_fields"):
        return type(part)(*(_map(inner, change) for inner in part))
    return None if part is None else change(part)
