"""The figures of a classification report, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detector.data.formats.class_folders import Labelled
from detector.evaluation.class_figures import class_report
from detector.evaluation.classification import multi_label_metrics, single_label_metrics, single_label_tally
from detector.structures import Category

CATEGORIES = [Category(0, "cat"), Category(1, "dog"), Category(2, "owl")]


def labelled(labels: list[list[int]]) -> Labelled:
    return Labelled(
        source=Path("x.csv"),
        root=Path("images"),
        categories=CATEGORIES,
        files=np.array([f"{place}.png".encode() for place in range(len(labels))]),
        first=np.cumsum([0, *map(len, labels)]),
        labels=np.array([label for row in labels for label in row]),
    )


def test_the_most_confident_mistakes_of_one_label() -> None:
    truth = labelled([[0], [1], [1], [2]])
    scores = np.array([[0.6, 0.4, 0.0], [0.5, 0.3, 0.2], [0.0, 0.9, 0.1], [0.1, 0.8, 0.1]])
    order = [2, 0, 3, 1]  # rows come in any order
    tally = single_label_tally(np.array(order), scores[order], truth.labels[order])
    report = class_report(tally.rows, truth, single_label_metrics(tally, CATEGORIES))
    # Right: the first and the third. The last is a dog at 0.8, the second a cat at 0.5.
    assert [list(row.values()) for row in report.mistakes] == [
        [3, "3.png", "owl", "dog", 0.8],
        [1, "1.png", "dog", "cat", 0.5],
    ]
    assert report.is_right.tolist() == [True, False, True, False]
    assert report.confusion is not None
    assert report.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert report.figures()["right"] == 2


def test_the_most_confident_mistakes_of_several_labels() -> None:
    truth = labelled([[0, 1], [], [2]])
    scores = np.array([[0.9, 0.2, 0.1], [0.0, 0.6, 0.0], [0.1, 0.0, 0.5]])
    rows = np.concatenate([np.arange(3)[:, None], scores], axis=1)
    report = class_report(rows, truth, multi_label_metrics(scores, truth.is_true(), CATEGORIES))
    # The dog of the first has 0.2, 0.3 from the border; the second has none, and 0.6.
    assert [(row["file"], row["true"], row["predicted"]) for row in report.mistakes] == [
        ("0.png", "cat, dog", "not dog"),
        ("1.png", "", "dog"),
    ]
    assert [row["score"] for row in report.mistakes] == pytest.approx([0.2, 0.6])
    assert report.is_right.tolist() == [False, False, True]
    assert report.confusion is None
