"""The tasks: which there are, and what of a config not all of them read.

A task is the modules ``NAME``, ``NAME_results`` and ``NAME_views`` of ``detector.tasks``. Its name and its keys stand
down here, so that a config is checked and a command lists the tasks without importing torch.
"""

from __future__ import annotations

TASKS: dict[str, tuple[str, ...]] = {  # the keys and sections that the task reads and some other one does not
    "detection": (
        "data.group_by_aspect",
        "data.invalid_boxes",
        "data.resize",
        "data.augment.scale_jitter",
        "data.augment.min_visibility",
        "model.anchors",
        "model.matcher",
        "model.loss.cls",
        "model.loss.alpha",
        "model.loss.gamma",
        "model.loss.cls_weight",
        "model.loss.box",
        "model.loss.beta",
        "model.loss.box_weight",
        "model.predict.topk",
        "model.predict.score_threshold",
        "model.predict.nms_threshold",
        "model.predict.max_detections",
        "model.predict.clip",
        "model.predict.keep_empty",
        "eval.backend",
    ),
    "classification": (
        "data.classes",
        "data.class_weights",
        "data.crop",
        "data.augment.mixup",
        "data.augment.cutmix",
        "model.loss.label_smoothing",
        "model.predict.classes",
        "model.multi_label",
    ),
}
