"""The names of the tasks and heads, and the config keys that only some of them read.

A task is the modules ``NAME``, ``NAME_results`` and ``NAME_views`` of ``detector.tasks``; heads are in
``detector.models.heads``. The names and keys are here so that configs are checked and commands list the tasks without
importing torch.
"""

from __future__ import annotations


def _in(section: str, keys: str) -> tuple[str, ...]:
    return tuple(f"{section}.{key}" for key in keys.split())


# For each task, and for each of its heads, the keys and sections that it reads and another one does not.
TASKS = {
    "detection": (
        *_in("data", "group_by_aspect invalid_boxes one_based resize augment.scale_jitter augment.min_visibility"),
        *_in("model", "anchors matcher box_coder"),
        *_in("model.loss", "cls alpha gamma cls_weight box beta box_weight"),
        *_in("model.predict", "topk score_threshold nms_threshold max_detections clip keep_empty"),
        *_in("eval", "backend"),
    ),
    "classification": (
        *_in("data", "class_weights crop augment.mixup augment.cutmix"),
        *_in("model", "loss.label_smoothing predict.classes multi_label"),
    ),
}
HEADS = {
    "detection": {"retina": _in("model.head", "num_convs channels norm norm_bias prior")},
    "classification": {"pooled": _in("model.head", "pool fuse hidden dropout"), "classic": ()},
}
