"""Exported files against eager PyTorch, and INT8 against float, on one thread and on two.

Predictions from pixels in memory, one image at a time: R50-FPN at 640 px and the quickstart's network at 128 px.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from detector.checkpoints.opening import Opened
from detector.config.loader import config_from_dict, load_config
from detector.data.images import read_image
from detector.dev.benchmark.generate import IMAGES, write_photos
from detector.dev.benchmark.measure import Case, Run, Settings
from detector.dev.benchmark.peer import make_weights
from detector.export.exporting import EXACT, Request, candidates, export
from detector.export.reduced import LEAST_IMAGES
from detector.inference.exported import ExportedPredictor
from detector.inference.images import ImagePredictor
from detector.inference.predictor import Predictor
from detector.models import build_model
from detector.structures import Category
from detector.tasks import detection_results

NETWORKS = {"retinanet_r50_fpn.yaml": 640, "quickstart.yaml": 128}  # and the long side of their images
THREADS = (1, 2)
SHOWN = 4  # images per run


class Inputs(NamedTuple):
    checkpoint: Path
    files: dict[str, Path]  # by kind
    images: list[np.ndarray]
    threads: int


def cases(settings: Settings) -> list[Case]:
    return [
        Case(
            name=f"{name.removesuffix('.yaml')} at {settings.side(side)}, {words}, threads: {threads}",
            files=partial(write_files, name=name, side=settings.side(side), classes=settings.classes),
            inputs=partial(make_inputs, name=name, threads=threads),
            ours=partial(ours, kind=kind),
            theirs=partial(ours, kind="onnx") if kind == "int8" else theirs,
            equal=None if kind == "int8" else same,
            images=SHOWN,
        )
        for name, side in NETWORKS.items()
        for kind, words in (("onnx", "ONNX against eager"), ("int8", "INT8 against ONNX"))
        for threads in THREADS
    ]


def write_files(folder: Path, name: str, side: int, classes: int) -> None:
    """A checkpoint and its exported files, once for all processes."""
    folder = folder / name
    if folder.exists():
        return
    write_photos(folder, LEAST_IMAGES, side)
    photos = sorted((folder / IMAGES).iterdir())
    config = load_config(name, [f"data.resize={{short: [{side}], long: {side}}}"])
    image = torch.from_numpy(read_image(photos[0])).permute(2, 0, 1)
    weights = make_weights(config, classes, image)
    torch.save(weights, folder / "weights.pt")
    for kind in ("onnx", "int8"):
        export(open_weights(folder / "weights.pt"), name, folder / f"{kind}.onnx", Request(kind, photos))


def open_weights(path: Path) -> Opened:
    weights = torch.load(path)
    config = config_from_dict(weights["config"], str(path))
    model = build_model(config.model, len(weights["categories"]))
    model.load_state_dict(weights["model"])
    return Opened(model.eval(), config, [Category(**category) for category in weights["categories"]])


def make_inputs(folder: Path, name: str, threads: int) -> Inputs:
    folder = folder / name
    images = [read_image(path) for path in sorted((folder / IMAGES).iterdir())[:SHOWN]]
    files = {kind: folder / f"{kind}.onnx" for kind in ("onnx", "int8")}
    return Inputs(folder / "weights.pt", files, images, threads)


def ours(inputs: Inputs, kind: str) -> Run:
    return partial(predict, ExportedPredictor(inputs.files[kind], threads=inputs.threads), inputs)


def theirs(inputs: Inputs) -> Run:
    return partial(predict, eager(inputs), inputs)


def eager(inputs: Inputs) -> Predictor:
    model, config, categories = open_weights(inputs.checkpoint)
    return Predictor(model.fold_norms(), config, categories, torch.device("cpu"))


def predict(predictor: ImagePredictor, inputs: Inputs) -> list[detection_results.Prediction]:
    before = torch.get_num_threads()
    torch.set_num_threads(inputs.threads)
    try:
        return predictor.predict(inputs.images, batch_size=1)
    finally:
        torch.set_num_threads(before)


def same(inputs: Inputs, ours: list, theirs: list) -> bool:
    predictor = eager(inputs)
    settings, every = predictor.config.model.predict, candidates(predictor, inputs.images)
    return detection_results.compare(theirs, ours, *EXACT["onnx"], settings, every).is_same
