"""The names of the tasks and heads, and the config keys that only some of them read.

A task is the modules ``NAME``, ``NAME_results`` and ``NAME_views`` of ``detector.tasks``; heads are in
``detector.models.heads``. The names and keys are here so that configs are checked and commands list the tasks without
importing torch.
"""

from __future__ import annotations

LARGEST_TILE = 2**14  # pixels of a side: a tile has at most as many in all as an image


def _in(section: str, keys: str) -> tuple[str, ...]:
    return tuple(f"{section}.{key}" for key in keys.split())


# For each task, and for each of its heads, the keys and sections that it reads and another one does not.
TASKS = {
    "detection": (
        *_in("data", "group_by_aspect invalid_boxes one_based resize"),
        *_in("data.tiles", "size overlap full_image merge min_visible negatives"),
        *_in("data.augment", "scale_jitter canvas min_visibility mosaic copy_paste mixup mix_share close_out"),
        *_in("model", "anchors matcher box_coder"),
        *_in("model.loss", "cls alpha gamma cls_weight box beta box_weight weigh_boxes dfl_weight quality_weight"),
        *_in("model.predict", "topk score_threshold nms_threshold max_detections clip keep_empty scales"),
        *_in("model.predict", "score_thresholds"),
        *_in("eval", "backend"),
    ),
    "classification": (
        *_in("data", "class_weights crop"),
        *_in("data.augment", "mixup cutmix mix_share close_out"),
        *_in("model", "loss.label_smoothing predict.classes multi_label"),
    ),
    "segmentation": (
        *_in("data", "class_weights group_by_aspect masks resize"),
        *_in("data.tiles", "size overlap"),
        *_in("data.augment", "scale_jitter canvas max_class_share mosaic copy_paste cutmix mix_share close_out"),
        *_in("model", "loss.cls_weight loss.dice_weight loss.label_smoothing predict.scales"),
        *_in("eval", "boundary_iou"),
    ),
}
HEADS = {
    "detection": {"retina": _in("model.head", "num_convs channels norm norm_bias prior level_scales quality")},
    "classification": {"pooled": _in("model.head", "pool fuse hidden dropout"), "classic": ()},
    "segmentation": {"semantic": _in("model.head", "blocks channels dropout")},
}
