"""Tiles: where they lie, which boxes of each stay, merging; prediction, training and huge files by tiles."""

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms

from detector.ops.tiles import Grid, merge_boxes


def test_the_last_tiles_end_where_the_image_does():
    # Steps of 400 · (1 - 0.25) = 300.
    assert Grid(1000, 900, 400, 0.25).tops.tolist() == [0, 300, 600]
    assert Grid(1000, 900, 400, 0.25).lefts.tolist() == [0, 300, 500]
    assert list(Grid(300, 900, 400, 0.25)) == [(0, left, 300, 400) for left in (0, 300, 500)]
    assert list(Grid(400, 20, 400, 0.25)) == [(0, 0, 400, 20)]  # smaller than a tile: one


@pytest.mark.parametrize(
    ("tile", "box", "is_cut"),
    [
        # Tiles at 0, 300, 600 of 1,000 pixels; touching is up to 1.6 pixels from a border.
        ((0, 0), [330, 10, 400, 40], True),  # on the border of the first tile; the second begins before it
        ((0, 1), [330, 10, 420, 40], False),  # and sees it whole
        ((0, 0), [290, 10, 400, 40], False),  # longer than the overlap: whole nowhere, so it stays in both
        ((0, 1), [300, 10, 420, 40], False),
        ((0, 0), [0, 10, 30, 40], False),  # on the border of the image
        ((1, 1), [300, 310, 380, 340], True),  # on the left border; the tile before ends behind it
        ((0, 0), [340, 340, 400, 400], True),  # in the corner of four tiles: only the last one has it whole
        ((0, 1), [340, 340, 420, 400], True),
        ((1, 0), [340, 340, 400, 420], True),
        ((1, 1), [340, 340, 420, 420], False),
    ],
)
def test_a_box_stays_where_no_other_tile_shows_more_of_it(tile, box, is_cut):
    grid = Grid(1000, 1000, 400, 0.25)
    assert grid.is_cut(tile[0] * 3 + tile[1], np.array([box], dtype=float)).tolist() == [is_cut]


@pytest.mark.parametrize("size", [(8, 40), (1, 900)])
@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_merging_by_iou_is_class_wise_nms(size, threshold):
    rng = np.random.default_rng(0)
    low = rng.uniform(-50, 2000, (3000, 2))
    boxes = np.concatenate([low, low + rng.uniform(*size, (3000, 2))], axis=1)
    scores, labels = rng.random(3000).round(2), rng.integers(0, 3, 3000)  # many equal scores
    order = np.argsort(-scores, kind="stable")  # torch's own order of equal scores is not defined
    ranks = torch.linspace(1, 0, 3000, dtype=torch.float64)
    given = torch.from_numpy(boxes[order]), ranks, torch.from_numpy(labels[order])
    expected = order[batched_nms(*given, threshold).numpy()]
    assert merge_boxes(boxes, scores, labels, threshold).tolist() == expected.tolist()


def test_merging_by_ios_removes_what_lies_in_a_better_box():
    boxes = np.array([[0, 0, 100, 100], [10, 10, 20, 20], [10, 10, 20, 20], [90, 0, 130, 100]], dtype=float)
    scores, labels = np.array([0.9, 0.8, 0.8, 0.7]), np.array([0, 0, 1, 0])
    # The second lies in the first; the third is of another class; of the fourth, 10 of 40 columns are in the first.
    assert merge_boxes(boxes, scores, labels, 0.5, "ios").tolist() == [0, 2, 3]
    assert merge_boxes(boxes, scores, labels, 0.5, "iou").tolist() == [0, 1, 2, 3]  # a nested box stays
    assert merge_boxes(boxes, scores, labels, 0.2, "ios").tolist() == [0, 2]


def test_equal_boxes_leave_the_first():
    boxes = np.tile([[5.0, 5, 15, 15]], (2000, 1))  # more than are compared at a time
    assert merge_boxes(boxes, np.full(2000, 0.5), np.zeros(2000, dtype=int), 0.5).tolist() == [0]
    assert merge_boxes(np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=int), 0.5).tolist() == []
