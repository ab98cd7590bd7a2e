"""Assignment: by hand, against an exact rational reference, and against torchvision."""

from __future__ import annotations

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
from detector.ops.assignment import ASSIGNERS, assign
from detector.ops.boxes import intersection
from detector.ops.coders import DeltaCoder
from detector.structures import BACKGROUND, IGNORE, IGNORE_REGION, PADDING, Targets

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
