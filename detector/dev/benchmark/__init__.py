"""The benchmark: this package against torchvision on the same weights, inputs and batch (``detector benchmark``).

A part is a module with ``cases(settings)``: a list of :class:`detector.dev.benchmark.measure.Case`. This module does
not import torch.
"""

PARTS = {
    "loss": "matching, focal and box loss, forward and backward, given a head's outputs",
    "postprocess": "logits and deltas to detections",
    "data": "JPEG files to padded batches, with two workers",
    "train": "a step of training",
    "segment": "a step of training a segmenter, against segmentation_models_pytorch where that is installed",
    "infer": "files to detections",
    "tiles": "boxes of all tiles merged, and tiles of a large file against tiles in memory",
    "export": "exported files against eager, and INT8 against float, on one thread and on two",
    "eval": "the twelve COCO numbers of 500,000 detections",
    "report": "the evaluation report of 500,000 detections",
    "doctor": "JPEG files as the doctor reads them, against two threads that decode them",
    "growth": "time and memory by the number of objects and of annotated images",
    "waiting": "OpenMP's waiting threads: training and inference, alone and beside a busy process",
    "startup": "from launching training to the end of its first step",
}
