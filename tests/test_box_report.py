"""The figures of a detection report: every one against a table computed by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_metrics import Box, make_rows, make_truth

from detector.evaluation.box_figures import ERRORS, BoxReport, box_report, false_type
from detector.evaluation.coco import coco_metrics

CAT, DOG = 3, 8  # category ids of make_truth
Truth = list[tuple[int, Box, int, int]]  # image, box, class, crowd
Found = list[tuple[int, Box, float, int]]  # image, box, score, class


def report_of(folder: Path, objects: Truth, found: Found, num_images: int = 2) -> BoxReport:
    truth, rows = make_truth(folder, objects, num_images), make_rows(found)
    return box_report(rows, truth, coco_metrics(rows, truth, "hotcoco", 100))


OBJECTS: Truth = [
    (10, [0, 0, 100, 100], CAT, 0),  # A
    (10, [200, 0, 100, 100], DOG, 0),  # B
    (10, [400, 0, 100, 100], CAT, 0),  # C
    (10, [600, 0, 100, 100], CAT, 0),  # D
    (20, [0, 0, 100, 100], DOG, 0),  # E
    (20, [300, 300, 200, 200], CAT, 1),
]
FOUND: Found = [
    (10, [0, 0, 100, 100], 0.9, CAT),  # right
    (10, [200, 0, 100, 100], 0.85, CAT),  # B is a dog: classification
    (10, [0, 0, 100, 90], 0.8, CAT),  # A is found already: duplicate
    (10, [400, 0, 100, 40], 0.7, CAT),  # IoU 0.4 with C: localisation
    (10, [600, 0, 100, 30], 0.6, DOG),  # IoU 0.3 with D, a cat: both
    (10, [800, 800, 50, 50], 0.5, CAT),  # background
    (20, [310, 310, 50, 50], 0.4, CAT),  # in the crowd: not counted
    (20, [500, 500, 50, 50], 0.3, DOG),  # background
]


def test_error_types_by_hand(tmp_path: Path) -> None:
    errors = {row["type"]: row for row in report_of(tmp_path, OBJECTS, FOUND).errors}
    counts = {"classification": 1, "localisation": 1, "both": 1, "duplicate": 1, "background": 2, "missed": 2}
    assert {name: row["count"] for name, row in errors.items()} == counts  # missed: D and E, which no detection is near
    # AP50 of cats: 1 of 3 found before the first false one, 34 of 101 recalls; of dogs 0.
    # Classification fixed: the dog at 0.85 comes first, 51 of 101 recalls. Localisation: C is the fourth of the cats,
    # precision 2/4 for 33 more recalls. Missed: without D and E, one of two cats is found, 51 recalls instead of 34.
    costs = {"classification": 51, "localisation": 33 / 2, "missed": 51 - 34, "both": 0, "duplicate": 0}
    for name, recalls in (costs | {"background": 0}).items():
        assert errors[name]["AP50_lost"] == pytest.approx(recalls / 101 / 2, abs=1e-6)


A, B, C = OBJECTS[:3]
RIGHT_A: tuple[int, Box, float, int] = (10, [0, 0, 100, 100], 0.8, CAT)


@pytest.mark.parametrize(
    ("name", "objects", "found", "cost"),
    [
        # The only cat is found second, at precision 1/2.
        ("background", [A], [(10, [800, 800, 50, 50], 0.9, CAT), RIGHT_A], 1 / 2),
        # The same by a box that has IoU 0.3 with the dog; AP of the dog is 1.
        (
            "both",
            [A, B],
            [(10, [200, 0, 100, 30], 0.9, CAT), RIGHT_A, (10, [200, 0, 100, 100], 0.8, DOG)],
            1 / 2 / 2,
        ),
        # Two cats, a duplicate between them: precision 1 for 51 recalls, 2/3 for the other 50.
        (
            "duplicate",
            [A, C],
            [RIGHT_A, (10, [0, 0, 100, 99], 0.75, CAT), (10, [400, 0, 100, 100], 0.7, CAT)],
            50 / 3 / 101,
        ),
    ],
)
def test_a_false_positive_costs_the_detections_after_it(
    tmp_path: Path, name: str, objects: Truth, found: Found, cost: float
) -> None:
    for row in report_of(tmp_path, objects, found).errors:
        assert row["AP50_lost"] == pytest.approx(cost if row["type"] == name else 0, abs=1e-6), row["type"]
        assert row["count"] == (row["type"] == name)


def test_the_threshold_and_what_is_found_at_it(tmp_path: Path) -> None:
    report = report_of(tmp_path, OBJECTS, FOUND)
    # F1 of cats is 2·1 / (3 + 1) with the first detection alone, and less with more; of dogs 0. So the best thresholds
    # are 0.851 to 0.900, fifty of them.
    assert (report.threshold, report.f1) == (0.876, 0.25)
    cat, dog = report.classes
    assert [cat[key] for key in ("objects", "detections", "found", "missed", "false")] == [3, 1, 1, 2, 0]
    assert [cat[key] for key in ("f1", "best_f1", "best_threshold")] == [0.5, 0.5, 0.876]
    assert [dog[key] for key in ("objects", "detections", "found", "missed", "false", "best_f1")] == [2, 0, 0, 2, 0, 0]
    assert report.f1_curves[0, [0, 500, 501, 850, 851, 900, 901]] == pytest.approx(
        [2 / 8, 2 / 8, 2 / 7, 2 / 5, 2 / 4, 2 / 4, 0]  # five cats in all down to 0.5
    )
    assert {name: values.tolist() for name, values in report.images.items()} == {
        "objects": [4, 1],
        "found": [1, 0],
        "missed": [3, 1],
        "false": [0, 0],
    }
    assert report.is_missed.tolist() == [False, True, True, True, True, False]  # a crowd is never missed


def test_confusion_by_hand(tmp_path: Path) -> None:
    objects = [OBJECTS[0], OBJECTS[2], OBJECTS[1], (20, [300, 300, 200, 200], CAT, 1)]
    found: Found = [
        (10, [0, 0, 100, 100], 0.9, CAT),
        (10, [400, 0, 100, 100], 0.8, CAT),
        (20, [310, 310, 50, 50], 0.75, CAT),  # in the crowd
        (10, [200, 0, 100, 100], 0.7, CAT),  # the dog is taken for a cat,
        (10, [200, 0, 100, 99], 0.6, DOG),  # and the dog on it has no object left
        (10, [700, 700, 50, 50], 0.1, DOG),
    ]
    report = report_of(tmp_path, objects, found)
    # Mean F1 is 0.9 from 0.101 to 0.600 (cats 2·2 / (2 + 3), dogs 1): 500 thresholds.
    assert (report.threshold, report.f1) == (0.351, pytest.approx(0.9))
    assert report.confusion.tolist() == [[2, 0, 0], [1, 0, 0], [0, 1, 0]]
    assert report.is_false.tolist() == [False, False, False, True, False, False]


def test_calibration_by_hand(tmp_path: Path) -> None:
    calibration = report_of(tmp_path, OBJECTS, FOUND).calibration
    bins = {round(row["from"], 1): row for row in calibration["bins"] if row["detections"]}
    assert {low: row["detections"] for low, row in bins.items()} == {0.3: 1, 0.5: 1, 0.6: 1, 0.7: 1, 0.8: 2, 0.9: 1}
    assert [row["share_right"] for row in bins.values()] == [0, 0, 0, 0, 0, 1]
    assert bins[0.8]["mean_score"] == pytest.approx(0.825)
    # Gaps by detections, the one in the crowd not counted: (0.3 + 0.5 + 0.6 + 0.7 + 2 · 0.825 + 0.1) / 7
    empty = [row for row in calibration["bins"] if not row["detections"]]
    assert {(row["mean_score"], row["share_right"]) for row in empty} == {(-1.0, -1.0)}  # dashes on the page
    assert (calibration["ece"], calibration["mce"]) == (pytest.approx(3.85 / 7), pytest.approx(0.825))


def test_size_and_crowding_by_hand(tmp_path: Path) -> None:
    objects = [(10, [0, 0, 10, 10], CAT, 0), (20, [0, 0, 20, 20], CAT, 0), (20, [100, 100, 300, 300], CAT, 0)]
    found: Found = [
        (10, [0, 0, 10, 10], 0.9, CAT),
        (20, [100, 100, 300, 300], 0.8, CAT),
        (30, [100, 100, 300, 300], 0.85, CAT),
    ]
    report = report_of(tmp_path, objects, found, num_images=3)
    sizes = {row["size"]: row["AP"] for row in report.sizes if row["objects"] == 1}
    # The false positive in the third image has a higher score than the largest one.
    assert sizes == pytest.approx({"0²–16²": 1, "16²–32²": 0, "over 256²": 0.5})
    assert [row["AP"] for row in report.sizes if not row["objects"]] == [-1] * 3
    crowds = {row["objects_an_image"]: row for row in report.crowds}
    assert {name: (row["images"], row["objects"], row["AP"]) for name, row in crowds.items()} == {
        "0": (1, 0, -1),
        "1": (1, 1, pytest.approx(1)),
        "2–4": (1, 2, pytest.approx(51 / 101)),  # without the other images' false ones
    }
    assert [crowds[name]["false"] for name in crowds] == report.images["false"][[2, 0, 1]].tolist()


def test_types_of_single_detections_are_those_that_are_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    objects: Truth = [
        (int(rng.integers(1, 4)) * 10, [*rng.integers(0, 300, 2).tolist(), 100, 100], int(rng.choice([CAT, DOG])), 0)
        for _ in range(30)
    ]
    found: Found = []
    for score in np.linspace(0.95, 0.05, 120):
        image, (left, top, *_), category, _ = objects[int(rng.integers(30))]
        box = [left + rng.normal(0, 25), top + rng.normal(0, 25), 100.0, 100.0]
        box = box if rng.random() < 0.9 else [700.0, 700.0, 50.0, 50.0]
        found.append((image, box, float(score), category if rng.random() < 0.7 else CAT))
    truth, rows = make_truth(tmp_path, objects, 3), make_rows(found)
    report = box_report(rows, truth, coco_metrics(rows, truth, "hotcoco", 100))
    assert report.is_counted.all()
    kinds = Counter()
    for row in rows[~report.is_right]:
        own = truth.rows(int(row[0]))
        boxes, labels = truth.boxes_xywh[own].numpy(), truth.labels[own].numpy()
        kinds[false_type(row[1:5], int(row[6]), boxes, labels)] += 1
    counted = {row["type"]: row["count"] for row in report.errors if row["type"] != "missed"}
    assert {name: kinds[name] for name in counted} == counted
    assert len([count for count in counted.values() if count]) == len(ERRORS) - 1  # each type is among them


def test_nothing_found_and_nothing_to_find(tmp_path: Path) -> None:
    report = report_of(tmp_path, OBJECTS, [])
    assert (report.f1, report.classes[0]["missed"], report.confusion.tolist()) == (
        0,
        3,
        [[0, 0, 3], [0, 0, 2], [0] * 3],
    )
    assert {row["type"]: row["count"] for row in report.errors}["background"] == 0
    report = report_of(tmp_path, [], FOUND)
    assert (report.f1, [row["best_f1"] for row in report.classes]) == (-1, [-1, -1])
    assert report.images["missed"].sum() == 0
