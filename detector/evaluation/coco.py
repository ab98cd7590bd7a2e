"""COCO box metrics by either of two backends, hotcoco (fast) or pycocotools (the reference); COCO results files."""

from __future__ import annotations

import contextlib
import io
from array import array
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch

from detector.data.formats.annotations import Annotations
from detector.data.formats.coco_values import is_id, number_of_text, read_box
from detector.data.formats.columns import id_key, sort_key
from detector.data.names import Names, is_certain
from detector.errors import DataError, kind_of
from detector.ops.boxes import pairwise_iou
from detector.system.json_stream import is_number, open_json, show

# s, m, l: objects of under 32², 32² to 96², and over 96² pixels.
OTHER_TRUTH = "evaluate on the annotations that these results belong to"
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def coco_metrics(rows: np.ndarray, truth: Annotations, backend: str, max_detections: int) -> dict[str, Any]:
    """The twelve ``METRICS``, ``max_detections``, ``dropped`` (annotations that do not count) and ``per_class``.

    ``rows`` [R, 7] are detections: image index, left, top, width, height, score, label. AR1 and AR10 count the best 1
    and 10 detections per image, all others the best ``max_detections`` (100 in COCO's protocol; AR100 keeps its name
    with another number). A figure without objects to find is -1, as in pycocotools; without detections the rest is 0.
    """
    limits = [1, min(10, max_detections), max_detections]
    # [IoU, recall, K, area, limit] and [IoU, K, area, limit]
    precision, recall = _accumulate(rows, truth, backend, limits)
    values = [
        precision[:, :, :, 0, 2],
        precision[0, :, :, 0, 2],
        precision[5, :, :, 0, 2],
        *(precision[:, :, :, area, 2] for area in (1, 2, 3)),
        *(recall[:, :, 0, limit] for limit in (0, 1, 2)),
        *(recall[:, :, area, 2] for area in (1, 2, 3)),
    ]
    metrics: dict[str, Any] = {name: mean_of_known(value) for name, value in zip(METRICS, values, strict=True)}
    metrics["max_detections"] = max_detections
    metrics["dropped"] = truth.dropped
    metrics["per_class"] = [
        {
            "id": category.id,
            "name": category.name,
            "objects": int(((truth.labels == label) & ~truth.is_crowd).sum()),
            "AP": mean_of_known(precision[:, :, label, 0, 2]),
            "AP50": mean_of_known(precision[0, :, label, 0, 2]),
            "AR": mean_of_known(recall[:, label, 0, 2]),
        }
        for label, category in enumerate(truth.categories)
    ]
    return metrics


def mean_of_known(values: np.ndarray) -> float:
    """The mean of the values that are not -1, nothing to score; -1 without any."""
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def _accumulate(rows: np.ndarray, truth: Annotations, backend: str, limits: list[int]) -> tuple[np.ndarray, np.ndarray]:
    if len(rows) == 0:
        # pycocotools raises IndexError without detections. A box outside every image matches nothing, so it gives the
        # numbers of no detections.
        rows = np.array([[0, -10, -10, 1, 1, 0, 0]], dtype=np.float64)
    evaluation = load_evaluation(rows, truth, backend, limits)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def load_evaluation(rows: np.ndarray, truth: Annotations, backend: str, limits: list[int]) -> Any:
    """The backend's ``COCOeval`` of ``rows`` [R, 7] before it evaluates.

    Its ids: r + 1 for detection r, m + 1 for annotation m of ``truth``, labels for classes, ``image_numbers`` for
    images.
    """
    if backend == "hotcoco":
        from hotcoco import COCO, COCOeval
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

    numbers = image_numbers(truth)
    rows = rows.copy()
    rows[:, 0] = numbers[rows[:, 0].astype(np.int64)]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = _as_dict(truth, numbers)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(rows), "bbox")
    evaluation.params.maxDets = limits
    return evaluation


def image_numbers(truth: Annotations) -> np.ndarray:
    """The backends' ids of the images, [I]: ranks by the data set's own ids.

    pycocotools breaks ties between equal scores by image id; ranks keep that order for ids of any type.
    """
    ids = truth.image_ids.tolist()
    numbers = np.empty(len(ids), dtype=np.int64)
    numbers[sorted(range(len(ids)), key=lambda index: sort_key(ids[index]))] = np.arange(len(ids))
    return numbers


def _as_dict(truth: Annotations, numbers: np.ndarray) -> dict[str, Any]:
    images = numbers[truth.image_index().numpy()].tolist()
    columns = (truth.labels, truth.boxes_xywh, truth.areas, truth.is_crowd)
    return {
        "images": [
            {"id": number, "height": height, "width": width}
            for number, height, width in zip(
                numbers.tolist(), truth.heights.tolist(), truth.widths.tolist(), strict=True
            )
        ],
        "categories": [{"id": label, "name": category.name} for label, category in enumerate(truth.categories)],
        # Ids begin at 1: pycocotools takes 0 for "unmatched".
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": label,
                "bbox": box,
                "area": area,
                "iscrowd": int(crowd),
            }
            for number, (image, label, box, area, crowd) in enumerate(
                zip(images, *(column.tolist() for column in columns), strict=True), start=1
            )
        ],
    }


class Results(NamedTuple):
    """A COCO results file."""

    rows: np.ndarray  # [R, 7] as coco_metrics takes them
    warnings: list[str]  # what was read leniently, and what suggests another format than COCO's


def read_results(path: str | Path, truth: Annotations) -> Results:
    """The detections of a COCO results file, and warnings about them.

    Ids and numbers may be text; a class may be given by its name, an image by that of its file. Raises
    :class:`detector.errors.DataError` with the first wrong entry.
    """
    path = Path(path)
    # tools/infer.py numbers the images of a folder itself; its file names identify them.
    index_of_name = {PurePosixPath(truth.file_name(index)).as_posix(): index for index in range(len(truth))}
    index_of = {id_key(image_id): index for index, image_id in enumerate(truth.image_ids.tolist())}
    label_of = {id_key(category.id): label for label, category in enumerate(truth.categories)}
    label_of_name = _unique_names(truth)
    rows = array("d")
    names, index_of_file = Names(index_of_name), {}  # the latter by image_id
    by_name = by_file = as_text = 0
    with open_json(path) as stream:
        if stream.peek() != "[":
            kind = kind_of({} if stream.peek() == "{" else stream.value())
            raise DataError(f"{path}: holds {kind}; COCO results are a list of detections")
        for number, entry in enumerate(stream.elements()):
            where = f"{path}: entry {number}"
            if not isinstance(entry, dict):
                raise DataError(f"{where}: needs image_id, category_id, bbox and score; it is {show(entry)}")
            image_id, category_id, given, score = (
                entry.get(key) for key in ("image_id", "category_id", "bbox", "score")
            )
            image_id, category_id = _whole(image_id), _whole(category_id)
            box, own_score = read_box(given), score if is_number(score) else number_of_text(score)
            if not (is_id(image_id) and is_id(category_id)) or box is None or own_score is None:
                raise DataError(
                    f"{where}: needs image_id and category_id as integers or text, bbox and score as finite numbers; it"
                    f" is {show(entry)}"
                )
            as_text += own_score is not score or box != given
            if box[2] < 0 or box[3] < 0:
                raise DataError(
                    f"{where}: bbox {show(given)} has a negative width or height; they are left, top, width, height"
                )
            if "file_name" in entry:
                name = entry["file_name"]
                name = PurePosixPath(name).as_posix() if isinstance(name, str) else name
                if not isinstance(name, str) or name not in index_of_name:
                    hint = names.hint(name) if isinstance(name, str) else ""
                    remedy = hint or OTHER_TRUTH
                    raise DataError(f"{where}: file_name {show(name)} is not in {truth.path}; {remedy}")
                index = index_of_name[name]
            else:
                index = index_of.get(id_key(image_id), -1)
            if index < 0 and isinstance(id_key(image_id), str):
                if image_id not in index_of_file:
                    meant = names.meant(image_id)
                    is_one = len(meant) == 1 and is_certain(image_id, meant[0])
                    index_of_file[image_id] = index_of_name[meant[0]] if is_one else -1
                index = index_of_file[image_id]
                by_file += 1
            if index < 0:
                hint = names.hint(image_id) if isinstance(id_key(image_id), str) else ""
                remedy = hint or OTHER_TRUTH
                raise DataError(f"{where}: image_id {show(image_id)} is not in {truth.path}; {remedy}")
            label = label_of.get(id_key(category_id), -1)
            if label < 0 and category_id in label_of_name:
                label = label_of_name[category_id]
                by_name += 1
            if label < 0:
                raise DataError(f"{where}: category_id {show(category_id)} is not in {truth.path}; {OTHER_TRUTH}")
            rows.extend((index, *box, own_score, label))
        stream.finish()
    detections = np.asarray(rows).reshape(-1, 7)
    said = []
    if as_text:
        said.append(f"numbers of {as_text:,} detections are written as text, or in an object, and were read")
    if by_file:
        said.append(f"image_id of {by_file:,} detections is the name of a file, and was read as that image")
    if by_name:
        said.append(f"category_id of {by_name:,} detections is the name of a class, and was read as that class")
    return Results(detections, [f"{path}: {words}" for words in [*said, *_oddities(detections, truth)]])


def _whole(value: Any) -> Any:
    """1.0 as the integer 1; anything else as it is."""
    return int(value) if type(value) is float and value.is_integer() and abs(value) <= 2**53 else value


def _unique_names(truth: Annotations) -> dict[Any, int]:
    """The label of each class name that is unique."""
    names = [category.name for category in truth.categories]
    return {name: label for label, name in enumerate(names) if names.count(name) == 1}


def _mean_best_overlap(index: np.ndarray, boxes: np.ndarray, truth: Annotations) -> tuple[float, float]:
    """Mean best IoU of up to 200 boxes with objects, read as left, top, width, height, and read as corners."""
    sides = torch.from_numpy(boxes)
    both = torch.stack([torch.cat([sides[:, :2], sides[:, :2] + sides[:, 2:]], dim=1), sides])  # [2, R, 4]
    best = []
    for row in np.unique(np.linspace(0, len(boxes) - 1, 200).astype(np.int64)).tolist():
        rows = truth.rows(int(index[row]))
        objects = truth.boxes_xywh[rows][~truth.is_crowd[rows]]
        if len(objects):
            corners = torch.cat([objects[:, :2], objects[:, :2] + objects[:, 2:]], dim=1)
            best.append(pairwise_iou(both[:, row, None], corners).amax(dim=(1, 2)))
    as_given, as_corners = torch.stack(best).mean(dim=0).tolist() if best else (0.0, 0.0)
    return as_given, as_corners


def _oddities(rows: np.ndarray, truth: Annotations) -> Iterator[str]:
    """What suggests another format than COCO's, with the evidence."""
    if not len(rows):
        yield "has no detections, so nothing is found"
        return
    index, boxes, scores = rows[:, 0].astype(np.int64), rows[:, 1:5], rows[:, 5]
    sides = np.stack([truth.widths.numpy(), truth.heights.numpy()], axis=1)[index]  # [R, 2]
    is_known = (sides > 0).all(axis=1)
    # A detector that does not clip its boxes may reach a twentieth outside.
    is_beyond = is_known & (boxes[:, :2] + boxes[:, 2:] > 1.05 * sides + 1).any(axis=1)
    if is_beyond.sum() > 0.1 * max(1, is_known.sum()):
        row = int(np.flatnonzero(is_beyond)[0])
        words = (
            f"{is_beyond.sum():,} of {is_known.sum():,} boxes reach far beyond their image, such as"
            f" {boxes[row].tolist()} in {sides[row, 0]}×{sides[row, 1]}"
        )
        if (boxes[:, 2:] >= boxes[:, :2]).all():
            words += ", and in none is the third or fourth number less than the first or second: they look like corners"
        yield f"{words}; COCO's boxes are left, top, width, height"
    elif (boxes[:, 2:] > boxes[:, :2]).all() and len(boxes) >= 5:
        as_given, as_corners = _mean_best_overlap(index, boxes, truth)
        if as_corners > max(0.3, 1.5 * as_given):
            yield (
                f"boxes overlap the truth far better where their numbers are read as corners: a mean IoU of"
                f" {as_corners:.2f}, not {as_given:.2f}; COCO's boxes are left, top, width, height"
            )
    if (boxes[:, :2] + boxes[:, 2:]).max() <= 1.01 and (sides > 2).all():
        yield (
            f"no box reaches beyond {(boxes[:, :2] + boxes[:, 2:]).max():.3g} pixels: they look like fractions of the"
            " image; COCO's boxes are in pixels"
        )
    if scores.max() > 1:
        yield (
            f"{(scores > 1).sum():,} of {len(scores):,} scores are over 1, up to {scores.max():g}; COCO's are between 0"
            " and 1 (only their order counts for AP; thresholds and calibration need that range)"
        )
