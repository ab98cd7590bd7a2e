"""COCO box metrics by hotcoco (fast) or pycocotools (the reference): one function, two interchangeable backends."""

from __future__ import annotations

import contextlib
import io
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.coco_json import Annotations, is_box
from detector.data.json_stream import is_integer, is_number, open_json, show
from detector.errors import DataError

# s, m, l: objects under 32² pixels, under 96², and over.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def coco_metrics(rows: np.ndarray, truth: Annotations, backend: str, max_detections: int) -> dict[str, Any]:
    """The twelve ``METRICS``, ``max_detections`` and ``per_class``.

    ``rows`` [R, 7]: image id, left, top, width, height, score, category id. AR1 and AR10 count the best 1 and 10
    detections an image, all others the best ``max_detections`` (100 in COCO's protocol; AR100 keeps its name with
    another number). -1 stands where there is no truth to find, as pycocotools has it; without detections the rest is 0.
    """
    limits = [1, min(10, max_detections), max_detections]
    precision, recall = _accumulate(
        rows, truth, backend, limits
    )  # [IoU, recall, K, area, limit], [IoU, K, area, limit]
    values = [
        precision[:, :, :, 0, 2],
        precision[0, :, :, 0, 2],
        precision[5, :, :, 0, 2],
        *(precision[:, :, :, area, 2] for area in (1, 2, 3)),
        *(recall[:, :, 0, limit] for limit in (0, 1, 2)),
        *(recall[:, :, area, 2] for area in (1, 2, 3)),
    ]
    metrics: dict[str, Any] = {name: _mean(value) for name, value in zip(METRICS, values, strict=True)}
    metrics["max_detections"] = max_detections
    metrics["per_class"] = [
        {
            "id": category.id,
            "name": category.name,
            "objects": int(((truth.labels == label) & ~truth.is_crowd).sum()),
            "AP": _mean(precision[:, :, label, 0, 2]),
            "AP50": _mean(precision[0, :, label, 0, 2]),
            "AR": _mean(recall[:, label, 0, 2]),
        }
        for label, category in enumerate(truth.categories)
    ]
    return metrics


def _mean(values: np.ndarray) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def _accumulate(rows: np.ndarray, truth: Annotations, backend: str, limits: list[int]) -> tuple[np.ndarray, np.ndarray]:
    if len(rows) == 0:
        # pycocotools raises IndexError on no detections at all. One that scores nothing gives the same numbers: a box
        # outside every image matches no truth.
        rows = np.array([[int(truth.image_ids[0]), -10, -10, 1, 1, 0, truth.categories[0].id]], dtype=np.float64)
    evaluation = load_evaluation(rows, truth, backend, limits)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def load_evaluation(rows: np.ndarray, truth: Annotations, backend: str, limits: list[int]) -> Any:
    """The backend's ``COCOeval`` of ``rows`` [R, 7] before it evaluates.

    It knows detection r as number r + 1 and annotation m of ``truth`` as number m + 1.
    """
    if backend == "hotcoco":
        from hotcoco import COCO, COCOeval
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = _as_dict(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(rows), "bbox")
    evaluation.params.maxDets = limits
    return evaluation


def _as_dict(truth: Annotations) -> dict[str, Any]:
    image_ids = truth.image_ids[truth.image_index()].tolist()
    category_ids = [truth.categories[label].id for label in truth.labels.tolist()]
    columns = (truth.boxes_xywh, truth.areas, truth.is_crowd)
    return {
        "images": [
            {"id": image_id, "height": height, "width": width}
            for image_id, height, width in zip(
                *(c.tolist() for c in (truth.image_ids, truth.heights, truth.widths)), strict=True
            )
        ],
        "categories": [category._asdict() for category in truth.categories],
        # Own consecutive ids: pycocotools takes id 0 for "unmatched".
        "annotations": [
            {
                "id": number,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": box,
                "area": area,
                "iscrowd": int(crowd),
            }
            for number, (image_id, category_id, box, area, crowd) in enumerate(
                zip(image_ids, category_ids, *(column.tolist() for column in columns), strict=True), start=1
            )
        ],
    }


def read_results(path: str | Path, truth: Annotations) -> np.ndarray:
    """A COCO results file as rows [R, 7]. Raises :class:`~detector.errors.DataError` with the entry that is wrong."""
    path = Path(path)
    # Predictions of tools/infer.py number the pictures of a folder; their file names tell which ones they are.
    id_of_name = {truth.file_name(index): int(truth.image_ids[index]) for index in range(len(truth))}
    known_images, known_categories = set(truth.image_ids.tolist()), {category.id for category in truth.categories}
    rows = array("d")
    with open_json(path) as stream:
        if stream.peek() != "[":
            kind = "dict" if stream.peek() == "{" else type(stream.value()).__name__
            raise DataError(f"{path}: holds a {kind}; COCO results are a list of detections")
        for place, entry in enumerate(stream.elements()):
            where = f"{path}: entry {place}"
            if not isinstance(entry, dict):
                raise DataError(f"{where}: needs image_id, category_id, bbox and score; it is {show(entry)}")
            image_id, category_id, box, score = (entry.get(key) for key in ("image_id", "category_id", "bbox", "score"))
            if not (is_integer(image_id) and is_integer(category_id) and is_box(box) and is_number(score)):
                raise DataError(
                    f"{where}: needs image_id and category_id as integers, bbox and score as finite numbers; it is"
                    f" {show(entry)}"
                )
            if box[2] < 0 or box[3] < 0:
                raise DataError(
                    f"{where}: bbox {show(box)} has a negative width or height; they are left, top, width, height"
                )
            if "file_name" in entry:
                name = entry["file_name"]
                if not isinstance(name, str) or name not in id_of_name:
                    raise DataError(
                        f"{where}: file_name {show(name)} is not in {truth.path}; evaluate on its own truth"
                    )
                image_id = id_of_name[name]
            if image_id not in known_images:
                raise DataError(f"{where}: image_id {image_id} is not in {truth.path}; evaluate on its own truth")
            if category_id not in known_categories:
                raise DataError(f"{where}: category_id {category_id} is not in {truth.path}; evaluate on its own truth")
            rows.extend((image_id, *box, score, category_id))
        stream.finish()
    return np.asarray(rows).reshape(-1, 7)
