"""What a detector gets right and wrong, as plain figures.

Dimension key: I images, M annotated boxes, R detections, K classes. A figure with nothing to score is -1.

hotcoco matches detections to objects (COCO's protocol at IoU 0.5, crowds ignored) and computes errors after TIDE,
calibration, confusion and AP of parts. Its F1 is not used: it is that of the interpolated precision, without a
threshold. Its confusion matrix counts detections in crowds as false, so they are removed first.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from detector.data.detection import Annotations
from detector.evaluation.coco import image_numbers, load_evaluation, mean_of_known

STEPS = 1000  # thresholds are thousandths of a score
SIZES = (0, 16, 32, 64, 128, 256)  # lower ends of the size ranges: sides of squares in pixels of the original image
CROWDS = (1, 2, 5, 10, 20, 50)  # lower ends of the crowding ranges: objects per image

# Names of TIDE's error types (Bolya et al. 2020, section 2.2), and what hotcoco calls them.
ERRORS = {
    "Cls": ("classification", "on an object of another class (IoU ≥ 0.5)"),
    "Loc": ("localisation", "on an object of its class, but not well (IoU 0.1 to 0.5)"),
    "Both": ("both", "on an object of another class, and not well"),
    "Dupe": ("duplicate", "on an object that a detection of a higher score has found"),
    "Bkg": ("background", "on no object (IoU < 0.1)"),
    "Miss": ("missed", "objects that no detection is near"),
}


@dataclass(frozen=True)
class BoxReport:
    """All figures of one set of detections on one set of annotations."""

    metrics: dict[str, Any]  # of coco_metrics
    threshold: float  # of the score, where F1 averaged over the classes is best
    f1: float  # averaged over the classes, at the threshold
    classes: list[dict[str, Any]]
    f1_curves: np.ndarray  # [K, STEPS + 1] by threshold, at IoU 0.5
    precision: np.ndarray  # [10, 101, K] interpolated, at IoU 0.5:0.05:0.95 and recall 0:0.01:1
    confusion: np.ndarray  # [K + 1, K + 1] true by predicted class, background last; at IoU 0.5 and the threshold
    errors: list[dict[str, Any]]  # per ERRORS: count, and the AP50 lost
    calibration: dict[str, Any]  # ece, mce and bins
    sizes: list[dict[str, Any]]  # AP by object size
    crowds: list[dict[str, Any]]  # AP by objects per image
    images: dict[str, np.ndarray]  # [I] each: objects, found, missed, false
    is_right: np.ndarray  # [R] matched to an object, at any score
    is_counted: np.ndarray  # [R] not in a crowd, and among the max_detections of its image
    is_shown: np.ndarray  # [R] counted and at the threshold
    is_missed: np.ndarray  # [M] objects that no detection at the threshold found

    @property
    def is_false(self) -> np.ndarray:
        """False positives at the threshold, [R]."""
        return self.is_shown & ~self.is_right

    def figures(self) -> dict[str, Any]:
        """What report.json holds."""
        return {
            "metrics": self.metrics,
            "threshold": self.threshold,
            "f1": self.f1,
            "classes": self.classes,
            "errors": self.errors,
            "calibration": self.calibration,
            "by_size": self.sizes,
            "by_objects_an_image": self.crowds,
            "confusion": self.confusion.tolist(),
        }


def box_report(rows: np.ndarray, truth: Annotations, metrics: dict[str, Any]) -> BoxReport:
    """All figures of ``rows`` [R, 7]; ``metrics`` are those of :func:`detector.evaluation.coco.coco_metrics`."""
    num_classes, max_detections = len(truth.categories), metrics["max_detections"]
    image, label = rows[:, 0].astype(np.int64), rows[:, 6].astype(np.int64)  # [R] each
    true_image, true_label = truth.image_index().numpy(), truth.labels.numpy()
    is_object = ~truth.is_crowd.numpy()  # [M]

    evaluation = load_evaluation(rows, truth, "hotcoco", [1, min(10, max_detections), max_detections])
    bounds = [*(float(side) ** 2 for side in SIZES), 1e10]
    evaluation.params.areaRng = [[0.0, 1e10], *map(list, pairwise(bounds))]
    evaluation.params.areaRngLbl = ["all", *map(str, SIZES)]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"])[..., -1]  # [10, 101, K, 1 + sizes]
    diagnosis = evaluation.image_diagnostics(iou_thr=0.5)

    is_counted, is_right = np.zeros((2, len(rows)), dtype=bool)
    for number, status in diagnosis["dt_status"].items():
        is_counted[number - 1], is_right[number - 1] = True, status == "tp"
    match = np.full(len(true_label), -1)  # [M] the detection of each object
    for number, detection in diagnosis["gt_match"].items():
        match[number - 1] = detection - 1

    # A detection's level is the highest threshold that it passes; 1e-4 makes up for rounding of the score.
    level = np.floor(rows[:, 5].clip(0, 1) * STEPS + 1e-4).astype(np.int64)  # [R]
    objects = np.bincount(true_label[is_object], minlength=num_classes)  # [K]
    right = _count_above(level[is_right], label[is_right], num_classes)  # [K, STEPS + 1]
    counted = _count_above(level[is_counted], label[is_counted], num_classes)  # [K, STEPS + 1]
    f1 = 2 * right / np.maximum(objects[:, None] + counted, 1)  # [K, STEPS + 1]
    has_objects = objects > 0
    mean_f1 = f1[has_objects].mean(axis=0) if has_objects.any() else np.zeros(STEPS + 1)
    best = _middle_of_best(mean_f1)

    is_shown = is_counted & (level >= best)
    match_level = np.where(match >= 0, level[match], -1) if len(rows) else match  # [M]
    is_missed = is_object & (match_level < best)
    images = {
        "objects": np.bincount(true_image[is_object], minlength=len(truth)),
        "found": np.bincount(image[is_shown & is_right], minlength=len(truth)),
        "missed": np.bincount(true_image[is_missed], minlength=len(truth)),
        "false": np.bincount(image[is_shown & ~is_right], minlength=len(truth)),
    }
    classes = []
    for k, row in enumerate(metrics["per_class"]):
        own_best = _middle_of_best(f1[k])
        is_known = bool(has_objects[k])
        classes.append(
            {
                **row,
                "detections": int(counted[k, best]),
                "found": int(right[k, best]),
                "missed": int(objects[k] - right[k, best]),
                "false": int(counted[k, best] - right[k, best]),
                "f1": float(f1[k, best]) if is_known else -1.0,
                "best_f1": float(f1[k, own_best]) if is_known else -1.0,
                "best_threshold": own_best / STEPS if is_known else -1.0,
            }
        )
    return BoxReport(
        metrics=metrics,
        threshold=best / STEPS,
        f1=float(mean_f1[best]) if has_objects.any() else -1.0,
        classes=classes,
        f1_curves=np.where(has_objects[:, None], f1, -1.0),
        precision=precision[..., 0],
        confusion=_confusion(rows[is_shown], truth),
        errors=_errors(evaluation.tide_errors(pos_thr=0.5, bg_thr=0.1)),
        calibration=_calibration(evaluation.calibration(n_bins=10, iou_threshold=0.5)),
        sizes=_by_size(precision, truth),
        crowds=_by_crowding(evaluation, truth, images),
        images=images,
        is_right=is_right,
        is_counted=is_counted,
        is_shown=is_shown,
        is_missed=is_missed,
    )


def false_type(box: np.ndarray, label: int, true_boxes: np.ndarray, true_labels: np.ndarray) -> str:
    """The error type (a name of ERRORS) of a false positive ``box`` [4] among its image's objects [T, 4], all xywh."""
    from hotcoco.primitives import bbox_iou

    iou = bbox_iou(box[None], true_boxes, np.zeros(len(true_boxes), dtype=bool))[0]  # [T]
    own, other = (float(iou[is_own].max(initial=0)) for is_own in (true_labels == label, true_labels != label))
    if 0.1 <= own < 0.5:
        return ERRORS["Loc"][0]
    if other >= 0.5:
        return ERRORS["Cls"][0]
    if own >= 0.5:
        return ERRORS["Dupe"][0]
    return ERRORS["Both" if other >= 0.1 else "Bkg"][0]


def _count_above(level: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """How many detections of each class have at least each level, [K, STEPS + 1]."""
    counts = np.bincount(label * (STEPS + 1) + level, minlength=num_classes * (STEPS + 1))
    return counts.reshape(num_classes, STEPS + 1)[:, ::-1].cumsum(axis=1)[:, ::-1]


def _middle_of_best(values: np.ndarray) -> int:
    """The index of the highest value; the middle one of several, as it is the most robust on other images."""
    best = np.flatnonzero(values == values.max())
    return int(best[len(best) // 2])


def _confusion(rows: np.ndarray, truth: Annotations) -> np.ndarray:
    """The confusion matrix of ``rows`` outside crowds; each takes the free object it overlaps best, of any class."""
    most = max(1, len(rows))
    evaluation = load_evaluation(rows, truth, "hotcoco", [most])
    return evaluation.confusion_matrix(iou_thr=0.5, max_det=most)["matrix"].astype(np.int64)


def _errors(tide: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": name, "what": what, "count": tide["counts"][key], "AP50_lost": float(tide["delta_ap"][key])}
        for key, (name, what) in ERRORS.items()
    ]


def _calibration(calibration: dict[str, Any]) -> dict[str, Any]:
    bins = [
        {
            "from": row["bin_lower"],
            "to": row["bin_upper"],
            "detections": row["count"],
            "mean_score": row["avg_confidence"] if row["count"] else -1.0,
            "share_right": row["avg_accuracy"] if row["count"] else -1.0,
        }
        for row in calibration["bins"]
    ]
    return {"ece": calibration["ece"], "mce": calibration["mce"], "bins": bins}


def _range_names(starts: tuple[int, ...]) -> list[str]:
    pairs = pairwise(starts)
    return [str(low) if high == low + 1 else f"{low}–{high - 1}" for low, high in pairs] + [f"{starts[-1]}+"]


def _by_size(precision: np.ndarray, truth: Annotations) -> list[dict[str, Any]]:
    """AP of objects by area; both ends of a range are included, as in COCO."""
    areas = truth.areas.numpy()[~truth.is_crowd.numpy()]
    highs = [*SIZES[1:], float("inf")]
    names = [f"{low}²–{high}²" for low, high in pairwise(SIZES)] + [f"over {SIZES[-1]}²"]
    return [
        {
            "size": name,
            "objects": int(((areas >= low**2) & (areas <= high**2)).sum()),
            "AP": mean_of_known(precision[:, :, :, area]),
            "AP50": mean_of_known(precision[0, :, :, area]),
        }
        for area, (name, low, high) in enumerate(zip(names, SIZES, highs, strict=True), start=1)
    ]


def _by_crowding(evaluation: Any, truth: Annotations, images: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """AP of images by their number of objects; images without any have false positives only."""
    ids, objects = image_numbers(truth), images["objects"]
    highs = [*CROWDS[1:], np.inf]
    members = {"0": objects == 0}
    for name, low, high in zip(_range_names(CROWDS), CROWDS, highs, strict=True):
        members[name] = (objects >= low) & (objects < high)
    members = {name: is_member for name, is_member in members.items() if is_member.any()}
    slices = {name: ids[is_member].tolist() for name, is_member in members.items() if name != "0"}
    scores = evaluation.slice_by(slices) if slices else {}
    return [
        {
            "objects_an_image": name,
            "images": int(is_member.sum()),
            "objects": int(objects[is_member].sum()),
            "AP": float(scores[name]["AP"]) if name in scores else -1.0,
            "AP50": float(scores[name]["AP50"]) if name in scores else -1.0,
            "missed": int(images["missed"][is_member].sum()),
            "false": int(images["false"][is_member].sum()),
        }
        for name, is_member in members.items()
    ]
