"""The tasks and the heads: which there are, and what of a config not all of them read.

A task is the modules ``NAME``, ``NAME_results`` and ``NAME_views`` of ``detector.tasks``, a head is in
``detector.models.heads``. Their names and keys stand down here, so that a config is checked, and a command lists the
tasks, without importing torch.
"""

from __future__ import annotations


def _in(section: str, keys: str) -> tuple[str, ...]:
    return tuple(f"{section}.{key}" for key in keys.split())


# The keys and sections that a task reads and some other one does not; and of each task's heads in the same way.
TASKS = {
    "detection": (
        *_in("data", "group_by_aspect invalid_boxes resize augment.scale_jitter augment.min_visibility"),
        *_in("model", "anchors matcher box_coder"),
        *_in("model.loss", "cls alpha gamma cls_weight box beta box_weight"),
        *_in("model.predict", "topk score_threshold nms_threshold max_detections clip keep_empty"),
        *_in("eval", "backend"),
    ),
    "classification": (
        *_in("data", "classes class_weights crop augment.mixup augment.cutmix"),
        *_in("model", "loss.label_smoothing predict.classes multi_label"),
    ),
}
HEADS = {
    "detection": {"retina": _in("model.head", "num_convs channels norm norm_bias prior")},
    "classification": {"pooled": _in("model.head", "pool fuse hidden dropout"), "classic": ()},
}
