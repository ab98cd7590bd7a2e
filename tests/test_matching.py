"""Assignment: by hand, against an exact rational reference, and against torchvision."""

from __future__ import annotations

import statistics
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from detector.config.schema import AnchorConfig, MatcherConfig
from detector.ops import assignment as assignment_module
from detector.ops.anchors import Anchors, level_sizes
from detector.ops.assignment import ASSIGNERS, assign, atss, task_aligned
from detector.ops.boxes import intersection
from detector.ops.coders import DeltaCoder
from detector.structures import BACKGROUND, IGNORE, IGNORE_REGION, PADDING, Predictions, Targets

Box = tuple[int, int, int, int]


def pyramid_anchors(side: int = 128) -> Tensor:
    levels = [3, 4, 5]
    return Anchors(AnchorConfig(), levels)(level_sizes(side, side, levels))[0]


def random_objects(num: int, seed: int, side: int = 128) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    top_left = 0.7 * side * torch.rand(num, 2, generator=generator)
    return torch.cat([top_left, top_left + 4 + 0.5 * side * torch.rand(num, 2, generator=generator)], dim=1)


def match_anchors(anchors: Tensor, boxes: Tensor, labels: Tensor, config: MatcherConfig) -> Tensor:
    """What :func:`assign` gives for one image, with ignore regions apart from objects as in ``collate``."""
    is_region = labels == IGNORE_REGION
    objects = torch.where(is_region, PADDING, labels)
    targets = Targets(boxes[None], objects[None], boxes[None, is_region])
    assignment = assign(anchors, [len(anchors)], targets, None, DeltaCoder(), config)
    assert assignment.quality is None
    return assignment.target[0]


def match(anchors: list[Box], boxes: list[Box], labels: list[int], config: MatcherConfig | None = None) -> list[int]:
    targets = torch.tensor(boxes).float().reshape(-1, 4)
    matched = match_anchors(torch.tensor(anchors).float(), targets, torch.tensor(labels), config or MatcherConfig())
    assert matched.dtype == torch.int64
    return matched.tolist()


# --- by hand ----------------------------------------------------------------------------------------------------------

OBJECT = (0, 0, 10, 10)
# Strips inside the object by percent of its area, which is their IoU.
STRIPS = {percent: (0, 0, 10, percent // 10) for percent in (100, 80, 60, 50, 40, 30)}


@pytest.mark.parametrize(
    ("low_quality", "percents", "expected"),
    [
        (False, [80, 60, 50, 40, 30], [0, 0, 0, IGNORE, BACKGROUND]),  # both thresholds are inclusive
        (False, [40, 30], [IGNORE, BACKGROUND]),
        (True, [40, 30], [0, BACKGROUND]),  # the closest of all
        (True, [30, 30], [0, 0]),  # both are closest
        (True, [60, 40], [0, IGNORE]),  # the closest is a match anyway
    ],
)
def test_thresholds_by_hand(low_quality: bool, percents: list[int], expected: list[int]) -> None:
    anchors = [STRIPS[percent] for percent in percents]
    assert match(anchors, [OBJECT], [3], MatcherConfig(low_quality=low_quality)) == expected


def test_an_anchor_takes_its_best_object_and_the_first_of_equals() -> None:
    anchors = [STRIPS[100], STRIPS[60]]
    assert match(anchors, [STRIPS[50], STRIPS[60], OBJECT], [0, 1, 2]) == [2, 1]
    assert match(anchors, [OBJECT, OBJECT], [0, 1]) == [0, 0]


def test_the_closest_anchor_of_one_object_keeps_its_own_best() -> None:
    # The anchor is the closest to both objects but nearer to the second: 30 of 100 and 40 of 100.
    assert match([OBJECT], [STRIPS[30], STRIPS[40]], [0, 1]) == [1]


def test_an_object_that_no_anchor_overlaps_matches_nothing() -> None:
    far, empty = (50, 50, 60, 60), (5, 5, 5, 5)
    assert match([OBJECT, STRIPS[50]], [far, empty], [0, 0]) == [BACKGROUND, BACKGROUND]
    # torchvision makes all of them positive.
    quality = box_iou(torch.tensor([far, empty]).float(), torch.tensor([OBJECT, STRIPS[50]]).float())
    assert (Matcher(0.5, 0.4, allow_low_quality_matches=True)(quality) >= 0).all()


def test_an_ignore_region_takes_anchors_out_of_the_background() -> None:
    region = (0, 0, 10, 6)
    anchors = [
        (0, 0, 10, 10),  # 0.6 in the region
        (0, 1, 10, 11),  # 0.5: not more than ignore_cover
        (0, 0, 2, 2),  # inside
        (20, 20, 30, 30),  # outside
    ]
    assert match(anchors, [region], [IGNORE_REGION]) == [IGNORE, BACKGROUND, IGNORE, BACKGROUND]
    # A match remains a match, even a low-quality one. (0, 0, 2, 2) is 0.25 of the object (0, 0, 4, 4).
    boxes = [region, (0, 0, 10, 10), (0, 0, 4, 4)]
    assert match(anchors, boxes, [IGNORE_REGION, 0, 0]) == [1, 1, 2, BACKGROUND]


def test_no_targets_at_all() -> None:
    assert match([OBJECT, STRIPS[50]], [], []) == [BACKGROUND, BACKGROUND]


# --- against an exact reference ---------------------------------------------------------------------------------------


def area(box: Box) -> int:
    return max(0, box[2] - box[0]) * max(0, box[3] - box[1])


def shared_area(one: Box, two: Box) -> int:
    return area((max(one[0], two[0]), max(one[1], two[1]), min(one[2], two[2]), min(one[3], two[3])))


def exact_iou(one: Box, two: Box) -> Fraction:
    shared = shared_area(one, two)
    return Fraction(shared, area(one) + area(two) - shared) if shared else Fraction(0)


def dense_reference(anchors: list[Box], boxes: list[Box], labels: list[int], config: MatcherConfig) -> list[int]:
    """Max-IoU matching one pair at a time, in rational numbers."""
    objects = [target for target, label in enumerate(labels) if label >= 0]
    regions = [target for target, label in enumerate(labels) if label == IGNORE_REGION]
    iou = {
        (target, anchor): exact_iou(boxes[target], anchors[anchor])
        for target in objects
        for anchor in range(len(anchors))
    }
    closest = {target: max(iou[target, anchor] for anchor in range(len(anchors))) for target in objects}
    positive, negative = Fraction(str(config.positive)), Fraction(str(config.negative))
    cover = Fraction(str(config.ignore_cover))
    matched = []
    for anchor, box in enumerate(anchors):
        best = max(objects, key=lambda target: (iou[target, anchor], -target), default=None)
        best_iou = Fraction(0) if best is None else iou[best, anchor]
        is_closest = any(iou[target, anchor] == closest[target] > 0 for target in objects)
        if best is not None and (best_iou >= positive or (config.low_quality and is_closest)):
            matched.append(best)
        elif best_iou >= negative or any(shared_area(box, boxes[region]) > cover * area(box) for region in regions):
            matched.append(IGNORE)
        else:
            matched.append(BACKGROUND)
    return matched


@st.composite
def small_box(draw: st.DrawFn, least_side: int) -> Box:
    """On a coarse grid, so that ties and overlaps of exactly a threshold are common and float32 is exact enough."""
    left, top = draw(st.integers(0, 10)), draw(st.integers(0, 10))
    return left, top, left + draw(st.integers(least_side, 10)), top + draw(st.integers(least_side, 10))


configs = st.sampled_from(
    [
        MatcherConfig(),
        MatcherConfig(low_quality=False),
        MatcherConfig(positive=0.7, negative=0.3, ignore_cover=0.25),
        MatcherConfig(positive=0.5, negative=0.5),
    ]
)


@pytest.mark.parametrize("block", [1, 3, 64])
def test_equals_the_dense_reference_for_any_block(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment_module, "BLOCK", block)

    @settings(deadline=None, max_examples=100)
    @given(
        st.lists(small_box(1), min_size=1, max_size=12),
        st.lists(st.tuples(small_box(0), st.sampled_from([0, 0, 1, PADDING, IGNORE_REGION])), max_size=9),
        configs,
    )
    def check(anchors: list[Box], targets: list[tuple[Box, int]], config: MatcherConfig) -> None:
        boxes, labels = [box for box, _ in targets], [label for _, label in targets]
        assert match(anchors, boxes, labels, config) == dense_reference(anchors, boxes, labels, config)

    check()


def test_never_compares_more_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def recorded(boxes: Tensor, anchors: Tensor) -> Tensor:
        shared = intersection(boxes, anchors)
        compared.append(shared.shape)
        return shared

    monkeypatch.setattr(assignment_module, "intersection", recorded)
    anchors = pyramid_anchors(256)
    match_anchors(anchors, random_objects(100, seed=0), torch.zeros(100, dtype=torch.int64), MatcherConfig())
    assert {images for images, _, _ in compared} == {1}
    assert sum(targets * tile for _, targets, tile in compared) == 100 * len(anchors)
    assert max(targets for _, targets, _ in compared) <= assignment_module.BLOCK
    # Nor all anchors:
    assert max(targets * tile for _, targets, tile in compared) < assignment_module.BLOCK * len(anchors)


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_the_result_does_not_depend_on_tiles_and_groups_of_images(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    anchors, config = pyramid_anchors(64), MatcherConfig()
    boxes = torch.stack([random_objects(20, seed, side=64) for seed in range(4)]).round()  # whole numbers: equal IoU
    labels = torch.tensor([0, 1, PADDING, 2] * 5).expand(4, -1)
    each = [match_anchors(anchors, *image, config) for image in zip(boxes, labels, strict=True)]
    assert all({BACKGROUND, IGNORE} < set(match.tolist()) for match in each)
    monkeypatch.setattr(assignment_module, "rows_at_once", lambda rows, width, device: step)
    together = assign(anchors, [len(anchors)], Targets(boxes, labels), None, DeltaCoder(), config).target
    assert torch.equal(together, torch.stack(each))


# --- against torchvision ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_equals_torchvision_on_ordinary_boxes(low_quality: bool, seed: int) -> None:
    anchors, boxes = pyramid_anchors(), random_objects(40, seed)
    config = MatcherConfig(low_quality=low_quality)
    matched = match_anchors(anchors, boxes, torch.zeros(len(boxes), dtype=torch.int64), config)
    expected = Matcher(0.5, 0.4, allow_low_quality_matches=low_quality)(box_iou(boxes, anchors))
    assert torch.equal(matched, expected)
    assert (matched == IGNORE).any()
    assert (matched >= 0).any()


# --- ATSS and TAL against loops ---------------------------------------------------------------------------------------

COUNTS = [24, 12, 4]  # anchors per level; the last has fewer than topk


def scattered_anchors(seed: int) -> Tensor:
    """Anchors [40, 4] of three levels, at random: no two distances or overlaps are equal."""
    generator = torch.Generator().manual_seed(seed)
    centers = 60 * torch.rand(sum(COUNTS), 2, generator=generator)
    halves = torch.tensor([6.0, 12.0, 24.0]).repeat_interleave(torch.tensor(COUNTS))[:, None]
    return torch.cat([centers - halves, centers + halves], dim=1)


def make_batch(seed: int, images: int = 3, most: int = 20) -> Targets:
    """Images of ``most``, a few and no objects, with padding in between."""
    boxes = torch.stack([random_objects(most, seed + image, side=60) for image in range(images)])
    labels = torch.arange(most).repeat(images, 1) % 3
    labels[1, torch.arange(most) % 4 > 0] = PADDING
    labels[2:] = PADDING
    return Targets(boxes, labels)


def is_inside(anchor: list[float], box: list[float]) -> bool:
    x, y = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
    return min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01


def claim(wanted: dict[tuple[int, int], float], count: int) -> list[int]:
    """The target of each anchor, from the IoUs of (target, anchor) pairs that are positive."""
    matched = []
    for anchor in range(count):
        own = {target: iou for (target, other), iou in wanted.items() if other == anchor}
        matched.append(max(own, key=lambda target: (own[target], -target)) if own else BACKGROUND)
    return matched


def atss_reference(anchors: Tensor, boxes: Tensor, labels: list[int], topk: int) -> list[int]:
    """Zhang et al. 2020, algorithm 1, one pair at a time."""
    iou, wanted = box_iou(boxes, anchors).tolist(), {}
    for target, (box, label) in enumerate(zip(boxes.tolist(), labels, strict=True)):
        candidates, start = [], 0
        for count in COUNTS:
            level = range(start, start + count)
            center = (boxes[target, :2] + boxes[target, 2:]) / 2
            distance = {index: float(((anchors[index].view(2, 2).mean(dim=0) - center) ** 2).sum()) for index in level}
            candidates += sorted(level, key=distance.__getitem__)[:topk]
            start += count
        overlaps = [iou[target][index] for index in candidates]
        threshold = statistics.mean(overlaps) + statistics.stdev(overlaps)
        for index, overlap in zip(candidates, overlaps, strict=True):
            if label >= 0 and overlap >= threshold and is_inside(anchors[index].tolist(), box):
                wanted[target, index] = overlap
    return claim(wanted, len(anchors))


@pytest.mark.parametrize("block", [1, 7, 64])
@pytest.mark.parametrize("topk", [2, 9])
def test_atss_equals_a_loop(topk: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment_module, "BLOCK", block)
    anchors, targets = scattered_anchors(seed=0), make_batch(seed=1)
    found = atss(anchors, COUNTS, targets, None, DeltaCoder(), MatcherConfig(topk=topk)).target
    for image in range(3):
        expected = atss_reference(anchors, targets.boxes[image], targets.labels[image].tolist(), topk)
        assert found[image].tolist() == expected
    assert (found[0] >= 0).sum() > 10
    assert (found[2] == BACKGROUND).all()


def test_atss_by_hand() -> None:
    """IoUs of .7 .5 .3 .1 .1 0: mean .2833, deviation .2714, threshold .5547. The centre must be inside, too."""
    box = torch.tensor([[[0.0, 0, 10, 10]]])
    strips = [(0, 0, 10, 7), (0, 0, 10, 5), (0, 0, 10, 3), (0, 0, 10, 1), (0, 0, 1, 10), (20, 0, 30, 10)]
    # Half outside, with its centre on the side: the IoU is 0.9.
    on_side = (-20 / 9 - 10, 0, 10 + 20 / 9 - 10, 10)
    targets, config = Targets(box, torch.tensor([[0]])), MatcherConfig(name="atss")
    anchors = torch.tensor(strips).float()
    found = assign(anchors, [2, 4], targets, None, DeltaCoder(), config)
    assert found.target.tolist() == [[0, -1, -1, -1, -1, -1]]
    assert found.quality is None
    left = torch.tensor([on_side]).float()
    assert assign(left, [1], targets, None, DeltaCoder(), config).target.tolist() == [[BACKGROUND]]
    # A single candidate has no deviation; equal ones are all at the threshold.
    assert assign(anchors[1:2], [1], targets, None, DeltaCoder(), config).target.tolist() == [[0]]
    assert assign(anchors[[1, 1, 1]], [1, 2], targets, None, DeltaCoder(), config).target.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("topk", [1, 2, 3, 4])
def test_of_equally_near_anchors_the_first_are_candidates(topk: int) -> None:
    """A grid whose four innermost cells are equally near, and overlap the object equally."""
    y, x = torch.meshgrid(torch.arange(6) * 8.0, torch.arange(6) * 8.0, indexing="ij")
    centers = torch.stack([x.flatten(), y.flatten()], dim=1)
    targets = Targets(torch.tensor([[[10.0, 10, 30, 30]]]), torch.tensor([[0]]))
    anchors = torch.cat([centers - 16, centers + 16], dim=1)
    found = atss(anchors, [36], targets, None, DeltaCoder(), MatcherConfig(topk=topk)).target[0]
    assert (found >= 0).nonzero()[:, 0].tolist() == [14, 15, 20, 21][:topk]


def make_predictions(anchors: Tensor, images: int, seed: int) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, len(anchors), 3, generator=generator)
    deltas = 0.3 * torch.randn(images, len(anchors), 4, generator=generator)
    return Predictions(logits, deltas, anchors, COUNTS)


def tal_reference(
    anchors: Tensor, boxes: Tensor, labels: list[int], logits: Tensor, predicted: Tensor, config: MatcherConfig
) -> tuple[list[int], list[float]]:
    """Feng et al. 2021, section 3.2, one pair at a time."""
    iou, score, wanted, alignment = box_iou(boxes, predicted).tolist(), logits.sigmoid().tolist(), {}, {}
    for target, (box, label) in enumerate(zip(boxes.tolist(), labels, strict=True)):
        if label < 0:
            continue
        own = [
            score[index][label] ** config.score_power * iou[target][index] ** config.iou_power
            for index in range(len(anchors))
        ]
        for index in sorted(range(len(anchors)), key=lambda index: -own[index])[: config.candidates]:
            if own[index] > 0 and is_inside(anchors[index].tolist(), box):
                wanted[target, index], alignment[target, index] = iou[target][index], own[index]
    matched, quality = claim(wanted, len(anchors)), []
    for anchor, target in enumerate(matched):
        own = [(target, other) for other, found in enumerate(matched) if found == target >= 0]
        best = max((alignment[pair] for pair in own), default=0)
        quality.append(alignment[target, anchor] / best * max(wanted[pair] for pair in own) if own else 0.0)
    return matched, quality


@pytest.mark.parametrize("block", [1, 7, 64])
@pytest.mark.parametrize("candidates", [3, 13, 100])
def test_task_aligned_equals_a_loop(candidates: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment_module, "BLOCK", block)
    anchors, targets = scattered_anchors(seed=0), make_batch(seed=1)
    predictions, config = make_predictions(anchors, 3, seed=2), MatcherConfig(candidates=candidates, iou_power=2.0)
    found = task_aligned(anchors, COUNTS, targets, predictions, DeltaCoder(), config)
    for image in range(3):
        predicted = DeltaCoder().decode(predictions.box_channels[image], anchors)
        matched, quality = tal_reference(
            anchors,
            targets.boxes[image],
            targets.labels[image].tolist(),
            predictions.cls_logits[image],
            predicted,
            config,
        )
        assert found.target[image].tolist() == matched
        assert found.quality[image].tolist() == pytest.approx(quality, rel=1e-4, abs=1e-7)
    assert (found.target[0] >= 0).sum() > 5
    assert found.weight is found.quality


def test_task_aligned_by_hand() -> None:
    """s = (.6, .3, .8), u = (.9, .7, .5), α 1, β 6: t = (.3189, .0353, .0125), targets (.9, .0996, .0353)."""
    anchors = torch.tensor([[0.0, 0, 10, 9], [0, 0, 10, 7], [0, 0, 10, 5], [0, 0, 10, 0.1]])
    logits = torch.tensor([[[0.6], [0.3], [0.8], [0.0]]]).logit()
    predictions = Predictions(logits, torch.zeros(1, 4, 4), anchors, [4])
    targets, config = Targets(torch.tensor([[[0.0, 0, 10, 10]]]), torch.tensor([[0]])), MatcherConfig(candidates=3)
    found = task_aligned(anchors, [4], targets, predictions, DeltaCoder(), config)
    assert found.target.tolist() == [[0, 0, 0, BACKGROUND]]
    assert found.quality[0].tolist() == pytest.approx([0.9, 0.0996, 0.0353, 0], abs=5e-5)


def test_without_predictions_task_aligned_is_atss() -> None:
    anchors, targets = scattered_anchors(seed=3), make_batch(seed=4)
    both = [
        ASSIGNERS[name](anchors, COUNTS, targets, None, DeltaCoder(), MatcherConfig())
        for name in ("task_aligned", "atss")
    ]
    assert torch.equal(both[0].target, both[1].target)
    assert both[0].quality is None


@pytest.mark.parametrize(
    ("name", "images", "most"), [*((name, 2, 0) for name in ASSIGNERS), ("atss", 0, 3), ("task_aligned", 0, 3)]
)
def test_nothing_to_assign(name: str, images: int, most: int) -> None:
    anchors = scattered_anchors(seed=0)
    targets = Targets(torch.zeros(images, most, 4), torch.zeros(images, most, dtype=torch.int64))
    predictions = make_predictions(anchors, images, seed=0)
    found = assign(anchors, COUNTS, targets, predictions, DeltaCoder(), MatcherConfig(name=name))
    assert found.target.tolist() == [[BACKGROUND] * len(anchors)] * images


# --- every assigner ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ASSIGNERS)
def test_padding_and_regions_make_nothing_positive(name: str) -> None:
    anchors, config = pyramid_anchors(), MatcherConfig(name=name)
    boxes = torch.cat([random_objects(3, seed=1), torch.zeros(2, 4), anchors[:2]])
    labels = torch.tensor([IGNORE_REGION] * 3 + [PADDING] * 4)
    matched = match_anchors(anchors, boxes, labels, config)
    assert matched.shape == (len(anchors),)
    assert (matched < 0).all()
    assert (matched == BACKGROUND).any()


@pytest.mark.parametrize("name", ASSIGNERS)
def test_padding_changes_nothing(name: str) -> None:
    anchors, config = pyramid_anchors(), MatcherConfig(name=name)
    boxes, labels = random_objects(20, seed=1), torch.arange(20) % 4
    matched = match_anchors(anchors, boxes, labels, config)
    padded_boxes, padded_labels = torch.cat([boxes, anchors[:9]]), torch.cat([labels, torch.full((9,), PADDING)])
    assert torch.equal(match_anchors(anchors, padded_boxes, padded_labels, config), matched)


@pytest.mark.parametrize("name", ASSIGNERS)
def test_every_object_has_an_anchor_and_every_index_an_object(name: str) -> None:
    anchors, config = pyramid_anchors(), MatcherConfig(name=name)
    # Far enough apart that no two share their closest anchors.
    boxes = torch.tensor([[4.0, 4, 14, 14], [60, 8, 100, 50], [10, 60, 40, 120], [90, 90, 120, 124]])
    matched = match_anchors(anchors, boxes, torch.zeros(4, dtype=torch.int64), config)
    assert set(matched[matched >= 0].tolist()) == {0, 1, 2, 3}
