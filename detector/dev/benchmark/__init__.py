"""The benchmark: this package beside torchvision on the same weights, inputs and batch (``detector benchmark``).

A part is a module with ``cases(settings)``: a list of :class:`~detector.dev.benchmark.measure.Case`. Importing this
module imports no torch.
"""

PARTS = {
    "loss": "matching, focal and box loss, forward and backward, given a head's outputs",
    "postprocess": "logits and deltas to detections",
    "data": "JPEG files to padded batches, by two workers",
    "train": "a step of training",
    "infer": "files to detections",
    "eval": "the twelve COCO numbers of 500,000 detections",
    "report": "the page of an evaluation of 500,000 detections",
    "doctor": "JPEG files as the doctor looks at them, beside two threads that decode them",
    "growth": "time and memory as objects and annotated images grow in number",
    "waiting": "steps and batches beside a busy process and alone, as OpenMP's threads wait",
    "startup": "from launching a training to its first step done",
}
