"""Metrics of classification: tables by hand, and a slow implementation that agrees."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.evaluation.classification import (
    average_precision,
    multi_label_metrics,
    single_label_metrics,
    single_label_tally,
)
from detector.structures import Category


def classes(count: int) -> list[Category]:
    """Categories with ids that differ from their labels."""
    return [Category(10 * label, f"class {label}") for label in range(count)]


def scores_of(predicted: list[int], num_classes: int) -> np.ndarray:
    """Scores whose highest is the predicted class."""
    return np.where(np.arange(num_classes) == np.array(predicted)[:, None], 0.9, 0.1)


def single_label(scores: np.ndarray, labels: np.ndarray, categories: list[Category]) -> dict[str, Any]:
    return single_label_metrics(single_label_tally(np.arange(len(labels)), scores, labels), categories)


# --- one label --------------------------------------------------------------------------------------------------------


def test_one_label_by_hand() -> None:
    # True by predicted class, the last class without images:
    #          0  1  2  3
    #     0    2  1  0  1
    #     1    0  3  0  0
    #     2    2  0  0  0
    #     3    0  0  0  0
    labels, predicted = [0, 0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 1, 3, 1, 1, 1, 0, 0]
    metrics = single_label(scores_of(predicted, 4), np.array(labels), classes(4))
    assert metrics["confusion"] == [[2, 1, 0, 1], [0, 3, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]]
    assert metrics["top1"] == pytest.approx(5 / 9)
    assert metrics["top5"] == 1  # of four classes
    # Recall by row: 2/4, 3/3, 0/2. Class 3 has no image: it has nothing to find, and is in no mean.
    assert metrics["mean_class_accuracy"] == pytest.approx((0.5 + 1 + 0) / 3)
    # Precision by column: 2 of 4, 3 of 4, 0 of 0. F1 = 2 · right / (predicted + true): 4/8, 6/7, 0/2.
    assert metrics["macro_f1"] == pytest.approx((4 / 8 + 6 / 7 + 0) / 3)
    expected = [(4, 0.5, 0.5, 0.5), (3, 0.75, 1, 6 / 7), (2, 0, 0, 0), (0, -1, -1, -1)]
    assert len(metrics["per_class"]) == 4
    for label, (row, numbers) in enumerate(zip(metrics["per_class"], expected, strict=True)):
        assert (row["id"], row["name"]) == (10 * label, f"class {label}")
        assert (row["images"], row["precision"], row["recall"], row["f1"]) == pytest.approx(numbers)


@pytest.mark.parametrize(
    ("label", "top1", "top5"),
    # Scores 0.3 0.1 0.3 0.3 0.2 0.2 0.1: the first of equal ones comes first, so the order is 0 2 3 4 5 1 6.
    [(0, 1, 1), (2, 0, 1), (3, 0, 1), (4, 0, 1), (5, 0, 1), (1, 0, 0), (6, 0, 0)],
)
def test_equal_scores(label: int, top1: float, top5: float) -> None:
    scores = np.array([[0.3, 0.1, 0.3, 0.3, 0.2, 0.2, 0.1]])
    metrics = single_label(scores, np.array([label]), classes(7))
    assert (metrics["top1"], metrics["top5"]) == (top1, top5)
    assert metrics["confusion"][label] == [1, 0, 0, 0, 0, 0, 0]  # as top1 has it


def test_all_scores_equal() -> None:
    # Nothing was learned: the first class is predicted, five of ten classes are among the first five.
    metrics = single_label(np.full((10, 10), 0.1), np.arange(10), classes(10))
    assert (metrics["top1"], metrics["top5"]) == (0.1, 0.5)
    assert metrics["mean_class_accuracy"] == pytest.approx(0.1)


def test_numbers_are_pythons_own() -> None:
    metrics = single_label(scores_of([0, 1], 2), np.array([0, 1]), classes(2))
    assert {type(metrics[name]) for name in ("top1", "top5", "mean_class_accuracy", "macro_f1")} == {float}
    assert {type(number) for row in metrics["confusion"] for number in row} == {int}
    assert {type(value) for row in metrics["per_class"] for value in row.values()} == {int, str, float}


TABLES = st.integers(1, 8).flatmap(
    lambda num_classes: st.tuples(
        st.just(num_classes),
        st.lists(
            st.tuples(
                st.integers(0, num_classes - 1),
                # Few values, so that many are equal.
                st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=num_classes, max_size=num_classes),
            ),
            min_size=1,
            max_size=20,
        ),
    )
)


@given(TABLES)
def test_one_label_against_a_loop(table: tuple[int, list[tuple[int, list[float]]]]) -> None:
    num_classes, images = table
    labels, scores = [label for label, _ in images], [row for _, row in images]
    metrics = single_label(np.array(scores), np.array(labels), classes(num_classes))
    ranked = [sorted(range(num_classes), key=lambda label, row=row: (-row[label], label)) for row in scores]
    pairs = [(label, order[0]) for label, order in zip(labels, ranked, strict=True)]
    assert metrics["top1"] == pytest.approx(sum(label == first for label, first in pairs) / len(pairs))
    inside = [label in order[:5] for label, order in zip(labels, ranked, strict=True)]
    assert metrics["top5"] == pytest.approx(sum(inside) / len(pairs))
    f1 = []
    for label, row in enumerate(metrics["per_class"]):
        assert metrics["confusion"][label] == [pairs.count((label, other)) for other in range(num_classes)]
        true, found = labels.count(label), sum(first == label for _, first in pairs)
        right = pairs.count((label, label))
        assert row["images"] == true
        if true == 0:
            assert (row["precision"], row["recall"], row["f1"]) == (-1, -1, -1)
            continue
        precision, recall = right / found if found else 0, right / true
        f1.append(2 * precision * recall / (precision + recall) if right else 0)
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx((precision, recall, f1[-1]))
    assert metrics["macro_f1"] == pytest.approx(sum(f1) / len(f1))


# --- several labels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "is_true", "expected"),
    [
        # Best first: right, wrong, right. Precision 1 at the first, 2/3 at the second true one.
        ([0.9, 0.8, 0.7], [1, 0, 1], (1 + 2 / 3) / 2),
        ([0.7, 0.9, 0.8], [1, 1, 0], (1 + 2 / 3) / 2),  # the same in another order
        ([0.9, 0.8, 0.7], [1, 1, 1], 1),
        ([0.9, 0.8, 0.7], [0, 0, 1], 1 / 3),
        ([0.9, 0.8, 0.7], [0, 0, 0], -1),
        # Equal scores are one step: two of three together, in any order.
        ([0.5, 0.5, 0.5], [1, 0, 1], 2 / 3),
        ([0.5, 0.5, 0.5], [0, 1, 1], 2 / 3),
        # Step 1: 1 of 1 (half of the true ones). Step 2: 2 of 3 (the other half).
        ([0.9, 0.4, 0.4, 0.1], [1, 0, 1, 0], (1 + 2 / 3) / 2),
        # Step 1: 0 of 2. Step 2: 2 of 4, all true ones together.
        ([0.9, 0.9, 0.4, 0.4], [0, 0, 1, 1], 2 / 4),
        ([1.0], [1], 1),
        ([0.0], [1], 1),
    ],
)
def test_average_precision_by_hand(scores: list[float], is_true: list[int], expected: float) -> None:
    assert average_precision(np.array(scores), np.array(is_true, bool)) == pytest.approx(expected)


def slow_average_precision(pairs: list[tuple[float, bool]]) -> float:
    """For each threshold that is a score: precision, weighted by the recall that it adds."""
    total, before = 0.0, 0.0
    for threshold in sorted({score for score, _ in pairs}, reverse=True):
        taken = [is_true for score, is_true in pairs if score >= threshold]
        recall = sum(taken) / sum(is_true for _, is_true in pairs)
        total += (recall - before) * sum(taken) / len(taken)
        before = recall
    return total


FEW = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])


@given(st.lists(st.tuples(FEW | st.floats(0, 1), st.booleans()), min_size=1, max_size=40), st.randoms())
def test_average_precision_against_thresholds(pairs: list[tuple[float, bool]], random: Random) -> None:
    def own(some: list[tuple[float, bool]]) -> float:
        return average_precision(np.array([score for score, _ in some]), np.array([is_true for _, is_true in some]))

    if not any(is_true for _, is_true in pairs):
        assert own(pairs) == -1
        return
    assert own(pairs) == pytest.approx(slow_average_precision(pairs))
    shuffled = list(pairs)
    random.shuffle(shuffled)
    assert own(shuffled) == pytest.approx(own(pairs), abs=1e-12)


def test_several_labels_by_hand() -> None:
    scores = np.array([[0.9, 0.6, 0.2], [0.5, 0.3, 0.1], [0.4, 0.7, 0.0], [0.1, 0.6, 0.9]])
    is_true = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]], bool)
    metrics = multi_label_metrics(scores, is_true, classes(3))
    assert set(metrics) == {"mAP", "macro_f1", "per_class"}
    # Class 0, best first: image 0 (true), 1, 2 (true), 3: (1 + 2/3) / 2. Found at 0.5: images 0 and 1, one of them
    # right, of two true ones: precision 1/2, recall 1/2, F1 = 2 · 1 / (2 + 2).
    # Class 1: image 2 (true), then 0 and 3 together, then 1 (true): (1 + 2/4) / 2. Found: 0, 2, 3, one right of two:
    # precision 1/3, recall 1/2, F1 = 2 · 1 / (3 + 2).
    # Class 2 has no image.
    expected = [
        (2, 1 / 2, 1 / 2, 1 / 2, 5 / 6),
        (2, 1 / 3, 1 / 2, 2 / 5, 3 / 4),
        (0, -1, -1, -1, -1),
    ]
    for row, numbers in zip(metrics["per_class"], expected, strict=True):
        own = (row["images"], row["precision"], row["recall"], row["f1"], row["AP"])
        assert own == pytest.approx(numbers)
    assert metrics["mAP"] == pytest.approx((5 / 6 + 3 / 4) / 2)
    assert metrics["macro_f1"] == pytest.approx((1 / 2 + 2 / 5) / 2)


def test_several_labels_with_nothing_true() -> None:
    metrics = multi_label_metrics(np.full((3, 2), 0.7), np.zeros((3, 2), bool), classes(2))
    assert (metrics["mAP"], metrics["macro_f1"]) == (-1, -1)


@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 1000))
def test_the_order_of_images_does_not_matter(num_images: int, num_classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.choice([0.2, 0.5, 0.8], (num_images, num_classes))
    is_true = rng.random((num_images, num_classes)) < 0.4
    order = rng.permutation(num_images)
    one, other = (
        multi_label_metrics(scores[rows], is_true[rows], classes(num_classes)) for rows in (slice(None), order)
    )
    assert one["mAP"] == pytest.approx(other["mAP"])
    assert one["macro_f1"] == other["macro_f1"]
    labels = rng.integers(0, num_classes, num_images)
    one, other = (single_label(scores[rows], labels[rows], classes(num_classes)) for rows in (slice(None), order))
    assert one == other
