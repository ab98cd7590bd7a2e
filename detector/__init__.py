"""RetinaNet-style detection on feature pyramids: train, evaluate and infer on COCO-format data.

Most programs need only :func:`train`, :func:`evaluate` and :func:`load`; :func:`open_model` gives the model alone. The
other names of ``__all__`` are parts that are useful on their own. Each is imported when it is first used, so that
``import detector`` stays cheap.

**Stable** are the names on this page, :class:`detector.inference.predictor.Predictor` and its predictions, the classes
of :mod:`detector.errors`, commands with their options and exit codes, config keys, and the files of a run. CHANGELOG.md
announces a change to them, and files of earlier versions are still read. The modules below are for those who reuse or
replace parts: their names may move from one version to the next.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detector.checkpoints.opening import open_model as open_model
    from detector.config.loader import load_config as load_config
    from detector.config.schema import Config as Config
    from detector.data.own import OwnData
    from detector.errors import DetectorError as DetectorError
    from detector.inference.exported import ExportedPredictor
    from detector.inference.predictor import Predictor as Predictor
    from detector.inference.video import Video as Video
    from detector.models import Model as Model
    from detector.models import build_model as build_model
    from detector.models.backbones import Backbone as Backbone
    from detector.models.backbones import build_backbone as build_backbone
    from detector.models.fpn import FPN as FPN
    from detector.models.heads import PooledHead as PooledHead
    from detector.models.heads import RetinaHead as RetinaHead
    from detector.ops.anchors import Anchors as Anchors
    from detector.ops.postprocess import detect as detect

__version__ = "0.1.0"

# Name → the module that defines it.
_PARTS = {
    "Config": "config.schema",
    "load_config": "config.loader",
    "open_model": "checkpoints.opening",
    "Predictor": "inference.predictor",
    "Video": "inference.video",
    "DetectorError": "errors",
    "Model": "models",
    "build_model": "models",
    "Backbone": "models.backbones",
    "build_backbone": "models.backbones",
    "FPN": "models.fpn",
    "RetinaHead": "models.heads",
    "PooledHead": "models.heads",
    "Anchors": "ops.anchors",
    "detect": "ops.postprocess",
}

__all__ = ["evaluate", "load", "train", *_PARTS]


def __getattr__(name: str) -> Any:
    """A name of ``__all__``, from the module that defines it."""
    if name not in _PARTS:
        raise AttributeError(f"module 'detector' has no attribute {name!r}")
    return getattr(importlib.import_module(f"detector.{_PARTS[name]}"), name)


def load(checkpoint: str | Path, device: str | None = None, allow_code: bool = False) -> Predictor | ExportedPredictor:
    """A ready :class:`detector.inference.predictor.Predictor` of a checkpoint (``runs/x/best.pt``) or a run:

        predictor = detector.load("runs/mine")
        print(predictor.predict(["a.jpg"], score_threshold=0.5)[0].boxes)  # [D, 4] xyxy in pixels

    An exported file (``model.onnx``) is opened with onnxruntime, on the CPU, as a
    :class:`detector.inference.exported.ExportedPredictor`, which predicts the same.
    ``device`` defaults to the first GPU, else the CPU. ``allow_code``: parts that the checkpoint names as
    ``package.module:name`` may run. Raises :class:`detector.errors.WeightsError` for a file that is missing or is not
    a checkpoint. The process is left alone: its environment, signals, warnings, threads and random numbers. Random
    weights give denormals, which are slow on a CPU; the commands call ``torch.set_flush_denormal(True)``.
    """
    from detector.inference.exported import SUFFIX, ExportedPredictor

    if Path(checkpoint).suffix == SUFFIX:
        return ExportedPredictor(checkpoint)

    from detector.inference.predictor import Predictor

    return Predictor.from_checkpoint(checkpoint, device, allow_code=allow_code)


def train(
    config: str | Path,
    overrides: Sequence[str] = (),
    name: str | None = None,
    runs: str | Path = "runs",
    resume: bool = False,
    device: str | None = None,
    data: OwnData | None = None,
    allow_code: bool = False,
) -> Path:
    """Train as ``detector train`` does; returns the run's folder ``runs/name``, which :func:`load` takes:

        run = detector.train("mine.yaml", ["train.epochs=3"], name="shorter")

    ``config`` is a YAML file or the name of one of the package's, ``overrides`` are ``key=value``, and ``name``
    defaults to the config's. ``data`` is (train, val) or (train, None), each a :class:`detector.data.own.BoxData`, for
    segmentation a :class:`detector.data.own_masks.MaskData`, instead of the files that the config names.
    ``allow_code``: parts that the config names as ``package.module:name`` may run. Under ``torchrun`` each process
    makes the same call. Raises :class:`detector.errors.DetectorError` for everything that a user can fix, and
    KeyboardInterrupt after Ctrl-C or SIGTERM: everything is saved then, and the
    same call with ``resume=True`` continues.
    """
    from detector.config.loader import load_config
    from detector.training import distributed
    from detector.training.fitting import fit
    from detector.training.run_folder import RunFolder

    run = RunFolder.named(runs, Path(config).stem if name is None else name)
    resolved = load_config(config, overrides, allow_code)
    try:
        if not fit(resolved, run, distributed.start(device), resume, data):
            raise KeyboardInterrupt(f"{run.path}: stopped; everything is saved, resume=True continues")
    finally:
        distributed.stop()
    return run.path


def evaluate(
    checkpoint: str | Path,
    overrides: Sequence[str] = (),
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    device: str | None = None,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Score a checkpoint or a run as ``detector evaluate`` does; returns the metrics of its ``results.json``:

        metrics = detector.evaluate("runs/mine", annotations="test.json", images="images/")
        print(metrics["AP"], metrics["per_class"][0]["AP50"])

    Without ``annotations`` and ``images`` it is scored on its own validation data. For a classifier, ``images`` alone
    is a folder with one folder per class. ``overrides`` are ``key=value``, and
    ``allow_code`` is as for :func:`load`. Under ``torchrun`` each process makes the same call, and the first one gets
    the metrics. Raises :class:`detector.errors.DetectorError` for everything that a user can fix.
    """
    import torch

    from detector.inference.evaluate import evaluate_checkpoint
    from detector.training import distributed

    torch.set_flush_denormal(True)
    try:
        resolved = distributed.start(device)
        with distributed.peers():
            return evaluate_checkpoint(checkpoint, overrides, resolved, annotations, images, allow_code).scored.metrics
    finally:
        distributed.stop()
