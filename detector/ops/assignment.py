"""Assign ground-truth boxes to anchors.

Dimension key: B images, T targets per image (padded), N anchors in all levels, R ignore regions per image (padded).

:func:`assign` calls the assigner that the config names, then applies the ignore regions. To add an assigner, write a
function like :func:`max_iou`, and add a line to ``ASSIGNERS`` and its fields to ``MatcherConfig``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from detector.config.parts import find_part
from detector.config.schema import MatcherConfig
from detector.ops.boxes import box_area, box_centers, intersection, paired_iou, side_distances
from detector.ops.chunks import rows_at_once
from detector.ops.coders import BoxCoder
from detector.structures import BACKGROUND, IGNORE, Assignment, Predictions, Targets

# Number of targets that are compared with the anchors together, on a GPU at least. Memory is O(N · BLOCK) however many
# objects an image has; the result does not depend on BLOCK.
BLOCK = 16


# Not compiled: its loops are over objects, whose number changes, and other rounding would decide ties otherwise.
@torch.compiler.disable
def assign(
    anchors: Tensor,
    level_counts: list[int],
    targets: Targets,
    predictions: Predictions | None,
    coder: BoxCoder,
    config: MatcherConfig,
) -> Assignment:
    """The target of each anchor [N, 4], by the config's assigner; ``level_counts`` is the number of anchors per level.

    A background anchor that lies in one ignore region by more than the fraction ``ignore_cover`` of its area takes no
    part in the loss. ``predictions`` is None where there is no model (drawings, the anchor report), and in the warm-up
    of a run (``warmup``); ``coder`` decodes their boxes.
    """
    assigner = find_part("model.matcher.name", config.name, ASSIGNERS)
    assignment = assigner(anchors, level_counts, targets, predictions, coder, config)
    if targets.regions is None:
        return assignment
    is_ignored = _covered_area(anchors, targets.regions) > config.ignore_cover * box_area(anchors)  # [B, N]
    target = torch.where(is_ignored & (assignment.target == BACKGROUND), IGNORE, assignment.target)
    return assignment._replace(target=target)


def _block(images: int, num_anchors: int, device: torch.device) -> int:
    """How many targets of each image to compare with the anchors together: of a GPU, as many as occupy it."""
    return BLOCK if device.type == "cpu" else max(BLOCK, rows_at_once(2**16, images * num_anchors, device))


def _covered_area(anchors: Tensor, regions: Tensor) -> Tensor:
    """The largest intersection of each anchor with one region of an image, [N, 4] and [B, R, 4] → [B, N]."""
    covered = anchors.new_zeros(len(regions), len(anchors))
    for region in regions.unbind(dim=1):  # [B, 4]
        covered = torch.maximum(covered, intersection(region[:, None], anchors))
    return covered


def max_iou(
    anchors: Tensor,
    level_counts: list[int],
    targets: Targets,
    predictions: Predictions | None,
    coder: BoxCoder,
    config: MatcherConfig,
) -> Assignment:
    """By IoU (RetinaNet, section 4): ``positive`` or more is a match, under ``negative`` is background, else ignored.

    With ``low_quality``, every object also keeps the anchors of its best IoU. Example: one object, thresholds 0.5 and
    0.4, IoU 0.6 / 0.45 / 0.3 → 0, IGNORE, BACKGROUND.
    """
    anchors = anchors.t().contiguous().t()  # column-major: reading one side of all anchors is contiguous
    # A GPU takes many images at once, as each operation costs it the same time; a CPU takes what its caches hold.
    images = rows_at_once(len(targets.boxes), BLOCK * len(anchors), anchors.device)
    groups = zip(targets.boxes.split(images), targets.labels.split(images), strict=True)
    return Assignment(torch.cat([_match_images(anchors, *group, config) for group in groups]), None)


def _match_images(anchors: Tensor, boxes: Tensor, labels: Tensor, config: MatcherConfig) -> Tensor:
    """The target index of each anchor, [B, N], for the ``boxes`` [B, T, 4] and ``labels`` [B, T] of some images."""
    areas = box_area(anchors)  # [N]
    best_iou = areas.new_zeros(len(boxes), len(areas))  # [B, N]
    best_target = torch.zeros_like(best_iou, dtype=torch.int64)  # [B, N]
    is_closest = torch.zeros_like(best_iou, dtype=torch.bool)  # [B, N]

    block_size = _block(len(boxes), len(areas), areas.device)
    for start in range(0, boxes.shape[1], block_size):
        block = boxes[:, start : start + block_size, None]  # [B, T', 1, 4]
        # Padding gets infinite area, so its IoU is 0.
        is_object = labels[:, start : start + block_size, None] >= 0
        block_areas = torch.where(is_object, box_area(block), torch.inf)  # [B, T', 1]
        iou = areas.new_empty(*block.shape[:2], len(areas))  # [B, T', N]
        tiles = _tiles(len(areas), block.shape[:2].numel(), areas.device)
        for tile in tiles:
            shared = intersection(block, anchors[tile])  # [B, T', N']
            iou[..., tile] = shared / (block_areas + areas[tile].clamp(min=torch.finfo(areas.dtype).tiny) - shared)
            tile_iou = iou[..., tile].amax(dim=1)  # [B, N']
            # Among equal overlaps the first target wins, within a block and across blocks (hence >, not >=).
            tile_target = start + _first_equal(iou[..., tile], tile_iou)
            best_target[:, tile] = torch.where(tile_iou > best_iou[:, tile], tile_target, best_target[:, tile])
            best_iou[:, tile] = torch.maximum(best_iou[:, tile], tile_iou)
        if config.low_quality:
            # Every object keeps its closest anchors, else small ones get no gradient (Faster R-CNN, 3.1.2). An object
            # that overlaps no anchor keeps none; torchvision lacks this guard and makes all anchors positive.
            closest_iou = iou.amax(dim=2, keepdim=True)  # [B, T', 1]
            closest_iou = torch.where(closest_iou > 0, closest_iou, torch.inf)
            for tile in tiles:
                is_closest[:, tile] |= (iou[..., tile] - closest_iou).amax(dim=1) == 0

    is_positive = (best_iou >= config.positive) | is_closest
    no_target = torch.where(best_iou >= config.negative, IGNORE, BACKGROUND)
    return torch.where(is_positive, best_target, no_target)


def _tiles(num_anchors: int, num_targets: int, device: torch.device) -> list[slice]:
    """Slices of the anchors, each to be compared with ``num_targets`` targets together."""
    step = rows_at_once(num_anchors, num_targets, device)
    return [slice(start, start + step) for start in range(0, num_anchors, step)]


def _first_equal(iou: Tensor, value: Tensor) -> Tensor:
    """The first row of each column of ``iou`` [B, T', N'] that equals ``value`` [B, N']; one does.

    All in floats: on a CPU, argmax takes twenty times as long, and comparing into bools six times.
    """
    if not iou.is_cpu:
        return iou.argmax(dim=1)
    rows = iou.shape[1]
    countdown = torch.arange(rows, 0, -1, dtype=iou.dtype, device=iou.device)[:, None]  # [T', 1]
    return rows - iou.clone().eq_(value[:, None]).mul_(countdown).amax(dim=1).long()


def atss(
    anchors: Tensor,
    level_counts: list[int],
    targets: Targets,
    predictions: Predictions | None,
    coder: BoxCoder,
    config: MatcherConfig,
) -> Assignment:
    """By a threshold for each object: mean plus deviation of its nearest anchors' IoUs (Zhang et al. 2020, alg. 1).

    An object's candidates are the ``topk`` anchors of each level whose centres are nearest to its own. Positive are
    those whose IoU is at least the threshold and whose centre lies inside the object. With IoUs of 0.7, 0.5, 0.3, 0.1,
    0.1 and 0: mean 0.283, deviation 0.271, threshold 0.555, one positive.
    """
    boxes, centers = targets.boxes[:, :, None], box_centers(anchors)  # [B, T, 1, 4], [N, 2]
    blocks = box_centers(boxes).split(_block(len(boxes), len(anchors), anchors.device), dim=1)
    candidates = torch.cat(
        [_nearest(block, centers, level_counts, config.topk) for block in blocks], dim=1
    )  # [B, T, C]
    iou = paired_iou(boxes, anchors[candidates])  # [B, T, C]
    # In float64: in float32, the mean of equal IoUs could be more than they are.
    wide = iou.double()
    mean = wide.mean(dim=2, keepdim=True)  # [B, T, 1]
    variance = (wide - mean).square().sum(dim=2, keepdim=True) / max(1, candidates.shape[2] - 1)
    is_positive = (wide >= mean + variance.sqrt()) & _is_inside(centers[candidates], boxes)
    is_positive &= targets.labels[:, :, None] >= 0
    return Assignment(_best_target(candidates, iou.where(is_positive, -1.0), anchors.shape[0])[0], None)


def _nearest(points: Tensor, centers: Tensor, level_counts: list[int], topk: int) -> Tensor:
    """The ``topk`` of ``centers`` [N, 2] on each level that are nearest to ``points`` [B, T', 1, 2], [B, T', C]."""
    x, y = points.unbind(dim=-1)  # [B, T', 1]; one by one, operations run along the many anchors
    nearest, start = [], 0
    for level in centers.split(level_counts):
        level_x, level_y = level.t().contiguous()  # [N']
        distance = (x - level_x).square_().add_((y - level_y).square_())  # [B, T', N']
        nearest.append(start + _top(distance, topk, largest=False))
        start += level.shape[0]
    return torch.cat(nearest, dim=2)


def task_aligned(
    anchors: Tensor,
    level_counts: list[int],
    targets: Targets,
    predictions: Predictions | None,
    coder: BoxCoder,
    config: MatcherConfig,
) -> Assignment:
    """By what is predicted: t = score^α · IoU^β, the powers of the config (TOOD: Feng et al. 2021, section 3.2).

    Positive are those of the ``candidates`` anchors of an object's largest t whose centre lies inside it. Their class
    scores learn t, scaled so that an object's best t becomes its best IoU. With scores of 0.6, 0.3 and 0.8 and IoUs of
    0.9, 0.7 and 0.5: t is 0.319, 0.035 and 0.0125, the targets 0.9, 0.0996 and 0.0353.

    Without ``predictions``, and in the warm-up of a run, while they mean nothing, :func:`atss` decides.
    """
    if predictions is None:
        return atss(anchors, level_counts, targets, None, coder, config)
    logits = predictions.cls_logits.detach()  # [B, N, K]
    predicted = coder.decode(predictions.box_channels.detach(), anchors)  # [B, N, 4]
    boxes, labels, centers = targets.boxes[:, :, None], targets.labels, box_centers(anchors)
    blocks, size = [], _block(len(boxes), len(anchors), anchors.device)
    for block, own in zip(boxes.split(size, dim=1), labels.clamp(min=0).split(size, dim=1), strict=True):
        iou = paired_iou(block, predicted[:, None])  # [B, T', N]; never negative, which β = 6 would make positive
        score = logits.gather(2, own[:, None].expand(-1, logits.shape[1], -1)).mT.float().sigmoid()  # [B, T', N]
        aligned = score**config.score_power * iou**config.iou_power
        best = _top(aligned, config.candidates, largest=True)  # [B, T', C]
        blocks.append((best, aligned.gather(2, best), iou.gather(2, best)))
    candidates, aligned, iou = (torch.cat(parts, dim=1) for parts in zip(*blocks, strict=True))  # [B, T, C] each

    is_positive = (aligned > 0) & _is_inside(centers[candidates], boxes) & (labels[:, :, None] >= 0)
    target, is_own = _best_target(candidates, iou.where(is_positive, -1.0), anchors.shape[0])
    aligned, iou = aligned.where(is_own, 0.0), iou.where(is_own, 0.0)
    largest, best_iou = aligned.amax(dim=2, keepdim=True), iou.amax(dim=2, keepdim=True)  # [B, T, 1]
    aligned = aligned / largest.clamp(min=torch.finfo(aligned.dtype).tiny) * best_iou
    # An anchor is its own object's, so of all that are added up for an anchor one is not 0.
    quality = anchors.new_zeros(target.shape).scatter_add_(1, candidates.flatten(1), aligned.flatten(1))
    return Assignment(target, quality, quality)


def _top(values: Tensor, count: int, largest: bool) -> Tensor:
    """Indices of the ``count`` largest or smallest ``values`` [..., N] ≥ 0, or of all if fewer; of equals the first.

    topk leaves open which of equal values it takes. The bits of floats that are not negative are ordered as the floats
    are, so with the index in lower bits all keys differ.
    """
    index = torch.arange(values.shape[-1], device=values.device)
    keys = values.float().view(torch.int32).long().bitwise_left_shift_(32).add_(-index if largest else index)
    return keys.topk(min(count, values.shape[-1]), dim=-1, largest=largest, sorted=False).indices


def _is_inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether points lie in their boxes by more than a hundredth of a pixel, [..., 2] and [..., 4] → [...]."""
    return side_distances(points, boxes).amin(dim=-1) > 0.01


def _best_target(candidates: Tensor, iou: Tensor, num_anchors: int) -> tuple[Tensor, Tensor]:
    """The target of each anchor, [B, N], and which ``candidates`` [B, T, C] are their anchor's, [B, T, C].

    ``iou`` [B, T, C] is that of candidates with their target, negative where they are not positive. An anchor that
    several objects want takes that of the highest IoU; of equals the first.
    """
    batch, most, _ = candidates.shape
    flat = candidates.flatten(1)  # [B, T · C]
    best_iou = iou.new_full((batch, num_anchors), -0.5).scatter_reduce_(1, flat, iou.flatten(1), "amax")
    is_best = iou == best_iou.gather(1, flat).view_as(iou)  # never where negative
    index = torch.arange(most, device=iou.device)[:, None].expand_as(candidates)
    claimed = index.where(is_best, most).flatten(1)
    first = flat.new_full((batch, num_anchors), most).scatter_reduce_(1, flat, claimed, "amin")
    is_own = is_best & (index == first.gather(1, flat).view_as(index))
    return torch.where(first < most, first, BACKGROUND), is_own


Assigner = Callable[[Tensor, list[int], Targets, Predictions | None, BoxCoder, MatcherConfig], Assignment]

ASSIGNERS: dict[str, Assigner] = {
    "max_iou": max_iou,
    "atss": atss,
    "task_aligned": task_aligned,
}
