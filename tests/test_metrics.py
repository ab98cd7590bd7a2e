"""COCO metrics: published numbers, tiny cases by hand, and two backends that agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.data.detection import Annotations, apply_box_policy, scored_truth
from detector.data.formats.reading import read_annotations
from detector.errors import DataError
from detector.evaluation.coco import METRICS, coco_metrics, read_results

BACKENDS = ["hotcoco", "pycocotools"]
Box = list[float]


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def make_truth(folder: Path, boxes: list[tuple[int, Box, int, int]], num_images: int = 2) -> Annotations:
    """Images 10, 20, ... of 1000×1000 named a.jpg, b.jpg, ...; classes 3 and 8; boxes as image, box, class, crowd."""
    tree = {
        "images": [
            {"id": 10 * (row + 1), "file_name": f"{'abc'[row]}.jpg", "height": 1000, "width": 1000}
            for row in range(num_images)
        ],
        "annotations": [
            {"id": row, "image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd}
            for row, (image, box, category, crowd) in enumerate(boxes)
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
    }
    return read_annotations(write_json(folder / "truth.json", tree))


def make_rows(found: list[tuple[int, Box, float, int]]) -> np.ndarray:
    """Detections as image, box, score, class, by the ids of make_truth."""
    label = {3: 0, 8: 1}
    rows = [[image // 10 - 1, *box, score, label[category]] for image, box, score, category in found]
    return np.array(rows).reshape(-1, 7)


# --- published numbers ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden(shared: Path) -> tuple[np.ndarray, Annotations, list[float]]:
    folder = shared / "data" / "cocoeval_golden"
    truth = read_annotations(folder / "instances_val2014_100.json")
    rows, warnings = read_results(folder / "instances_val2014_fakebbox100_results.json", truth)
    assert warnings == []
    return rows, truth, json.loads((folder / "info.json").read_text())["expected"]["bbox"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_published_numbers(backend: str, golden: tuple[np.ndarray, Annotations, list[float]]) -> None:
    rows, truth, expected = golden
    metrics = coco_metrics(rows, truth, backend, 100)
    assert [round(metrics[name], 3) for name in METRICS] == expected
    assert metrics["max_detections"] == 100


@pytest.mark.parametrize("max_detections", [1, 5, 100, 300])
def test_the_backends_agree(max_detections: int, golden: tuple[np.ndarray, Annotations, list[float]]) -> None:
    one, other = (coco_metrics(*golden[:2], backend, max_detections) for backend in BACKENDS)
    assert one.keys() == other.keys()
    for name in METRICS:
        assert one[name] == pytest.approx(other[name], abs=1e-6)
    assert len(one["per_class"]) == 80
    for own, reference in zip(one["per_class"], other["per_class"], strict=True):
        assert own == pytest.approx(reference, abs=1e-6)


def test_the_order_of_detections_does_not_matter(golden: tuple[np.ndarray, Annotations, list[float]]) -> None:
    rows, truth, _ = golden
    order = np.random.default_rng(0).permutation(len(rows))
    one, other = (coco_metrics(some, truth, "hotcoco", 100) for some in (rows, rows[order]))
    assert all(one[name] == pytest.approx(other[name], abs=2e-3) for name in METRICS)  # equal scores may change places


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_average_precision_by_hand(backend: str, tmp_path: Path) -> None:
    truth = make_truth(tmp_path, [(10, [0, 0, 10, 10], 3, 0), (10, [50, 0, 10, 10], 3, 0), (20, [0, 0, 10, 10], 3, 0)])
    rows = make_rows([(10, [0, 0, 10, 10], 0.9, 3), (20, [500, 500, 10, 10], 0.8, 3), (10, [50, 0, 10, 10], 0.7, 3)])
    metrics = coco_metrics(rows, truth, backend, 100)
    # By score: right, wrong, right. Precision 1 up to recall 1/3: 34 of 101 points (0.00 to 0.33); 2/3 up to recall
    # 2/3: 33 points (0.34 to 0.66); 0 after that. All IoU are 1, so every threshold gives the same.
    expected = (34 * 1 + 33 * 2 / 3) / 101
    for name in ("AP", "AP50", "AP75", "APs"):
        assert metrics[name] == pytest.approx(expected, abs=1e-6)
    # The best one of each image: 1 of 3 objects; the best ten: 2 of 3.
    recalls = [metrics[name] for name in ("AR1", "AR10", "AR100", "ARs")]
    assert recalls == pytest.approx([1 / 3, 2 / 3, 2 / 3, 2 / 3])
    # 10 × 10 is small; there is nothing else, and no dog.
    assert [metrics[name] for name in ("APm", "APl", "ARm", "ARl")] == [-1] * 4
    cat, dog = metrics["per_class"]
    assert (cat["id"], cat["name"], cat["objects"]) == (3, "cat", 3)
    assert [cat[name] for name in ("AP", "AP50", "AR")] == pytest.approx([expected, expected, 2 / 3], abs=1e-6)
    assert dog == {"id": 8, "name": "dog", "objects": 0, "AP": -1, "AP50": -1, "AR": -1}


@pytest.mark.parametrize("backend", BACKENDS)
def test_average_over_iou_thresholds_by_hand(backend: str, tmp_path: Path) -> None:
    truth = make_truth(tmp_path, [(10, [0, 0, 200, 100], 8, 0), (20, [0, 0, 50, 40], 3, 0)])
    # IoU 124 / 200 = 0.62: right at 0.50, 0.55 and 0.60, 3 of 10 thresholds. 40 · 38 / (40 · 50) = 0.76: 6 of 10.
    rows = make_rows([(10, [0, 0, 124, 100], 0.5, 8), (20, [0, 0, 38, 40], 0.5, 3)])
    metrics = coco_metrics(rows, truth, backend, 100)
    expected = {"AP": 0.45, "AP50": 1.0, "AP75": 0.5, "APs": -1, "APm": 0.6, "APl": 0.3, "AR100": 0.45}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert [row["AP"] for row in metrics["per_class"]] == pytest.approx([0.6, 0.3])
    assert [row["AP50"] for row in metrics["per_class"]] == pytest.approx([1, 1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_detections_in_a_crowd_are_not_counted(backend: str, tmp_path: Path) -> None:
    boxes = [(10, [0, 0, 50, 50], 3, 0), (10, [500, 500, 400, 400], 3, 1)]
    rows = make_rows([(10, [0, 0, 50, 50], 0.5, 3), (10, [600, 600, 50, 50], 0.9, 3), (10, [700, 700, 60, 60], 0.8, 3)])
    metrics = coco_metrics(rows, make_truth(tmp_path, boxes), backend, 100)
    assert metrics["AP"] == pytest.approx(1.0)
    assert [row["objects"] for row in metrics["per_class"]] == [1, 0]
    # Without the crowd both are false positives of a higher score: precision 1/3 at every recall.
    metrics = coco_metrics(rows, make_truth(tmp_path, boxes[:1]), backend, 100)
    assert metrics["AP"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sizes_go_by_the_annotated_area(backend: str, tmp_path: Path) -> None:
    truth = make_truth(tmp_path, [(10, [0, 0, 100, 100], 3, 0)])
    truth.areas[0] = 500  # a thin mask in a large box
    metrics = coco_metrics(make_rows([(10, [0, 0, 100, 100], 0.9, 3)]), truth, backend, 100)
    assert [metrics[name] for name in ("APs", "APm", "APl")] == pytest.approx([1, -1, -1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_detections_all_is_0(backend: str, tmp_path: Path) -> None:
    sides = (10, 50, 200)  # small, medium, large
    truth = make_truth(tmp_path, [(10, [0, 0, side, side], 3, 0) for side in sides])
    metrics = coco_metrics(np.empty((0, 7)), truth, backend, 100)
    assert [metrics[name] for name in METRICS] == [0.0] * 12
    assert [row["AP"] for row in metrics["per_class"]] == [0, -1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("found", [[], [(10, [0, 0, 9, 9], 0.9, 3)]])
def test_without_truth_nothing_is_scored(found: list, backend: str, tmp_path: Path) -> None:
    metrics = coco_metrics(make_rows(found), make_truth(tmp_path, []), backend, 100)
    assert [metrics[name] for name in METRICS] == [-1.0] * 12


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_than_100_detections_count_where_they_are_asked_for(backend: str, tmp_path: Path) -> None:
    # 150 objects side by side, all found exactly.
    boxes = [[20.0 * (number % 50), 20.0 * (number // 50), 10.0, 10.0] for number in range(150)]
    truth = make_truth(tmp_path, [(10, box, 3, 0) for box in boxes])
    rows = make_rows([(10, box, 0.9 - number / 1000, 3) for number, box in enumerate(boxes)])
    usual, more = (coco_metrics(rows, truth, backend, number) for number in (100, 200))
    assert [usual[name] for name in ("AR1", "AR10", "AR100")] == pytest.approx([1 / 150, 10 / 150, 100 / 150])
    assert [more[name] for name in ("AR1", "AR10", "AR100")] == pytest.approx([1 / 150, 10 / 150, 1])
    # 67 of 101 recall points (0.00 to 0.66) are covered by 100 of 150.
    assert [usual["AP"], more["AP"]] == pytest.approx([67 / 101, 1])
    assert (usual["max_detections"], more["max_detections"]) == (100, 200)


# Results were once rows of float64 with the ids themselves, which hold integers exactly up to 2^53.
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ids", [(2**53 + 1, 2**53), ("frame_1", "frame_0"), ("7", 3)])
def test_ids_of_any_kind_are_scored_right(ids: tuple[Any, Any], backend: str, tmp_path: Path) -> None:
    images = [{"id": image_id, "file_name": f"{image_id}.jpg", "height": 100, "width": 100} for image_id in ids]
    note = {"id": 1, "image_id": ids[0], "category_id": "cat", "bbox": [0, 0, 10, 10]}
    tree = {"images": images, "annotations": [note], "categories": [{"id": "cat", "name": "Cat"}]}
    truth = read_annotations(write_json(tmp_path / "truth.json", tree))
    entries = [entry(image_id=image_id, category_id="cat", bbox=[0, 0, 10, 10]) for image_id in ids]
    for found, expected in ((entries[:1], 1), (entries[1:], 0)):
        rows = read_results(write_json(tmp_path / "results.json", found), truth).rows
        assert coco_metrics(rows, truth, backend, 100)["AP"] == pytest.approx(expected)
    assert coco_metrics(rows, truth, backend, 100)["per_class"][0]["id"] == "cat"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
def test_an_ignore_region_excuses_by_either_key(key: str, backend: str, tmp_path: Path) -> None:
    def score(boxes: list[dict[str, Any]]) -> dict[str, Any]:
        notes = [{"id": 1 + place, "image_id": 1, "category_id": 1} | box for place, box in enumerate(boxes)]
        images = [{"id": 1, "file_name": "a.jpg", "height": 500, "width": 500}]
        tree = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "cat"}]}
        truth = read_annotations(write_json(tmp_path / "truth.json", tree))
        rows = np.array([[0, 200, 200, 50, 50, 0.9, 0], [0, 0, 0, 50, 50, 0.5, 0]])
        return coco_metrics(rows, truth, backend, 100)

    found, region = {"bbox": [0, 0, 50, 50]}, {"bbox": [190, 190, 200, 200]}
    assert score([found])["AP"] == pytest.approx(0.5)
    metrics = score([found, region | {key: 1}])
    assert (metrics["AP"], metrics["per_class"][0]["objects"]) == (pytest.approx(1), 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", ["drop", "clip"])
def test_the_policy_for_invalid_boxes_reaches_the_truth(policy: str, backend: str, tmp_path: Path) -> None:
    # The second has no area, the third is half outside: 20 of its 40 pixels are inside.
    truth = make_truth(tmp_path, [(10, [0, 0, 10, 10], 3, 0), (10, [50, 50, 0, 9], 3, 0), (10, [980, 0, 40, 40], 8, 0)])
    scored = scored_truth(truth, apply_box_policy(truth, policy))
    found = [(10, [0, 0, 10, 10], 0.9, 3), (10, [980, 0, 20, 40], 0.9, 8)]
    metrics = coco_metrics(make_rows(found), scored, backend, 100)
    assert metrics["AP"] == pytest.approx(1)
    assert metrics["dropped"] == {"drop": 2, "clip": 1}[policy]
    assert [row["objects"] for row in metrics["per_class"]] == [1, {"drop": 0, "clip": 1}[policy]]
    assert scored.areas.tolist() == [100, 800][: len(scored.areas)]
    assert (len(scored.annotation_ids), scored.first[1:].tolist()) == (len(scored.areas), [len(scored.areas)] * 2)
    assert coco_metrics(make_rows(found), truth, backend, 100)["AP"] < 0.6


sides = st.sampled_from([5.0, 8.0, 30.0, 40.0, 90.0, 120.0])
corners = st.sampled_from([0.0, 2.0, 10.0, 33.5])
images, classes = st.sampled_from([10, 20]), st.sampled_from([3, 8])
box = st.tuples(corners, corners, sides, sides).map(list)


@settings(max_examples=25)
@given(
    truth=st.lists(st.tuples(images, box, classes, st.integers(0, 1)), max_size=8),
    found=st.lists(st.tuples(images, box, st.floats(0.01, 1), classes), max_size=12, unique_by=lambda row: row[2]),
    max_detections=st.sampled_from([1, 3, 100]),
)
def test_the_backends_agree_on_any_small_case(
    truth: list, found: list, max_detections: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    notes = make_truth(tmp_path_factory.getbasetemp(), truth)
    one, other = (coco_metrics(make_rows(found), notes, backend, max_detections) for backend in BACKENDS)
    assert [one[name] for name in METRICS] == pytest.approx([other[name] for name in METRICS], abs=1e-6)


# --- results files ----------------------------------------------------------------------------------------------------


def entry(**changes: Any) -> dict[str, Any]:
    return {"image_id": 20, "category_id": 8, "bbox": [1, 2, 3.5, 4], "score": 0.25} | changes


def results_of(folder: Path, entries: Any) -> np.ndarray:
    return read_results(write_json(folder / "results.json", entries), make_truth(folder, [])).rows


def test_results_by_hand(tmp_path: Path) -> None:
    rows = results_of(tmp_path, [entry(), entry(image_id=10, category_id=3, score=1)])
    assert rows.tolist() == [[1, 1, 2, 3.5, 4, 0.25, 1], [0, 1, 2, 3.5, 4, 1, 0]]
    same = [
        entry(image_id=20.0, category_id="8", bbox=["1", 2, "3.5", 4]),
        entry(image_id="10", category_id="cat", score="1"),
    ]
    assert results_of(tmp_path, same).tolist() == rows.tolist()
    assert results_of(tmp_path, []).shape == (0, 7)


def test_a_file_name_identifies_the_image(tmp_path: Path) -> None:
    # tools/infer.py numbers the images of a folder; its ids may be unknown, or those of other images.
    entries = [entry(image_id=1, file_name="b.jpg"), entry(image_id=20, file_name="a.jpg"), entry(image_id=20)]
    assert results_of(tmp_path, entries)[:, 0].tolist() == [1, 0, 1]


ODD: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "as they should be": ([entry(bbox=[900, 900, 99, 99]), entry(bbox=[0, 0, 1000, 1020])], []),
    "corners": (
        [entry(bbox=[600, 600, 700, 700]), entry(bbox=[1, 2, 3, 4])],
        ["1 of 2 boxes reach far beyond their image, such as [600.0, 600.0, 700.0, 700.0] in 1000×1000, and in none"],
    ),
    "corners inside the image": (
        [entry(bbox=[60 * n, 10, 60 * n + 50, 50], image_id=10, category_id=3) for n in range(1, 8)],
        ["boxes overlap the truth far better where their numbers are read as corners: a mean IoU of 1.00, not 0."],
    ),
    "boxes": ([entry(bbox=[60 * n, 10, 50, 40], image_id=10, category_id=3) for n in range(1, 8)], []),
    "names of files": (
        [entry(image_id="b.jpg"), entry(image_id="http://host/x/b.jpg"), entry(image_id="a")],
        ["image_id of 3 detections is the name of a file"],
    ),
    "boxes as text and objects": (
        [entry(bbox="1 2 3.5 4"), entry(bbox={"x": 1, "y": 2, "w": 3.5, "h": 4}), entry()],
        ["numbers of 2 detections are written as text, or in an object"],
    ),
    "fractions": ([entry(bbox=[0.5, 0.5, 0.2, 0.2])], ["no box reaches beyond 0.7 pixels: they look like fractions"]),
    "percents": ([entry(score=90), entry(score=0.5)], ["1 of 2 scores are over 1, up to 90; "]),
    "names": ([entry(category_id="dog")], ["category_id of 1 detections is the name of a class"]),
    "text": (
        [entry(bbox=["1", 2, 3, 4]), entry(score="0.5"), entry()],
        ["numbers of 2 detections are written as text"],
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_results_that_look_wrong_are_read_with_a_warning(name: str, tmp_path: Path) -> None:
    entries, expected = ODD[name]
    path = write_json(tmp_path / "results.json", entries)
    objects = [(10, [60 * n, 10, 50, 40], 3, 0) for n in range(1, 8)]
    warnings = read_results(path, make_truth(tmp_path, objects)).warnings
    for warning, said in zip(warnings, expected, strict=True):
        assert warning.startswith(f"{path}: {said}")


def refusal(folder: Path, entries: Any) -> str:
    with pytest.raises(DataError) as caught:
        results_of(folder, entries)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message.removeprefix(f"{folder / 'results.json'}: ")


def test_an_unknown_file_name_is_refused(tmp_path: Path) -> None:
    # Its image_id is that of another image.
    said = refusal(tmp_path, [entry(), entry(image_id=20, file_name="below\\b.jpg")])
    assert said.startswith("entry 1: ")
    assert said.endswith("; did you mean b.jpg?")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (7, "needs image_id, category_id, bbox and score; it is 7"),
        (None, "needs image_id, category_id, bbox and score; it is null"),
        ("text", "needs image_id, category_id, bbox and score; it is 'text'"),
        ({"image_id": 20}, "needs image_id and category_id as integers or text, bbox and score as finite numbers"),
        (entry(bbox=[1, 2, 3]), "needs image_id and "),
        (entry(bbox=None), "needs image_id and "),
        (entry(bbox=[1, 2, "x", 4]), "needs image_id and "),
        (entry(bbox=[10**400, 2, 3, 4]), "needs image_id and "),
        (entry(bbox=[1, 2, float("inf"), 4]), "needs image_id and "),
        (entry(bbox=[1, 2, -3, 4]), "bbox [1, 2, -3, 4] has a negative width or height; "),
        (entry(score="high"), "needs image_id and "),
        (entry(score=None), "needs image_id and "),
        (entry(score=float("nan")), "needs image_id and "),
        (entry(image_id=True), "needs image_id and "),
        (entry(image_id=30), "image_id 30 is not in "),
        (entry(image_id="30"), "image_id '30' is not in "),
        (entry(image_id="c.jpg"), "image_id 'c.jpg' is not in "),
        (entry(category_id=4), "category_id 4 is not in "),
        (entry(category_id="Cat"), "category_id 'Cat' is not in "),
        (entry(file_name=["a.jpg"]), "file_name ['a.jpg'] is not in "),
    ],
)
def test_a_wrong_entry_is_named(wrong: Any, message: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, [entry(), wrong]).startswith(f"entry 1: {message}")


def test_a_file_without_results(tmp_path: Path) -> None:
    assert refusal(tmp_path, {"annotations": []}).startswith("holds an object; ")
    truth, path = make_truth(tmp_path, []), tmp_path / "results.json"
    path.write_text(json.dumps([entry()])[:-1])
    for place, message in ((path, "1: not valid JSON: "), (tmp_path / "none.json", " cannot be read: No such file")):
        with pytest.raises(DataError) as caught:
            read_results(place, truth)
        assert str(caught.value).startswith(f"{place}:{message}")
